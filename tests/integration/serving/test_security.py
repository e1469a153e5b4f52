"""Keys, pages, pseudonyms and erasure, on real HTTP and where strangers could reach it."""

import re
import sqlite3
import threading
import time
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

import httpx
import pytest
from playwright.sync_api import sync_playwright
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text
from sqlalchemy.engine import make_url

from experiment_service import keys
from experiment_service.api import documents
from experiment_service.api.access import permission_needed
from experiment_service.api.schemas import ErrorAnswer
from experiment_service.domain.key import Scope
from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.storage import database
from tests.conftest import admin
from tests.integration.serving.conftest import (
    bandit,
    launch,
    now,
    open_shop,
    run_experiment,
)

RECOMMEND = {"unit_id": "ana", "placement": "home", "k": 3}
UNIT_KEY = "a-key-of-thirty-two-characters-x"
ANA = Pseudonyms(UNIT_KEY).of("ana")
ORIGIN = "https://shop.example"


class Guarded:
    """A server that asks for keys, and one key of each kind."""

    def __init__(self, server, engine, data_dir, directory):
        self.server, self.engine = server, engine
        self.data_dir, self.directory = data_dir, directory
        self.written = []
        self.addresses = (f"10.0.{n // 256}.{n % 256}" for n in count())

    def key(self, *scopes, **options):
        with database.transaction(self.engine) as connection:
            made = keys.create(
                connection, "test", scopes, actor="test", now=now(), **options
            )
        self.written.append(made.written)
        self.server.wait_for(lambda: self.ask("GET", "/x", made.written) != 401)
        return made.written

    def ask(self, method, path, key=None, **options):
        return self.send(method, path, key, **options).status_code

    def send(self, method, path, key=None, headers=(), **options):
        # As from a proxy, each request of another client.
        given = {"x-forwarded-for": next(self.addresses)} | dict(headers)
        given |= {"authorization": f"Bearer {key}"} if key else {}
        return self.server.client.request(method, path, headers=given, **options)

    def scalar(self, statement):
        with self.engine.connect() as connection:
            return connection.scalar(text(statement))


@pytest.fixture(scope="module")
def guarded(server_url, template_database, tmp_path_factory):
    name = f"test_{uuid.uuid4().hex[:12]}"
    directory = tmp_path_factory.mktemp("guarded")
    data_dir = directory / "data"
    with admin(server_url) as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template_database}"))
    url = make_url(server_url).set(database=name).render_as_string(hide_password=False)
    engine = database.create_engine(url, name="test")
    open_shop(engine, data_dir)
    run_experiment(engine, bandit("sticky", mode="sticky"))
    with database.transaction(engine) as connection:
        first = keys.create(
            connection, "first", [Scope.ADMIN], actor="test", now=now()
        ).written
    server = launch(
        directory,
        data_dir,
        url,
        EXPERIMENT_SERVICE_HOST="0.0.0.0",
        EXPERIMENT_SERVICE_UNIT_KEY=UNIT_KEY,
        EXPERIMENT_SERVICE_TRUSTED_PROXIES="127.0.0.1",
        EXPERIMENT_SERVICE_REFUSALS_PER_SECOND="0.01",
    )
    made = Guarded(server, engine, data_dir, directory)
    made.written.append(first)
    made.admin = first
    made.analyst = made.key(Scope.ANALYST)
    made.storefront = made.key(Scope.STOREFRONT)
    made.browser = made.key(Scope.STOREFRONT, origins=[ORIGIN])
    yield made
    server.stop()
    engine.dispose()
    with admin(server_url) as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def test_every_operation_asks_for_the_scope_that_it_names(guarded):
    document = guarded.send("GET", "/openapi.json").json()
    asked = 0
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            needed = permission_needed(method.upper(), path)
            where = (
                method.upper(),
                path.format(key="none", key_id="none", name="none", version=1),
            )
            if needed is None:
                assert operation["security"] == []
                assert guarded.ask(*where) == 200
                continue
            assert operation["security"] == [{"bearer": []}, {"header": []}]
            named = re.search(r"Scope: (.*)\.$", operation["description"])[1]
            answer = guarded.send(*where)
            assert answer.status_code == 401, where
            assert "a key is missing" in answer.json()["error"]["message"]
            assert answer.headers["www-authenticate"].startswith("Bearer")
            for scope in ("admin", "analyst", "storefront"):
                status = guarded.ask(*where, getattr(guarded, scope))
                assert (status != 403) == (scope in named.split(" or ")), (where, scope)
                asked += 1
    assert asked > 60


def test_a_recommendation_and_a_report_with_their_keys(guarded):
    answer = guarded.send(
        "POST", "/v1/recommendations", guarded.storefront, json=RECOMMEND
    )
    assert answer.status_code == 200
    # The client's own name of the unit, though nothing else here knows it.
    assert answer.json()["unit_id"] == "ana"
    assert guarded.ask("GET", "/v1/experiments/sticky/report", guarded.analyst) == 200


def test_keys_are_made_listed_rotated_and_revoked_over_http(guarded):
    made = guarded.send(
        "POST",
        "/v1/keys",
        guarded.admin,
        headers={"X-Actor": "ann"},
        json={"name": "till", "scopes": ["storefront"], "per_second": 50, "days": 90},
    )
    assert made.status_code == 201, made.text
    documents.NewKeyDocument.model_validate_json(made.content)
    assert made.headers["cache-control"] == "no-store"
    written, key_id = made.json()["key"], made.json()["details"]["id"]
    guarded.written.append(written)
    path = "/v1/recommendations"
    guarded.server.wait_for(
        lambda: guarded.ask("POST", path, written, json=RECOMMEND) == 200
    )
    rotated = guarded.send(
        "POST", f"/v1/keys/{key_id}/rotate", guarded.admin, json={"overlap_hours": 0}
    )
    assert rotated.status_code == 201, rotated.text
    successor = rotated.json()["key"]
    guarded.written.append(successor)
    details = rotated.json()["details"]
    assert (details["name"], details["per_second"]) == ("till", 50)
    life = datetime.fromisoformat(details["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=89) < life <= timedelta(days=90)
    guarded.server.wait_for(
        lambda: guarded.ask("POST", path, written, json=RECOMMEND) == 401
    )
    old = guarded.send("POST", path, written, json=RECOMMEND).json()["error"]["message"]
    assert f"key {key_id} has expired" in old
    assert guarded.ask("POST", path, successor, json=RECOMMEND) == 200
    revoke = f"/v1/keys/{details['id']}/revoke"
    assert guarded.ask("POST", revoke, guarded.admin, json={"reason": "lost"}) == 200
    guarded.server.wait_for(
        lambda: guarded.ask("POST", path, successor, json=RECOMMEND) == 401
    )
    assert guarded.ask("POST", revoke, guarded.admin) == 409
    assert guarded.ask("POST", "/v1/keys/none/revoke", guarded.admin) == 404
    listed = guarded.send("GET", "/v1/keys", guarded.admin)
    documents.KeysDocument.model_validate_json(listed.content)
    assert key_id in {key["id"] for key in listed.json()["keys"]}
    assert "hash" not in listed.text
    (audited,) = [
        entry
        for entry in guarded.send(
            "GET", f"/v1/audit?subject=key/{key_id}", guarded.admin
        ).json()["entries"]
        if entry["action"] == "create"
    ]
    admin_id = guarded.admin.split("_")[1]
    assert audited["actor"] == f"key:{admin_id}:ann"


def test_the_audit_log_is_read_page_by_page(guarded):
    seen, before = [], None
    while True:
        query = "?limit=3" + (f"&before={before}" if before else "")
        answer = guarded.send("GET", f"/v1/audit{query}", guarded.admin)
        documents.AuditDocument.model_validate_json(answer.content)
        seen += [entry["id"] for entry in answer.json()["entries"]]
        before = answer.json()["next"]
        if before is None:
            break
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == guarded.scalar("SELECT count(*) FROM audit")
    created = guarded.send("GET", "/v1/audit?subject=experiment/sticky", guarded.admin)
    actions = [entry["action"] for entry in created.json()["entries"]]
    assert actions == ["start", "create"]
    for wrong in ("limit=0", "limit=501", "before=0", "before=x", "subject="):
        assert guarded.ask("GET", f"/v1/audit?{wrong}", guarded.admin) == 422


def test_a_key_has_so_many_requests_a_second(guarded):
    slow = guarded.key(Scope.STOREFRONT, per_second=0.05)
    # The key's one token may have gone to the request that waited for it.
    answers = [
        guarded.send("POST", "/v1/recommendations", slow, json=RECOMMEND)
        for _ in range(2)
    ]
    answer = answers[-1]
    assert answer.status_code == 429
    assert "0.05 requests a second" in answer.json()["error"]["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 20
    # Others have their own.
    assert (
        guarded.ask("POST", "/v1/recommendations", guarded.storefront, json=RECOMMEND)
        == 200
    )


def test_pages_of_the_list_may_ask_and_others_may_not(guarded):
    path = "/v1/recommendations"
    asked = {"access-control-request-method": "POST"}
    allowed = guarded.send("OPTIONS", path, headers=asked | {"origin": ORIGIN})
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    refused = guarded.send("OPTIONS", path, headers=asked | {"origin": "https://x.y"})
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers
    answer = guarded.send(
        "POST", path, guarded.browser, headers={"origin": ORIGIN}, json=RECOMMEND
    )
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["vary"] == "origin"
    bad = guarded.send(
        "POST", path, guarded.browser, headers={"origin": ORIGIN}, json={}
    )
    assert (bad.status_code, bad.headers["access-control-allow-origin"]) == (
        422,
        ORIGIN,
    )
    page = {"origin": ORIGIN}
    assert guarded.ask("GET", "/v1/experiments", guarded.browser, headers=page) == 403
    assert guarded.ask("POST", "/v1/assignments", guarded.browser, headers=page) == 403
    assert guarded.ask("POST", path, guarded.browser, json=RECOMMEND) == 403


def test_a_page_evaluates_flags_and_asks_whether_they_changed(guarded):
    """The requests as Chromium sends them for the web provider of OpenFeature."""
    path, page = "/ofrep/v1/evaluate/flags", {"origin": ORIGIN}
    document = {"context": {"targetingKey": "ana"}}
    asked = "authorization,content-type,if-none-match,x-request-id"
    allowed = guarded.send(
        "OPTIONS",
        path,
        headers=page
        | {
            "access-control-request-method": "POST",
            "access-control-request-headers": asked,
            "sec-fetch-mode": "cors",
        },
    )
    assert allowed.status_code == 204
    granted = allowed.headers["access-control-allow-headers"].replace(" ", "")
    assert set(asked.split(",")) <= set(granted.split(","))
    first = guarded.send("POST", path, guarded.browser, headers=page, json=document)
    assert first.status_code == 200
    read = first.headers["access-control-expose-headers"].replace(" ", "").split(",")
    assert {"date", "etag", "retry-after", "x-request-id"} == set(read)
    assert {"date", "etag", "x-request-id"} <= first.headers.keys()
    again = guarded.send(
        "POST",
        path,
        guarded.browser,
        headers=page | {"if-none-match": first.headers["etag"], "x-request-id": "r-1"},
        json=document,
    )
    assert (again.status_code, again.headers["x-request-id"]) == (304, "r-1")
    assert again.headers["access-control-allow-origin"] == ORIGIN


def test_who_is_turned_away_is_counted_and_can_be_found_in_the_log(guarded):
    name = "experiment_service_requests_refused_total"

    def refused():
        text = guarded.send("GET", "/metrics", guarded.analyst).text
        return {
            (sample.labels["route"], sample.labels["reason"]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        }

    # The first ten of a second are told, and other tests were turned away as well.
    time.sleep(1)
    before = refused()
    recommend, large = "/v1/recommendations", {"unit_id": "u" * 1_100_000}
    address = "198.51.100.7"
    proxied = {"x-forwarded-for": f"203.0.113.1, {address}"}
    answers = {
        (recommend, "unauthenticated"): guarded.send(
            "POST", recommend, headers=proxied
        ),
        (recommend, "too_many_requests"): guarded.send(
            "POST", recommend, headers=proxied
        ),
        (recommend, "forbidden"): guarded.send(
            "POST", recommend, guarded.analyst, headers=proxied
        ),
        (recommend, "too_large"): guarded.send(
            "POST", recommend, guarded.storefront, headers=proxied, json=large
        ),
        ("/v1/experiments/{key}", "too_many_requests"): guarded.send(
            "GET", "/v1/experiments/x", "es_no_key", headers=proxied
        ),
        ("other", "too_many_requests"): guarded.send(
            "GET", "/v3/nothing", headers=proxied
        ),
    }
    statuses = [answer.status_code for answer in answers.values()]
    assert statuses == [401, 429, 403, 413, 429, 429]
    after = refused()
    for key in answers:
        assert after[key] == before.get(key, 0) + 1, key
    log = guarded.server.log.read_text()
    for (route, reason), answer in answers.items():
        told = answer.headers["x-request-id"]
        (line,) = [each for each in log.splitlines() if told in each]
        assert f"route={route} status={answer.status_code} reason={reason} " in line
        assert f"address={address}" in line


class _Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>shop</title>")

    def log_message(self, *_):
        pass


EVALUATE = """async ([url, key]) => {
  const ask = (headers) => fetch(url, {method: "POST",
    body: JSON.stringify({context: {targetingKey: "page"}}),
    headers: {"content-type": "application/json", "x-api-key": key, ...headers}});
  const first = await ask({}), etag = first.headers.get("etag");
  const again = await ask({"if-none-match": etag, "x-request-id": "from-a-page"});
  return [first.status, again.status, again.headers.get("x-request-id"),
    Date.parse(again.headers.get("date")) > 0];
}"""
ASK = """async ([url, key]) => {
  const answer = await fetch(url, {method: "POST", body: JSON.stringify(
      {unit_id: "page", placement: "home", k: 2}),
    headers: {"content-type": "application/json", "authorization": "Bearer " + key}});
  return [answer.status, (await answer.json()).items.length];
}"""
BEACON = """([url, key]) => navigator.sendBeacon(url + "?key=" + key, new Blob(
  [JSON.stringify({interactions: [{id: "from-a-page", kind: "click", unit_id: "page"}]})],
  {type: "application/json"}))"""


def test_a_real_page_asks_and_sends_a_beacon(guarded):
    shop = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    threading.Thread(target=shop.serve_forever, daemon=True).start()
    origin = f"http://127.0.0.1:{shop.server_port}"
    key = guarded.key(Scope.STOREFRONT, origins=[origin])
    address = guarded.server.address
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path="/usr/bin/chromium", args=["--no-sandbox"]
            )
            page = browser.new_page()
            page.goto(origin)
            asked = page.evaluate(ASK, [f"{address}/v1/recommendations", key])
            assert asked == [200, 2]
            flags = f"{address}/ofrep/v1/evaluate/flags"
            told = page.evaluate(EVALUATE, [flags, key])
            assert told == [200, 304, "from-a-page", True]
            assert page.evaluate(BEACON, [f"{address}/v1/interactions", key])
            guarded.server.wait_for(
                lambda: (
                    guarded.scalar(
                        "SELECT count(*) FROM interaction WHERE unit_id ="
                        f" '{Pseudonyms(UNIT_KEY).of('page')}'"
                    )
                    == 1
                )
            )
            # A page of another origin gets nothing, not even a status.
            page.goto(origin.replace("127.0.0.1", "localhost"))
            with pytest.raises(Exception, match="Failed to fetch"):
                page.evaluate(ASK, [f"{address}/v1/recommendations", key])
            browser.close()
    finally:
        shop.shutdown()
        shop.server_close()


def rows_of_ana(guarded):
    tables = ("exposure", "interaction", "unit_exposure", "unit_outcome")
    return {
        table: guarded.scalar(f"SELECT count(*) FROM {table} WHERE unit_id = '{ANA}'")
        for table in tables
    }


def sticky_rows(guarded):
    path = guarded.data_dir / "sticky.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT count(*) FROM first_epoch WHERE unit_id = ?", [ANA]
        ).fetchone()[0]


def test_units_are_pseudonyms_everywhere_and_are_erased_by_their_own_id(guarded):
    prefetch = guarded.send(
        "POST",
        "/v1/recommendations",
        guarded.storefront,
        json=RECOMMEND | {"log_exposure": False},
    ).json()
    exposure = prefetch["exposure"]
    assert exposure["unit_id"] == "ana"
    assert (
        guarded.ask("POST", "/v1/exposures", guarded.storefront, json=exposure) == 200
    )
    click = {
        "id": "ana-1",
        "exposure_id": exposure["exposure_id"],
        "unit_id": "ana",
        "kind": "click",
    }
    taken = guarded.send(
        "POST", "/v1/interactions", guarded.storefront, json={"interactions": [click]}
    )
    assert taken.json() == {"accepted": 1, "refused": []}
    guarded.server.wait_for(lambda: min(rows_of_ana(guarded).values()) > 0)
    assert sticky_rows(guarded) == 1
    for table in ("exposure", "interaction", "unit_exposure", "unit_outcome"):
        where = f"SELECT count(*) FROM {table} WHERE unit_id = 'ana'"
        assert guarded.scalar(where) == 0
    explained = guarded.send(
        "GET", "/v1/experiments/sticky/explain?unit_id=ana", guarded.analyst
    ).json()
    assert explained["variant"] == prefetch["variant"]
    changed = guarded.send(
        "PUT",
        "/v1/experiments/sticky/overrides",
        guarded.admin,
        json={"overrides": {"tester": "new"}},
    )
    tester = Pseudonyms(UNIT_KEY).of("tester")
    assert changed.json()["declaration"]["overrides"] == {tester: "new"}
    assert (
        guarded.send(
            "GET", "/v1/experiments/sticky/explain?unit_id=tester", guarded.analyst
        ).json()["step"]
        == "override"
    )
    erased = guarded.send(
        "POST",
        "/v1/erasures",
        guarded.admin,
        json={"unit_id": "ana", "reason": "request 17"},
    )
    documents.ErasureDocument.model_validate_json(erased.content)
    rows = erased.json()["rows"]
    assert min(rows[table] for table in rows_of_ana(guarded)) > 0
    assert set(rows_of_ana(guarded).values()) == {0}
    guarded.server.wait_for(lambda: sticky_rows(guarded) == 0)
    entry = guarded.send("GET", "/v1/audit?subject=unit", guarded.admin)
    assert entry.json()["entries"][0]["reason"] == "request 17"
    assert '"ana"' not in entry.text
    assert ANA not in entry.text


def test_keys_stay_good_without_the_database(guarded):
    """A process that starts from the copy on disk knows them too."""
    server = launch(
        guarded.directory,
        guarded.data_dir,
        "postgresql://nobody@127.0.0.1:1/none",
        EXPERIMENT_SERVICE_HOST="0.0.0.0",
    )
    try:
        headers = {"x-api-key": guarded.storefront}
        answer = server.post("/v1/recommendations", RECOMMEND, headers=headers)
        assert answer.status_code == 200
        assert server.post("/v1/recommendations", RECOMMEND).status_code == 401
        away = server.get("/v1/keys", headers={"x-api-key": guarded.admin})
        assert (away.status_code, away.headers["retry-after"]) == (503, "5")
    finally:
        server.stop()


def test_strangers_can_not_reach_a_service_without_keys(start_server, database_url):
    server = start_server(database_url, wait=False, EXPERIMENT_SERVICE_HOST="0.0.0.0")
    assert server.process.wait(30) != 0
    log = server.log.read_text()
    assert (
        "listens on 0.0.0.0, where strangers can reach it, and there is no key" in log
    )
    assert "experiment-service keys create" in log


INJECTED = "INFO:experiment_service:forged line"


def test_nothing_secret_and_nothing_forged_is_in_the_log(guarded):
    attempts = [
        ("GET", f"/v1/experiments/a%0d%0a{INJECTED}", {}),
        ("GET", f"/v1/%0a{INJECTED}", {}),
        ("POST", f"/v1/keys/%0a{INJECTED}/revoke", {}),
        ("PUT", "/v1/placements/x%0a", {"x-actor": b"a\x85b"}),
        ("POST", "/v1/recommendations", {"content-type": f"text/\t{INJECTED}"}),
    ]
    for method, path, headers in attempts:
        answer = guarded.send(method, path, guarded.admin, headers=headers)
        assert 400 <= answer.status_code < 500, (path, answer.text)
        ErrorAnswer.model_validate_json(answer.content)
    with pytest.raises(httpx.LocalProtocolError):
        guarded.send("GET", "/v1/status", headers={"x-actor": f"a\r\n{INJECTED}"})
    guarded.server.stop()
    log = guarded.server.log.read_text()
    for written in [*guarded.written, UNIT_KEY]:
        assert written.split("_", 2)[-1] not in log
    assert not [line for line in log.splitlines() if line.startswith(INJECTED)]
    assert all(
        re.match(r"\S+ \S+ (INFO|WARNING|ERROR) ", line) for line in log.splitlines()
    )
    used = guarded.scalar(
        "SELECT count(*) FROM api_key WHERE used_on = (now() AT TIME ZONE 'UTC')::date"
    )
    assert used == len(guarded.written)
    for written in guarded.written:
        key_id, secret = written.split("_", 2)[1:]
        stored = guarded.scalar(f"SELECT t::text FROM api_key t WHERE id = '{key_id}'")
        assert secret not in stored
