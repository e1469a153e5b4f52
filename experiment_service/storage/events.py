"""Events in the database: raw rows, and with them all that adds up from them.

`staging` brings the rows, `outcomes` knows what they count for, `units` makes the rows
that reports read; here is the order of these in one transaction, and how all of it is
made again from the raw rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import psycopg
from pydantic_core import PydanticSerializationError
from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    FromClause,
    Table,
    Text,
    case,
    delete,
    func,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import (
    ARRAY,
    JSONB,
    Insert,
    aggregate_order_by,
    insert,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeEngine

from experiment_service.domain.event import Exposure, Interaction
from experiment_service.errors import InvalidRequest
from experiment_service.storage import schema
from experiment_service.storage.database import (
    EVENTS_LOCK,
    allow_time,
    lock_for_transaction,
)
from experiment_service.storage.erasure import drop_erased
from experiment_service.storage.outcomes import (
    actions_of,
    add_new_outcomes,
    adding_outcomes,
    is_of_unit,
    names,
    pairs_of,
    touch_units,
)
from experiment_service.storage.partitions import check_whole, refuse_retired
from experiment_service.storage.staging import (
    copy_rows,
    driver_of,
    drop_known,
    exposure_row,
    interaction_row,
    new_exposure,
    new_interaction,
    prepare_staging,
    recorded_now,
    store_new,
    unique,
)
from experiment_service.storage.units import summarise_units, touched_unit

# Classes of SQLSTATE that no retry can cure: bad data, a broken rule, a limit.
_REFUSALS = ("22", "23", "54")

# Until the transaction ends. To compile its statements takes longer than to run them.
_PLANNING = select(
    func.set_config("jit", "off", true()),
    func.set_config("plan_cache_mode", "force_custom_plan", true()),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCounts:
    """What a batch added; events that were there already are not in it.

    Attributes
    ----------
    exposures, interactions : int
        New rows.
    attributed : int
        New pairs of an interaction and a phase of an experiment that it counts for.
    """

    exposures: int
    interactions: int
    attributed: int


def store_events(
    connection: Connection,
    exposures: Sequence[Exposure],
    interactions: Sequence[Interaction],
) -> StoredCounts:
    """Store events and what follows from them; ids that are known change nothing.

    Writers wait for each other until their transactions end.

    Raises
    ------
    InvalidRequest
        When the database refuses an event for good; roll the transaction back.
    """
    with _refusals_translated(), _fresh_plans(connection):
        prepare_staging(connection)
        shown, done = unique(exposures), unique(interactions)
        copy_rows(connection, new_exposure, exposure_row, shown)
        copy_rows(connection, new_interaction, interaction_row, done)
        lock_events(connection)
        erased = drop_erased(connection, new_exposure, new_interaction)
        refuse_retired(connection, new_exposure, new_interaction)
        now = connection.execute(select(func.clock_timestamp())).scalar_one()
        drop_known(connection, new_exposure, schema.exposure, shown)
        drop_known(connection, new_interaction, schema.interaction, done)
        new_exposures = (
            store_new(connection, new_exposure, schema.exposure, now) if shown else 0
        )
        if new_exposures:
            connection.execute(_adding_new_unit_exposures(), {"now": now})
        # Interactions that the table holds already are of earlier batches.
        attributed = add_new_outcomes(connection, bool(new_exposures), done)
        counts = StoredCounts(
            exposures=new_exposures,
            interactions=(
                store_new(connection, new_interaction, schema.interaction, now)
                if done
                else 0
            ),
            attributed=attributed,
        )
        received = len(exposures) + len(interactions) - erased
        _add_intake(
            connection, now, received, received - counts.exposures - counts.interactions
        )
        summarise_units(connection, touched_unit)
        return counts


def lock_events(connection: Connection) -> None:
    """Keep others from adding events or partitions until the transaction ends.

    An exposure and its interaction in two transactions at once would miss each other.
    """
    lock_for_transaction(connection, EVENTS_LOCK)


def _add_intake(
    connection: Connection, now: datetime, received: int, known: int
) -> None:
    values = {"day": now.date(), "received": received, "known": known}
    connection.execute(_adding_intake(), values)


@cache
def _adding_intake() -> Insert:
    target = schema.intake
    adding = insert(target)
    return adding.on_conflict_do_update(
        constraint=target.primary_key,
        set_={
            name: target.c[name] + adding.excluded[name]
            for name in ("received", "known")
        },
    )


@contextmanager
def _refusals_translated() -> Iterator[None]:
    """Tell events that the database refuses for good from a database in trouble."""
    try:
        yield
    except (UnicodeEncodeError, PydanticSerializationError) as error:
        raise InvalidRequest(f"an event has text that is not UTF-8: {error}") from error
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None) or ""
        if isinstance(error.orig, psycopg.DataError) or state.startswith(_REFUSALS):
            # The lines after the first may show a unit.
            reason = str(error.orig).partition("\n")[0]
            raise InvalidRequest(f"the database refuses an event: {reason}") from error
        raise


@contextmanager
def _fresh_plans(connection: Connection) -> Iterator[None]:
    """Have statements prepared at once, and still planned each time.

    To parse them takes as long as to plan them. A plan that is kept would be one made
    when a partition was empty: to read all of it for each event, long after it has grown.
    PostgreSQL keeps that of a statement without parameters whatever the setting says.
    """
    driver = driver_of(connection)
    threshold = driver.prepare_threshold
    driver.prepare_threshold = 0
    try:
        connection.execute(_PLANNING)
        yield
    finally:
        driver.prepare_threshold = threshold


@cache
def _adding_new_unit_exposures() -> Insert:
    return _adding_unit_exposures(new_exposure, recorded_now())


def _adding_unit_exposures(
    exposures: FromClause,
    recorded_at: ColumnElement[datetime],
    chosen: ColumnElement[bool] | None = None,
) -> Insert:
    target = schema.unit_exposure
    key = [exposures.c[column.name] for column in target.primary_key]
    totals = (
        select(
            *key,
            _of_first(exposures, exposures.c.propensity, Double),
            func.count().label("exposures"),
            func.count().filter(exposures.c.fallback).label("fallback_exposures"),
            _of_first(exposures, exposures.c.segment, Text),
            _of_first(exposures, exposures.c.context, JSONB),
            func.min(exposures.c.exposed_at).label("first_at"),
            func.max(exposures.c.exposed_at).label("last_at"),
            func.min(recorded_at).label("recorded_at"),
        )
        .where(true() if chosen is None else chosen)
        .group_by(*key)
    )
    adding = insert(target).from_select(totals.selected_columns.keys(), totals)
    had, new = target.c, adding.excluded
    earlier = tuple_(*_order(new)) < tuple_(*_order(had))
    stored = (
        adding.on_conflict_do_update(
            constraint=target.primary_key,
            set_={
                "propensity": case((earlier, new.propensity), else_=had.propensity),
                "segment": case((earlier, new.segment), else_=had.segment),
                "context": case((earlier, new.context), else_=had.context),
                "exposures": had.exposures + new.exposures,
                "fallback_exposures": had.fallback_exposures + new.fallback_exposures,
                "first_at": func.least(had.first_at, new.first_at),
                "last_at": func.greatest(had.last_at, new.last_at),
                "recorded_at": func.least(had.recorded_at, new.recorded_at),
            },
        )
        .returning(had.experiment_id, had.unit_id, had.epoch)
        .cte("stored")
    )
    return touch_units(select(stored))


def _order(columns: Any) -> tuple[ColumnElement[Any], ...]:  # noqa: ANN401 - of a table
    """Order the exposures of a unit: in an epoch a segment has one propensity."""
    at = columns.exposed_at if "exposed_at" in columns else columns.first_at
    return at, func.coalesce(columns.segment, ""), columns.context


def _of_first(
    exposures: FromClause, column: ColumnElement[Any], kind: type[TypeEngine[Any]]
) -> ColumnElement[Any]:
    """Return what a column holds in the first exposure of a group."""
    ordered = aggregate_order_by(column, *_order(exposures.c))
    return func.array_agg(ordered, type_=ARRAY(kind))[1].label(column.name)


def rebuild_outcomes(connection: Connection, experiment_id: int | None = None) -> None:
    """Compute outcomes again from the raw rows; they come out as they were.

    Writers wait meanwhile; their events stay in the journals. Readers see the old rows
    until the transaction ends.

    Parameters
    ----------
    experiment_id : int, optional
        Only those of one experiment; all when left out.

    Raises
    ------
    InvalidState
        When raw rows that they were counted from have been retired.
    """
    lock_events(connection)
    check_whole(connection, experiment_id)
    allow_time(connection)
    prepare_staging(connection)

    def chosen(table: Table) -> ColumnElement[bool]:
        if experiment_id is None:
            return true()
        return table.c.experiment_id == experiment_id

    for table in (
        schema.unit_exposure,
        schema.attribution,
        schema.unit_outcome,
        schema.unit_of_analysis,
    ):
        connection.execute(delete(table).where(chosen(table)))
    exposure, interaction = schema.exposure, schema.interaction
    connection.execute(
        _adding_unit_exposures(exposure, exposure.c.recorded_at, chosen(exposure))
    )
    named, of_units = (
        pairs_of(
            exposure,
            interaction,
            exposure.join(interaction, belongs(exposure, interaction)),
        ).where(chosen(exposure))
        for belongs in (names, is_of_unit)
    )
    actions = []
    if experiment_id is None:
        connection.execute(delete(schema.unit_history))
        unit_id = func.coalesce(interaction.c.unit_id, exposure.c.unit_id)
        joined = interaction.outerjoin(
            exposure, exposure.c.id == interaction.c.exposure_id
        )
        actions.append(actions_of(interaction, unit_id, joined))
    connection.execute(adding_outcomes([named], [of_units], actions))
    summarise_units(connection, touched_unit)
