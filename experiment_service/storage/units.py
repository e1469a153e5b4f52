"""A row per unit of analysis, with all that a report reads of it.

Made anew from `unit_exposure`, `unit_outcome` and `unit_history` in the transaction that
changes them, so that it always follows from them; a report then is one pass over rows
that need no grouping.
"""

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Date,
    Double,
    FromClause,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    and_,
    case,
    cast,
    func,
    not_,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import Insert, insert

from experiment_service.domain.experiment import AssignmentMode, ExperimentKind
from experiment_service.storage import schema

#: Whole days before the day of a unit's first exposure that tell what it did before.
DAYS_BEFORE = 28

_declaration = schema.experiment.c.declaration

#: Keys of rows to be made anew: phase is an epoch of a bandit and 0 of an A/B test.
touched_unit = Table(
    "touched_unit",
    MetaData(),
    Column("experiment_id", Integer, nullable=False),
    Column("unit_id", Text, nullable=False),
    Column("phase", Integer, nullable=False),
    prefixes=["TEMPORARY"],
    postgresql_on_commit="DELETE ROWS",
)


def summarise_units(connection: Connection, touched: FromClause) -> None:
    """Make the rows of units of analysis anew.

    Parameters
    ----------
    touched : FromClause
        Columns as `touched_unit`; a key may come more than once.
    """
    connection.execute(_summarising(touched))


@lru_cache(maxsize=1)
def _summarising(touched: FromClause) -> Insert:
    target = schema.unit_of_analysis
    key = _keys(touched)
    first = _first_exposure(key)
    seen = _exposures(key, first)
    done = _outcomes(key, first)
    before = _before(key, seen)
    # In the order of the key, so that rows made at once lie side by side.
    row = (
        select(
            key.c.experiment_id,
            key.c.unit_id,
            key.c.phase,
            first.c.variant,
            first.c.epoch,
            first.c.segment,
            first.c.propensity,
            first.c.context,
            *(each for part in (seen, done, before) for each in part.c),
        )
        .select_from(key.join(first, true()).join(seen, true()))
        .join(done, true())
        .join(before, true())
        .order_by(key.c.experiment_id, key.c.unit_id, key.c.phase)
    )
    making = insert(target).from_select(row.selected_columns.keys(), row)
    changed = {
        column.name: making.excluded[column.name]
        for column in target.c
        if not column.primary_key
    }
    return making.on_conflict_do_update(constraint=target.primary_key, set_=changed)


def touch_later_units(history: FromClause) -> Select[Any]:
    """Return keys of units of analysis whose time before may have changed.

    Parameters
    ----------
    history : FromClause
        Columns unit_id and day of `unit_history`.
    """
    unit = schema.unit_of_analysis
    first_day = utc_day(unit.c.first_at)
    days = (
        select(
            history.c.unit_id,
            func.min(history.c.day).label("earliest"),
            func.max(history.c.day).label("latest"),
        )
        .group_by(history.c.unit_id)
        .subquery("days")
    )
    # OFFSET keeps the look-up in an index from becoming a join that reads all units.
    later = (
        select(unit.c.experiment_id, unit.c.unit_id, unit.c.phase)
        .where(
            unit.c.unit_id == days.c.unit_id,
            first_day > days.c.earliest,
            first_day <= days.c.latest + DAYS_BEFORE,
        )
        .offset(0)
        .lateral("later")
    )
    return select(later).select_from(days.join(later, true()))


def utc_day(instant: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the day of an instant in UTC, as `unit_history` keeps it."""
    return cast(func.timezone("UTC", instant), Date)


def _keys(touched: FromClause) -> FromClause:
    """Give each key the phase of its row, and how the experiment draws."""
    by_epoch = _declaration["kind"].astext == ExperimentKind.BANDIT.value
    mode = func.coalesce(_declaration["mode"].astext, AssignmentMode.REDRAW.value)
    redraws = and_(by_epoch, mode == AssignmentMode.REDRAW.value)
    experiment = schema.experiment
    return (
        select(
            touched.c.experiment_id,
            touched.c.unit_id,
            case((redraws, touched.c.phase), else_=0).label("phase"),
            by_epoch.label("by_epoch"),
            _declaration["placement"].astext.label("placement"),
            redraws.label("redraws"),
        )
        .join(experiment, experiment.c.id == touched.c.experiment_id)
        .distinct()
        .cte("key")
    )


def _of_key(key: FromClause) -> ColumnElement[bool]:
    shown = schema.unit_exposure
    return and_(
        shown.c.experiment_id == key.c.experiment_id,
        shown.c.unit_id == key.c.unit_id,
        or_(not_(key.c.redraws), shown.c.epoch == key.c.phase),
    )


def _first_exposure(key: FromClause) -> FromClause:
    """Return where a unit belongs. Epochs open in order, so the first is of the least."""
    shown = schema.unit_exposure
    return (
        select(shown)
        .where(_of_key(key))
        .order_by(shown.c.epoch, shown.c.first_at, shown.c.variant)
        .limit(1)
        .lateral("first_exposure")
    )


def _exposures(key: FromClause, first: FromClause) -> FromClause:
    """Add up what a unit was shown, and tell when it was first seen elsewhere.

    A sticky unit stays in its first epoch; replicas that raced may have added another,
    which says only that it crossed over.
    """
    shown = schema.unit_exposure
    sticky = and_(key.c.by_epoch, not_(key.c.redraws))
    own = or_(not_(sticky), shown.c.epoch == first.c.epoch)
    elsewhere = shown.c.variant != first.c.variant
    return (
        select(
            func.sum(shown.c.exposures).filter(own).label("exposures"),
            func.min(shown.c.first_at).filter(own).label("first_at"),
            func.max(shown.c.last_at).filter(own).label("last_at"),
            func.min(shown.c.first_at).filter(elsewhere).label("crossed_at"),
        )
        .where(_of_key(key))
        .lateral("seen")
    )


def _outcomes(key: FromClause, first: FromClause) -> FromClause:
    done = schema.unit_outcome
    own = done.c.placement == key.c.placement
    columns: list[ColumnElement[Any]] = []
    for kind in schema.SUMMARISED_KINDS:
        of_kind = done.c.kind == kind
        value = cast(func.sum(done.c.value_sum).filter(of_kind), Double)
        columns += [
            func.sum(done.c.count).filter(of_kind).label(f"{kind}_count"),
            value.label(f"{kind}_value"),
            func.min(done.c.first_at).filter(of_kind).label(f"{kind}_at"),
            func.min(done.c.first_at).filter(of_kind, own).label(f"{kind}_own_at"),
        ]
    return (
        select(*columns)
        .where(
            done.c.experiment_id == key.c.experiment_id,
            done.c.unit_id == key.c.unit_id,
            done.c.phase == case((key.c.by_epoch, first.c.epoch), else_=0),
        )
        .lateral("done")
    )


def _before(key: FromClause, seen: FromClause) -> FromClause:
    """Add up what a unit did on whole days before it was first shown the experiment."""
    past = schema.unit_history
    first_day = utc_day(seen.c.first_at)
    columns: list[ColumnElement[Any]] = []
    for kind in schema.SUMMARISED_KINDS:
        of_kind = past.c.kind == kind
        value = cast(func.sum(past.c.value_sum).filter(of_kind), Double)
        columns += [
            func.sum(past.c.count).filter(of_kind).label(f"{kind}_count_before"),
            value.label(f"{kind}_value_before"),
        ]
    return (
        select(*columns)
        .where(
            past.c.unit_id == key.c.unit_id,
            past.c.day < first_day,
            past.c.day >= first_day - DAYS_BEFORE,
        )
        .lateral("before")
    )
