"""Serving over HTTP, by a really started process."""

import json
from collections import Counter
from uuid import UUID

import pytest
from sqlalchemy import text

from experiment_service.api import documents, schemas
from experiment_service.domain.experiment import Epoch, EpochSegment
from experiment_service.storage import database
from experiment_service.storage import experiments as storage
from tests.integration.serving.conftest import UNITS, bandit, declaration, now

pytestmark = pytest.mark.usefixtures("experiments")


@pytest.fixture(scope="module")
def experiments(running_shop):
    """An A/B test on "home", a redrawn bandit on "shelf", a sticky one on "basket"."""
    for document in (
        declaration("ab", overrides={"qa": "new"}, traffic_share=0.9),
        bandit("redraw", placement="shelf", layer="shelf"),
        bandit("sticky", placement="basket", layer="basket", mode="sticky"),
        bandit(
            "by-device",
            placement="cart",
            layer="cart",
            policy={
                "name": "segmented_thompson",
                "interval": "1h",
                "segment_by": {"device": ["phone", "desk"]},
            },
        ),
    ):
        assert running_shop.post("/v1/experiments", document).status_code == 201
        path = f"/v1/experiments/{document['key']}/start"
        assert running_shop.post(path, {}).status_code == 200
    running_shop.wait_for(
        lambda: (
            running_shop.post(
                "/v1/assignments", {"unit_id": "u", "experiment": "sticky"}
            ).is_success
        )
    )


def recommend(server, unit_id, placement="home", **more):
    answer = server.post(
        "/v1/recommendations", {"unit_id": unit_id, "placement": placement, **more}
    )
    assert answer.status_code == 200, answer.text
    schemas.RecommendationAnswer.model_validate_json(answer.content)
    return answer.json()


def assign(server, unit_id, experiment, **more):
    answer = server.post(
        "/v1/assignments",
        {"unit_id": unit_id, "experiment": experiment, "log_exposure": False, **more},
    )
    assert answer.status_code == 200, answer.text
    schemas.AssignmentAnswer.model_validate_json(answer.content)
    return answer.json()


def explain(server, unit_id, experiment, attributes=None):
    answer = server.get(
        f"/v1/experiments/{experiment}/explain",
        params={"unit_id": unit_id, "attributes": json.dumps(attributes or {})},
    )
    assert answer.status_code == 200, answer.text
    documents.ExplanationDocument.model_validate_json(answer.content)
    return answer.json()


def test_admitted_unit_gets_its_variant_s_list_and_an_exposure(running_shop):
    seen = Counter()
    for unit in UNITS[:60]:
        answer = recommend(running_shop, unit, k=5)
        if answer["experiment"] is None:
            assert answer["exposure_id"] is None
            assert answer["model"] == "popularity/1"
            seen["outside"] += 1
            continue
        own = {"old": "popularity", "new": "als"}[answer["variant"]]
        assert answer["model"] == f"{own}/1"
        assert [item["source"] for item in answer["items"]] == [own] * 5
        assert len({item["item_id"] for item in answer["items"]}) == 5
        assert (answer["propensity"], answer["epoch"]) == (0.5, 0)
        assert UUID(answer["exposure_id"]).version == 7
        assert not answer["fallback"]
        assert answer["exposure"] is None
        seen[answer["variant"]] += 1
    assert min(seen["old"], seen["new"]) > 10


def test_same_unit_same_variant_each_time(running_shop):
    """I1."""
    for unit in UNITS[:20]:
        variants = {recommend(running_shop, unit)["variant"] for _ in range(3)}
        assert len(variants) == 1


def test_unknown_unit_gets_the_default_list_marked_as_fallback(running_shop):
    answers = [recommend(running_shop, f"new-{n}", k=30) for n in range(30)]
    new = next(answer for answer in answers if answer["variant"] == "new")
    sources = [item["source"] for item in new["items"]]
    assert sources[:20] == ["als:default"] * 20
    assert set(sources[20:]) == {"popularity:default"}
    assert new["fallback"]


def test_related_items_and_exclusions(running_shop):
    unit = next(
        unit for unit in UNITS if recommend(running_shop, unit)["variant"] == "new"
    )
    plain = recommend(running_shop, unit, k=200, item_id="item-007")
    ids = [item["item_id"] for item in plain["items"]]
    sources = [item["source"] for item in plain["items"]]
    assert "item-007" not in ids
    assert sources[:19] == ["als:related"] * 19
    assert sorted(set(sources)) == [
        "als",
        "als:default",
        "als:related",
        "popularity:default",
    ]
    less = recommend(
        running_shop, unit, k=200, item_id="item-007", exclude_item_ids=ids[:10]
    )
    assert [item["item_id"] for item in less["items"]] == ids[10:]


def test_the_last_items_of_a_session_are_used_at_once(running_shop):
    strangers = {}
    for number in range(30):
        answer = recommend(running_shop, f"new-{number}")
        strangers.setdefault(answer["variant"], f"new-{number}")

    def shown(variant, **more):
        return recommend(running_shop, strangers[variant], k=19, **more)["items"]

    recent = ["unheard of", "item-007"]
    session = shown("new", recent_item_ids=recent)
    # Of one item that it knows, a session is what goes with it.
    beside = shown("new", item_id="item-007")
    assert [item["item_id"] for item in session] == [i["item_id"] for i in beside]
    assert {item["source"] for item in session} == {"als:session"}
    answer = recommend(running_shop, strangers["new"], k=19, recent_item_ids=recent)
    assert not answer["fallback"]
    assert shown("old", recent_item_ids=recent) == shown("old")
    assert recommend(running_shop, "anybody", recent_item_ids=["item-001"] * 20)


def test_override_gets_its_variant_and_no_exposure(running_shop):
    answer = recommend(running_shop, "qa")
    assert (answer["experiment"], answer["variant"]) == ("ab", "new")
    assert answer["settings"] == {"title": "For you"}
    assert answer["propensity"] is None
    assert answer["exposure_id"] is None
    prefetched = recommend(running_shop, "qa", log_exposure=False)
    assert prefetched["exposure"] is None


def test_explain_agrees_with_serving(running_shop):
    steps = Counter()
    # So many that the gate, whose salt is drawn anew, keeps one of them out.
    for unit in [*UNITS, "qa"]:
        told = explain(running_shop, unit, "ab")
        served = assign(running_shop, unit, "ab")
        carousel = recommend(running_shop, unit, log_exposure=False)
        assert told["variant"] == served["variant"] == carousel["variant"]
        assert told["propensity"] == served["propensity"] == carousel["propensity"]
        assert told["reason"] == served["reason"]
        steps[told["step"]] += 1
    assert set(steps) == {"variant", "traffic_gate", "override"}


def test_many_assignments_in_one_request(running_shop):
    requests = [{"unit_id": unit, "experiment": "ab"} for unit in UNITS]
    requests.append({"unit_id": "u", "placement": "shelf"})
    answer = running_shop.post("/v1/assignments", {"requests": requests})
    assert answer.status_code == 200
    schemas.AssignmentAnswers.model_validate_json(answer.content)
    assignments = answer.json()["assignments"]
    assert [each["unit_id"] for each in assignments] == [*UNITS, "u"]
    assert assignments[-1]["experiment"] == "redraw"
    for each in assignments:
        assert (each["exposure_id"] is None) == (each["variant"] is None)
    one = assign(running_shop, UNITS[0], "ab")
    assert one["variant"] == assignments[0]["variant"]


def test_one_bad_assignment_is_named_and_nothing_recorded(running_shop):
    requests = [
        {"unit_id": "u", "experiment": "ab"},
        {"unit_id": "u", "placement": "x"},
    ]
    answer = running_shop.post("/v1/assignments", {"requests": requests})
    assert answer.status_code == 404
    assert answer.json()["error"]["field"] == "requests.1.placement"


def test_prefetched_exposure_is_verified_when_posted(running_shop):
    unit = next(u for u in UNITS if recommend(running_shop, u)["variant"])
    answer = recommend(running_shop, unit, k=3, log_exposure=False)
    exposure = answer["exposure"]
    assert exposure["exposure_id"] == answer["exposure_id"]
    assert exposure["items"] == answer["items"]
    posted = running_shop.post("/v1/exposures", exposure)
    assert posted.status_code == 200, posted.text
    assert posted.json() == {"accepted": 1, "refused": []}
    schemas.Receipt.model_validate_json(posted.content)
    other = {"old": "new", "new": "old"}[answer["variant"]]
    forged = running_shop.post("/v1/exposures", exposure | {"variant": other})
    assert forged.status_code == 422
    assert forged.json()["error"]["field"] == "variant"


def test_exposures_of_a_batch_are_refused_one_by_one(running_shop):
    unit = next(u for u in UNITS if recommend(running_shop, u)["variant"])
    good = recommend(running_shop, unit, log_exposure=False)["exposure"]
    bad = good | {"epoch": 77}
    answer = running_shop.post("/v1/exposures", {"exposures": [bad, good]})
    assert answer.status_code == 200
    receipt = answer.json()
    schemas.Receipt.model_validate_json(answer.content)
    assert receipt["accepted"] == 1
    assert [(each["index"], each["field"]) for each in receipt["refused"]] == [
        (0, "epoch")
    ]
    none = running_shop.post("/v1/exposures", {"exposures": [bad, bad]})
    assert none.status_code == 422
    assert none.json()["error"]["details"]["accepted"] == 0
    assert len(none.json()["error"]["details"]["refused"]) == 2


def test_interactions_are_refused_one_by_one(running_shop):
    good = {"id": "http-1", "unit_id": "u", "kind": "click"}
    answer = running_shop.post(
        "/v1/interactions",
        {"interactions": [{"id": "http-2", "unit_id": "u", "kind": "stare"}, good, 7]},
    )
    assert answer.status_code == 200, answer.text
    schemas.Receipt.model_validate_json(answer.content)
    receipt = answer.json()
    assert receipt["accepted"] == 1
    assert [each["index"] for each in receipt["refused"]] == [0, 2]
    assert receipt["refused"][0]["id"] == "http-2"
    assert receipt["refused"][0]["field"] == "kind"
    assert "known kinds: add_to_cart" in receipt["refused"][0]["reason"]
    none = running_shop.post("/v1/interactions", {"interactions": [{}]})
    assert none.status_code == 422
    assert none.json()["error"]["details"]["refused"][0]["index"] == 0


def test_every_documented_interaction_field_is_accepted(running_shop):
    unit = next(u for u in UNITS if recommend(running_shop, u)["variant"])
    full = {
        "id": "full-1",
        "exposure_id": recommend(running_shop, unit)["exposure_id"],
        "unit_id": unit,
        "kind": "purchase",
        "item_id": "item-001",
        "category": "shoes",
        "placement": "cart",
        "position": 1,
        "value": 12.5,
        "occurred_at": running_shop.get("/v1/status").json()["snapshot"]["loaded_at"],
    }
    assert set(full) == set(schemas.InteractionDocument.model_fields)
    variants = [full, full | {"id": "full-2", "value": 3}]
    answer = running_shop.post("/v1/interactions", {"interactions": variants})
    assert answer.json() == {"accepted": 2, "refused": []}


def open_epoch(server, key, weights, segments=None):
    """Open an epoch as a reallocation would, and wait until it is served."""
    with database.transaction(server.engine) as connection:
        experiment = storage.get_experiment(connection, key)
        number = storage.list_epochs(connection, experiment.id)[-1].number + 1
        epoch = Epoch(
            number=number,
            weights=weights,
            segments=segments,
            reason="test",
            started_at=now(),
        )
        storage.insert_epoch(connection, experiment.id, epoch)
    server.wait_for(
        lambda: assign(server, "probe", key, attributes={})["epoch"] == number
    )
    return number


def waiting_events(server):
    return server.get("/v1/status").json()["journal"]["events"]


def test_sticky_units_keep_their_variant_and_redrawn_ones_do_not(running_shop):
    first = {
        key: {unit: recommend(running_shop, unit, place) for unit in UNITS}
        for key, place in (("sticky", "basket"), ("redraw", "shelf"))
    }
    for key in first:
        open_epoch(running_shop, key, {"old": 0.3, "new": 0.7})
    # `explain` reads the database, so it has to have what was served.
    running_shop.wait_for(lambda: waiting_events(running_shop) == 0)
    for unit in UNITS:
        again = recommend(running_shop, unit, "basket")
        before = first["sticky"][unit]
        assert again["variant"] == before["variant"]
        assert (again["epoch"], again["propensity"]) == (
            before["epoch"],
            before["propensity"],
        )
        told = explain(running_shop, unit, "sticky")
        assert told["variant"] == again["variant"]
    pairs = Counter()
    for unit in UNITS:
        again = recommend(running_shop, unit, "shelf")
        assert again["epoch"] == 1
        pairs[first["redraw"][unit]["variant"] == "new", again["variant"] == "new"] += 1
    # Independent draws: 200 * 0.5 * 0.7 = 70 units are new twice; 4 standard errors 27.
    assert abs(pairs[True, True] - 70) < 27
    assert abs(pairs[False, True] - 70) < 27


def test_a_segment_has_its_own_weights_and_they_are_its_propensity(running_shop):
    weights = {"phone": 0.9, "desk": 0.2, "other": 0.6}
    open_epoch(
        running_shop,
        "by-device",
        {"old": 0.5, "new": 0.5},
        segments={
            name: EpochSegment(weights={"old": 1 - share, "new": share}, statistics={})
            for name, share in weights.items()
        },
    )
    for segment, share in weights.items():
        attributes = {} if segment == "other" else {"device": segment}
        drawn = Counter()
        for unit in UNITS:
            answer = recommend(running_shop, unit, "cart", attributes=attributes)
            drawn[answer["variant"]] += 1
            expected = share if answer["variant"] == "new" else 1 - share
            assert answer["propensity"] == pytest.approx(expected, abs=1e-12)
        spread = 4 * (len(UNITS) * share * (1 - share)) ** 0.5
        assert abs(drawn["new"] - len(UNITS) * share) < spread
    prefetched = recommend(
        running_shop,
        "shopper",
        "cart",
        attributes={"device": "desk"},
        log_exposure=False,
    )
    assert running_shop.post("/v1/exposures", prefetched["exposure"]).is_success
    told = explain(running_shop, "shopper", "by-device", {"device": "desk"})
    assert (told["segment"], told["variant"]) == ("desk", prefetched["variant"])
    running_shop.wait_for(lambda: waiting_events(running_shop) == 0)
    with database.transaction(running_shop.engine) as connection:
        rows = connection.execute(
            text(
                "SELECT segment, count(*), count(DISTINCT (variant, propensity))"
                " FROM exposure WHERE segment IS NOT NULL GROUP BY segment"
            )
        ).all()
    assert {row[0]: tuple(row[1:]) for row in rows} == {
        "phone": (len(UNITS), 2),
        "desk": (len(UNITS) + 1, 2),
        "other": (len(UNITS), 2),
    }
    listed = running_shop.get("/v1/experiments/by-device/epochs").json()["epochs"]
    assert listed[-1]["segments"]["phone"]["weights"]["new"] == 0.9


def test_status_counts_answers_per_route(running_shop):
    before = running_shop.get("/v1/status").json()
    for _ in range(5):
        recommend(running_shop, "unit-1")
    answer = running_shop.get("/v1/status")
    documents.StatusDocument.model_validate_json(answer.content)
    after = answer.json()
    route = "POST /v1/recommendations"
    assert after["latency"][route]["count"] == before["latency"][route]["count"] + 5
    assert (
        sum(after["latency"][route]["bucket_counts"])
        == (after["latency"][route]["count"])
    )
    assert 0 < after["latency"][route]["p50_ms"] <= after["latency"][route]["p99_ms"]
    assert "GET /v1/status" in after["latency"]
    assert after["snapshot"]["models"] == {"als": "als/1", "popularity": "popularity/1"}
    assert after["snapshot"]["age_seconds"] < 60


def test_health(running_shop):
    assert running_shop.get("/health/live").json() == {"status": "ready", "reasons": []}
    ready = running_shop.get("/health/ready")
    assert (ready.status_code, ready.json()) == (
        200,
        {"status": "ready", "reasons": []},
    )
