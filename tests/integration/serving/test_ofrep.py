"""OFREP 0.3.0: every answer against the protocol's schema, by hand and by its clients."""

import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
from openfeature import api as openfeature
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason
from sqlalchemy import text
from uuid_utils.compat import uuid7

from experiment_service import experimentation
from experiment_service.domain.declaration import parse_declaration
from experiment_service.storage import database
from tests.integration.serving.conftest import (
    UNITS,
    declaration,
    now,
    run_experiment,
)

ROUTE = "/ofrep/v1/evaluate/flags"
CLIENTS = Path(__file__).parents[2] / "openfeature"
REASONS = ["STATIC", "TARGETING_MATCH", "SPLIT", "DISABLED", "UNKNOWN"]
CODES = ["PARSE_ERROR", "TARGETING_KEY_MISSING", "INVALID_CONTEXT", "GENERAL"]

# The protocol's schemas as its description says them; an array is no value, metadata is
# flat, and a failure of the bulk request has no key.
SUCCESS = {
    "type": "object",
    "required": ["key", "reason"],
    "properties": {
        "key": {"type": "string"},
        "reason": {"enum": REASONS},
        "variant": {"type": "string"},
        "value": {"type": ["boolean", "string", "number", "object"]},
        "metadata": {
            "type": "object",
            "additionalProperties": {"type": ["boolean", "string", "number"]},
        },
    },
    "additionalProperties": False,
}


def failure(codes, *, key):
    named = {"key": {"type": "string"}} if key else {}
    return {
        "type": "object",
        "required": ["errorCode", *named],
        "properties": {
            **named,
            "errorCode": {"enum": codes},
            "errorDetails": {"type": "string"},
        },
        "additionalProperties": False,
    }


GENERAL = {
    "type": "object",
    "properties": {"errorDetails": {"type": "string"}},
    "additionalProperties": False,
}
SINGLE_ANSWERS = {
    200: SUCCESS,
    400: failure(CODES, key=True),
    404: failure(["FLAG_NOT_FOUND"], key=True),
    500: GENERAL,
    503: GENERAL,
}
BULK_ANSWERS = {
    200: {
        "type": "object",
        "required": ["flags"],
        "properties": {
            "flags": {
                "type": "array",
                "items": {"oneOf": [SUCCESS, failure(CODES, key=True)]},
            }
        },
        "additionalProperties": False,
    },
    400: failure(CODES, key=False),
    500: GENERAL,
    503: GENERAL,
}


def check(path, status, document):
    answers = BULK_ANSWERS if path.endswith("/flags") else SINGLE_ANSWERS
    jsonschema.validate(document, answers[status])
    return document


def evaluate(server, key, context, status=200):
    response = server.post(f"{ROUTE}/{key}", {"context": context})
    assert response.status_code == status, response.text
    return check(f"{ROUTE}/{key}", status, response.json())


def evaluate_all(server, context, tag=None):
    headers = {"If-None-Match": tag} if tag else {}
    response = server.post(ROUTE, {"context": context}, headers=headers)
    if response.status_code == 304:
        assert response.content == b""
    else:
        check(ROUTE, response.status_code, response.json())
    return response


def unit(name, **attributes):
    return {"targetingKey": name, **attributes}


@pytest.fixture(scope="module")
def flags(common_shop):
    """An A/B test of half the units, targeted, with an override; and two drafts."""
    engine = common_shop.engine
    with database.transaction(engine) as connection:
        for key in ("draft", "ended"):
            document = parse_declaration(declaration(key, segments=[5000, 10_000]))
            experimentation.create(connection, document, actor="test", now=now())
    # Its start is notified, a draft is not.
    run_experiment(
        engine,
        declaration(
            "half",
            segments=[0, 5000],
            overrides={"tester": "new"},
            targeting=[{"attribute": "country", "operator": "in", "values": ["at"]}],
        ),
    )
    common_shop.wait_for(lambda: len(known_states(common_shop)) == 3)
    return common_shop


def known_states(server):
    found = {
        key: server.post(f"{ROUTE}/{key}", {"context": unit("u")}).status_code
        for key in ("half", "draft", "ended")
    }
    return [key for key, status in found.items() if status == 200]


def exposures(server):
    """Count the exposures that are stored, or wait to be."""
    server.wait_for(lambda: server.get("/v1/status").json()["journal"]["events"] == 0)
    with server.engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM exposure")).scalar_one()


def test_a_flag_is_the_assignment_that_the_service_gives(flags):
    reasons = set()
    for name in UNITS[:60]:
        told = evaluate(flags, "half", unit(name, country="at"))
        same = flags.post(
            "/v1/assignments",
            {
                "unit_id": name,
                "experiment": "half",
                "attributes": {"country": "at"},
                "log_exposure": False,
            },
        ).json()
        reasons.add(told["reason"])
        assert told["key"] == "half"
        assert told["variant"] == (same["variant"] or "")
        assert told["value"] == same["settings"]
        metadata = told["metadata"]
        assert metadata["experiment"] == "half"
        assert metadata["recommender"] == same["recommender"]
        assert metadata.get("epoch") == same["epoch"]
        assert metadata.get("propensity") == same["propensity"]
        assert "exposure_id" not in metadata
    assert reasons == {"SPLIT", "STATIC"}


def test_targeting_overrides_and_drafts_have_their_reasons(flags):
    elsewhere = evaluate(flags, "half", unit(UNITS[0], country="de"))
    assert (elsewhere["reason"], elsewhere["variant"]) == ("STATIC", "")
    tester = evaluate(flags, "half", unit("tester"))
    assert (tester["reason"], tester["variant"]) == ("TARGETING_MATCH", "new")
    assert tester["value"] == {"title": "For you"}
    assert "propensity" not in tester["metadata"]
    draft = evaluate(flags, "draft", unit(UNITS[0]))
    assert draft["reason"] == "DISABLED"
    assert "value" not in draft


def test_bulk_says_what_single_evaluations_say_and_neither_logs(flags):
    before = exposures(flags)
    context = unit("unit-7", country="at", cart=[1, 2], nothing=None, deep={"a": [1]})
    document = evaluate_all(flags, context).json()
    assert [flag["key"] for flag in document["flags"]] == ["half", "offers-test"]
    for flag in document["flags"]:
        assert flag == evaluate(flags, flag["key"], context)
    assert exposures(flags) == before


def test_tag_follows_context_and_configuration(flags):
    at = unit("unit-7", country="at")
    tag = evaluate_all(flags, at).headers["ETag"]
    for listed in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        again = evaluate_all(flags, at, listed)
        assert again.status_code == 304
        assert again.headers["ETag"] == tag
    assert evaluate_all(flags, at, '"other"').status_code == 200
    reordered = {"country": "at", "targetingKey": "unit-7"}
    assert evaluate_all(flags, reordered, tag).status_code == 304
    for other in (unit("unit-7", country="de"), unit("unit-7"), unit("unit-8")):
        answer = evaluate_all(flags, other, tag)
        assert answer.status_code == 200
        assert answer.headers["ETag"] != tag
    with database.transaction(flags.engine) as connection:
        experimentation.start(connection, "ended", actor="test", now=now())
    flags.wait_for(lambda: evaluate_all(flags, at, tag).status_code == 200)
    keys = [flag["key"] for flag in evaluate_all(flags, at).json()["flags"]]
    assert keys == ["ended", "half", "offers-test"]
    with database.transaction(flags.engine) as connection:
        experimentation.stop(connection, "ended", actor="test", now=now(), reason="")
    flags.wait_for(lambda: evaluate_all(flags, at, tag).status_code == 304)


@pytest.mark.parametrize(
    ("body", "code", "names"),
    [
        (b"", "PARSE_ERROR", "JSON"),
        (b"{", "PARSE_ERROR", "JSON"),
        (b"[]", "PARSE_ERROR", "object"),
        (b'{"context": {"targetingKey": "u", "x": NaN}}', "PARSE_ERROR", "JSON"),
        (b"{}", "INVALID_CONTEXT", "context is missing"),
        (b'{"context": []}', "INVALID_CONTEXT", "context is a list"),
        (b'{"context": {}}', "TARGETING_KEY_MISSING", "targetingKey"),
        (b'{"context": {"targetingKey": ""}}', "TARGETING_KEY_MISSING", "targetingKey"),
        (b'{"context": {"targetingKey": null}}', "TARGETING_KEY_MISSING", "missing"),
        (b'{"context": {"targetingKey": 7}}', "INVALID_CONTEXT", "it must be a text"),
        (b'{"context": {"targetingKey": "a\\u0000"}}', "INVALID_CONTEXT", "control"),
        (
            json.dumps({"context": unit("x" * 129)}).encode(),
            "INVALID_CONTEXT",
            "1 to 128",
        ),
        (
            json.dumps({"context": unit("u", x="y" * 257)}).encode(),
            "INVALID_CONTEXT",
            "context.x",
        ),
        (
            json.dumps({"context": unit("u", x=2**70)}).encode(),
            "INVALID_CONTEXT",
            "64 bits",
        ),
        (
            json.dumps(
                {"context": {**unit("u"), **dict.fromkeys(map(str, range(51)), 1)}}
            ),
            "INVALID_CONTEXT",
            "at most 50",
        ),
        (b"[" * 5000, "PARSE_ERROR", "JSON"),
        (b'{"context": {"targetingKey": "\\ud800"}}', "PARSE_ERROR", "JSON"),
    ],
    ids=range(17),
)
def test_bad_requests_are_told_as_the_protocol_says(common_shop, body, code, names):
    for path in (ROUTE, f"{ROUTE}/any"):
        response = common_shop.client.post(
            path, content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400, response.text
        document = check(path, 400, response.json())
        assert document["errorCode"] == code
        assert names in document["errorDetails"]
        assert document.get("key") == (None if path == ROUTE else "any")


def test_other_types_unknown_flags_and_long_bodies(common_shop):
    response = common_shop.client.post(ROUTE, content=b"{}")
    assert check(ROUTE, 400, response.json())["errorCode"] == "PARSE_ERROR"
    for key in ("nothing", "a%2Fb", "", "%00", "x" * 2000):
        response = common_shop.post(f"{ROUTE}/{key}", {"context": unit("u")})
        assert response.status_code == 404
        document = check(f"{ROUTE}/{key}", 404, response.json())
        assert document["errorCode"] == "FLAG_NOT_FOUND"
    long = common_shop.post(ROUTE, {"context": unit("u", x="y" * (1 << 20))})
    assert long.status_code == 413


@pytest.mark.usefixtures("shop")
def test_single_evaluation_logs_an_exposure_when_asked_by_the_setting(
    engine, database_url, start_server
):
    run_experiment(engine, declaration("home"))
    server = start_server(database_url, EXPERIMENT_SERVICE_OFREP_EXPOSURES="single")
    server.engine = engine
    told = [evaluate(server, "home", unit(name)) for name in UNITS[:5]]
    assert evaluate_all(server, unit("unit-9")).status_code == 200
    assert exposures(server) == 5
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT id::text, unit_id, variant, epoch, propensity FROM exposure")
        ).all()
    assert {tuple(row) for row in rows} == {
        (
            each["metadata"]["exposure_id"],
            name,
            each["variant"],
            each["metadata"]["epoch"],
            each["metadata"]["propensity"],
        )
        for name, each in zip(UNITS, told, strict=False)
    }


def test_an_unlogged_evaluation_can_be_posted_once_it_is_shown(flags):
    found = (
        (name, evaluate(flags, "half", unit(name, country="at"))) for name in UNITS
    )
    name, told = next(each for each in found if each[1]["reason"] == "SPLIT")
    metadata = told["metadata"]
    posted = flags.post(
        "/v1/exposures",
        {
            "exposure_id": str(uuid7()),
            "experiment": metadata["experiment"],
            "unit_id": name,
            "variant": told["variant"],
            "epoch": metadata["epoch"],
            "model": metadata["model"],
            "attributes": {"country": "at"},
        },
    )
    assert posted.json() == {"accepted": 1, "refused": []}


def test_official_python_client(flags):
    openfeature.set_provider(OFREPProvider(flags.address))
    client = openfeature.get_client()

    def details(key, context):
        return client.get_object_details(key, {"from": "code"}, context)

    try:
        seen = set()
        for name in UNITS[:20]:
            got = details("half", EvaluationContext(name, {"country": "at"}))
            same = evaluate(flags, "half", unit(name, country="at"))
            assert got.value == same["value"]
            assert got.variant == same["variant"]
            assert got.reason == same["reason"]
            assert got.flag_metadata == same["metadata"]
            seen.add(got.reason)
        assert seen == {Reason.SPLIT, Reason.STATIC}
        draft = details("draft", EvaluationContext("u"))
        assert (draft.value, draft.reason) == ({"from": "code"}, Reason.DISABLED)
        for key, context, code in (
            ("nothing", EvaluationContext("u"), ErrorCode.FLAG_NOT_FOUND),
            ("half", EvaluationContext(""), ErrorCode.TARGETING_KEY_MISSING),
            ("half", EvaluationContext("x" * 129), ErrorCode.INVALID_CONTEXT),
        ):
            got = details(key, context)
            assert (got.value, got.error_code) == ({"from": "code"}, code)
    finally:
        openfeature.shutdown()


def test_official_javascript_clients(flags):
    node = shutil.which("node")
    assert node, "node is missing; `make openfeature` installs it"
    shown = [unit("unit-1", country="at"), unit("unit-1", country="at"), unit("tester")]
    asked = [
        ("half", shown[0]),
        ("half", shown[2]),
        ("draft", shown[0]),
        ("nothing", shown[0]),
        ("half", {"country": "at"}),
    ]
    requests = {
        "server": [{"key": key, "context": context} for key, context in asked],
        "web": shown,
    }
    ran = subprocess.run(
        [node, "clients.mjs", flags.address, json.dumps(requests)],
        cwd=CLIENTS,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    for each in told["wire"]:
        if each["status"] != 304:
            check(each["url"], each["status"], each["body"])
    same = [evaluate(flags, "half", context) for context in shown]

    split, override, draft, missing, keyless = told["server"]
    for got, expected in ((split, same[0]), (override, same[2])):
        assert got["value"] == expected["value"]
        assert got["variant"] == expected["variant"]
        assert got["reason"] == expected["reason"]
        assert got["flagMetadata"] == expected["metadata"]
    assert draft["value"] == missing["value"] == keyless["value"] == {"from": "code"}
    assert missing["errorCode"] == "FLAG_NOT_FOUND"
    assert keyless["errorCode"] == "TARGETING_KEY_MISSING"

    for flags_of_unit, expected in zip(told["web"], same, strict=True):
        assert set(flags_of_unit) == {"half", "offers-test"}
        assert flags_of_unit["half"]["value"] == expected["value"]
        assert flags_of_unit["half"]["variant"] == expected["variant"]
        assert flags_of_unit["half"]["reason"] == expected["reason"]
        assert flags_of_unit["half"]["flagMetadata"] == expected["metadata"]
    bulk = [each for each in told["wire"] if each["url"].endswith("/flags")]
    assert {each["status"] for each in bulk} == {200, 304}
    assert all(each["tag"] for each in bulk if each["status"] == 304)
