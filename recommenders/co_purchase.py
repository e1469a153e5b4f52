"""What is bought together: neighbours among the items of one basket."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from recommenders.base import (
    Capabilities,
    TrainedRecommender,
    check_integer,
    check_number,
)
from recommenders.instants import DAY
from recommenders.interactions import Events, Interactions
from recommenders.neighbours import NeighbourScorer, keep_best
from recommenders.space import Integers, Numbers, Space

_BLOCK_ITEMS = 1024

# Of a fuller cart only the last items count, all alike.
_CART_ITEMS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class CoPurchase:
    """Items by how often they share a basket with those at hand.

    Likeness of two items that share n of their baskets: ``n / (sqrt(n_i n_j) + shrink)``.

    Attributes
    ----------
    gap_minutes : float, 0 to 1e6
        A unit's interactions are of one basket while no more time than this lies
        between one and the next.
    max_basket : int, 2 to 10,000
        Baskets of more distinct items are left out: whoever buys everything tells
        little, and the work grows with the square.
    min_together : int, 1 to 1e6
        Baskets that two items must share at least.
    shrink : float, 0 to 1e6
        The larger, the less count pairs that few baskets hold.
    neighbours : int, 1 to 1000
        Items kept for each item.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(context_item=True, session=True)
    space: ClassVar[Mapping[str, Space]] = {
        "min_together": Integers(low=1, high=10),
        "shrink": Numbers(low=0.1, high=100.0, log=True),
        "neighbours": Integers(low=5, high=500, log=True),
    }

    gap_minutes: float = 30.0
    max_basket: int = 200
    min_together: int = 1
    shrink: float = 5.0
    neighbours: int = 50

    def __post_init__(self) -> None:
        check_number("gap_minutes", self.gap_minutes, low=0.0, high=1e6)
        check_integer("max_basket", self.max_basket, low=2, high=10_000)
        check_integer("min_together", self.min_together, low=1, high=1_000_000)
        check_number("shrink", self.shrink, low=0.0, high=1e6)
        check_integer("neighbours", self.neighbours, low=1, high=1000)

    def fit(
        self,
        interactions: Interactions,
        rng: np.random.Generator,  # noqa: ARG002 - of the contract; it draws nothing
    ) -> TrainedRecommender:
        """Count the baskets that each two items share."""
        events = interactions.timed("co-purchase")
        width = len(interactions.items)
        baskets = self._baskets(events, width)
        # From float64, as float32 counts no further than 16,777,216.
        counts = np.bincount(baskets.indices, minlength=width).astype(np.float64)
        blocks = [
            self._likeness(baskets, counts, start)
            for start in range(0, width, _BLOCK_ITEMS)
        ]
        return TrainedRecommender(
            recommender=self,
            interactions=interactions,
            scorer=NeighbourScorer(
                weights=interactions.matrix,
                likeness=csr_matrix(vstack(blocks)),
                fade=np.ones(_CART_ITEMS, dtype=np.float32),
            ),
        )

    def _baskets(self, events: Events, width: int) -> csr_matrix:
        order, numbers = sessions_of(events, self.gap_minutes)
        items = events.items[order]
        keys = np.unique(numbers * np.int64(width) + items)
        owners, columns = keys // width, keys % width
        sizes = np.bincount(owners)
        kept = sizes[owners] <= self.max_basket
        ones = np.ones(int(kept.sum()))
        shape = (sizes.size, width)
        return csr_matrix((ones, (owners[kept], columns[kept])), shape=shape)

    def _likeness(
        self, baskets: csr_matrix, counts: NDArray[np.float64], start: int
    ) -> csr_matrix:
        block = slice(start, start + _BLOCK_ITEMS)
        together = csr_matrix(baskets[:, block].T @ baskets)
        rows = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
        both = together.data
        norms = np.sqrt(counts[block][rows] * counts[together.indices])
        likeness = both / (norms + self.shrink)
        itself = rows + start == together.indices
        likeness[itself | (both < self.min_together)] = 0
        together.data = likeness
        return keep_best(together, self.neighbours)


def sessions_of(
    events: Events, gap_minutes: float
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Cut the events of each unit where more time than a gap passes.

    Returns
    -------
    order : int array, shape (events,)
        Events by unit and time.
    numbers : int64 array, shape (events,)
        Of the session of each event in that order, from 0 on.
    """
    order = events.by_unit()
    units, times = events.units[order], events.times[order]
    gap = gap_minutes / (24 * 60) * DAY
    starts = (units[1:] != units[:-1]) | (times[1:] - times[:-1] > gap)
    return order, np.concatenate([[0], np.cumsum(starts)]).astype(np.int64)
