"""The policy's side of a bandit: what it believes, what it did, and when it looks."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from scipy import stats

from experiment_service.analysis.moments import Moments
from experiment_service.domain.experiment import (
    Experiment,
    ExperimentState,
    PolicySpecification,
)
from experiment_service.domain.metric import METRICS, Metric
from experiment_service.reporting.values import BanditReport, Look, Posterior
from experiment_service.storage.experiments import Reallocation
from policies import build_policy
from policies.probability_best import probability_best
from policies.thompson import Thompson

#: Prior beside a policy that has none of its own: every rate equally likely.
UNIFORM = (1.0, 1.0)


def bandit_report(
    experiment: Experiment,
    rewards: Mapping[str, Moments],
    looks: Sequence[Reallocation],
    *,
    level: float,
) -> BanditReport | None:
    """Say how the weights are set, and what the rewards say about each variant.

    Parameters
    ----------
    rewards : mapping of str to Moments
        Of the units that count, by variant; the reward of a bandit is a proportion.

    Returns
    -------
    BanditReport or None
        None for an A/B test.
    """
    policy = experiment.declaration.policy
    if policy is None:
        return None
    metric = METRICS[experiment.declaration.reward_metric]
    prior = _prior(policy)
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
        prior=prior,
        posteriors=_posteriors(metric, rewards, prior, level=level),
    )


def _prior(specification: PolicySpecification) -> tuple[float, float]:
    """Return the prior that the policy itself starts from, so that P(best) agrees."""
    policy = build_policy(specification.name, specification.parameters)
    if isinstance(policy, Thompson):
        return policy.prior_successes, policy.prior_failures
    return UNIFORM


def _posteriors(
    metric: Metric,
    rewards: Mapping[str, Moments],
    prior: tuple[float, float],
    *,
    level: float,
) -> tuple[Posterior, ...]:
    alphas = [prior[0] + each.sum_y for each in rewards.values()]
    betas = [prior[1] + each.n - each.sum_y for each in rewards.values()]
    best = probability_best(alphas, betas, lower_is_better=metric.direction == "lower")
    tail = (1 - level) / 2
    return tuple(
        Posterior(
            variant=variant,
            units=int(moments.n),
            rewards=int(moments.sum_y),
            alpha=alpha,
            beta=beta,
            mean=alpha / (alpha + beta),
            low=float(stats.beta.ppf(tail, alpha, beta)),
            high=float(stats.beta.isf(tail, alpha, beta)),
            probability_best=float(share),
        )
        for (variant, moments), alpha, beta, share in zip(
            rewards.items(), alphas, betas, best, strict=True
        )
    )


def _next_look(
    experiment: Experiment, interval: timedelta, looks: Sequence[Reallocation]
) -> datetime | None:
    if experiment.state is not ExperimentState.RUNNING or experiment.started_at is None:
        return None
    return (looks[-1].cutoff if looks else experiment.started_at) + interval
