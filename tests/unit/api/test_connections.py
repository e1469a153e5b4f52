"""Connections on real sockets: who keeps the server waiting is cut off, and no other."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest
import uvicorn

from experiment_service.api import connections
from experiment_service.api.app import SERVER_OPTIONS

SECONDS = 0.2  # for a head, a body, or an answer that nobody reads
LARGE = 64 << 20


class App:
    """Reads the body, and answers as the path asks for."""

    def __init__(self):
        self.ended = []
        self.clients = set()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        self.clients.add(scope["client"][0])
        message = await receive()
        while message.get("more_body"):
            message = await receive()
        if message["type"] == "http.disconnect":
            self.ended.append("gone")
            return
        if scope["path"] == "/slow":
            await asyncio.sleep(4 * SECONDS)
        size = LARGE if scope["path"] == "/large" else 2
        headers = [(b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * size})
        self.ended.append("answered")


@pytest.fixture
def app(monkeypatch):
    """A server that is as impatient as a test wants it."""
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "READING_SECONDS"):
        monkeypatch.setattr(connections, name, SECONDS)
    monkeypatch.setattr(connections, "_SWEEP_SECONDS", 0.02)
    connections.cut_off.clear()
    app = App()
    options = SERVER_OPTIONS | {"lifespan": "off"}
    server = uvicorn.Server(uvicorn.Config(app, port=0, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    app.address = server.servers[0].sockets[0].getsockname()
    yield app
    server.should_exit = True
    thread.join()


@pytest.fixture
def connect(app):
    """Open connections; they are closed at the end."""
    opened = []

    def connect():
        opened.append(socket.create_connection(app.address, 20))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


def rest(connection):
    """All that comes until the other side closes."""
    parts = []
    while part := connection.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def told(answer):
    """Status and error code of the last answer."""
    head, _, body = answer.rpartition(b"\r\n\r\n")
    return int(head.split(b"HTTP/1.1 ")[-1][:3]), json.loads(body)["error"]["code"]


def drip(connection, piece):
    """Send a piece again and again until the other side has closed."""
    try:
        while True:
            connection.sendall(piece)
            time.sleep(0.02)
    except OSError:
        pass


@pytest.mark.parametrize("begin", [b"", b"GET / HTTP/1.1\r\nhost: x\r\n", b"GE"])
def test_a_head_that_does_not_come_is_not_waited_for(connect, begin):
    connection = connect()
    connection.sendall(begin)
    assert told(rest(connection)) == (408, "too_slow")
    assert connections.cut_off == {"slow_head": 1}


def test_a_head_byte_by_byte_is_not_waited_for(connect):
    connection = connect()
    connection.sendall(b"GET / HTTP/1.1\r\n")
    drip(connection, b"a: b\r\n")
    assert connections.cut_off == {"slow_head": 1}


HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"


def test_a_body_that_does_not_come_is_not_waited_for(app, connect):
    connection = connect()
    connection.sendall(HEAD + b"half")
    assert told(rest(connection)) == (408, "too_slow")
    assert connections.cut_off == {"slow_body": 1}
    while not app.ended:
        time.sleep(0.005)
    assert app.ended == ["gone"]


def test_a_connection_that_was_answered_may_rest_but_not_trickle(app, connect):
    connection = connect()
    for _ in range(2):
        connection.sendall(
            b"GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 198.51.100.7\r\n\r\n"
        )
        received = b""
        while not received.endswith(b"\r\n\r\nxx"):
            received += connection.recv(65_536)
        time.sleep(4 * SECONDS)
    assert connections.cut_off == {}
    # Whom a client says to speak for is believed of nobody, unless that is set.
    assert app.clients == {"127.0.0.1"}
    connection.sendall(b"\r\n")
    assert told(rest(connection)) == (408, "too_slow")


def test_a_request_that_is_here_has_all_the_time_it_needs(connect):
    connection = connect()
    # Half of a second request follows; it is cut off once the first has its answer.
    connection.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\nGET /")
    answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert told(answer) == (408, "too_slow")


def test_an_answer_that_nobody_reads_is_given_up(connect):
    connection = connect()
    connection.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
    while not connections.cut_off:
        time.sleep(0.005)
    assert connections.cut_off == {"slow_reader": 1}
    received = b""
    with contextlib.suppress(ConnectionResetError):
        received = rest(connection)
    assert len(received) < LARGE


def test_one_connection_too_many_is_told_so(connect, monkeypatch):
    monkeypatch.setattr(connections, "most_connections", lambda: 2)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 60)
    first, _, third = connect(), connect(), connect()
    assert told(rest(third)) == (503, "unavailable")
    assert connections.cut_off == {"too_many": 1}
    first.close()
    while True:  # until the server has seen that
        fourth = connect()
        fourth.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        if fourth.recv(65_536).startswith(b"HTTP/1.1 200"):
            break


def test_the_limit_leaves_files_for_other_uses():
    assert 1 <= connections.most_connections() <= 10_000
