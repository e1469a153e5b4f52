"""Items alike by what the catalogue says of them: it can recommend what nobody had yet.

Texts become vectors by TF-IDF, the likeness of two items is the cosine of theirs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.sparse import csr_matrix, hstack

from recommenders.base import (
    Capabilities,
    TrainedRecommender,
    check_integer,
    check_number,
)
from recommenders.catalogue import TEXTS, Catalogue
from recommenders.interactions import FloatArray, IntArray, Interactions
from recommenders.neighbours import dense, session_weights
from recommenders.space import Numbers, Space
from recommenders.weighting import normalized

#: Columns that group items; the words of `name` come beside them.
_GROUPS = tuple(column for column in TEXTS if column != "name")

_SESSION_FADE = np.float32(0.8) ** np.arange(20, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Score of an item: cosine of its vector and that of what the unit had.

    Attributes
    ----------
    words : float, 0 to 100
        How much the words of all texts count.
    groups : float, 0 to 100
        How much it counts to have the same category, type, brand or department, each
        taken as one word.
    max_words : int, 10 to 1,000,000
        Most common words that are used, and as many groups.
    fade : float, 0 to 1
        A unit's weights to this power: 1 counts repeats in full, 0 not at all.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        cold_items=True, context_item=True, session=True
    )
    space: ClassVar[Mapping[str, Space]] = {
        "words": Numbers(low=0.1, high=3.0),
        "groups": Numbers(low=0.1, high=3.0),
        "fade": Numbers(low=0.0, high=1.0),
    }

    words: float = 1.0
    groups: float = 1.0
    max_words: int = 20_000
    fade: float = 0.5

    def __post_init__(self) -> None:
        check_number("words", self.words, low=0.0, high=100.0)
        check_number("groups", self.groups, low=0.0, high=100.0)
        check_integer("max_words", self.max_words, low=10, high=1_000_000)
        check_number("fade", self.fade, low=0.0, high=1.0)
        if self.words == self.groups == 0:
            raise ValueError("words and groups are 0; one must be a number above 0")

    def fit(
        self,
        interactions: Interactions,
        rng: np.random.Generator,  # noqa: ARG002 - of the contract; it draws nothing
    ) -> TrainedRecommender:
        """Make a vector of each item and one of each unit.

        Raises
        ------
        ValueError
            When there is no catalogue, or it says nothing of any item.
        """
        vectors = self._vectors(interactions.described("content"))
        weights = interactions.matrix.copy()
        weights.data = weights.data**self.fade
        profiles = normalized(csr_matrix(weights @ vectors))
        return TrainedRecommender(
            recommender=self,
            interactions=interactions,
            scorer=_ContentScorer(
                profiles=csr_matrix(profiles, dtype=np.float32), vectors=vectors
            ),
        )

    def _vectors(self, catalogue: Catalogue) -> csr_matrix:
        columns = {column: catalogue.texts(column) for column in TEXTS}
        texts = map(" ".join, zip(*columns.values(), strict=True))
        grouped = (
            [
                f"{column} {text}"
                for column, text in zip(_GROUPS, each, strict=True)
                if text
            ]
            for each in zip(*(columns[column] for column in _GROUPS), strict=True)
        )
        parts = [
            weight * self._tfidf(documents)
            for weight, documents in (
                (self.words, [_words(text) for text in texts]),
                (self.groups, list(grouped)),
            )
            if weight and any(documents)
        ]
        if not parts:
            raise ValueError(
                "the catalogue says nothing of any item; content needs a name, "
                "category, type, brand or department"
            )
        return csr_matrix(normalized(csr_matrix(hstack(parts))), dtype=np.float32)

    def _tfidf(self, documents: list[list[str]]) -> csr_matrix:
        # Here, as whatever serves imports the registry and never makes a vector.
        from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415

        vectorizer = TfidfVectorizer(
            analyzer=_as_it_is, max_features=self.max_words, sublinear_tf=True
        )
        return csr_matrix(vectorizer.fit_transform(documents))


def _words(text: str) -> list[str]:
    """Return the words of a text in any language, numbers among them."""
    return re.findall(r"\w+", text.casefold())


def _as_it_is(document: list[str]) -> list[str]:
    return document


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ContentScorer:
    profiles: csr_matrix
    vectors: csr_matrix

    @property
    def fade(self) -> FloatArray:
        return _SESSION_FADE

    def unit_scores(self, rows: IntArray) -> FloatArray:
        return dense(self.profiles[rows] @ self.vectors.T)

    def item_scores(self, rows: IntArray) -> FloatArray:
        return dense(self.vectors[rows] @ self.vectors.T)

    def session_scores(self, sessions: IntArray) -> FloatArray:
        weights = session_weights(sessions, self.vectors.shape[0], self.fade)
        profiles = normalized(csr_matrix(weights @ self.vectors))
        return dense((profiles @ self.vectors.T).astype(np.float32))
