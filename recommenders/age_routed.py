"""Several recommenders as one: by the age of a product and the history of a unit.

Known products are ranked by what units had together, new ones by their texts, and units
of whom little is known by a third. Which of them put an item into a list is its source.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from recommenders.base import (
    Capabilities,
    ContextScorer,
    Recommender,
    Scorer,
    SessionScorer,
    TrainedRecommender,
    check_integer,
    check_number,
)
from recommenders.content import Content
from recommenders.interactions import FloatArray, IntArray, Interactions
from recommenders.item_knn import ItemKNN
from recommenders.popularity import CategoryPopularity
from recommenders.space import Choices, Integers, Space

KNOWN, NEW, LIGHT = 0, 1, 2

#: Products on which the scores of two recommenders are compared, for each unit.
COMPARED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeRouted:
    """Known products by one recommender, new ones by another, light units by a third.

    Scores of different recommenders do not compare, so those of the new products are
    brought to the scale of the others, for each unit, by products that both can score:
    `new` ranks the known products too, and a new product that it puts between its 7th
    and 8th known one comes between the 7th and 8th of the recommender in charge, at the
    same part of the way (a piecewise linear map of quantiles onto quantiles, carried on
    at its ends by the ratio of the ranges).

    Attributes
    ----------
    known, new, light : Recommender
        `new` must have `cold_items` and `context_item`. Where `known` has no
        `context_item` or no `session`, `new` answers for all products.
    new_days : float, 0 to 100,000
        A product is new until so many days after it was first had or listed, by the
        latest interaction; and so is one that nobody had yet, however old.
    enough_units : int, 1 to 1e9
        No product is new that so many units had.
    min_history : int, 0 to 1e6
        Units that had fewer items are light.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        cold_items=True, context_item=True, session=True
    )
    space: ClassVar[Mapping[str, Space]] = {
        "new_days": Choices((0.0, 7.0, 14.0, 30.0, 60.0, 90.0)),
        "enough_units": Integers(low=5, high=200, log=True),
        "min_history": Integers(low=0, high=20),
    }

    known: Recommender = field(default_factory=ItemKNN)
    new: Recommender = field(default_factory=Content)
    light: Recommender = field(default_factory=CategoryPopularity)
    new_days: float = 30.0
    enough_units: int = 20
    min_history: int = 3

    def __post_init__(self) -> None:
        for name in ("known", "new", "light"):
            part = getattr(self, name)
            if not isinstance(getattr(part, "capabilities", None), Capabilities):
                raise ValueError(  # noqa: TRY004 - one type for every error of input
                    f"{name} is {part!r}; it must be a recommender"
                )
        able = self.new.capabilities
        if not (able.cold_items and able.context_item and able.session):
            raise ValueError(
                f"new is {self.new}; it must be one that has cold_items, context_item "
                "and session, such as content"
            )
        check_number("new_days", self.new_days, low=0.0, high=100_000.0)
        check_integer("enough_units", self.enough_units, low=1, high=1_000_000_000)
        check_integer("min_history", self.min_history, low=0, high=1_000_000)

    def fit(
        self, interactions: Interactions, rng: np.random.Generator
    ) -> TrainedRecommender:
        """Train the three, and tell new products and light units."""
        known, new, light = (
            part.fit(interactions, rng).scorer
            for part in (self.known, self.new, self.light)
        )
        return TrainedRecommender(
            recommender=self,
            interactions=interactions,
            scorer=_RoutedScorer(
                known=known,
                new=new,
                light=light,
                is_new=self._new_items(interactions),
                is_light=np.diff(interactions.matrix.indptr) < self.min_history,
                known_has_context=self.known.capabilities.context_item,
                known_has_session=self.known.capabilities.session,
            ),
        )

    def _new_items(self, interactions: Interactions) -> NDArray[np.bool_]:
        units = interactions.item_units()
        age = interactions.item_ages()
        young = (age < self.new_days) & (units < self.enough_units)
        is_new: NDArray[np.bool_] = young | (units == 0)
        return is_new


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _RoutedScorer:
    known: Scorer
    new: Scorer
    light: Scorer
    is_new: NDArray[np.bool_]
    is_light: NDArray[np.bool_]
    known_has_context: bool
    known_has_session: bool
    routes: tuple[str, ...] = ("known", "new", "light")

    def unit_scores(self, rows: IntArray) -> FloatArray:
        light = self.is_light[rows]
        scores = np.empty((len(rows), self.is_new.size), dtype=np.float32)
        # Each asked for its own rows only.
        if not light.all():
            scores[~light] = self.known.unit_scores(rows[~light])
        if light.any():
            scores[light] = self.light.unit_scores(rows[light])
        return self._with_new(scores, self.new.unit_scores(rows))

    def item_scores(self, rows: IntArray) -> FloatArray:
        by_text = cast("ContextScorer", self.new).item_scores(rows)
        if not self.known_has_context:
            return by_text
        # What goes with a new product, only texts can tell.
        scores = by_text.copy()
        known = ~self.is_new[rows]
        known_scores = cast("ContextScorer", self.known).item_scores(rows[known])
        scores[known] = self._with_new(known_scores, by_text[known])
        return scores

    def session_scores(self, sessions: IntArray) -> FloatArray:
        by_text = cast("SessionScorer", self.new).session_scores(sessions)
        if not self.known_has_session:
            return by_text
        scores = cast("SessionScorer", self.known).session_scores(sessions)
        return self._with_new(scores, by_text)

    def route_of(self, units: IntArray, items: IntArray) -> NDArray[np.int8]:
        light = (units >= 0) & self.is_light[units]
        old = np.where(light, LIGHT, KNOWN)[:, np.newaxis]
        routes: NDArray[np.int8] = np.where(self.is_new[items], NEW, old).astype(
            np.int8
        )
        return routes

    def _with_new(self, scores: FloatArray, by_text: FloatArray) -> FloatArray:
        """Put the scores of new products, on the scale of the others, into `scores`."""
        if not self.is_new.any():
            return scores
        old = ~self.is_new
        onto = _highest(scores[:, old])
        of = _highest(by_text[:, old])
        wanted = by_text[:, self.is_new]
        mapped = np.empty_like(wanted)
        for row in range(len(scores)):
            mapped[row] = map_quantiles(wanted[row], of[row], onto[row])
        scores[:, self.is_new] = mapped
        return scores


def map_quantiles(
    values: FloatArray, of: FloatArray, onto: FloatArray
) -> NDArray[np.float64]:
    """Bring values from one scale to another by scores of the same things on both.

    Parameters
    ----------
    values : float array, shape (n,)
        On the scale of `of`; -inf stays.
    of, onto : float arrays, falling
        Highest scores on either scale; from the first -inf on there are none. The
        longer one is cut, so that equal places stand for each other.

    Returns
    -------
    float64 array, shape (n,)
        `values` themselves where there is nothing to compare.
    """
    count = min(int(np.isfinite(of).sum()), int(np.isfinite(onto).sum()))
    if not count:
        return values.astype(np.float64)
    source = of[:count][::-1].astype(np.float64)
    target = onto[:count][::-1].astype(np.float64)
    finite = np.isfinite(values)
    given = np.where(finite, values, source[0]).astype(np.float64)
    span = source[-1] - source[0]
    slope = (target[-1] - target[0]) / span if span > 0 else 1.0
    mapped = np.interp(given, source, target)
    mapped += slope * np.maximum(given - source[-1], 0)
    mapped -= slope * np.maximum(source[0] - given, 0)
    return np.where(finite, mapped, -np.inf)


def _highest(scores: FloatArray) -> FloatArray:
    """Return the highest scores of each row, falling, `COMPARED` at most."""
    width = min(COMPARED, scores.shape[1])
    parted = np.partition(scores, scores.shape[1] - width, axis=1)[:, -width:]
    falling: FloatArray = -np.sort(-parted, axis=1) if width else scores[:, :0]
    return falling
