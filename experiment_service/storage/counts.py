"""Counts for health checks and operations: units, exposures, lag, orphans, sizes.

Cheap enough for a dashboard that asks every few seconds: what looks at raw events looks
at the latest ones only.
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import NamedTuple

from sqlalchemy import (
    Connection,
    Float,
    cast,
    extract,
    func,
    select,
    table,
    true,
)
from sqlalchemy.dialects.postgresql import distinct_on

from experiment_service.domain.experiment import Experiment
from experiment_service.storage import schema
from experiment_service.storage.partitions import first_id

_LATEST_EXPOSURES = 1000
_NEWEST_EXPOSURES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCount:
    """Units of one epoch and variant, each where it was first exposed.

    Attributes
    ----------
    units : int
        All of them, also those whose window is open.
    viewed : int
        Those that viewed a carousel.
    crossed : int
        Those that were seen in another variant too, so that no metric counts them.
    """

    units: int
    viewed: int
    crossed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposureCount:
    """Exposures of one variant, how many fell back, and the time of the last one."""

    exposures: int
    fallbacks: int
    last_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """Seconds between exposures and their recording, over the latest 1,000.

    Attributes
    ----------
    newest : float
        Median of the 20 newest; how far recording is behind now.
    """

    exposures: int
    newest: float
    median: float
    p95: float
    longest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanCount:
    """Interactions that name an exposure, and how many name one that nobody knows."""

    interactions: int
    orphans: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MinuteCount:
    """Events of the minute that begins at `minute`."""

    minute: datetime
    exposures: int
    interactions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What counts for an experiment, and how many units did how much.

    Attributes
    ----------
    interactions : mapping of str to int
        By kind.
    exposures, acts : sequence of (str, int, int)
        Variant, number of exposures (of interactions other than views), and units that
        had as many; a pair of variant and number may come more than once.
    """

    interactions: Mapping[str, int]
    exposures: Sequence[tuple[str, int, int]]
    acts: Sequence[tuple[str, int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LateCount:
    """Interactions within their window, and those recorded after it had closed."""

    interactions: int
    late: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """Events that came in, and those of them that were there already."""

    received: int
    known: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingCount:
    """Units that named an exposure, and those of them whose exposure never arrived."""

    units: int
    missing: int


class UnitCell(NamedTuple):
    """Where units are counted: by their first exposure."""

    epoch: int
    segment: str | None
    variant: str


def unit_counts(
    connection: Connection, experiment: Experiment, *, cutoff: datetime
) -> dict[UnitCell, UnitCount]:
    """Return the units per epoch, segment and variant of their first exposure."""
    unit = schema.unit_of_analysis
    cell = (unit.c.epoch, unit.c.segment, unit.c.variant)
    rows = connection.execute(
        select(
            *cell,
            func.count().label("units"),
            func.count(unit.c.viewed_at).label("viewed"),
            func.count().filter(unit.c.crossed_at <= cutoff).label("crossed"),
        )
        .where(unit.c.experiment_id == experiment.id, unit.c.first_at <= cutoff)
        .group_by(*cell)
    )
    return {
        UnitCell(row.epoch, row.segment, row.variant): UnitCount(
            units=row.units, viewed=row.viewed, crossed=row.crossed
        )
        for row in rows
    }


def exposure_counts(
    connection: Connection, experiment: Experiment
) -> dict[str, ExposureCount]:
    """Return the exposures of each variant that had any."""
    shown = schema.unit_exposure
    rows = connection.execute(
        select(
            shown.c.variant,
            func.sum(shown.c.exposures).label("exposures"),
            func.sum(shown.c.fallback_exposures).label("fallbacks"),
            func.max(shown.c.last_at).label("last_at"),
        )
        .where(shown.c.experiment_id == experiment.id)
        .group_by(shown.c.variant)
    )
    return {
        row.variant: ExposureCount(
            exposures=row.exposures, fallbacks=row.fallbacks, last_at=row.last_at
        )
        for row in rows
    }


def activity(connection: Connection, experiment: Experiment) -> Activity:
    """Return how many interactions count for an experiment, and how busy units are."""
    unit = schema.unit_of_analysis
    kinds = schema.SUMMARISED_KINDS
    done = {kind: func.coalesce(unit.c[f"{kind}_count"], 0) for kind in kinds}
    acts = functools.reduce(
        operator.add, (done[kind] for kind in kinds if kind != "viewed")
    )
    cell = (unit.c.variant, unit.c.exposures, acts.label("acts"))
    rows = connection.execute(
        select(
            *cell,
            func.count().label("units"),
            *(func.sum(count).label(kind) for kind, count in done.items()),
        )
        .where(unit.c.experiment_id == experiment.id)
        .group_by(*cell)
    ).all()
    totals = {kind: sum(getattr(row, kind) for row in rows) for kind in kinds}
    return Activity(
        interactions={kind: count for kind, count in sorted(totals.items()) if count},
        exposures=[(row.variant, row.exposures, row.units) for row in rows],
        acts=[(row.variant, row.acts, row.units) for row in rows],
    )


def late_count(
    connection: Connection, experiment: Experiment, *, as_of: datetime
) -> LateCount:
    """Count interactions recorded after their window had closed.

    On the latest 1,000 exposures whose window closed a window ago or longer: of what
    came later than that, nothing is seen.
    """
    window = experiment.declaration.attribution_window
    made, done = schema.exposure, schema.interaction
    latest = (
        select(made.c.id, made.c.exposed_at)
        .where(
            made.c.experiment_id == experiment.id,
            made.c.exposed_at <= as_of - 2 * window,
        )
        .order_by(made.c.exposed_at.desc())
        .limit(_LATEST_EXPOSURES)
        .cte("latest")
    )
    ids = func.array(select(latest.c.id).scalar_subquery())
    closes_at = latest.c.exposed_at + window
    row = connection.execute(
        select(
            func.count().label("interactions"),
            func.count().filter(done.c.recorded_at > closes_at).label("late"),
        )
        .select_from(done.join(latest, latest.c.id == done.c.exposure_id))
        .where(
            done.c.exposure_id == func.any(ids),
            done.c.occurred_at.between(latest.c.exposed_at, closes_at),
        )
    ).one()
    return LateCount(interactions=row.interactions, late=row.late)


def intake(connection: Connection, *, since: date) -> Intake:
    """Return how many events were recorded from a day on, and how many were known."""
    row = connection.execute(
        select(
            func.coalesce(func.sum(schema.intake.c.received), 0).label("received"),
            func.coalesce(func.sum(schema.intake.c.known), 0).label("known"),
        ).where(schema.intake.c.day >= since)
    ).one()
    return Intake(received=int(row.received), known=int(row.known))


def recording_lag(
    connection: Connection, experiment: Experiment | None = None
) -> Lag | None:
    """Return how late the latest exposures were recorded, None without any.

    Parameters
    ----------
    experiment : Experiment, optional
        Only its exposures; those of all experiments when left out.
    """
    made = schema.exposure
    latest = select(made.c.recorded_at, made.c.exposed_at).limit(_LATEST_EXPOSURES)
    if experiment is None:
        latest = latest.order_by(made.c.id.desc())
    else:
        latest = latest.where(made.c.experiment_id == experiment.id).order_by(
            made.c.exposed_at.desc()
        )
    limited = latest.subquery("limited")
    newest_first = func.row_number().over(order_by=limited.c.exposed_at.desc())
    rows = select(limited, newest_first.label("age")).subquery("latest")
    # A clock that is ahead of the database's would give less than nothing.
    seconds = func.greatest(
        cast(extract("epoch", rows.c.recorded_at - rows.c.exposed_at), Float), 0.0
    )
    row = connection.execute(
        select(
            func.count().label("exposures"),
            func.percentile_cont(0.5)
            .within_group(seconds)
            .filter(rows.c.age <= _NEWEST_EXPOSURES)
            .label("newest"),
            func.percentile_cont(0.5).within_group(seconds).label("median"),
            func.percentile_cont(0.95).within_group(seconds).label("p95"),
            func.max(seconds).label("longest"),
        ).select_from(rows)
    ).one()
    return Lag(**row._mapping) if row.exposures else None  # noqa: SLF001


def orphan_count(connection: Connection, *, since: datetime) -> OrphanCount:
    """Count interactions that name an exposure made since an instant, and orphans.

    An identifier that no clock of ours made sorts after the instant too, but for one in
    some hundred made at random, so the count needs only the newest part of the index.
    """
    done, made = schema.interaction, schema.exposure
    row = connection.execute(
        select(
            func.count().label("interactions"),
            func.count().filter(made.c.id.is_(None)).label("orphans"),
        )
        .select_from(done.outerjoin(made, made.c.id == done.c.exposure_id))
        .where(done.c.exposure_id >= first_id(since))
    ).one()
    return OrphanCount(interactions=row.interactions, orphans=row.orphans)


def missing_exposure_counts(
    connection: Connection, experiment: Experiment, *, since: datetime
) -> dict[UnitCell, MissingCount]:
    """Count units by whether the exposure that they named has arrived.

    Of exposures made since an instant, as `orphan_count`. A unit counts by the first
    interaction of it that names one, where it was at that time by its first exposure.
    """
    done, made, unit = schema.interaction, schema.exposure, schema.unit_of_analysis
    unit_id = func.coalesce(done.c.unit_id, made.c.unit_id)
    first = (
        select(
            unit_id.label("unit_id"),
            done.c.occurred_at,
            made.c.id.is_(None).label("missing"),
        )
        .select_from(done.outerjoin(made, made.c.id == done.c.exposure_id))
        .where(done.c.exposure_id >= first_id(since), unit_id.is_not(None))
        .ext(distinct_on(unit_id))
        .order_by(unit_id, done.c.occurred_at, done.c.id)
        .cte("first")
    )
    belonged = (
        select(unit.c.epoch, unit.c.segment, unit.c.variant)
        .where(
            unit.c.experiment_id == experiment.id,
            unit.c.unit_id == first.c.unit_id,
            unit.c.first_at <= first.c.occurred_at,
        )
        .order_by(unit.c.phase.desc())
        .limit(1)
        .lateral("belonged")
    )
    rows = connection.execute(
        select(
            *belonged.c,
            func.count().label("units"),
            func.count().filter(first.c.missing).label("missing"),
        )
        .select_from(first.join(belonged, true()))
        .group_by(*belonged.c)
    )
    return {
        UnitCell(row.epoch, row.segment, row.variant): MissingCount(
            units=row.units, missing=row.missing
        )
        for row in rows
    }


def events_by_minute(connection: Connection, *, since: datetime) -> list[MinuteCount]:
    """Count exposures made since an instant, and the interactions that name them.

    Minutes without events are left out.
    """
    done, made = schema.interaction, schema.exposure
    totals: dict[datetime, list[int]] = {}
    for column, (identifier, instant) in enumerate(
        ((made.c.id, made.c.exposed_at), (done.c.exposure_id, done.c.occurred_at))
    ):
        minute = func.date_trunc("minute", instant, "UTC").label("minute")
        rows = connection.execute(
            select(minute, func.count())
            .where(identifier >= first_id(since), instant >= since)
            .group_by(minute)
        )
        for at, count in rows:
            totals.setdefault(at, [0, 0])[column] = count
    return [
        MinuteCount(minute=minute, exposures=exposures, interactions=interactions)
        for minute, (exposures, interactions) in sorted(totals.items())
    ]


def default_partition_rows(connection: Connection) -> dict[str, int]:
    """Count the events that no monthly partition took, per table; 0 when all is well."""
    return {
        name: connection.scalar(
            select(func.count()).select_from(table(f"{name}_default"))
        )
        or 0
        for name in ("exposure", "interaction")
    }


def database_size(connection: Connection) -> int:
    """Return the size of the database in bytes."""
    size = connection.scalar(select(func.pg_database_size(func.current_database())))
    return int(size or 0)
