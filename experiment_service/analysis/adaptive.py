"""Contrasts between variants whose weights moved: bandits and ramped A/B tests.

AIPW with the logged propensities and variance-stabilising weights, computed from the
moments per (variant, epoch) alone: within an epoch the propensity is constant, so
sums over units are sums over moments. Raw means are biased there, as a variant that
was unlucky early is seen less.
"""

import math
from collections.abc import Callable, Sequence

from scipy import stats

from experiment_service.analysis.interval import (
    Estimate,
    Interval,
    Withheld,
    check_level,
    lift_interval,
)
from experiment_service.analysis.moments import EpochMoments
from experiment_service.analysis.proportion import combine_limits, wilson_limits
from experiment_service.analysis.scores import WeightedPair, weigh
from experiment_service.analysis.sequential import half_width
from experiment_service.domain.metric import MetricKind

# Bandits that ended with less were covered 0.8 to 0.9 (docs/calibration.md).
MINIMUM_EFFECTIVE_SAMPLE_SIZE = 100.0

_FIXED_END = (
    "Valid at a planned end, if the logged propensities are those in force and the "
    "difference between the variants does not change over time."
)
_OUTSIDE = "A weighted rate lies outside 0 and 1: there are too few units."
_FIXED_END_LIFT = (
    "Valid at a planned end, if the logged propensities are those in force and the "
    "ratio between the variants does not change over time."
)
_ANY_TIME = (
    "Valid at every look in large samples, if the logged propensities are those in "
    "force and the difference between the variants does not change over time."
)


def contrast(
    epochs: Sequence[EpochMoments],
    *,
    kind: MetricKind,
    treatment: str,
    control: str,
    level: float = 0.95,
    minimum_effective_sample_size: float = MINIMUM_EFFECTIVE_SAMPLE_SIZE,
) -> Estimate:
    """Interval for treatment - control at a planned end, whatever moved the weights.

    With e the weight of the variant in the epoch and m its mean over earlier epochs, a
    unit scores m + 1{its variant} (y - m) / e for each of the two variants. Scores
    are averaged with h = (1/e_treatment + 1/e_control)^(-1/2), which makes every
    unit add the same variance. A ratio does so with y - r x.

    Proportions get Wilson limits at the size the variance implies, combined as by
    Newcombe: the published studentised limits cover 0.91 to 0.94 at rates of 5 %, as an
    unlucky variant also gets too small a variance. For means and ratios the variance
    is instead never taken below the pooled variance of the two variants.

    Parameters
    ----------
    epochs : sequence of EpochMoments
        In the order of time. Epochs in which either variant had weight 0 add nothing.
    kind : {"proportion", "mean", "ratio"}
        Kind of the metric.
    treatment, control : str
        Variants; the control is subtracted.
    level : float
        Coverage, in (0, 1).
    minimum_effective_sample_size : float
        Below it, in units, the estimate is withheld.

    Returns
    -------
    Interval or Withheld
        With the overlap, as soon as both variants had traffic. Effects that differ by
        epoch are averaged with units times h.

    Raises
    ------
    ValueError
        If a variant is unknown, the level is out of range, or a proportion has
        moments that are not of 0 and 1.

    References
    ----------
    Hadad, Hirshberg, Zhan, Wager and Athey (2021), Confidence intervals for policy
    evaluation in adaptive experiments, PNAS 118(15), for scores and weights h.
    """
    check_level(level)
    pair = weigh(
        epochs,
        kind=kind,
        treatment=treatment,
        control=control,
        minimum_effective_sample_size=minimum_effective_sample_size,
    )
    return contrast_of(pair, kind=kind, level=level)


def contrast_of(
    pair: WeightedPair | Withheld, *, kind: MetricKind, level: float
) -> Estimate:
    """Return the interval of `contrast` from what `weigh` returned."""
    if isinstance(pair, Withheld):
        return pair
    estimate = pair.treatment.value - pair.control.value
    if kind == "proportion":
        if not (0 <= pair.treatment.value <= 1 and 0 <= pair.control.value <= 1):
            return Withheld(reason=_OUTSIDE, overlap=pair.overlap)
        low, high = _score_limits(pair, level)
    else:
        half = _normal_quantile(level) * math.sqrt(pair.variance())
        low, high = estimate - half, estimate + half
    return Interval(
        estimate=estimate,
        low=low,
        high=high,
        level=level,
        method=_method(kind),
        validity=_FIXED_END,
        overlap=pair.overlap,
    )


def contrast_sequence(
    epochs: Sequence[EpochMoments],
    *,
    kind: MetricKind,
    treatment: str,
    control: str,
    level: float = 0.95,
    planned_units: float,
    minimum_effective_sample_size: float = MINIMUM_EFFECTIVE_SAMPLE_SIZE,
) -> Estimate:
    """Interval for treatment - control that holds at every look at once.

    The estimate of `contrast`. The scores are martingale differences, and the weights
    h make their variance grow evenly with the units of all variants, the clock of
    the sequence.

    Parameters
    ----------
    planned_units : float
        Units of all variants together at which the interval is narrowest; to be
        chosen before the data.
    epochs, kind, treatment, control, level, minimum_effective_sample_size
        As for `contrast`.

    References
    ----------
    Waudby-Smith et al. (2024), arXiv 2103.06476, proposition 2.5 (martingale dependence);
    Liang and Bojinov (2023), arXiv 2311.05794, for bandits.
    """
    check_level(level)
    pair = weigh(
        epochs,
        kind=kind,
        treatment=treatment,
        control=control,
        minimum_effective_sample_size=minimum_effective_sample_size,
    )
    return sequence_of(pair, planned_units=planned_units, level=level)


def sequence_of(
    pair: WeightedPair | Withheld, *, planned_units: float, level: float
) -> Estimate:
    """Return the interval of `contrast_sequence` from what `weigh` returned."""
    if isinstance(pair, Withheld):
        return pair
    half = half_width(
        math.sqrt(pair.variance()), pair.units, planned_units=planned_units, level=level
    )
    estimate = pair.treatment.value - pair.control.value
    return Interval(
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        level=level,
        method="AIPW, asymptotic confidence sequence",
        validity=_ANY_TIME,
        overlap=pair.overlap,
    )


def contrast_lift(
    epochs: Sequence[EpochMoments],
    *,
    kind: MetricKind,
    treatment: str,
    control: str,
    level: float = 0.95,
    minimum_effective_sample_size: float = MINIMUM_EFFECTIVE_SAMPLE_SIZE,
) -> Estimate:
    """Interval for treatment / control - 1 at a planned end, made on the log scale.

    Parameters are those of `contrast`. Withheld also unless both values are positive.
    """
    check_level(level)
    pair = weigh(
        epochs,
        kind=kind,
        treatment=treatment,
        control=control,
        minimum_effective_sample_size=minimum_effective_sample_size,
    )
    if isinstance(pair, Withheld):
        return pair
    e1, e0 = pair.treatment.value, pair.control.value
    if e1 <= 0 or e0 <= 0:
        return Withheld(
            reason="A lift needs a positive value in both variants.",
            overlap=pair.overlap,
        )
    log_ratio = math.log(e1) - math.log(e0)
    if kind == "proportion":
        if max(e1, e0) > 1:
            return Withheld(reason=_OUTSIDE, overlap=pair.overlap)
        low, high = _score_limits(pair, level, scale=math.log)
    else:
        half = _normal_quantile(level) * math.sqrt(pair.variance(1 / e1, 1 / e0))
        low, high = log_ratio - half, log_ratio + half
    return lift_interval(
        (log_ratio, low, high),
        level=level,
        method=f"{_method(kind)}, log scale",
        validity=_FIXED_END_LIFT,
        overlap=pair.overlap,
    )


def _method(kind: MetricKind) -> str:
    return "AIPW, Wilson limits" if kind == "proportion" else "AIPW"


def _score_limits(
    pair: WeightedPair,
    level: float,
    scale: Callable[[float], float] = lambda rate: rate,
) -> tuple[float, float]:
    """Limits of a difference of scaled rates: Wilson at the effective sizes, combined."""
    arms = (pair.treatment, pair.control)
    model = math.fsum(arm.value * (1 - arm.value) / arm.size for arm in arms)
    # Above 1 when rates drift between epochs, which binomial variance does not know.
    inflation = max(1.0, pair.realised_variance() / model) if model > 0 else 1.0
    treated, controlled = (
        wilson_limits(arm.value, arm.size / inflation, level=level) for arm in arms
    )
    return combine_limits(
        (scale(pair.treatment.value), scale(treated[0]), scale(treated[1])),
        (scale(pair.control.value), scale(controlled[0]), scale(controlled[1])),
    )


def _normal_quantile(level: float) -> float:
    return float(stats.norm.isf((1 - level) / 2))
