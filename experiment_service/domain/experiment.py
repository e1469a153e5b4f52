"""Experiments: variants, epochs and the rules that a declaration must obey.

Values here are checked when built and trusted later. The module knows neither storage
nor HTTP; `domain.declaration` reads and writes them as plain documents.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from experiment_service.domain.event import AttributeValue, check_id
from experiment_service.domain.metric import METRICS, Metric
from experiment_service.domain.segment import Segmentation
from experiment_service.errors import InvalidRequest, NotFound, known

SEGMENTS = 10_000
MAX_VARIANTS = 50
MAX_METRICS = 30
MAX_WINDOW = timedelta(days=90)
_KEY = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_WEIGHT_TOLERANCE = 1e-9


class ExperimentKind(StrEnum):
    """Who sets the weights: people (`ab`) or a policy (`bandit`)."""

    AB = "ab"
    BANDIT = "bandit"


class ExperimentState(StrEnum):
    """Life of an experiment: draft, then running, then stopped."""

    DRAFT = "draft"
    RUNNING = "running"
    STOPPED = "stopped"


class Outcome(StrEnum):
    """What was decided after an experiment: a variant ships, control stays, or neither."""

    SHIP = "ship"
    KEEP_CONTROL = "keep_control"
    INCONCLUSIVE = "inconclusive"


class AssignmentMode(StrEnum):
    """Whether a bandit redraws a unit in each epoch or keeps its first variant."""

    REDRAW = "redraw"
    STICKY = "sticky"


class TargetingOperator(StrEnum):
    """How a rule compares an attribute with its values."""

    IN = "in"
    NOT_IN = "not_in"
    AT_LEAST = "at_least"
    AT_MOST = "at_most"


def _refuse(name: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{name} {message}", field=name)


def check_key(name: str, value: str) -> str:
    """Return a stable key such as ``home_carousel``.

    Raises
    ------
    InvalidRequest
        When it is not 1 to 63 of a-z, 0-9, - and _, starting with a letter or digit.
    """
    if not _KEY.fullmatch(value):
        raise _refuse(
            name,
            f"is {value[:80]!r}; it must be 1 to 63 characters of a-z, 0-9, - and _, "
            "starting with a letter or digit",
        )
    return value


def check_share(name: str, value: float, *, low: float = 0.0) -> float:
    """Return a share that lies in [low, 1].

    Raises
    ------
    InvalidRequest
        When it is not a finite number in that range.
    """
    if not math.isfinite(value) or not low <= value <= 1:
        raise _refuse(name, f"is {value}; it must lie in {low:g} to 1")
    return value


def check_weights(weights: Mapping[str, float], variants: Sequence[str]) -> None:
    """Check that weights name each variant once, lie in [0, 1] and sum to 1.

    Raises
    ------
    InvalidRequest
        Names the variants that are missing or unknown, or the sum.
    """
    if set(weights) != set(variants):
        raise _refuse(
            "weights", f"name {known(weights)}; the variants are {known(variants)}"
        )
    for variant, weight in weights.items():
        check_share(f"weights.{variant}", weight)
    total = math.fsum(weights.values())
    if abs(total - 1) > _WEIGHT_TOLERANCE:
        raise _refuse("weights", f"sum to {total:.10g}; they must sum to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One treatment: a recommender and its settings.

    Attributes
    ----------
    key : str
        Unique in the experiment.
    recommender : str
        Name of a model in the registry.
    settings : mapping
        Passed through to the storefront, such as a carousel title.
    control : bool
        Whether it is the reference variant.
    weight : float or None
        Share of traffic at the start; None in all variants means equal shares.
    """

    key: str
    recommender: str
    settings: Mapping[str, AttributeValue] = field(default_factory=dict)
    control: bool = False
    weight: float | None = None

    def __post_init__(self) -> None:
        check_key("variant key", self.key)
        check_key("recommender", self.recommender)
        if self.weight is not None:
            check_share(f"weight of variant {self.key!r}", self.weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetingRule:
    """One condition on an attribute; a unit must meet all rules of an experiment."""

    attribute: str
    operator: TargetingOperator
    values: tuple[AttributeValue, ...]

    def __post_init__(self) -> None:
        check_id("targeting attribute", self.attribute)
        name = f"targeting on {self.attribute!r}"
        if not self.values or len(self.values) > 1000:
            raise _refuse(name, f"has {len(self.values)} values; give 1 to 1000")
        if len({_type_name(value) for value in self.values}) > 1:
            raise _refuse(name, f"mixes types in {list(self.values)}; use one type")
        by_size = self.operator in (
            TargetingOperator.AT_LEAST,
            TargetingOperator.AT_MOST,
        )
        if by_size and [_type_name(value) for value in self.values] != ["number"]:
            raise _refuse(
                name,
                f"compares by {self.operator} with {list(self.values)}; give one number",
            )

    def accepts(self, attributes: Mapping[str, AttributeValue]) -> bool:
        """Whether a unit meets the rule; a missing or ill-typed attribute does not."""
        value = attributes.get(self.attribute)
        if value is None or _type_name(value) != _type_name(self.values[0]):
            return False
        match self.operator:
            case TargetingOperator.IN:
                return value in self.values
            case TargetingOperator.NOT_IN:
                return value not in self.values
            case TargetingOperator.AT_LEAST:
                return float(value) >= float(self.values[0])
            case TargetingOperator.AT_MOST:
                return float(value) <= float(self.values[0])


def _type_name(value: object) -> str:
    if isinstance(value, bool):
        return "truth value"
    return "number" if isinstance(value, int | float) else "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpecification:
    """How a bandit's weights are set, and how often.

    Attributes
    ----------
    name : str
        Key of a registered policy.
    parameters : mapping
        Its parameters.
    floor : float
        Smallest weight of any variant the policy rules.
    control_share : float
        Fixed weight of the control outside the policy; 0 lets the policy rule it too.
    interval : timedelta
        Time between reallocations, 5 seconds to 30 days.
    minimum_units : int
        Units each variant needs before weights move.
    segment_by : Segmentation or None
        What makes the segments of a policy that has weights for each.
    """

    name: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    floor: float = 0.05
    control_share: float = 0.0
    interval: timedelta = timedelta(hours=1)
    minimum_units: int = 50
    segment_by: Segmentation | None = None

    def __post_init__(self) -> None:
        check_share("policy.floor", self.floor)
        check_share("policy.control_share", self.control_share)
        if not timedelta(seconds=5) <= self.interval <= timedelta(days=30):
            raise _refuse(
                "policy.interval",
                f"is {self.interval.total_seconds():g} s; it must lie in 5 s to 30 days",
            )
        if self.minimum_units < 0:
            raise _refuse(
                "policy.minimum_units",
                f"is {self.minimum_units}; it must be 0 or more",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What people write to create an experiment; see README for each field."""

    key: str
    kind: ExperimentKind
    placement: str
    variants: tuple[Variant, ...]
    description: str = ""
    layer: str = "default"
    segments: tuple[int, int] = (0, SEGMENTS)
    traffic_share: float = 1.0
    targeting: tuple[TargetingRule, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    reward_metric: str = "visitor_interaction_rate"
    guardrails: Mapping[str, float] = field(default_factory=dict)
    attribution_window: timedelta = timedelta(days=1)
    cuped: bool = False
    mode: AssignmentMode = AssignmentMode.REDRAW
    policy: PolicySpecification | None = None

    def __post_init__(self) -> None:
        check_key("key", self.key)
        check_key("placement", self.placement)
        check_key("layer", self.layer)
        check_share("traffic_share", self.traffic_share)
        if len(self.description) > 2000:
            raise _refuse("description", "is longer than 2000 characters")
        self._check_metrics()
        self._check_variants()
        self._check_segments()
        self._check_overrides()
        if not timedelta(seconds=1) <= self.attribution_window <= MAX_WINDOW:
            raise _refuse(
                "attribution_window",
                f"is {self.attribution_window.total_seconds():g} s; it must lie in 1 s "
                f"to {MAX_WINDOW.days} days",
            )
        self._check_policy()

    def _check_metrics(self) -> None:
        names = [metric.name for metric in self.metrics]
        if len(names) > MAX_METRICS:
            raise _refuse("metrics", f"are {len(names)}; give at most {MAX_METRICS}")
        for number, name in enumerate(names):
            check_key(f"metrics.{number}.name", name)
            if name in METRICS or names.count(name) > 1:
                raise _refuse(
                    f"metrics.{number}.name",
                    f"is {name!r}, which is taken; choose another name",
                )
        if self.reward_metric not in self.catalogue:
            raise _refuse(
                "reward_metric",
                f"is {self.reward_metric!r}; known metrics: {known(self.catalogue)}",
            )

        for name, margin in self.guardrails.items():
            if name not in self.catalogue or name == self.reward_metric:
                raise _refuse(
                    "guardrails",
                    f"name {name[:80]!r}; they can name any metric but the reward: "
                    f"{known(set(self.catalogue) - {self.reward_metric})}",
                )
            check_share(f"guardrails.{name}", margin, low=0.001)

    def _check_variants(self) -> None:
        keys = [variant.key for variant in self.variants]
        if not 2 <= len(keys) <= MAX_VARIANTS:
            raise _refuse("variants", f"are {len(keys)}; give 2 to {MAX_VARIANTS}")
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise _refuse("variants", f"name {known(twice)} more than once")
        controls = [variant.key for variant in self.variants if variant.control]
        if len(controls) != 1:
            raise _refuse(
                "variants",
                f"have {len(controls)} controls; mark exactly one with control: true",
            )
        given = [variant.weight is not None for variant in self.variants]
        if any(given) and not all(given):
            raise _refuse("variants", "have weights for some only; give all or none")
        check_weights(self.initial_weights, keys)

    def _check_segments(self) -> None:
        start, end = self.segments
        if not 0 <= start < end <= SEGMENTS:
            raise _refuse(
                "segments",
                f"are {start} to {end}; they must be a range within 0 to {SEGMENTS}",
            )

    def _check_overrides(self) -> None:
        keys = {variant.key for variant in self.variants}
        for unit_id, variant in self.overrides.items():
            check_id("overrides unit", unit_id)
            if variant not in keys:
                raise _refuse(
                    "overrides",
                    f"send {unit_id!r} to {variant!r}; the variants are {known(keys)}",
                )

    def _check_policy(self) -> None:
        if (self.kind is ExperimentKind.BANDIT) != (self.policy is not None):
            raise _refuse(
                "policy",
                "is missing; a bandit needs one"
                if self.policy is None
                else "is given; an A/B test has none",
            )
        if self.kind is ExperimentKind.AB and self.mode is AssignmentMode.STICKY:
            raise _refuse(
                "mode", "is 'sticky'; it is for bandits, an A/B test has one salt"
            )
        if self.policy is None:
            return
        ruled = len(self.variants) - (1 if self.policy.control_share > 0 else 0)
        if 0 < self.policy.control_share < self.policy.floor:
            raise _refuse(
                "policy.control_share",
                f"is {self.policy.control_share:g}, below the floor "
                f"{self.policy.floor:g}; no variant may have less than the floor",
            )
        reserved = self.policy.control_share + ruled * self.policy.floor
        if reserved > 1:
            raise _refuse(
                "policy.floor",
                f"is {self.policy.floor:g} for {ruled} variants beside a control share "
                f"of {self.policy.control_share:g}; together they take {reserved:g}, "
                "more than 1",
            )
        if self.policy.segment_by is not None and self.mode is AssignmentMode.STICKY:
            raise _refuse(
                "mode",
                "is 'sticky' beside policy.segment_by; a unit whose attributes change "
                "could not keep its variant, so use mode redraw",
            )
        if any(weight <= 0 for weight in self.initial_weights.values()):
            raise _refuse("weights", "of a bandit must all be above 0 at the start")

    @property
    def catalogue(self) -> dict[str, Metric]:
        """Metrics by name: those that are built in, then the experiment's own."""
        return {**METRICS, **{metric.name: metric for metric in self.metrics}}

    @property
    def reward(self) -> Metric:
        """The metric that decides."""
        return self.catalogue[self.reward_metric]

    def metric(self, name: str) -> Metric:
        """Return a metric of the catalogue.

        Raises
        ------
        NotFound
            Lists those that exist.
        """
        if name not in self.catalogue:
            raise NotFound(
                f"metric {name[:80]!r} is not known; known metrics: "
                f"{known(self.catalogue)}"
            )
        return self.catalogue[name]

    @property
    def initial_weights(self) -> dict[str, float]:
        """Weights of epoch 0 by variant; equal shares when none are given."""
        equal = 1 / len(self.variants)
        return {
            variant.key: equal if variant.weight is None else variant.weight
            for variant in self.variants
        }

    @property
    def control(self) -> Variant:
        """The reference variant."""
        return next(variant for variant in self.variants if variant.control)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A stored experiment: its declaration, salts and state."""

    id: int
    declaration: Declaration
    state: ExperimentState
    layer_salt: str
    traffic_salt: str
    variant_salt: str
    created_at: datetime
    started_at: datetime | None = None
    stopped_at: datetime | None = None

    @property
    def key(self) -> str:
        """The experiment's key."""
        return self.declaration.key

    def phase(self, epoch: int) -> int:
        """Span over which a unit's outcomes add up: the epoch of a bandit, else 0."""
        return epoch if self.declaration.kind is ExperimentKind.BANDIT else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSegment:
    """What an epoch holds for one segment of units.

    Attributes
    ----------
    weights : mapping of str to float
        Share of the segment's traffic per variant, sums to 1.
    statistics : mapping
        Sufficient statistics of the segment's units per variant.
    """

    weights: Mapping[str, float]
    statistics: Mapping[str, Mapping[str, float]]

    def __post_init__(self) -> None:
        check_weights(self.weights, tuple(self.weights))


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """Span in which one allocation holds; never changed once stored.

    Attributes
    ----------
    number : int
        From 0.
    weights : mapping of str to float
        Share of traffic per variant, sums to 1; with segments their mean, each counted
        by its units so far.
    segments : mapping of str to EpochSegment, or None
        Weights of each segment, if they have their own.
    floor, control_share : float
        What the weights were built with.
    statistics : mapping or None
        Sufficient statistics per variant that the weights were computed from.
    cutoff : datetime or None
        Last instant used in the statistics.
    policy : mapping or None
        Name, parameters and direction of the policy, the control and the order of the
        variants, so that the row alone is enough to compute the weights again.
    seed : int
        Seed of the generator handed to the policy.
    reason : str
        Why the weights are what they are.
    started_at : datetime
        UTC.
    """

    number: int
    weights: Mapping[str, float]
    segments: Mapping[str, EpochSegment] | None = None
    floor: float = 0.0
    control_share: float = 0.0
    statistics: Mapping[str, Mapping[str, float]] | None = None
    cutoff: datetime | None = None
    policy: Mapping[str, Any] | None = None
    seed: int = 0
    reason: str
    started_at: datetime

    def __post_init__(self) -> None:
        check_weights(self.weights, tuple(self.weights))
        tables = [self.weights, *(s.weights for s in (self.segments or {}).values())]
        low = min(min(table.values()) for table in tables)
        if low < self.floor - _WEIGHT_TOLERANCE:
            raise _refuse(
                "weights", f"reach down to {low}, below the floor {self.floor}"
            )

    def weights_of(self, segment: str | None) -> Mapping[str, float]:
        """Return the weights of a segment; those of all where it has none of its own."""
        if segment is None or self.segments is None or segment not in self.segments:
            return self.weights
        return self.segments[segment].weights
