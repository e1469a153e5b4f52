"""The value of each arm and its uncertainty, from sums of any kind of reward.

A mean is the sum of rewards over units, a ratio the sum of rewards over the sum of
bases; the variance of both is that of y - r x per unit (for a mean x = 1).
"""

from dataclasses import dataclass

import numpy as np

from policies.base import ArmStatistics, FloatArray

# A sum of squared deviations this small against the raw sum of squares is rounding.
_CANCELLATION = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArmValues:
    """Values of K arms, and of all of them pooled.

    Attributes
    ----------
    value, variance : float64 array, shape (K,)
        Mean or ratio of each arm, and variance of one unit's y - r x over the squared
        mean base; 0 where the arm has no units (value) or fewer than 2 (variance).
    pooled_value, pooled_variance : float
        The same of all units together; 0 when there are none.
    """

    value: FloatArray
    variance: FloatArray
    pooled_value: float
    pooled_variance: float


def arm_values(statistics: ArmStatistics) -> ArmValues:
    """Return the value of each arm and the variance of a unit about it.

    Raises
    ------
    ValueError
        When a sum of bases is negative, or all units of an arm with rewards have base
        0, so that there is no ratio.

    References
    ----------
    Deng, A., Knoblich, U. and Lu, J. (2018). Applying the delta method in metric
    analytics, KDD.
    """
    n, y, yy = (
        statistics.units,
        statistics.reward_sum,
        statistics.reward_sum_squares,
    )
    x, xx, xy = n, n, y
    if statistics.base_sum is not None:
        x, xx, xy = (
            np.asarray(each)
            for each in (
                statistics.base_sum,
                statistics.base_sum_squares,
                statistics.reward_base_sum,
            )
        )
    impossible = (x < 0) | ((x == 0) & (y != 0))
    if impossible.any():
        arm = int(np.argmax(impossible))
        raise ValueError(
            f"base_sum of arm {arm} is {x[arm]} beside a reward_sum of {y[arm]}; a "
            "ratio needs a base above 0 where there are rewards"
        )
    sums = np.array([n, y, yy, x, xx, xy])
    value, variance = _moments(sums)
    pooled_value, pooled_variance = _moments(sums.sum(axis=1, keepdims=True))
    return ArmValues(
        value=value,
        variance=variance,
        pooled_value=float(pooled_value[0]),
        pooled_variance=float(pooled_variance[0]),
    )


def _moments(sums: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return value and variance from n, y, yy, x, xx, xy, shape (6, K)."""
    n, y, yy, x, xx, xy = sums
    zero = np.zeros_like(n)
    value = np.divide(y, x, out=zero.copy(), where=x > 0)
    squares = yy - 2 * value * xy + value * value * xx
    squares[squares < _CANCELLATION * (yy + value * value * xx)] = 0.0
    base = np.divide(x, n, out=zero.copy(), where=n > 0)
    spread = (n > 1) & (base > 0)
    # Weighted units may be worth 1.01: never divide by less than half of them.
    degrees = np.maximum(n - 1, n / 2)
    per_unit = np.divide(squares, degrees, out=zero.copy(), where=spread)
    variance = np.divide(per_unit, base * base, out=zero.copy(), where=spread)
    return value, variance
