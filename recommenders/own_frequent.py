"""What a unit had most often: the list to beat where shoppers buy again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix

from recommenders.base import Capabilities, TrainedRecommender, check_number
from recommenders.instants import DAY
from recommenders.interactions import FloatArray, IntArray, Interactions
from recommenders.space import Choices, Space


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFrequent:
    """A unit's own items by their weight; it never shows anything else.

    Attributes
    ----------
    half_life_days : float, 0.01 to 100,000, optional
        After so many days an interaction counts half; none fades when left out.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(new_items=False)
    space: ClassVar[Mapping[str, Space]] = {
        "half_life_days": Choices((None, 14.0, 28.0, 56.0, 91.0, 182.0, 365.0)),
    }

    half_life_days: float | None = None

    def __post_init__(self) -> None:
        if self.half_life_days is not None:
            check_number(
                "half_life_days", self.half_life_days, low=0.01, high=100_000.0
            )

    def fit(
        self,
        interactions: Interactions,
        rng: np.random.Generator,  # noqa: ARG002 - of the contract; it draws nothing
    ) -> TrainedRecommender:
        """Sum up the weights, faded by age."""
        weights = interactions.matrix
        if self.half_life_days is not None:
            events = interactions.timed("a half-life")
            age = (events.times[-1] - events.times) / (DAY * self.half_life_days)
            # Beyond some thousand half-lives all would be 0, and 0 is never shown.
            faded = events.weights * np.exp2(-np.minimum(age, 60))
            places = (events.units, events.items)
            weights = coo_matrix((faded, places), shape=weights.shape).tocsr()
        return TrainedRecommender(
            recommender=self,
            interactions=interactions,
            scorer=_OwnScorer(weights=csr_matrix(weights, dtype=np.float32)),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _OwnScorer:
    weights: csr_matrix

    def unit_scores(self, rows: IntArray) -> FloatArray:
        scores: FloatArray = self.weights[rows].toarray()
        scores[scores <= 0] = -np.inf
        return scores
