"""Independent posteriors of the arms' values: Beta for rates, normal for means.

A family knows where its arms lie in a coordinate in which each is one smooth hump, its
densities and its distribution functions there. What is computed from them is in
`probability_best` and `stopping`.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from policies.base import FloatArray, Mask, check_all
from policies.quadrature import DEVIATIONS, cumulative

#: Range of alpha and beta that the accuracy was shown for.
SMALLEST_PARAMETER: Final = 0.1
LARGEST_PARAMETER: Final = 1e12
#: Largest ratio of two standard deviations, and largest size of a mean in the
#: smallest one, that the accuracy was shown for.
LARGEST_SPREAD: Final = 1e8

# Half a range in exponents of the tails e^(a z), e^(-b z) of a Beta in logits.
_EXPONENT = 40.0


class Posteriors(Protocol):
    """Posteriors of K arms in a coordinate z; larger z is better.

    Attributes
    ----------
    starts, ends, centre, width : float64 array, shape (K,)
        Where each has 1e-17 of its mass below or above, its centre, its width.
    mean : float64 array, shape (K,)
        Mean of the value of each arm.
    """

    @property
    def starts(self) -> FloatArray: ...  # noqa: D102 - named above
    @property
    def ends(self) -> FloatArray: ...  # noqa: D102
    @property
    def centre(self) -> FloatArray: ...  # noqa: D102
    @property
    def width(self) -> FloatArray: ...  # noqa: D102
    @property
    def mean(self) -> FloatArray: ...  # noqa: D102

    def of(self, arms: Mask) -> "Posteriors":
        """Return the posteriors of the arms that a mask of shape (K,) names."""
        ...

    def at(self, z: FloatArray, edges: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return densities and distribution functions at nodes, each (K, nodes)."""
        ...

    def value(self, z: FloatArray) -> FloatArray:
        """Return the values at places z."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BetaPosteriors:
    """Rates with independent Beta posteriors; z is the logit of the rate.

    Attributes
    ----------
    alpha, beta : float64 array, shape (K,), 0.1 to 1e12
    centre, width, starts, ends : float64 array, shape (K,)
        As of `Posteriors`.

    Raises
    ------
    ValueError
        If shapes differ, K is 0, or a parameter is out of its range.
    """

    alpha: FloatArray
    beta: FloatArray
    centre: FloatArray
    width: FloatArray
    starts: FloatArray
    ends: FloatArray

    @classmethod
    def checked(
        cls, alpha: ArrayLike, beta: ArrayLike, *, lower_is_better: bool
    ) -> "BetaPosteriors":
        """Return posteriors whose larger value is better.

        1 - Beta(a, b) is Beta(b, a), and the smallest rate has the largest 1 - rate.
        """
        a, b = (np.asarray(values, dtype=np.float64) for values in (alpha, beta))
        if a.ndim != 1 or a.size < 1 or a.shape != b.shape:
            raise ValueError(
                f"alpha has shape {a.shape} and beta {b.shape}; both must be (K,) with "
                "K >= 1 arms"
            )
        for name, values in (("alpha", a), ("beta", b)):
            inside = (values >= SMALLEST_PARAMETER) & (values <= LARGEST_PARAMETER)
            rule = f"it must lie in {SMALLEST_PARAMETER:g} to {LARGEST_PARAMETER:g}"
            check_all(name, values, inside, rule)
        if lower_is_better:
            a, b = b, a
        centre, deviation = np.log(a / b), np.sqrt(1 / a + 1 / b)
        reach = DEVIATIONS * deviation
        return cls(
            alpha=a,
            beta=b,
            centre=centre,
            # The logistic function has poles at +-i pi: above 1 they limit a panel.
            width=np.minimum(deviation, 1.0),
            starts=centre - reach - _EXPONENT / a,
            ends=centre + reach + _EXPONENT / b,
        )

    @property
    def mean(self) -> FloatArray:
        """Mean rate of each arm."""
        return self.alpha / (self.alpha + self.beta)

    def of(self, arms: Mask) -> "BetaPosteriors":
        """Return the posteriors of the arms that a mask names."""
        return BetaPosteriors(
            alpha=self.alpha[arms],
            beta=self.beta[arms],
            centre=self.centre[arms],
            width=self.width[arms],
            starts=self.starts[arms],
            ends=self.ends[arms],
        )

    def at(self, z: FloatArray, edges: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return densities and distribution functions at nodes.

        betainc at every node is as accurate and 5 to 50 times as slow as integrating
        the densities from the first edge.
        """
        density = _logit_density(self.alpha, self.beta, z)
        start = edges[0]
        # The smaller of x and 1 - x, so that no digit of it is lost.
        tail = special.expit(-abs(start))
        first = (
            special.betaincc(self.beta, self.alpha, tail)
            if start > 0
            else special.betainc(self.alpha, self.beta, tail)
        )
        return density, cumulative(first, density, edges)

    def value(self, z: FloatArray) -> FloatArray:
        """Return rates."""
        rates: FloatArray = special.expit(z)
        return rates


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NormalPosteriors:
    """Means with independent normal posteriors; z is the mean itself, scaled.

    Attributes
    ----------
    centre, width : float64 array, shape (K,)
        Means and standard deviations, in units of the smallest standard deviation and
        seen from the best mean.
    origin, unit : float
        What z was made with: value = origin + unit z.
    """

    centre: FloatArray
    width: FloatArray
    origin: float
    unit: float

    @classmethod
    def checked(
        cls, mean: ArrayLike, deviation: ArrayLike, *, lower_is_better: bool
    ) -> "NormalPosteriors":
        """Return posteriors whose larger value is better.

        Raises
        ------
        ValueError
            If shapes differ, K is 0, a value is not finite, a deviation is not above
            0, or the deviations differ by more than 1e8 times.
        """
        m, s = (np.asarray(values, dtype=np.float64) for values in (mean, deviation))
        if m.ndim != 1 or m.size < 1 or m.shape != s.shape:
            raise ValueError(
                f"mean has shape {m.shape} and deviation {s.shape}; both must be (K,) "
                "with K >= 1 arms"
            )
        check_all("mean", m, np.isfinite(m), "it must be finite")
        check_all("deviation", s, (s > 0) & np.isfinite(s), "it must be above 0")
        check_all(
            "deviation",
            s,
            s <= LARGEST_SPREAD * s.min(),
            f"it must be at most {LARGEST_SPREAD:g} times the smallest, {s.min()}",
        )
        m = -m if lower_is_better else m
        origin, unit = float(m.max()), float(s.min())
        return cls(centre=(m - origin) / unit, width=s / unit, origin=origin, unit=unit)

    @property
    def starts(self) -> FloatArray:
        """Below it the arm's F is nil."""
        return self.centre - DEVIATIONS * self.width

    @property
    def ends(self) -> FloatArray:
        """Above it 1 - F is nil."""
        return self.centre + DEVIATIONS * self.width

    @property
    def mean(self) -> FloatArray:
        """Mean of each arm."""
        return self.value(self.centre)

    def of(self, arms: Mask) -> "NormalPosteriors":
        """Return the posteriors of the arms that a mask names."""
        return NormalPosteriors(
            centre=self.centre[arms],
            width=self.width[arms],
            origin=self.origin,
            unit=self.unit,
        )

    def at(self, z: FloatArray, edges: FloatArray) -> tuple[FloatArray, FloatArray]:  # noqa: ARG002 - of the contract
        """Return densities and distribution functions at nodes."""
        distance = (z - self.centre[:, np.newaxis]) / self.width[:, np.newaxis]
        density = np.exp(-0.5 * distance * distance)
        density /= np.sqrt(2 * np.pi) * self.width[:, np.newaxis]
        return density, special.ndtr(distance)

    def value(self, z: FloatArray) -> FloatArray:
        """Return values in their own unit."""
        return self.origin + self.unit * z


def _logit_density(a: FloatArray, b: FloatArray, z: FloatArray) -> FloatArray:
    """Return the densities of logit(Beta(a, b)) at z, shape (K, nodes).

    Written as the density at the centre times exp(-deviance): the sum of
    a log x + b log(1-x) - log B(a, b) would lose 7 digits at 1e9 trials. With
    t = z - log(a/b), n = a + b and p = a/n the deviance is
    n log(1 + p (e^t - 1)) - a t; seen from the smaller of a and b nothing cancels.

    References
    ----------
    Loader, C. (2000). Fast and accurate computation of binomial probabilities.
    """
    n, smaller = a + b, np.minimum(a, b)
    t = z - np.log(a / b)[:, np.newaxis]
    t *= np.where(a <= b, 1.0, -1.0)[:, np.newaxis]
    deviance = n[:, np.newaxis] * np.log1p((smaller / n)[:, np.newaxis] * np.expm1(t))
    deviance -= smaller[:, np.newaxis] * t
    log_peak = 0.5 * np.log(a / (2 * np.pi) * (b / n))
    of_n, of_a, of_b = _stirling_error(np.array([n, a, b]))
    log_peak += of_n - of_a - of_b
    density: FloatArray = np.exp(log_peak[:, np.newaxis] - deviance)
    return density


def _stirling_error(x: FloatArray) -> FloatArray:
    """Return log Gamma(x) - ((x - 1/2) log x - x + log(2 pi) / 2).

    References
    ----------
    Abramowitz, M. and Stegun, I. A. (1964), 6.1.41, for x >= 15.
    """
    x_large = np.maximum(x, 15.0)
    y = x_large**-2
    series = 1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y / 1188)))
    if x.min() >= 15.0:
        return series / x_large
    direct = special.gammaln(x) - (x - 0.5) * np.log(x) + x - 0.5 * np.log(2 * np.pi)
    error: FloatArray = np.where(x >= 15.0, series / x_large, direct)
    return error
