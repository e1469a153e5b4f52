"""Intervals for proportions: Wilson, Newcombe and Katz, and their parts.

For fixed weights and one look at a planned end. Never Wald: at rates of a few percent
it covers too little.
"""

import math

from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from experiment_service.analysis.interval import (
    NO_SPREAD,
    ONE_LOOK,
    Estimate,
    Interval,
    Withheld,
    check_counts,
    check_level,
    lift_interval,
)


def wilson(successes: float, n: float, *, level: float = 0.95) -> Estimate:
    """Wilson score interval for a proportion; withheld when n is 0.

    Parameters
    ----------
    successes, n : float
        Whole numbers, 0 <= successes <= n.
    level : float
        Coverage, in (0, 1).

    Raises
    ------
    ValueError
        If the counts or the level are out of range.

    References
    ----------
    Brown, Cai and DasGupta (2001), Interval estimation for a binomial proportion.
    """
    check_level(level)
    check_counts(successes, n)
    if n == 0:
        return Withheld(reason="There are no units yet.")
    rate = successes / n
    low, high = wilson_limits(rate, n, level=level)
    return Interval(
        estimate=rate,
        low=low,
        high=high,
        level=level,
        method="Wilson score",
        validity=f"{ONE_LOOK}.",
    )


def newcombe(
    successes1: float,
    n1: float,
    successes0: float,
    n0: float,
    *,
    level: float = 0.95,
) -> Estimate:
    """Newcombe's hybrid score interval for a difference of proportions.

    Parameters
    ----------
    successes1, n1 : float
        Of the treatment; whole numbers, 0 <= successes <= n.
    successes0, n0 : float
        Of the control, which is subtracted.
    level : float
        Coverage, in (0, 1).

    Returns
    -------
    Interval or Withheld
        Withheld when either variant has no units.

    Raises
    ------
    ValueError
        If the counts or the level are out of range.

    References
    ----------
    Newcombe (1998), Interval estimation for the difference between independent
    proportions, method 10.
    """
    check_level(level)
    check_counts(successes1, n1)
    check_counts(successes0, n0)
    if n1 == 0 or n0 == 0:
        return Withheld(reason="One of the two variants has no units yet.")
    p1, p0 = successes1 / n1, successes0 / n0
    low, high = combine_limits(
        (p1, *wilson_limits(p1, n1, level=level)),
        (p0, *wilson_limits(p0, n0, level=level)),
    )
    return Interval(
        estimate=p1 - p0,
        low=low,
        high=high,
        level=level,
        method="Newcombe hybrid score",
        validity=f"{ONE_LOOK}.",
    )


def proportion_lift(
    successes1: float,
    n1: float,
    successes0: float,
    n0: float,
    *,
    level: float = 0.95,
) -> Estimate:
    """Katz interval for the relative lift p1 / p0 - 1, made on the log scale.

    Parameters are those of `newcombe`. Withheld when a variant has no success, whose
    logarithm would be infinite, or when every unit of both is a success.

    References
    ----------
    Katz, Baptista, Azen and Pike (1978), Obtaining confidence intervals for the risk
    ratio in cohort studies.
    """
    check_level(level)
    check_counts(successes1, n1)
    check_counts(successes0, n0)
    if successes1 == 0 or successes0 == 0:
        return Withheld(reason="A lift needs at least one success in both variants.")
    variance = 1 / successes1 - 1 / n1 + 1 / successes0 - 1 / n0
    if variance <= 0:
        return Withheld(reason=NO_SPREAD)
    half = float(stats.norm.isf((1 - level) / 2)) * math.sqrt(variance)
    log_ratio = math.log(successes1 / n1) - math.log(successes0 / n0)
    return lift_interval(
        (log_ratio, log_ratio - half, log_ratio + half),
        level=level,
        method="Katz, log scale",
        validity=f"{ONE_LOOK}, and at least about 5 successes in each variant.",
    )


def wilson_limits(rate: float, n: float, *, level: float) -> tuple[float, float]:
    """Wilson limits of a rate in [0, 1] seen on n > 0 units.

    n may be an effective sample size, so it need not be whole. The limits hold the
    rate also after rounding.
    """
    low, high = proportion_confint(rate * n, n, alpha=1 - level, method="wilson")
    return min(max(float(low), 0.0), rate), max(min(float(high), 1.0), rate)


def combine_limits(
    treatment: tuple[float, float, float], control: tuple[float, float, float]
) -> tuple[float, float]:
    """Limits of a difference from those of its independent terms.

    Parameters
    ----------
    treatment, control : tuple of float
        Estimate, lower and upper limit of each.

    References
    ----------
    Zou and Donner (2008), Construction of confidence limits about effect measures:
    a general approach (MOVER).
    """
    estimate1, low1, high1 = treatment
    estimate0, low0, high0 = control
    middle = estimate1 - estimate0
    below = math.hypot(estimate1 - low1, high0 - estimate0)
    above = math.hypot(high1 - estimate1, estimate0 - low0)
    return middle - below, middle + above
