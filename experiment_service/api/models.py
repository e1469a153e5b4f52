"""Routes about model versions: which serves, which is a shadow, which is rejected."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Path
from pydantic import Field
from starlette.responses import Response

from experiment_service.api.documents import (
    FreeText,
    ModelDocument,
    ModelsDocument,
    Number,
    Whole,
)
from experiment_service.api.routes import ERRORS, Actor, Serving, answer
from experiment_service.api.schemas import Identifier, Request
from experiment_service.api.services import Services, clock
from experiment_service.domain.shadow import ShadowRule
from experiment_service.lazy import LazyModule
from experiment_service.storage import models
from experiment_service.storage.database import transaction
from experiment_service.storage.models import ModelVersion

if TYPE_CHECKING:
    from experiment_service import promotion
else:
    # Statistics take seconds to load, and most processes never need them.
    promotion = LazyModule("experiment_service.promotion")

router = APIRouter(tags=["management"], responses=ERRORS)

ModelName = Annotated[Identifier, Path(description="Name of the model.")]
Version = Annotated[int, Path(ge=1, lt=2**31, description="Number of the version.")]


class DecideRequest(Request):
    """Why a version gets another status."""

    reason: FreeText = ""


class RollBackRequest(Request):
    """Which former version serves again, and why."""

    version: int | None = Field(
        default=None, ge=1, lt=2**31, description="The one before when left out."
    )
    reason: FreeText = ""


class RuleDocument(Request):
    """What decides on a shadow: live if it keeps every threshold, else rejected."""

    answers: Whole = Field(description="How many are waited for.")
    overlap: Number = Field(
        default=0.0, description="Least mean share of items in both."
    )
    errors: Number = Field(
        default=0.0, description="Largest share of answers that fail."
    )
    coverage: Number = Field(
        default=0.0, description="Least share of answers from its own lists."
    )
    milliseconds: Number | None = Field(
        default=None, description="Largest 95th percentile of the time to answer."
    )


class ShadowRequest(Request):
    """For which share of units a version is computed, and what decides on it."""

    share: Number = Field(description="Above 0 and at most 1.")
    rule: RuleDocument | None = Field(
        default=None, description="People decide when left out."
    )
    reason: FreeText = ""


@router.get("/v1/models", response_model=ModelsDocument)
def list_models(services: Serving) -> Response:
    """List model versions by name, the newest first."""
    with transaction(services.engine) as connection:
        versions = models.list_versions(connection)
    return answer({"models": [asdict(version) for version in versions]})


@router.post(
    "/v1/models/{name}/versions/{version}/shadow", response_model=ModelDocument
)
def set_shadow(
    services: Serving,
    name: ModelName,
    version: Version,
    body: ShadowRequest,
    actor: Actor,
) -> Response:
    """Compute a version beside the live one, never shown, for a share of units."""
    rule = None if body.rule is None else ShadowRule.parse(body.rule.model_dump())
    decide = partial(
        promotion.set_shadow,
        data_dir=services.data_dir,
        name=name,
        version=version,
        share=body.share,
        rule=rule,
    )
    return _decided(services, decide, actor, body.reason)


@router.post(
    "/v1/models/{name}/versions/{version}/promote", response_model=ModelDocument
)
def promote(
    services: Serving,
    name: ModelName,
    version: Version,
    actor: Actor,
    body: DecideRequest | None = None,
) -> Response:
    """Let a candidate or a shadow serve; the version that served is retired."""
    decide = partial(
        promotion.promote, data_dir=services.data_dir, name=name, version=version
    )
    return _decided(services, decide, actor, body.reason if body else "")


@router.post(
    "/v1/models/{name}/versions/{version}/reject", response_model=ModelDocument
)
def reject(
    services: Serving,
    name: ModelName,
    version: Version,
    actor: Actor,
    body: DecideRequest | None = None,
) -> Response:
    """End a candidate or a shadow for ever; nothing that serves changes."""
    decide = partial(promotion.reject, name=name, version=version)
    return _decided(services, decide, actor, body.reason if body else "")


@router.post("/v1/models/{name}/rollback", response_model=ModelDocument)
def roll_back(
    services: Serving,
    name: ModelName,
    actor: Actor,
    body: RollBackRequest | None = None,
) -> Response:
    """Let a former version serve again."""
    decide = partial(
        promotion.roll_back,
        data_dir=services.data_dir,
        name=name,
        version=body.version if body else None,
    )
    return _decided(services, decide, actor, body.reason if body else "")


def _decided(
    services: Services, decide: Callable[..., ModelVersion], actor: str, reason: str
) -> Response:
    with transaction(services.engine) as connection:
        version = decide(connection, actor=actor, reason=reason, now=clock())
    return answer(asdict(version))
