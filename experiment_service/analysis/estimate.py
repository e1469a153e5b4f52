"""Intervals for fixed weights and one look at a planned end.

`arm`, `difference` and `lift` choose the method by the kind of the metric: those of
`proportion`, Student and Welch for means, the delta method for ratios, that of
`fieller` where a denominator is weak. Watched
experiments need `sequential`, moving weights `adaptive`.
"""

import math

from scipy import stats

from experiment_service.analysis.fieller import WEAK, fieller_lift, fieller_ratio
from experiment_service.analysis.interval import (
    NO_SPREAD,
    ONE_LOOK,
    Estimate,
    Interval,
    Withheld,
    check_level,
    lift_interval,
)
from experiment_service.analysis.moments import Moments, successes_of
from experiment_service.analysis.proportion import (
    combine_limits,
    newcombe,
    proportion_lift,
    wilson,
)
from experiment_service.domain.metric import MetricKind

_MANY_UNITS = f"{ONE_LOOK}, and enough units for their mean to be nearly normal."


def arm(kind: MetricKind, moments: Moments, *, level: float = 0.95) -> Estimate:
    """Interval for one variant: Wilson, Student or delta method, by kind."""
    match kind:
        case "proportion":
            return wilson(*successes_of(moments), level=level)
        case "mean":
            return student(moments, level=level)
        case "ratio":
            return delta(moments, level=level)


def difference(
    kind: MetricKind, treatment: Moments, control: Moments, *, level: float = 0.95
) -> Estimate:
    """Interval for treatment - control: Newcombe, Welch or delta method, by kind."""
    match kind:
        case "proportion":
            s1, n1 = successes_of(treatment)
            return newcombe(s1, n1, *successes_of(control), level=level)
        case "mean":
            return welch(treatment, control, level=level)
        case "ratio":
            return delta_difference(treatment, control, level=level)


def lift(
    kind: MetricKind, treatment: Moments, control: Moments, *, level: float = 0.95
) -> Estimate:
    """Interval for treatment / control - 1, for every kind of metric.

    Made on the log scale, but by Fieller's limits when the mean or ratio of the control
    is within `fieller.WEAK` standard errors of 0. Withheld unless both values are
    positive, and when the control can't be told from 0.
    """
    if kind == "proportion":
        s1, n1 = successes_of(treatment)
        return proportion_lift(s1, n1, *successes_of(control), level=level)
    summary = _mean_summary if kind == "mean" else _ratio_summary
    return _student_lift(summary(treatment), summary(control), level, weak=WEAK)


def log_scale_lift(
    kind: MetricKind, treatment: Moments, control: Moments, *, level: float = 0.95
) -> Estimate:
    """Interval of `lift` by the delta method on the log scale, however weak the control.

    For a control that is weak it covers too much when units are nearly normal, and too
    little when few of them carry most of the value (docs/calibration.md).
    """
    summary = _ratio_summary if kind == "ratio" else _mean_summary
    return _student_lift(summary(treatment), summary(control), level, weak=0.0)


def student(moments: Moments, *, level: float = 0.95) -> Estimate:
    """Student interval for the mean of y.

    Withheld below 2 units, or when all values are equal.
    """
    return _student_arm(_mean_summary(moments), level, "Student t")


def welch(treatment: Moments, control: Moments, *, level: float = 0.95) -> Estimate:
    """Welch interval for the difference of means of y, treatment - control.

    Withheld when a variant has fewer than 2 units, or all values are equal.

    References
    ----------
    Welch (1947), The generalization of Student's problem, with Satterthwaite's
    degrees of freedom.
    """
    return _student_difference(
        _mean_summary(treatment), _mean_summary(control), level, "Welch t"
    )


def delta(moments: Moments, *, level: float = 0.95) -> Estimate:
    """Delta-method interval for the ratio sum y / sum x, units being the clusters.

    By Fieller's limits instead when the mean of x is above 0 but within `fieller.WEAK`
    standard errors of it. Withheld below 2 units, when the sum of x is 0, when all
    ratios are equal, or when x can't be told from 0.

    References
    ----------
    Deng, Knoblich and Lu (2018), Applying the delta method in metric analytics.
    """
    check_level(level)
    if _weak_denominator(moments):
        return _fieller(moments, level)
    return _student_arm(_ratio_summary(moments), level, "Delta method")


def delta_difference(
    treatment: Moments, control: Moments, *, level: float = 0.95
) -> Estimate:
    """Delta-method interval for a difference of ratios, treatment - control.

    Satterthwaite's degrees of freedom, as for `welch`. When the denominator of either is
    weak, their limits by `delta` are combined instead. Withheld as `delta`.

    References
    ----------
    Zou and Donner (2008), Construction of confidence limits about effect measures: a
    general approach, for the combination.
    """
    check_level(level)
    if not (_weak_denominator(treatment) or _weak_denominator(control)):
        return _student_difference(
            _ratio_summary(treatment), _ratio_summary(control), level, "Delta method"
        )
    limits = []
    for each in (treatment, control):
        own = delta(each, level=level)
        if isinstance(own, Withheld):
            return own
        limits.append((own.estimate, own.low, own.high))
    one, other = limits
    low, high = combine_limits(one, other)
    return Interval(
        estimate=one[0] - other[0],
        low=low,
        high=high,
        level=level,
        method="Fieller, limits combined",
        validity=_MANY_UNITS,
    )


def _weak_denominator(moments: Moments) -> bool:
    """Whether the mean of x is above 0, but within `WEAK` standard errors of it."""
    if moments.n < 2 or moments.sum_x <= 0 or moments.ratio_variance == 0:
        return False
    x = moments.swapped
    return x.mean < WEAK * math.sqrt(x.variance / x.n)


def _fieller(moments: Moments, level: float) -> Estimate:
    n, x = moments.n, moments.swapped
    return fieller_ratio(
        (moments.mean, moments.variance / n),
        (x.mean, x.variance / n),
        (moments.sum_xy - n * moments.mean * x.mean) / (n - 1) / n,
        quantile=float(stats.t.isf((1 - level) / 2, n - 1)),
        level=level,
        validity=_MANY_UNITS,
    )


# (estimate, variance of the estimate, degrees of freedom), or why there is none.
_Summary = tuple[float, float, float] | Withheld


def _mean_summary(moments: Moments) -> _Summary:
    if moments.n < 2:
        return Withheld(reason="An interval needs at least 2 units in each variant.")
    return moments.mean, moments.variance / moments.n, moments.n - 1


def _ratio_summary(moments: Moments) -> _Summary:
    if moments.n < 2:
        return Withheld(reason="An interval needs at least 2 units in each variant.")
    if moments.sum_x == 0:
        return Withheld(reason="The denominator of the ratio is 0 in a variant.")
    return moments.ratio, moments.ratio_variance, moments.n - 1


def _student_arm(summary: _Summary, level: float, method: str) -> Estimate:
    check_level(level)
    if isinstance(summary, Withheld):
        return summary
    estimate, variance, df = summary
    if variance == 0:
        return Withheld(reason=NO_SPREAD)
    half = float(stats.t.isf((1 - level) / 2, df)) * math.sqrt(variance)
    return _symmetric(estimate, half, level, method)


def _student_difference(
    treatment: _Summary, control: _Summary, level: float, method: str
) -> Estimate:
    check_level(level)
    if isinstance(treatment, Withheld):
        return treatment
    if isinstance(control, Withheld):
        return control
    half = _welch_half(treatment, control, level)
    if half == 0:
        return Withheld(reason=NO_SPREAD)
    return _symmetric(treatment[0] - control[0], half, level, method)


def _student_lift(
    treatment: _Summary, control: _Summary, level: float, *, weak: float
) -> Estimate:
    """Lift by Fieller where the control is within `weak` standard errors of 0."""
    check_level(level)
    if isinstance(treatment, Withheld):
        return treatment
    if isinstance(control, Withheld):
        return control
    if treatment[0] <= 0 or control[0] <= 0:
        return Withheld(reason="A lift needs a positive value in both variants.")
    logs = [(math.log(e), v / e / e, df) for e, v, df in (treatment, control)]
    half = _welch_half(logs[0], logs[1], level)
    if half == 0:
        return Withheld(reason=NO_SPREAD)
    if control[0] < weak * math.sqrt(control[1]):
        return fieller_lift(
            treatment[:2],
            control[:2],
            # Satterthwaite's degrees of freedom are the same as for the logarithms.
            quantile=half / math.sqrt(logs[0][1] + logs[1][1]),
            level=level,
            validity=_MANY_UNITS,
        )
    log_ratio = logs[0][0] - logs[1][0]
    return lift_interval(
        (log_ratio, log_ratio - half, log_ratio + half),
        level=level,
        method="Delta method, log scale",
        validity=_MANY_UNITS,
    )


def _welch_half(
    treatment: tuple[float, float, float],
    control: tuple[float, float, float],
    level: float,
) -> float:
    (_, v1, df1), (_, v0, df0) = treatment, control
    variance = v1 + v0
    if variance == 0:
        return 0.0
    # Shares instead of squares: tiny variances would underflow.
    share = v1 / variance
    df = 1 / (share * share / df1 + (1 - share) * (1 - share) / df0)
    return float(stats.t.isf((1 - level) / 2, df)) * math.sqrt(variance)


def _symmetric(estimate: float, half: float, level: float, method: str) -> Interval:
    return Interval(
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        level=level,
        method=method,
        validity=_MANY_UNITS,
    )
