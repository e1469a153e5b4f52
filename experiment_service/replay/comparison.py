"""Compare policies on one log: what would each have earned, and how sure is that.

Every policy is replayed in weight versions as production would have run it; its value
comes from the logged propensities of the rows. Pure: the log is given, nothing is read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import numpy as np

from experiment_service.errors import InvalidRequest, known
from experiment_service.replay.choice import PolicyChoice
from policies import off_policy
from policies.base import FloatArray
from policies.logged import LoggedRounds, chunks
from policies.replay import Method, ReplayResult, ReplayRun
from policies.replay_many import replay_many
from policies.reward_model import RewardModel, fit_reward_model
from policies.scores import Scores, Value, difference, value
from policies.target import Target

#: Weights over time are kept at this many instants at most.
SHOWN_EPOCHS = 300

_CLIP = 20.0
_TAU = 10.0
_SHRINKAGE = 10.0

_Estimator = Callable[[LoggedRounds, Target, RewardModel | None], Scores]


def _with_model(
    estimator: Callable[..., Scores], **parameters: float
) -> tuple[_Estimator, bool]:
    return lambda rounds, target, model: estimator(
        rounds, target, model=model, **parameters
    ), True


def _by_weights(
    estimator: Callable[..., Scores], **parameters: float
) -> tuple[_Estimator, bool]:
    return lambda rounds, target, _: estimator(rounds, target, **parameters), False


#: Estimators by name, and whether they lean on a reward model.
ESTIMATORS: Mapping[str, tuple[_Estimator, bool]] = MappingProxyType(
    {
        "snips": _by_weights(off_policy.snips),
        "ips": _by_weights(off_policy.ips),
        "clipped_ips": _by_weights(off_policy.clipped_ips, clip=_CLIP),
        "dr": _with_model(off_policy.doubly_robust),
        "switch_dr": _with_model(off_policy.switch_dr, tau=_TAU),
        "dr_shrinkage": _with_model(off_policy.dr_shrinkage, shrinkage=_SHRINKAGE),
        "dm": _with_model(off_policy.direct_method),
        "item_position": _by_weights(off_policy.item_position),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayPlan:
    """How policies are replayed and valued.

    Attributes
    ----------
    policies : tuple of PolicyChoice
        At least one; no label twice.
    estimator : str
        Key of `ESTIMATORS`.
    method : "expected" or "rejection"
        How a policy learns from the log.
    update_seconds : float or None
        Time between two looks; None looks every `update_rounds`.
    update_rounds : int or None
        Rounds between two looks.
    delay_seconds : float, >= 0
        A reward is known this long after its round: the attribution window.
    control : str or None
        Arm with a fixed share, for policies with a control share.
    minimum_units : int, >= 0
        Every arm needs so many before weights move.
    lower_is_better : bool
    level : float
        Of every interval.
    seed : int
        Of what is drawn, in rejection only.

    Raises
    ------
    InvalidRequest
        Names the field, its value and the rule.
    """

    policies: tuple[PolicyChoice, ...]
    estimator: str = "snips"
    method: Method = "expected"
    update_seconds: float | None = None
    update_rounds: int | None = None
    delay_seconds: float = 0.0
    control: str | None = None
    minimum_units: int = 0
    lower_is_better: bool = False
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        labels = [choice.label for choice in self.policies]
        repeated = sorted({label for label in labels if labels.count(label) > 1})
        if not labels or repeated:
            raise InvalidRequest(
                f"policies names {known(repeated)} twice"
                if repeated
                else "policies is empty; name at least one",
                field="policies",
            )
        if self.estimator not in ESTIMATORS:
            raise InvalidRequest(
                f"estimator is {self.estimator[:80]!r}; known estimators: "
                f"{known(ESTIMATORS)}",
                field="estimator",
            )
        if (self.update_seconds is None) == (self.update_rounds is None):
            raise InvalidRequest(
                "say how often weights are looked at: either by time or by rounds",
                field="update_seconds",
            )
        for name in ("update_seconds", "update_rounds"):
            given = getattr(self, name)
            if given is not None and not 0 < given < float("inf"):
                raise InvalidRequest(
                    f"{name} is {given}; it must be above 0", field=name
                )
        if not 0 <= self.delay_seconds < float("inf"):
            raise InvalidRequest(
                f"delay_seconds is {self.delay_seconds}; it must be 0 or more",
                field="delay_seconds",
            )
        if not 0.5 <= self.level <= 0.9999:
            raise InvalidRequest(
                f"level is {self.level}; it must lie in 0.5 to 0.9999", field="level"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsAt:
    """Weights from an instant on, per arm; of the whole log, segments averaged."""

    at: datetime
    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOutcome:
    """What a policy would have earned on the log.

    Attributes
    ----------
    label : str
        The policy as it is written.
    value : Value
        Mean reward per round.
    over_log : Value
        Difference to the log's own mean reward.
    regret : Value or None
        Best fixed arm less this policy (or the other way round when lower is better);
        None when no fixed arm can be valued.
    epochs : int
        Weight versions.
    accepted_rounds : int or None
        Rounds that rejection kept; None for the expected update.
    weights : tuple of WeightsAt
        At most some hundred instants, evenly chosen.
    """

    label: str
    value: Value
    over_log: Value
    regret: Value | None
    epochs: int
    accepted_rounds: int | None
    weights: tuple[WeightsAt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """Policies compared on one log.

    Attributes
    ----------
    source : str
        What the log is, in words.
    proportion : bool
        Whether every reward is 0 or 1.
    arms : tuple of str
    rounds, units : int
    started_at, ended_at : datetime
        First and last round, UTC.
    log : Value
        Mean reward of the log itself.
    fixed : mapping of str to Value
        What each arm alone would have earned.
    best_fixed : str or None
        The best of them by its value on this log. As it was picked by the same rows,
        its value is on the optimistic side.
    outcomes : tuple of PolicyOutcome
    """

    source: str
    plan: ReplayPlan
    proportion: bool
    arms: tuple[str, ...]
    rounds: int
    units: int
    started_at: datetime
    ended_at: datetime
    log: Value
    fixed: Mapping[str, Value]
    best_fixed: str | None
    outcomes: tuple[PolicyOutcome, ...]

    def to_document(self) -> dict[str, Any]:
        """Return the comparison as a JSON document; instants are ISO 8601."""
        document: dict[str, Any] = _plain(asdict(self))
        for choice, plan in zip(
            self.plan.policies, document["plan"]["policies"], strict=True
        ):
            plan["label"] = choice.label
        return document


def _plain(given: Any) -> Any:  # noqa: ANN401 - any value of a report
    if isinstance(given, Mapping):
        return {str(key): _plain(each) for key, each in given.items()}
    if isinstance(given, list | tuple):
        return [_plain(each) for each in given]
    if isinstance(given, datetime):
        return given.isoformat()
    if isinstance(given, float) and not np.isfinite(given):
        return None
    return given


def compare(
    rounds: LoggedRounds,
    plan: ReplayPlan,
    *,
    source: str,
    progress: Callable[[int], None] | None = None,
) -> ReplayReport:
    """Replay every policy on the log and value it.

    Parameters
    ----------
    progress : callable, optional
        Called with a number of rounds that are done, ``len(plan.policies) * rounds``
        in all.

    Raises
    ------
    InvalidRequest
        When the log and a policy do not fit; names both.
    """
    control = _control(rounds, plan)
    estimator, needs_model = ESTIMATORS[plan.estimator]
    try:
        results = replay_many(
            rounds,
            [_run(choice, plan, control) for choice in plan.policies],
            progress=progress,
        )
        model = fit_reward_model(rounds) if needs_model else None
        log = _value_of_log(rounds, plan)
        fixed: dict[str, Value] = {}
        best: tuple[str, Scores] | None = None
        for arm, one in zip(rounds.arms, np.eye(len(rounds.arms)), strict=True):
            scores = estimator(rounds, Target.constant(one), model)
            fixed[arm] = value(scores, level=plan.level)
            shown = fixed[arm].estimate is not None
            if shown and (best is None or _is_better(scores, best[1], plan)):
                best = arm, scores
        outcomes = []
        for choice, result in zip(plan.policies, results, strict=True):
            target = Target.from_epochs(result.starts, result.weights, rounds)
            outcomes.append(
                PolicyOutcome(
                    label=choice.label,
                    epochs=len(result.starts),
                    accepted_rounds=result.accepted,
                    weights=_weights(result, rounds),
                    **_values(
                        estimator(rounds, target, model),
                        plan,
                        log=log,
                        best=None if best is None else best[1],
                    ),
                )
            )
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    return ReplayReport(
        source=source,
        plan=plan,
        proportion=all(
            bool(np.isin(rounds.reward[start:stop], (0.0, 1.0)).all())
            for start, stop in chunks(rounds.rounds)
        ),
        arms=rounds.arms,
        rounds=rounds.rounds,
        units=log.units,
        started_at=_instant(rounds.time[0]),
        ended_at=_instant(rounds.time[-1]),
        log=value(log, level=plan.level),
        fixed=fixed,
        best_fixed=None if best is None else best[0],
        outcomes=tuple(outcomes),
    )


def _value_of_log(rounds: LoggedRounds, plan: ReplayPlan) -> Scores:
    """Return the log's own value, per the same thing as the policies'."""
    if plan.estimator == "item_position":
        return off_policy.item_position(rounds, rounds.propensity)
    return off_policy.logged_value(rounds)


def _run(choice: PolicyChoice, plan: ReplayPlan, control: int | None) -> ReplayRun:
    return ReplayRun(
        label=choice.label,
        policy=choice.build(),
        method=plan.method,
        update_every=plan.update_rounds,
        update_seconds=plan.update_seconds,
        delay=plan.delay_seconds,
        floor=choice.floor,
        control=control if choice.control_share else None,
        control_share=choice.control_share,
        lower_is_better=plan.lower_is_better,
        minimum_units=plan.minimum_units,
        seed=plan.seed,
    )


def _control(rounds: LoggedRounds, plan: ReplayPlan) -> int | None:
    if plan.control is None:
        sharing = [each.label for each in plan.policies if each.control_share]
        if sharing:
            raise InvalidRequest(
                f"policy {sharing[0]!r} has a control share; say which arm is the "
                f"control: {known(rounds.arms)}",
                field="control",
            )
        return None
    if plan.control not in rounds.arms:
        raise InvalidRequest(
            f"control is {plan.control[:80]!r}; the arms of the log are "
            f"{known(rounds.arms)}",
            field="control",
        )
    return rounds.arms.index(plan.control)


def _is_better(one: Scores, other: Scores, plan: ReplayPlan) -> bool:
    first, second = one.estimate, other.estimate
    return first < second if plan.lower_is_better else first > second


def _values(
    scores: Scores, plan: ReplayPlan, *, log: Scores, best: Scores | None
) -> dict[str, Any]:
    regret = None
    if best is not None:
        pair = (scores, best) if plan.lower_is_better else (best, scores)
        regret = difference(*pair, level=plan.level)
    return {
        "value": value(scores, level=plan.level),
        "over_log": difference(scores, log, level=plan.level),
        "regret": regret,
    }


def _weights(result: ReplayResult, rounds: LoggedRounds) -> tuple[WeightsAt, ...]:
    step = -(-len(result.starts) // SHOWN_EPOCHS)
    shares = _segment_shares(rounds)
    return tuple(
        WeightsAt(
            at=_instant(rounds.time[result.starts[epoch]]),
            weights={
                arm: float(weight)
                for arm, weight in zip(
                    rounds.arms, _pooled(result.weights[epoch], shares), strict=True
                )
            },
        )
        for epoch in range(0, len(result.starts), step)
    )


def _segment_shares(rounds: LoggedRounds) -> FloatArray:
    if rounds.segment is None:
        return np.ones(1)
    counts = np.bincount(rounds.segment, minlength=len(rounds.segments))
    shares: FloatArray = counts / rounds.rounds
    return shares


def _pooled(weights: FloatArray, shares: FloatArray) -> FloatArray:
    return weights[0] if len(weights) == 1 else shares @ weights


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(float(seconds), tz=UTC)


def best_first(
    outcomes: Sequence[PolicyOutcome], *, lower_is_better: bool
) -> list[PolicyOutcome]:
    """Return the outcomes from the best value down; withheld ones last."""
    sign = 1.0 if lower_is_better else -1.0
    return sorted(
        outcomes,
        key=lambda each: (
            float("inf") if each.value.estimate is None else sign * each.value.estimate
        ),
    )
