"""Steps between scores and lists, for every recommender alike.

A step is a frozen dataclass of its parameters, and `prepare` turns some of them into the
`Rules` that `TrainedRecommender` applies: filters and boosts before a list is cut, so
that it stays full; re-rankers on more candidates than a list has places. They are
applied in the order of the steps, but for pins, which come last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from inspect import signature
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recommenders.base import Reranker, Rules, check_integer, check_number
from recommenders.diversity import Calibration, MaximalMarginalRelevance
from recommenders.exploration import Exploration
from recommenders.instants import DAY, microseconds_of
from recommenders.interactions import Interactions
from recommenders.pinning import Pins
from recommenders.targets import check_span, check_texts, chosen_items, holds


class Step(Protocol):
    """A rule as somebody declared it."""

    def rules(self, interactions: Interactions, now: datetime) -> Rules:
        """Return what it means for these items at this moment.

        Raises
        ------
        ValueError
            When it can't be applied to them.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class InStock:
    """Hide what the catalogue says is out of stock."""

    def rules(
        self,
        interactions: Interactions,
        now: datetime,  # noqa: ARG002 - of the protocol
    ) -> Rules:
        """Hide them for everybody."""
        return Rules(hidden=~interactions.described("in_stock").in_stock)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceBand:
    """Hide what costs less or more than this.

    Attributes
    ----------
    low, high : float, >= 0
        Prices shown, both bounds included; no bound where left out.
    unknown : bool
        Whether items without a price are shown.
    """

    low: float = 0.0
    high: float | None = None
    unknown: bool = False

    def __post_init__(self) -> None:
        check_number("low", self.low, low=0.0, high=1e15)
        if self.high is not None:
            check_number("high", self.high, low=self.low, high=1e15)
        if not isinstance(self.unknown, bool):
            raise ValueError(  # noqa: TRY004 - one type for every error of input
                f"unknown is {self.unknown!r}; it must be true or false"
            )

    def rules(
        self,
        interactions: Interactions,
        now: datetime,  # noqa: ARG002 - of the protocol
    ) -> Rules:
        """Hide them for everybody.

        Raises
        ------
        ValueError
            When there is no catalogue, or it has no prices at all.
        """
        prices = interactions.described("price_band").prices
        missing = np.isnan(prices)
        if missing.all():
            raise ValueError("price_band needs prices; the catalogue has none")
        outside = prices < self.low
        if self.high is not None:
            outside |= prices > self.high
        return Rules(hidden=outside if self.unknown else outside | missing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Hide items by id or by category, for some time.

    Attributes
    ----------
    items, categories : sequence of str
        One of the two at least. An item that is not in training is hidden anyhow; a
        category that no item has is refused, as it is most likely misspelt.
    since, until : datetime or ISO 8601 text, optional
        When it holds, the end not included; UTC where no zone is given.
    """

    items: Sequence[str] = ()
    categories: Sequence[str] = ()
    since: datetime | str | None = None
    until: datetime | str | None = None

    def __post_init__(self) -> None:
        check_texts("items", self.items)
        check_texts("categories", self.categories)
        if not (self.items or self.categories):
            raise ValueError("items and categories are empty; name what to block")
        check_span(self.since, self.until)

    def rules(self, interactions: Interactions, now: datetime) -> Rules:
        """Hide them for everybody while it holds.

        Raises
        ------
        ValueError
            When it is by category, and there is no catalogue or no such category.
        """
        if not holds(self.since, self.until, now):
            return Rules()
        return Rules(
            hidden=chosen_items("block", interactions, self.items, self.categories)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Boost:
    """Move items up or down, by id or by category, for some time.

    Attributes
    ----------
    items, categories, since, until
        As of `Block`.
    by : float, -1 to 1
        How far, in units of the range of the scores that a list is made from: 1 lifts
        the worst item to where the best was.
    """

    by: float
    items: Sequence[str] = ()
    categories: Sequence[str] = ()
    since: datetime | str | None = None
    until: datetime | str | None = None

    def __post_init__(self) -> None:
        check_number("by", self.by, low=-1.0, high=1.0)
        check_texts("items", self.items)
        check_texts("categories", self.categories)
        if not (self.items or self.categories):
            raise ValueError("items and categories are empty; name what to boost")
        check_span(self.since, self.until)

    def rules(self, interactions: Interactions, now: datetime) -> Rules:
        """Boost them for everybody while it holds; errors as of `Block`."""
        if not holds(self.since, self.until, now):
            return Rules()
        chosen = chosen_items("boost", interactions, self.items, self.categories)
        return Rules(boosts=(chosen * self.by).astype(np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Show an item at a position of every list, for some time.

    Attributes
    ----------
    item : str
        Its id. Where it is hidden, not in training, or excluded as already had, it is
        not shown, and nothing else is moved.
    position : int, 1 to 1000
        Where; items from there on move down.
    since, until
        As of `Block`.
    """

    item: str
    position: int = 1
    since: datetime | str | None = None
    until: datetime | str | None = None

    def __post_init__(self) -> None:
        check_texts("item", [self.item])
        check_integer("position", self.position, low=1, high=1000)
        check_span(self.since, self.until)

    def rules(self, interactions: Interactions, now: datetime) -> Rules:
        """Pin it while it holds."""
        row = int(interactions.items.rows([self.item])[0])
        if row < 0 or not holds(self.since, self.until, now):
            return Rules()
        return Rules(rerankers=(Pins(items=(row,), positions=(self.position,)),))


@dataclass(frozen=True, slots=True, kw_only=True)
class AlreadyBought:
    """Leave out what a unit had lately, where a list may repeat what it had long ago.

    Attributes
    ----------
    within_days : float, 0.001 to 100,000
        Counted back from the moment of making the lists.
    """

    within_days: float

    def __post_init__(self) -> None:
        check_number("within_days", self.within_days, low=0.001, high=100_000.0)

    def rules(self, interactions: Interactions, now: datetime) -> Rules:
        """Exclude them per unit.

        Raises
        ------
        ValueError
            When the times of the interactions are not known.
        """
        events = interactions.timed("already_bought")
        start = microseconds_of(now) - int(self.within_days * DAY)
        lately = events.times >= start
        places = (events.units[lately], events.items[lately])
        ones = np.ones(int(lately.sum()), dtype=np.float32)
        recent = csr_matrix((ones, places), shape=interactions.matrix.shape)
        recent.sum_duplicates()
        return Rules(recent=recent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mmr:
    """Trade score against likeness to the items above, by maximal marginal relevance.

    Attributes
    ----------
    balance : float, 0 to 1
        How much the score counts; 1 changes nothing, 0 is for variety alone.
    depth : int, 1 to 50
        Candidates per place.
    """

    balance: float = 0.7
    depth: int = 5

    def __post_init__(self) -> None:
        check_number("balance", self.balance, low=0.0, high=1.0)
        check_integer("depth", self.depth, low=1, high=50)

    def rules(
        self,
        interactions: Interactions,
        now: datetime,  # noqa: ARG002 - of the protocol
    ) -> Rules:
        """Compare by category and department; there must be a catalogue."""
        catalogue = interactions.described("mmr")
        _, departments = np.unique(catalogue.departments, return_inverse=True)
        known = np.array([bool(each) for each in catalogue.departments])
        step = MaximalMarginalRelevance(
            categories=catalogue.category_codes,
            departments=np.where(known, departments, -1).astype(np.int32),
            balance=float(self.balance),
            candidates=self.depth,
        )
        return Rules(rerankers=(step,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrate:
    """Bring the mix of categories in a list near to that of what the unit had.

    Attributes
    ----------
    weight : float, 0 to 1
        How much the mix counts beside the scores; 0 changes nothing.
    depth : int, 1 to 50
        Candidates per place.
    """

    weight: float = 0.5
    depth: int = 5

    def __post_init__(self) -> None:
        check_number("weight", self.weight, low=0.0, high=1.0)
        check_integer("depth", self.depth, low=1, high=50)

    def rules(
        self,
        interactions: Interactions,
        now: datetime,  # noqa: ARG002 - of the protocol
    ) -> Rules:
        """Take each unit's mix from what it had; there must be a catalogue."""
        codes = interactions.described("calibrate").category_codes
        if (codes < 0).all():
            raise ValueError("calibrate needs categories; the catalogue has none")
        step = Calibration.of_history(
            interactions.matrix,
            codes,
            weight=float(self.weight),
            candidates=self.depth,
        )
        return Rules(rerankers=(step,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Explore:
    """Give a share of some places to items drawn from below the list.

    Attributes
    ----------
    share : float, 0 to 1
        Probability that a place explores.
    first, last : int, 1 to 1000
        Positions that explore, such as 4 to 10: the top stays as it is.
    depth : int, 2 to 50
        An explored place shows one of the next items after the list, as many as the
        list has places, times `depth` less one, each as likely.
    seed : int, >= 0
        Another seed draws anew; the same one draws the same for each unit.
    """

    share: float = 0.1
    first: int = 4
    last: int = 10
    depth: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("share", self.share, low=0.0, high=1.0)
        check_integer("first", self.first, low=1, high=1000)
        check_integer("last", self.last, low=self.first, high=1000)
        check_integer("depth", self.depth, low=2, high=50)
        check_integer("seed", self.seed, low=0, high=2**63 - 1)

    def rules(
        self,
        interactions: Interactions,  # noqa: ARG002 - of the protocol
        now: datetime,  # noqa: ARG002 - of the protocol
    ) -> Rules:
        """Explore in the lists of units; the default list is one for all."""
        step = Exploration(
            share=float(self.share),
            first=self.first,
            last=self.last,
            seed=self.seed,
            candidates=self.depth,
        )
        return Rules(rerankers=(step,))


STEPS: dict[str, type[Step]] = {
    "in_stock": InStock,
    "price_band": PriceBand,
    "already_bought": AlreadyBought,
    "block": Block,
    "boost": Boost,
    "mmr": Mmr,
    "calibrate": Calibrate,
    "explore": Explore,
    "pin": Pin,
}


def build_steps(declared: Sequence[Mapping[str, object]]) -> tuple[Step, ...]:
    """Build steps from mappings with ``step``, its name, and its parameters.

    Raises
    ------
    ValueError
        Names the place, when a step or a parameter is unknown or breaks its rule.
    """
    return tuple(_build(place, each) for place, each in enumerate(declared))


def _build(place: int, declared: object) -> Step:
    where = f"reranking.{place}"
    if not isinstance(declared, Mapping):
        raise ValueError(  # noqa: TRY004 - one type for every error of input
            f"{where} is {declared!r}; it must be a mapping with step, a name, and the "
            "parameters of that step"
        )
    parameters: dict[str, Any] = dict(declared)
    name = parameters.pop("step", None)
    if name not in STEPS:
        raise ValueError(f"{where}.step is {name!r}; known steps: {', '.join(STEPS)}")
    known = signature(STEPS[name]).parameters
    for parameter in parameters:
        if parameter not in known:
            raise ValueError(
                f"{where}: step {name!r} has no parameter {parameter!r}; it has: "
                f"{', '.join(known) or 'none'}"
            )
    missing = [
        each.name
        for each in known.values()
        if each.default is each.empty and each.name not in parameters
    ]
    if missing:
        raise ValueError(f"{where}: step {name!r} lacks {', '.join(missing)}")
    try:
        return STEPS[name](**parameters)
    except ValueError as error:
        raise ValueError(f"{where}: step {name!r}: {error}") from error


def prepare(
    steps: Sequence[Step], interactions: Interactions, *, now: datetime
) -> Rules:
    """Turn steps into the rules of a trained recommender.

    Parameters
    ----------
    interactions : Interactions
        Those that it was trained on.
    now : datetime
        With a time zone; decides which dated rules hold.

    Raises
    ------
    ValueError
        When a step can't be applied to these items, or all items would be hidden.
    """
    made = [step.rules(interactions, now) for step in steps]
    hidden = [each.hidden for each in made if each.hidden is not None]
    boosts = [each.boosts for each in made if each.boosts is not None]
    recent = [each.recent for each in made if each.recent is not None]
    away = np.any(hidden, axis=0) if hidden else None
    if away is not None and away.all():
        raise ValueError("the filters hide every item; nothing could be shown")
    return Rules(
        hidden=away,
        recent=csr_matrix(sum(recent[1:], recent[0])) if recent else None,
        boosts=np.sum(boosts, axis=0, dtype=np.float32) if boosts else None,
        rerankers=_with_pins_last([r for each in made for r in each.rerankers], away),
    )


def _with_pins_last(
    rerankers: Sequence[Reranker], hidden: NDArray[np.bool_] | None
) -> tuple[Reranker, ...]:
    """Gather pins into one, without those of hidden items, and apply it at the end."""
    pins = [
        (position, item)
        for each in rerankers
        if isinstance(each, Pins)
        for item, position in zip(each.items, each.positions, strict=True)
        if hidden is None or not hidden[item]
    ]
    others = tuple(each for each in rerankers if not isinstance(each, Pins))
    if not pins:
        return others
    positions, items = zip(*sorted(pins), strict=True)
    return (*others, Pins(items=items, positions=positions))
