"""API keys: what one may do, how it is written, and how it is told from a wrong one.

A key reads ``es_<id>_<secret>``. The id names it in lists and logs; of the secret, 256
random bits, only the SHA-256 is kept. A slow hash guards passwords, which people choose
and others guess; 2**256 random secrets can't be guessed at any speed, so a fast one
costs nothing in safety and a request nothing in time.
"""

import hashlib
import hmac
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from experiment_service.domain.event import check_id
from experiment_service.errors import InvalidRequest, known

MAX_ORIGINS = 20
MAX_PER_SECOND = 100_000.0

_WRITTEN = re.compile(rb"es_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_ORIGIN = re.compile(
    r"https?://([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?"
    r"(:[0-9]{1,5})?"
)


class Permission(StrEnum):
    """What a request does; each route needs one."""

    ASSIGN = "assign"
    EVALUATE = "evaluate"
    RECOMMEND = "recommend"
    SEND = "send"
    READ = "read"
    CHANGE = "change"


class Scope(StrEnum):
    """What a key is for."""

    STOREFRONT = "storefront"
    ANALYST = "analyst"
    ADMIN = "admin"


#: What each scope allows. Who changes things has to see them.
PERMISSIONS: Mapping[Scope, frozenset[Permission]] = MappingProxyType(
    {
        Scope.STOREFRONT: frozenset(
            {
                Permission.ASSIGN,
                Permission.EVALUATE,
                Permission.RECOMMEND,
                Permission.SEND,
            }
        ),
        Scope.ANALYST: frozenset({Permission.READ}),
        Scope.ADMIN: frozenset({Permission.READ, Permission.CHANGE}),
    }
)

#: A key in a page is known to all who open the page: it may do no more than this.
BROWSER_PERMISSIONS = frozenset(
    {Permission.EVALUATE, Permission.RECOMMEND, Permission.SEND}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it is kept.

    Attributes
    ----------
    id : str
        12 hexadecimal digits, part of the written key; not a secret.
    name : str
        Who or what uses it.
    scopes : tuple of Scope
    hash : str
        SHA-256 of the secret, hexadecimal.
    origins : tuple of str
        Pages that may use it from a browser, such as ``https://shop.example``; a key
        that has any is a browser key.
    per_second : float or None
        Requests a second that each process answers; None for no limit.
    expires_at, revoked_at : datetime or None
        From then on it is refused.
    used_on : date or None
        Last day, UTC, on which a request came with it.
    permissions : frozenset of Permission
        What it allows.
    """

    id: str
    name: str
    scopes: tuple[Scope, ...]
    hash: str
    origins: tuple[str, ...] = ()
    per_second: float | None = None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    used_on: date | None = None
    permissions: frozenset[Permission] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_id("name", self.name)
        if not self.scopes or len(set(self.scopes)) < len(self.scopes):
            raise InvalidRequest(
                f"scopes are {list(map(str, self.scopes))}; give at least one of "
                f"{known(Scope)}, each once",
                field="scopes",
            )
        rate = self.per_second
        if rate is not None and not (
            math.isfinite(rate) and 0.01 <= rate <= MAX_PER_SECOND
        ):
            raise InvalidRequest(
                f"per_second is {rate}; it must lie in 0.01 to {MAX_PER_SECOND:.0f}",
                field="per_second",
            )
        self._check_origins()
        # Once, as each request asks for it.
        object.__setattr__(
            self,
            "permissions",
            BROWSER_PERMISSIONS
            if self.origins
            else frozenset().union(*(PERMISSIONS[scope] for scope in self.scopes)),
        )

    def _check_origins(self) -> None:
        if len(self.origins) > MAX_ORIGINS:
            raise InvalidRequest(
                f"origins are {len(self.origins)}; give at most {MAX_ORIGINS}",
                field="origins",
            )
        for origin in self.origins:
            if len(origin) > 200 or not _ORIGIN.fullmatch(origin):
                raise InvalidRequest(
                    f"origin {origin[:80]!r} is not one; write it as browsers do, in "
                    "small letters and without a path, such as https://shop.example",
                    field="origins",
                )
        if self.origins and self.scopes != (Scope.STOREFRONT,):
            raise InvalidRequest(
                f"scopes are {list(map(str, self.scopes))}; a key with origins is in the "
                "hands of every visitor and can have the scope storefront only",
                field="scopes",
            )

    def problem(self, now: datetime) -> str | None:
        """Return why it is refused, None when it is good."""
        for instant, participle in (
            (self.revoked_at, "was revoked"),
            (self.expires_at, "has expired"),
        ):
            if instant is not None and instant <= now:
                at = instant.astimezone(UTC)
                return f"key {self.id} {participle} ({at:%Y-%m-%d %H:%M} UTC)"
        return None

    def document(self) -> dict[str, Any]:
        """Write all but the hash as a JSON document."""
        return {
            "id": self.id,
            "name": self.name,
            "scopes": [scope.value for scope in self.scopes],
            "origins": list(self.origins),
            "per_second": self.per_second,
            "created_at": self.created_at.isoformat(),
            "expires_at": self.expires_at and self.expires_at.isoformat(),
            "revoked_at": self.revoked_at and self.revoked_at.isoformat(),
            "used_on": self.used_on and self.used_on.isoformat(),
        }


def parse_scopes(names: object) -> tuple[Scope, ...]:
    """Read scopes by their names.

    Raises
    ------
    InvalidRequest
        When one is not known.
    """
    if not isinstance(names, list | tuple):
        raise InvalidRequest("scopes must be a list", field="scopes")
    try:
        return tuple(Scope(name) for name in names)
    except ValueError:
        raise InvalidRequest(
            f"scopes are {names!r:.80}; each must be one of {known(Scope)}",
            field="scopes",
        ) from None


def read_key(written: bytes) -> tuple[str, bytes] | None:
    """Split a written key into its id and its secret; None when it is not one."""
    found = _WRITTEN.fullmatch(written)
    return None if found is None else (found[1].decode(), found[2])


def hash_secret(secret: bytes) -> str:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret).hexdigest()


def is_secret(secret: bytes, kept: str) -> bool:
    """Whether a secret is the one of a kept hash, in time that tells nothing."""
    return hmac.compare_digest(hash_secret(secret), kept)


def key_record(key: ApiKey) -> dict[str, Any]:
    """Write a key with its hash, for the copy that serves without a database."""
    return {**key.document(), "hash": key.hash}


def parse_key_record(document: Mapping[str, Any]) -> ApiKey:
    """Read what `key_record` wrote."""
    instants = {
        name: document[name] and datetime.fromisoformat(document[name])
        for name in ("created_at", "expires_at", "revoked_at")
    }
    used_on = document["used_on"]
    return ApiKey(
        **{
            **document,
            **instants,
            "scopes": parse_scopes(document["scopes"]),
            "origins": tuple(document["origins"]),
            "used_on": used_on and date.fromisoformat(used_on),
        }
    )
