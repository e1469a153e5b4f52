"""Erase a unit on request, audited without its id."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from experiment_service.storage import erasure as storage
from experiment_service.storage.experiments import list_experiments, record_audit
from experiment_service.storage.retention import list_archives

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What an erasure removed.

    Attributes
    ----------
    rows : dict of str to int
        Rows removed, by table.
    overrides : list of str
        Experiments whose overrides name the unit still, as a tester; take it out there.
    archives : list of str
        Files of retired months that may hold it still.
    """

    rows: dict[str, int]
    overrides: list[str]
    archives: list[str]


def erase(
    connection: Connection,
    unit_ids: Sequence[str],
    *,
    actor: str,
    now: datetime,
    reason: str = "",
) -> Erasure:
    """Remove all that is stored of a unit.

    Parameters
    ----------
    unit_ids : sequence of str
        Every id under which it may be stored: as it is, and its pseudonym.
    reason : str
        For the audit log, such as the number of the request; not the unit.
    """
    rows = storage.erase_unit(connection, unit_ids, now=now)
    overrides = [
        each.key
        for each in list_experiments(connection)
        if not each.declaration.overrides.keys().isdisjoint(unit_ids)
    ]
    record_audit(
        connection,
        actor=actor,
        action="erase",
        subject="unit",
        after={"rows": rows},
        reason=reason or None,
    )
    log.info("erased a unit rows=%s", rows)
    return Erasure(rows=rows, overrides=overrides, archives=list_archives(connection))
