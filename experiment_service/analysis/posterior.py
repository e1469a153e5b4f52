"""Beta posterior densities on a common grid, for charts."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

# Mass left out at each end of the grid.
_TAIL = 5e-4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PosteriorDensity:
    """Densities of the rates of K variants.

    Attributes
    ----------
    rate : ndarray, shape (points,)
        Rising grid inside (0, 1) that holds all but 0.1 % of every posterior.
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
