"""The policy's side of a bandit: what it believes, what it did, and when it looks."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import numpy as np
from scipy import stats

from experiment_service.analysis.adaptive import MINIMUM_EFFECTIVE_SAMPLE_SIZE
from experiment_service.analysis.gain import gain_over_control
from experiment_service.analysis.moments import EpochMoments, Moments
from experiment_service.domain.experiment import Experiment, ExperimentState
from experiment_service.domain.metric import Metric
from experiment_service.reporting.metrics import PLANNED_UNITS
from experiment_service.reporting.stopping import advise
from experiment_service.reporting.values import BanditReport, Look, Posterior
from experiment_service.storage.experiments import Reallocation
from policies import ArmStatistics, Policy, build_policy
from policies.gaussian_thompson import GaussianThompson
from policies.probability_best import probability_best
from policies.thompson import beta_posterior

#: Prior beside a policy that has none of its own: every rate equally likely.
UNIFORM = (1.0, 1.0)

_SUMS = (
    "units",
    "reward_sum",
    "reward_sum_squares",
    "base_sum",
    "base_sum_squares",
    "reward_base_sum",
)


def bandit_report(
    experiment: Experiment,
    rewards: Mapping[str, Moments],
    looks: Sequence[Reallocation],
    *,
    epochs: Sequence[EpochMoments],
    healthy: bool,
    level: float,
) -> BanditReport | None:
    """Say how the weights are set, and what the rewards say about each variant.

    Parameters
    ----------
    rewards : mapping of str to Moments
        Of the units that count, by variant.
    epochs : sequence of EpochMoments
        Of the same units.
    healthy : bool
        Whether no health check failed.

    Returns
    -------
    BanditReport or None
        None for an A/B test.
    """
    policy = experiment.declaration.policy
    if policy is None:
        return None
    metric = experiment.declaration.reward
    built = build_policy(policy.name, policy.parameters)
    statistics = _statistics(metric, rewards)
    if built.half_life is not None and looks:
        statistics = _stored(metric, looks[-1], list(rewards))
    normal = metric.kind != "proportion" or isinstance(built, GaussianThompson)
    believe = _normal_posteriors if normal else _beta_posteriors
    posteriors = believe(list(rewards), built, statistics, level=level)
    return BanditReport(
        policy=policy.name,
        parameters=dict(policy.parameters),
        floor=policy.floor,
        control_share=policy.control_share,
        interval=policy.interval,
        minimum_units=policy.minimum_units,
        mode=experiment.declaration.mode.value,
        next_look_at=_next_look(experiment, policy.interval, looks),
        looks=tuple(
            Look(
                cutoff=look.cutoff,
                epoch=look.epoch,
                moved=look.moved,
                reason=look.reason,
            )
            for look in looks
        ),
        prior=_prior(built, normal=normal),
        posteriors=posteriors,
        gain=gain_over_control(
            epochs,
            kind=metric.kind,
            control=experiment.declaration.control.key,
            level=level,
            planned_units=PLANNED_UNITS,
            minimum_effective_sample_size=MINIMUM_EFFECTIVE_SAMPLE_SIZE,
        ),
        advice=advise(
            posteriors,
            state=experiment.state.value,
            healthy=healthy,
            forgets=built.half_life is not None,
            lower_is_better=metric.direction == "lower",
        ),
    )


def _prior(policy: Policy, *, normal: bool) -> str:
    if normal:
        units = _gaussian(policy).prior_units
        text = (
            f"a prior worth {units:g} {'unit' if units == 1 else 'units'} of all pooled"
        )
    else:
        successes, failures = _beta_prior(policy)
        text = f"prior Beta({successes:g}, {failures:g})"
    if policy.half_life is not None:
        text += f", rewards counting half after {timedelta(seconds=policy.half_life)}"
    if policy.segmented:
        text += ", the segments together"
    return text


def _beta_prior(policy: Policy) -> tuple[float, float]:
    """Return the prior that the policy itself starts from, so that P(best) agrees."""
    return (
        float(getattr(policy, "prior_successes", UNIFORM[0])),
        float(getattr(policy, "prior_failures", UNIFORM[1])),
    )


def _gaussian(policy: Policy) -> GaussianThompson:
    return policy if isinstance(policy, GaussianThompson) else GaussianThompson()


def _statistics(metric: Metric, rewards: Mapping[str, Moments]) -> ArmStatistics:
    names = ["n", "sum_y", "sum_yy"]
    if metric.kind == "ratio":
        names += ["sum_x", "sum_xx", "sum_xy"]
    sums = [[getattr(each, name) for each in rewards.values()] for name in names]
    return ArmStatistics(
        **dict(zip(_SUMS, sums, strict=False)),  # type: ignore[arg-type]
        lower_is_better=metric.direction == "lower",
    )


def _stored(
    metric: Metric, look: Reallocation, variants: Sequence[str]
) -> ArmStatistics:
    """Return what the policy saw at a look, discounted as it is."""
    rows = [look.statistics[variant] for variant in variants]
    sums = {name: [row[name] for row in rows] for name in rows[0]}
    return ArmStatistics(
        **sums,  # type: ignore[arg-type]
        lower_is_better=metric.direction == "lower",
    )


def _beta_posteriors(
    variants: Sequence[str], policy: Policy, statistics: ArmStatistics, *, level: float
) -> tuple[Posterior, ...]:
    successes, failures = _beta_prior(policy)
    alpha, beta = beta_posterior(statistics, successes, failures)
    best = probability_best(alpha, beta, lower_is_better=statistics.lower_is_better)
    law = stats.beta(alpha, beta)
    low, high = law.interval(level)
    return tuple(
        Posterior(
            variant=variant,
            units=float(statistics.units[arm]),
            rewards=float(statistics.reward_sum[arm]),
            alpha=float(alpha[arm]),
            beta=float(beta[arm]),
            mean=float(alpha[arm] / (alpha[arm] + beta[arm])),
            low=float(low[arm]),
            high=float(high[arm]),
            probability_best=float(best[arm]),
        )
        for arm, variant in enumerate(variants)
    )


def _normal_posteriors(
    variants: Sequence[str], policy: Policy, statistics: ArmStatistics, *, level: float
) -> tuple[Posterior, ...]:
    law = _gaussian(policy)
    mean, deviation = law.posterior(statistics)
    # Nothing is drawn; the generator is of the contract.
    best = law.allocate(statistics, np.random.default_rng(0))  # noqa: TID251
    half = stats.norm.isf((1 - level) / 2) * deviation
    return tuple(
        Posterior(
            variant=variant,
            units=float(statistics.units[arm]),
            rewards=float(statistics.reward_sum[arm]),
            deviation=float(deviation[arm]),
            mean=float(mean[arm]),
            low=float(mean[arm] - half[arm]),
            high=float(mean[arm] + half[arm]),
            probability_best=float(best[arm]),
        )
        for arm, variant in enumerate(variants)
    )


def _next_look(
    experiment: Experiment, interval: timedelta, looks: Sequence[Reallocation]
) -> datetime | None:
    if experiment.state is not ExperimentState.RUNNING or experiment.started_at is None:
        return None
    return (looks[-1].cutoff if looks else experiment.started_at) + interval
