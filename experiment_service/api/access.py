"""Access: who asks, and whether they may; decided from memory, without the database.

`Access.check` is the one decision, for every route and before a body is read. Keys come
from the snapshot, so a change reaches every process as fast as a weight does, and keys
stay usable while the database is away.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qs

from experiment_service.api.failures import Failure
from experiment_service.api.limits import AddressLimit, Bucket
from experiment_service.config import is_loopback
from experiment_service.domain.key import (
    BROWSER_PERMISSIONS,
    PERMISSIONS,
    ApiKey,
    Permission,
    is_secret,
    read_key,
)

Headers = Iterable[tuple[bytes, bytes]]

#: What each route needs; a route that is not here needs READ to look and CHANGE to act.
_NEEDED: Mapping[tuple[str, str], Permission] = {
    ("POST", "/v1/recommendations"): Permission.RECOMMEND,
    ("POST", "/v1/interactions"): Permission.SEND,
    ("POST", "/v1/exposures"): Permission.SEND,
    ("POST", "/v1/assignments"): Permission.ASSIGN,
    ("GET", "/v1/keys"): Permission.CHANGE,
    ("GET", "/v1/audit"): Permission.CHANGE,
}
#: Probes have no key; documentation and script hold nothing of this shop.
_PUBLIC = frozenset(
    {
        "/health/live",
        "/health/ready",
        "/docs",
        "/openapi.json",
        "/client.js",
        "/storefront",
    }
)
_LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})

#: What a page may send, and how long a browser may remember that.
_PREFLIGHT = {
    "access-control-allow-methods": "POST",
    "access-control-allow-headers": "authorization, content-type, if-none-match, "
    "x-api-key, x-request-id",
    "access-control-max-age": "600",
}


_DAY_SECONDS = 86_400
_FIRST_DAY = date(1970, 1, 1).toordinal()


def permission_needed(method: str, path: str) -> Permission | None:
    """Return what a request needs; None when anybody may ask."""
    needed = _NEEDED.get((method, path))
    if needed is not None:
        return needed
    if path in _PUBLIC:
        return None
    if path.startswith("/ofrep/"):
        return Permission.EVALUATE
    return Permission.READ if method in _LOOKING else Permission.CHANGE


class Caller(NamedTuple):
    """Who asks, once let in.

    Attributes
    ----------
    actor : str
        Name in the audit log: ``key:<id>``, or ``api`` where the service is open.
    origin : str or None
        The page that may read the answer.
    key_id : str or None
        The key it came with; None where the service is open.
    """

    actor: str
    origin: str | None = None
    key_id: str | None = None


# A program of this machine, where the service is open.
_NEIGHBOUR = Caller(actor="api")


def _presented(
    headers: Headers, query: bytes
) -> tuple[bytes | None, str | None, str | None]:
    """Return the key, the origin and the host that a request names."""
    last = dict(headers)  # of those that come twice, the last counts
    host, origin = last.get(b"host"), last.get(b"origin")
    key, authorization = last.get(b"x-api-key"), last.get(b"authorization")
    if key is None and authorization is not None:
        scheme, _, given = authorization.partition(b" ")
        key = given.strip() if scheme.lower() == b"bearer" else authorization
    if key is None and origin is not None and b"key=" in query:
        key = _key_of_query(query)
    return (
        key,
        None if origin is None else origin.decode("latin-1"),
        None if host is None else host.decode("latin-1"),
    )


def _key_of_query(query: bytes) -> bytes | None:
    """Read ``?key=`` of a page: `navigator.sendBeacon` can't send a header."""
    values = parse_qs(query).get(b"key")
    return values[0] if values else None


class Access:
    """Lets requests in or refuses them; belongs to one event loop.

    Without any key, and listening on loopback only, the service is open to the programs
    of this machine: the host asked for must be a loopback name too, and a page must have
    come from one, so that no web site can use a visitor's browser to get here.

    Parameters
    ----------
    keys : callable
        Returns every key by id: the same object as long as nothing has changed.
    loopback : bool
        Whether the service listens on loopback only.
    refusals_per_second : float, optional
        Requests without a good key that one address may send; all when left out.
    """

    def __init__(
        self,
        keys: Callable[[], Mapping[str, ApiKey]],
        *,
        loopback: bool,
        refusals_per_second: float | None = None,
    ) -> None:
        self._keys = keys
        self._loopback = loopback
        self._strangers = (
            None if refusals_per_second is None else AddressLimit(refusals_per_second)
        )
        self._buckets: dict[str, Bucket] = {}
        # Days since 1970 by key: a date would be made for each request.
        self._used: dict[str, int] = {}
        self._unsaved: set[str] = set()

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return self._loopback and not self._keys()

    def check(
        self,
        headers: Headers,
        needed: Permission,
        now: float,
        query: bytes = b"",
        address: str = "",
    ) -> Caller | Failure:
        """Decide about one request.

        Parameters
        ----------
        headers : iterable of pairs of bytes
            Names in small letters, as ASGI gives them.
        needed : Permission
            See `permission_needed`.
        now : float
            Seconds since 1970.
        query : bytes
            Query string; a browser key may come as ``key=``.
        address : str
            Where it comes from.
        """
        entry = self._judge(headers, needed, now, query)
        if (
            self._strangers is not None
            and isinstance(entry, Failure)
            and entry.status is HTTPStatus.UNAUTHORIZED
        ):
            wait = self._strangers.take(address, now)
            if wait:
                return _too_many_refused(self._strangers.per_second, wait)
        return entry

    def _judge(
        self, headers: Headers, needed: Permission, now: float, query: bytes
    ) -> Caller | Failure:
        written, origin, host = _presented(headers, query)
        keys = self._keys()
        if not keys and self._loopback:
            return _check_neighbour(origin, host, needed)
        if written is None:
            return _unauthenticated(
                "a key is missing; send `Authorization: Bearer es_...` or `X-API-Key: "
                "es_...`; `experiment-service keys create` makes one"
            )
        key = _find(keys, written)
        if isinstance(key, Failure):
            return key
        problem = _about_key(key, origin, needed, now)
        if problem is not None:
            return problem
        self._note_use(key, now)
        page = origin if key.origins else None
        wait = self._wait(key, now)
        if wait:
            return _too_many(key, wait, page)
        return Caller(actor=f"key:{key.id}", origin=page, key_id=key.id)

    def _wait(self, key: ApiKey, now: float) -> float:
        """Return the seconds until a key may be used again, 0 when it may be now."""
        if key.per_second is None:
            return 0.0
        bucket = self._buckets.get(key.id)
        if bucket is None:
            bucket = self._buckets[key.id] = Bucket.full(key.per_second, now)
        return bucket.take(key.per_second, now)

    def _note_use(self, key: ApiKey, now: float) -> None:
        day = int(now // _DAY_SECONDS)
        if self._used.get(key.id) != day:
            self._used[key.id] = day
            self._unsaved.add(key.id)

    def take_used(self) -> dict[str, date]:
        """Return the days of use by key that are new since the last call."""
        unsaved, self._unsaved = self._unsaved, set()
        return {
            key_id: date.fromordinal(_FIRST_DAY + self._used[key_id])
            for key_id in unsaved
        }

    def give_back(self, days: Mapping[str, date]) -> None:
        """Take back days of use that could not be stored."""
        self._unsaved |= days.keys()

    def preflight(
        self, headers: Headers, path: str, now: float
    ) -> Mapping[str, str] | Failure:
        """Answer a browser that asks whether a page may send a request.

        It asks without the key, so every page is admitted that some browser key has; the
        request itself is held against its own key.
        """
        _, named, host = _presented(headers, b"")
        origin = named or ""
        if permission_needed("POST", path) not in BROWSER_PERMISSIONS:
            return _forbidden(
                f"{path[:80]!r} is not for pages; a page may send events, ask for "
                "recommendations and evaluate flags"
            )
        keys = self._keys()
        at = datetime.fromtimestamp(now, UTC)
        if not keys and self._loopback:
            refused = _check_neighbour(named, host, Permission.SEND)
            if isinstance(refused, Failure):
                return refused
        elif not any(origin in k.origins and not k.problem(at) for k in keys.values()):
            return _forbidden(
                f"origin {origin[:80]!r} is not allowed; make a key for it with "
                "`experiment-service keys create --origin`"
            )
        return {**answer_headers(origin), **_PREFLIGHT}


def answer_headers(origin: str) -> dict[str, str]:
    """Return the headers that let a page read an answer."""
    return {
        "access-control-allow-origin": origin,
        # Nothing here knows cookies; but `navigator.sendBeacon` always offers them.
        "access-control-allow-credentials": "true",
        "access-control-expose-headers": "date, etag, retry-after, x-request-id",
        "vary": "origin",
    }


def is_preflight(headers: Headers) -> bool:
    """Whether a browser asks with OPTIONS on behalf of a page."""
    return any(name == b"access-control-request-method" for name, _ in headers)


def _find(keys: Mapping[str, ApiKey], written: bytes) -> ApiKey | Failure:
    parts = read_key(written)
    if parts is None:
        return _unauthenticated("what was sent is not a key; keys start with es_")
    key = keys.get(parts[0])
    if key is None or not is_secret(parts[1], key.hash):
        return _unauthenticated(
            f"key {parts[0]} is not known, or its secret is wrong; ask who runs the "
            "service for another"
        )
    return key


def _about_key(
    key: ApiKey, origin: str | None, needed: Permission, now: float
) -> Failure | None:
    if key.revoked_at is not None or key.expires_at is not None:
        problem = key.problem(datetime.fromtimestamp(now, UTC))
        if problem is not None:
            return _unauthenticated(f"{problem}; ask for another")
    if needed not in key.permissions:
        scopes = [scope for scope, each in PERMISSIONS.items() if needed in each]
        return _forbidden(
            f"key {key.id} is a browser key; it may send events, ask for "
            "recommendations and evaluate flags only"
            if key.origins
            else f"key {key.id} has scope {' and '.join(key.scopes)}, and this needs "
            f"{' or '.join(scopes)}"
        )
    if key.origins and origin not in key.origins:
        return _forbidden(
            f"key {key.id} is for pages of {', '.join(key.origins)}, and the request "
            f"has origin {str(origin)[:80]!r}"
        )
    return None


def _check_neighbour(
    origin: str | None, host: str | None, needed: Permission
) -> Caller | Failure:
    """Admit the programs of this machine, and pages that came from it."""
    if host is not None and not _is_loopback_host(host):
        return _forbidden(
            f"host is {host[:80]!r}, and without keys the service answers to "
            "loopback names only; make a key with `experiment-service keys create`"
        )
    if origin is None:
        return _NEIGHBOUR
    scheme, separator, source = origin.partition("://")
    own = source == host
    if (
        scheme in ("http", "https")
        and separator
        and _is_loopback_host(source)
        and (own or needed in BROWSER_PERMISSIONS)
    ):
        return Caller(actor="api", origin=origin)
    return _forbidden(
        f"origin {origin[:80]!r} is a page from elsewhere; make a key for it with "
        "`experiment-service keys create --origin`"
    )


@lru_cache(maxsize=64)
def _is_loopback_host(host: str) -> bool:
    """Whether the host of a header, maybe with a port, is this machine's own name."""
    name = host.rpartition("]")[0].lstrip("[") or host.partition(":")[0]
    return is_loopback(name.lower())


def _unauthenticated(message: str) -> Failure:
    return Failure(
        status=HTTPStatus.UNAUTHORIZED,
        code="unauthenticated",
        message=message,
        headers={"www-authenticate": 'Bearer realm="experiment-service"'},
    )


def _forbidden(message: str) -> Failure:
    return Failure(status=HTTPStatus.FORBIDDEN, code="forbidden", message=message)


def _too_many(key: ApiKey, wait: float, origin: str | None) -> Failure:
    return Failure(
        status=HTTPStatus.TOO_MANY_REQUESTS,
        code="too_many_requests",
        message=f"key {key.id} may send {key.per_second:g} requests a second; slow down",
        headers={"retry-after": str(math.ceil(wait))}
        | ({} if origin is None else answer_headers(origin)),
    )


def _too_many_refused(per_second: float, wait: float) -> Failure:
    return Failure(
        status=HTTPStatus.TOO_MANY_REQUESTS,
        code="too_many_requests",
        message=f"an address may send {per_second:g} requests a second without a good "
        "key; get a key, or slow down",
        headers={"retry-after": str(math.ceil(wait))},
    )
