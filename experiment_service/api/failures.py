"""Every failure in one JSON shape, with a status and a sentence that says what to do."""

import dataclasses
import logging
import re
import reprlib
import sqlite3
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import to_json
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from experiment_service.errors import (
    Conflict,
    ExperimentServiceError,
    InvalidRequest,
    InvalidState,
    NotFound,
    Unavailable,
)
from experiment_service.logs import REQUEST_ID

log = logging.getLogger(__name__)

_STATUS: dict[type[ExperimentServiceError], tuple[HTTPStatus, str]] = {
    NotFound: (HTTPStatus.NOT_FOUND, "not_found"),
    Conflict: (HTTPStatus.CONFLICT, "conflict"),
    InvalidState: (HTTPStatus.CONFLICT, "invalid_state"),
    InvalidRequest: (HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request"),
    Unavailable: (HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"),
}

_MAX_PROBLEMS = 20
_MAX_SHOWN = 60

# Plain `repr` fails on lists nested by the hundreds.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = 2 * _MAX_SHOWN

# The first words of pydantic's messages: "String should have at most 128 characters".
_SUBJECT = re.compile(r"^(?:Input|String|List|Dictionary|Value) should ")

# Tags of the alternatives "one" and "many" and of the place of a parameter.
_NO_FIELD = frozenset({"body", "query", "path", "header", "one", "many"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a failed request is answered."""

    status: HTTPStatus
    code: str
    message: str
    field: str | None = None
    details: Any = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)

    def body(self) -> bytes:
        """Encode the one error shape; absent parts are left out."""
        parts = {
            "code": self.code,
            "message": self.message,
            "field": self.field,
            "details": self.details,
        }
        error = {name: part for name, part in parts.items() if part is not None}
        return to_json({"error": error}, inf_nan_mode="null")


class Refused(Exception):  # noqa: N818
    """A failure that the API itself states, such as a body that is too long."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def describe(error: Exception) -> Failure:
    """Turn any exception into its answer; an unexpected one is logged with an id."""
    match error:
        case Refused():
            failure = error.failure
        case ExperimentServiceError():
            failure = _describe_ours(error)
        case ValidationError() | RequestValidationError():
            failure = _describe_validation(error.errors())
        case HTTPException():
            failure = _describe_http(error)
        case sqlite3.Error() | OSError():
            failure = _describe_disk(error)
        case DataError():
            failure = Failure(
                status=HTTPStatus.UNPROCESSABLE_ENTITY,
                code="invalid_request",
                message="a value can't be stored; it is too large or not valid text",
            )
        case _:
            failure = _describe_unexpected(error)
    return failure


def _describe_disk(error: Exception) -> Failure:
    log.error("disk failed error=%r", error)
    return Failure(
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        code="unavailable",
        message="the request can't be written to disk; try again",
        headers={"retry-after": "5"},
    )


def _describe_ours(error: ExperimentServiceError) -> Failure:
    status, code = _STATUS[type(error)]
    headers = {}
    if isinstance(error, Unavailable):
        headers["retry-after"] = str(error.retry_after)
    return Failure(
        status=status,
        code=code,
        message=error.message,
        field=error.field,
        headers=headers,
    )


def _describe_unexpected(error: Exception) -> Failure:
    request_id = REQUEST_ID.get() or uuid4().hex
    log.error("request failed request_id=%s", request_id, exc_info=error)
    return Failure(
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        code="internal",
        message="the request failed by a fault of the service; its log names the cause",
        details={"request_id": request_id},
    )


def _describe_http(error: HTTPException) -> Failure:
    status = HTTPStatus(error.status_code)
    codes = {400: "malformed_json", 404: "not_found", 405: "method_not_allowed"}
    return Failure(
        status=status,
        code=codes.get(error.status_code, status.name.lower()),
        message=str(error.detail),
        headers=dict(error.headers or {}),
    )


def _describe_validation(errors: Sequence[Any]) -> Failure:
    if errors[0]["type"] == "json_invalid":
        return malformed(str((errors[0].get("ctx") or {}).get("error", "")))
    problems = []
    for error in errors[:_MAX_PROBLEMS]:
        path = ".".join(str(part) for part in error["loc"] if part not in _NO_FIELD)
        problems.append({"field": path, "message": _sentence(path or "body", error)})
    return Failure(
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
        code="invalid_request",
        message=problems[0]["message"],
        field=problems[0]["field"] or None,
        details=problems if len(problems) > 1 else None,
    )


def _sentence(path: str, error: Any) -> str:  # noqa: ANN401 - a pydantic error
    match error["type"]:
        case "missing":
            return f"{path} is missing; it is required"
        case "extra_forbidden":
            return f"{path} is not a field of this request; leave it out"
        case "sentence":
            return str(error["msg"])
        case "string_pattern_mismatch":
            return f"{path} holds a control character; none is allowed"
    shown = _SHORT.repr(error["input"])
    if len(shown) > _MAX_SHOWN:
        shown = shown[: _MAX_SHOWN - 3] + "..."
    rule = str(error["msg"])
    if error["type"].endswith(("attributes_type", "dict_type", "dataclass_type")):
        rule = "Input should be a JSON object"
    if not _SUBJECT.match(rule):
        return f"{path} is {shown}; {rule[:1].lower()}{rule[1:]}"
    return f"{path} is {shown}; it must {_SUBJECT.sub('', rule)}"


def malformed(reason: str) -> Failure:
    """Return the answer to a body that is not JSON."""
    return Failure(
        status=HTTPStatus.BAD_REQUEST,
        code="malformed_json",
        message=f"the body is not valid JSON: {reason}" if reason else "no valid JSON",
    )
