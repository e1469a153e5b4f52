"""API keys in the database; the secrets themselves are nowhere.

Functions take a connection; nobody here commits.
"""

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, or_, select, update

from experiment_service.domain.key import ApiKey, Scope
from experiment_service.errors import NotFound
from experiment_service.storage import schema
from experiment_service.storage.database import notify_change


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        **{
            **row._asdict(),
            "scopes": tuple(map(Scope, row.scopes)),
            "origins": tuple(row.origins),
        }
    )


def insert_key(connection: Connection, key: ApiKey) -> None:
    """Store a new key."""
    connection.execute(
        insert(schema.api_key).values(
            id=key.id,
            name=key.name,
            scopes=[scope.value for scope in key.scopes],
            hash=key.hash,
            origins=list(key.origins),
            per_second=key.per_second,
            created_at=key.created_at,
            expires_at=key.expires_at,
        )
    )
    notify_change(connection)


def list_keys(connection: Connection) -> list[ApiKey]:
    """Return every key by age, also those that are refused."""
    table = schema.api_key
    rows = connection.execute(select(table).order_by(table.c.created_at, table.c.id))
    return [_key(row) for row in rows]


def get_key(connection: Connection, key_id: str) -> ApiKey:
    """Return a key, locked until the transaction ends.

    Raises
    ------
    NotFound
        When there is no such key.
    """
    table = schema.api_key
    row = connection.execute(
        select(table).where(table.c.id == key_id).with_for_update()
    ).one_or_none()
    if row is None:
        raise NotFound(
            f"key {key_id[:40]!r} does not exist; `experiment-service keys list` "
            "shows all",
            field="id",
        )
    return _key(row)


def set_end(
    connection: Connection,
    key_id: str,
    *,
    revoked_at: datetime | None = None,
    expires_at: datetime | None = None,
) -> ApiKey:
    """Store from when on a key is refused; return it."""
    given = {"revoked_at": revoked_at, "expires_at": expires_at}
    connection.execute(
        update(schema.api_key)
        .where(schema.api_key.c.id == key_id)
        .values({name: at for name, at in given.items() if at is not None})
    )
    notify_change(connection)
    return get_key(connection, key_id)


def mark_used(connection: Connection, days: Mapping[str, date]) -> None:
    """Store the last day of use of keys by id; serving has no need to be told."""
    used_on = schema.api_key.c.used_on
    for key_id, day in sorted(days.items()):
        connection.execute(
            update(schema.api_key)
            .where(schema.api_key.c.id == key_id, or_(used_on.is_(None), used_on < day))
            .values(used_on=day)
        )
