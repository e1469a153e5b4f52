"""What every policy gets and gives: statistics of arms in, shares of traffic out.

An arm is a variant by its index. A policy is a pure function of sufficient statistics,
so the same rows give the same weights whenever and wherever they are recomputed. Knows
no experiment, no database, no clock.
"""

import math
import reprlib
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: What a unit's reward is: 0 or 1, a number, or a sum over a base of the unit's own.
RewardKind = Literal["proportion", "mean", "ratio"]

#: How far a sum of weights may be from 1; rounding and quadrature stay far below it.
SUM_TOLERANCE = 1e-9

_SUMS = ("units", "reward_sum", "reward_sum_squares")
_BASE_SUMS = ("base_sum", "base_sum_squares", "reward_base_sum")
_NOT_NEGATIVE = ("units", "reward_sum_squares", "base_sum_squares")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArmStatistics:
    """Sufficient statistics of K arms; those of separate units add by ``+``.

    Attributes
    ----------
    units : float64 array, shape (K,) or (S, K), >= 0
        Units whose reward is known, per arm, or per segment and arm. Need not be
        whole: units of a log may be weighted, and old ones discounted.
    reward_sum, reward_sum_squares : float64 array, shape of units
        Sums of the rewards of those units, and of their squares.
    base_sum, base_sum_squares, reward_base_sum : float64 array, shape of units, or None
        Of a ratio (such as clicks per exposure) the sums of the units' denominators,
        of their squares, and of rewards times denominators. None when the value of an
        arm is its mean reward per unit.
    lower_is_better : bool
        The best arm has the smallest value.

    Raises
    ------
    ValueError
        If the arrays are not of one shape (K,) or (S, K) with K >= 1, a value is not
        finite, units or a sum of squares are negative, or only some of the three sums
        of the base are given.

    Notes
    -----
    The arrays are read-only copies of what was given.
    """

    units: FloatArray
    reward_sum: FloatArray
    reward_sum_squares: FloatArray
    base_sum: FloatArray | None = None
    base_sum_squares: FloatArray | None = None
    reward_base_sum: FloatArray | None = None
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        given = [name for name in _BASE_SUMS if getattr(self, name) is not None]
        if given and len(given) < len(_BASE_SUMS):
            raise ValueError(
                f"of the sums of the base only {', '.join(given)} is given; a ratio "
                f"needs {', '.join(_BASE_SUMS)}"
            )
        for name in (*_SUMS, *given):
            values = np.array(getattr(self, name), dtype=np.float64)
            if (
                values.ndim not in (1, 2)
                or values.size < 1
                or values.shape != np.shape(self.units)
            ):
                raise ValueError(
                    f"{name} has shape {values.shape} beside units of shape "
                    f"{np.shape(self.units)}; both must be (K,) or (S, K) with K >= 1 "
                    "arms"
                )
            check_all(name, values, np.isfinite(values), "it must be finite")
            if name in _NOT_NEGATIVE and values.min() < 0:
                check_all(name, values, values >= 0, "it must be >= 0")
            values.flags.writeable = False
            object.__setattr__(self, name, values)

    @property
    def arms(self) -> int:
        """The number of arms, K."""
        return int(self.units.shape[-1])

    @property
    def segments(self) -> int | None:
        """The number of segments, S; None when the arrays have shape (K,)."""
        return int(self.units.shape[0]) if self.units.ndim == 2 else None

    def pooled(self) -> "ArmStatistics":
        """Return the statistics of all segments together, of shape (K,)."""
        if self.segments is None:
            return self
        sums = {
            name: getattr(self, name).sum(axis=0)
            for name in (*_SUMS, *_BASE_SUMS)
            if getattr(self, name) is not None
        }
        return ArmStatistics(**sums, lower_is_better=self.lower_is_better)

    def __add__(self, other: "ArmStatistics") -> "ArmStatistics":
        same = (
            self.units.shape == other.units.shape
            and self.lower_is_better == other.lower_is_better
            and (self.base_sum is None) == (other.base_sum is None)
        )
        if not same:
            raise ValueError(
                f"statistics of shape {self.units.shape} with lower_is_better "
                f"{self.lower_is_better} and of shape {other.units.shape} with "
                f"{other.lower_is_better} do not add; both must be the same, and both "
                "of a ratio or neither"
            )
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in (*_SUMS, *_BASE_SUMS)
            if getattr(self, name) is not None
        }
        return ArmStatistics(**sums, lower_is_better=self.lower_is_better)


class Policy(Protocol):
    """A rule that shares out traffic; a frozen dataclass of its parameters.

    Every parameter has a default and can be written as JSON, because an epoch keeps
    the parameters that its weights were computed with.

    Attributes
    ----------
    reward_kinds : tuple of str
        Kinds of reward that it can learn from.
    segmented : bool
        Whether it gives each segment weights of its own, from statistics of shape
        (S, K). Others know shape (K,) only.
    half_life : float or None
        Seconds after which a unit's reward counts half. Who reads the rewards
        multiplies each of a unit's sums by 0.5 ** (age at the cutoff / half_life); the
        policy sees the products. None: a reward never ages.
    """

    reward_kinds: ClassVar[tuple[RewardKind, ...]]
    segmented: ClassVar[bool]

    @property
    def half_life(self) -> float | None:
        """Seconds after which a unit's reward counts half; None: it never ages."""
        ...

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
        float64 array, shape of statistics.units
            Weights >= 0 that sum to 1 within 1e-9 over the arms.

        Raises
        ------
        ValueError
            If the policy cannot learn from such statistics.
        """
        ...


def check_all(name: str, values: FloatArray, passed: Mask, rule: str) -> None:
    """Refuse an array, by its first arm that breaks a rule.

    Raises
    ------
    ValueError
        Names the array, the arm (and segment), its value and the rule.
    """
    if passed.all():
        return
    place = np.unravel_index(int(np.argmin(passed)), passed.shape)
    where = f"arm {place[-1]}" + (f" in segment {place[0]}" if len(place) > 1 else "")
    raise ValueError(f"{name} of {where} is {values[place]}; {rule}")


def check_arms(statistics: ArmStatistics) -> None:
    """Refuse statistics per segment, for a policy that does not look at segments.

    Raises
    ------
    ValueError
        Names the shape.
    """
    if statistics.segments is not None:
        raise ValueError(
            f"units has shape {statistics.units.shape}; a policy that is not segmented "
            "takes shape (K,), the segments pooled"
        )


def check_proportion(statistics: ArmStatistics) -> None:
    """Refuse rewards that are not 0 or 1 for each unit, as far as sums can tell.

    Raises
    ------
    ValueError
        Names the sum, the arm, its value and the rule.
    """
    if statistics.base_sum is not None:
        raise ValueError(
            "base_sum is given, so the reward is a ratio; this policy takes a "
            "proportion, 0 or 1 for each unit"
        )
    rewards, units = statistics.reward_sum, statistics.units
    # Sums of fractional units round; a whole unit of slack would hide a mistake.
    slack = 1e-9 * (1 + units)
    check_all(
        "reward_sum",
        rewards,
        (rewards >= -slack) & (rewards <= units + slack),
        "of a proportion it must lie in 0 to the arm's units",
    )


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
