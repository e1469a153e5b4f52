"""Answers of shadows, as the processes that serve store them; see `shadow_sums`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert

from experiment_service.domain.event import MAX_AHEAD
from experiment_service.storage import schema
from experiment_service.storage.database import EVENTS_LOCK, lock_for_transaction
from experiment_service.storage.erasure import unit_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowAnswer:
    """What a shadow would have shown, compared with what was.

    Attributes
    ----------
    id : UUID
        Of the exposure, or its own where there is none.
    shown, made, common : int
        How many items were shown, the shadow has, and both have.
    same_places : sequence of int
        Positions, from 1, at which both have the same item.
    shown_fallback, fallback : bool
        Whether an item of either came from elsewhere than its own lists.
    seconds : float
        To make it.
    error : str or None
        Why it failed.
    """

    version_id: int
    id: UUID
    unit_id: str
    shown: int
    made: int
    common: int
    same_places: Sequence[int]
    shown_fallback: bool
    fallback: bool
    seconds: float
    error: str | None
    answered_at: datetime


def insert_answers(connection: Connection, answers: Sequence[ShadowAnswer]) -> None:
    """Store answers; one that is there already, or of an erased unit, is left out."""
    # As writers of events do, so that no answer comes after its unit was erased.
    lock_for_transaction(connection, EVENTS_LOCK)
    digests = {unit_digest(each.unit_id) for each in answers}
    tombstone = schema.erased_unit.c
    erased: dict[bytes, datetime] = {
        row.digest: row.erased_at
        for row in connection.execute(
            select(tombstone.digest, tombstone.erased_at).where(
                tombstone.digest.in_(digests)
            )
        )
    }
    rows = [asdict(each) for each in answers if not _is_erased(each, erased)]
    if rows:
        connection.execute(insert(schema.shadow_answer).on_conflict_do_nothing(), rows)


def _is_erased(answer: ShadowAnswer, erased: dict[bytes, datetime]) -> bool:
    at = erased.get(unit_digest(answer.unit_id)) if erased else None
    return at is not None and answer.answered_at <= at + MAX_AHEAD
