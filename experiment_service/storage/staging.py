"""Events on their way into their tables: temporary tables, COPY, and what of it is new.

Knows nothing of what follows from events.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

import psycopg
from pydantic_core import to_json, to_jsonable_python
from sqlalchemy import (
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    Delete,
    MetaData,
    Table,
    bindparam,
    delete,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.exc import DBAPIError

from experiment_service.domain.event import Exposure, Interaction
from experiment_service.storage import schema
from experiment_service.storage.units import touched_unit


def _staging(name: str, target: Table) -> Table:
    """Describe a temporary table for rows on their way to `target`.

    It lives as long as its session: one per transaction would leave some sixty dead
    rows in the catalogues, many times a second.
    """
    columns = (
        Column(column.name, column.type, nullable=column.nullable)
        for column in target.c
        if column.name != "recorded_at"
    )
    return Table(
        name,
        MetaData(),
        *columns,
        prefixes=["TEMPORARY"],
        postgresql_on_commit="DELETE ROWS",
    )


new_exposure = _staging("new_exposure", schema.exposure)
new_interaction = _staging("new_interaction", schema.interaction)

_STAGING = (new_exposure, new_interaction, touched_unit)
_SIZES_OF_STAGING = select(
    *(
        func.pg_relation_size(func.to_regclass(f"pg_temp.{each.name}"))
        for each in _STAGING
    )
)


def driver_of(connection: Connection) -> psycopg.Connection[Any]:
    """Return the driver's connection, for what SQLAlchemy does not know."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, psycopg.Connection):
        raise TypeError(f"the driver is {type(driver).__module__}; it must be psycopg")
    return driver


def prepare_staging(connection: Connection) -> None:
    """Have the temporary tables, empty: a table that is not there has no size."""
    sizes = connection.execute(_SIZES_OF_STAGING).one()
    for table, size in zip(_STAGING, sizes, strict=True):
        if size is None:
            table.create(connection, checkfirst=False)
        elif size:
            # This transaction has stored events before.
            connection.execute(delete(table))


_Event = TypeVar("_Event", Exposure, Interaction)


def unique(events: Sequence[_Event]) -> list[_Event]:
    """Keep the first copy of each id; in order, new rows go to one end of the index."""
    # By the number: UUIDs are compared in Python, one by one.
    by_id = {event.id.int: event for event in reversed(events)}
    return [by_id[event_id] for event_id in sorted(by_id)]


def copy_rows(
    connection: Connection,
    table: Table,
    row_of: Callable[[_Event], Sequence[object]],
    events: Sequence[_Event],
) -> None:
    """Copy events into a temporary table, each as the row that `row_of` makes."""
    if not events:
        return
    driver = driver_of(connection)
    statement = f"COPY pg_temp.{table.name} ({', '.join(table.c.keys())}) FROM STDIN"
    try:
        with driver.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            for event in events:
                copy.write_row(row_of(event))
    except psycopg.Error as error:
        if driver.closed:
            connection.invalidate(error)
        raise DBAPIError.instance(statement, None, error, psycopg.Error) from error


def exposure_row(exposure: Exposure) -> list[object]:
    """Return the columns of `new_exposure`."""
    return _as_text(
        exposure.id,
        exposure.experiment_id,
        exposure.epoch,
        exposure.unit_id,
        exposure.variant,
        exposure.propensity,
        exposure.model,
        _array(exposure.items),
        _array(exposure.sources),
        exposure.fallback,
        to_json(exposure.context).decode(),
        exposure.exposed_at,
        exposure.segment,
    )


def interaction_row(interaction: Interaction) -> list[object]:
    """Return the columns of `new_interaction`."""
    return _as_text(
        interaction.id,
        interaction.exposure_id,
        interaction.unit_id,
        interaction.kind,
        interaction.item_id,
        interaction.position,
        interaction.value,
        interaction.occurred_at,
        interaction.category,
        interaction.placement,
    )


def _as_text(*columns: object) -> list[object]:
    """Write ids, instants and amounts as text; the driver and Python are slow at it."""
    written: list[object] = to_jsonable_python(columns)
    return written


def _array(texts: Sequence[str]) -> str:
    """Write an array literal; the driver would take ten times as long."""
    joined = '","'.join(texts)
    if "\\" in joined or joined.count('"') > 2 * len(texts) - 2:
        quoted = (each.replace("\\", "\\\\").replace('"', '\\"') for each in texts)
        joined = '","'.join(quoted)
    return f'{{"{joined}"}}' if texts else "{}"


def drop_known(
    connection: Connection, staging: Table, target: Table, events: Sequence[_Event]
) -> None:
    """Delete from the staging table what is stored already.

    The caller holds the lock of events, so what is left can be inserted as it is: to let
    each row look for a conflict would take half as long again.
    """
    if events:
        bounds = {"first": events[0].id, "last": events[-1].id}
        connection.execute(_dropping_known(staging, target), bounds)


@cache
def _dropping_known(staging: Table, target: Table) -> Delete:
    ids = func.array(select(staging.c.id).scalar_subquery())
    known = select(target.c.id).where(target.c.id == func.any(ids), within(target))
    return delete(staging).where(staging.c.id.in_(known))


def within(target: Table) -> ColumnElement[bool]:
    """Whether an id is within bounds; the planner leaves out partitions beyond."""
    return target.c.id.between(bindparam("first"), bindparam("last"))


def store_new(
    connection: Connection, staging: Table, target: Table, now: datetime
) -> int:
    """Insert rows of which none is stored already, and count them."""
    return connection.execute(
        _storing(staging, target),
        {"now": now},
        execution_options={"preserve_rowcount": True},
    ).rowcount


@cache
def _storing(staging: Table, target: Table) -> Insert:
    rows = select(staging, recorded_now())
    return insert(target).from_select([*staging.c.keys(), "recorded_at"], rows)


def recorded_now() -> BindParameter[datetime]:
    """Return the parameter ``now`` of statements that are built once."""
    return bindparam("now", type_=DateTime(timezone=True))
