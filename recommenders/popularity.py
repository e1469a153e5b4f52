"""The items that most units had: the list to beat, and the one for strangers."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recommenders.base import TrainedRecommender
from recommenders.interactions import FloatArray, IntArray, Interactions


@dataclass(frozen=True, slots=True, kw_only=True)
class Popularity:
    """Items by the number of distinct units, so that no one unit can push an item."""

    cold_units: ClassVar[bool] = True
    context_item: ClassVar[bool] = False

    def fit(
        self,
        interactions: Interactions,
        rng: np.random.Generator,  # noqa: ARG002 - of the contract; counting needs none
    ) -> TrainedRecommender:
        """Count the units of each item."""
        return TrainedRecommender(
            recommender=self,
            interactions=interactions,
            scorer=_PopularityScorer(units=interactions.item_units()),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _PopularityScorer:
    units: FloatArray

    def unit_scores(self, rows: IntArray) -> FloatArray:
        return np.tile(self.units, (len(rows), 1))

    def item_scores(self, rows: IntArray) -> FloatArray:
        """Score by popularity as well; no item is told from another."""
        return self.unit_scores(rows)
