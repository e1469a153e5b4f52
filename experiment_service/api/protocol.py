"""HTTP on the socket, with a bound on the head of a request.

The parser below takes headers without end and keeps them all in memory: one connection
could fill the machine before any of our code has seen a request.
"""

from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from experiment_service.api.failures import Failure

#: Request line and headers together; proxies in front allow less.
MAX_HEAD_BYTES = 64 << 10

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

    def _turn_away(self) -> None:
        head = (
            "HTTP/1.1 431 Request Header Fields Too Large\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(_TOO_LONG)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + _TOO_LONG)
        self.transport.close()
