"""Requests and answers of the hot routes; types and sizes, no rules of the domain."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    StringConstraints,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from experiment_service.domain.event import (
    MAX_ID_LENGTH,
    AttributeValue,
    check_attributes,
)
from experiment_service.errors import InvalidRequest

MAX_K = 200
MAX_EXCLUDED = 200
MAX_RECENT = 20
MAX_BATCH = 1000

EXAMPLE_ID = "0199c2f0-7c1e-7a54-9d8e-3f1b6a2c4d5e"
INTERACTION_EXAMPLE: dict[str, JsonValue] = {
    "id": "order-17-line-2",
    "exposure_id": EXAMPLE_ID,
    "kind": "click",
    "item_id": "1082185",
    "position": 1,
}
EXPOSURE_EXAMPLE: dict[str, JsonValue] = {
    "exposure_id": EXAMPLE_ID,
    "experiment": "home-carousel",
    "unit_id": "shopper-1",
    "variant": "als",
    "epoch": 0,
    "model": "als/3",
    "items": [{"item_id": "1082185", "source": "als"}],
    "attributes": {"country": "at"},
}

_MAX_DEPTH = 8
_MAX_WHOLE = 2**63
#: No control characters.
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]*$"


def _refuse(sentence: str) -> PydanticCustomError:
    return PydanticCustomError("sentence", "{text}", {"text": sentence})


def storable(value: object, depth: int = 0) -> Any:  # noqa: ANN401 - any JSON value
    """Refuse what PostgreSQL's JSON, or arithmetic in floats, has no room for."""
    if depth > _MAX_DEPTH:
        raise _refuse(f"the value is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, str) and "\x00" in value:
        raise _refuse("a text holds a NUL character; none is allowed")
    if isinstance(value, int) and abs(value) >= _MAX_WHOLE:
        raise _refuse("a whole number is beyond 64 bits; write it as a text")
    if isinstance(value, Mapping):
        for key, item in value.items():
            storable(key, depth + 1)
            storable(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            storable(item, depth + 1)
    return value


def _scalars(name: str) -> AfterValidator:
    def check(value: dict[str, Any]) -> dict[str, AttributeValue]:
        if not value:
            return value
        storable(value)
        try:
            return check_attributes(name, value)
        except InvalidRequest as error:
            raise _refuse(error.message) from error

    return AfterValidator(check)


Identifier = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_ID_LENGTH, pattern=PRINTABLE),
]
_SCALARS = Field(
    description="At most 50; each a text, a finite number or a truth value.",
    json_schema_extra={
        "additionalProperties": {"type": ["string", "number", "boolean"]}
    },
)
Attributes = Annotated[dict[str, Any], _scalars("attributes"), _SCALARS]
VariantSettings = Annotated[dict[str, Any], _scalars("settings"), _SCALARS]


class Request(BaseModel):
    """A body: unknown fields and values of another type are refused."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True
    )


class Answer(BaseModel):
    """A document that the service sends."""

    model_config = ConfigDict(extra="forbid")


class RecommendationRequest(Request):
    """A carousel for a unit."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "unit_id": "shopper-1",
                    "placement": "home",
                    "k": 2,
                    "recent_item_ids": ["1029743", "1082185"],
                    "exclude_item_ids": ["951590"],
                    "attributes": {"country": "at"},
                }
            ]
        }
    )

    unit_id: Identifier = Field(description="The shopper.")
    placement: Identifier
    k: int = Field(default=10, ge=1, le=MAX_K, description="How many items.")
    item_id: Identifier | None = Field(
        default=None, description="The item that the shopper looks at."
    )
    recent_item_ids: list[Identifier] = Field(
        default_factory=list,
        max_length=MAX_RECENT,
        description="The last items that the shopper looked at or has in the cart, the "
        "latest last. Used at once, and not shown again, where the version that serves "
        "was published for sessions; ignored elsewhere.",
    )
    exclude_item_ids: list[Identifier] = Field(
        default_factory=list, max_length=MAX_EXCLUDED
    )
    attributes: Attributes = Field(default_factory=dict)
    log_exposure: bool = Field(
        default=True,
        description="False for a prefetch: post the answer's `exposure` when shown.",
    )


class SourcedItem(Request):
    """An item and where it came from, such as `als`, `als:related`, `als:session`."""

    item_id: Identifier
    source: Identifier


class PostedExposure(Request):
    """An exposure to post once the carousel is shown."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXPOSURE_EXAMPLE]})

    exposure_id: UUID
    experiment: Identifier
    unit_id: Identifier
    variant: Identifier
    epoch: int = Field(ge=0, lt=2**31)
    model: Identifier
    items: list[SourcedItem] = Field(default_factory=list, max_length=MAX_K)
    attributes: Attributes = Field(default_factory=dict)
    exposed_at: datetime | None = Field(
        default=None, description="When it was shown; now when left out."
    )


class ExposureBatch(Request):
    """Exposures of several carousels."""

    exposures: list[PostedExposure] = Field(min_length=1, max_length=MAX_BATCH)


class AssignmentRequest(Request):
    """The variant of a unit, for clients that have their own items."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "unit_id": "shopper-1",
                    "experiment": "home-carousel",
                    "attributes": {"country": "at"},
                    "log_exposure": False,
                }
            ]
        }
    )

    unit_id: Identifier
    experiment: Identifier | None = Field(
        default=None, description="Key of an experiment; or give a placement."
    )
    placement: Identifier | None = None
    attributes: Attributes = Field(default_factory=dict)
    log_exposure: bool = True

    @model_validator(mode="after")
    def _one_subject(self) -> "AssignmentRequest":
        if (self.experiment is None) == (self.placement is None):
            raise _refuse("give either experiment or placement")
        return self


class AssignmentBatch(Request):
    """Assignments of several units."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"requests": [{"unit_id": "shopper-1", "placement": "home"}]}]
        }
    )

    requests: list[AssignmentRequest] = Field(min_length=1, max_length=MAX_BATCH)


def _one_or_many(field: str) -> Discriminator:
    def tag(value: object) -> str:
        return "many" if isinstance(value, Mapping) and field in value else "one"

    return Discriminator(tag)


AssignmentBody = Annotated[
    Annotated[AssignmentRequest, Tag("one")] | Annotated[AssignmentBatch, Tag("many")],
    _one_or_many("requests"),
]
ExposureBody = Annotated[
    Annotated[PostedExposure, Tag("one")] | Annotated[ExposureBatch, Tag("many")],
    _one_or_many("exposures"),
]


class RecommendationAnswer(Answer):
    """Items in order, the assignment behind them and the id of the exposure."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "unit_id": "shopper-1",
                    "placement": "home",
                    "experiment": "home-carousel",
                    "variant": "als",
                    "epoch": 0,
                    "propensity": 0.5,
                    "model": "als/3",
                    "settings": {"title": "For you"},
                    "items": [
                        {"item_id": "1082185", "source": "als"},
                        {"item_id": "6534178", "source": "popularity:default"},
                    ],
                    "fallback": True,
                    "exposure_id": EXAMPLE_ID,
                    "exposure": EXPOSURE_EXAMPLE,
                }
            ]
        }
    )

    unit_id: str
    placement: str
    experiment: str | None = Field(description="Null outside every experiment.")
    variant: str | None
    epoch: int | None
    propensity: float | None = Field(
        description="Probability of the variant; null outside and for an override."
    )
    model: str = Field(description="Name and version, such as `als/3`.")
    settings: dict[str, AttributeValue]
    items: list[SourcedItem]
    fallback: bool = Field(
        description="Whether an item came from elsewhere than the model's own lists."
    )
    exposure_id: str | None = Field(
        description="Name it in interactions; null when nothing is recorded."
    )
    exposure: PostedExposure | None = Field(
        description="With `log_exposure` false: what to post once it is shown."
    )


class AssignmentAnswer(Answer):
    """A unit's variant and what decided it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "unit_id": "shopper-1",
                    "placement": "home",
                    "experiment": "home-carousel",
                    "variant": "als",
                    "epoch": 0,
                    "propensity": 0.5,
                    "reason": "drawn with weight 0.5 in epoch 0",
                    "recommender": "als",
                    "settings": {},
                    "exposure_id": EXAMPLE_ID,
                    "exposure": EXPOSURE_EXAMPLE,
                }
            ]
        }
    )

    unit_id: str
    placement: str | None
    experiment: str | None
    variant: str | None
    epoch: int | None
    propensity: float | None
    reason: str
    recommender: str | None
    settings: dict[str, AttributeValue]
    exposure_id: str | None
    exposure: PostedExposure | None


class AssignmentAnswers(Answer):
    """One answer per request, in their order."""

    assignments: list[AssignmentAnswer]


class InteractionDocument(Request):
    """What a shopper did; a retry with the same `id` counts once."""

    model_config = ConfigDict(json_schema_extra={"examples": [INTERACTION_EXAMPLE]})

    id: Identifier = Field(description="Yours; makes a retry safe.")
    exposure_id: UUID | None = None
    unit_id: Identifier | None = Field(
        default=None, description="Needed when no exposure is named."
    )
    kind: str
    item_id: Identifier | None = None
    category: Identifier | None = Field(
        default=None, description="Of the item; metrics may ask for it."
    )
    placement: Identifier | None = Field(
        default=None,
        description="Where it happened; where its exposure was shown when left out.",
    )
    position: int | None = Field(default=None, ge=1, description="From 1.")
    value: float | None = Field(default=None, description="Such as a price.")
    occurred_at: datetime | None = Field(
        default=None, description="With a time zone; now when left out."
    )


class InteractionBatch(Request):
    """Interactions; good ones are taken, bad ones are refused one by one."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"interactions": [INTERACTION_EXAMPLE]}]}
    )

    # Each is checked on its own in `ingestion`, so that one bad one spoils no other.
    interactions: list[
        Annotated[Any, WithJsonSchema(InteractionDocument.model_json_schema())]
    ] = Field(min_length=1, max_length=MAX_BATCH)


class RefusedEvent(Answer):
    """Why an event was not taken."""

    index: int
    id: str | None
    field: str | None
    reason: str


class Receipt(Answer):
    """How many events are safely stored, and which were refused."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"accepted": 1, "refused": []}]}
    )

    accepted: int
    refused: list[RefusedEvent]


class ErrorPart(Answer):
    """What went wrong, in a sentence that says what to do."""

    code: str
    message: str
    field: str | None = None
    details: Any = None


class ErrorAnswer(Answer):
    """The one shape of every error."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "code": "invalid_request",
                        "message": "k is 500; it must be less than or equal to 200",
                        "field": "k",
                    }
                }
            ]
        }
    )

    error: ErrorPart
