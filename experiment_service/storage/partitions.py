"""Monthly partitions of the event tables, by the time that a UUIDv7 holds.

A month that was retired (`storage.retention`) has no partition any more, and no event
that belongs to it, or could count with it, is taken again.
"""

import logging
from datetime import UTC, date, datetime
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
    or_,
    select,
    text,
)

from experiment_service.domain.event import MAX_AGE
from experiment_service.errors import InvalidRequest, InvalidState
from experiment_service.storage import schema
from experiment_service.storage.database import (
    EVENTS_LOCK,
    allow_time,
    lock_for_transaction,
)

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
    lock_for_transaction(connection, EVENTS_LOCK)
    allow_time(connection)
    oldest, current = _month_number(now - MAX_AGE), _month_number(now)
    made = []
    for table in (schema.exposure, schema.interaction):
        for month in range(current - _MONTHS_BACK, current + months_ahead + 1):
            start, end = _first_instant(month), _first_instant(month + 1)
            name = partition_name(table, start)
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


def month_bounds(month: date) -> tuple[datetime, datetime]:
    """Return the first instants of a month and of the next."""
    number = month.year * 12 + month.month - 1
    return _first_instant(number), _first_instant(number + 1)


def partition_name(table: Table, month: date) -> str:
    """Return the name of a month's partition."""
    return f"{table.name}_{month:%Y_%m}"


def first_id(instant: datetime) -> UUID:
    """Return the smallest UUIDv7 of an instant."""
    return UUID(int=int(instant.timestamp() * 1000) << 80)


def partition_of(table: Table, name: str) -> Table:
    """Describe a partition: it has the columns of its table."""
    return table.to_metadata(MetaData(), name=name)


def _default_of(table: Table) -> Table:
    return partition_of(table, f"{table.name}_default")


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
    partition = partition_of(table, name)
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


def oldest_id(connection: Connection) -> UUID | None:
    """Return the smallest id that a new event may bear; None while any may come."""
    month = connection.scalar(select(func.max(schema.retired_month.c.month)))
    return None if month is None else first_id(month_bounds(month)[1])


def refuse_retired(
    connection: Connection, exposures: Table, interactions: Table
) -> None:
    """Refuse staged events of retired months, and those that could count with them.

    The caller holds the lock of events, or a month could be retired meanwhile.

    Raises
    ------
    InvalidRequest
        Names the first such event.
    """
    oldest = oldest_id(connection)
    if oldest is None:
        return
    until = select(func.max(schema.retired_month.c.closed_until)).scalar_subquery()
    for table, at in (
        (exposures, exposures.c.exposed_at),
        (interactions, interactions.c.occurred_at),
    ):
        late = select(table.c.id, at).where(or_(table.c.id < oldest, at <= until))
        row = connection.execute(late.order_by(table.c.id).limit(1)).one_or_none()
        if row is not None:
            raise InvalidRequest(
                f"event {row[0]} of {row[1].isoformat()} comes too late: months that "
                "it belongs to, or could count with, have been retired"
            )


def check_whole(connection: Connection, experiment_id: int | None) -> None:
    """Refuse to go on where raw events are needed that have been retired.

    Parameters
    ----------
    experiment_id : int or None
        Whose raw events are needed; None for those of all.

    Raises
    ------
    InvalidState
        Names the months, and the files that they were archived to.
    """
    retired = schema.retired_month
    question = select(retired.c.month, retired.c.archive).order_by(retired.c.month)
    if experiment_id is None:
        question = question.where(retired.c.exposures + retired.c.interactions > 0)
    else:
        question = question.where(retired.c.experiment_ids.any_() == experiment_id)
    rows = connection.execute(question).all()
    if rows:
        months = [f"{row.month:%Y-%m}" for row in rows]
        files = [each["file"] for row in rows for each in (row.archive or {}).values()]
        raise InvalidState(
            f"raw events of {', '.join(months)} have been retired, and this needs them; "
            + (f"they are in {', '.join(files)}" if files else "no copy was kept")
        )
