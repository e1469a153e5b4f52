"""Ids of requests: the client's when it is sane, echoed; the log lines carry it."""

import re
from uuid import uuid4

from starlette.types import Message, Scope, Send

from experiment_service.logs import REQUEST_ID

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

    def __init__(self, scope: Scope, send: Send, *, make: bool) -> None:
        self.status = 0
        self._send = send
        self._id = _given(scope) or (uuid4().hex if make else None)
        self.send = send if self._id is None else self._echo
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
