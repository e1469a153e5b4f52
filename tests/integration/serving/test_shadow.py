"""Shadows over real HTTP: what is computed beside the answers, and what becomes of it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import streamlit as st
from sqlalchemy import text
from streamlit.testing.v1 import AppTest
from uuid_utils.compat import uuid7

import dashboard
from experiment_service import keys
from experiment_service.analysis.shadow import ShadowSums
from experiment_service.api.access import Permission, permission_needed
from experiment_service.domain.key import Scope
from experiment_service.domain.shadow import in_shadow
from experiment_service.storage import models
from experiment_service.storage.database import transaction
from experiment_service.storage.experiments import list_audit
from experiment_service.storage.models import ModelStatus, get_version
from experiment_service.storage.shadow_sums import sum_answers
from recommenders.lists import PublishedLists
from tests.integration.reporting.conftest import keep_main
from tests.integration.serving.conftest import (
    UNITS,
    declaration,
    insert_version,
    now,
    publish,
    run_experiment,
)

APP = Path(dashboard.__file__).parent / "app.py"
K = 8


@pytest.fixture(scope="module")
def shop(running_shop):
    """The shop with an A/B test in which half the units get `als`."""
    run_experiment(running_shop.engine, declaration("t"))
    running_shop.wait_for(lambda: ask(running_shop, "first", k=1)["experiment"])
    return running_shop


def ask(server, unit, *, k=K, **more):
    request = {"unit_id": unit, "placement": "home", "k": k, **more}
    response = server.post("/v1/recommendations", request)
    assert response.status_code == 200, response.text
    return response.json()


def data_dir(server):
    return server.log.parent / "data"


def candidate(server, number, name="als"):
    """Publish random lists and register them; return the candidate."""
    return insert_version(server.engine, name, *publish(data_dir(server), name, number))


def shadow(server, version, *, share):
    """Make a version a shadow, and wait until the process has it."""
    with transaction(server.engine) as connection:
        models.decide(
            connection,
            version.id,
            ModelStatus.SHADOW,
            decided_by="test",
            reason="test",
            now=now(),
            share=share,
        )
    server.wait_for(lambda: version.label in server.get("/v1/status").text)


def rows(server, version):
    with transaction(server.engine) as connection:
        found = connection.execute(
            text("SELECT * FROM shadow_answer WHERE version_id = :id"),
            {"id": version.id},
        )
        return {row.id.hex: row for row in found}


def test_a_share_of_requests_is_answered_beside_and_compared(shop):
    version = candidate(shop, 2)
    shadow(shop, version, share=0.5)
    live, beside = (
        PublishedLists.open(data_dir(shop) / f"models/als/{number}")
        for number in (1, 2)
    )
    shown = {}
    for unit in UNITS:
        answer = ask(shop, unit)
        if answer["variant"] == "new":
            assert answer["model"] == "als/1"
            shown[unit] = answer
            assert [each["item_id"] for each in answer["items"]] == live.for_unit(
                unit, K
            )
    expected = {u for u in shown if in_shadow("als/2", 0.5, u)}
    assert 20 < len(expected) < 80
    shop.wait_for(lambda: len(rows(shop, version)) == len(expected))
    found = {row.unit_id: row for row in rows(shop, version).values()}
    assert found.keys() == expected
    for unit, row in found.items():
        one, other = live.for_unit(unit, K), beside.for_unit(unit, K)
        assert str(row.id) == shown[unit]["exposure_id"]
        assert (row.shown, row.made, row.error) == (K, K, None)
        assert row.common == len(set(one) & set(other))
        assert row.same_places == [p + 1 for p in range(K) if one[p] == other[p]]
        assert (row.shown_fallback, row.fallback) == (False, False)
        assert 0 < row.seconds < 10
    click(shop, shown, found)
    with transaction(shop.engine) as connection:
        sums = sum_answers(connection, version.id)
    assert (sums.answers, sums.units, sums.failed) == (len(found),) * 2 + (0,)
    assert (sums.covered, sums.shown_covered) == (len(found),) * 2
    overlaps = [row.common / K for row in found.values()]
    assert sums.overlap.ratio == pytest.approx(sum(overlaps) / len(overlaps))
    same = sum(len(row.same_places) for row in found.values())
    assert (sums.exposures, sums.places) == (len(found), K * len(found))
    assert sums.changed_places == K * len(found) - same
    # Every unit clicked on every place, each with a shadow counts once.
    assert (sums.clicked.sum_x, sums.clicked.sum_y) == (K * len(found), same)
    assert sums.unplaced_clicks == len(found)
    text_of_metrics = shop.get("/metrics").text
    assert (
        'experiment_service_shadow_answers_total{model="als/2",outcome="made"} '
        f"{len(found)}.0" in text_of_metrics
    )


def click(server, shown, found):
    """Click on each place twice: once by position, once by item; and on no item."""
    for unit in found:
        exposure = shown[unit]["exposure_id"]
        clicks = []
        for position, item in enumerate(shown[unit]["items"], start=1):
            clicks.append({"position": position})
            clicks.append({"item_id": item["item_id"]})
        clicks.append({"item_id": "somewhere else"})
        document = [
            {"id": str(uuid7()), "kind": "click", "exposure_id": exposure, **each}
            for each in clicks
        ]
        response = server.post("/v1/interactions", {"interactions": document})
        assert response.json()["accepted"] == 2 * K + 1, response.text
    question = text("SELECT count(*) FROM interaction WHERE kind = 'click'")

    def stored():
        with transaction(server.engine) as connection:
            return connection.scalar(question) == len(found) * (2 * K + 1)

    server.wait_for(stored)


def test_a_promotion_and_a_roll_back_switch_what_serves_without_a_lost_request(shop):
    version = candidate(shop, 3)
    path = f"/v1/models/als/versions/{version.version}"
    body = {"share": 1, "rule": {"answers": 10**6}, "reason": "look first"}
    made = shop.post(f"{path}/shadow", body, headers={"X-Actor": "ann"})
    assert made.status_code == 200, made.text
    assert made.json()["status"] == "shadow"
    assert made.json()["shadow_rule"]["answers"] == 10**6
    seen, stopping = [], threading.Event()

    def shopper(number):
        client = httpx.Client(base_url=shop.address, timeout=60)
        units = UNITS[number::2]
        with client:
            while not stopping.is_set():
                for unit in units:
                    request = {"unit_id": unit, "placement": "home", "k": K}
                    answer = client.post("/v1/recommendations", json=request)
                    stopping.wait(0.002)
                    document = answer.json()
                    if document.get("variant") == "new" or answer.status_code != 200:
                        seen.append((answer.status_code, document.get("model")))

    def served(label):
        return any(seen) and all(each == (200, label) for each in seen[-20:])

    with ThreadPoolExecutor(2) as shoppers:
        running = [shoppers.submit(shopper, number) for number in range(2)]
        try:
            shop.wait_for(lambda: served("als/1") and len(rows(shop, version)) > 100)
            promoted = shop.post(f"{path}/promote", {"reason": "good"})
            assert promoted.status_code == 200, promoted.text
            shop.wait_for(lambda: served("als/3"))
            back = shop.client.post("/v1/models/als/rollback")
            assert (back.status_code, back.json()["version"]) == (200, 1), back.text
            shop.wait_for(lambda: served("als/1"))
        finally:
            stopping.set()
        for each in running:
            each.result(30)
    assert {status for status, _ in seen} == {200}
    assert {model for _, model in seen} == {"als/1", "als/3"}
    audit = shop.get("/v1/audit", params={"subject": "model/als", "limit": 3}).json()
    assert [
        (each["action"], each["reason"], each["actor"]) for each in audit["entries"]
    ] == [
        ("set_live", "", "api"),
        ("set_live", "good", "api"),
        ("set_shadow", "look first", "api:ann"),
    ]
    # What it answered as a shadow is kept with it.
    assert ShadowSums.parse(promoted.json()["shadow_result"]).units > 20


def test_a_damaged_version_is_refused_and_the_live_one_serves_on(shop):
    version = candidate(shop, 4)
    lists = data_dir(shop) / version.artifact / "lists.npy"
    lists.write_bytes(lists.read_bytes()[:-1])
    path = f"/v1/models/als/versions/{version.version}"
    for action, body in (("promote", {}), ("shadow", {"share": 0.5})):
        refused = shop.post(f"{path}/{action}", body)
        assert refused.status_code == 409
        message = refused.json()["error"]["message"]
        assert message.startswith("als/4 can't "), message
        assert "the published lists are damaged" in message
    rejected = shop.post(f"{path}/reject", {"reason": "cut off"})
    assert (rejected.status_code, rejected.json()["status"]) == (200, "rejected")
    assert shop.get("/v1/status").json()["snapshot"]["models"]["als"] == "als/1"
    assert shop.get("/health/ready").json()["status"] == "ready"


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("als/versions/2/shadow", {"share": 2}, 422, "share is 2; it must be"),
        ("als/versions/2/shadow", {}, 422, "share"),
        (
            "als/versions/2/shadow",
            {"share": 1, "rule": {"answers": 0}},
            422,
            "answers is 0",
        ),
        (
            "als/versions/2/shadow",
            {"share": 1, "rule": {"answers": 1, "luck": 1}},
            422,
            "luck",
        ),
        ("als/versions/99/promote", {}, 404, "has no version 99; versions: "),
        ("als/versions/0/promote", {}, 422, "version"),
        ("als/versions/1/promote", {}, 409, "als/1 is live and can't become live"),
        ("als/versions/3/promote", {}, 409, "als/3 is retired; roll back to let it"),
        ("als/versions/1/reject", {}, 409, "als/1 is live and can't become rejected"),
        ("svd/rollback", {}, 404, "model 'svd' does not exist; models: als"),
        ("popularity/rollback", {}, 409, "there is nothing to go back to"),
        ("als/rollback", {"version": 1}, 409, "als/1 is live; only a retired one"),
    ],
)
def test_what_does_not_fit_is_refused(shop, path, body, status, text):
    refused = shop.post(f"/v1/models/{path}", body)
    assert refused.status_code == status, refused.text
    assert text in refused.json()["error"]["message"]


def test_only_an_admin_decides():
    for action in ("versions/1/shadow", "versions/1/promote", "versions/1/reject"):
        needed = permission_needed("POST", f"/v1/models/als/{action}")
        assert needed is Permission.CHANGE
    assert permission_needed("POST", "/v1/models/als/rollback") is Permission.CHANGE


@pytest.fixture
def page(shop, monkeypatch):
    """The page Models on the database and the API of the shop."""
    keep_main(monkeypatch)
    monkeypatch.setenv("DATABASE_URL", shop.engine.url.render_as_string(False))
    monkeypatch.setenv("EXPERIMENT_SERVICE_DATA_DIR", str(data_dir(shop)))
    monkeypatch.setenv("EXPERIMENT_SERVICE_API_URL", shop.address)
    test = AppTest.from_file(str(APP), default_timeout=60).run()
    test.query_params["model"] = "als"
    test.query_params["version"] = "3"
    yield test.switch_page("views/models.py").run()
    st.cache_resource.clear()


def decide(page, reason, key=""):
    """Fill in the form of a version and send it; return what the page says."""
    fields = {field.label: field for field in page.text_input}
    fields["Reason"].set_value(reason)
    fields["API key with the scope admin"].set_value(key)
    (button,) = (b for b in page.button if b.label.startswith("Serve version 3"))
    button.click().run()
    assert not page.exception
    return [each.value for each in (*page.error, *page.success)]


def test_the_page_decides_with_a_key_of_an_admin(shop, page, monkeypatch):
    monkeypatch.setenv("EXPERIMENT_SERVICE_HOST", "0.0.0.0")
    (told,) = decide(page, "by the page")
    assert "others than this machine reach the dashboard" in told
    with transaction(shop.engine) as connection:
        made = {
            scope: keys.create(
                connection, scope, frozenset({scope}), actor="test", now=now()
            ).written
            for scope in (Scope.ADMIN, Scope.ANALYST)
        }
    shop.wait_for(lambda: shop.get("/v1/status").status_code == 401)
    for key, reason in (
        ("", "key"),
        ("nonsense", "key"),
        ("k\u00e4se", "not an API key"),
        (made[Scope.ANALYST], "admin"),
    ):
        (told,) = decide(page, "by the page", key)
        assert reason in told, told
    (told,) = decide(page, "by the page", made[Scope.ADMIN])
    assert told == "als/3 is live."
    with transaction(shop.engine) as connection:
        assert get_version(connection, "als", 3).reason == "by the page"
        last = list_audit(connection, "model/als")[-1]
    assert last.actor.startswith("key:")
    assert last.actor.endswith(":dashboard test@example.com")  # as AppTest says
    monkeypatch.setenv("EXPERIMENT_SERVICE_API_URL", "http://127.0.0.1:9")
    page.run()
    page.selectbox(key="version of als").set_value(1).run()
    fields = {field.label: field for field in page.text_input}
    fields["API key with the scope admin"].set_value(made[Scope.ADMIN])
    (button,) = (b for b in page.button if b.label.startswith("Serve version 1"))
    button.click().run()
    assert "does not answer at http://127.0.0.1:9" in page.error[0].value
