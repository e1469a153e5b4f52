"""What reports and reallocations read: moments and counts, never single events.

The sums are made in the database, as the metric's declaration says, in one pass over
`unit_of_analysis`. Statistics and judgement are elsewhere.
"""

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    FromClause,
    Integer,
    Interval,
    Row,
    Select,
    Subquery,
    and_,
    case,
    cast,
    extract,
    func,
    literal,
    or_,
    select,
    text,
    true,
)

from experiment_service.analysis.adjustment import CovariateMoments
from experiment_service.analysis.moments import Moments
from experiment_service.domain.experiment import Experiment, ExperimentKind
from experiment_service.domain.metric import OWN, Metric, MetricKind
from experiment_service.storage import schema
from experiment_service.storage.units import utc_day


class Cell(NamedTuple):
    """Where units belong by their first exposure.

    Attributes
    ----------
    segment : str or None
        None in an experiment without segments.
    day : date
        UTC.
    """

    variant: str
    epoch: int
    segment: str | None
    day: date


#: Level of an attribute that a unit's first exposure lacks.
MISSING = "-"
#: Level of all units that are in none of the largest ones.
OTHER_LEVELS = "other levels"
_UNITS_LOOKED_AT = 10_000

#: Age in half-lives beyond which a reward counts the same: for nothing.
_OLDEST = 1000.0

_SUMS = ("n", "sum_y", "sum_yy", "sum_x", "sum_xx", "sum_xy")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricCells:
    """What the tables hold of one metric.

    Attributes
    ----------
    moments : mapping of Cell to Moments
        Of the units whose window has closed.
    open_units : mapping of str to int
        Units per variant that do not count yet, as their window is still open.
    series : mapping of str to sequence of Moments
        Per variant and span, if spans were asked for; each sums to `moments`.
    covariates : mapping of Cell to CovariateMoments
        As `moments`, with what units did before, if the experiment adjusts by it.
    """

    moments: Mapping[Cell, Moments]
    open_units: Mapping[str, int]
    series: Mapping[str, Sequence[Moments]] = field(default_factory=dict)
    covariates: Mapping[Cell, CovariateMoments] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """Equal spans of time, by when the windows of units closed.

    Attributes
    ----------
    start, end : datetime
        Bounds; what closed before or after them is in the first or the last span.
    count : int
        Number of spans, >= 1.
    """

    start: datetime
    end: datetime
    count: int

    def of(self, instant: ColumnElement[datetime]) -> ColumnElement[int]:
        """Return the number of an instant's span, from 1."""
        span = func.width_bucket(
            cast(extract("epoch", instant), Float),
            self.start.timestamp(),
            self.end.timestamp(),
            self.count,
        )
        return func.least(func.greatest(span, 1), self.count)


def metric_moments(
    connection: Connection, experiment: Experiment, metric: Metric, *, cutoff: datetime
) -> dict[Cell, Moments]:
    """Return the moments of the units of analysis whose window has closed.

    A unit of analysis is a unit of an A/B test or a sticky bandit, and a (unit, epoch)
    of a bandit that redraws. One seen in two variants by the cutoff counts nowhere.
    With w the attribution window it counts if first exposure + w <= cutoff, for a ratio
    if last exposure + w <= cutoff; with trigger ``viewed`` only if it viewed by then.

    A proportion has y = 1 if an event came within w of the first exposure; its moments
    depend on nothing later than the cutoff, however late they are asked for. Means
    (y: events) and ratios (y: events, x: exposures) are as recorded so far.

    Parameters
    ----------
    cutoff : datetime
        Last instant used, with time zone.
    """
    cells = moments_by_metric(connection, experiment, [metric], cutoff=cutoff)
    return dict(cells[metric.name].moments)


def moments_by_metric(
    connection: Connection,
    experiment: Experiment,
    metrics: Sequence[Metric],
    *,
    cutoff: datetime,
    spans: Spans | None = None,
    group: tuple[str, str] | None = None,
) -> dict[str, MetricCells]:
    """Return what `metric_moments` returns for several metrics, in one pass.

    Parameters
    ----------
    group : (str, str), optional
        An attribute and its value: only units whose first exposure carried it.
    spans : Spans, optional
        Asks for the series of the first metric.
    """
    units = units_of_analysis(experiment, metrics, cutoff=cutoff, group=group)
    day = utc_day(units.c.first_at)
    values = {
        metric.name: value_of_unit(experiment, metric, units, cutoff=cutoff)
        for metric in metrics
    }
    cell: list[ColumnElement[Any]] = [
        units.c.variant,
        units.c.epoch,
        units.c.segment,
        day.label("day"),
    ]
    if spans is not None:
        closes_at = values[metrics[0].name].closes_at
        cell.append(spans.of(closes_at).label("span"))
    columns = [
        column
        for i, value in enumerate(values.values())
        for column in value.sums(f"m{i}")
    ]
    query = select(*cell, *columns).select_from(units).group_by(*cell)
    rows = _hashed(connection, query)
    return {
        name: _cells(rows, value, f"m{i}", spans if i == 0 else None)
        for i, (name, value) in enumerate(values.items())
    }


def attributes_logged(connection: Connection, experiment: Experiment) -> list[str]:
    """Name the attributes that exposures carry, from the first 10,000 units found."""
    unit = schema.unit_of_analysis
    some = (
        select(unit.c.context)
        .where(unit.c.experiment_id == experiment.id)
        .limit(_UNITS_LOOKED_AT)
        .subquery("some")
    )
    name = func.jsonb_object_keys(some.c.context).label("name")
    return list(connection.execute(select(name).distinct().order_by(name)).scalars())


def moments_by_level(
    connection: Connection,
    experiment: Experiment,
    metric: Metric,
    *,
    attribute: str,
    most: int,
    cutoff: datetime,
) -> dict[str, MetricCells]:
    """Return what `moments_by_metric` returns, by an attribute of the first exposure.

    Parameters
    ----------
    attribute : str
        Its values are the levels; a unit without it is in level "-".
    most : int
        Levels with the most units that are kept; the rest together is "other levels".
    """
    units = units_of_analysis(experiment, [metric], cutoff=cutoff)
    value = value_of_unit(experiment, metric, units, cutoff=cutoff)
    given = _level(units.c.context, attribute)
    level = given.label("level")
    largest = connection.execute(
        select(level)
        .group_by(level)
        .order_by(func.count().desc(), level)
        .limit(most + 1)
    ).scalars()
    kept = list(largest)
    if len(kept) > most:
        kept = kept[:most]
        level = case((given.in_(kept), given), else_=OTHER_LEVELS).label("level")
    day = utc_day(units.c.first_at).label("day")
    cell = (level, units.c.variant, units.c.epoch, units.c.segment, day)
    query = select(*cell, *value.sums("m0")).select_from(units).group_by(*cell)
    rows = _hashed(connection, query)
    return {
        name: _cells([row for row in rows if row.level == name], value, "m0", None)
        for name in [*kept, OTHER_LEVELS]
        if any(row.level == name for row in rows)
    }


def _hashed(connection: Connection, query: Select[Any]) -> Sequence[Row[Any]]:
    """Run a query that groups many units into few cells, joining and grouping by hashes.

    The planner can't know how few: it takes each instant for a day of its own. Nor how
    many units there are in an experiment that it has no statistics of yet, for which it
    would look through all outcomes once per unit.
    """
    avoided = ("enable_sort", "enable_nestloop")
    for plan in avoided:
        connection.execute(text(f"SET LOCAL {plan} = off"))
    rows = connection.execute(query).all()
    for plan in avoided:
        connection.execute(text(f"SET LOCAL {plan} TO DEFAULT"))
    return rows


def _cells(
    rows: Sequence[Row[Any]], value: "UnitValue", prefix: str, spans: Spans | None
) -> MetricCells:
    moments: dict[Cell, Moments] = {}
    open_units: dict[str, int] = {}
    series: dict[str, list[Moments]] = {}
    covariates: dict[Cell, CovariateMoments] = {}
    for row in rows:
        variant = row.variant
        still_open = row._mapping[f"{prefix}_open"]  # noqa: SLF001
        open_units[variant] = open_units.get(variant, 0) + still_open
        found = value.moments(row, prefix)
        if not found.n:
            continue
        cell = Cell(variant, row.epoch, row.segment, row.day)
        moments[cell] = moments[cell] + found if cell in moments else found
        if value.z is not None:
            before = value.covariate(row, prefix, found)
            covariates[cell] = (
                covariates[cell] + before if cell in covariates else before
            )
        if spans is not None:
            each = series.setdefault(variant, [Moments.zero()] * spans.count)
            each[row.span - 1] += found
    return MetricCells(
        moments=moments, open_units=open_units, series=series, covariates=covariates
    )


def reward_sums(
    connection: Connection,
    experiment: Experiment,
    metric: Metric,
    *,
    cutoff: datetime,
    half_life: float | None = None,
) -> dict[tuple[str | None, str], dict[str, float]]:
    """Return n and the sums of y, y y, x, x x and x y that a policy learns from.

    Of the units that `metric_moments` counts, by segment and variant.

    Parameters
    ----------
    half_life : float, optional
        Seconds; each of a unit's sums counts 0.5 ** (age / half_life), its age being
        the time from its first exposure to the cutoff.

    Returns
    -------
    dict of (segment or None, variant) to dict of str to float
        Keys n, sum_y, sum_yy, sum_x, sum_xx, sum_xy; without units nothing.
    """
    units = units_of_analysis(experiment, [metric], cutoff=cutoff)
    value = value_of_unit(experiment, metric, units, cutoff=cutoff)
    y, x = value.y, value.x
    worth: ColumnElement[float] = literal(1.0, Float)
    if half_life is not None:
        age = cast(extract("epoch", literal(cutoff) - units.c.first_at), Float)
        worth = func.power(0.5, func.least(age / half_life, _OLDEST))
    sums = [func.sum(worth * each) for each in (1, y, y * y, x, x * x, x * y)]
    labelled = [each.label(name) for name, each in zip(_SUMS, sums, strict=True)]
    rows = connection.execute(
        select(units.c.segment, units.c.variant, *labelled)
        .select_from(units)
        .where(value.counts)
        .group_by(units.c.segment, units.c.variant)
    ).mappings()
    return {
        (row["segment"], row["variant"]): {name: float(row[name]) for name in _SUMS}
        for row in rows
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitValue:
    """A metric of one unit as SQL: when its window closes, whether it counts, y, x.

    And z, the same of the time before its first exposure, where it is used.
    """

    kind: MetricKind
    closes_at: ColumnElement[datetime]
    closed: ColumnElement[bool]
    counts: ColumnElement[bool]
    y: ColumnElement[Any]
    x: ColumnElement[int]
    z: ColumnElement[float] | None

    def sums(self, prefix: str) -> list[ColumnElement[Any]]:
        """Return what the moments of a group of units need, and how many are open.

        What follows from other sums is left out: each one is a pass over all units.
        """
        y, x = self.y, self.x
        sums: dict[str, Any] = {"n": func.count(), "sum_y": func.sum(y)}
        if self.kind == "proportion":
            sums["sum_y"] = func.count().filter(y == 1)
        else:
            sums["sum_yy"] = func.sum(y * y)
        if self.kind == "ratio":
            sums |= {
                "sum_x": func.sum(x),
                "sum_xx": func.sum(x * x),
                "sum_xy": func.sum(x * y),
            }
        if self.z is not None:
            z = self.z
            sums |= {
                "sum_z": func.sum(z),
                "sum_zz": func.sum(z * z),
                "sum_yz": func.sum(y * z),
            }
            if self.kind == "ratio":
                sums["sum_xz"] = func.sum(x * z)
        return [
            *(
                total.filter(self.counts).label(f"{prefix}_{name}")
                for name, total in sums.items()
            ),
            func.count().filter(~self.closed).label(f"{prefix}_open"),
        ]

    def moments(self, row: Row[Any], prefix: str) -> Moments:
        """Return the moments of a row that has the sums."""
        read = functools.partial(_read, row, prefix)
        n, sum_y = read("n"), read("sum_y")
        if self.kind == "proportion":
            return Moments.from_counts(sum_y, n)
        if self.kind == "mean":
            return Moments(
                n=n, sum_y=sum_y, sum_yy=read("sum_yy"), sum_x=n, sum_xx=n, sum_xy=sum_y
            )
        return Moments(**{name: read(name) for name in _SUMS})

    def covariate(
        self, row: Row[Any], prefix: str, moments: Moments
    ) -> CovariateMoments:
        """Return the moments with those of z, of a row that has the sums."""
        read = functools.partial(_read, row, prefix)
        return CovariateMoments(
            moments=moments,
            sum_z=read("sum_z"),
            sum_zz=read("sum_zz"),
            sum_yz=read("sum_yz"),
            sum_xz=read("sum_xz") if self.kind == "ratio" else read("sum_z"),
        )


def _read(row: Row[Any], prefix: str, name: str) -> float:
    return float(row._mapping[f"{prefix}_{name}"] or 0)  # noqa: SLF001


def value_of_unit(
    experiment: Experiment, metric: Metric, units: FromClause, *, cutoff: datetime
) -> UnitValue:
    """Return a metric of each of the units of analysis as SQL."""
    length = experiment.declaration.attribution_window
    window = literal(length, Interval)
    last = units.c.last_at if metric.kind == "ratio" else units.c.first_at
    closes_at = last + window
    # The same as closes_at <= cutoff, but no addition for each unit and sum.
    counts = closed = last <= cutoff - length
    if metric.trigger == "viewed":
        counts = and_(closed, units.c.viewed_at <= closes_at)
    own = units.c[_column(metric)]
    y: ColumnElement[Any]
    if metric.kind == "proportion":
        y = case((own <= units.c.first_at + window, 1), else_=0)
    else:
        y = func.coalesce(cast(own, Float), 0.0)
        if metric.cap is not None:
            y = func.least(y, metric.cap)
    x = units.c.exposures if metric.kind == "ratio" else literal(1, Integer)
    z: ColumnElement[float] | None = None
    if experiment.declaration.cuped:
        z = cast(units.c[_before(metric)], Float)
        if metric.cap is not None:
            z = func.least(z, metric.cap)
    return UnitValue(
        kind=metric.kind,
        closes_at=closes_at,
        closed=closed,
        counts=counts,
        y=y,
        x=x,
        z=z,
    )


def units_of_analysis(
    experiment: Experiment,
    metrics: Sequence[Metric],
    *,
    cutoff: datetime,
    group: tuple[str, str] | None = None,
) -> Subquery:
    """Return units of analysis seen by the cutoff in one variant, with what they did.

    Columns are those of `unit_of_analysis` that say where a unit belongs, and two per
    metric: what it did, and what it had done before.
    """
    unit = schema.unit_of_analysis
    in_group: ColumnElement[bool] = true()
    if group is not None:
        attribute, value = group
        in_group = _level(unit.c.context, attribute) == value
    rest = [metric for metric in metrics if not _is_summarised(metric)]
    rows: FromClause = unit
    columns = {
        metric.name: _summarised(metric) for metric in metrics if metric not in rest
    }
    if rest:
        done = _outcomes(experiment, rest)
        bandit = experiment.declaration.kind is ExperimentKind.BANDIT
        phase = unit.c.epoch if bandit else literal(experiment.phase(0), Integer)
        same = and_(done.c.unit_id == unit.c.unit_id, done.c.phase == phase)
        rows = unit.outerjoin(done, same)
        columns |= {metric.name: done.c[_column(metric)] for metric in rest}
    return (
        select(
            unit.c.unit_id,
            unit.c.variant,
            unit.c.epoch,
            unit.c.segment,
            unit.c.propensity,
            unit.c.context,
            unit.c.exposures,
            unit.c.first_at,
            unit.c.last_at,
            unit.c.viewed_at,
            *(columns[metric.name].label(_column(metric)) for metric in metrics),
            *(_done_before(metric).label(_before(metric)) for metric in metrics),
        )
        .select_from(rows)
        .where(
            unit.c.experiment_id == experiment.id,
            unit.c.first_at <= cutoff,
            or_(unit.c.crossed_at.is_(None), unit.c.crossed_at > cutoff),
            in_group,
        )
        .subquery("units")
    )


def _level(context: ColumnElement[Any], attribute: str) -> ColumnElement[str]:
    return func.coalesce(context.op("->>")(attribute), MISSING)


def has_segments(experiment: Experiment) -> bool:
    """Whether units of an experiment have segments."""
    policy = experiment.declaration.policy
    return policy is not None and policy.segment_by is not None


def _column(metric: Metric) -> str:
    return f"of {metric.name}"


def _before(metric: Metric) -> str:
    return f"before {metric.name}"


def _is_summarised(metric: Metric) -> bool:
    known = set(metric.event_kinds) <= set(schema.SUMMARISED_KINDS)
    first_at_own = metric.placements == OWN and metric.kind == "proportion"
    anywhere = metric.placements is None or first_at_own
    return known and anywhere and metric.positions is None and metric.categories is None


def _summarised(metric: Metric) -> ColumnElement[Any]:
    """Return what a unit did of a metric: when first, how often, or of what value."""
    kinds = metric.event_kinds
    if metric.kind == "proportion":
        unit = schema.unit_of_analysis
        when = "at" if metric.placements is None else "own_at"
        return func.least(*(unit.c[f"{kind}_{when}"] for kind in kinds))
    return _added_up(f"{kind}_{_what(metric)}" for kind in kinds)


def _done_before(metric: Metric) -> ColumnElement[Any]:
    """Return how often, or of what value, a unit did a metric's kinds of thing before.

    At any place and of any category: one habit of shopping tells of another.
    """
    kinds = [kind for kind in metric.event_kinds if kind in schema.SUMMARISED_KINDS]
    return _added_up(f"{kind}_{_what(metric)}_before" for kind in kinds)


def _what(metric: Metric) -> str:
    return "value" if metric.of == "value" else "count"


def _added_up(names: Iterable[str]) -> ColumnElement[Any]:
    each = (func.coalesce(schema.unit_of_analysis.c[name], 0) for name in names)
    return functools.reduce(operator.add, each, literal(0))


def _outcomes(experiment: Experiment, metrics: Sequence[Metric]) -> Subquery:
    """Return the same of metrics that need more than `unit_of_analysis` holds."""
    done = schema.unit_outcome
    kinds = sorted({kind for metric in metrics for kind in metric.event_kinds})
    return (
        select(
            done.c.unit_id,
            done.c.phase,
            *(
                _of_outcomes(experiment, metric).label(_column(metric))
                for metric in metrics
            ),
        )
        .where(done.c.experiment_id == experiment.id, done.c.kind.in_(kinds))
        .group_by(done.c.unit_id, done.c.phase)
        .subquery("done")
    )


def _of_outcomes(experiment: Experiment, metric: Metric) -> ColumnElement[Any]:
    done = schema.unit_outcome
    here: ColumnElement[bool] = done.c.kind.in_(metric.event_kinds)
    if metric.positions is not None:
        here = and_(here, done.c.position.between(*metric.positions))
    if metric.categories is not None:
        here = and_(here, done.c.category.in_(metric.categories))
    if metric.placements is not None:
        own = (experiment.declaration.placement,)
        placements = own if metric.placements == OWN else metric.placements
        here = and_(here, done.c.placement.in_(placements))
    if metric.kind == "proportion":
        return func.min(done.c.first_at).filter(here)
    if metric.of == "value":
        # Money is exact in the tables; sums of squares need no more than a float.
        return cast(func.sum(done.c.value_sum).filter(here), Float)
    return func.sum(done.c.count).filter(here)
