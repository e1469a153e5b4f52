"""Units and items as vectors, learned by alternating least squares (implicit).

The inner product of two vectors says how much a unit wants an item.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares as _ImplicitALS
from implicit.recommender_base import ModelFitError
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # no types published

from recommenders.base import (
    TrainedRecommender,
    check_choice,
    check_integer,
    check_number,
)
from recommenders.interactions import FloatArray, IntArray, Interactions
from recommenders.weighting import bm25

Weighting = Literal["bm25", "counts"]

# Repeats count nearly in full (k1), heavy buyers are scaled down (b): as in the examples
# of implicit.
_BM25_K1 = 100.0
_BM25_B = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class AlternatingLeastSquares:
    """Factors that explain who had what, where more weight means more confidence.

    Attributes
    ----------
    factors : int, 1 to 1024
        Length of a vector.
    regularization : float, 0 to 1e6
        Pull of the factors to 0.
    alpha : float, 1e-6 to 1e6
        Confidence in an interaction is alpha times its weight (implicit's form of the
        paper's ``1 + alpha r``). The paper's 40 on raw counts fails on shops with much
        repeat buying.
    iterations : int, 1 to 1000
        Passes over units and items.
    weighting : {"bm25", "counts"}
        What the weights are before `alpha`: rare items and light buyers lifted, or as
        they came.

    References
    ----------
    Hu, Koren and Volinsky (2008), Collaborative Filtering for Implicit Feedback
    Datasets, equations 3 to 5.
    """

    cold_units: ClassVar[bool] = False
    context_item: ClassVar[bool] = True

    factors: int = 64
    regularization: float = 0.01
    alpha: float = 2.0
    iterations: int = 15
    weighting: Weighting = "bm25"

    def __post_init__(self) -> None:
        check_integer("factors", self.factors, low=1, high=1024)
        check_number("regularization", self.regularization, low=0.0, high=1e6)
        check_number("alpha", self.alpha, low=1e-6, high=1e6)
        check_integer("iterations", self.iterations, low=1, high=1000)
        check_choice("weighting", self.weighting, get_args(Weighting))

    def fit(
        self, interactions: Interactions, rng: np.random.Generator
    ) -> TrainedRecommender:
        """Learn the factors; `rng` draws where they start.

        Raises
        ------
        ValueError
            When the factors are not finite.
        """
        confidence = self._confidence(interactions.matrix)
        # Not only for speed: implicit warns about each BLAS that has threads, and a sum
        # split among them depends on their number.
        with threadpool_limits(limits=1, user_api="blas"):
            model = _ImplicitALS(
                factors=self.factors,
                regularization=self.regularization,
                alpha=1.0,
                iterations=self.iterations,
                random_state=rng,
            )
            try:
                model.fit(confidence, show_progress=False)
            except ModelFitError as error:
                raise self._not_finite() from error
        units, items = model.user_factors, model.item_factors
        if not (np.isfinite(units).all() and np.isfinite(items).all()):
            raise self._not_finite()
        return TrainedRecommender(
            recommender=self,
            interactions=interactions,
            scorer=_FactorScorer(units=units, items=items),
        )

    def _confidence(self, matrix: csr_matrix) -> csr_matrix:
        if self.weighting == "bm25":
            # Units are the documents: an item that everybody buys tells little of them.
            weights = bm25(matrix, k1=_BM25_K1, b=_BM25_B)
        else:
            weights = matrix.astype(np.float64)
        with np.errstate(over="ignore"):
            confidence = (weights * self.alpha).astype(np.float32)
        if not np.isfinite(confidence.data).all():
            raise self._not_finite()
        return confidence

    def _not_finite(self) -> ValueError:
        return ValueError(
            f"factors of {self} are not finite; lower alpha or the weights"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _FactorScorer:
    units: FloatArray
    items: FloatArray

    def unit_scores(self, rows: IntArray) -> FloatArray:
        return self.units[rows] @ self.items.T

    def item_scores(self, rows: IntArray) -> FloatArray:
        """Return cosines, as lengths say how popular an item is; -inf without one."""
        lengths = np.linalg.norm(self.items, axis=1)
        known = lengths > 0
        divisors = np.where(known, lengths, 1.0).astype(np.float32)
        directions = self.items / divisors[:, np.newaxis]
        scores: FloatArray = directions[rows] @ directions.T
        scores[:, ~known] = -np.inf
        scores[~known[rows]] = -np.inf
        return scores
