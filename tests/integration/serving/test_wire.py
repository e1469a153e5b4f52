"""The hot routes on the wire: what is framed otherwise is answered alike."""

import json
import os
import signal
import socket
from urllib.parse import urlsplit

import psutil
import pytest

from experiment_service.api import schemas
from tests.integration.serving.conftest import UNITS, declaration

ROUTES = {
    "/v1/recommendations": {"unit_id": "u", "placement": "home", "k": 3},
    "/v1/assignments": {"unit_id": "u", "placement": "home"},
    "/v1/exposures": {"exposures": []},
    "/v1/interactions": {
        "interactions": [{"id": "wire", "unit_id": "u", "kind": "click"}]
    },
}
ANSWERS = {
    "/v1/recommendations": schemas.RecommendationAnswer,
    "/v1/assignments": schemas.AssignmentAnswer,
    "/v1/exposures": schemas.ErrorAnswer,
    "/v1/interactions": schemas.Receipt,
}


@pytest.fixture(scope="module", autouse=True)
def experiment(running_shop):
    assert running_shop.post("/v1/experiments", declaration("wire")).is_success
    assert running_shop.post("/v1/experiments/wire/start", {}).is_success
    running_shop.wait_for(lambda: recommended(running_shop)["experiment"] == "wire")


def recommended(server):
    return server.post("/v1/recommendations", ROUTES["/v1/recommendations"]).json()


@pytest.fixture
def connection(running_shop):
    address = urlsplit(running_shop.address)
    with socket.create_connection((address.hostname, address.port), 10) as connection:
        yield connection


def request(path, document):
    body = json.dumps(document).encode()
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body


def answers(connection, count):
    """Read so many answers; return their bodies."""
    received, bodies = b"", []
    while len(bodies) < count:
        received += connection.recv(65_536)
        while b"\r\n\r\n" in received:
            head, _, rest = received.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
            if len(rest) < length:
                break
            bodies.append(json.loads(rest[:length]))
            received = rest[length:]
    assert not received
    return bodies


@pytest.mark.parametrize("path", ROUTES)
def test_answers_fit_what_is_declared(running_shop, path):
    answer = running_shop.post(path, ROUTES[path])
    ANSWERS[path].model_validate_json(answer.content)
    documented = running_shop.get("/openapi.json").json()["paths"][path]["post"]
    assert str(answer.status_code) in documented["responses"]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_told_which_is_allowed(running_shop, method, path):
    answer = running_shop.client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


def test_pipelined_requests_are_answered_in_order(connection):
    sent = [
        request("/v1/recommendations", {"unit_id": unit, "placement": "home", "k": 2})
        for unit in UNITS[:30]
    ]
    connection.sendall(b"".join(sent))
    assert [body["unit_id"] for body in answers(connection, 30)] == UNITS[:30]


def test_connection_outlives_a_refused_request(connection):
    for document, key in [
        ({"unit_id": "u"}, "error"),
        ({"unit_id": "u", "placement": "home"}, "items"),
    ] * 3:
        connection.sendall(request("/v1/recommendations", document))
        assert key in answers(connection, 1)[0]


def test_body_in_small_chunks_is_put_together(running_shop):
    body = json.dumps(ROUTES["/v1/recommendations"]).encode()
    answer = running_shop.client.post(
        "/v1/recommendations",
        content=(body[start : start + 1] for start in range(len(body))),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 200
    assert len(answer.json()["items"]) == 3


def test_body_that_comes_late_is_waited_for(connection):
    whole = request("/v1/recommendations", ROUTES["/v1/recommendations"])
    connection.sendall(whole[:-5])
    connection.settimeout(0.2)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.settimeout(10)
    connection.sendall(whole[-5:])
    assert len(answers(connection, 1)[0]["items"]) == 3


def test_announced_huge_body_is_refused_before_it_is_sent(connection):
    connection.sendall(
        b"POST /v1/recommendations HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999\r\n"
        b"content-type: application/json\r\n\r\n{"
    )
    assert answers(connection, 1)[0]["error"]["code"] == "too_large"


def test_client_that_leaves_before_its_answer_leaves_its_exposure(running_shop):
    address = urlsplit(running_shop.address)
    for unit in UNITS[100:120]:
        with socket.create_connection((address.hostname, address.port), 5) as gone:
            gone.sendall(
                request("/v1/recommendations", {"unit_id": unit, "placement": "home"})
            )
    with running_shop.engine.connect() as connection:
        stored = "SELECT count(DISTINCT unit_id) FROM exposure WHERE unit_id = ANY(%s)"
        running_shop.wait_for(
            lambda: connection.exec_driver_sql(stored, (UNITS[100:120],)).scalar() == 20
        )
    assert "Traceback" not in running_shop.log.read_text()


def test_latency_of_the_hot_routes_is_counted(running_shop):
    def count():
        latency = running_shop.get("/v1/status").json()["latency"]
        return latency["POST /v1/recommendations"]["count"]

    before = count()
    for _ in range(5):
        recommended(running_shop)
    assert count() == before + 5


def test_writer_that_is_killed_is_started_again(running_shop):
    (writer,) = psutil.Process(running_shop.process.pid).children()
    os.kill(writer.pid, signal.SIGKILL)
    exposure_id = recommended(running_shop)["exposure_id"]
    with running_shop.engine.connect() as connection:
        stored = "SELECT count(*) FROM exposure WHERE id = %s"
        running_shop.wait_for(
            lambda: connection.exec_driver_sql(stored, (exposure_id,)).scalar() == 1
        )
    assert "writer died and is started again" in running_shop.log.read_text()
