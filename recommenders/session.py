"""What comes next in a session: rules from one item to those that came near it.

Answers for what somebody just looked at, known or not, so it needs no history.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix

from recommenders.base import (
    Capabilities,
    TrainedRecommender,
    check_integer,
    check_number,
)
from recommenders.co_purchase import sessions_of
from recommenders.interactions import IntArray, Interactions
from recommenders.neighbours import NeighbourScorer, keep_best, session_weights
from recommenders.space import Integers, Numbers, Space


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRules:
    """Items that came near the last ones, counted by one over their distance.

    Attributes
    ----------
    gap_minutes : float, 0 to 1e6
        A unit's interactions are of one session while no more time than this lies
        between one and the next.
    reach : int, 1 to 100
        Farthest distance that counts: 1 is the next item only. The work grows with it,
        and with nothing else but the number of interactions.
    backward : float, 0 to 1
        How much it counts that an item came before instead of after; 1 where the order
        inside a session means nothing, such as in a basket.
    last : int, 1 to 100
        Items of a session, or of a unit's history, that count.
    fade : float, 0.01 to 1
        Each counts so much of the one after it.
    neighbours : int, 1 to 1000
        Items kept for each item.

    References
    ----------
    Ludewig and Jannach (2018), Evaluation of session-based recommendation algorithms,
    section 3.1, sequential rules.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(context_item=True, session=True)
    space: ClassVar[Mapping[str, Space]] = {
        "reach": Integers(low=1, high=30),
        "backward": Numbers(low=0.0, high=1.0),
        "last": Integers(low=1, high=50, log=True),
        "fade": Numbers(low=0.3, high=1.0),
        "neighbours": Integers(low=5, high=500, log=True),
    }

    gap_minutes: float = 30.0
    reach: int = 10
    backward: float = 1.0
    last: int = 10
    fade: float = 0.8
    neighbours: int = 100

    def __post_init__(self) -> None:
        check_number("gap_minutes", self.gap_minutes, low=0.0, high=1e6)
        check_integer("reach", self.reach, low=1, high=100)
        check_number("backward", self.backward, low=0.0, high=1.0)
        check_integer("last", self.last, low=1, high=100)
        check_number("fade", self.fade, low=0.01, high=1.0)
        check_integer("neighbours", self.neighbours, low=1, high=1000)

    def fit(
        self,
        interactions: Interactions,
        rng: np.random.Generator,  # noqa: ARG002 - of the contract; it draws nothing
    ) -> TrainedRecommender:
        """Count what came near what, and remember the last items of each unit."""
        fade = np.float32(self.fade) ** np.arange(self.last, dtype=np.float32)
        width = len(interactions.items)
        last = self._last_items(interactions)
        return TrainedRecommender(
            recommender=self,
            interactions=interactions,
            scorer=NeighbourScorer(
                weights=session_weights(last, width, fade),
                likeness=self._rules(interactions),
                fade=fade,
            ),
        )

    def _rules(self, interactions: Interactions) -> csr_matrix:
        events = interactions.timed("a session recommender")
        order, numbers = sessions_of(events, self.gap_minutes)
        items = events.items[order]
        width = len(interactions.items)
        rules = csr_matrix((width, width), dtype=np.float64)
        for distance in range(1, min(self.reach, items.size - 1) + 1):
            before, after = items[:-distance], items[distance:]
            near = (numbers[:-distance] == numbers[distance:]) & (before != after)
            weights = np.full(int(near.sum()), 1.0 / distance)
            places = (before[near], after[near])
            rules = rules + coo_matrix((weights, places), shape=rules.shape).tocsr()
        rules = rules + self.backward * rules.T.tocsr()
        # A common item has more rules; what counts is which of its rules are strong.
        sums = np.asarray(rules.sum(axis=1)).ravel()
        scale = np.repeat(np.maximum(sums, 1e-30), np.diff(rules.indptr))
        rules.data = rules.data / scale
        return keep_best(rules, self.neighbours)

    def _last_items(self, interactions: Interactions) -> IntArray:
        events = interactions.timed("a session recommender")
        order = events.by_unit()
        units = events.units[order]
        ends = np.cumsum(np.bincount(units, minlength=len(interactions.units)))
        after = ends[units] - 1 - np.arange(units.size)
        near = after < self.last
        last = np.full((len(interactions.units), self.last), -1, dtype=np.int32)
        last[units[near], self.last - 1 - after[near]] = events.items[order][near]
        return last
