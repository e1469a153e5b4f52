"""Items had by the same units: nearest neighbours among items.

The neighbours are found by implicit's compiled code, the only thing used of it here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from implicit.nearest_neighbours import ItemItemRecommender
from scipy.sparse import csr_matrix

from recommenders.base import (
    Capabilities,
    TrainedRecommender,
    check_choice,
    check_integer,
)
from recommenders.interactions import Interactions
from recommenders.neighbours import NeighbourScorer
from recommenders.space import Choices, Integers, Space
from recommenders.weighting import bm25, normalized, tfidf

Similarity = Literal["cosine", "tfidf", "bm25"]

# As usual in text search, where repeats tell less and less.
_BM25_K1 = 1.2
_BM25_B = 0.75

# Of a longer session only the last items count, all alike.
_SESSION_ITEMS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemKNN:
    """Score of an item: the unit's weights times its likeness to what the unit had.

    Attributes
    ----------
    similarity : {"cosine", "tfidf", "bm25"}
        Cosine of counts; cosine of TF-IDF weights; inner product of BM25 weights. TF-IDF
        keeps to popular items, cosine shows the most of the catalogue.
    neighbours : int, 1 to 1000
        Items kept for each item, itself among them: with 50, `related` has at most 49.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(context_item=True, session=True)
    space: ClassVar[Mapping[str, Space]] = {
        "similarity": Choices(("cosine", "tfidf", "bm25")),
        "neighbours": Integers(low=5, high=500, log=True),
    }

    similarity: Similarity = "tfidf"
    neighbours: int = 50

    def __post_init__(self) -> None:
        check_choice("similarity", self.similarity, get_args(Similarity))
        check_integer("neighbours", self.neighbours, low=1, high=1000)

    def fit(
        self,
        interactions: Interactions,
        rng: np.random.Generator,  # noqa: ARG002 - of the contract; it draws nothing
    ) -> TrainedRecommender:
        """Find the neighbours of each item."""
        model = ItemItemRecommender(K=self.neighbours)
        model.fit(self._weigh(interactions.matrix), show_progress=False)
        likeness = csr_matrix(model.similarity, dtype=np.float32)
        likeness.sort_indices()
        return TrainedRecommender(
            recommender=self,
            interactions=interactions,
            scorer=NeighbourScorer(
                weights=interactions.matrix,
                likeness=likeness,
                fade=np.ones(_SESSION_ITEMS, dtype=np.float32),
            ),
        )

    def _weigh(self, matrix: csr_matrix) -> csr_matrix:
        # Items are the documents: a unit that buys nearly everything tells little.
        items = matrix.T.tocsr()
        if self.similarity == "cosine":
            weights = normalized(items)
        elif self.similarity == "tfidf":
            weights = normalized(tfidf(items))
        else:
            weights = bm25(items, k1=_BM25_K1, b=_BM25_B)
        return weights.T.tocsr()
