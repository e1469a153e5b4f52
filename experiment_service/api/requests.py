"""Requests: their ids, echoed and in the log lines, and those that were turned away."""

import logging
import re
from collections.abc import Mapping
from types import MappingProxyType
from uuid import uuid4

from starlette.types import Message, Scope, Send

from experiment_service.api.tally import Tally
from experiment_service.logs import REQUEST_ID

log = logging.getLogger(__name__)

#: Answers that turn a request away whatever it asks for, and why by their status.
TURNED_AWAY: Mapping[int, str] = MappingProxyType(
    {
        401: "unauthenticated",
        403: "forbidden",
        413: "too_large",
        429: "too_many_requests",
        503: "unavailable",
    }
)

# Lines a second; strangers decide how many requests there are to tell of.
_LINES_PER_SECOND = 10

_SANE = re.compile(rb"[A-Za-z0-9._~+/=:@-]{1,128}")


class Exchange:
    """A request and what became of it.

    Parameters
    ----------
    make : bool
        Whether a request without a sane id of its own gets one. The hot routes save the
        time; an answer that fails is logged with an id all the same.

    Attributes
    ----------
    send : Send
        To answer with: the one given when there is no id to echo.
    status : int
        Of the answer, known where there is an id; 0 before.
    """

    __slots__ = ("_id", "_send", "send", "status")

    def __init__(self, scope: Scope, send: Send, *, make: bool) -> None:
        self.status = 0
        self._send = send
        self._id = _given(scope) or (uuid4().hex if make else None)
        self.send = send if self._id is None else self._echo
        REQUEST_ID.set(self._id)

    def identify(self) -> None:
        """Make an id if the request has none, before it is answered."""
        if self._id is None:
            self._id = uuid4().hex
            self.send = self._echo
            REQUEST_ID.set(self._id)

    async def _echo(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self._id is not None:
            self.status = message["status"]
            echoed = (b"x-request-id", self._id.encode())
            message = {**message, "headers": [*message.get("headers", ()), echoed]}
        await self._send(message)


def _given(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode() if _SANE.fullmatch(value) else None
    return None


class Refusals:
    """Counts the requests that were turned away, and logs the first of each second.

    Parameters
    ----------
    tally : Tally
        Where they are counted.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._second = 0
        self._lines = 0
        self._untold = 0

    def note(self, scope: Scope, route: str, status: int, now: float) -> None:
        """Count a request, and tell of it unless there were many this second.

        Parameters
        ----------
        route : str
            Declared path, such as ``/v1/experiments/{key}``.
        status : int
            A key of `TURNED_AWAY`.
        now : float
            Seconds since 1970.
        """
        reason = TURNED_AWAY[status]
        self._tally.turned_away[f"{scope['method']} {route}", reason] += 1
        if int(now) != self._second:
            self._second, self._lines = int(now), 0
        if self._lines >= _LINES_PER_SECOND:
            self._untold += 1
            return
        self._lines += 1
        log.warning(
            "turned away method=%s route=%s status=%d reason=%s address=%s untold=%d",
            scope["method"],
            route,
            status,
            reason,
            (scope.get("client") or ("",))[0],
            self._untold,
        )
        self._untold = 0
