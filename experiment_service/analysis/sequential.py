"""Confidence sequences: intervals that hold at every look at once.

For dashboards that are watched all the time, and for the arms of a bandit, whose
number of units depends on the outcomes. The price against one planned look is 1.5 to
2.2 times the width.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import optimize, special

from experiment_service.analysis.interval import (
    NO_SPREAD,
    Estimate,
    Interval,
    Withheld,
    check_counts,
    check_level,
    lift_interval,
)
from experiment_service.analysis.moments import Moments, successes_of
from experiment_service.domain.metric import MetricKind

JEFFREYS = (0.5, 0.5)
# Before these the normal approximation fails at the first looks (docs/calibration.md).
MINIMUM_UNITS = 200
MINIMUM_EVENTS = 10

_RATE_VALID = (
    "Valid at every look and stopping time, also for a bandit's arm, if the rate does "
    "not change over time."
)
_MEAN_VALID = (
    "Valid at every look and stopping time in large samples, also for a bandit's arm, "
    "if the mean does not change over time."
)
_DIFFERENCE_VALID = (
    "Valid at every look and stopping time in large samples, if units are independent "
    "and the weights did not move."
)


def arm_sequence(
    kind: MetricKind, moments: Moments, *, level: float = 0.95, planned_units: float
) -> Estimate:
    """Any-time interval for one variant, also for the arm of a bandit.

    Parameters
    ----------
    kind : {"proportion", "mean", "ratio"}
        A proportion gets the exact `rate_sequence`, the others the asymptotic one.
    moments : Moments
        Of the variant's units; y is 0 or 1 for a proportion.
    level : float
        Coverage over all looks together, in (0, 1).
    planned_units : float
        Units of this variant at which a mean's or ratio's interval is narrowest; to
        be chosen before the data. A proportion needs no plan.

    Returns
    -------
    Interval or Withheld
        Withheld while there are too few units for the asymptotic interval.
    """
    if kind == "proportion":
        return rate_sequence(*successes_of(moments), level=level)
    reason = _too_few(kind, moments)
    if reason is not None:
        return Withheld(reason=reason)
    estimate, variance = _summary(kind, moments)
    if variance == 0:
        return Withheld(reason=NO_SPREAD)
    half = half_width(
        math.sqrt(variance), moments.n, planned_units=planned_units, level=level
    )
    return Interval(
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        level=level,
        method="Asymptotic confidence sequence",
        validity=_MEAN_VALID,
    )


def difference_sequence(
    kind: MetricKind,
    treatment: Moments,
    control: Moments,
    *,
    level: float = 0.95,
    planned_units: float,
) -> Estimate:
    """Any-time interval for treatment - control under fixed weights.

    The asymptotic confidence sequence for the mean of the influence function of the
    difference, whose variance over the n1 + n0 units is (n1 + n0) (v1/n1 + v0/n0).

    Parameters
    ----------
    kind : {"proportion", "mean", "ratio"}
        A ratio has its delta-method variance.
    treatment, control : Moments
        Of all units seen so far.
    level : float
        Coverage over all looks together, in (0, 1).
    planned_units : float
        Units of the two variants together at which the interval is narrowest; to be
        chosen before the data. Off by 10 times costs about a fifth of the width.

    Returns
    -------
    Interval or Withheld
        Withheld while a variant has too few units, or for a proportion too few
        successes or failures, for the asymptotic interval.

    References
    ----------
    Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024), Time-uniform central limit
    theory and asymptotic confidence sequences, arXiv 2103.06476, theorem 2.2 and
    its use for randomised experiments.
    """
    reason = _too_few(kind, treatment) or _too_few(kind, control)
    if reason is not None:
        return Withheld(reason=reason)
    (e1, v1), (e0, v0) = _summary(kind, treatment), _summary(kind, control)
    if v1 + v0 == 0:
        return Withheld(reason=NO_SPREAD)
    half = half_width(
        math.sqrt(v1 + v0),
        treatment.n + control.n,
        planned_units=planned_units,
        level=level,
    )
    return Interval(
        estimate=e1 - e0,
        low=e1 - e0 - half,
        high=e1 - e0 + half,
        level=level,
        method="Asymptotic confidence sequence",
        validity=_DIFFERENCE_VALID,
    )


def lift_sequence(
    kind: MetricKind,
    treatment: Moments,
    control: Moments,
    *,
    level: float = 0.95,
    planned_units: float,
) -> Estimate:
    """Any-time interval for treatment / control - 1, made on the log scale.

    Parameters, references and reasons to withhold are those of `difference_sequence`;
    withheld also unless both values are positive.
    """
    reason = _too_few(kind, treatment) or _too_few(kind, control)
    if reason is not None:
        return Withheld(reason=reason)
    (e1, v1), (e0, v0) = _summary(kind, treatment), _summary(kind, control)
    if e1 <= 0 or e0 <= 0:
        return Withheld(reason="A lift needs a positive value in both variants.")
    variance = v1 / e1 / e1 + v0 / e0 / e0
    if variance == 0:
        return Withheld(reason=NO_SPREAD)
    half = half_width(
        math.sqrt(variance),
        treatment.n + control.n,
        planned_units=planned_units,
        level=level,
    )
    log_ratio = math.log(e1) - math.log(e0)
    return lift_interval(
        (log_ratio, log_ratio - half, log_ratio + half),
        level=level,
        method="Asymptotic confidence sequence, log scale",
        validity=_DIFFERENCE_VALID,
    )


def rate_sequence(
    successes: float,
    n: float,
    *,
    level: float = 0.95,
    prior: tuple[float, float] = JEFFREYS,
) -> Estimate:
    """Beta-binomial mixture confidence sequence for a rate; exact, not asymptotic.

    With alpha = 1 - level it is the set of p at which
    B(s + a, n - s + b) / B(a, b) < p^s (1 - p)^(n - s) / alpha. It holds at every n at
    once, so adaptive sampling of an arm and stopping at will are covered.

    Parameters
    ----------
    successes, n : float
        Whole numbers, 0 <= successes <= n.
    level : float
        Coverage over all looks together, in (0, 1).
    prior : tuple of float
        (a, b), both > 0, fixed before the data. It moves the width only, never the
        coverage: a prior close to the true rate narrows, a wrong and strong one widens
        without bound, so the default is weak.

    Returns
    -------
    Interval or Withheld
        Withheld when n is 0. The estimate is successes / n.

    Raises
    ------
    ValueError
        If the counts, the level or the prior are out of range.

    References
    ----------
    Robbins (1970), Statistical methods related to the law of the iterated logarithm;
    Howard, Ramdas, McAuliffe and Sekhon (2021), Time-uniform, nonparametric,
    nonasymptotic confidence sequences, arXiv 1810.08240.
    """
    check_level(level)
    check_counts(successes, n)
    a, b = prior
    if not (0 < a < math.inf and 0 < b < math.inf):
        raise ValueError(f"prior is {prior}, both parameters must be > 0")
    if n == 0:
        return Withheld(reason="There are no units yet.")
    failures = n - successes
    log_mixture = float(special.betaln(successes + a, failures + b))
    log_bound = log_mixture - float(special.betaln(a, b)) + math.log1p(-level)

    def excess(logit: float) -> float:
        """Log of mixture over likelihood, less log 1 / alpha: below 0 is inside."""
        cost = successes * np.logaddexp(0, -logit) + failures * np.logaddexp(0, logit)
        return log_bound + float(cost)

    rate = successes / n
    low = special.expit(_crossing(excess, rate, direction=-1)) if successes else 0.0
    high = special.expit(_crossing(excess, rate, direction=1)) if failures else 1.0
    return Interval(
        estimate=rate,
        low=min(float(low), rate),
        high=max(float(high), rate),
        level=level,
        method="Beta-binomial confidence sequence",
        validity=_RATE_VALID,
    )


def half_width(
    standard_error: float, n: float, *, planned_units: float, level: float
) -> float:
    """Half width of the asymptotic confidence sequence of Gaussian mixtures.

    With sigma^2 = n standard_error^2 and rho^2 tuned to the planned number of units it
    is sigma sqrt(2 (n rho^2 + 1) / (n^2 rho^2) log(sqrt(n rho^2 + 1) / alpha)).

    Parameters
    ----------
    standard_error : float
        Of the estimate, >= 0; the result has its unit.
    n : float
        Units seen, >= 1.
    planned_units : float
        Units at which the interval is narrowest, >= 1.
    level : float
        Coverage over all looks together, in (0, 1).

    References
    ----------
    Waudby-Smith et al. (2024), arXiv 2103.06476, theorem 2.2.
    """
    n_rho2 = n * _tuning(level) / _check_plan(planned_units)
    log_term = 0.5 * math.log1p(n_rho2) - math.log1p(-level)
    return standard_error * math.sqrt(2 * (n_rho2 + 1) / n_rho2 * log_term)


def _tuning(level: float) -> float:
    """Return n rho^2 at which the half width is smallest at n.

    Setting the derivative in u = n rho^2 + 1 to 0 gives u - log u = 1 - 2 log alpha,
    so u = -W_{-1}(-alpha^2 / e).
    """
    check_level(level)
    alpha = 1 - level
    return float(-special.lambertw(-alpha * alpha / math.e, k=-1).real) - 1


def _check_plan(planned_units: float) -> float:
    if not 1 <= planned_units < math.inf:
        raise ValueError(f"planned_units is {planned_units}, must be finite and >= 1")
    return planned_units


def _too_few(kind: MetricKind, moments: Moments) -> str | None:
    if moments.n < MINIMUM_UNITS:
        return f"The any-time interval needs {MINIMUM_UNITS} units in each variant."
    if kind == "proportion":
        successes, n = successes_of(moments)
        if min(successes, n - successes) < MINIMUM_EVENTS:
            return (
                f"The any-time interval needs {MINIMUM_EVENTS} successes and "
                f"{MINIMUM_EVENTS} failures in each variant."
            )
    if kind == "ratio" and moments.sum_x == 0:
        return "The denominator of the ratio is 0 in a variant."
    return None


def _summary(kind: MetricKind, moments: Moments) -> tuple[float, float]:
    """Return the estimate and its variance."""
    if kind == "ratio":
        return moments.ratio, moments.ratio_variance
    return moments.mean, moments.variance / moments.n


def _crossing(
    excess: Callable[[float], float], rate: float, *, direction: int
) -> float:
    """Logit at which `excess` changes sign, below or above the rate."""
    inside = float(special.logit(rate))
    if math.isinf(inside):
        # At 0 or 1 successes the likelihood only approaches its maximum.
        inside = float(-direction)
        while excess(inside) >= 0:
            inside *= 2
    step = float(direction)
    while excess(inside + step) < 0:
        step *= 2
    return float(optimize.brentq(excess, inside, inside + step, xtol=1e-12))
