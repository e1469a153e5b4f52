"""Routes: parse, call one use case, shape. The hot ones wait for the journal only."""

import os
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import AwareDatetime, TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.responses import Response

from experiment_service.api.access import Caller
from experiment_service.api.desk import Desk, Document
from experiment_service.api.documents import (
    DecisionDocument,
    DecisionRequest,
    DeclarationDocument,
    EpochDocument,
    EpochsDocument,
    ExperimentDetails,
    ExperimentDocument,
    ExperimentsDocument,
    ExplanationDocument,
    Health,
    OverridesRequest,
    PlacementDocument,
    PlacementRequest,
    PlacementsDocument,
    StatusDocument,
    StopRequest,
    WeightsRequest,
)
from experiment_service.api.latency import BUCKETS_MS
from experiment_service.api.schemas import (
    AssignmentAnswer,
    AssignmentAnswers,
    AssignmentBody,
    Attributes,
    ErrorAnswer,
    ExposureBody,
    Identifier,
    InteractionBatch,
    Receipt,
    RecommendationAnswer,
    RecommendationRequest,
)
from experiment_service.api.services import Services, clock
from experiment_service.api.wire import HotRoute
from experiment_service.domain.assignment import Assignment
from experiment_service.domain.configuration import (
    Placement,
    epoch_document,
    experiment_document,
)
from experiment_service.domain.declaration import parse_declaration, parse_outcome
from experiment_service.errors import InvalidRequest
from experiment_service.lazy import LazyModule
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import transaction

if TYPE_CHECKING:
    from experiment_service import experimentation, reporting
else:
    # Policies and statistics take seconds to load, and most processes never need them.
    experimentation = LazyModule("experiment_service.experimentation")
    reporting = LazyModule("experiment_service.reporting")

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "The body is not JSON.",
        404: "No such thing; the message lists those that exist.",
        409: "It collides with something stored, or the state does not allow it.",
        413: "The body is too long.",
        415: "The content type is not JSON.",
        422: "A value breaks a rule; the message names field, value and rule.",
        503: "Something needed is down; Retry-After says when to try again.",
    }.items()
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: ERRORS[status] for status in statuses}


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.desk
    return desk


def _services(request: Request) -> Services:
    services: Services = request.app.services
    return services


AtDesk = Annotated[Desk, Depends(_desk)]
Serving = Annotated[Services, Depends(_services)]
Key = Annotated[Identifier, Path(description="Key of the experiment.")]


def _actor(
    request: Request,
    named: Annotated[
        Identifier | None,
        Header(
            alias="X-Actor",
            description="Who acts; the audit log has it after the id of the key.",
        ),
    ] = None,
) -> str:
    caller: Caller = request.scope["caller"]
    return caller.actor if named is None else f"{caller.actor}:{named}"


Actor = Annotated[str, Depends(_actor)]

hot_router = APIRouter(
    route_class=HotRoute,
    tags=["serving"],
    responses=_errors(400, 404, 413, 415, 422, 503),
)
read_router = APIRouter(tags=["management"], responses=_errors(404, 409, 422, 503))
change_router = APIRouter(tags=["management"], responses=ERRORS)
health_router = APIRouter(tags=["health"])


@hot_router.post("/v1/recommendations", response_model=RecommendationAnswer)
async def recommend(desk: AtDesk, body: RecommendationRequest) -> Document:
    """Recommend items to a unit, and record the exposure."""
    return await desk.recommend(body)


@hot_router.post("/v1/assignments", response_model=AssignmentAnswer | AssignmentAnswers)
async def assign(desk: AtDesk, body: AssignmentBody) -> Document:
    """Assign one unit or many to variants, and record the exposures."""
    return await desk.assign(body)


@hot_router.post("/v1/exposures", response_model=Receipt)
async def expose(desk: AtDesk, body: ExposureBody) -> Document:
    """Record prefetched carousels that were shown."""
    return await desk.expose(body)


@hot_router.post("/v1/interactions", response_model=Receipt)
async def interact(desk: AtDesk, body: InteractionBatch) -> Document:
    """Record what shoppers did; good ones are taken, bad ones refused one by one."""
    return await desk.interact(body.interactions)


def answer(document: object, status: int = 200) -> Response:
    """Encode an answer as it is; the tests hold it against its declared model."""
    content = to_json(document, inf_nan_mode="null")
    return Response(content, status, media_type="application/json")


@read_router.get("/v1/experiments", response_model=ExperimentsDocument)
def list_experiments(services: Serving) -> Response:
    """List experiments by key."""
    with transaction(services.engine) as connection:
        experiments = storage.list_experiments(connection)
    return answer({"experiments": [experiment_document(each) for each in experiments]})


@change_router.post(
    "/v1/experiments", response_model=ExperimentDocument, status_code=201
)
def create_experiment(
    services: Serving, body: DeclarationDocument, actor: Actor
) -> Response:
    """Create an experiment as a draft."""
    document = body.model_dump(exclude_unset=True, exclude_none=True)
    if "overrides" in document:
        document["overrides"] = services.pseudonyms.of_keys(document["overrides"])
    declaration = parse_declaration(document)
    with transaction(services.engine) as connection:
        experiment = experimentation.create(
            connection, declaration, actor=actor, now=clock()
        )
    return answer(experiment_document(experiment), 201)


@read_router.get("/v1/experiments/{key}", response_model=ExperimentDetails)
def get_experiment(services: Serving, key: Key) -> Response:
    """Show an experiment and the epoch in force."""
    with transaction(services.engine) as connection:
        experiment = storage.get_experiment(connection, key)
        epochs = storage.list_epochs(connection, experiment.id, last=1)
    current = epoch_document(epochs[0]) if epochs else None
    return answer({**experiment_document(experiment), "current_epoch": current})


@change_router.post("/v1/experiments/{key}/start", response_model=ExperimentDocument)
def start_experiment(services: Serving, key: Key, actor: Actor) -> Response:
    """Let a draft run."""
    with transaction(services.engine) as connection:
        experiment = experimentation.start(connection, key, actor=actor, now=clock())
    return answer(experiment_document(experiment))


@change_router.post("/v1/experiments/{key}/stop", response_model=ExperimentDocument)
def stop_experiment(
    services: Serving,
    key: Key,
    actor: Actor,
    body: StopRequest | None = None,
) -> Response:
    """End a running experiment."""
    reason = body.reason if body else ""
    with transaction(services.engine) as connection:
        experiment = experimentation.stop(
            connection, key, actor=actor, now=clock(), reason=reason
        )
    return answer(experiment_document(experiment))


@change_router.put("/v1/experiments/{key}/decision", response_model=DecisionDocument)
def decide(
    services: Serving, key: Key, body: DecisionRequest, actor: Actor
) -> Response:
    """Store what was decided after a stopped experiment; nothing that serves changes."""
    outcome = parse_outcome("outcome", body.outcome)
    with transaction(services.engine) as connection:
        experimentation.decide(
            connection,
            key,
            outcome,
            variant=body.variant,
            reason=body.reason,
            actor=actor,
        )
    return answer(
        {"outcome": outcome.value, "variant": body.variant, "reason": body.reason}
    )


@change_router.put("/v1/experiments/{key}/weights", response_model=EpochDocument)
def set_weights(
    services: Serving, key: Key, body: WeightsRequest, actor: Actor
) -> Response:
    """Open a new epoch of a running A/B test with other weights."""
    with transaction(services.engine) as connection:
        epoch = experimentation.set_weights(
            connection, key, body.weights, actor=actor, now=clock(), reason=body.reason
        )
    return answer(epoch_document(epoch))


@change_router.put("/v1/experiments/{key}/overrides", response_model=ExperimentDocument)
def set_overrides(
    services: Serving, key: Key, body: OverridesRequest, actor: Actor
) -> Response:
    """Replace the test units and the variant that each gets."""
    with transaction(services.engine) as connection:
        experiment = experimentation.set_overrides(
            connection,
            key,
            services.pseudonyms.of_keys(body.overrides),
            actor=actor,
        )
    return answer(experiment_document(experiment))


_ATTRIBUTES: TypeAdapter[dict[str, Any]] = TypeAdapter(Attributes)


@read_router.get("/v1/experiments/{key}/explain", response_model=ExplanationDocument)
def explain(
    services: Serving,
    key: Key,
    unit_id: Annotated[Identifier, Query()],
    attributes: Annotated[str, Query(description="A JSON object.")] = "{}",
) -> Response:
    """Say which variant a unit gets now, and which step decided it."""
    try:
        checked = _ATTRIBUTES.validate_json(attributes, strict=True)
    except ValidationError as error:
        raise InvalidRequest(
            f"attributes is {attributes[:60]!r}; it must be a JSON object of texts, "
            "finite numbers and truth values",
            field="attributes",
        ) from error
    with transaction(services.engine) as connection:
        found = experimentation.explain(
            connection, key, services.pseudonyms.of(unit_id), checked
        )
    return answer(_explanation(found, unit_id))


def _explanation(assignment: Assignment, unit_id: str) -> Document:
    return {
        **asdict(assignment),
        "unit_id": unit_id,
        "counted": assignment.counted,
    }


@read_router.get("/v1/experiments/{key}/epochs", response_model=EpochsDocument)
def list_epochs(services: Serving, key: Key) -> Response:
    """List the epochs of an experiment by number."""
    with transaction(services.engine) as connection:
        experiment = storage.get_experiment(connection, key)
        epochs = storage.list_epochs(connection, experiment.id)
    return answer({"epochs": [epoch_document(epoch) for epoch in epochs]})


_FIRST_INSTANT = datetime(2000, 1, 1, tzinfo=UTC)
_LAST_INSTANT = datetime(2200, 1, 1, tzinfo=UTC)


AsOf = Annotated[
    AwareDatetime | None,
    Query(
        ge=_FIRST_INSTANT,
        le=_LAST_INSTANT,
        description="Last instant used; now when left out.",
    ),
]


@read_router.get("/v1/experiments/{key}/report", response_model=dict[str, Any])
def report(services: Serving, key: Key, as_of: AsOf = None) -> Response:
    """Report every number of an experiment, and how far to trust it."""
    with transaction(services.engine) as connection:
        built = reporting.build_report(connection, key, as_of=as_of or clock())
    return answer(built.to_document())


@read_router.get("/v1/experiments/{key}/segments", response_model=dict[str, Any])
def segments(services: Serving, key: Key, as_of: AsOf = None) -> Response:
    """Report the reward by every attribute that exposures carry."""
    with transaction(services.engine) as connection:
        built = reporting.build_segments(connection, key, as_of=as_of or clock())
    return answer(built.to_document())


@read_router.get("/v1/placements", response_model=PlacementsDocument)
def list_placements(services: Serving) -> Response:
    """List placements by key."""
    with transaction(services.engine) as connection:
        placements = storage.list_placements(connection)
    return answer({"placements": [asdict(each) for each in placements.values()]})


@change_router.put("/v1/placements/{key}", response_model=PlacementDocument)
def set_placement(
    services: Serving,
    key: Annotated[Identifier, Path(description="Key of the placement.")],
    body: PlacementRequest,
    actor: Actor,
) -> Response:
    """Say what a placement shows outside experiments."""
    with transaction(services.engine) as connection:
        placement: Placement = experimentation.set_placement(
            connection,
            key,
            recommender=body.recommender,
            settings=body.settings,
            actor=actor,
        )
    return answer(asdict(placement))


@health_router.get("/health/live", response_model=Health)
async def live() -> Response:
    """Say that the process runs."""
    return answer({"status": "ready", "reasons": []})


@health_router.get(
    "/health/ready",
    response_model=Health,
    responses={503: {"model": Health, "description": "Requests can't be answered."}},
)
async def ready(services: Serving, desk: AtDesk) -> Response:
    """Say whether requests can be answered; degraded still can."""
    keeper = services.keeper
    if desk.problem:
        return answer({"status": "unavailable", "reasons": [desk.problem]}, 503)
    reasons = [*keeper.snapshot.problems.values(), *filter(None, [keeper.problem])]
    return answer({"status": "degraded" if reasons else "ready", "reasons": reasons})


@health_router.get("/v1/status", response_model=StatusDocument)
def status(request: Request, services: Serving) -> Response:
    """Show what this process serves, what waits to be stored, and how fast it is."""
    keeper = services.keeper
    snapshot = keeper.snapshot
    problems = [*snapshot.problems.values(), *filter(None, [keeper.problem])]
    return answer(
        {
            "process": os.getpid(),
            "snapshot": {
                "loaded_at": snapshot.configuration.loaded_at,
                "age_seconds": keeper.age().total_seconds(),
                "models": {
                    name: f"{lists.name}/{lists.version}"
                    for name, lists in snapshot.lists.items()
                },
                "trained_on": {
                    name: {"data_to": live.data_to, "data_digest": live.data_digest}
                    for name, live in snapshot.configuration.models.items()
                },
                "shadows": {
                    shadow.label: shadow.problem
                    for each in snapshot.shadows.values()
                    for shadow in each
                },
                "problems": problems,
            },
            "journal": {
                "events": services.journal.depth,
                "bytes": services.journal.pending_bytes,
            },
            "writer": asdict(services.writer.status()),
            "bucket_bounds_ms": BUCKETS_MS,
            "latency": {
                route: histogram.document()
                for route, histogram in list(request.app.latency.items())
            },
        }
    )
