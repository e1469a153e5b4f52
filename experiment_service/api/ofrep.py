"""OFREP 0.3.0: experiments as feature flags, for any client of OpenFeature.

A flag is an experiment by its key, its value the settings of the unit's variant. The
module translates between the protocol and the desk; it decides nothing. Errors have the
protocol's shape, not that of the other routes.
"""

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError, from_json, to_json
from starlette.responses import Response

from experiment_service.api.desk import Document
from experiment_service.api.failures import Failure, describe
from experiment_service.api.schemas import (
    PRINTABLE,
    AssignmentRequest,
    ErrorAnswer,
    storable,
)
from experiment_service.api.wire import check_content_type
from experiment_service.domain.event import (
    MAX_ID_LENGTH,
    AttributeValue,
    check_attributes,
    check_id,
)
from experiment_service.errors import InvalidRequest, NotFound

PATH = "/ofrep/v1/evaluate/flags"

#: What is told of a flag without a variant. Absent would be allowed, but the official
#: Python provider fails on it; no variant can have an empty key.
_NO_VARIANT = ""


class Reason(StrEnum):
    """Why a flag has its value; the names that the protocol allows and we use."""

    SPLIT = "SPLIT"
    TARGETING_MATCH = "TARGETING_MATCH"
    STATIC = "STATIC"
    DISABLED = "DISABLED"


class ErrorCode(StrEnum):
    """What was wrong with a request."""

    PARSE_ERROR = "PARSE_ERROR"
    TARGETING_KEY_MISSING = "TARGETING_KEY_MISSING"
    INVALID_CONTEXT = "INVALID_CONTEXT"
    FLAG_NOT_FOUND = "FLAG_NOT_FOUND"


class EvaluationRequest(BaseModel):
    """Who asks; `targetingKey` is the unit, everything else an attribute."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"context": {"targetingKey": "shopper-1", "country": "at"}}]
        }
    )

    context: dict[str, Any] = Field(
        json_schema_extra={
            "required": ["targetingKey"],
            "properties": {
                "targetingKey": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": MAX_ID_LENGTH,
                    "pattern": PRINTABLE,
                }
            },
        }
    )


class Evaluation(BaseModel):
    """The value of a flag for a unit."""

    key: str
    reason: Reason
    variant: str = Field(description="Empty when the unit is in no variant.")
    value: dict[str, str | bool | int | float] | None = Field(
        default=None, description="Absent: use the default in your code."
    )
    metadata: dict[str, str | bool | int | float]


class EvaluationFailure(BaseModel):
    """Why a flag was not evaluated."""

    key: str
    errorCode: ErrorCode  # noqa: N815 - the protocol's spelling
    errorDetails: str  # noqa: N815


class BulkEvaluation(BaseModel):
    """Every running experiment for one unit."""

    flags: list[Evaluation]


class BulkFailure(BaseModel):
    """Why nothing was evaluated."""

    errorCode: Literal[  # noqa: N815
        ErrorCode.PARSE_ERROR,
        ErrorCode.TARGETING_KEY_MISSING,
        ErrorCode.INVALID_CONTEXT,
    ]
    errorDetails: str  # noqa: N815


class GeneralFailure(BaseModel):
    """Something that the request could not help."""

    errorDetails: str  # noqa: N815


class _Refused(Exception):  # noqa: N818
    def __init__(self, code: ErrorCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


async def _assign(
    request: Request,
    key: str,
    unit_id: str,
    attributes: Mapping[str, AttributeValue],
    *,
    log_exposure: bool,
) -> Document:
    answer: Document = await request.app.desk.assign(
        # Checked by `_context`; a key of another form is simply not found.
        AssignmentRequest.model_construct(
            unit_id=unit_id,
            experiment=key,
            placement=None,
            attributes=attributes,
            log_exposure=log_exposure,
        )
    )
    return answer


async def _context(request: Request) -> tuple[str, dict[str, AttributeValue]]:
    """Return unit and attributes of a request.

    What can be no attribute (null, a list, an object) is left out: such a context is
    shared with other providers.
    """
    context = _read_context(await _body(request))
    unit_id = context.get("targetingKey")
    if unit_id is None or unit_id == "":
        raise _Refused(
            ErrorCode.TARGETING_KEY_MISSING,
            "context.targetingKey is missing; it names the unit to assign",
        )
    if not isinstance(unit_id, str):
        raise _Refused(
            ErrorCode.INVALID_CONTEXT,
            f"context.targetingKey is {unit_id!r:.60}; it must be a text",
        )
    attributes = {
        name: value
        for name, value in context.items()
        if name != "targetingKey" and isinstance(value, str | int | float)
    }
    try:
        check_id("context.targetingKey", unit_id)
        storable(attributes)
        return unit_id, check_attributes("context", attributes)
    except InvalidRequest as error:
        raise _Refused(ErrorCode.INVALID_CONTEXT, error.message) from error
    except PydanticCustomError as error:
        raise _Refused(ErrorCode.INVALID_CONTEXT, error.message()) from error


async def _body(request: Request) -> object:
    try:
        check_content_type(request.scope)
        return from_json(await request.body(), allow_inf_nan=False)
    except ValueError as error:
        raise _Refused(
            ErrorCode.PARSE_ERROR, f"the body is not valid JSON: {error}"
        ) from error
    except Exception as error:
        raise _Refused(ErrorCode.PARSE_ERROR, describe(error).message) from error


def _read_context(document: object) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise _Refused(
            ErrorCode.PARSE_ERROR,
            "the body must be an object such as "
            '{"context": {"targetingKey": "shopper-1"}}',
        )
    context = document.get("context")
    if not isinstance(context, dict):
        missing = "missing" if context is None else f"a {type(context).__name__}"
        raise _Refused(
            ErrorCode.INVALID_CONTEXT, f"context is {missing}; it must be an object"
        )
    return context


def _evaluation(found: Mapping[str, Any]) -> Document:
    """Write an assignment as the protocol's evaluation."""
    key = found["experiment"]
    metadata: Document = {"experiment": key}
    if found["recommender"] is None:  # a draft, or stopped
        return {
            "key": key,
            "reason": Reason.DISABLED,
            "variant": _NO_VARIANT,
            "metadata": metadata,
        }
    if found["variant"] is None:
        reason = Reason.STATIC
    elif found["propensity"] is None:  # an override names the unit
        reason = Reason.TARGETING_MATCH
    else:
        reason = Reason.SPLIT
    metadata["recommender"] = found["recommender"]
    for name in ("epoch", "propensity"):
        if found[name] is not None:
            metadata[name] = found[name]
    exposure = found["exposure"]
    if exposure is not None:  # what `POST /v1/exposures` wants to hear of it
        metadata["model"] = exposure["model"]
    elif found["exposure_id"] is not None:
        metadata["exposure_id"] = found["exposure_id"]
    return {
        "key": key,
        "reason": reason,
        "variant": found["variant"] or _NO_VARIANT,
        "value": dict(found["settings"]),
        "metadata": metadata,
    }


def _matches(listed: str, tag: str) -> bool:
    """Whether If-None-Match lists a tag (RFC 9110, 13.1.2: by weak comparison)."""
    tags = [each.strip().removeprefix("W/") for each in listed.split(",")]
    return tag in tags or tags == ["*"]


def _answer(document: object, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(to_json(document), status, media_type="application/json")


def _failed(error: Exception, key: str | None = None) -> Response:
    named = {} if key is None else {"key": key}
    if isinstance(error, _Refused):
        return _answer(
            {**named, "errorCode": error.code, "errorDetails": error.details},
            HTTPStatus.BAD_REQUEST,
        )
    if isinstance(error, NotFound) and key is not None:
        return _answer(
            {
                **named,
                "errorCode": ErrorCode.FLAG_NOT_FOUND,
                "errorDetails": error.message,
            },
            HTTPStatus.NOT_FOUND,
        )
    failure: Failure = describe(error)
    response = _answer({"errorDetails": failure.message}, failure.status)
    response.headers.update(failure.headers)
    return response


_GENERAL: dict[int | str, dict[str, Any]] = {
    413: {"model": ErrorAnswer, "description": "The body is too long."},
    500: {"model": GeneralFailure, "description": "A fault of the service."},
    503: {
        "model": GeneralFailure,
        "description": "Something needed is down; Retry-After says when to try again.",
    },
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": EvaluationRequest.model_json_schema()}
        },
    }
}


router = APIRouter(tags=["ofrep"])


@router.post(
    PATH,
    response_model=BulkEvaluation,
    responses={
        304: {"description": "If-None-Match names the present answer."},
        400: {"model": BulkFailure, "description": "Not a request to evaluate."},
        **_GENERAL,
    },
    openapi_extra=_BODY,
)
async def evaluate_all(request: Request) -> Response:
    """Evaluate every running experiment for a unit; records nothing.

    The entity tag covers the context and the whole answer, and so the configuration:
    another unit or another epoch has another tag.
    """
    try:
        unit_id, attributes = await _context(request)
        flags = [
            # Never logged: it asks about carousels that nobody may ever see.
            _evaluation(
                await _assign(request, key, unit_id, attributes, log_exposure=False)
            )
            for key in request.app.services.keeper.snapshot.experiments
        ]
    except Exception as error:  # whatever it is, the protocol has a shape for it
        return _failed(error)
    body = to_json({"flags": flags})
    context = to_json([unit_id, sorted(attributes.items())])
    tag = f'"{hashlib.sha256(context + body).hexdigest()[:32]}"'
    headers = {"ETag": tag}
    if _matches(request.headers.get("if-none-match", ""), tag):
        return Response(None, HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@router.post(
    PATH + "/{key:path}",
    response_model=Evaluation,
    responses={
        400: {"model": EvaluationFailure, "description": "Not a request to evaluate."},
        404: {"model": EvaluationFailure, "description": "No such experiment."},
        **_GENERAL,
    },
    openapi_extra=_BODY,
)
async def evaluate(request: Request, key: str) -> Response:
    """Evaluate one experiment for a unit; records an exposure if the service is set so."""
    log_exposure: bool = request.app.logs_flag_exposures
    try:
        unit_id, attributes = await _context(request)
        found = await _assign(
            request, key, unit_id, attributes, log_exposure=log_exposure
        )
    except Exception as error:
        return _failed(error, key)
    return _answer(_evaluation(found))
