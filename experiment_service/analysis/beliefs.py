"""What the data say of two variants in a Bayesian's words: chance to be better, loss.

Exact, by the quadrature of `policies`. A posterior needs no correction for looking often
nor for weights that moved, but it says nothing of how often it is wrong: a variant with
95 % is wrong more often than 5 % of the times at which somebody stopped because of it.
"""

import dataclasses

import numpy as np

from experiment_service.analysis.moments import Moments, successes_of
from experiment_service.domain.metric import MetricKind
from policies.base import ArmStatistics
from policies.gaussian_thompson import GaussianThompson
from policies.probability_best import probability_best, probability_best_normal
from policies.stopping import expected_loss, expected_loss_normal


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """Posterior of a variant beside the control.

    Attributes
    ----------
    probability_better : float
        That its value is better than the control's.
    expected_loss : float
        By how much its value is worse than the better one of the two, on average, in
        the metric's unit: what choosing it costs if that is wrong. >= 0.
    """

    probability_better: float
    expected_loss: float


def belief(
    kind: MetricKind, treatment: Moments, control: Moments, *, lower_is_better: bool
) -> Belief | None:
    """Compare two variants by their posteriors; None without units or without spread.

    A proportion has a uniform Beta prior, a mean or ratio a normal one that is worth
    one unit of both variants pooled.

    References
    ----------
    Stucchio, C. (2015). Bayesian A/B testing at VWO (expected loss).
    """
    if treatment.n < 1 or control.n < 1:
        return None
    pair = (treatment, control)
    if kind == "proportion":
        counts = [successes_of(each) for each in pair]
        alpha = [1 + successes for successes, _ in counts]
        beta = [1 + n - successes for successes, n in counts]
        better = probability_best(alpha, beta, lower_is_better=lower_is_better)
        loss = expected_loss(alpha, beta, lower_is_better=lower_is_better)
        return Belief(probability_better=float(better[0]), expected_loss=float(loss[0]))
    sums = {
        "units": [each.n for each in pair],
        "reward_sum": [each.sum_y for each in pair],
        "reward_sum_squares": [each.sum_yy for each in pair],
    }
    if kind == "ratio":
        if min(each.sum_x for each in pair) <= 0:
            return None
        sums |= {
            "base_sum": [each.sum_x for each in pair],
            "base_sum_squares": [each.sum_xx for each in pair],
            "reward_base_sum": [each.sum_xy for each in pair],
        }
    statistics = ArmStatistics(
        **{name: np.array(values) for name, values in sums.items()},
        lower_is_better=lower_is_better,
    )
    mean, deviation = GaussianThompson().posterior(statistics)
    if not deviation.all():
        return None
    better = probability_best_normal(mean, deviation, lower_is_better=lower_is_better)
    loss = expected_loss_normal(mean, deviation, lower_is_better=lower_is_better)
    return Belief(probability_better=float(better[0]), expected_loss=float(loss[0]))
