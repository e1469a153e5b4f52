"""Erase a unit: its rows, and what is still on its way to the database.

`erase_unit` deletes and leaves a tombstone; `drop_erased` honours it whenever events are
stored. A tombstone is a digest, kept while journals may hold events from before.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import (
    Connection,
    Delete,
    Table,
    and_,
    delete,
    exists,
    func,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import insert

from experiment_service.domain.event import MAX_AHEAD
from experiment_service.storage import schema
from experiment_service.storage.database import (
    EVENTS_LOCK,
    allow_time,
    lock_for_transaction,
    notify_change,
)

#: Tables whose rows belong to the unit that they name. A table more is one line more.
UNIT_TABLES: tuple[Table, ...] = (
    schema.exposure,
    schema.unit_exposure,
    schema.unit_outcome,
    schema.unit_history,
    schema.unit_of_analysis,
    schema.shadow_answer,
)

#: How long a tombstone stays: longer than a journal waits for its database.
TOMBSTONE_LIFE = timedelta(days=90)


def unit_digest(unit_id: str) -> bytes:
    """Return what a tombstone holds instead of the unit."""
    return hashlib.sha256(unit_id.encode()).digest()


def erase_unit(
    connection: Connection, unit_ids: Sequence[str], *, now: datetime
) -> dict[str, int]:
    """Delete all rows of a unit, by each id it was stored under; count them by table.

    Raw rows and outcomes go together, so they agree as before. Writers of events wait
    until the transaction ends.
    """
    lock_for_transaction(connection, EVENTS_LOCK)
    # No index finds interactions that name a unit beside an exposure.
    allow_time(connection)
    units = list(unit_ids)
    counts = _erase_interactions(connection, units)
    for table in UNIT_TABLES:
        counts[table.name] = _count(
            connection, delete(table).where(table.c.unit_id.in_(units))
        )
    tombstone = schema.erased_unit
    connection.execute(
        delete(tombstone).where(tombstone.c.erased_at < now - TOMBSTONE_LIFE)
    )
    adding = insert(tombstone).values(
        [{"digest": unit_digest(unit), "erased_at": now} for unit in units]
    )
    connection.execute(
        adding.on_conflict_do_update(
            index_elements=["digest"], set_={"erased_at": adding.excluded.erased_at}
        )
    )
    notify_change(connection)
    return counts


def _erase_interactions(connection: Connection, units: list[str]) -> dict[str, int]:
    exposure, interaction = schema.exposure, schema.interaction
    own = select(exposure.c.id).where(exposure.c.unit_id.in_(units))
    unit_id = interaction.c.unit_id
    erased = (
        delete(interaction)
        .where(
            or_(
                unit_id.in_(units),
                and_(unit_id.is_(None), interaction.c.exposure_id.in_(own)),
            )
        )
        .returning(interaction.c.id)
        .cte("erased")
    )
    attribution = schema.attribution
    attributed = (
        delete(attribution)
        .where(attribution.c.interaction_id.in_(select(erased.c.id)))
        .returning(attribution.c.interaction_id)
        .cte("attributed")
    )
    row = connection.execute(
        select(
            select(func.count()).select_from(erased).scalar_subquery(),
            select(func.count()).select_from(attributed).scalar_subquery(),
        )
    ).one()
    return {interaction.name: row[0], attribution.name: row[1]}


def _count(connection: Connection, statement: Delete) -> int:
    return connection.execute(
        statement, execution_options={"preserve_rowcount": True}
    ).rowcount


def list_erased(connection: Connection) -> frozenset[str]:
    """Return the digests of units that have a tombstone, hexadecimal."""
    return frozenset(
        digest.hex()
        for digest in connection.scalars(select(schema.erased_unit.c.digest))
    )


def drop_erased(connection: Connection, exposures: Table, interactions: Table) -> int:
    """Delete from staging tables what units did before they were erased; count it.

    An event may be dated some minutes ahead, so those of the next minutes go too. The
    caller holds the lock of events, or a unit could be erased meanwhile.
    """
    tombstone = schema.erased_unit
    if not connection.execute(select(exists().select_from(tombstone))).scalar_one():
        return 0
    dropped = 0
    for table, at in (
        (exposures, exposures.c.exposed_at),
        (interactions, interactions.c.occurred_at),
    ):
        digest = func.sha256(func.convert_to(table.c.unit_id, "UTF8"))
        dropped += _count(
            connection,
            delete(table).where(
                exists().where(
                    tombstone.c.digest == digest,
                    at <= tombstone.c.erased_at + MAX_AHEAD,
                )
            ),
        )
    return dropped
