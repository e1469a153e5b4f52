"""Counting of sizes in fixed buckets, cheap enough to be done all the time."""

from bisect import bisect_left
from collections.abc import Sequence

#: Upper bounds for numbers of events handled together.
BATCH_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Histogram:
    """Counts of values by bucket; written by one thread, read by any.

    Attributes
    ----------
    bounds : sequence of float
        Upper bounds, included; one more bucket is open.
    counts : list of int
        By bucket, not cumulated.
    total : float
        Sum of the values.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
