"""The OpenAPI document: complete, and with an example of each hot route."""

import json
import re

import pytest

from experiment_service.api import schemas
from experiment_service.api.app import create_app
from experiment_service.config import Settings

HOT = ("recommendations", "assignments", "exposures", "interactions")
ROUTES = {
    "/v1/recommendations": {"post"},
    "/v1/assignments": {"post"},
    "/v1/exposures": {"post"},
    "/v1/interactions": {"post"},
    "/v1/experiments": {"get", "post"},
    "/v1/experiments/{key}": {"get"},
    "/v1/experiments/{key}/start": {"post"},
    "/v1/experiments/{key}/stop": {"post"},
    "/v1/experiments/{key}/decision": {"put"},
    "/v1/experiments/{key}/weights": {"put"},
    "/v1/experiments/{key}/overrides": {"put"},
    "/v1/experiments/{key}/explain": {"get"},
    "/v1/experiments/{key}/epochs": {"get"},
    "/v1/experiments/{key}/report": {"get"},
    "/v1/experiments/{key}/segments": {"get"},
    "/v1/placements": {"get"},
    "/v1/placements/{key}": {"put"},
    "/v1/models": {"get"},
    "/v1/models/{name}/versions/{version}/shadow": {"post"},
    "/v1/models/{name}/versions/{version}/promote": {"post"},
    "/v1/models/{name}/versions/{version}/reject": {"post"},
    "/v1/models/{name}/rollback": {"post"},
    "/v1/keys": {"get", "post"},
    "/v1/keys/{key_id}/revoke": {"post"},
    "/v1/keys/{key_id}/rotate": {"post"},
    "/v1/audit": {"get"},
    "/v1/erasures": {"post"},
    "/v1/status": {"get"},
    "/ofrep/v1/evaluate/flags": {"post"},
    "/ofrep/v1/evaluate/flags/{key}": {"post"},
    "/metrics": {"get"},
    "/health/live": {"get"},
    "/health/ready": {"get"},
}


@pytest.fixture(scope="module")
def document():
    return create_app(Settings()).openapi()


def resolve(document, schema):
    """Follow references; return the alternatives of a schema."""
    if "$ref" in schema:
        return [document["components"]["schemas"][schema["$ref"].split("/")[-1]]]
    parts = schema.get("oneOf", schema.get("anyOf"))
    return [each for part in parts for each in resolve(document, part)]


def test_every_route_is_documented(document):
    assert {path: set(methods) for path, methods in document["paths"].items()} == ROUTES


def test_every_operation_says_what_it_does_answers_and_refuses(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["description"], path
            good = operation["responses"][
                "201" if "201" in operation["responses"] else "200"
            ]
            kind = "text/plain" if path == "/metrics" else "application/json"
            assert good["content"][kind]["schema"], path
            if path not in ("/v1/status", "/metrics") and not path.startswith(
                ("/health", "/ofrep")
            ):
                error = operation["responses"]["422"]["content"]["application/json"]
                assert error["schema"]["$ref"].endswith("/ErrorAnswer"), path
            if method in ("post", "put") and not path.endswith("/start"):
                assert operation["requestBody"], path


def test_references_lead_somewhere(document):
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert names <= set(document["components"]["schemas"])


@pytest.mark.parametrize("route", HOT)
def test_hot_routes_have_examples_that_are_valid(document, route):
    operation = document["paths"][f"/v1/{route}"]["post"]
    request = operation["requestBody"]["content"]["application/json"]["schema"]
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    described = resolve(document, request) + resolve(document, answer)
    with_examples = [schema for schema in described if schema.get("examples")]
    assert len(with_examples) >= 2
    for schema in with_examples:
        model = getattr(schemas, schema["title"])
        for example in schema["examples"]:
            model.model_validate_json(json.dumps(example))
