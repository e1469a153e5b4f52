"""I12: no request, however malformed, gets a 500; each gets the one error shape."""

import contextlib
import json
import socket
from urllib.parse import urlsplit

import psutil
import pytest
from sqlalchemy import text

from experiment_service.api.schemas import ErrorAnswer
from experiment_service.storage import schema
from tests.integration.serving.conftest import declaration

RECOMMEND = "/v1/recommendations"
ASSIGN = "/v1/assignments"
EXPOSE = "/v1/exposures"
INTERACT = "/v1/interactions"
EXPERIMENTS = "/v1/experiments"
KEYS = "/v1/keys"
ERASE = "/v1/erasures"

GOOD = {"unit_id": "u", "placement": "home"}
EXPOSURE = {
    "exposure_id": "0199c2f0-7c1e-7a54-9d8e-3f1b6a2c4d5e",
    "experiment": "none",
    "unit_id": "u",
    "variant": "new",
    "epoch": 0,
    "model": "als/1",
}
CLICK = {"id": "x", "unit_id": "u", "kind": "click"}


def body(**changes):
    return json.dumps(GOOD | changes)


def exposure(**changes):
    return json.dumps(EXPOSURE | changes)


def click(**changes):
    return json.dumps({"interactions": [CLICK | changes]})


def declared(**changes):
    return json.dumps(declaration("hostile") | changes)


# Method, path, body and the status it gets.
HOSTILE = {
    "empty body": ("POST", RECOMMEND, "", 400),
    "white space": ("POST", RECOMMEND, " \n", 400),
    "cut off": ("POST", RECOMMEND, '{"unit_id": "u"', 400),
    "two documents": ("POST", RECOMMEND, body() + body(), 400),
    "not JSON": ("POST", RECOMMEND, "unit_id=u", 400),
    "not UTF-8": ("POST", RECOMMEND, b'{"unit_id": "\xff\xfe"}', 400),
    "byte order mark": ("POST", RECOMMEND, b"\xef\xbb\xbf{}", 400),
    "UTF-16": ("POST", RECOMMEND, body().encode("utf-16"), 400),
    "lone surrogate": ("POST", RECOMMEND, '{"unit_id": "\\ud800"}', 400),
    "deep list": ("POST", RECOMMEND, "[" * 100_000, 400),
    "deep object": ("POST", RECOMMEND, '{"a":' * 50_000 + "1" + "}" * 50_000, 400),
    "deep attribute": (
        "POST",
        RECOMMEND,
        body(attributes={"a": json.loads("[" * 50 + "]" * 50)}),
        422,
    ),
    "list for an object": ("POST", RECOMMEND, "[]", 422),
    "text for an object": ("POST", RECOMMEND, '"u"', 422),
    "null for an object": ("POST", RECOMMEND, "null", 422),
    "number for an object": ("POST", RECOMMEND, "1e999", 422),
    "nothing given": ("POST", RECOMMEND, "{}", 422),
    "unknown field": ("POST", RECOMMEND, body(colour="red"), 422),
    "number as unit": ("POST", RECOMMEND, body(unit_id=7), 422),
    "empty unit": ("POST", RECOMMEND, body(unit_id=""), 422),
    "null unit": ("POST", RECOMMEND, body(unit_id=None), 422),
    "10 kB unit": ("POST", RECOMMEND, body(unit_id="u" * 10_000), 422),
    "NUL in unit": ("POST", RECOMMEND, body(unit_id="a\x00b"), 422),
    "newline in unit": ("POST", RECOMMEND, body(unit_id="a\nb"), 422),
    "NUL in placement": ("POST", RECOMMEND, body(placement="\x00"), 422),
    "unknown placement": ("POST", RECOMMEND, body(placement="../../etc"), 404),
    "k 0": ("POST", RECOMMEND, body(k=0), 422),
    "k 201": ("POST", RECOMMEND, body(k=201), 422),
    "k negative": ("POST", RECOMMEND, body(k=-1), 422),
    "k huge": ("POST", RECOMMEND, body(k=10**400), 422),
    "k of 5000 digits": ("POST", RECOMMEND, '{"k":' + "9" * 5000 + "}", 400),
    "k fraction": ("POST", RECOMMEND, body(k=1.5), 422),
    "k text": ("POST", RECOMMEND, body(k="10"), 422),
    "k true": ("POST", RECOMMEND, body(k=True), 422),
    "k NaN": ("POST", RECOMMEND, body(k=float("nan")), 422),
    "k Infinity": ("POST", RECOMMEND, body(k=float("inf")), 422),
    "exclusions no list": ("POST", RECOMMEND, body(exclude_item_ids="a"), 422),
    "201 exclusions": ("POST", RECOMMEND, body(exclude_item_ids=["a"] * 201), 422),
    "recent no list": ("POST", RECOMMEND, body(recent_item_ids="a"), 422),
    "21 recent": ("POST", RECOMMEND, body(recent_item_ids=["a"] * 21), 422),
    "empty recent": ("POST", RECOMMEND, body(recent_item_ids=[""]), 422),
    "long recent": ("POST", RECOMMEND, body(recent_item_ids=["a" * 129]), 422),
    "null recent": ("POST", RECOMMEND, body(recent_item_ids=[None]), 422),
    "number excluded": ("POST", RECOMMEND, body(exclude_item_ids=[1]), 422),
    "attribute NaN": ("POST", RECOMMEND, body(attributes={"a": float("nan")}), 422),
    "attribute infinite": ("POST", RECOMMEND, body(attributes={"a": 1e999}), 422),
    "attribute huge": ("POST", RECOMMEND, body(attributes={"a": 10**400}), 422),
    "attribute null": ("POST", RECOMMEND, body(attributes={"a": None}), 422),
    "attribute list": ("POST", RECOMMEND, body(attributes={"a": []}), 422),
    "attribute NUL": ("POST", RECOMMEND, body(attributes={"a": "\x00"}), 422),
    "attribute unnamed": ("POST", RECOMMEND, body(attributes={"": 1}), 422),
    "attribute long": ("POST", RECOMMEND, body(attributes={"a": "x" * 257}), 422),
    "51 attributes": (
        "POST",
        RECOMMEND,
        body(attributes={str(n): n for n in range(51)}),
        422,
    ),
    "attributes a list": ("POST", RECOMMEND, body(attributes=[]), 422),
    "log_exposure 1": ("POST", RECOMMEND, body(log_exposure=1), 422),
    "over 1 MiB": ("POST", RECOMMEND, body(unit_id="u" * 1_100_000), 413),
    "assignment of nothing": ("POST", ASSIGN, '{"unit_id": "u"}', 422),
    "assignment of both": ("POST", ASSIGN, body(experiment="x"), 422),
    "unknown experiment": (
        "POST",
        ASSIGN,
        '{"unit_id":"u","experiment":"\u2603"}',
        404,
    ),
    "no requests": ("POST", ASSIGN, '{"requests": []}', 422),
    "requests null": ("POST", ASSIGN, '{"requests": null}', 422),
    "1001 requests": ("POST", ASSIGN, json.dumps({"requests": [GOOD] * 1001}), 422),
    "requests and more": ("POST", ASSIGN, '{"requests": [], "unit_id": "u"}', 422),
    "exposure id no UUID": ("POST", EXPOSE, exposure(exposure_id="x"), 422),
    "exposure id number": ("POST", EXPOSE, exposure(exposure_id=5), 422),
    "exposure of no experiment": ("POST", EXPOSE, exposure(), 422),
    "epoch huge": ("POST", EXPOSE, exposure(epoch=2**70), 422),
    "epoch negative": ("POST", EXPOSE, exposure(epoch=-1), 422),
    "own propensity": ("POST", EXPOSE, exposure(propensity=1.0), 422),
    "shown never": ("POST", EXPOSE, exposure(exposed_at="never"), 422),
    "shown in year 1": (
        "POST",
        EXPOSE,
        exposure(exposed_at="0001-01-01T00:00:00+14:00"),
        422,
    ),
    "shown in year 9999": (
        "POST",
        EXPOSE,
        exposure(exposed_at="9999-12-31T23:59:59-14:00"),
        422,
    ),
    "item without source": ("POST", EXPOSE, exposure(items=[{"item_id": "i"}]), 422),
    "no interactions": ("POST", INTERACT, '{"interactions": []}', 422),
    "interactions an object": ("POST", INTERACT, '{"interactions": {}}', 422),
    "interaction a number": ("POST", INTERACT, '{"interactions": [1]}', 422),
    "1001 interactions": (
        "POST",
        INTERACT,
        json.dumps({"interactions": [CLICK] * 1001}),
        422,
    ),
    "interaction id huge": ("POST", INTERACT, click(id="i" * 10_000), 422),
    "interaction id NUL": ("POST", INTERACT, click(id="\x00"), 422),
    "interaction id a number": ("POST", INTERACT, click(id=1), 422),
    "kind unknown": ("POST", INTERACT, click(kind="k" * 5000), 422),
    "kind a list": ("POST", INTERACT, click(kind=["click"]), 422),
    "position 0": ("POST", INTERACT, click(position=0), 422),
    "position huge": ("POST", INTERACT, click(position=10**400), 422),
    "position fraction": ("POST", INTERACT, click(position=1.5), 422),
    "value NaN": ("POST", INTERACT, click(value=float("nan")), 422),
    "value text": ("POST", INTERACT, click(value="much"), 422),
    "value huge": ("POST", INTERACT, click(value="1e999999999"), 422),
    "value of many digits": ("POST", INTERACT, click(value=10**400), 422),
    "value infinite": ("POST", INTERACT, click(value="Infinity"), 422),
    "value object": ("POST", INTERACT, click(value={}), 422),
    "time without zone": (
        "POST",
        INTERACT,
        click(occurred_at="2026-01-01T00:00:00"),
        422,
    ),
    "time in year 1": (
        "POST",
        INTERACT,
        click(occurred_at="0001-01-01T00:00:00+14:00"),
        422,
    ),
    "time a number": ("POST", INTERACT, click(occurred_at=10**30), 422),
    "interaction unknown field": ("POST", INTERACT, click(colour="red"), 422),
    "interaction of exposure x": ("POST", INTERACT, click(exposure_id="x"), 422),
    "declaration empty": ("POST", EXPERIMENTS, "{}", 422),
    "declaration a list": ("POST", EXPERIMENTS, "[]", 422),
    "declaration no JSON": ("POST", EXPERIMENTS, "{", 400),
    "declaration nothing": ("POST", EXPERIMENTS, "", 422),
    "declaration deep": ("POST", EXPERIMENTS, "[" * 100_000, 400),
    "declaration nested": (
        "POST",
        EXPERIMENTS,
        declared(description=json.loads("[" * 900 + "]" * 900)),
        422,
    ),
    "declaration nested variants": (
        "POST",
        EXPERIMENTS,
        declared(variants=json.loads("[" * 900 + "]" * 900)),
        422,
    ),
    "declaration surrogate": ("POST", EXPERIMENTS, declared(description="\ud800"), 422),
    "declaration NUL": ("POST", EXPERIMENTS, declared(description="\x00"), 422),
    "declaration NUL setting": (
        "POST",
        EXPERIMENTS,
        declared(
            kind="bandit", policy={"name": "thompson", "parameters": {"a": "\x00"}}
        ),
        422,
    ),
    "declaration huge segment": (
        "POST",
        EXPERIMENTS,
        declared(segments=[0, 10**400]),
        422,
    ),
    "declaration huge share": (
        "POST",
        EXPERIMENTS,
        declared(traffic_share=10**400),
        422,
    ),
    "declaration NaN share": (
        "POST",
        EXPERIMENTS,
        declared(traffic_share=float("nan")),
        422,
    ),
    "declaration endless window": (
        "POST",
        EXPERIMENTS,
        declared(attribution_window=10**400),
        422,
    ),
    "declaration NaN window": (
        "POST",
        EXPERIMENTS,
        declared(attribution_window=float("nan")),
        422,
    ),
    "declaration huge target": (
        "POST",
        EXPERIMENTS,
        declared(
            targeting=[{"attribute": "a", "operator": "at_least", "values": [10**400]}]
        ),
        422,
    ),
    "declaration too long": ("POST", EXPERIMENTS, " " * 1_100_000, 413),
    "weights of nothing": ("PUT", f"{EXPERIMENTS}/none/weights", "{}", 422),
    "weights of none": (
        "PUT",
        f"{EXPERIMENTS}/none/weights",
        '{"weights": {"a": 1.0}}',
        404,
    ),
    "weights NaN": (
        "PUT",
        f"{EXPERIMENTS}/none/weights",
        '{"weights": {"a": NaN}}',
        422,
    ),
    "stop of none": ("POST", f"{EXPERIMENTS}/none/stop", '{"reason": "x"}', 404),
    "stop reason NUL": (
        "POST",
        f"{EXPERIMENTS}/none/stop",
        '{"reason": "\\u0000"}',
        422,
    ),
    "placement bad key": ("PUT", "/v1/placements/A%20b", '{"recommender":"als"}', 422),
    "NUL in path": ("GET", f"{EXPERIMENTS}/a%00b", None, 422),
    "slash in path": ("GET", f"{EXPERIMENTS}/a%2fb", None, 404),
    "bad UTF-8 in path": ("GET", f"{EXPERIMENTS}/%ff%fe", None, 404),
    "long path": ("GET", f"{EXPERIMENTS}/{'x' * 5000}", None, 422),
    "explain no unit": ("GET", f"{EXPERIMENTS}/none/explain", None, 422),
    "explain NUL unit": ("GET", f"{EXPERIMENTS}/none/explain?unit_id=%00", None, 422),
    "explain surrogate unit": (
        "GET",
        f"{EXPERIMENTS}/none/explain?unit_id=%ed%a0%80",
        None,
        404,
    ),
    "explain bad attributes": (
        "GET",
        f"{EXPERIMENTS}/none/explain?unit_id=u&attributes=[[",
        None,
        422,
    ),
    "explain deep attributes": (
        "GET",
        f"{EXPERIMENTS}/none/explain?unit_id=u&attributes={'[' * 3000}",
        None,
        422,
    ),
    "report long ago": (
        "GET",
        f"{EXPERIMENTS}/none/report?as_of=0001-01-01T00:00:00%2B14:00",
        None,
        422,
    ),
    "report never": ("GET", f"{EXPERIMENTS}/none/report?as_of=never", None, 422),
    "report without zone": (
        "GET",
        f"{EXPERIMENTS}/none/report?as_of=2026-01-01T00:00:00",
        None,
        422,
    ),
    "unknown route": ("GET", "/v2/recommendations", None, 404),
    "unknown posted route": ("POST", "/nowhere", "{}", 404),
    "trailing slash": ("POST", f"{RECOMMEND}/", "{}", 404),
    "double slash": ("POST", "//v1/recommendations", "{}", 404),
    "get of a hot route": ("GET", RECOMMEND, None, 405),
    "delete of a hot route": ("DELETE", INTERACT, None, 405),
    "delete of an experiment": ("DELETE", f"{EXPERIMENTS}/none", None, 405),
    "patch": ("PATCH", EXPERIMENTS, "{}", 405),
    "options": ("OPTIONS", RECOMMEND, None, 405),
    "placement with SQL": (
        "POST",
        RECOMMEND,
        body(placement="home'; DROP TABLE audit; --"),
        404,
    ),
    "experiment with SQL": ("GET", f"{EXPERIMENTS}/x'%20OR%20'1'='1", None, 404),
    "experiment key with SQL": (
        "POST",
        EXPERIMENTS,
        declared(key="x'); DELETE FROM experiment; --"),
        422,
    ),
    "path to a file": ("GET", "/v1/../../etc/passwd", None, 404),
    "encoded path to a file": ("GET", "/%2e%2e/%2e%2e/etc/passwd", None, 404),
    "experiment key with a path": (
        "POST",
        EXPERIMENTS,
        declared(key="../../etc/passwd"),
        422,
    ),
    "line break in an experiment's path": (
        "GET",
        f"{EXPERIMENTS}/a%0d%0aset-cookie:x",
        None,
        422,
    ),
    "51 variants": (
        "POST",
        EXPERIMENTS,
        declared(
            variants=[
                {"key": f"v{n}", "recommender": "als", "control": n == 0}
                for n in range(51)
            ]
        ),
        422,
    ),
    "31 metrics": (
        "POST",
        EXPERIMENTS,
        declared(
            metrics=[
                {
                    "name": f"m{n}",
                    "title": "m",
                    "kind": "mean",
                    "event_kinds": ["click"],
                }
                for n in range(31)
            ]
        ),
        422,
    ),
    "1001 overrides": (
        "POST",
        EXPERIMENTS,
        declared(overrides={f"u{n}": "new" for n in range(1001)}),
        422,
    ),
    "1001 new overrides": (
        "PUT",
        f"{EXPERIMENTS}/none/overrides",
        json.dumps({"overrides": {f"u{n}": "new" for n in range(1001)}}),
        422,
    ),
    "1001 targeting values": (
        "POST",
        EXPERIMENTS,
        declared(
            targeting=[{"attribute": "a", "operator": "in", "values": ["x"] * 1001}]
        ),
        422,
    ),
    "201 items shown": (
        "POST",
        EXPOSE,
        exposure(items=[{"item_id": "i", "source": "s"}] * 201),
        422,
    ),
    "1001 exposures": (
        "POST",
        EXPOSE,
        json.dumps({"exposures": [EXPOSURE] * 1001}),
        422,
    ),
    "key of no scope": ("POST", KEYS, '{"name": "k", "scopes": []}', 422),
    "key of an unknown scope": ("POST", KEYS, '{"name": "k", "scopes": ["root"]}', 422),
    "key of a scope twice": (
        "POST",
        KEYS,
        '{"name": "k", "scopes": ["admin", "admin"]}',
        422,
    ),
    "key for every page": (
        "POST",
        KEYS,
        '{"name": "k", "scopes": ["storefront"], "origins": ["*"]}',
        422,
    ),
    "admin key for a page": (
        "POST",
        KEYS,
        '{"name": "k", "scopes": ["admin"], "origins": ["https://a.example"]}',
        422,
    ),
    "key with a line break": ("POST", KEYS, '{"name":"a\\nb","scopes":["admin"]}', 422),
    "key without end": (
        "POST",
        KEYS,
        '{"name": "k", "scopes": ["admin"], "days": 1e300}',
        422,
    ),
    "key of negative speed": (
        "POST",
        KEYS,
        '{"name": "k", "scopes": ["admin"], "per_second": -1}',
        422,
    ),
    "own secret": ("POST", KEYS, '{"name":"k","scopes":["admin"],"hash":"x"}', 422),
    "revocation of no key": ("POST", f"{KEYS}/0a1b2c3d4e5f/revoke", None, 404),
    "rotation of no key": ("POST", f"{KEYS}/%00/rotate", None, 422),
    "rotation for ever": (
        "POST",
        f"{KEYS}/none/rotate",
        '{"overlap_hours": 1e400}',
        422,
    ),
    "deletion of a key": ("DELETE", f"{KEYS}/none", None, 404),
    "erasure of nobody": ("POST", ERASE, "{}", 422),
    "erasure of all": ("POST", ERASE, '{"unit_id": ""}', 422),
    "erasure of several": ("POST", ERASE, '{"unit_id": ["a", "b"]}', 422),
    "erasure with NUL": ("POST", ERASE, '{"unit_id": "a\\u0000"}', 422),
    "audit of page 0": ("GET", "/v1/audit?before=0", None, 422),
    "audit beyond 64 bits": ("GET", f"/v1/audit?before={10**30}", None, 422),
    "all of the audit": ("GET", "/v1/audit?limit=1000000", None, 422),
    "audit written": ("POST", "/v1/audit", "{}", 405),
}


_COUNTED = [table.name for table in schema.metadata.sorted_tables]
_COUNTS = text(
    " UNION ALL ".join(f"SELECT '{name}', count(*) FROM {name}" for name in _COUNTED)
)


@pytest.fixture
def nothing_written(running_shop):
    """Demand that no table has gained or lost a row, and no journal an event."""

    def counts():
        waiting = running_shop.get("/v1/status").json()["journal"]["events"]
        with running_shop.engine.connect() as connection:
            return waiting, sorted(map(tuple, connection.execute(_COUNTS)))

    before = counts()
    yield
    assert counts() == before


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_request_gets_its_refusal(running_shop, name):
    method, path, content, status = HOSTILE[name]
    answer = running_shop.client.request(
        method, path, content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code == status, answer.text
    error = ErrorAnswer.model_validate_json(answer.content).error
    assert len(error.message) < 600
    assert len(error.message.split()) >= 3, error.message
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", [RECOMMEND, ASSIGN, EXPOSE, INTERACT, EXPERIMENTS])
@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/xml", "multipart/form-data", "", None]
)
def test_other_content_types_are_refused(running_shop, path, content_type):
    headers = {} if content_type is None else {"content-type": content_type}
    answer = running_shop.client.post(path, content=body(), headers=headers)
    assert answer.status_code == 415, answer.text
    error = ErrorAnswer.model_validate_json(answer.content).error
    assert "it must be application/json" in error.message


def test_charset_in_the_content_type_is_fine(running_shop):
    answer = running_shop.client.post(
        RECOMMEND,
        content=body(),
        headers={"content-type": "Application/JSON; charset=utf-8"},
    )
    assert answer.status_code == 200


def test_messages_name_field_value_and_rule(running_shop):
    def message(path, document):
        return running_shop.post(path, document).json()["error"]

    assert message(RECOMMEND, GOOD | {"k": 500}) == {
        "code": "invalid_request",
        "message": "k is 500; it must be less than or equal to 200",
        "field": "k",
    }
    long = message(RECOMMEND, GOOD | {"unit_id": "u" * 10_000})
    assert long["message"].endswith("...; it must have at most 128 characters")
    nested = message(ASSIGN, {"requests": [GOOD, GOOD | {"attributes": {"a": []}}]})
    assert nested["field"] == "requests.1.attributes"
    assert nested["message"] == (
        "attributes.a is []; it must be a text, a finite number or a truth value"
    )
    several = message(RECOMMEND, {"k": 0})
    assert [each["field"] for each in several["details"]] == [
        "unit_id",
        "placement",
        "k",
    ]
    assert several["message"] == "unit_id is missing; it is required"
    missing = running_shop.get("/v2/x").json()["error"]["message"]
    assert missing.startswith("GET /v2/x is not a route")
    wrong = running_shop.get(RECOMMEND).json()["error"]["message"]
    assert wrong == f"GET is not allowed on {RECOMMEND}; allowed: POST"


RAW = {
    "no HTTP": b"hello\r\n\r\n",
    "bad version": b"GET / HTTP/9.9\r\n\r\n",
    "bad header": b"GET / HTTP/1.1\r\nhost\r\n\r\n",
    "bad length": b"POST /v1/recommendations HTTP/1.1\r\ncontent-length: x\r\n\r\n",
    "bad chunk": b"POST /v1/recommendations HTTP/1.1\r\ntransfer-encoding: chunked"
    b"\r\ncontent-type: application/json\r\n\r\nzz\r\n",
    "unknown method": b"STEAL /v1/keys HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "a tunnel": b"CONNECT localhost:5432 HTTP/1.1\r\nhost: localhost:5432\r\n\r\n",
    "NUL in a header": b"GET /v1/keys HTTP/1.1\r\nhost: localhost\r\nx: a\x00b\r\n\r\n",
    "NUL in the path": b"GET /v1/\x00 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "two lengths": b"POST /v1/recommendations HTTP/1.1\r\ncontent-length: 2\r\n"
    b"content-length: 30\r\n\r\n{}",
    "length and chunks": b"POST /v1/recommendations HTTP/1.1\r\ncontent-length: 4\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/keys HTTP/1.1\r\n\r\n",
    "negative length": b"POST /v1/recommendations HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    "endless path": b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "host of another site": b"GET /v1/keys HTTP/1.1\r\nhost: evil.example\r\n\r\n",
    "page of another site": b"POST /v1/keys HTTP/1.1\r\nhost: localhost\r\n"
    b"origin: https://evil.example\r\ncontent-length: 0\r\n\r\n",
    "stop from another site": b"POST /v1/experiments/x/stop HTTP/1.1\r\n"
    b"host: localhost\r\norigin: null\r\ncontent-length: 0\r\n\r\n",
    "preflight of another site": b"OPTIONS /v1/interactions HTTP/1.1\r\n"
    b"host: localhost\r\norigin: https://evil.example\r\n"
    b"access-control-request-method: POST\r\n\r\n",
    "raw bytes in the path": b"GET /v1/\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
}


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("name", RAW)
def test_broken_http_is_refused_and_serving_goes_on(running_shop, name):
    address = urlsplit(running_shop.address)
    with socket.create_connection((address.hostname, address.port), 5) as connection:
        status = b""
        # A server that has heard enough closes, whatever is still on its way.
        with contextlib.suppress(OSError):
            connection.sendall(RAW[name])
            connection.shutdown(socket.SHUT_WR)
            status = connection.recv(65_536).split(b"\r\n")[0]
    assert b" 4" in status or status == b""
    assert running_shop.post(RECOMMEND, GOOD).status_code == 200


def test_a_head_without_end_is_cut_off(running_shop):
    """Without a bound its 64 MiB would be kept in memory, per connection."""
    process = psutil.Process(running_shop.process.pid)
    before = process.memory_info().rss
    address = urlsplit(running_shop.address)
    sent, answer = 0, b""
    with socket.create_connection((address.hostname, address.port), 5) as connection:
        try:
            connection.sendall(b"GET /v1/status HTTP/1.1\r\nhost: localhost\r\n")
            while sent < 64 << 20:
                connection.sendall(b"x: " + b"a" * 16_000 + b"\r\n")
                sent += 16_005
        except OSError:
            pass
        with contextlib.suppress(OSError):
            answer = connection.recv(65_536)
    assert sent < 8 << 20
    assert answer == b"" or b" 431 " in answer.split(b"\r\n")[0]
    assert process.memory_info().rss - before < 16 << 20
    assert running_shop.post(RECOMMEND, GOOD).status_code == 200


def test_a_long_body_behind_a_short_head_is_fine(running_shop):
    padded = body() + " " * 1_000_000
    answer = running_shop.client.post(
        RECOMMEND, content=padded, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 200


def test_chunked_body_over_the_limit_is_refused(running_shop):
    def chunks():
        for _ in range(40):
            yield b" " * 65_536

    answer = running_shop.client.post(
        RECOMMEND, content=chunks(), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 413


def test_client_that_hangs_up_harms_nobody(running_shop):
    address = urlsplit(running_shop.address)
    for _ in range(20):
        with socket.create_connection((address.hostname, address.port), 5) as half:
            half.sendall(
                b"POST /v1/recommendations HTTP/1.1\r\ncontent-length: 500\r\n"
                b"content-type: application/json\r\n\r\n{"
            )
    assert running_shop.post(RECOMMEND, GOOD).status_code == 200
    assert "Traceback" not in running_shop.log.read_text()
