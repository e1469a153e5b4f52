"""Events in the database: raw rows, and the outcomes per unit that add up from them.

Interaction i counts for experiment e in phase p when e has an exposure x in p with
0 <= i.occurred_at - x.exposed_at <= e's attribution window, and i names x (and no other
unit), or i names no exposure and has the unit of x. The phase is the epoch of a bandit
and 0 of an A/B test. Pairs (i, e, p) are only ever added, so the order in which events
arrive leaves no trace in the outcomes.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

import psycopg
from pydantic_core import PydanticSerializationError, to_json
from sqlalchemy import (
    CTE,
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    Delete,
    Double,
    FromClause,
    Interval,
    MetaData,
    Select,
    Subquery,
    Table,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    or_,
    select,
    text,
    true,
    tuple_,
    union_all,
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
from experiment_service.domain.experiment import ExperimentKind
from experiment_service.errors import InvalidRequest
from experiment_service.storage import schema
from experiment_service.storage.database import (
    EVENTS_LOCK,
    allow_time,
    lock_for_transaction,
)
from experiment_service.storage.erasure import drop_erased
from experiment_service.storage.partitions import check_whole, refuse_retired
from experiment_service.storage.units import (
    summarise_units,
    touch_later_units,
    touched_unit,
    utc_day,
)

# Classes of SQLSTATE that no retry can cure: bad data, a broken rule, a limit.
_REFUSALS = ("22", "23", "54")


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

_STAGING = (_new_exposure, _new_interaction, touched_unit)
_FIND_STAGING = select(*(func.to_regclass(f"pg_temp.{each.name}") for each in _STAGING))

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
    _declaration["placement"].astext.label("placement"),
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
        shown, done = _unique(exposures), _unique(interactions)
        _copy(connection, _new_exposure, map(_exposure_row, shown))
        _copy(connection, _new_interaction, map(_interaction_row, done))
        lock_events(connection)
        erased = drop_erased(connection, _new_exposure, _new_interaction)
        refuse_retired(connection, _new_exposure, _new_interaction)
        now = connection.execute(select(func.clock_timestamp())).scalar_one()
        _drop_known(connection, _new_exposure, schema.exposure, shown)
        _drop_known(connection, _new_interaction, schema.interaction, done)
        new_exposures = _store_new(connection, _new_exposure, schema.exposure, now)
        if new_exposures:
            connection.execute(_adding_new_unit_exposures(), {"now": now})
        # Interactions that the table holds already are of earlier batches.
        attributed = _add_new_outcomes(connection, bool(new_exposures), done)
        counts = StoredCounts(
            exposures=new_exposures,
            interactions=_store_new(
                connection, _new_interaction, schema.interaction, now
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
    target = schema.intake
    adding = insert(target).values(day=now.date(), received=received, known=known)
    connection.execute(
        adding.on_conflict_do_update(
            constraint=target.primary_key,
            set_={
                "received": target.c.received + adding.excluded.received,
                "known": target.c.known + adding.excluded.known,
            },
        )
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
    found = connection.execute(_FIND_STAGING).one()
    for table, name in zip(_STAGING, found, strict=True):
        if name is None:
            table.create(connection, checkfirst=False)
        else:
            # Holds rows only when this transaction has stored events before.
            connection.execute(delete(table))


_Event = TypeVar("_Event", Exposure, Interaction)


def _unique(events: Sequence[_Event]) -> list[_Event]:
    """Keep the first copy of each id; in order, new rows go to one end of the index."""
    # By the number: UUIDs are compared in Python, one by one.
    by_id = {event.id.int: event for event in reversed(events)}
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
        exposure.id.hex,
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
        exposure.exposed_at.isoformat(),
        exposure.segment,
    )


def _interaction_row(interaction: Interaction) -> tuple[object, ...]:
    shown = interaction.exposure_id
    return (
        interaction.id.hex,
        None if shown is None else shown.hex,
        interaction.unit_id,
        interaction.kind,
        interaction.item_id,
        interaction.position,
        interaction.value,
        interaction.occurred_at.isoformat(),
        interaction.category,
        interaction.placement,
    )


def _array(texts: Sequence[str]) -> str:
    """Write an array literal; the driver would take ten times as long."""
    joined = '","'.join(texts)
    if "\\" in joined or joined.count('"') > 2 * len(texts) - 2:
        quoted = (each.replace("\\", "\\\\").replace('"', '\\"') for each in texts)
        joined = '","'.join(quoted)
    return f'{{"{joined}"}}' if texts else "{}"


def _drop_known(
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
    known = select(target.c.id).where(target.c.id == func.any(ids), _within(target))
    return delete(staging).where(staging.c.id.in_(known))


def _within(target: Table) -> ColumnElement[bool]:
    """Whether an id is within bounds; the planner leaves out partitions beyond."""
    return target.c.id.between(bindparam("first"), bindparam("last"))


def _store_new(
    connection: Connection, staging: Table, target: Table, now: datetime
) -> int:
    return connection.execute(
        _storing(staging, target),
        {"now": now},
        execution_options={"preserve_rowcount": True},
    ).rowcount


@cache
def _storing(staging: Table, target: Table) -> Insert:
    rows = select(staging, _now())
    return insert(target).from_select([*staging.c.keys(), "recorded_at"], rows)


def _now() -> BindParameter[datetime]:
    return bindparam("now", type_=DateTime(timezone=True))


@cache
def _adding_new_unit_exposures() -> Insert:
    return _adding_unit_exposures(_new_exposure, _now())


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
    return _touching(select(stored))


def _touching(keys: Select[Any]) -> Insert:
    """Remember units of analysis that are to be summarised."""
    return insert(touched_unit).from_select(touched_unit.c.keys(), keys)


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


def _adding_outcomes(
    named: Sequence[Select[Any]],
    of_units: Sequence[Select[Any]],
    actions: Sequence[Select[Any]],
) -> Select[int]:
    """Return a statement that adds what pairs say of their units, and counts new pairs.

    Parameters
    ----------
    named, of_units : sequence of Select
        Pairs as of `_pairs`, at least one select. Those whose interaction names its
        exposure are all new: each comes up once, with the later of the two. Those of an
        interaction by its unit alone may be known already, by another exposure.
    actions : sequence of Select
        Interactions whose unit has become known, each one once; they are added to what
        their units did.
    """
    pairs = list(named)
    if of_units:
        # Distinct: one counts once for however many exposures of its unit.
        found = union_all(*of_units).subquery("of_unit")
        pairs.append(_counted_first(select(found).distinct().cte("unit_pair")))
    pair = union_all(*pairs).cte("pair")
    target = schema.unit_outcome
    key = [pair.c[column.name] for column in target.primary_key]
    totals = (
        select(
            *key,
            func.count().label("count"),
            func.coalesce(func.sum(pair.c.value), 0).label("value_sum"),
            func.min(pair.c.occurred_at).label("first_at"),
        )
        .group_by(*key)
        .cte("outcome")
    )
    adding = insert(target).from_select(totals.c.keys(), select(totals))
    had, new = target.c, adding.excluded
    added = adding.on_conflict_do_update(
        constraint=target.primary_key,
        set_={
            "count": had.count + new.count,
            "value_sum": had.value_sum + new.value_sum,
            "first_at": func.least(had.first_at, new.first_at),
        },
    )
    units = (totals.c[column.name] for column in touched_unit.c)
    statement = select(func.coalesce(func.sum(totals.c.count), 0)).add_cte(
        added.cte("added"), _touching(select(*units).distinct()).cte("touching")
    )
    if not actions:
        return statement
    return statement.add_cte(*_adding_history(union_all(*actions).cte("action")))


def _counted_first(of_units: FromClause) -> Select[Any]:
    """Remember pairs, and return those that were not counted before."""
    key = schema.attribution.primary_key.columns.keys()
    counted = (
        insert(schema.attribution)
        .from_select(key, select(*(of_units.c[name] for name in key)))
        .on_conflict_do_nothing()
        .returning(*schema.attribution.c)
        .cte("counted")
    )
    same = and_(*(of_units.c[name] == counted.c[name] for name in key))
    return select(*of_units.c).select_from(of_units.join(counted, same))


def _adding_history(actions: FromClause) -> tuple[CTE, CTE]:
    target = schema.unit_history
    key = [actions.c[column.name] for column in target.primary_key]
    totals = (
        select(
            *key,
            func.count().label("count"),
            func.coalesce(func.sum(actions.c.value), 0).label("value_sum"),
        )
        .group_by(*key)
        .cte("history")
    )
    adding = insert(target).from_select(totals.c.keys(), select(totals))
    had, new = target.c, adding.excluded
    added = adding.on_conflict_do_update(
        constraint=target.primary_key,
        set_={
            "count": had.count + new.count,
            "value_sum": had.value_sum + new.value_sum,
        },
    )
    touching = _touching(touch_later_units(totals))
    return added.cte("adding_history"), touching.cte("touching_later")


def _actions(
    interaction: FromClause, unit_id: ColumnElement[str], joined: FromClause
) -> Select[Any]:
    """Return what interactions say of their units, where those are known."""
    return (
        select(
            interaction.c.id,
            unit_id.label("unit_id"),
            utc_day(interaction.c.occurred_at).label("day"),
            interaction.c.kind,
            interaction.c.value,
        )
        .select_from(joined)
        .where(unit_id.is_not(None))
    )


def names(exposure: FromClause, interaction: FromClause) -> ColumnElement[bool]:
    """Whether an interaction names an exposure, and no other unit than its own."""
    unit_id = interaction.c.unit_id
    return and_(
        interaction.c.exposure_id == exposure.c.id,
        or_(unit_id.is_(None), unit_id == exposure.c.unit_id),
    )


def is_of_unit(exposure: FromClause, interaction: FromClause) -> ColumnElement[bool]:
    """Whether an interaction names no exposure, and the unit of this one."""
    return and_(
        interaction.c.exposure_id.is_(None),
        interaction.c.unit_id == exposure.c.unit_id,
    )


def pairs(
    exposure: FromClause, interaction: FromClause, joined: FromClause
) -> Select[Any]:
    """Pair the interactions of a join with the experiments that they count for.

    One that names its exposure happened where that was shown, unless it says otherwise.
    """
    shown_at = case((interaction.c.exposure_id.is_not(None), _rule.c.placement))
    return (
        select(
            interaction.c.id.label("interaction_id"),
            _rule.c.experiment_id,
            case((_rule.c.by_epoch, exposure.c.epoch), else_=0).label("phase"),
            exposure.c.unit_id,
            interaction.c.kind,
            func.coalesce(interaction.c.position, 0).label("position"),
            func.coalesce(interaction.c.category, "").label("category"),
            func.coalesce(interaction.c.placement, shown_at, "").label("placement"),
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


def _add_new_outcomes(
    connection: Connection, with_exposures: bool, interactions: Sequence[Interaction]
) -> int:
    """Add what follows from events of which one at least is new; count new pairs.

    Parameters
    ----------
    with_exposures : bool
        Whether there are new exposures; the table holds them.
    interactions : sequence of Interaction
        New and known; the table holds none of the new.
    """
    named = [each.exposure_id for each in interactions if each.exposure_id is not None]
    of_unit = len(named) < len(interactions)
    if not (with_exposures or interactions):
        return 0
    statement = _adding_new_outcomes(with_exposures, bool(named), of_unit)
    bounds = {"first": min(named), "last": max(named)} if named else {}
    return int(connection.execute(statement, bounds).scalar_one())


@cache
def _adding_new_outcomes(
    with_exposures: bool, with_named: bool, with_alone: bool
) -> Select[int]:
    """Return a statement that looks for nothing that a batch does not hold.

    OFFSET keeps the planner from turning look-ups in an index, fast whatever the
    statistics say, into a join that reads whole partitions.
    """
    new, shown = _new_interaction, _new_exposure
    named: list[Select[Any]] = []
    of_units: list[Select[Any]] = []
    actions: list[Select[Any]] = []
    if with_named:
        found = _exposures_named_by_new()
        named.append(pairs(found, new, new.join(found, names(found, new))))
        unit_id = func.coalesce(new.c.unit_id, found.c.unit_id)
        joined = new.outerjoin(found, found.c.id == new.c.exposure_id)
        actions.append(_actions(new, unit_id, joined))
    elif with_alone:
        actions.append(_actions(new, new.c.unit_id, new))
    if with_alone:
        alone = select(new).where(new.c.exposure_id.is_(None)).subquery("alone")
        of_unit = _exposures_of_units_of(alone)
        of_units.append(pairs(of_unit, alone, alone.join(of_unit, true())))
    if with_exposures:
        naming, waiting = _known_that_name_new(), _known_of_units_of_new()
        named.append(pairs(shown, naming, shown.join(naming, names(shown, naming))))
        joined = shown.join(waiting, is_of_unit(shown, waiting))
        of_units.append(pairs(shown, waiting, joined))
        joined = naming.join(shown, shown.c.id == naming.c.exposure_id)
        action = _actions(naming, shown.c.unit_id, joined)
        actions.append(action.where(naming.c.unit_id.is_(None)))
    return _adding_outcomes(named, of_units, actions)


def _exposures_named_by_new() -> CTE:
    """Look up all at once, in the partitions between bounds that a batch gives."""
    exposure, new = schema.exposure, _new_interaction
    ids = func.array(select(new.c.exposure_id).scalar_subquery())
    return (
        select(exposure)
        .where(
            exposure.c.id == func.any(ids),
            _within(exposure),
        )
        .offset(0)
        .cte("named")
    )


def _exposures_of_units_of(new: FromClause) -> FromClause:
    exposure = schema.exposure
    longest = select(func.max(_rule.c.attribution_window)).scalar_subquery()
    of_unit = select(exposure).where(
        is_of_unit(exposure, new),
        exposure.c.exposed_at.between(new.c.occurred_at - longest, new.c.occurred_at),
    )
    return of_unit.offset(0).lateral("exposure_of_unit")


def _known_that_name_new() -> CTE:
    """Look up interactions of earlier batches that name new exposures.

    There are few, so one look-up for the whole batch is better than one per exposure.
    """
    interaction, new = schema.interaction, _new_exposure
    ids = func.array(select(new.c.id).scalar_subquery())
    return (
        select(interaction)
        .where(interaction.c.exposure_id == func.any(ids))
        .cte("naming")
    )


def _known_of_units_of_new() -> Subquery:
    """Look up interactions by the unit alone that came before their exposures."""
    interaction, new = schema.interaction, _new_exposure
    units = func.array(select(new.c.unit_id).distinct().scalar_subquery())
    first_at = select(func.min(new.c.exposed_at)).scalar_subquery()
    return (
        select(interaction)
        .where(
            interaction.c.exposure_id.is_(None),
            interaction.c.unit_id == func.any(units),
            interaction.c.occurred_at >= first_at,
        )
        .offset(0)
        .subquery("waiting")
    )


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
    _prepare_staging(connection)

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
        pairs(
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
        actions.append(_actions(interaction, unit_id, joined))
    connection.execute(_adding_outcomes([named], [of_units], actions))
    summarise_units(connection, touched_unit)
