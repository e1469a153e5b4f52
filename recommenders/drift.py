"""Population stability index: how far two distributions lie apart, and by chance alone."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

#: A share that a group counts as at least.
LEAST_SHARE = 1e-4

#: Drift is told from chance at this level.
_LEVEL = 0.999


def stability_index(
    new: NDArray[np.float64], old: NDArray[np.float64], *, least: float = LEAST_SHARE
) -> float:
    """Return the population stability index ``sum (p - q) ln(p / q)``.

    The Jeffreys divergence: symmetric, and 0 for equal distributions.

    Parameters
    ----------
    new, old : float64 arrays, shape (groups,)
        Shares p and q.
    least : float
        What a group counts as at least, so that an empty one is not infinitely far off.

    References
    ----------
    Siddiqi (2006), Credit Risk Scorecards, chapter 9; up to 0.1 is commonly read as
    none, from 0.25 on as a shift, with no test behind it: see `stability_noise`.
    """
    p, q = np.maximum(new, least), np.maximum(old, least)
    return float(((p - q) * np.log(p / q)).sum())


def stability_noise(groups: int, new: float, old: float) -> float:
    """Return what the index exceeds once in a thousand when nothing has changed.

    For independent draws the index is near ``(1/m + 1/n)`` times a chi-squared variable
    of ``groups - 1`` degrees of freedom.

    Parameters
    ----------
    groups : int
        Number of groups, at least 1.
    new, old : float, > 0
        Independent draws on each side: units, as what one unit does is much alike.

    References
    ----------
    Yurdakul and Naranjo (2020), Statistical properties of the population stability
    index, Journal of Risk Model Validation.
    """
    quantile = float(stats.chi2.ppf(_LEVEL, groups - 1)) if groups > 1 else 0.0
    return quantile * (1 / new + 1 / old)
