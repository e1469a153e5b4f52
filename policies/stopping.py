"""When to stop a bandit: what is lost by choosing an arm now, and what is left to gain.

Exact, by the same quadrature as `probability_best`. Advice only: it decides nothing.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from policies.base import FloatArray, check_number
from policies.posteriors import BetaPosteriors, NormalPosteriors, Posteriors
from policies.probability_best import probability_best, probability_best_normal
from policies.quadrature import all_others_below, nodes, panel_edges


def expected_loss(
    alpha: ArrayLike, beta: ArrayLike, *, lower_is_better: bool = False
) -> FloatArray:
    """Return how much of the rate each arm is expected to lose against the best one.

    E[max_j theta_j - theta_i] for independent Beta posteriors, or E[theta_i - min].

    Parameters
    ----------
    alpha, beta : array_like, shape (K,), 0.1 to 1e12

    Returns
    -------
    float64 array, shape (K,)
        >= 0, absolute error below 1e-9.

    Raises
    ------
    ValueError
        As `probability_best`.

    References
    ----------
    Stucchio, C. (2015). Bayesian A/B testing at VWO, section 4 (expected loss).
    """
    return _loss(BetaPosteriors.checked(alpha, beta, lower_is_better=lower_is_better))


def expected_loss_normal(
    mean: ArrayLike, deviation: ArrayLike, *, lower_is_better: bool = False
) -> FloatArray:
    """Return what `expected_loss` returns, for normal posteriors, in their unit."""
    return _loss(
        NormalPosteriors.checked(mean, deviation, lower_is_better=lower_is_better)
    )


def value_remaining(
    alpha: ArrayLike,
    beta: ArrayLike,
    *,
    lower_is_better: bool = False,
    quantile: float = 0.95,
) -> float:
    """Return how much better than the leader the best arm may still be, relatively.

    The quantile of (theta_max - theta_L) / theta_L, or (theta_L - theta_min) / theta_L,
    with L the arm most probably best. An experiment may stop when it is below a share
    that matters, such as 0.01.

    Parameters
    ----------
    alpha, beta : array_like, shape (K,), 0.1 to 1e12
        Of independent Beta posteriors.
    quantile : float, 0.5 to 0.9999

    Returns
    -------
    float
        >= 0; 0 when the leader is the best with at least that probability.

    Raises
    ------
    ValueError
        As `probability_best`, or when the quantile is out of its range.

    References
    ----------
    Scott, S. L. (2010). A modern Bayesian look at the multi-armed bandit. Applied
    Stochastic Models in Business and Industry 26, 639-658, section 3.2.
    """
    quantile = check_number("quantile", quantile, low=0.5, high=0.9999)
    best = probability_best(alpha, beta, lower_is_better=lower_is_better)
    a, b = (np.asarray(values, dtype=np.float64) for values in (alpha, beta))
    leader = int(best.argmax())
    if best[leader] >= quantile:
        return 0.0
    all_arms = BetaPosteriors.checked(a, b, lower_is_better=False)
    own = all_arms.of(np.arange(a.size) == leader)
    others = np.arange(a.size) != leader
    ahead_of = special.betaincc if lower_is_better else special.betainc

    def beyond(gain: float) -> float:
        """Chance that no other arm is better by more than this, less the quantile."""
        factor = max(1 - gain, 0.0) if lower_is_better else 1 + gain

        def place(z: FloatArray) -> FloatArray:
            with np.errstate(divide="ignore"):
                rate = np.minimum(special.expit(z) / factor, 1.0)
            return np.asarray(special.logit(rate))

        z, edges, weights = _nodes_of(all_arms, leader, place)
        chance = own.at(z, edges)[0][0] * weights
        rate = np.minimum(own.value(z) * factor, 1.0)
        ahead = ahead_of(a[others, None], b[others, None], rate)
        return float(chance @ ahead.prod(axis=0)) - quantile

    top = 1.0
    while beyond(top) < 0:
        top *= 4
    return float(optimize.brentq(beyond, 0.0, top, xtol=1e-12, rtol=1e-10))


def value_remaining_normal(
    mean: ArrayLike,
    deviation: ArrayLike,
    *,
    lower_is_better: bool = False,
    quantile: float = 0.95,
) -> float:
    """Return how much better than the leader the best arm may still be, in its unit.

    The quantile of theta_max - theta_L for independent normal posteriors; a difference,
    as a mean may be 0 or below.

    Raises
    ------
    ValueError
        As `probability_best_normal`, or when the quantile is out of its range.
    """
    quantile = check_number("quantile", quantile, low=0.5, high=0.9999)
    best = probability_best_normal(mean, deviation, lower_is_better=lower_is_better)
    leader = int(best.argmax())
    if best[leader] >= quantile:
        return 0.0
    all_arms = NormalPosteriors.checked(
        mean, deviation, lower_is_better=lower_is_better
    )
    mine = np.arange(best.size) == leader
    own, others = all_arms.of(mine), all_arms.of(~mine)

    def beyond(gain: float) -> float:
        z, edges, weights = _nodes_of(
            all_arms, leader, lambda places: places - gain / all_arms.unit
        )
        chance = own.at(z, edges)[0][0] * weights
        _, below = others.at(z + gain / all_arms.unit, edges)
        return float(chance @ below.prod(axis=0)) - quantile

    top = all_arms.unit
    while beyond(top) < 0:
        top *= 4
    return float(optimize.brentq(beyond, 0.0, top, xtol=1e-12 * all_arms.unit))


def _nodes_of(
    posteriors: Posteriors, arm: int, place: Callable[[FloatArray], FloatArray]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return nodes, edges and weights over one arm's range that resolve all arms.

    Parameters
    ----------
    place : callable
        Says where what another arm does at z is met by this one.
    """
    start, end = float(posteriors.starts[arm]), float(posteriors.ends[arm])
    other = np.arange(posteriors.centre.size) != arm
    half = posteriors.width / 2
    centre = np.where(other, place(posteriors.centre), posteriors.centre)
    upper, lower = (place(posteriors.centre + each) for each in (half, -half))
    with np.errstate(invalid="ignore"):
        width = np.where(other, upper - lower, posteriors.width)
    ends = np.where(other, place(posteriors.ends), posteriors.ends)
    ends = np.clip(ends, None, end)
    # What lies beyond the end, or at infinity, is not met at all.
    matters = (ends > start) & np.isfinite(centre) & np.isfinite(width) & (width > 0)
    edges = panel_edges(start, ends[matters], centre[matters], width[matters])
    z, weights = nodes(edges)
    return z, edges, weights


def _loss(posteriors: Posteriors) -> FloatArray:
    starts, ends = posteriors.starts, posteriors.ends
    start = float(starts.max())
    matters = ends > start
    able = posteriors.of(matters)
    edges = panel_edges(start, able.ends, able.centre, able.width)
    z, weights = nodes(edges)
    density, below = able.at(z, edges)
    highest = float(
        ((density * all_others_below(below)).sum(axis=0) * weights)
        @ posteriors.value(z)
    )
    loss: FloatArray = np.maximum(highest - posteriors.mean, 0.0)
    return loss
