"""Months of raw events that may go: what they hold, whether it is safe, and their end.

Outcomes, history and units of analysis stay: every report is as before. The module
decides nothing; see `experiment_service.retention`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Select,
    Table,
    Text,
    Uuid,
    and_,
    cast,
    column,
    delete,
    func,
    insert,
    or_,
    select,
    table,
    text,
)

from experiment_service.storage import schema
from experiment_service.storage.database import allow_time, notify_change
from experiment_service.storage.experiments import list_experiments
from experiment_service.storage.outcomes import is_of_unit, names, pairs_of
from experiment_service.storage.partitions import (
    first_id,
    month_bounds,
    partition_name,
    partition_of,
)

_TABLES = {each.name: each for each in (schema.exposure, schema.interaction)}
_NAME = re.compile(r"(?:exposure|interaction)_(\d{4})_(\d{2})")
_BATCH = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMonth:
    """A month whose raw events are kept.

    Attributes
    ----------
    month : date
        Its first day.
    size_bytes : int
        Of its rows and their indexes on disk.
    """

    month: date
    size_bytes: int

    @property
    def end(self) -> datetime:
        """First instant of the next month."""
        return month_bounds(self.month)[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What a table has in a month: rows never change, so their ids tell.

    Attributes
    ----------
    rows : int
    ids : int
        Hashes of the ids, combined without order.
    """

    rows: int
    ids: int


def list_months(connection: Connection) -> list[StoredMonth]:
    """Return the months that have a partition, oldest first."""
    link = table("pg_inherits", column("inhrelid"), column("inhparent"))
    relation = table("pg_class", column("oid"), column("relname"))
    parents = [func.to_regclass(name) for name in _TABLES]
    rows = connection.execute(
        select(relation.c.relname, func.pg_total_relation_size(relation.c.oid))
        .join(link, link.c.inhrelid == relation.c.oid)
        .where(or_(*(link.c.inhparent == parent for parent in parents)))
    )
    sizes: dict[date, int] = {}
    for name, size in rows:
        found = _NAME.fullmatch(name)
        if found:
            month = date(int(found[1]), int(found[2]), 1)
            sizes[month] = sizes.get(month, 0) + size
    return [
        StoredMonth(month=month, size_bytes=sizes[month]) for month in sorted(sizes)
    ]


def _partitions(connection: Connection, month: date) -> dict[str, Table]:
    """Return the partitions of a month that there are, by table."""
    found = {}
    for name, of in _TABLES.items():
        own = partition_name(of, month)
        if connection.execute(select(func.to_regclass(own))).scalar_one() is not None:
            found[name] = partition_of(of, own)
    return found


def closed_until(connection: Connection, month: date) -> datetime | None:
    """Return the last instant at which an event could count with one of a month.

    That is the end of the latest attribution window that an exposure opened, or the
    latest interaction, which could belong to an exposure that has not come yet. None
    for a month without events.
    """
    allow_time(connection)
    windows = {
        each.id: each.declaration.attribution_window
        for each in list_experiments(connection)
    }
    found = _partitions(connection, month)
    instants: list[datetime] = []
    shown, done = found.get("exposure"), found.get("interaction")
    if shown is not None:
        latest = select(shown.c.experiment_id, func.max(shown.c.exposed_at))
        rows = connection.execute(latest.group_by(shown.c.experiment_id))
        instants += [at + windows[experiment_id] for experiment_id, at in rows]
    if done is not None:
        at = connection.scalar(select(func.max(done.c.occurred_at)))
        instants += [] if at is None else [at]
    return max(instants, default=None)


def outcome_gaps(connection: Connection, month: date) -> int:
    """Count outcomes that hold less than the raw events of a month say; 0 when safe.

    Exposures of the month are added up again, and what units did after them. Outcomes
    hold that and what came of other months, so they may hold more.
    """
    allow_time(connection)
    found = _partitions(connection, month)
    if "exposure" not in found:
        return 0
    return sum(
        connection.execute(question).scalar_one()
        for question in _questions(found["exposure"])
    )


def _questions(shown: Table) -> tuple[Select[Any], Select[Any]]:
    had = schema.unit_exposure
    key = [shown.c[each.name] for each in had.primary_key]
    totals = (
        select(
            *key,
            func.count().label("count"),
            func.min(shown.c.exposed_at).label("first_at"),
            func.max(shown.c.exposed_at).label("last_at"),
        )
        .group_by(*key)
        .subquery("shown")
    )
    exposures = _missing(
        totals,
        had,
        and_(
            had.c.exposures >= totals.c["count"],
            had.c.first_at <= totals.c.first_at,
            had.c.last_at >= totals.c.last_at,
        ),
    )
    done, outcome = schema.interaction, schema.unit_outcome
    named, of_unit = (
        pairs_of(shown, done, shown.join(done, belongs(shown, done)))
        for belongs in (names, is_of_unit)
    )
    # UNION: an interaction of a unit counts once for however many of its exposures.
    pair = named.union(of_unit).subquery("pair")
    of_pair = [pair.c[each.name] for each in outcome.primary_key]
    sums = (
        select(
            *of_pair,
            func.count().label("count"),
            func.min(pair.c.occurred_at).label("first_at"),
        )
        .group_by(*of_pair)
        .subquery("done")
    )
    outcomes = _missing(
        sums,
        outcome,
        and_(
            outcome.c["count"] >= sums.c["count"], outcome.c.first_at <= sums.c.first_at
        ),
    )
    return exposures, outcomes


def _missing(totals: Any, had: Table, holds: ColumnElement[bool]) -> Select[Any]:  # noqa: ANN401 - a subquery
    same = [had.c[each.name] == totals.c[each.name] for each in had.primary_key]
    joined = totals.outerjoin(had, and_(*same, holds))
    first = next(iter(had.primary_key))
    return select(func.count()).select_from(joined).where(first.is_(None))


def fingerprints(connection: Connection, month: date) -> dict[str, Fingerprint]:
    """Tell what each table has in a month."""
    allow_time(connection)
    told = {}
    for name, each in _partitions(connection, month).items():
        hashes = func.bit_xor(func.uuid_hash_extended(each.c.id, 0))
        rows, ids = connection.execute(
            select(func.count(), func.coalesce(hashes, 0)).select_from(each)
        ).one()
        told[name] = Fingerprint(rows=rows, ids=ids)
    return told


def column_types(name: str) -> dict[str, type]:
    """Return the columns of a table, and what `stream_month` yields of each."""
    return {
        each.name: str if _is_written(each) else each.type.python_type
        for each in _TABLES[name].c
    }


def _is_written(each: ColumnElement[Any]) -> bool:
    """Whether a column goes out as Postgres writes it, to the last digit."""
    return isinstance(each.type, Uuid | JSON) or each.type.python_type is Decimal


def stream_month(
    connection: Connection, name: str, month: date
) -> Iterator[list[tuple[Any, ...]]]:
    """Yield batches of a table's rows of a month, in the order of their ids."""
    allow_time(connection)
    own = _partitions(connection, month)[name]
    columns = (cast(each, Text) if _is_written(each) else each for each in own.c)
    rows = connection.execute(
        select(*columns).order_by(own.c.id),
        execution_options={"stream_results": True, "max_row_buffer": _BATCH},
    )
    for batch in rows.partitions(_BATCH):
        yield [tuple(row) for row in batch]


def retire_month(
    connection: Connection,
    month: date,
    *,
    closed: datetime,
    archive: Mapping[str, Mapping[str, Any]] | None,
) -> None:
    """Drop the raw events of a month, and write down that they are gone.

    The caller holds the lock of events, and has seen that they are safe.

    Parameters
    ----------
    closed : datetime
        As `closed_until` tells it; no event from up to then is taken any more.
    archive : mapping or None
        By table: where the rows are now.
    """
    found, rows = _partitions(connection, month), fingerprints(connection, month)
    counts = {name: rows[name].rows if name in rows else 0 for name in _TABLES}
    connection.execute(
        insert(schema.retired_month).values(
            month=month,
            exposures=counts["exposure"],
            interactions=counts["interaction"],
            closed_until=closed,
            experiment_ids=_experiments_of(connection, month, found),
            archive=archive,
        )
    )
    first, end = (first_id(instant) for instant in month_bounds(month))
    counted = schema.attribution.c.interaction_id
    connection.execute(
        delete(schema.attribution).where(counted >= first, counted < end)
    )
    for each in found.values():
        connection.execute(text(f"DROP TABLE {each.name}"))
    notify_change(connection)


def _experiments_of(
    connection: Connection, month: date, found: Mapping[str, Table]
) -> list[int]:
    """Return the experiments that have outcomes by raw events of a month."""
    first, end = (first_id(instant) for instant in month_bounds(month))
    shown, done, counted = (
        schema.exposure,
        found.get("interaction"),
        schema.attribution,
    )
    questions = [
        select(counted.c.experiment_id).where(
            counted.c.interaction_id >= first, counted.c.interaction_id < end
        )
    ]
    if "exposure" in found:
        questions.append(select(found["exposure"].c.experiment_id))
    if done is not None:
        questions.append(
            select(shown.c.experiment_id).join_from(shown, done, names(shown, done))
        )
    return sorted(
        {each for q in questions for each in connection.scalars(q.distinct())}
    )


def list_archives(connection: Connection) -> list[str]:
    """Return the files that raw events were archived to, oldest first."""
    retired = schema.retired_month
    archives = connection.scalars(
        select(retired.c.archive)
        .where(retired.c.archive.is_not(None))
        .order_by(retired.c.month)
    )
    return [each["file"] for archive in archives for each in archive.values()]
