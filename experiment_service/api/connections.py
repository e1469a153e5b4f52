"""Connections: how many there may be, and how long each may keep us waiting.

One look a second at every connection costs less than a timer for each request. What is
cut off is counted, not logged: whoever does it would fill the disk.
"""

import asyncio
import resource
from collections import Counter
from functools import cache
from http import HTTPStatus
from typing import Literal
from weakref import WeakSet

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.server import ServerState

from experiment_service.api.failures import Failure
from experiment_service.api.protocol import BoundedHttp

#: Seconds until a request line and its headers are there, from the first byte, or from
#: the beginning of a connection.
HEAD_SECONDS = 10.0
#: Seconds until the body is there, from its headers.
BODY_SECONDS = 30.0
#: Seconds for which a client may take nothing of an answer.
READING_SECONDS = 30.0

_SWEEP_SECONDS = 1.0
_MOST = 10_000
# Files of the journal, the lists, the database.
_RESERVED_FILES = 256

Reason = Literal["slow_head", "slow_body", "slow_reader", "too_many"]

#: Connections of this process that were cut off, by reason.
cut_off: Counter[Reason] = Counter()


@cache
def most_connections() -> int:
    """Return how many connections a process takes: each is an open file."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return _MOST
    return max(1, min(_MOST, files - _RESERVED_FILES))


def _answer(status: HTTPStatus, code: str, message: str, headers: bytes) -> bytes:
    body = Failure(status=status, code=code, message=message).body()
    return (
        b"%s%scontent-type: application/json\r\nconnection: close\r\n"
        b"content-length: %d\r\n\r\n%s"
        % (STATUS_LINE[status], headers, len(body), body)
    )


_TOO_SLOW = _answer(
    HTTPStatus.REQUEST_TIMEOUT,
    "too_slow",
    f"the request did not come in time; its head has {HEAD_SECONDS:.0f} seconds, its "
    f"body {BODY_SECONDS:.0f}",
    b"",
)
_TOO_MANY = _answer(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "unavailable",
    "too many connections are open; try again",
    b"retry-after: 5\r\n",
)


class GuardedHttp(BoundedHttp):
    """A connection that is cut off when its client keeps it waiting."""

    # Since when the client owes us the rest of a request, or takes nothing of an answer.
    _owes_since: float | None = None
    _takes_nothing_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Take the connection, or tell it that there are too many."""
        super().connection_made(transport)
        _watch(self.loop, self.server_state)
        self._owes_since = self.loop.time()
        if len(self.connections) > most_connections():
            self._cut_off("too_many", _TOO_MANY)

    def data_received(self, data: bytes) -> None:
        """Parse what came; from its first byte on the rest of a request is owed."""
        if self._owes_since is None:
            self._owes_since = self.loop.time()
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Wait for the head, also of a request that follows another at once."""
        if self._owes_since is None:
            self._owes_since = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Wait for the body."""
        self._owes_since = self.loop.time()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Wait for nothing."""
        self._owes_since = None
        super().on_message_complete()

    def look(self, now: float) -> None:
        """Cut the connection off if its client keeps it waiting."""
        if self.flow.write_paused or self.transport.is_closing():
            if self._takes_nothing_since is None:
                self._takes_nothing_since = now
            elif now - self._takes_nothing_since > READING_SECONDS:
                cut_off["slow_reader"] += 1
                self.transport.abort()
            return
        self._takes_nothing_since = None
        if self._owes_since is None or self._is_our_turn():
            return
        waited = now - self._owes_since
        if waited > (HEAD_SECONDS if self._in_head else BODY_SECONDS):
            self._cut_off("slow_head" if self._in_head else "slow_body", _TOO_SLOW)

    def _is_our_turn(self) -> bool:
        """Whether a request is here that is not answered yet."""
        cycle = self._request
        return cycle is not None and not (cycle.more_body or cycle.response_complete)

    @property
    def _request(self) -> RequestResponseCycle | None:
        """The last request; None before the first, whatever uvicorn declares."""
        cycle: RequestResponseCycle | None = vars(self)["cycle"]
        return cycle

    def _cut_off(self, reason: Reason, answer: bytes) -> None:
        cut_off[reason] += 1
        cycle = self._request
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(answer)
        self.transport.close()


_watched: WeakSet[ServerState] = WeakSet()


def _watch(loop: asyncio.AbstractEventLoop, server: ServerState) -> None:
    """Look at all connections of a server every second, from its first one on."""
    if server in _watched:
        return
    _watched.add(server)

    def sweep() -> None:
        now = loop.time()
        for connection in list(server.connections):
            if isinstance(connection, GuardedHttp):
                connection.look(now)
        loop.call_later(_SWEEP_SECONDS, sweep)

    loop.call_later(_SWEEP_SECONDS, sweep)
