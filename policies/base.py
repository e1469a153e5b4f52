"""What every policy gets and gives: statistics of arms in, shares of traffic out.

An arm is a variant by its index. A policy is a pure function of sufficient statistics,
so the same rows give the same weights whenever and wherever they are recomputed. Knows
no experiment, no database, no clock.
"""

import math
import reprlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

#: How far a sum of weights may be from 1; rounding and quadrature stay far below it.
SUM_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArmStatistics:
    """Sufficient statistics of K arms; those of separate units add by ``+``.

    Attributes
    ----------
    units : float64 array, shape (K,), >= 0
        Units whose reward is known.
    reward_sum, reward_sum_squares : float64 array, shape (K,)
        Sums of the rewards of those units, and of their squares.
    lower_is_better : bool
        The best arm has the smallest mean reward.

    Raises
    ------
    ValueError
        If the arrays are not one-dimensional and of one length >= 1, a value is not
        finite, or units or a sum of squares are negative.

    Notes
    -----
    The arrays are read-only copies of what was given.
    """

    units: FloatArray
    reward_sum: FloatArray
    reward_sum_squares: FloatArray
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        for name in ("units", "reward_sum", "reward_sum_squares"):
            values = np.array(getattr(self, name), dtype=np.float64)
            if (
                values.ndim != 1
                or values.size < 1
                or values.size != np.size(self.units)
            ):
                raise ValueError(
                    f"{name} has shape {values.shape} beside units of shape "
                    f"{np.shape(self.units)}; both must be (K,) with K >= 1 arms"
                )
            check_all(name, values, np.isfinite(values), "it must be finite")
            if name != "reward_sum":
                check_all(name, values, values >= 0, "it must be >= 0")
            values.flags.writeable = False
            object.__setattr__(self, name, values)

    @property
    def arms(self) -> int:
        """The number of arms, K."""
        return self.units.size

    def __add__(self, other: "ArmStatistics") -> "ArmStatistics":
        if self.arms != other.arms or self.lower_is_better != other.lower_is_better:
            raise ValueError(
                f"statistics of {self.arms} arms with lower_is_better "
                f"{self.lower_is_better} and of {other.arms} arms with "
                f"{other.lower_is_better} do not add; both must be the same"
            )
        return ArmStatistics(
            units=self.units + other.units,
            reward_sum=self.reward_sum + other.reward_sum,
            reward_sum_squares=self.reward_sum_squares + other.reward_sum_squares,
            lower_is_better=self.lower_is_better,
        )


class Policy(Protocol):
    """A rule that shares out traffic; a frozen dataclass of its parameters.

    Every parameter has a default and can be written as JSON, because an epoch keeps
    the parameters that its weights were computed with.
    """

    def allocate(
        self, statistics: ArmStatistics, rng: np.random.Generator
    ) -> FloatArray:
        """Return the share of traffic of each arm.

        Parameters
        ----------
        statistics : ArmStatistics
            Of K arms; all that the policy knows.
        rng : numpy.random.Generator
            The only randomness allowed: the same seed gives the same weights.

        Returns
        -------
        float64 array, shape (K,)
            Weights >= 0 that sum to 1 within 1e-9.

        Raises
        ------
        ValueError
            If the policy cannot learn from such statistics.
        """
        ...


def check_all(
    name: str, values: FloatArray, passed: NDArray[np.bool_], rule: str
) -> None:
    """Refuse an array, by its first arm that breaks a rule.

    Raises
    ------
    ValueError
        Names the array, the arm, its value and the rule.
    """
    if not passed.all():
        arm = int(np.argmin(passed))
        raise ValueError(f"{name} of arm {arm} is {values[arm]}; {rule}")


def check_number(name: str, value: object, *, low: float, high: float) -> float:
    """Return a parameter as a float if it is a number in [low, high].

    Raises
    ------
    ValueError
        Names the parameter, its value and the rule.
    """
    # bool is an int in Python, and `true` in JSON is no number.
    number = (
        value
        if isinstance(value, int | float) and not isinstance(value, bool)
        else math.nan
    )
    if not low <= number <= high:
        raise ValueError(
            f"{name} is {reprlib.repr(value)}; it must be a number, {low:g} to {high:g}"
        )
    return float(number)


def check_weights(name: str, weights: FloatArray) -> None:
    """Refuse weights that are not >= 0 or do not sum to 1 within 1e-9.

    Parameters
    ----------
    weights : float64 array, shape (K,)
        Share of each arm.

    Raises
    ------
    ValueError
        Names the array, what is wrong with it and the rule.
    """
    if weights.ndim != 1 or weights.size < 1:
        raise ValueError(
            f"{name} has shape {weights.shape}; it must be (K,) with K >= 1 arms"
        )
    check_all(name, weights, weights >= 0, "it must be a number >= 0")
    total = math.fsum(weights)
    if not abs(total - 1) <= SUM_TOLERANCE:
        raise ValueError(f"{name} sums to {total!r}; it must sum to 1 within 1e-9")
