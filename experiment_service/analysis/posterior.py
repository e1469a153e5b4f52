"""Posterior densities on a common grid, for charts."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

# Mass left out at each end of the grid.
_TAIL = 5e-4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PosteriorDensity:
    """Densities of the rates (or means) of K variants.

    Attributes
    ----------
    rate : ndarray, shape (points,)
        Rising grid that holds all but 0.1 % of every posterior.
    density : ndarray, shape (K, points)
        Density per unit of rate, a row for each variant.
    """

    rate: NDArray[np.float64]
    density: NDArray[np.float64]


def beta_density(
    alpha: ArrayLike, beta: ArrayLike, *, points: int = 201
) -> PosteriorDensity:
    """Evaluate the densities of Beta(alpha, beta), one per variant.

    Parameters
    ----------
    alpha, beta : array_like, shape (K,)
        Parameters, > 0; K >= 1.
    points : int
        Number of grid points, >= 2.

    Raises
    ------
    ValueError
        If the shapes differ, K is 0, a parameter is not finite and > 0, or points < 2.
    """
    a = np.asarray(alpha, dtype=np.float64)
    b = np.asarray(beta, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(f"alpha has shape {a.shape}, beta {b.shape}, must be (K,)")
    if not (np.all((a > 0) & (a < np.inf)) and np.all((b > 0) & (b < np.inf))):
        raise ValueError(f"alpha is {a}, beta {b}, must be finite and > 0")
    if points < 2:
        raise ValueError(f"points is {points}, must be >= 2")
    edge = np.finfo(np.float64).eps
    low = max(float(stats.beta.ppf(_TAIL, a, b).min()), edge)
    high = min(float(stats.beta.isf(_TAIL, a, b).max()), 1 - edge)
    rate = np.linspace(low, high, points)
    return PosteriorDensity(
        rate=rate, density=stats.beta.pdf(rate, a[:, None], b[:, None])
    )


def normal_density(
    mean: ArrayLike, deviation: ArrayLike, *, points: int = 201
) -> PosteriorDensity:
    """Evaluate normal densities, one per variant.

    Parameters
    ----------
    mean, deviation : array_like, shape (K,)
        Finite, deviations > 0; K >= 1.
    points : int
        Number of grid points, >= 2.

    Raises
    ------
    ValueError
        If the shapes differ, K is 0, a parameter is out of range, or points < 2.
    """
    m = np.asarray(mean, dtype=np.float64)
    s = np.asarray(deviation, dtype=np.float64)
    if m.ndim != 1 or m.shape != s.shape or m.size == 0:
        raise ValueError(f"mean has shape {m.shape}, deviation {s.shape}, must be (K,)")
    if not (np.isfinite(m).all() and np.all((s > 0) & (s < np.inf))):
        raise ValueError(f"mean is {m}, deviation {s}, must be finite and s > 0")
    if points < 2:
        raise ValueError(f"points is {points}, must be >= 2")
    reach = float(stats.norm.isf(_TAIL))
    rate = np.linspace((m - reach * s).min(), (m + reach * s).max(), points)
    return PosteriorDensity(
        rate=rate, density=stats.norm.pdf(rate, m[:, None], s[:, None])
    )
