"""A pipeline: from data to a serving version, as somebody declared it in a file.

The one definition of the file: it is read, checked and described to editors by it.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from croniter import croniter
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
    with_config,
)

from experiment_service.domain.event import EVENT_KINDS, MAX_POSITION
from experiment_service.domain.experiment import check_key
from experiment_service.domain.shadow import ShadowRule
from experiment_service.errors import InvalidRequest
from recommenders import RECOMMENDERS, build_recommender, describe
from recommenders.data_checks import Thresholds
from recommenders.evaluation import Repeats
from recommenders.feedback import GREATEST_POWER, LEAST_POWER
from recommenders.gates import Gate
from recommenders.rerank import STEPS, build_steps
from recommenders.search import MEASURES, Bounds, Goal
from recommenders.space import Space, read_space

#: Stands in the path of a file for the market.
MARKET = "{market}"

_MOST_SHOWN = 80
_MOST_WEIGHT = 1e6
# Kinds of interaction that say a unit wants an item.
_LIKES = tuple(kind for kind in EVENT_KINDS if kind not in {"viewed", "dismiss"})
_FORBID = ConfigDict(extra="forbid")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _instant(value: object) -> object:
    """Read a day or an instant; UTC when it has no time zone."""
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    try:
        read = datetime.fromisoformat(str(value))
    except ValueError:
        raise ValueError("it must be a day or an ISO 8601 instant") from None
    return read if read.tzinfo else read.replace(tzinfo=UTC)


_Instant = Annotated[
    datetime, BeforeValidator(_instant), WithJsonSchema({"type": "string"})
]


class OwnEvents(_Part):
    """What the service itself logged."""

    kinds: dict[str, float] = Field(
        description="Weight of an interaction by its kind: {click: 0.2, purchase: 1}. "
        "Leave a kind out that data.interactions has too.",
        json_schema_extra={"propertyNames": {"enum": list(_LIKES)}},
    )
    position_bias: Literal["estimated"] | float = Field(
        "estimated",
        description="Chance of a look at position p of a list is p to the power of "
        "less this number, 0 to 3; 0: all are looked at.",
    )
    only_viewed: bool = Field(
        default=False,
        description="A list counts as shown only if viewed was sent for it.",
    )
    most_a_day: int = Field(
        500,
        ge=1,
        description="A unit with more exposures or interactions on a day is left out: "
        "no shopper.",
    )
    market_attribute: str | None = Field(
        None, description="Attribute of requests that has the market of a unit."
    )
    stored_until: _Instant | None = Field(
        None,
        description="Read what was stored by then, as a version before did; what is "
        "stored now when left out.",
    )

    @field_validator("kinds")
    @classmethod
    def _are_likes(cls, value: dict[str, float]) -> dict[str, float]:
        for kind, weight in value.items():
            if kind not in _LIKES:
                raise ValueError(f"it must name some of {', '.join(_LIKES)}")
            if not 0 < weight <= _MOST_WEIGHT:
                raise ValueError(
                    f"it must have weights above 0 and at most {_MOST_WEIGHT:g}"
                )
        if not value:
            raise ValueError(f"it must name one at least of {', '.join(_LIKES)}")
        return value

    @field_validator("position_bias")
    @classmethod
    def _is_a_power(cls, value: str | float) -> str | float:
        if not isinstance(value, str) and not LEAST_POWER <= value <= GREATEST_POWER:
            raise ValueError(
                f"it must be estimated, or {LEAST_POWER:g} to {GREATEST_POWER:g}"
            )
        return value


class Data(_Part):
    """What to train on: a file, own events, or both together."""

    interactions: str | None = Field(
        None,
        description="CSV or Parquet, seen from the pipeline's folder; {market} stands "
        "for the market. Without {market}, the column market chooses the rows.",
    )
    complete_journey: bool = Field(
        default=False, description="The demo's retail data, instead of a file."
    )
    own: OwnEvents | None = Field(
        None, description="What the service logged itself, alone or beside the others."
    )
    catalogue: str | None = Field(
        None, description="CSV or Parquet; interactions with other items are left out."
    )
    until: _Instant | None = Field(
        None, description="Train on what lies before this day or instant."
    )
    days: float | None = Field(
        None, gt=0, description="Train on the last so many days only."
    )

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        if self.interactions is not None and self.complete_journey:
            raise ValueError(
                "data has interactions and complete_journey: true; leave one out"
            )
        if not (self.interactions or self.complete_journey or self.own):
            raise ValueError(
                "data needs interactions, a file, or complete_journey: true, or own"
            )
        if self.complete_journey and self.catalogue is not None:
            raise ValueError(
                "data.catalogue is given, and complete_journey has one of its own; "
                "leave it out"
            )
        return self


class Search(_Part):
    """A search for better parameters, before the training."""

    space: dict[str, Any] | None = Field(
        None,
        description="By parameter a list of values, or low, high and log; the "
        "recommender's own when left out.",
    )
    measure: str = Field(
        "ndcg", json_schema_extra={"enum": list(MEASURES)}, description="To maximise."
    )
    repeats: Repeats = Field(
        "new only", description="Whether what a unit had before counts."
    )
    k: int = Field(10, ge=1, le=MAX_POSITION, description="Length of lists judged.")
    trials: int = Field(30, ge=1, description="In all, at most.")
    minutes: float = Field(10.0, gt=0, description="At most, but for the last trial.")

    @property
    def goal(self) -> Goal:
        """What to maximise."""
        return Goal(measure=self.measure, repeats=self.repeats, k=self.k)

    @property
    def bounds(self) -> Bounds:
        """When to end."""
        return Bounds(trials=self.trials, seconds=self.minutes * 60)

    @property
    def spaces(self) -> dict[str, Space] | None:
        """Where to look."""
        if self.space is None:
            return None
        return {name: read_space(name, value) for name, value in self.space.items()}

    @model_validator(mode="after")
    def _is_searchable(self) -> "Search":
        _ = self.goal, self.bounds, self.spaces
        return self


@with_config(_FORBID)
@dataclass(frozen=True, slots=True, kw_only=True)
class DataThresholds(Thresholds):
    """What data must be like to be trained on; null leaves a check out."""


@with_config(_FORBID)
@dataclass(frozen=True, slots=True, kw_only=True)
class GateRule(Gate):
    """A figure to reach, or not to be worse in than the version that serves."""


@with_config(_FORBID)
@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRule(ShadowRule):
    """What decides on the shadow once it has given so many answers."""


class Shadow(_Part):
    """How a version is a shadow before it serves."""

    share: float = Field(gt=0, le=1, description="Of units whose requests it gets.")
    rule: DecisionRule | None = Field(
        None, description="What decides on it; people do when left out."
    )


class Pipeline(_Part):
    """A recommender from data to a version that serves."""

    name: str = Field(description="Of the model; -market is added for each market.")
    markets: list[str] = Field(
        default_factory=list, description="One model each; none: one for all."
    )
    data: Data
    recommender: str = Field(json_schema_extra={"enum": list(RECOMMENDERS)})
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="Those left out have defaults."
    )
    search: Search | None = None
    reranking: list[dict[str, Any]] = Field(
        default_factory=list, description="Filters, rules and variety, in order."
    )
    depth: int = Field(50, ge=1, le=MAX_POSITION, description="Items per list.")
    exclude_seen: bool = Field(
        default=False, description="Leave out of a list what its unit had."
    )
    with_related: bool = Field(
        default=True,
        description="Make a list beside each item too, for product pages and sessions.",
    )
    test_days: float | None = Field(
        None,
        gt=0,
        description="Judge on the last so many days; on the last fifth of the "
        "interactions when left out.",
    )
    seed: int = Field(0, ge=0)
    checks: DataThresholds = Field(default_factory=DataThresholds)
    gates: list[GateRule] = Field(default_factory=list)
    shadow: Shadow | None = Field(
        None, description="Begin as shadow, computed beside what serves and not shown."
    )
    schedule: str | None = Field(
        None, description="Cron (UTC) by which the worker releases it: 0 4 * * 1"
    )

    @field_validator("recommender")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in RECOMMENDERS:
            raise ValueError(f"it must be one of {', '.join(RECOMMENDERS)}")
        return value

    @field_validator("schedule")
    @classmethod
    def _is_cron(cls, value: str | None) -> str | None:
        if value is not None and (
            len(value.split()) != 5 or not croniter.is_valid(value)
        ):
            raise ValueError("it must be five fields of cron, such as 0 4 * * 1")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "Pipeline":
        for market in self.markets:
            if self.markets.count(market) > 1:
                raise ValueError(f"markets has {market!r} twice; give each once")
        for each in self.markets_of(None):
            check_key("name", self.model_name(each))
        if MARKET in (self.data.interactions or "") and not self.markets:
            raise ValueError("data.interactions has {market}; name the markets")
        own = self.data.own
        if own and (own.market_attribute is None) == bool(self.markets):
            raise ValueError(
                "data.own needs market_attribute where the pipeline has markets, and "
                "only there"
            )
        _check_recommender(self)
        # As it will be stored; a date stays one here, but is text in JSON.
        build_steps(json.loads(json.dumps(self.reranking, default=str)))
        return self

    def model_name(self, market: str | None) -> str:
        """Return the name of the model of a market, or of the one for all."""
        return self.name if market is None else f"{self.name}-{market.lower()}"

    def markets_of(self, asked: str | None) -> list[str | None]:
        """Return the markets to release: the one asked for, or all.

        Raises
        ------
        InvalidRequest
            When it has no such market.
        """
        if asked is None:
            markets: list[str | None] = [*self.markets]
            return markets or [None]
        if asked not in self.markets:
            listed = ", ".join(self.markets) or "none"
            raise InvalidRequest(
                f"market is {asked!r}; pipeline {self.name!r} has: {listed}",
                field="market",
            )
        return [asked]


def _check_recommender(pipeline: Pipeline) -> None:
    try:
        built = build_recommender(pipeline.recommender, pipeline.parameters)
    except (ValueError, TypeError) as error:
        raise ValueError(f"parameters: {error}") from error
    if pipeline.exclude_seen and not built.capabilities.new_items:
        raise ValueError(
            f"exclude_seen is true, and {pipeline.recommender} recommends only what a "
            "unit had; leave it out"
        )
    if pipeline.search is None:
        return
    own = describe(built)
    given = pipeline.search.spaces
    space = RECOMMENDERS[pipeline.recommender].space if given is None else given
    if not space:
        raise ValueError(f"search: {pipeline.recommender} has nothing to search")
    for name in space:
        if name not in own:
            raise ValueError(
                f"search.space has {name!r}, which is no parameter of "
                f"{pipeline.recommender}; it has: {', '.join(own) or 'none'}"
            )


def read_pipeline(path: Path) -> Pipeline:
    """Read a pipeline from YAML or JSON.

    Raises
    ------
    InvalidRequest
        When it can't be read or breaks rules; it names the file, and each place with
        value and rule.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidRequest(f"pipeline {path} can't be read: {error}") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"pipeline {path} must hold a mapping, with name and data")
    try:
        return Pipeline.model_validate(document)
    except ValidationError as error:
        problems = "; ".join(map(_sentence, error.errors()))
        raise InvalidRequest(f"pipeline {path}: {problems}") from error
    except InvalidRequest as error:
        raise InvalidRequest(f"pipeline {path}: {error.message}") from error


def find_pipelines(folder: Path) -> dict[Path, Pipeline]:
    """Read every ``.yaml`` and ``.yml`` file of a folder, by path in order.

    Raises
    ------
    InvalidRequest
        When the folder is missing, a file is wrong, or two would release one model.
    """
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is no folder; it must hold pipelines")
    found = {
        path: read_pipeline(path)
        for path in sorted(folder.iterdir())
        if path.suffix in {".yaml", ".yml"}
    }
    owners: dict[str, Path] = {}
    for path, pipeline in found.items():
        for market in pipeline.markets_of(None):
            name = pipeline.model_name(market)
            if name in owners:
                raise InvalidRequest(
                    f"{path} and {owners[name]} both release model {name!r}; rename one"
                )
            owners[name] = path
    return found


def pipeline_schema() -> dict[str, Any]:
    """Return the JSON Schema of a pipeline, for editors."""
    schema = Pipeline.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Pipeline of Experiment Service"
    properties = schema["properties"]
    properties["reranking"]["items"] = {
        "type": "object",
        "required": ["step"],
        "properties": {"step": {"enum": list(STEPS)}},
    }
    schema["allOf"] = [
        {
            "if": {"properties": {"recommender": {"const": name}}},
            "then": {"properties": {"parameters": _parameters_schema(name)}},
        }
        for name in RECOMMENDERS
    ]
    return schema


def _parameters_schema(recommender: str) -> dict[str, Any]:
    defaults = describe(build_recommender(recommender, {}))
    return {
        "additionalProperties": False,
        "properties": {name: {"default": value} for name, value in defaults.items()},
    }


_SUBJECT = re.compile(r"^(Input|Value|Object|String|List) should ")


def _sentence(problem: Any) -> str:  # noqa: ANN401 - a pydantic error
    path = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "missing":
            return f"{path} is missing; it is required"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{path} is not known here; leave it out"
    rule = str(problem["msg"]).removeprefix("Value error, ")
    if not path:
        return rule
    shown = repr(problem["input"])[:_MOST_SHOWN]
    if problem["type"] == "value_error" and not rule.startswith("it must"):
        return f"{path}: {rule}"
    return f"{path} is {shown}; {_SUBJECT.sub('it must ', rule)}"
