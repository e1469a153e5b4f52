"""Events in the database: raw rows, and the outcomes per unit that add up from them.

Interaction i counts for experiment e in phase p when e has an exposure x in p with
0 <= i.occurred_at - x.exposed_at <= e's attribution window, and i names x (and no other
unit), or i names no exposure and has the unit of x. The phase is the epoch of a bandit
and 0 of an A/B test. Pairs (i, e, p) are only ever added, so the order in which events
arrive leaves no trace in the outcomes.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Double,
    FromClause,
    Interval,
    MetaData,
    Select,
    Subquery,
    Table,
    Text,
    and_,
    case,
    cast,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    true,
    tuple_,
    union,
)
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeEngine

from experiment_service.domain.event import MAX_AGE, Exposure, Interaction
from experiment_service.domain.experiment import ExperimentKind
from experiment_service.errors import InvalidRequest
from experiment_service.storage import schema
from experiment_service.storage.database import lock_for_transaction

log = logging.getLogger(__name__)

# Whoever adds rows or partitions holds it: an exposure and its interaction in two
# transactions at once would miss each other.
_LOCK = "events"

# Classes of SQLSTATE that no retry can cure: bad data, a broken rule, a limit.
_REFUSALS = ("22", "23", "54")

# How far back a month without a partition is looked for in the default partition.
_MONTHS_BACK = 24


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


_new_exposure = _staging("new_exposure", schema.exposure)
_new_interaction = _staging("new_interaction", schema.interaction)

_declaration = schema.experiment.c.declaration

#: How each experiment attributes.
_rule = select(
    schema.experiment.c.id.label("experiment_id"),
    func.make_interval(
        *[0] * 6,
        cast(_declaration["attribution_window"].astext, Double),
        type_=Interval,
    ).label("attribution_window"),
    (_declaration["kind"].astext == ExperimentKind.BANDIT.value).label("by_epoch"),
).cte("rule")


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
        _prepare_staging(connection)
        _copy(connection, _new_exposure, map(_exposure_row, _unique(exposures)))
        _copy(
            connection, _new_interaction, map(_interaction_row, _unique(interactions))
        )
        lock_for_transaction(connection, _LOCK)
        now = connection.execute(select(func.clock_timestamp())).scalar_one()
        counts = StoredCounts(
            exposures=_store_new(connection, _new_exposure, schema.exposure, now),
            interactions=_store_new(
                connection, _new_interaction, schema.interaction, now
            ),
            attributed=_add_outcomes(connection, _new_pairs()),
        )
        if counts.exposures:
            _add_unit_exposures(connection, _new_exposure, literal(now))
        return counts


@contextmanager
def _refusals_translated() -> Iterator[None]:
    """Tell events that the database refuses for good from a database in trouble."""
    try:
        yield
    except UnicodeEncodeError as error:
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
    """Have statements planned each time.

    A prepared one would keep the plan made when a partition was empty: to read all of
    it for each event, long after it has grown.
    """
    driver = _driver(connection)
    threshold = driver.prepare_threshold
    driver.prepare_threshold = None
    try:
        # Compiling these statements takes longer than running them.
        connection.execute(text("SET LOCAL jit = off"))
        yield
    finally:
        driver.prepare_threshold = threshold


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    driver = connection.connection.driver_connection
    if not isinstance(driver, psycopg.Connection):
        raise TypeError(f"the driver is {type(driver).__module__}; it must be psycopg")
    return driver


def _prepare_staging(connection: Connection) -> None:
    for table in (_new_exposure, _new_interaction):
        name = f"pg_temp.{table.name}"
        if connection.execute(select(func.to_regclass(name))).scalar_one() is None:
            table.create(connection, checkfirst=False)
        else:
            # Holds rows only when this transaction has stored events before.
            connection.execute(delete(table))


_Event = TypeVar("_Event", Exposure, Interaction)


def _unique(events: Sequence[_Event]) -> list[_Event]:
    """Keep the first copy of each id; in order, new rows go to one end of the index."""
    by_id = {event.id: event for event in reversed(events)}
    return [by_id[event_id] for event_id in sorted(by_id)]


def _copy(
    connection: Connection, table: Table, rows: Iterable[tuple[object, ...]]
) -> None:
    driver = _driver(connection)
    statement = f"COPY pg_temp.{table.name} ({', '.join(table.c.keys())}) FROM STDIN"
    try:
        with driver.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            for row in rows:
                copy.write_row(row)
    except psycopg.Error as error:
        if driver.closed:
            connection.invalidate(error)
        raise DBAPIError.instance(statement, None, error, psycopg.Error) from error


def _exposure_row(exposure: Exposure) -> tuple[object, ...]:
    return (
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
        _JSON.encode(dict(exposure.context)),
        exposure.exposed_at,
        exposure.segment,
    )


def _interaction_row(interaction: Interaction) -> tuple[object, ...]:
    return (
        interaction.id,
        interaction.exposure_id,
        interaction.unit_id,
        interaction.kind,
        interaction.item_id,
        interaction.position,
        interaction.value,
        interaction.occurred_at,
    )


_JSON = json.JSONEncoder(separators=(",", ":"))


def _array(texts: Sequence[str]) -> str:
    """Write an array literal; the driver would take three times as long."""
    quoted = (each.replace("\\", "\\\\").replace('"', '\\"') for each in texts)
    return "{" + ",".join(f'"{each}"' for each in quoted) + "}"


def _store_new(
    connection: Connection, staging: Table, target: Table, now: datetime
) -> int:
    """Insert what is new, leave only that in the staging table, and count it."""
    stored = (
        insert(target)
        .from_select([*staging.c.keys(), "recorded_at"], select(staging, literal(now)))
        .on_conflict_do_nothing()
        .returning(target.c.id)
        .cte("stored")
    )
    connection.execute(delete(staging).where(staging.c.id.not_in(select(stored.c.id))))
    return connection.execute(select(func.count()).select_from(staging)).scalar_one()


def _add_unit_exposures(
    connection: Connection,
    exposures: FromClause,
    recorded_at: ColumnElement[datetime],
    chosen: ColumnElement[bool] | None = None,
) -> None:
    target = schema.unit_exposure
    key = [exposures.c[column.name] for column in target.primary_key]
    totals = (
        select(
            *key,
            _of_first(exposures, exposures.c.propensity, Double),
            func.count().label("exposures"),
            func.count().filter(exposures.c.fallback).label("fallback_exposures"),
            _of_first(exposures, exposures.c.segment, Text),
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
    connection.execute(
        adding.on_conflict_do_update(
            constraint=target.primary_key,
            set_={
                "propensity": case((earlier, new.propensity), else_=had.propensity),
                "segment": case((earlier, new.segment), else_=had.segment),
                "exposures": had.exposures + new.exposures,
                "fallback_exposures": had.fallback_exposures + new.fallback_exposures,
                "first_at": func.least(had.first_at, new.first_at),
                "last_at": func.greatest(had.last_at, new.last_at),
                "recorded_at": func.least(had.recorded_at, new.recorded_at),
            },
        )
    )


def _order(columns: Any) -> tuple[ColumnElement[Any], ...]:  # noqa: ANN401 - of a table
    """Order the exposures of a unit: in an epoch a segment has one propensity."""
    at = columns.exposed_at if "exposed_at" in columns else columns.first_at
    return at, func.coalesce(columns.segment, "")


def _of_first(
    exposures: FromClause, column: ColumnElement[Any], kind: type[TypeEngine[Any]]
) -> ColumnElement[Any]:
    """Return what a column holds in the first exposure of a group."""
    ordered = aggregate_order_by(column, *_order(exposures.c))
    return func.array_agg(ordered, type_=ARRAY(kind))[1].label(column.name)


def _add_outcomes(connection: Connection, pairs: Sequence[Select[Any]]) -> int:
    """Add those pairs that are new, and what they say of their units; count them."""
    # UNION: an interaction of a unit counts once for however many of its exposures.
    pair = union(*pairs).cte("pair")
    pair_key = schema.attribution.primary_key.columns.keys()
    counted = (
        insert(schema.attribution)
        .from_select(pair_key, select(*(pair.c[name] for name in pair_key)))
        .on_conflict_do_nothing()
        .returning(*schema.attribution.c)
        .cte("counted")
    )
    same = and_(*(pair.c[name] == counted.c[name] for name in pair_key))
    target = schema.unit_outcome
    key = [pair.c[column.name] for column in target.primary_key]
    totals = (
        select(
            *key,
            func.count().label("count"),
            func.coalesce(func.sum(pair.c.value), 0).label("value_sum"),
            func.min(pair.c.occurred_at).label("first_at"),
        )
        .select_from(pair.join(counted, same))
        .group_by(*key)
    )
    adding = insert(target).from_select(totals.selected_columns.keys(), totals)
    had, new = target.c, adding.excluded
    outcome = adding.on_conflict_do_update(
        constraint=target.primary_key,
        set_={
            "count": had.count + new.count,
            "value_sum": had.value_sum + new.value_sum,
            "first_at": func.least(had.first_at, new.first_at),
        },
    ).cte("outcome")
    return connection.execute(
        select(func.count()).select_from(counted).add_cte(outcome)
    ).scalar_one()


def _names(exposure: FromClause, interaction: FromClause) -> ColumnElement[bool]:
    unit_id = interaction.c.unit_id
    return and_(
        interaction.c.exposure_id == exposure.c.id,
        or_(unit_id.is_(None), unit_id == exposure.c.unit_id),
    )


def _is_of_unit(exposure: FromClause, interaction: FromClause) -> ColumnElement[bool]:
    return and_(
        interaction.c.exposure_id.is_(None),
        interaction.c.unit_id == exposure.c.unit_id,
    )


def _pairs(
    exposure: FromClause, interaction: FromClause, joined: FromClause
) -> Select[Any]:
    """Pair the interactions of a join with the experiments that they count for."""
    return (
        select(
            interaction.c.id.label("interaction_id"),
            _rule.c.experiment_id,
            case((_rule.c.by_epoch, exposure.c.epoch), else_=0).label("phase"),
            exposure.c.unit_id,
            interaction.c.kind,
            func.coalesce(interaction.c.position, 0).label("position"),
            interaction.c.value,
            interaction.c.occurred_at,
        )
        .select_from(joined)
        .join(_rule, _rule.c.experiment_id == exposure.c.experiment_id)
        .where(
            interaction.c.occurred_at >= exposure.c.exposed_at,
            interaction.c.occurred_at
            <= exposure.c.exposed_at + _rule.c.attribution_window,
        )
    )


def _new_pairs() -> list[Select[Any]]:
    """Pairs in which the exposure, the interaction or both are new.

    OFFSET keeps the planner from turning look-ups in an index, fast whatever the
    statistics say, into a join that reads whole partitions.
    """
    exposures, interactions = _exposures_of_new(), _interactions_of_new()
    return [
        _pairs(known, _new_interaction, _new_interaction.join(known, true()))
        for known in exposures
    ] + [
        _pairs(_new_exposure, known, _new_exposure.join(known, belongs))
        for known, belongs in interactions
    ]


def _exposures_of_new() -> list[FromClause]:
    """Look up the exposures of each new interaction: those it names, those by unit."""
    exposure, new = schema.exposure, _new_interaction
    longest = select(func.max(_rule.c.attribution_window)).scalar_subquery()
    named = select(exposure).where(_names(exposure, new))
    of_unit = select(exposure).where(
        _is_of_unit(exposure, new),
        exposure.c.exposed_at.between(new.c.occurred_at - longest, new.c.occurred_at),
    )
    return [
        named.offset(0).lateral("named_exposure"),
        of_unit.offset(0).lateral("exposure_of_unit"),
    ]


def _interactions_of_new() -> list[tuple[Subquery, ColumnElement[bool]]]:
    """Look up interactions that came before their exposures, with how they belong.

    There are few, so one look-up for the whole batch is better than one per exposure.
    """
    interaction, new = schema.interaction, _new_exposure
    ids = func.array(select(new.c.id).scalar_subquery())
    units = func.array(select(new.c.unit_id).distinct().scalar_subquery())
    first_at = select(func.min(new.c.exposed_at)).scalar_subquery()
    naming = (
        select(interaction)
        .where(interaction.c.exposure_id == func.any(ids))
        .offset(0)
        .subquery("interaction_naming")
    )
    of_units = (
        select(interaction)
        .where(
            interaction.c.exposure_id.is_(None),
            interaction.c.unit_id == func.any(units),
            interaction.c.occurred_at >= first_at,
        )
        .offset(0)
        .subquery("interaction_of_unit")
    )
    return [(naming, _names(new, naming)), (of_units, _is_of_unit(new, of_units))]


def rebuild_outcomes(connection: Connection, experiment_id: int | None = None) -> None:
    """Compute outcomes again from the raw rows; they come out as they were.

    Writers wait meanwhile; their events stay in the journals. Readers see the old rows
    until the transaction ends.

    Parameters
    ----------
    experiment_id : int, optional
        Only those of one experiment; all when left out.
    """
    lock_for_transaction(connection, _LOCK)
    _allow_time(connection)

    def chosen(table: Table) -> ColumnElement[bool]:
        if experiment_id is None:
            return true()
        return table.c.experiment_id == experiment_id

    for table in (schema.unit_exposure, schema.attribution, schema.unit_outcome):
        connection.execute(delete(table).where(chosen(table)))
    exposure, interaction = schema.exposure, schema.interaction
    _add_unit_exposures(connection, exposure, exposure.c.recorded_at, chosen(exposure))
    _add_outcomes(
        connection,
        [
            _pairs(
                exposure,
                interaction,
                exposure.join(interaction, belongs(exposure, interaction)),
            ).where(chosen(exposure))
            for belongs in (_names, _is_of_unit)
        ],
    )


def _allow_time(connection: Connection) -> None:
    connection.execute(text("SET LOCAL statement_timeout = 0"))


def ensure_partitions(
    connection: Connection, *, now: datetime, months_ahead: int = 3
) -> list[str]:
    """Make the monthly partitions that are missing; return their names.

    Months reach from the oldest event that is accepted to `months_ahead`. A month whose
    partition was forgotten is made too, if the default partition holds rows of it; they
    move in the same transaction.
    """
    lock_for_transaction(connection, _LOCK)
    _allow_time(connection)
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


def _first_id(instant: datetime) -> UUID:
    """Return the smallest UUIDv7 of an instant."""
    return UUID(int=int(instant.timestamp() * 1000) << 80)


def _default_of(table: Table) -> Table:
    return table.to_metadata(MetaData(), name=f"{table.name}_default")


def _within(table: Table, start: datetime, end: datetime) -> ColumnElement[bool]:
    return and_(table.c.id >= _first_id(start), table.c.id < _first_id(end))


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
            f"FOR VALUES FROM ('{_first_id(start)}') TO ('{_first_id(end)}')"
        )
    )
    log.info("made partition name=%s moved=%d", name, rows)
