"""Units and items as vectors, learned by least squares or from pairs (implicit).

The inner product of two vectors says how much a unit wants an item.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares as _ImplicitALS
from implicit.cpu.bpr import BayesianPersonalizedRanking as _ImplicitBPR
from implicit.recommender_base import ModelFitError
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from recommenders.base import (
    Capabilities,
    TrainedRecommender,
    check_choice,
    check_integer,
    check_number,
)
from recommenders.interactions import FloatArray, IntArray, Interactions
from recommenders.space import Choices, Integers, Numbers, Space
from recommenders.weighting import bm25

Weighting = Literal["bm25", "counts"]

# Repeats count nearly in full (k1), heavy buyers are scaled down (b): as in the examples
# of implicit.
_BM25_K1 = 100.0
_BM25_B = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class AlternatingLeastSquares:
    """Factors that explain who had what, where more weight means more confidence.

    What a unit was shown and did not take (`Interactions.passed`) is confidence that it
    does not want the item, by the same alpha and weighting; what it was not shown counts
    against an item no more than it does without such data.

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
    Datasets, equations 3 to 5. Liang, Charlin, McInerney and Blei (2016), Modeling User
    Exposure in Recommendation, section 3: an item tells against itself as far as it was
    seen.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        context_item=True, dislikes=True
    )
    space: ClassVar[Mapping[str, Space]] = {
        "factors": Integers(low=8, high=256, log=True),
        "regularization": Numbers(low=1e-3, high=100.0, log=True),
        "alpha": Numbers(low=0.01, high=100.0, log=True),
        "iterations": Integers(low=5, high=40),
        "weighting": Choices(("bm25", "counts")),
    }

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
        confidence = self._confidence(interactions.matrix, interactions.matrix)
        if interactions.passed is not None:
            passed = self._confidence(interactions.passed, interactions.matrix)
            confidence = _with_dislikes(confidence, passed)
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
        if not _are_finite(units, items):
            raise self._not_finite()
        return TrainedRecommender(
            recommender=self,
            interactions=interactions,
            scorer=_FactorScorer(units=units, items=items),
        )

    def _confidence(self, matrix: csr_matrix, like: csr_matrix) -> csr_matrix:
        if self.weighting == "bm25":
            # Units are the documents: an item that everybody buys tells little of them.
            weights = bm25(matrix, k1=_BM25_K1, b=_BM25_B, like=like)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class BayesianPersonalizedRanking:
    """Factors that put what a unit had before what it had not; weights do not count.

    Attributes
    ----------
    factors : int, 1 to 1024
        Length of a vector.
    learning_rate : float, 1e-6 to 10
        Size of a step.
    regularization : float, 0 to 1e6
        Pull of the factors to 0.
    iterations : int, 1 to 10,000
        Passes over the pairs of unit and item. They are made on one core: implicit's
        threads write over each other's steps, so that no list would come out twice.

    References
    ----------
    Rendle, Freudenthaler, Gantner and Schmidt-Thieme (2009), BPR: Bayesian Personalized
    Ranking from Implicit Feedback.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(context_item=True)
    space: ClassVar[Mapping[str, Space]] = {
        "factors": Integers(low=8, high=256, log=True),
        "learning_rate": Numbers(low=0.003, high=0.3, log=True),
        "regularization": Numbers(low=1e-4, high=0.3, log=True),
        "iterations": Integers(low=20, high=200),
    }

    factors: int = 64
    learning_rate: float = 0.05
    regularization: float = 0.01
    iterations: int = 100

    def __post_init__(self) -> None:
        check_integer("factors", self.factors, low=1, high=1024)
        check_number("learning_rate", self.learning_rate, low=1e-6, high=10.0)
        check_number("regularization", self.regularization, low=0.0, high=1e6)
        check_integer("iterations", self.iterations, low=1, high=10_000)

    def fit(
        self, interactions: Interactions, rng: np.random.Generator
    ) -> TrainedRecommender:
        """Learn the factors; `rng` draws where they start and which pairs are compared.

        Raises
        ------
        ValueError
            When the factors are not finite.
        """
        model = _ImplicitBPR(
            factors=self.factors,
            learning_rate=self.learning_rate,
            regularization=self.regularization,
            iterations=self.iterations,
            num_threads=1,
            random_state=rng,
        )
        with threadpool_limits(limits=1, user_api="blas"):
            try:
                # A copy, as implicit's compiled code takes writable arrays only.
                model.fit(interactions.matrix.copy(), show_progress=False)
            except ModelFitError as error:
                raise self._not_finite() from error
        # The last column of the units' factors is 1, that of the items' their bias.
        units, items = model.user_factors, model.item_factors
        if not _are_finite(units, items):
            raise self._not_finite()
        return TrainedRecommender(
            recommender=self,
            interactions=interactions,
            scorer=_FactorScorer(units=units, items=items),
        )

    def _not_finite(self) -> ValueError:
        return ValueError(f"factors of {self} are not finite; lower learning_rate")


def _with_dislikes(likes: csr_matrix, dislikes: csr_matrix) -> csr_matrix:
    """Add confidence that units do not want items to what implicit learns from.

    Its sums run over the entries of a row: one of c > 0 adds c - 1 to the confidence of
    1 that a pair has anyhow, and c times the vector to what is explained; one of -c adds
    c - 1 and nothing to explain. So a pair may have one of each, which CSR allows.
    """
    rows = [
        np.repeat(np.arange(each.shape[0]), np.diff(each.indptr))
        for each in (likes, dislikes)
    ]
    order = np.argsort(np.concatenate(rows), kind="stable")
    data = np.concatenate([likes.data, -1 - dislikes.data])[order]
    columns = np.concatenate([likes.indices, dislikes.indices])[order]
    return csr_matrix(
        (data, columns, likes.indptr + dislikes.indptr), shape=likes.shape
    )


def _are_finite(units: FloatArray, items: FloatArray) -> bool:
    return bool(np.isfinite(units).all() and np.isfinite(items).all())


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
