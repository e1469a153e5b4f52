"""Plans: how long a test takes on a shop's own traffic, and what it can see by when."""

import dataclasses
import math
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from experiment_service.analysis.moments import Moments
from experiment_service.analysis.planning import (
    Design,
    Spread,
    detectable_difference,
    needed_units,
)
from experiment_service.domain.metric import MetricKind
from experiment_service.errors import InvalidRequest, InvalidState
from experiment_service.reporting.values import plain
from experiment_service.storage import experiments as storage
from experiment_service.storage import reads

#: Days of traffic that say how many units come.
TRAFFIC_DAYS = 14
#: Lengths of a test that a plan looks at.
SHOWN_DAYS = (7, 14, 21, 28, 42, 56)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a plan starts from.

    Attributes
    ----------
    source : str
        Where it is from, in words.
    kind : {"proportion", "mean", "ratio"}
    spread : Spread
        Of the control.
    units : int or None
        Units that it was seen on; None when it was given.
    units_per_day : float
        New units a day, all variants together, > 0.
    """

    source: str
    kind: MetricKind
    spread: Spread
    units: int | None
    units_per_day: float

    def __post_init__(self) -> None:
        if not 0 < self.units_per_day < math.inf:
            raise InvalidRequest(
                f"units_per_day is {self.units_per_day}; it must be above 0",
                field="units_per_day",
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """Units and days that a test needs to see a difference."""

    units: int
    days: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What a test of some days can see.

    Attributes
    ----------
    once, any_time : float or None
        Smallest difference that it shows with the power of the design, read once at
        its end or watched all the time; None when no difference is large enough.
    """

    days: int
    units: int
    once: float | None
    any_time: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan.

    Attributes
    ----------
    difference : float
        Treatment minus control that is to be seen, in the unit of the metric.
    once, any_time : Duration
        What it takes, read once at a planned end or watched all the time.
    reach : tuple of Reach
        What can be seen after one week, two weeks, ...
    """

    baseline: Baseline
    design: Design
    difference: float
    once: Duration
    any_time: Duration
    reach: tuple[Reach, ...]

    def to_document(self) -> dict[str, Any]:
        """Return the plan as a JSON document."""
        document: dict[str, Any] = plain(self)
        return document


def make_plan(
    baseline: Baseline,
    design: Design,
    *,
    difference: float | None = None,
    lift: float | None = None,
) -> Plan:
    """Plan a test for a difference, or for a lift relative to the control.

    Parameters
    ----------
    design : Design
        Its `any_time` does not matter: both ways of reading are planned.

    Raises
    ------
    InvalidRequest
        When not exactly one of the two is given, or no rate can differ so much.
    """
    if (difference is None) == (lift is None):
        raise InvalidRequest(
            "give the difference that is to be seen, or the lift: one of the two",
            field="difference",
        )
    if difference is None:
        assert lift is not None  # noqa: S101 - one of the two is given
        difference = lift * baseline.spread.value
    designs = [dataclasses.replace(design, any_time=each) for each in (False, True)]
    try:
        once, any_time = (_duration(baseline, difference, each) for each in designs)
    except ValueError as error:
        raise InvalidRequest(str(error), field="difference") from error
    reach = []
    for days in SHOWN_DAYS:
        units = days * baseline.units_per_day
        seen = [_detectable(baseline.spread, units, each) for each in designs]
        reach.append(
            Reach(days=days, units=round(units), once=seen[0], any_time=seen[1])
        )
    return Plan(
        baseline=baseline,
        design=design,
        difference=difference,
        once=once,
        any_time=any_time,
        reach=tuple(reach),
    )


def _duration(baseline: Baseline, difference: float, design: Design) -> Duration:
    # Variants beside the two that are compared take their part of the traffic too.
    shared = 2 / (design.comparisons + 1)
    units = math.ceil(needed_units(baseline.spread, difference, design) / shared)
    return Duration(units=units, days=units / baseline.units_per_day)


def _detectable(spread: Spread, units: float, design: Design) -> float | None:
    shared = 2 / (design.comparisons + 1)
    try:
        return detectable_difference(spread, units * shared, design)
    except ValueError:
        return None


def read_baseline(
    connection: Connection,
    key: str,
    *,
    metric: str | None = None,
    units_per_day: float | None = None,
    as_of: datetime,
) -> Baseline:
    """Read what an experiment's control has shown, and how many units came a day.

    Parameters
    ----------
    metric : str, optional
        The experiment's reward when left out.
    units_per_day : float, optional
        To be planned with; the mean of the last two weeks when left out.

    Raises
    ------
    NotFound
        When there is no such experiment or metric.
    InvalidState
        When it has no complete day of traffic, or its units are all alike.
    """
    experiment = storage.get_experiment(connection, key)
    declaration = experiment.declaration
    chosen = declaration.metric(metric or declaration.reward_metric)
    cells = reads.metric_moments(connection, experiment, chosen, cutoff=as_of)
    control = sum(
        (m for cell, m in cells.items() if cell.variant == declaration.control.key),
        Moments.zero(),
    )
    try:
        spread = Spread.of_moments(chosen.kind, control)
    except ValueError as error:
        raise InvalidState(
            f"experiment {key!r} is no base for a plan of {chosen.name}: {error}"
        ) from error
    per_day: dict[date, float] = {}
    for cell, moments in cells.items():
        per_day[cell.day] = per_day.get(cell.day, 0.0) + moments.n
    return Baseline(
        source=f"{chosen.name} of {key}, variant {declaration.control.key}",
        kind=chosen.kind,
        spread=spread,
        units=int(control.n),
        units_per_day=_units_per_day(key, per_day)
        if units_per_day is None
        else units_per_day,
    )


def _units_per_day(key: str, per_day: Mapping[date, float]) -> float:
    """Return the mean over the last complete days, days without units included."""
    first, last = min(per_day), max(per_day)
    # The first and the last day are cut off by the start and by open windows.
    days = [first + timedelta(days=i) for i in range(1, (last - first).days)]
    if not days:
        raise InvalidState(
            f"experiment {key!r} has no complete day of traffic yet; give the units "
            "per day yourself"
        )
    latest = days[-TRAFFIC_DAYS:]
    return math.fsum(per_day.get(day, 0.0) for day in latest) / len(latest)
