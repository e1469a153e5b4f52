"""HTTP on the socket: a bound on the head of a request, and answers in one write.

The parser below takes headers without end and keeps them all in memory: one connection
could fill the machine before any of our code has seen a request.
"""

from http import HTTPStatus

from starlette.types import Send
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from experiment_service.api.failures import Failure

#: Request line and headers together; proxies in front allow less.
MAX_HEAD_BYTES = 64 << 10

#: The extension of a scope whose `call` is `BoundedHttp.answer`.
ANSWER = "experiment_service.answer"

_TOO_LONG = Failure(
    status=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    code="head_too_large",
    message=f"the request line and headers are longer than {MAX_HEAD_BYTES} bytes; send "
    "shorter ones",
).body()


class BoundedHttp(HttpToolsProtocol):
    """A connection that is closed when a request's head does not end."""

    _in_head = True
    _head_bytes = 0
    # What comes before the length of a document, and the default headers it was made of.
    _answer_head = b""
    _default_headers: list[tuple[bytes, bytes]] | None = None

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless it is too much of a head."""
        if self._in_head:
            self._head_bytes += len(data)
            # The end of a head comes with as much of the body as fits a read.
            if self._head_bytes > MAX_HEAD_BYTES and b"\r\n\r\n" not in data:
                self._turn_away()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Count anew."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Let the body be bounded by who reads it."""
        self._in_head = False
        super().on_headers_complete()
        self.scope["extensions"] = {ANSWER: {"call": self.answer}}

    def answer(self, send: Send, content: bytes) -> bool:
        """Answer a request that is not HEAD with a JSON document, in one write.

        The two messages of ASGI, with the headers checked and written one by one, cost
        as much as the list of items.

        Returns
        -------
        bool
            Whether it did: not where `send` adds something, nor where the connection
            has anything to be decided about.
        """
        cycle = getattr(send, "__self__", None)
        if (
            not isinstance(cycle, RequestResponseCycle)
            or cycle.response_started
            or cycle.disconnected
            or not cycle.keep_alive
            or self.flow.write_paused
        ):
            return False
        if self._default_headers is not self.server_state.default_headers:
            self._default_headers = self.server_state.default_headers
            self._answer_head = b"".join(
                (
                    STATUS_LINE[HTTPStatus.OK],
                    *(b"%s: %s\r\n" % header for header in self._default_headers),
                    b"content-type: application/json\r\ncontent-length: ",
                )
            )
        self.transport.write(
            b"%s%d\r\n\r\n%s" % (self._answer_head, len(content), content)
        )
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        cycle.on_response()
        return True

    def _turn_away(self) -> None:
        head = (
            "HTTP/1.1 431 Request Header Fields Too Large\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(_TOO_LONG)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + _TOO_LONG)
        self.transport.close()
