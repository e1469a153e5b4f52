"""What events count for: statements that add them to the outcomes of units.

Interaction i counts for experiment e in phase p when e has an exposure x in p with
0 <= i.occurred_at - x.exposed_at <= e's attribution window, and i names x (and no other
unit), or i names no exposure and has the unit of x. The phase is the epoch of a bandit
and 0 of an A/B test. Pairs (i, e, p) are only ever added, so the order in which events
arrive leaves no trace in the outcomes.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Double,
    FromClause,
    Interval,
    Select,
    Subquery,
    Table,
    and_,
    case,
    cast,
    func,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import Insert, insert

from experiment_service.domain.event import Interaction
from experiment_service.domain.experiment import ExperimentKind
from experiment_service.storage import schema
from experiment_service.storage.staging import new_exposure, new_interaction, within
from experiment_service.storage.units import touch_later_units, touched_unit, utc_day

_declaration = schema.experiment.c.declaration

#: How each experiment attributes; read out of its declaration once, not per event.
_rule = (
    select(
        schema.experiment.c.id.label("experiment_id"),
        func.make_interval(
            *[0] * 6,
            cast(_declaration["attribution_window"].astext, Double),
            type_=Interval,
        ).label("attribution_window"),
        (_declaration["kind"].astext == ExperimentKind.BANDIT.value).label("by_epoch"),
        _declaration["placement"].astext.label("placement"),
    )
    .cte("rule")
    .prefix_with("MATERIALIZED")
)


def touch_units(keys: Select[Any]) -> Insert:
    """Remember units of analysis that are to be summarised."""
    return insert(touched_unit).from_select(touched_unit.c.keys(), keys)


def adding_outcomes(
    named: Sequence[Select[Any]],
    of_units: Sequence[Select[Any]],
    actions: Sequence[Select[Any]],
) -> Select[int]:
    """Return a statement that adds what pairs say of their units, and counts new pairs.

    Parameters
    ----------
    named, of_units : sequence of Select
        Pairs as of `pairs_of`, at least one select. Those whose interaction names its
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
    totals, adding = _adding_totals(
        schema.unit_outcome, pair, func.min(pair.c.occurred_at).label("first_at")
    )
    units = (totals.c[column.name] for column in touched_unit.c)
    statement = select(func.coalesce(func.sum(totals.c.count), 0)).add_cte(
        adding.cte("adding"), touch_units(select(*units).distinct()).cte("touching")
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


def _adding_totals(
    target: Table, rows: FromClause, *first_at: ColumnElement[Any]
) -> tuple[CTE, Insert]:
    """Count rows by the key of a table; return the counts, and what adds them to it."""
    key = [rows.c[column.name] for column in target.primary_key]
    totals = (
        select(
            *key,
            func.count().label("count"),
            func.coalesce(func.sum(rows.c.value), 0).label("value_sum"),
            *first_at,
        )
        .group_by(*key)
        .cte(f"total_{target.name}")
    )
    adding = insert(target).from_select(totals.c.keys(), select(totals))
    had, new = target.c, adding.excluded
    changed = {name: had[name] + new[name] for name in ("count", "value_sum")}
    if first_at:
        changed["first_at"] = func.least(had.first_at, new.first_at)
    return totals, adding.on_conflict_do_update(
        constraint=target.primary_key, set_=changed
    )


def _adding_history(actions: FromClause) -> tuple[CTE, CTE]:
    totals, adding = _adding_totals(schema.unit_history, actions)
    touching = touch_units(touch_later_units(totals))
    return adding.cte("adding_history"), touching.cte("touching_later")


def actions_of(
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
    """Whether an interaction names no exposure, and has the unit of one."""
    return and_(
        interaction.c.exposure_id.is_(None),
        interaction.c.unit_id == exposure.c.unit_id,
    )


def pairs_of(
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


def add_new_outcomes(
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
    # Hardly ever: to plan for what is not there takes longer than to look for it.
    awaited = with_exposures and bool(connection.scalar(_counting_known_of_new()))
    if not (awaited or interactions):
        return 0
    statement = _adding_new_outcomes(awaited, bool(named), of_unit)
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
    new, shown = new_interaction, new_exposure
    named: list[Select[Any]] = []
    of_units: list[Select[Any]] = []
    actions: list[Select[Any]] = []
    if with_named:
        found = _exposures_named_by_new()
        named.append(pairs_of(found, new, new.join(found, names(found, new))))
        unit_id = func.coalesce(new.c.unit_id, found.c.unit_id)
        joined = new.outerjoin(found, found.c.id == new.c.exposure_id)
        actions.append(actions_of(new, unit_id, joined))
    elif with_alone:
        actions.append(actions_of(new, new.c.unit_id, new))
    if with_alone:
        alone = select(new).where(new.c.exposure_id.is_(None)).subquery("alone")
        of_unit = _exposures_of_units_of(alone)
        of_units.append(pairs_of(of_unit, alone, alone.join(of_unit, true())))
    if with_exposures:
        naming, waiting = _known_that_name_new(), _known_of_units_of_new()
        named.append(pairs_of(shown, naming, shown.join(naming, names(shown, naming))))
        joined = shown.join(waiting, is_of_unit(shown, waiting))
        of_units.append(pairs_of(shown, waiting, joined))
        joined = naming.join(shown, shown.c.id == naming.c.exposure_id)
        action = actions_of(naming, shown.c.unit_id, joined)
        actions.append(action.where(naming.c.unit_id.is_(None)))
    return adding_outcomes(named, of_units, actions)


@cache
def _counting_known_of_new() -> Select[int]:
    """Count interactions of earlier batches that new exposures may make count."""
    naming, waiting = (
        select(func.count()).select_from(found).scalar_subquery()
        for found in (_known_that_name_new(), _known_of_units_of_new())
    )
    return select(naming + waiting)


def _exposures_named_by_new() -> CTE:
    """Look up all at once, in the partitions between bounds that a batch gives."""
    exposure, new = schema.exposure, new_interaction
    ids = func.array(select(new.c.exposure_id).scalar_subquery())
    return (
        select(exposure)
        .where(
            exposure.c.id == func.any(ids),
            within(exposure),
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
    interaction, new = schema.interaction, new_exposure
    ids = func.array(select(new.c.id).scalar_subquery())
    return (
        select(interaction)
        .where(interaction.c.exposure_id == func.any(ids))
        .cte("naming")
    )


def _known_of_units_of_new() -> Subquery:
    """Look up interactions by the unit alone that came before their exposures."""
    interaction, new = schema.interaction, new_exposure
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
