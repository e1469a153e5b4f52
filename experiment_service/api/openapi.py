"""What FastAPI can't know of the OpenAPI document: keys, their refusals, and links."""

from typing import Any

from experiment_service.api.access import permission_needed
from experiment_service.domain.key import PERMISSIONS

_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key, `es_...`, of `experiment-service keys create`. Not "
        "needed on loopback as long as there is none.",
    },
    "header": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same, for gateways that use Authorization themselves.",
    },
}

_REFUSALS = {
    401: "No key was sent, or it is not known, revoked or expired.",
    403: "The key has not the scope, or is for another page.",
    429: "The key's requests of this second are used up; see Retry-After.",
}

#: Where one answer leads to: the operation, and what of the answer it takes.
_LINKS = {
    ("post", "/v1/experiments", "201"): (
        "$response.body#/declaration/key",
        "key",
        (
            "get_experiment",
            "start_experiment",
            "list_epochs",
            "report",
            "set_overrides",
            "stop_experiment",
        ),
    ),
    ("post", "/v1/keys", "201"): (
        "$response.body#/details/id",
        "key_id",
        ("rotate_key", "revoke_key"),
    ),
}


def declare_access(document: dict[str, Any]) -> dict[str, Any]:
    """Complete a document: what each operation needs and may refuse, and its links."""
    document["components"]["securitySchemes"] = _SCHEMES
    names: dict[str, str] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["operationId"] = names.setdefault(
                _function(operation["operationId"], path), operation["operationId"]
            )
            _declare(operation, method, path)
    for (method, path, status), (value, parameter, targets) in _LINKS.items():
        document["paths"][path][method]["responses"][status]["links"] = {
            target: {
                "operationId": names[target],
                "parameters": {parameter: value},
            }
            for target in targets
        }
    return document


def _function(operation_id: str, path: str) -> str:
    """Return the name of the function behind an operation id of FastAPI."""
    suffix = "".join(c if c.isalnum() else "_" for c in path)
    return operation_id.rsplit(suffix, 1)[0]


def _declare(operation: dict[str, Any], method: str, path: str) -> None:
    needed = permission_needed(method.upper(), path)
    if needed is None:
        operation["security"] = []
        return
    operation["security"] = [{name: []} for name in _SCHEMES]
    scopes = [scope for scope, each in PERMISSIONS.items() if needed in each]
    operation["description"] += f"\n\nScope: {' or '.join(scopes)}."
    refusal = {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}
    for status, text in _REFUSALS.items():
        operation["responses"][str(status)] = {
            "description": text,
            "content": {"application/json": refusal},
        }
