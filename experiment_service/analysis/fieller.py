"""Fieller's limits of a quotient, for denominators that are near 0.

The delta method takes the denominator as nearly known. Where it is not, Fieller asks of
each value whether numerator - value x denominator can be 0. The answer is an interval
while the denominator can be told from 0; otherwise a half line, or every value.
"""

import math

from experiment_service.analysis.interval import Estimate, Interval, Withheld

#: A denominator within so many standard errors of 0 is weak. At the level 0.95 that is
#: Finney's g = (t SE / denominator)^2 of 0.05, under which Fieller's limits and those of
#: the delta method differ by a few percent.
WEAK = 9.0


def fieller_limits(
    numerator: tuple[float, float],
    denominator: tuple[float, float],
    *,
    covariance: float = 0.0,
    quantile: float,
) -> tuple[float | None, float | None]:
    """Limits of numerator / denominator; None is no limit on that side.

    The values v with (numerator - v denominator)^2 <= quantile^2 var(numerator - v
    denominator). With g = quantile^2 var(denominator) / denominator^2 they are an
    interval for g < 1. Else they are all values but a stretch, or all: a lower limit
    alone is returned when the stretch begins at or below 0, so that of the values above
    0 only those from there on are left.

    Parameters
    ----------
    numerator, denominator : tuple of float
        Estimate and its variance; the denominator is > 0.
    covariance : float
        Of the two estimates.
    quantile : float, > 0
        Of Student or the normal distribution, two-sided.

    References
    ----------
    Fieller (1954), Some problems in interval estimation, JRSS B 16(2); Finney (1978),
    Statistical method in biological assay, for g.
    """
    (top, top_variance), (bottom, bottom_variance) = numerator, denominator
    value = top / bottom
    a, b, c = (
        each / bottom / bottom for each in (top_variance, bottom_variance, covariance)
    )
    squared = quantile * quantile
    # The roots of lead v^2 - 2 middle v + last = 0.
    lead, middle, last = 1 - squared * b, value - squared * c, value**2 - squared * a
    inner = a - 2 * value * c + value**2 * b - squared * (a * b - c * c)
    if inner <= 0 and lead <= 0:
        return None, None
    root = quantile * math.sqrt(max(inner, 0.0))
    far = middle + math.copysign(root, middle)
    if far == 0:
        return (0.0, 0.0) if lead > 0 else (None, None)
    near = last / far
    other = far / lead if lead else -math.copysign(math.inf, far)
    low, high = min(near, other), max(near, other)
    if lead > 0:
        low, high = min(low, value), max(high, value)
        return low, high if math.isfinite(high) else None
    return (high, None) if low <= 0 < high <= value else (None, None)


def fieller_lift(
    treatment: tuple[float, float],
    control: tuple[float, float],
    *,
    quantile: float,
    level: float,
    validity: str,
) -> Estimate:
    """Fieller's interval for treatment / control - 1, of independent values > 0.

    Parameters
    ----------
    treatment, control : tuple of float
        Value and its variance.
    quantile, level, validity
        Two-sided quantile at the level, and what is told of the interval.

    Returns
    -------
    Interval or Withheld
        Withheld when the control can't be told from 0: then with the lower limit, if
        there is one.
    """
    low, high = fieller_limits(treatment, control, quantile=quantile)
    if low is not None and high is not None:
        return Interval(
            estimate=treatment[0] / control[0] - 1,
            low=low - 1,
            high=high - 1,
            level=level,
            method="Fieller",
            validity=validity,
        )
    if low is None:
        return Withheld(
            reason="The control can't be told from 0, so the lift could be anything."
        )
    return Withheld(
        reason="The control can't be told from 0, so the lift has no upper limit; it is "
        f"at least {low - 1:+.1%}."
    )


def fieller_ratio(
    numerator: tuple[float, float],
    denominator: tuple[float, float],
    covariance: float,
    *,
    quantile: float,
    level: float,
    validity: str,
) -> Estimate:
    """Fieller's interval for a ratio of two means over the same units.

    Parameters
    ----------
    numerator, denominator : tuple of float
        Mean and its variance; the denominator is > 0.
    covariance : float
        Of the two means.
    quantile, level, validity
        As for `fieller_lift`.

    Returns
    -------
    Interval or Withheld
        Withheld when the denominator can't be told from 0.
    """
    low, high = fieller_limits(
        numerator, denominator, covariance=covariance, quantile=quantile
    )
    if low is not None and high is not None:
        return Interval(
            estimate=numerator[0] / denominator[0],
            low=low,
            high=high,
            level=level,
            method="Fieller",
            validity=validity,
        )
    return Withheld(
        reason="The denominator can't be told from 0, so the ratio could be anything."
    )
