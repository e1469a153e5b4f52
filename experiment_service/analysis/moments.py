"""Moments: the additive sufficient statistics of one variant, and of one epoch.

They are all that crosses from the tables to the statistics, so days, epochs and
strata pool exactly by `+`. This module knows no interval and no metric.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from experiment_service.analysis.interval import check_counts

# Rounding allowed between sums that were accumulated in a different order.
_TOLERANCE = 1e-9
# A sum of squared deviations this small against the raw sum of squares is rounding.
_CANCELLATION = 1e-12
# Below about 1e-162 the square of a value is zero while the value is not.
_UNDERFLOW = 1e-150


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Count, sums, squares and cross product of (y, x) over units.

    A proportion or a mean has the value of the unit in y and x = 1. A ratio has
    the unit's numerator in y and its denominator in x.

    Attributes
    ----------
    n : float
        Number of units, a whole number >= 0.
    sum_y, sum_yy : float
        Sums of y and of y squared.
    sum_x, sum_xx : float
        Sums of x and of x squared.
    sum_xy : float
        Sum of x times y.

    Raises
    ------
    ValueError
        If a field is not finite, n is negative or broken, the sums of no units are
        not zero, or no real data can have these sums (Cauchy-Schwarz).
    """

    n: float
    sum_y: float
    sum_yy: float
    sum_x: float
    sum_xx: float
    sum_xy: float

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = float(getattr(self, name))
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}, must be finite")
            object.__setattr__(self, name, value)
        if self.n < 0 or self.n != math.floor(self.n):
            raise ValueError(f"n is {self.n}, must be a whole number >= 0")
        if self.sum_yy < 0 or self.sum_xx < 0:
            raise ValueError(
                f"sums of squares are {self.sum_yy} and {self.sum_xx}, must be >= 0"
            )
        if self.n == 0 and any(self.row):
            raise ValueError("n is 0, so every sum must be 0")
        self._check_cauchy_schwarz()

    def _check_cauchy_schwarz(self) -> None:
        slack = math.sqrt(self.n) * _UNDERFLOW
        one = math.sqrt(self.n) * (1 + _TOLERANCE)
        norm_y = math.sqrt(self.sum_yy) + slack
        norm_x = math.sqrt(self.sum_xx) + slack
        for name, value, bound in (
            ("sum_y", self.sum_y, one * norm_y),
            ("sum_x", self.sum_x, one * norm_x),
            ("sum_xy", self.sum_xy, norm_x * norm_y * (1 + _TOLERANCE)),
        ):
            if abs(value) > bound:
                raise ValueError(
                    f"{name} is {value}, but the squares allow at most {bound}"
                )

    def __add__(self, other: "Moments") -> "Moments":
        if other.n == 0:
            return self
        return Moments(
            n=self.n + other.n,
            sum_y=self.sum_y + other.sum_y,
            sum_yy=self.sum_yy + other.sum_yy,
            sum_x=self.sum_x + other.sum_x,
            sum_xx=self.sum_xx + other.sum_xx,
            sum_xy=self.sum_xy + other.sum_xy,
        )

    @classmethod
    @functools.cache
    def zero(cls) -> "Moments":
        """Return the moments of no units, the neutral element of `+`."""
        return cls(n=0, sum_y=0, sum_yy=0, sum_x=0, sum_xx=0, sum_xy=0)

    @classmethod
    def from_arrays(cls, y: ArrayLike, x: ArrayLike | None = None) -> "Moments":
        """Sum the values of units.

        Parameters
        ----------
        y : array_like, shape (n,)
            Value or numerator of each unit.
        x : array_like, shape (n,), optional
            Denominator of each unit; 1 when left out.

        Raises
        ------
        ValueError
            If the shapes are not one-dimensional and equal, or a sum is not finite.
        """
        ys = np.asarray(y, dtype=np.float64)
        xs = np.ones_like(ys) if x is None else np.asarray(x, dtype=np.float64)
        if ys.ndim != 1 or ys.shape != xs.shape:
            raise ValueError(
                f"y has shape {ys.shape} and x {xs.shape}, must be equal and (n,)"
            )
        return cls(
            n=ys.size,
            sum_y=float(ys.sum()),
            sum_yy=float(np.square(ys).sum()),
            sum_x=float(xs.sum()),
            sum_xx=float(np.square(xs).sum()),
            sum_xy=float((xs * ys).sum()),
        )

    @classmethod
    def from_counts(cls, successes: float, n: float) -> "Moments":
        """Return the moments of n units of which `successes` have y = 1, others 0."""
        return cls(
            n=n,
            sum_y=successes,
            sum_yy=successes,
            sum_x=n,
            sum_xx=n,
            sum_xy=successes,
        )

    @classmethod
    def from_row(cls, row: Iterable[float]) -> "Moments":
        """Return moments of n, sum_y, sum_yy, sum_x, sum_xx and sum_xy."""
        return cls(**dict(zip(cls.__slots__, row, strict=True)))

    @property
    def row(self) -> tuple[float, float, float, float, float, float]:
        """n, sum_y, sum_yy, sum_x, sum_xx and sum_xy."""
        return self.n, self.sum_y, self.sum_yy, self.sum_x, self.sum_xx, self.sum_xy

    @property
    def swapped(self) -> "Moments":
        """The moments of (x, y)."""
        return Moments(
            n=self.n,
            sum_y=self.sum_x,
            sum_yy=self.sum_xx,
            sum_x=self.sum_y,
            sum_xx=self.sum_yy,
            sum_xy=self.sum_xy,
        )

    @property
    def mean(self) -> float:
        """Mean of y. ValueError when n is 0."""
        if self.n == 0:
            raise ValueError("n is 0, a mean needs at least 1 unit")
        return self.sum_y / self.n

    @property
    def variance(self) -> float:
        """Variance of y with divisor n - 1. ValueError when n < 2.

        Exactly 0 when the spread is below rounding (coefficient of variation
        under about 1e-6), so that equal values are seen as equal.
        """
        if self.n < 2:
            raise ValueError(f"n is {self.n:g}, a variance needs at least 2 units")
        squares = self.sum_yy - self.sum_y * self.sum_y / self.n
        return _without_rounding(squares, self.sum_yy) / (self.n - 1)

    @property
    def ratio(self) -> float:
        """Sum of y over sum of x. ValueError when the sum of x is 0."""
        if self.sum_x == 0:
            raise ValueError("sum_x is 0, a ratio needs a denominator")
        return self.sum_y / self.sum_x

    @property
    def ratio_variance(self) -> float:
        """Delta-method variance of `ratio` as an estimator. ValueError when n < 2.

        With r the ratio, it is var(y - r x) / (n mean(x)^2) with divisor n - 1; for
        x = 1 that is `variance` / n.

        References
        ----------
        Deng, Knoblich and Lu (2018), Applying the delta method in metric analytics,
        KDD.
        """
        if self.n < 2:
            raise ValueError(f"n is {self.n:g}, a variance needs at least 2 units")
        r = self.ratio
        # The deviations y - r x sum to zero by construction: no centring is needed.
        squares = self.sum_yy - 2 * r * self.sum_xy + r * r * self.sum_xx
        scale = self.sum_yy + r * r * self.sum_xx
        mean_x = self.sum_x / self.n
        per_unit = _without_rounding(squares, scale) / (self.n - 1)
        return per_unit / mean_x / mean_x / self.n


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpochMoments:
    """What one epoch gave: the weights in force and the moments of each variant.

    Attributes
    ----------
    weights : mapping of str to float
        Probability of every variant of the experiment in this epoch; sums to 1.
    moments : mapping of str to Moments
        Of the units of the epoch, by variant; a missing variant had no units.
    segment : str or None
        The segment of the epoch that they are of, where each has its own weights.

    Raises
    ------
    ValueError
        If a weight is negative, they do not sum to 1, or a variant with moments has
        no weight.
    """

    weights: Mapping[str, float]
    moments: Mapping[str, Moments]
    segment: str | None = None

    def __post_init__(self) -> None:
        total = math.fsum(self.weights.values())
        if not abs(total - 1) < 1e-6 or min(self.weights.values()) < 0:
            raise ValueError(
                f"weights are {dict(self.weights)}, must be >= 0 and sum to 1"
            )
        unknown = sorted(self.moments.keys() - self.weights.keys())
        if unknown:
            raise ValueError(f"variants {unknown} have moments but no weight")

    @property
    def units(self) -> float:
        """Number of units of the epoch, over all variants."""
        return math.fsum(moments.n for moments in self.moments.values())


def successes_of(moments: Moments) -> tuple[float, float]:
    """Return (successes, n) of a proportion's moments.

    Raises
    ------
    ValueError
        If y is not 0 or 1 on each unit, as far as the sums can tell.
    """
    if moments.sum_y != moments.sum_yy:
        raise ValueError(
            f"sum_y is {moments.sum_y} and sum_yy {moments.sum_yy}: "
            "a proportion has y = 0 or 1, so they must be equal"
        )
    check_counts(moments.sum_y, moments.n)
    return moments.sum_y, moments.n


def _without_rounding(squares: float, scale: float) -> float:
    return squares if squares > _CANCELLATION * scale else 0.0
