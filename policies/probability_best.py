"""The exact probability that an arm is the best one, or of any rank.

P_i = integral of f_i(z) prod_{j != i} F_j(z) dz for independent posteriors; rank r asks
that exactly r - 1 others are above. Owns the accuracy: every sum is checked, never
repaired. Knows no policy.
"""

import numpy as np
from numpy.typing import ArrayLike

from policies.base import SUM_TOLERANCE, FloatArray
from policies.posteriors import BetaPosteriors, NormalPosteriors, Posteriors
from policies.quadrature import all_others_below, nodes, others_above, panel_edges


def probability_best(
    alpha: ArrayLike, beta: ArrayLike, *, lower_is_better: bool = False
) -> FloatArray:
    """Return the probability of each arm that its rate is the best of all.

    Parameters
    ----------
    alpha, beta : array_like, shape (K,), 0.1 to 1e12
        The rate of arm i is Beta(alpha_i, beta_i), independent of the others; K >= 1.
    lower_is_better : bool
        The best rate is the smallest one.

    Returns
    -------
    float64 array, shape (K,)
        Probabilities, absolute error below 1e-9 (in practice 1e-11); their sum is 1
        within 1e-9. 0 where the chance is below 1e-16. Never nan.

    Raises
    ------
    ValueError
        If shapes differ, K is 0, or a parameter is out of its range.
    RuntimeError
        If the probabilities do not sum to 1 within 1e-9, so the quadrature failed.

    Notes
    -----
    Nodes are few because only arms that can still win are integrated, and because
    panels are as narrow as the narrowest of those arms asks for at that place: 112 to
    some 1,000, the latter for arms of very different size.

    References
    ----------
    Scott, S. L. (2010). A modern Bayesian look at the multi-armed bandit. Applied
    Stochastic Models in Business and Industry 26, 639-658 (the integral).
    """
    return _best(BetaPosteriors.checked(alpha, beta, lower_is_better=lower_is_better))


def probability_best_normal(
    mean: ArrayLike, deviation: ArrayLike, *, lower_is_better: bool = False
) -> FloatArray:
    """Return the probability of each arm that its mean is the best of all.

    Parameters
    ----------
    mean, deviation : array_like, shape (K,)
        The value of arm i is normal with this mean and standard deviation > 0,
        independent of the others; deviations differ by at most 1e8 times.
    lower_is_better : bool
        The best value is the smallest one.

    Returns
    -------
    float64 array, shape (K,)
        As `probability_best`.

    Raises
    ------
    ValueError, RuntimeError
        As `probability_best`.
    """
    return _best(
        NormalPosteriors.checked(mean, deviation, lower_is_better=lower_is_better)
    )


def rank_probabilities(
    alpha: ArrayLike, beta: ArrayLike, *, ranks: int, lower_is_better: bool = False
) -> FloatArray:
    """Return the probability of each arm to have rank 1 (the best), 2, ... `ranks`.

    What a carousel of that many places needs that shows the arms in the order of one
    draw from their posteriors: the chance of each arm at each place.

    Parameters
    ----------
    alpha, beta : array_like, shape (K,), 0.1 to 1e12
        As for `probability_best`.
    ranks : int, 1 to K

    Returns
    -------
    float64 array, shape (ranks, K)
        Each row sums to 1 within 1e-9.

    Raises
    ------
    ValueError, RuntimeError
        As `probability_best`; also when there are not so many arms.
    """
    return _ranks(
        BetaPosteriors.checked(alpha, beta, lower_is_better=lower_is_better), ranks
    )


def rank_probabilities_normal(
    mean: ArrayLike, deviation: ArrayLike, *, ranks: int, lower_is_better: bool = False
) -> FloatArray:
    """Return what `rank_probabilities` returns, for normal posteriors."""
    return _ranks(
        NormalPosteriors.checked(mean, deviation, lower_is_better=lower_is_better),
        ranks,
    )


def _best(posteriors: Posteriors) -> FloatArray:
    # Below the start one arm's F, and with it every product, is nil.
    starts, ends = posteriors.starts, posteriors.ends
    start = float(starts.max())
    can_win = ends > start
    able = posteriors if can_win.all() else posteriors.of(can_win)
    edges = panel_edges(start, able.ends, able.centre, able.width)
    z, weights = nodes(edges)
    density, below = able.at(z, edges)
    best = np.zeros(starts.size)
    best[can_win] = (density * all_others_below(below)) @ weights
    _check_sum(best, "the best")
    # The rounding of a certain winner may lie above 1, which no probability does.
    return np.minimum(best, 1.0)


def _ranks(posteriors: Posteriors, ranks: int) -> FloatArray:
    starts, ends = posteriors.starts, posteriors.ends
    if not 1 <= ranks <= starts.size:
        raise ValueError(
            f"ranks is {ranks}; of {starts.size} arms it must lie in 1 to {starts.size}"
        )
    # Below the start so many F are nil that more than `ranks` - 1 others are above.
    start = float(np.sort(starts)[-ranks])
    matters = ends > start
    able = posteriors.of(matters)
    edges = panel_edges(start, able.ends, able.centre, able.width)
    z, weights = nodes(edges)
    density, below = able.at(z, edges)
    result = np.zeros((ranks, starts.size))
    result[:, matters] = (density * others_above(below, ranks)) @ weights
    for rank, row in enumerate(result, start=1):
        _check_sum(row, f"of rank {rank}")
    return np.clip(result, 0.0, 1.0)


def _check_sum(probabilities: FloatArray, what: str) -> None:
    total = float(probabilities.sum())
    if not abs(total - 1) < SUM_TOLERANCE:
        raise RuntimeError(
            f"probabilities of {probabilities.size} arms to be {what} sum to "
            f"{total!r}; they must sum to 1 within 1e-9, so these are not to be used"
        )
