"""P-values by duality with the intervals shown, and their correction for many tests.

A p-value here is the smallest alpha at which the interval of level 1 - alpha excludes
0, so a p-value and its interval never disagree, and that of a confidence sequence is
valid at any time, as the sequence is.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from experiment_service.analysis.interval import Estimate, Withheld

#: The smallest p-value told; below it levels differ from 1 by rounding.
SMALLEST = 1e-10

# Stands for no limits, where a root search needs a number.
_EVERYTHING = 1e300

Correction = Literal["holm", "benjamini_hochberg"]

_Key = TypeVar("_Key")


def p_value(interval_at: Callable[[float], Estimate]) -> float | Withheld:
    """Return the smallest alpha at which the interval of level 1 - alpha excludes 0.

    Parameters
    ----------
    interval_at : callable
        Returns the interval of a difference at a level; nested in it.

    Returns
    -------
    float or Withheld
        In [1e-10, 1]; what the interval says when it is withheld at every level. One
        that is withheld at high levels only, as Fieller's, holds everything there.

    References
    ----------
    Johari, Pekelis and Walsh (2015), Always valid inference, section 3 (duality).
    """
    narrow, wide = interval_at(0.5), interval_at(1 - SMALLEST)
    if isinstance(narrow, Withheld):
        return narrow
    if _distance(wide) > 0:
        return SMALLEST
    low = math.log(0.5)
    if _distance(narrow) <= 0:
        # Not even at one half: look between there and no confidence at all.
        low, high = math.log(1 - 1e-6), low
        if _distance(interval_at(1e-6)) <= 0:
            return 1.0
    else:
        high = math.log(SMALLEST)
    alpha = optimize.brentq(
        lambda log_alpha: _distance(interval_at(-math.expm1(log_alpha))),
        high,
        low,
        xtol=1e-12,
        rtol=1e-10,
    )
    return float(math.exp(alpha))


def _distance(interval: Estimate) -> float:
    """How far 0 is outside the interval; negative inside."""
    if isinstance(interval, Withheld):
        return -_EVERYTHING
    return max(interval.low, -interval.high)


def corrected(
    p_values: Mapping[_Key, float], correction: Correction
) -> dict[_Key, float]:
    """Return p-values corrected for being many.

    Parameters
    ----------
    p_values : mapping to float, in [0, 1]
        One for each test of the family, such as variants times metrics.
    correction : {"holm", "benjamini_hochberg"}
        Holm bounds the chance of any false finding, whatever the dependence;
        Benjamini-Hochberg the expected share of false findings among all found.

    Raises
    ------
    ValueError
        When a p-value is not in [0, 1].

    References
    ----------
    Holm (1979), A simple sequentially rejective multiple test procedure.
    Benjamini and Hochberg (1995), Controlling the false discovery rate.
    """
    for key, value in p_values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"p-value of {key!r} is {value}; it must lie in 0 to 1")
    if not p_values:
        return {}
    values = np.fromiter(p_values.values(), dtype=np.float64)
    # Not by statsmodels, whose function collects garbage first: 0.1 s of each report.
    adjusted = (
        _holm(values) if correction == "holm" else stats.false_discovery_control(values)
    )
    return {key: float(value) for key, value in zip(p_values, adjusted, strict=True)}


def _holm(values: NDArray[np.float64]) -> NDArray[np.float64]:
    order = values.argsort()
    steps = values[order] * np.arange(values.size, 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
