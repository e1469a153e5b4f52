"""Make, revoke and rotate API keys; every change leaves an audit row.

A new key's text is returned once and kept nowhere.
"""

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection

from experiment_service.domain.key import ApiKey, Scope, hash_secret
from experiment_service.errors import InvalidRequest, InvalidState
from experiment_service.storage import keys as storage
from experiment_service.storage.experiments import record_audit

log = logging.getLogger(__name__)

MAX_LIFE = timedelta(days=3650)

#: How long the former key of a rotation stays good, unless told otherwise.
OVERLAP = timedelta(days=1)
MAX_OVERLAP = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key just made; `written` is what its user must be given, now or never."""

    key: ApiKey
    written: str

    def __repr__(self) -> str:
        return f"NewKey(id={self.key.id!r})"


def create(
    connection: Connection,
    name: str,
    scopes: Sequence[Scope],
    *,
    origins: Sequence[str] = (),
    per_second: float | None = None,
    life: timedelta | None = None,
    actor: str,
    now: datetime,
) -> NewKey:
    """Make a key.

    Parameters
    ----------
    life : timedelta, optional
        After which it expires; never when left out.

    Raises
    ------
    InvalidRequest
        When a value breaks a rule of `ApiKey`.
    """
    if life is not None and not timedelta(0) < life <= MAX_LIFE:
        raise InvalidRequest(
            f"days are {life / timedelta(days=1):g}; a key lives for more than 0 and at "
            f"most {MAX_LIFE.days} days, or without end when none are given",
            field="days",
        )
    made = _make(
        connection,
        name,
        scopes,
        origins=origins,
        per_second=per_second,
        expires_at=None if life is None else now + life,
        now=now,
    )
    _audit(connection, "create", actor, after=made.key)
    log.info("created key=%s scopes=%s", made.key.id, ",".join(made.key.scopes))
    return made


def _make(
    connection: Connection,
    name: str,
    scopes: Sequence[Scope],
    *,
    origins: Sequence[str],
    per_second: float | None,
    expires_at: datetime | None,
    now: datetime,
) -> NewKey:
    secret = secrets.token_urlsafe(32)
    key = ApiKey(
        id=secrets.token_hex(6),
        name=name,
        scopes=tuple(scopes),
        hash=hash_secret(secret.encode()),
        origins=tuple(origins),
        per_second=per_second,
        created_at=now,
        expires_at=expires_at,
    )
    storage.insert_key(connection, key)
    return NewKey(key=key, written=f"es_{key.id}_{secret}")


def revoke(
    connection: Connection, key_id: str, *, actor: str, now: datetime, reason: str = ""
) -> ApiKey:
    """Refuse a key from now on, for ever.

    Raises
    ------
    NotFound
        When there is no such key.
    InvalidState
        When it was revoked before.
    """
    before = storage.get_key(connection, key_id)
    if before.revoked_at is not None:
        raise InvalidState(f"{before.problem(now)}; it can't be revoked again")
    after = storage.set_end(connection, key_id, revoked_at=now)
    _audit(connection, "revoke", actor, before=before, after=after, reason=reason)
    log.info("revoked key=%s", key_id)
    return after


def rotate(
    connection: Connection,
    key_id: str,
    *,
    overlap: timedelta = OVERLAP,
    actor: str,
    now: datetime,
) -> NewKey:
    """Make a key like another one, which expires after an overlap.

    The new one lives as long as the former was made for.

    Raises
    ------
    NotFound
        When there is no such key.
    InvalidState
        When it was revoked or has expired.
    InvalidRequest
        When the overlap is out of range.
    """
    if not timedelta(0) <= overlap <= MAX_OVERLAP:
        raise InvalidRequest(
            f"overlap_hours are {overlap / timedelta(hours=1):g}; they must lie in 0 to "
            f"{MAX_OVERLAP / timedelta(hours=1):g}",
            field="overlap_hours",
        )
    before = storage.get_key(connection, key_id)
    problem = before.problem(now)
    if problem is not None:
        raise InvalidState(f"{problem}; create another instead")
    life = None
    if before.expires_at is not None:
        life = before.expires_at - before.created_at
    made = _make(
        connection,
        before.name,
        before.scopes,
        origins=before.origins,
        per_second=before.per_second,
        expires_at=None if life is None else now + life,
        now=now,
    )
    ends = now + overlap
    if before.expires_at is not None:
        ends = min(ends, before.expires_at)
    after = storage.set_end(connection, key_id, expires_at=ends)
    _audit(
        connection,
        "rotate",
        actor,
        before=before,
        after=after,
        reason=f"its successor is {made.key.id}",
    )
    _audit(connection, "create", actor, after=made.key, reason=f"it succeeds {key_id}")
    log.info("rotated key=%s successor=%s", key_id, made.key.id)
    return made


def _audit(
    connection: Connection,
    action: str,
    actor: str,
    *,
    before: ApiKey | None = None,
    after: ApiKey,
    reason: str = "",
) -> None:
    record_audit(
        connection,
        actor=actor,
        action=action,
        subject=f"key/{after.id}",
        before=before and before.document(),
        after=after.document(),
        reason=reason or None,
    )
