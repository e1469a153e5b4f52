"""Monthly partitions of the event tables, by the time that a UUIDv7 holds."""

import logging
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    MetaData,
    Table,
    and_,
    delete,
    exists,
    func,
    insert,
    select,
    text,
)

from experiment_service.domain.event import MAX_AGE
from experiment_service.storage import schema
from experiment_service.storage.database import allow_time
from experiment_service.storage.events import lock_events

log = logging.getLogger(__name__)

# How far back a month without a partition is looked for in the default partition.
_MONTHS_BACK = 24


def ensure_partitions(
    connection: Connection, *, now: datetime, months_ahead: int = 3
) -> list[str]:
    """Make the monthly partitions that are missing; return their names.

    Months reach from the oldest event that is accepted to `months_ahead`. A month whose
    partition was forgotten is made too, if the default partition holds rows of it; they
    move in the same transaction.
    """
    lock_events(connection)
    allow_time(connection)
    oldest, current = _month_number(now - MAX_AGE), _month_number(now)
    made = []
    for table in (schema.exposure, schema.interaction):
        for month in range(current - _MONTHS_BACK, current + months_ahead + 1):
            start, end = _first_instant(month), _first_instant(month + 1)
            name = f"{table.name}_{start:%Y_%m}"
            if connection.execute(select(func.to_regclass(name))).scalar_one():
                continue
            if month >= oldest or _default_holds(connection, table, start, end):
                _make_partition(connection, table, name, start, end)
                made.append(name)
    return made


def _month_number(instant: datetime) -> int:
    instant = instant.astimezone(UTC)
    return instant.year * 12 + instant.month - 1


def _first_instant(month: int) -> datetime:
    return datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC)


def first_id(instant: datetime) -> UUID:
    """Return the smallest UUIDv7 of an instant."""
    return UUID(int=int(instant.timestamp() * 1000) << 80)


def _default_of(table: Table) -> Table:
    return table.to_metadata(MetaData(), name=f"{table.name}_default")


def _within(table: Table, start: datetime, end: datetime) -> ColumnElement[bool]:
    return and_(table.c.id >= first_id(start), table.c.id < first_id(end))


def _default_holds(
    connection: Connection, table: Table, start: datetime, end: datetime
) -> bool:
    default = _default_of(table)
    return connection.execute(
        select(exists().where(_within(default, start, end)))
    ).scalar_one()


def _make_partition(
    connection: Connection, table: Table, name: str, start: datetime, end: datetime
) -> None:
    # Attached when full: unlike CREATE ... PARTITION OF, this lets others read on, and
    # takes rows that the default partition holds.
    connection.execute(text(f"CREATE TABLE {name} (LIKE {table.name} INCLUDING ALL)"))
    default = _default_of(table)
    moved = (
        delete(default)
        .where(_within(default, start, end))
        .returning(*default.c)
        .cte("moved")
    )
    partition = table.to_metadata(MetaData(), name=name)
    rows = connection.execute(
        insert(partition).from_select(table.c.keys(), select(moved)),
        execution_options={"preserve_rowcount": True},
    ).rowcount
    connection.execute(
        text(
            f"ALTER TABLE {table.name} ATTACH PARTITION {name} "
            f"FOR VALUES FROM ('{first_id(start)}') TO ('{first_id(end)}')"
        )
    )
    log.info("made partition name=%s moved=%d", name, rows)
