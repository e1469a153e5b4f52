"""Samples of what was served, and what monitors measured of it by day.

A look costs the same for a busy shop as for a small one: it reads at most so many
exposures from each of many short stretches of time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from uuid import UUID

from sqlalchemy import (
    Connection,
    Interval,
    bindparam,
    cast,
    func,
    literal,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import distinct_on, insert

from experiment_service.domain.event import MAX_AGE
from experiment_service.storage import schema
from experiment_service.storage.partitions import first_id

#: Newest interactions that are searched for the categories of items.
_CATEGORY_INTERACTIONS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedExposure:
    """An exposure as monitors see it; fields as of `Exposure`."""

    id: UUID
    unit_id: str
    variant: str
    model: str
    items: Sequence[str]
    fallback: bool
    exposed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceCount:
    """One position in a carousel.

    Attributes
    ----------
    shown, acted : int
        Exposures that had an item there, and those of them that were acted upon there.
    shown_before, acted_before : int
        The same of the 7 days before.
    """

    position: int
    shown: int
    acted: int
    shown_before: int
    acted_before: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoredDay:
    """What was measured of a variant in the 24 hours up to the last look on a day.

    Attributes
    ----------
    exposures : int
        Those that were looked at.
    measured : mapping of str to float or None
        By monitor; None where there was too little to measure.
    """

    variant: str
    day: date
    until: datetime
    exposures: int
    measured: Mapping[str, float | None]
    positions: Sequence[PlaceCount]


def sample_exposures(
    connection: Connection,
    experiment_id: int,
    *,
    start: datetime,
    end: datetime,
    slices: int,
    per_slice: int,
) -> list[ServedExposure]:
    """Return the first exposures of each of many equal stretches of time.

    All of them where no stretch has more than `per_slice`; else times of little traffic
    weigh as much as busy ones.
    """
    made = schema.exposure
    step = literal((end - start) / slices, Interval)
    stretches = (
        func.generate_series(0, slices - 1).table_valued("number").render_derived()
    )
    first = literal(start) + stretches.c.number * step
    found = (
        select(
            *(made.c[name] for name in ServedExposure.__dataclass_fields__),
        )
        .where(
            made.c.experiment_id == experiment_id,
            made.c.exposed_at >= first,
            made.c.exposed_at < first + step,
            # Leaves out the partitions of other months.
            made.c.id >= first_id(start - MAX_AGE),
        )
        .order_by(made.c.exposed_at)
        .limit(per_slice)
        .lateral("found")
    )
    rows = connection.execute(select(found).select_from(stretches).join(found, true()))
    return [ServedExposure(**row._mapping) for row in rows]  # noqa: SLF001


def acted_places(
    connection: Connection, exposure_ids: Sequence[UUID], *, within: timedelta
) -> set[tuple[UUID, int]]:
    """Return exposures and positions that were acted upon soon after; views are no act."""
    done, made = schema.interaction, schema.exposure
    rows = connection.execute(
        select(done.c.exposure_id, done.c.position)
        .join(made, made.c.id == done.c.exposure_id)
        .where(
            done.c.exposure_id == func.any(bindparam("ids", list(exposure_ids))),
            done.c.kind != "viewed",
            done.c.position.is_not(None),
            done.c.occurred_at <= made.c.exposed_at + cast(within, Interval),
        )
    )
    return {(row.exposure_id, row.position) for row in rows}


def item_categories(
    connection: Connection, *, since: datetime, until: datetime
) -> dict[str, str]:
    """Return the category of each item that an interaction of that time told.

    Of at most 100,000 interactions, the latest ones.
    """
    done = schema.interaction
    latest = (
        select(done.c.id, done.c.item_id, done.c.category)
        .where(done.c.id >= first_id(since), done.c.id < first_id(until))
        .order_by(done.c.id.desc())
        .limit(_CATEGORY_INTERACTIONS)
        .subquery("latest")
    )
    rows = connection.execute(
        select(latest.c.item_id, latest.c.category)
        .ext(distinct_on(latest.c.item_id))
        .where(latest.c.item_id.is_not(None), latest.c.category.is_not(None))
        .order_by(latest.c.item_id, latest.c.id.desc())
    )
    return {row.item_id: row.category for row in rows}


def store_days(
    connection: Connection, experiment_id: int, days: Sequence[MonitoredDay]
) -> None:
    """Store what was measured, unless a later look at the same day is there."""
    if not days:
        return
    given = insert(schema.monitored_day)
    columns = ("until", "exposures", "measured", "positions")
    statement = given.on_conflict_do_update(
        index_elements=["experiment_id", "variant", "day"],
        set_={name: given.excluded[name] for name in columns},
        where=schema.monitored_day.c.until <= given.excluded.until,
    )
    connection.execute(
        statement,
        [
            {
                "experiment_id": experiment_id,
                "variant": each.variant,
                "day": each.day,
                "until": each.until,
                "exposures": each.exposures,
                "measured": dict(each.measured),
                "positions": [
                    [getattr(place, name) for name in PlaceCount.__dataclass_fields__]
                    for place in each.positions
                ],
            }
            for each in sorted(days, key=lambda each: (each.variant, each.day))
        ],
    )


def list_days(
    connection: Connection, experiment_id: int, *, since: date
) -> list[MonitoredDay]:
    """Return what was measured from a day on, by day and variant."""
    table = schema.monitored_day
    rows = connection.execute(
        select(table)
        .where(table.c.experiment_id == experiment_id, table.c.day >= since)
        .order_by(table.c.day, table.c.variant)
    )
    return [
        MonitoredDay(
            variant=row.variant,
            day=row.day,
            until=row.until,
            exposures=row.exposures,
            measured=row.measured,
            positions=[
                PlaceCount(
                    **dict(zip(PlaceCount.__dataclass_fields__, place, strict=True))
                )
                for place in row.positions
            ],
        )
        for row in rows
    ]
