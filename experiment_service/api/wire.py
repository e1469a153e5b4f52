"""Bytes in and out: bounded bodies, JSON answers, failures, and routes made of these."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, get_type_hints

from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from pydantic_core import to_json
from starlette.types import Message, Receive, Scope, Send

from experiment_service.api.failures import Failure, Refused
from experiment_service.api.protocol import ANSWER

MAX_BODY_BYTES = 1 << 20

_JSON = (b"content-type", b"application/json")


class ClientGone(Exception):  # noqa: N818
    """The client hung up before its request was complete."""


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """Return the whole body of a request.

    Raises
    ------
    Refused
        When it is longer than `MAX_BODY_BYTES`; the rest is not read.
    ClientGone
        When the client hung up.
    """
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body") or len(body) > MAX_BODY_BYTES:
        _check_announced_length(scope)
        parts, size = [body], len(body)
        while message.get("more_body") and size <= MAX_BODY_BYTES:
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise Refused(_TOO_LONG)
        body = b"".join(parts)
    if message["type"] == "http.disconnect":
        raise ClientGone
    return body


def _check_announced_length(scope: Scope) -> None:
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > MAX_BODY_BYTES:
            raise Refused(_TOO_LONG)


_TOO_LONG = Failure(
    status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    code="too_large",
    message=f"the body is longer than {MAX_BODY_BYTES} bytes; send smaller batches",
    # The rest of the body is not read, so the connection can't be used again.
    headers={"connection": "close"},
)


def check_content_type(scope: Scope) -> None:
    """Refuse a body that is not announced as JSON.

    Raises
    ------
    Refused
        Names the header and its value.
    """
    found = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            if value == b"application/json":
                return
            found = value
    if found.split(b";")[0].strip().lower() == b"application/json":
        return
    shown = found.decode("latin-1")[:80]
    raise Refused(
        Failure(
            status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            code="unsupported_media_type",
            message=f"content-type is {shown!r}; it must be application/json",
        )
    )


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read already."""
    pending: list[Message] = [
        {"type": "http.request", "body": body, "more_body": False}
    ]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again


async def send_json(
    send: Send,
    content: bytes,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Send an encoded JSON document."""
    sent = [_JSON, (b"content-length", b"%d" % len(content))]
    if headers:
        sent += [(name.encode(), value.encode()) for name, value in headers.items()]
    start: dict[str, Any] = {
        "type": "http.response.start",
        "status": status,
        "headers": sent,
    }
    await send(start)
    await send({"type": "http.response.body", "body": content})


async def send_empty(send: Send, headers: Mapping[str, str]) -> None:
    """Send an answer without a body, such as to a preflight."""
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 204, "headers": sent})
    await send({"type": "http.response.body"})


def with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    """Return a `send` that adds headers to the answer."""
    added = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *added]
        await send(message)

    return send_with_headers


async def send_failure(send: Send, failure: Failure) -> None:
    """Send a failure in the one error shape."""
    await send_json(send, failure.body(), int(failure.status), failure.headers)


class HotRoute(APIRoute):
    """A route whose body is checked from raw bytes and whose answer is sent as bytes.

    Its endpoint takes the desk and the parsed body and returns a document that is fit
    for JSON. FastAPI would solve dependencies and check the answer for longer than the
    answer takes; the tests check each answer against its declared model instead.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:  # noqa: ANN401 - FastAPI's own
        super().__init__(path, endpoint, **options)
        hints = get_type_hints(endpoint, include_extras=True)
        self._read_json = TypeAdapter(hints["body"]).validator.validate_json

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises
        ------
        Exception
            Whatever the endpoint raises, before anything is sent.
        """
        if scope["method"] != "POST":
            await super().handle(scope, receive, send)
            return
        content = await read_body(scope, receive)
        check_content_type(scope)
        body = self._read_json(content)
        document = await self.endpoint(scope["app"].desk, body)
        content = to_json(document)
        if not scope["extensions"][ANSWER]["call"](send, content):
            await send_json(send, content)
