"""Experiments, placements and models over HTTP, from draft to report."""

import pytest

from experiment_service.api import documents
from experiment_service.domain.declaration import parse_declaration
from tests.integration.serving.conftest import bandit, declaration


def check(answer, model, status=200):
    assert answer.status_code == status, answer.text
    model.model_validate_json(answer.content)
    return answer.json()


def refused(answer, status, code, text):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert text in error["message"]
    return error


@pytest.fixture(scope="module")
def draft(running_shop):
    document = declaration("life", layer="life", placement="life")
    answer = running_shop.post("/v1/experiments", document, headers={"X-Actor": "ann"})
    return check(answer, documents.ExperimentDocument, 201)


def test_life_of_an_experiment(running_shop, draft):
    assert draft["state"] == "draft"
    path = "/v1/experiments/life"
    details = check(running_shop.get(path), documents.ExperimentDetails)
    assert details["current_epoch"] is None
    refused(
        running_shop.get(path + "/explain", params={"unit_id": "u"}),
        409,
        "invalid_state",
        "is a draft",
    )
    started = check(
        running_shop.post(path + "/start", {}), documents.ExperimentDocument
    )
    assert started["state"] == "running"
    refused(running_shop.post(path + "/start", {}), 409, "invalid_state", "is running")
    epoch = check(
        running_shop.client.put(
            path + "/weights",
            json={"weights": {"old": 0.25, "new": 0.75}, "reason": "go"},
        ),
        documents.EpochDocument,
    )
    assert (epoch["number"], epoch["reason"]) == (1, "go")
    epochs = check(running_shop.get(path + "/epochs"), documents.EpochsDocument)
    assert [each["number"] for each in epochs["epochs"]] == [0, 1]
    changed = check(
        running_shop.client.put(path + "/overrides", json={"overrides": {"q": "new"}}),
        documents.ExperimentDocument,
    )
    assert changed["declaration"]["overrides"] == {"q": "new"}
    report = running_shop.get(path + "/report")
    assert report.status_code == 200, report.text
    stopped = check(
        running_shop.post(path + "/stop", {"reason": "enough"}),
        documents.ExperimentDocument,
    )
    assert stopped["state"] == "stopped"
    refused(running_shop.post(path + "/stop", {}), 409, "invalid_state", "is stopped")
    listed = check(running_shop.get("/v1/experiments"), documents.ExperimentsDocument)
    assert "life" in [each["declaration"]["key"] for each in listed["experiments"]]


def test_stop_needs_no_body(running_shop):
    document = declaration("short", layer="short", placement="short")
    check(
        running_shop.post("/v1/experiments", document),
        documents.ExperimentDocument,
        201,
    )
    path = "/v1/experiments/short"
    assert running_shop.client.post(path + "/start").status_code == 200
    assert running_shop.client.post(path + "/stop").status_code == 200
    decision = {"outcome": "ship", "variant": "new", "reason": "it won"}
    decided = running_shop.client.put(path + "/decision", json=decision)
    check(decided, documents.DecisionDocument, 200)
    assert decided.json() == decision
    wrong = running_shop.client.put(
        path + "/decision", json=decision | {"outcome": "x"}
    )
    refused(wrong, 422, "invalid_request", "ship")


def test_refusals_name_field_value_and_rule(running_shop, draft):
    again = running_shop.post("/v1/experiments", draft["declaration"])
    refused(again, 409, "conflict", "exists already")
    error = refused(
        running_shop.post("/v1/experiments", declaration("x", traffic_share=2.0)),
        422,
        "invalid_request",
        "traffic_share is 2.0; it must lie in 0 to 1",
    )
    assert error["field"] == "traffic_share"
    error = refused(
        running_shop.post("/v1/experiments", declaration("x", tarffic=1)),
        422,
        "invalid_request",
        "tarffic is not a field",
    )
    assert error["field"] == "tarffic"
    refused(
        running_shop.post("/v1/experiments", declaration("x", variants=[])),
        422,
        "invalid_request",
        "variants are 0",
    )
    refused(
        running_shop.post("/v1/experiments", bandit("x", policy={"name": "magic"})),
        422,
        "invalid_request",
        "known policies",
    )
    refused(running_shop.get("/v1/experiments/nope"), 404, "not_found", "experiments: ")


def test_placements_and_models(running_shop):
    placement = check(
        running_shop.client.put(
            "/v1/placements/cellar",
            json={"recommender": "als", "settings": {"title": "Wine"}},
        ),
        documents.PlacementDocument,
    )
    assert placement == {
        "key": "cellar",
        "recommender": "als",
        "settings": {"title": "Wine"},
    }
    listed = check(running_shop.get("/v1/placements"), documents.PlacementsDocument)
    assert placement in listed["placements"]
    refused(
        running_shop.client.put("/v1/placements/cellar", json={"recommender": "x"}),
        422,
        "invalid_request",
        "live models: als, popularity",
    )
    models = check(running_shop.get("/v1/models"), documents.ModelsDocument)
    assert [(each["name"], each["status"]) for each in models["models"]] == [
        ("als", "live"),
        ("popularity", "live"),
    ]


def test_declared_fields_are_those_of_the_domain():
    """Whatever one side takes, the other takes too."""
    full = declaration("full") | {
        "kind": "bandit",
        "description": "d",
        "layer": "l",
        "segments": [0, 10],
        "traffic_share": 0.5,
        "targeting": [{"attribute": "a", "operator": "in", "values": [1]}],
        "overrides": {"u": "old"},
        "metrics": [
            {
                "name": "top-clicks",
                "title": "Clicks at the top",
                "kind": "mean",
                "event_kinds": ["click"],
                "of": "events",
                "positions": [1, 2],
                "categories": ["shoes"],
                "placements": ["home", "cart"],
                "cap": 5.0,
                "trigger": "viewed",
                "direction": "higher",
            }
        ],
        "cuped": True,
        "reward_metric": "conversion_rate",
        "guardrails": {"dismiss_rate": 0.1, "top-clicks": 0.5},
        "attribution_window": "2h",
        "mode": "redraw",
        "policy": {
            "name": "segmented_thompson",
            "parameters": {},
            "floor": 0.1,
            "control_share": 0.2,
            "interval": 60,
            "minimum_units": 5,
            "segment_by": {"device": ["phone", "desk"], "app": [True]},
        },
    }
    assert set(full) == set(documents.DeclarationDocument.model_fields)
    assert set(full["metrics"][0]) == set(documents.MetricDeclaration.model_fields)
    assert set(full["policy"]) == set(documents.PolicyDocument.model_fields)
    parsed = documents.DeclarationDocument.model_validate(full)
    assert parse_declaration(parsed.model_dump(exclude_none=True)) == (
        parse_declaration(full)
    )
    defaults = documents.DeclarationDocument.model_validate(declaration("plain"))
    assert parse_declaration(defaults.model_dump(exclude_none=True)) == (
        parse_declaration(declaration("plain"))
    )
