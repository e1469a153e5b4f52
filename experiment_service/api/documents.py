"""Requests and answers of management: experiments, placements, models, status.

A declaration is checked for types here and for its rules in `domain`; a test keeps the
two lists of fields equal.
"""

from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from experiment_service.api.schemas import (
    Answer,
    Identifier,
    Request,
    VariantSettings,
    storable,
)
from experiment_service.domain.event import AttributeValue
from experiment_service.domain.experiment import (
    MAX_METRICS,
    MAX_VARIANTS,
    SEGMENTS,
    AssignmentMode,
    ExperimentKind,
    ExperimentState,
    Outcome,
    TargetingOperator,
)
from experiment_service.domain.key import MAX_ORIGINS, MAX_PER_SECOND, Scope

#: Entries of a list that every process keeps in memory.
MAX_LISTED = 1000

FreeText = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00]*$")]
Parameters = Annotated[dict[str, Any], AfterValidator(storable)]
Whole = Annotated[int, AfterValidator(storable)]
Number = Annotated[float | int, AfterValidator(storable)]
Overrides = Annotated[dict[Identifier, Identifier], Field(max_length=MAX_LISTED)]
Duration = Annotated[
    Any,
    AfterValidator(storable),
    Field(
        description="Seconds, or a text such as `30s`, `15m`, `12h`, `7d`.",
        json_schema_extra={"type": ["number", "string"]},
    ),
]


def _choice(names: Any) -> dict[str, Any]:  # noqa: ANN401 - an enumeration
    return {"enum": [name.value for name in names]}


class VariantDocument(Request):
    """One treatment."""

    key: Identifier
    recommender: Identifier
    settings: VariantSettings = Field(default_factory=dict)
    control: bool = False
    weight: float | None = None


class TargetingDocument(Request):
    """One condition on an attribute."""

    attribute: Identifier
    operator: str = Field(json_schema_extra=_choice(TargetingOperator))
    values: Annotated[list[Any], Field(max_length=MAX_LISTED), AfterValidator(storable)]


class PolicyDocument(Request):
    """How a bandit's weights are set."""

    name: Identifier
    parameters: Parameters = Field(default_factory=dict)
    floor: float = 0.05
    control_share: float = 0.0
    interval: Duration = "1h"
    minimum_units: Whole = 50
    segment_by: dict[Identifier, list[Any]] | None = Field(
        default=None, examples=[{"device": ["phone", "desktop"]}]
    )


class MetricDeclaration(Request):
    """A metric of the experiment's own, beside those that are built in."""

    name: Identifier
    title: FreeText
    kind: str = Field(json_schema_extra={"enum": ["proportion", "mean", "ratio"]})
    event_kinds: list[Identifier]
    of: str = Field(default="events", json_schema_extra={"enum": ["events", "value"]})
    positions: list[Whole] | None = Field(default=None, examples=[[1, 3]])
    categories: list[Identifier] | None = Field(default=None, examples=[["shoes"]])
    placements: list[Identifier] | Literal["own"] | None = Field(
        default=None, description="Where interactions count; own: the experiment's."
    )
    cap: float | None = None
    trigger: str = Field(
        default="served", json_schema_extra={"enum": ["served", "viewed"]}
    )
    direction: str = Field(
        default="higher", json_schema_extra={"enum": ["higher", "lower"]}
    )


class DeclarationDocument(Request):
    """An experiment to create; the README explains each field."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "key": "search-carousel",
                    "kind": "ab",
                    "placement": "search",
                    "variants": [
                        {"key": "old", "recommender": "popularity", "control": True},
                        {"key": "new", "recommender": "als"},
                    ],
                    "attribution_window": "1d",
                }
            ]
        }
    )

    key: Identifier
    kind: str = Field(json_schema_extra=_choice(ExperimentKind))
    placement: Identifier
    variants: list[VariantDocument] = Field(max_length=MAX_VARIANTS)
    description: FreeText = ""
    layer: Identifier = "default"
    segments: list[Whole] = Field(default=[0, SEGMENTS])
    traffic_share: float = 1.0
    targeting: list[TargetingDocument] = Field(default_factory=list, max_length=50)
    overrides: Overrides = Field(default_factory=dict)
    metrics: list[MetricDeclaration] = Field(
        default_factory=list, max_length=MAX_METRICS
    )
    cuped: bool = False
    reward_metric: Identifier = "visitor_interaction_rate"
    guardrails: dict[Identifier, float] = Field(
        default_factory=dict, examples=[{"dismiss_rate": 0.1}]
    )
    attribution_window: Duration = "1d"
    mode: str = Field(default="redraw", json_schema_extra=_choice(AssignmentMode))
    policy: PolicyDocument | None = None


class WeightsRequest(Request):
    """Weights of a new epoch of an A/B test."""

    weights: dict[Identifier, float]
    reason: FreeText = ""


class OverridesRequest(Request):
    """Test units by the variant that each gets; replaces the former ones."""

    overrides: Overrides


class StopRequest(Request):
    """Why an experiment ends."""

    reason: FreeText = ""


class DecisionRequest(Request):
    """What was decided after an experiment."""

    outcome: str = Field(json_schema_extra=_choice(Outcome))
    variant: Identifier | None = None
    reason: FreeText


class PlacementRequest(Request):
    """What a placement shows outside experiments."""

    recommender: Identifier
    settings: VariantSettings = Field(default_factory=dict)


class DecisionDocument(Answer):
    """A decision as it was stored."""

    outcome: str
    variant: str | None
    reason: str


class SegmentDocument(Answer):
    """What an epoch holds for one segment of units."""

    weights: dict[str, float]
    statistics: dict[str, dict[str, float]]


class EpochDocument(Answer):
    """Span in which one allocation holds; never changed."""

    number: int
    weights: dict[str, float]
    segments: dict[str, SegmentDocument] | None = Field(
        description="Weights of each segment, of a policy that has segments."
    )
    floor: float
    control_share: float
    statistics: dict[str, dict[str, float]] | None
    cutoff: datetime | None
    policy: dict[str, Any] | None
    seed: int
    reason: str
    started_at: datetime


class EpochsDocument(Answer):
    """The epochs of an experiment, by number."""

    epochs: list[EpochDocument]


class ExperimentDocument(Answer):
    """A stored experiment; the salts let anyone compute its assignments."""

    id: int
    declaration: DeclarationDocument
    state: ExperimentState
    layer_salt: str
    traffic_salt: str
    variant_salt: str
    created_at: datetime
    started_at: datetime | None
    stopped_at: datetime | None


class ExperimentDetails(ExperimentDocument):
    """An experiment with the epoch in force; null before its start."""

    current_epoch: EpochDocument | None


class ExperimentsDocument(Answer):
    """Every experiment, by key."""

    experiments: list[ExperimentDocument]


class ExplanationDocument(Answer):
    """Which variant a unit gets now, and the step that decided."""

    experiment: str
    unit_id: str
    variant: str | None
    propensity: float | None
    epoch: int | None
    segment: str | None
    step: str
    reason: str
    counted: bool = Field(description="Whether its exposures count in the analysis.")


class PlacementDocument(Answer):
    """What a placement shows outside experiments."""

    key: str
    recommender: str
    settings: dict[str, AttributeValue]


class PlacementsDocument(Answer):
    """Every placement, by key."""

    placements: list[PlacementDocument]


class ModelDocument(Answer):
    """A version of a model: what it was made of, how it was judged, what became of it."""

    id: int
    name: str
    version: int
    recommender: str
    parameters: dict[str, Any]
    metrics: dict[str, Any]
    checklist: list[dict[str, Any]]
    data_from: datetime
    data_to: datetime
    data_digest: str
    code_version: str
    artifact: str
    sha256: str
    status: str
    created_at: datetime
    decided_by: str | None
    decided_at: datetime | None
    reason: str | None
    shadow_share: float | None = Field(
        description="Share of units whose requests a shadow gets; null otherwise."
    )
    shadow_rule: dict[str, Any] | None = Field(
        description="What decides on the shadow; null when people do."
    )
    shadow_result: dict[str, Any] | None = Field(
        description="Sums over its answers when it was decided on."
    )
    parent: int | None = Field(
        description="Version that served when it was trained; its gates compared them."
    )
    data_profile: dict[str, Any] | None = Field(
        description="What is kept of its data, for the next training to be compared with."
    )


class ModelsDocument(Answer):
    """Every version, by name, the newest first."""

    models: list[ModelDocument]


class Health(Answer):
    """Whether requests can be answered, and what is wrong."""

    status: str = Field(
        json_schema_extra={"enum": ["ready", "degraded", "unavailable"]}
    )
    reasons: list[str]


class LatencyDocument(Answer):
    """Answers of one route by the milliseconds they took."""

    count: int
    mean_ms: float | None
    p50_ms: float | None
    p99_ms: float | None
    bucket_counts: list[int]


class DataDocument(Answer):
    """What a model that serves was trained on."""

    data_to: datetime | None = Field(description="Its last interaction.")
    data_digest: str = Field(description="SHA-256 of the training data.")


class SnapshotStatus(Answer):
    """What this process answers from."""

    loaded_at: datetime
    age_seconds: float
    models: dict[str, str]
    trained_on: dict[str, DataDocument]
    shadows: dict[str, str | None] = Field(
        description="Versions computed beside the live ones; why one can't be."
    )
    problems: list[str]


class JournalStatus(Answer):
    """Events of this process that wait for the database."""

    events: int
    bytes: int


class WriterDocument(Answer):
    """How moving events to the database goes, with journals of dead processes."""

    last_success_at: datetime | None
    last_error: str | None
    depth: int
    oldest_age_seconds: float | None
    set_aside: int = Field(description="Events that the database refused for good.")
    stored: int = Field(description="Events stored since the writer started.")
    batch_counts: list[int] = Field(description="Transactions by number of events.")


class StatusDocument(Answer):
    """The state of the one process that answered."""

    process: int
    snapshot: SnapshotStatus
    journal: JournalStatus
    writer: WriterDocument
    bucket_bounds_ms: list[float]
    latency: dict[str, LatencyDocument]


class KeyRequest(Request):
    """A key to make."""

    name: Identifier = Field(description="Who or what will use it.")
    scopes: list[str] = Field(
        min_length=1, max_length=3, json_schema_extra={"items": _choice(Scope)}
    )
    origins: list[str] = Field(
        default_factory=list,
        max_length=MAX_ORIGINS,
        description="Pages that may use it from a browser; it can then send events and "
        "ask for recommendations only.",
        examples=[["https://shop.example"]],
    )
    per_second: Number | None = Field(
        default=None,
        ge=0.01,
        le=MAX_PER_SECOND,
        description="Requests a second that each process answers; null for no limit.",
    )
    days: Number | None = Field(
        default=None, gt=0, le=3650, description="Until it expires; null for no end."
    )


class RevokeRequest(Request):
    """Why a key ends."""

    reason: FreeText = ""


class RotateRequest(Request):
    """How a key is replaced."""

    overlap_hours: Number = Field(
        default=24, ge=0, le=720, description="For which the former key stays good."
    )


class KeyDocument(Answer):
    """A key; its secret is kept nowhere."""

    id: str
    name: str
    scopes: list[Scope]
    origins: list[str]
    per_second: float | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_on: date | None = Field(description="Last day of use, UTC.")


class KeysDocument(Answer):
    """Every key, by age."""

    keys: list[KeyDocument]


class NewKeyDocument(Answer):
    """A key just made."""

    key: str = Field(description="Shown here and never again.")
    details: KeyDocument


class AuditEntryDocument(Answer):
    """One change: who did what to what."""

    id: int
    at: datetime
    actor: str = Field(description="Such as `key:0a1b2c3d4e5f` or `cli:root`.")
    action: str
    subject: str
    before: Any
    after: Any
    reason: str | None


class AuditDocument(Answer):
    """Changes, the newest first."""

    entries: list[AuditEntryDocument]
    next: int | None = Field(description="Give it as `before` for the next page.")


class ErasureRequest(Request):
    """A unit to erase."""

    unit_id: Identifier
    reason: FreeText = Field(
        default="", description="For the audit log, such as a number; not the unit."
    )


class ErasureDocument(Answer):
    """What was removed."""

    rows: dict[str, int] = Field(description="By table.")
    overrides: list[str] = Field(
        description="Experiments whose overrides name the unit still, as a tester."
    )
    archives: list[str] = Field(
        description="Files of retired months that may hold the unit still."
    )
