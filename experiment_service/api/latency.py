"""Latency per route, counted in fixed buckets; owned by one event loop, so no lock."""

from bisect import bisect_left
from itertools import accumulate
from typing import Any

#: Upper bounds of the buckets in milliseconds; the last one is open.
BUCKETS_MS = (0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 25, 50, 100, 250, 500, 1000, 2500)


class LatencyHistogram:
    """Counts of answers by the milliseconds they took."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS_MS) + 1)
        self._sum_ms = 0.0

    def add(self, seconds: float) -> None:
        """Count one answer."""
        milliseconds = 1000 * seconds
        self._counts[bisect_left(BUCKETS_MS, milliseconds)] += 1
        self._sum_ms += milliseconds

    @property
    def counts(self) -> list[int]:
        """Answers by bucket, not cumulated; the last bucket is open."""
        return list(self._counts)

    @property
    def total_ms(self) -> float:
        """Milliseconds of all answers together."""
        return self._sum_ms

    def quantile(self, share: float) -> float | None:
        """Estimate the milliseconds within which a share of the answers came.

        Linear within its bucket; the last bound when it lies in the open bucket, None
        before the first answer.
        """
        total = sum(self._counts)
        if not total:
            return None
        cumulated = list(accumulate(self._counts))
        bucket = bisect_left(cumulated, share * total)
        if bucket == len(BUCKETS_MS):
            return float(BUCKETS_MS[-1])
        low = BUCKETS_MS[bucket - 1] if bucket else 0.0
        before = cumulated[bucket] - self._counts[bucket]
        part = (share * total - before) / self._counts[bucket]
        return low + part * (BUCKETS_MS[bucket] - low)

    def document(self) -> dict[str, Any]:
        """Write counts, mean and quantiles as a JSON document."""
        total = sum(self._counts)
        return {
            "count": total,
            "mean_ms": self._sum_ms / total if total else None,
            "p50_ms": self.quantile(0.5),
            "p99_ms": self.quantile(0.99),
            "bucket_counts": list(self._counts),
        }
