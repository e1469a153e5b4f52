"""What a report is: plain frozen values, the same for dashboard, API and CLI.

Every number is finite or replaced by a `Withheld` with its reason.
"""

import dataclasses
import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from typing import Any, Literal

from experiment_service.analysis import guardrail as guardrails
from experiment_service.analysis.beliefs import Belief
from experiment_service.analysis.gain import Gain
from experiment_service.analysis.health import HealthCheck
from experiment_service.analysis.heterogeneity import Heterogeneity
from experiment_service.analysis.interval import Estimate, Interval, Withheld
from experiment_service.domain.experiment import (
    ExperimentKind,
    ExperimentState,
    Outcome,
)
from experiment_service.domain.metric import MetricKind
from experiment_service.errors import InvalidRequest
from experiment_service.storage.counts import Lag, MinuteCount

#: What a summary concludes; `summary` states the rules.
Verdict = Literal[
    "draft", "unhealthy", "too_early", "no_difference", "behind", "guardrail", "ahead"
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Days:
    """A range of days in UTC, both included; units belong by their first exposure.

    Raises
    ------
    InvalidRequest
        When the first is after the last.
    """

    first: date
    last: date

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise InvalidRequest(
                f"days are {self.first} to {self.last}; the first must not be after "
                "the last"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Units whose first exposure carried an attribute with a value; "-" is none."""

    attribute: str
    value: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VariantFacts:
    """A variant and its traffic.

    Attributes
    ----------
    weight : float or None
        Share of traffic in force, or the last one; None for a draft.
    units, exposures, fallbacks : int
        All that were recorded, also units whose window is open.
    """

    key: str
    recommender: str
    control: bool
    weight: float | None
    units: int
    exposures: int
    fallbacks: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A health check of an experiment.

    Attributes
    ----------
    title : str
        What people read.
    subject : str or None
        What it is about, such as a variant; None for the whole experiment.
    """

    title: str
    subject: str | None
    result: HealthCheck


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VariantResult:
    """A metric of one variant.

    Attributes
    ----------
    units : int
        Units that count: their window has closed.
    open_units : int
        Units that do not count yet.
    planned : Interval or Withheld
        For one look at a planned end.
    any_time : Interval or Withheld
        For every look at once.
    """

    variant: str
    units: int
    open_units: int
    planned: Estimate
    any_time: Estimate


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A variant against control: difference in the metric's unit, and relative lift.

    Attributes
    ----------
    p_planned, p_any_time : float or None
        Smallest alpha at which the interval of level 1 - alpha excludes 0; None when
        it is withheld.
    corrected_planned, corrected_any_time : float or None
        The same by Holm's method over all variants and metrics of the report: the chance
        of any false finding among them is bounded.
    discovery_planned, discovery_any_time : float or None
        The same by the method of Benjamini and Hochberg: the expected share of false
        findings among those found is bounded.
    guardrail : str or None
        Of a guardrail metric: held, breached or open; see `analysis.guardrail`.
    variance_removed : float, Withheld or None
        Share of the variance of the difference that adjusting by earlier behaviour
        (CUPED) took away; withheld with the reason when it could not be adjusted, None
        when the experiment does not ask for it.
    belief : Belief or None
        Chance to be better and expected loss; None without units or spread.
    """

    variant: str
    planned: Estimate
    any_time: Estimate
    lift_planned: Estimate
    lift_any_time: Estimate
    p_planned: float | None = None
    p_any_time: float | None = None
    corrected_planned: float | None = None
    corrected_any_time: float | None = None
    discovery_planned: float | None = None
    discovery_any_time: float | None = None
    guardrail: guardrails.Verdict | None = None
    variance_removed: float | Withheld | None = None
    belief: Belief | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MetricReport:
    """A metric of all variants; comparisons leave out the control.

    Attributes
    ----------
    margin : float or None
        Of a guardrail: the share of the control's value by which a variant may be
        worse.
    """

    name: str
    title: str
    kind: MetricKind
    direction: Literal["higher", "lower"]
    reward: bool
    margin: float | None = None
    variants: tuple[VariantResult, ...]
    comparisons: tuple[Comparison, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SegmentReport:
    """One segment of an epoch: its weights, and the units first exposed in it."""

    weights: Mapping[str, float]
    units: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """An epoch: its weights, and the units that were first exposed in it.

    Attributes
    ----------
    segments : mapping of str to SegmentReport
        By segment; empty when all have the same weights.
    """

    number: int
    started_at: datetime
    weights: Mapping[str, float]
    units: Mapping[str, int]
    segments: Mapping[str, SegmentReport] = dataclasses.field(default_factory=dict)
    cutoff: datetime | None
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A scheduled reallocation and whether it moved the weights."""

    cutoff: datetime
    epoch: int
    moved: bool
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Posterior:
    """Posterior of a variant's reward: a Beta or a normal distribution.

    Attributes
    ----------
    units, rewards : float
        Units that count and the sum of their rewards; discounted if the policy does.
    alpha, beta : float or None
        Parameters of a Beta distribution, > 0.
    deviation : float or None
        Standard deviation of a normal one, >= 0.
    mean, low, high : float
        Mean and central credible interval at the level of the report.
    probability_best : float
        P(best) among all variants.
    """

    variant: str
    units: float
    rewards: float
    alpha: float | None = None
    beta: float | None = None
    deviation: float | None = None
    mean: float
    low: float
    high: float
    probability_best: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Whether a bandit has learnt enough.

    Attributes
    ----------
    action : {"stop", "go on", "none"}
        None while there is nothing to say.
    leader : str or None
        The variant most probably best.
    value_remaining : float or None
        What the best variant may still gain over the leader, as a share of its value.
    expected_loss : float or None
        What choosing the leader now costs on average, in the unit of the reward.
    sentence, rule : str
        The advice, and the rule behind it.
    """

    action: Literal["stop", "go on", "none"]
    leader: str | None
    value_remaining: float | None
    expected_loss: float | None
    sentence: str
    rule: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BanditReport:
    """How a bandit's weights are set and what its policy believes.

    Attributes
    ----------
    next_look_at : datetime or None
        When the next reallocation is due; None unless it runs.
    looks : tuple of Look
        In the order of time.
    prior : str
        What every variant starts from, in words.
    gain : Gain or Withheld
        What the weights earned beside giving everyone the control.
    """

    policy: str
    parameters: Mapping[str, object]
    floor: float
    control_share: float
    interval: timedelta
    minimum_units: int
    mode: str
    next_look_at: datetime | None
    looks: tuple[Look, ...]
    prior: str
    posteriors: tuple[Posterior, ...]
    gain: Gain | Withheld
    advice: Advice


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SeriesPoint:
    """Reward of a variant over all units whose window had closed by `at`."""

    at: datetime
    units: int
    interval: Interval


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Cumulative reward of one variant over time, with its confidence sequence."""

    variant: str
    points: tuple[SeriesPoint, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The report in words, with the rule's verdict.

    Attributes
    ----------
    sentence : str
        What was found, and how sure that is.
    advice : str
        What to do, and what it costs to be wrong.
    """

    verdict: Verdict
    sentence: str
    advice: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What people decided after an experiment.

    Attributes
    ----------
    variant : str or None
        What ships, if anything does.
    """

    outcome: Outcome
    variant: str | None
    reason: str
    actor: str
    decided_at: datetime


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What an experiment is and how far it has come.

    Attributes
    ----------
    epoch : int or None
        Number of the current or last epoch; None for a draft.
    running_for : timedelta
        From start to stop or to the time of the report; 0 for a draft.
    units, crossed : int
        Units of analysis seen, and those that no metric counts as they were seen in
        more than one variant.
    interactions : mapping of str to int
        That count for the experiment, by kind.
    last_exposure_at : datetime or None
        None before the first.
    decision : Decision or None
        None until one is stored.
    """

    key: str
    description: str
    kind: ExperimentKind
    state: ExperimentState
    placement: str
    reward_metric: str
    attribution_window: timedelta
    started_at: datetime | None
    stopped_at: datetime | None
    running_for: timedelta
    epoch: int | None
    variants: tuple[VariantFacts, ...]
    units: int
    crossed: int
    interactions: Mapping[str, int]
    last_exposure_at: datetime | None
    decision: Decision | None = None

    @property
    def control(self) -> str:
        """Key of the reference variant."""
        return next(variant.key for variant in self.variants if variant.control)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that is known of an experiment at one instant, health first.

    Attributes
    ----------
    as_of : datetime
        The last instant used.
    level : float
        Coverage of every interval, in (0, 1).
    metrics : tuple of MetricReport
        The reward metric first.
    bandit : BanditReport or None
        None for an A/B test.
    series : tuple of Series
        Of the reward metric.
    days : Days or None
        Only units first exposed on them are in metrics and series; None for all.
    group : Group or None
        Only units of it are in metrics and series; None for all.
    """

    as_of: datetime
    level: float
    facts: Facts
    summary: Summary
    checks: tuple[Check, ...]
    metrics: tuple[MetricReport, ...]
    epochs: tuple[EpochReport, ...]
    bandit: BanditReport | None
    series: tuple[Series, ...]
    days: Days | None = None
    group: Group | None = None

    @property
    def reward(self) -> MetricReport:
        """The metric that decides."""
        return self.metrics[0]

    @property
    def failed_checks(self) -> tuple[Check, ...]:
        """Checks that forbid the use of the estimates."""
        return tuple(each for each in self.checks if each.result.status == "failed")

    def to_document(self) -> dict[str, Any]:
        """Return the report as a JSON document.

        An estimate has the key ``withheld`` with the reason, or the fields of
        `Interval`; instants are ISO 8601 in UTC, spans are seconds.
        """
        document = plain(self)
        return dict(document)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LevelReport:
    """The reward of units with one value of an attribute.

    Attributes
    ----------
    report : MetricReport
        P-values are corrected over all levels of the attribute and all variants.
    """

    level: str
    report: MetricReport


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EffectsDiffer:
    """Whether a variant's effect differs between the levels of an attribute.

    Attributes
    ----------
    test : Heterogeneity or Withheld
    corrected : float or None
        Its p-value, by Holm's method over all attributes and variants; None when it is
        withheld.
    """

    variant: str
    test: Heterogeneity | Withheld
    corrected: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttributeReport:
    """An experiment's reward by the levels of an attribute, the largest first."""

    attribute: str
    levels: tuple[LevelReport, ...]
    differ: tuple[EffectsDiffer, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SegmentsReport:
    """The reward by every attribute that exposures carry.

    Attributes
    ----------
    left_out : tuple of str
        Attributes beyond the number that is looked at.
    """

    as_of: datetime
    level: float
    metric: str
    attributes: tuple[AttributeReport, ...]
    left_out: tuple[str, ...]

    def to_document(self) -> dict[str, Any]:
        """Return the report as a JSON document, as `Report.to_document`."""
        return dict(plain(self))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OverviewRow:
    """An experiment in one line.

    Attributes
    ----------
    health : {"ok", "warning", "failed", "not_enough_data"}
        The worst of its checks.
    reward : MetricReport
        The metric that decides.
    """

    facts: Facts
    summary: Summary
    health: str
    reward: MetricReport


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ListedExperiment:
    """An experiment to choose from."""

    key: str
    kind: ExperimentKind
    state: ExperimentState
    started_at: datetime | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """How the service as a whole is doing.

    Attributes
    ----------
    checks : tuple of Check
        Ingestion lag, orphans, rows in default partitions.
    lag : Lag or None
        None without exposures.
    minutes : tuple of MinuteCount
        Of the last hour; minutes without events are left out.
    """

    as_of: datetime
    checks: tuple[Check, ...]
    lag: Lag | None
    minutes: tuple[MinuteCount, ...]
    database_bytes: int


def plain(value: Any) -> Any:  # noqa: ANN401 - walks any value of a report
    """Return a value as JSON has it: instants as ISO 8601, spans as seconds."""
    if isinstance(value, Withheld):
        return {"withheld": value.reason, "overlap": plain(value.overlap)}
    if dataclasses.is_dataclass(value):
        return {
            each.name: plain(getattr(value, each.name))
            for each in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return _leaf(value)


def _leaf(value: Any) -> Any:  # noqa: ANN401 - any single value
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} in a report; every number must be finite")
    return value
