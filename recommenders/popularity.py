"""Popular items: of all time, lately, on the rise, and in the categories a unit buys."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from scipy.sparse import csr_matrix

from recommenders.base import (
    Capabilities,
    TrainedRecommender,
    check_choice,
    check_number,
)
from recommenders.instants import DAY
from recommenders.interactions import FloatArray, IntArray, Interactions
from recommenders.neighbours import session_weights
from recommenders.space import Choices, Space

Order = Literal["units", "trend"]

_SESSION_FADE = np.ones(100, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Popularity:
    """Items by the number of distinct units, so that no one unit can push an item.

    Attributes
    ----------
    window_days : float, 0.01 to 100,000, optional
        Count only the last days before the latest interaction; all when left out.
    order : {"units", "trend"}
        "units": by their number in the window. "trend": by how far that number lies
        above that of the window before, in standard errors: of Poisson counts the
        square roots differ with variance 1/4 each, however large they are.

    References
    ----------
    Anscombe (1948), The transformation of Poisson, binomial and negative-binomial data.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(cold_units=True)
    space: ClassVar[Mapping[str, Space]] = {
        "window_days": Choices((None, 7.0, 14.0, 28.0, 56.0, 91.0, 182.0)),
    }

    window_days: float | None = None
    order: Order = "units"

    def __post_init__(self) -> None:
        if self.window_days is not None:
            check_number("window_days", self.window_days, low=0.01, high=100_000.0)
        check_choice("order", self.order, get_args(Order))
        if self.order == "trend" and self.window_days is None:
            raise ValueError(
                "window_days is None; it must be a number where order is 'trend', as a "
                "trend compares two windows"
            )

    def fit(
        self,
        interactions: Interactions,
        rng: np.random.Generator,  # noqa: ARG002 - of the contract; counting needs none
    ) -> TrainedRecommender:
        """Count the units of each item."""
        if self.window_days is None:
            scores = interactions.item_units()
            scores[scores == 0] = -np.inf
        else:
            scores = self._windowed(interactions, self.window_days)
        return TrainedRecommender(
            recommender=self,
            interactions=interactions,
            scorer=_OneListScorer(scores=scores),
        )

    def _windowed(self, interactions: Interactions, days: float) -> FloatArray:
        events = interactions.timed("popularity in a window")
        window = int(days * DAY)
        now = units_between(interactions, events.times[-1] - window, events.times[-1])
        if self.order == "units":
            scores = now
        else:
            middle = events.times[-1] - window
            before = units_between(interactions, middle - window, middle)
            scores = 2 * (np.sqrt(now + 3 / 8) - np.sqrt(before + 3 / 8))
            scores /= np.sqrt(np.float32(2))
        recent: FloatArray = np.where(now > 0, scores, -np.inf).astype(np.float32)
        return recent


def units_between(interactions: Interactions, after: int, until: int) -> FloatArray:
    """Return how many units had each item after an instant and until another."""
    events = interactions.timed("a count of a period")
    start, end = np.searchsorted(events.times, [after, until], side="right")
    pairs = events.units[start:end].astype(np.int64) * len(interactions.items)
    items = np.unique(pairs + events.items[start:end]) % len(interactions.items)
    return np.bincount(items, minlength=len(interactions.items)).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _OneListScorer:
    scores: FloatArray

    def unit_scores(self, rows: IntArray) -> FloatArray:
        return np.tile(self.scores, (len(rows), 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryPopularity:
    """The popular items of the categories that a unit buys from, or of an item's.

    Score: how much of what the unit had is of the item's category, times the item's
    share of the units of its category; an item without category has no score.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(context_item=True, session=True)
    space: ClassVar[Mapping[str, Space]] = {}

    def fit(
        self,
        interactions: Interactions,
        rng: np.random.Generator,  # noqa: ARG002 - of the contract; counting needs none
    ) -> TrainedRecommender:
        """Count the units of each item and what each unit had of each category.

        Raises
        ------
        ValueError
            When there is no catalogue, or no item has a category in it.
        """
        catalogue = interactions.described("popularity by category")
        codes = catalogue.category_codes
        if (codes < 0).all():
            raise ValueError(
                "no item has a category in the catalogue; popularity by category needs "
                "some"
            )
        membership = category_membership(codes)
        units = interactions.item_units()
        totals = np.maximum(membership.T @ units, 1)
        shares = np.where(codes >= 0, units / totals[codes], 0).astype(np.float32)
        tastes = csr_matrix(interactions.matrix @ membership, dtype=np.float32)
        return TrainedRecommender(
            recommender=self,
            interactions=interactions,
            scorer=_CategoryScorer(tastes=tastes, codes=codes, shares=shares),
        )


def category_membership(codes: IntArray) -> csr_matrix:
    """Return which category each item is of, as a matrix of (items, categories)."""
    rows = np.flatnonzero(codes >= 0)
    ones = np.ones(rows.size, dtype=np.float32)
    shape = (codes.size, int(codes.max()) + 1)
    return csr_matrix((ones, (rows, codes[rows])), shape=shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _CategoryScorer:
    tastes: csr_matrix
    codes: IntArray
    shares: FloatArray

    @property
    def fade(self) -> FloatArray:
        return _SESSION_FADE

    def unit_scores(self, rows: IntArray) -> FloatArray:
        return self._scores(self.tastes[rows].toarray())

    def item_scores(self, rows: IntArray) -> FloatArray:
        return self.session_scores(rows[:, np.newaxis])

    def session_scores(self, sessions: IntArray) -> FloatArray:
        weights = session_weights(sessions, self.codes.size, self.fade)
        return self._scores((weights @ category_membership(self.codes)).toarray())

    def _scores(self, tastes: FloatArray) -> FloatArray:
        totals = np.maximum(tastes.sum(axis=1, keepdims=True), np.float32(1e-30))
        scores: FloatArray = (tastes / totals)[:, self.codes] * self.shares
        scores[scores <= 0] = -np.inf
        return scores
