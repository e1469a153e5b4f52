"""The exact probability that an arm is the best one, for independent Beta posteriors.

P_i = integral of f_i(z) prod_{j != i} F_j(z) dz by Gauss-Legendre panels over
z = logit(rate), where a posterior of any size is one smooth hump about log(a/b). Owns
the accuracy: its sum is checked, never repaired. Knows no policy.
"""

from typing import Final

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import ArrayLike
from scipy import special

from policies.base import SUM_TOLERANCE, FloatArray, check_all

#: Range of alpha and beta that the accuracy was shown for.
SMALLEST_PARAMETER: Final = 0.1
LARGEST_PARAMETER: Final = 1e12

_NODES = 16
# Width of a panel in units of the narrowest posterior that still matters there.
_PANEL_WIDTH = 1.25
# Half a range, in standard deviations and in exponents of the tails e^(a z), e^(-b z):
# beyond it a posterior has less than 1e-17 of its mass.
_DEVIATIONS, _EXPONENT = 9.0, 40.0
# Beyond this many widths from its centre a posterior needs only growing panels.
_TAIL_FROM, _TAIL_GROWTH = 4.0, 0.25


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
    a, b = _checked(alpha, beta)
    if lower_is_better:
        # 1 - Beta(a, b) is Beta(b, a), and the smallest rate has the largest 1 - rate.
        a, b = b, a
    centre, deviation = np.log(a / b), np.sqrt(1 / a + 1 / b)
    # Below the start one arm's F, and with it every product, is nil.
    start = (centre - _DEVIATIONS * deviation - _EXPONENT / a).max()
    ends = centre + _DEVIATIONS * deviation + _EXPONENT / b
    can_win = ends > start
    edges = _panel_edges(start, ends[can_win], centre[can_win], deviation[can_win])
    best = np.zeros(a.size)
    best[can_win] = _integrate(a[can_win], b[can_win], edges)
    total = float(best.sum())
    if not abs(total - 1) < SUM_TOLERANCE:
        raise RuntimeError(
            f"probabilities of {a.size} arms to be the best sum to {total!r}; they "
            "must sum to 1 within 1e-9, so these are not to be used"
        )
    # The rounding of a certain winner may lie above 1, which no probability does.
    return np.minimum(best, 1.0)


def _checked(alpha: ArrayLike, beta: ArrayLike) -> tuple[FloatArray, FloatArray]:
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
    return a, b


def _panel_edges(
    start: float, ends: FloatArray, centre: FloatArray, deviation: FloatArray
) -> FloatArray:
    """Return rising edges of panels that resolve every arm from start to its end.

    Every arm that can win reaches back to the start, so at each place the arms that
    matter are those that have not ended. The logistic function has poles at
    +-i pi: above a width of 1 they, not the deviation, limit a panel.
    """
    width = np.minimum(deviation, 1.0)
    edges = [start]
    while edges[-1] < ends.max():
        matters = ends > edges[-1]
        distance = np.abs(edges[-1] - centre[matters]) / width[matters]
        growth = 1 + _TAIL_GROWTH * np.maximum(distance - _TAIL_FROM, 0)
        edges.append(edges[-1] + _PANEL_WIDTH * (width[matters] * growth).min())
    return np.array(edges)


def _integrate(a: FloatArray, b: FloatArray, edges: FloatArray) -> FloatArray:
    half = np.diff(edges) / 2
    z = (edges[:-1] + half)[:, np.newaxis] + half[:, np.newaxis] * _POINTS
    density = _density(a, b, z.ravel())
    cumulative = _cumulative(a, b, density, edges)
    # Products over the others by running products from both sides: a division by
    # the arm's own F would be 0 / 0 where F underflows.
    ones = np.ones((1, z.size))
    before = np.cumprod(np.concatenate([ones, cumulative[:-1]]), axis=0)
    after = np.cumprod(np.concatenate([ones, cumulative[:0:-1]]), axis=0)[::-1]
    weights = (half[:, np.newaxis] * _WEIGHTS).ravel()
    result: FloatArray = (density * before * after) @ weights
    return result


def _density(a: FloatArray, b: FloatArray, z: FloatArray) -> FloatArray:
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
    log_peak += _stirling_error(n) - _stirling_error(a) - _stirling_error(b)
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
    direct = special.gammaln(x) - (x - 0.5) * np.log(x) + x - 0.5 * np.log(2 * np.pi)
    error: FloatArray = np.where(x >= 15.0, series / x_large, direct)
    return error


def _cumulative(
    a: FloatArray, b: FloatArray, density: FloatArray, edges: FloatArray
) -> FloatArray:
    """Return F at the nodes: exact at the first edge, then the density's integral.

    betainc at every node is as accurate and 5 to 50 times as slow. An arm whose density
    the panels do not resolve does not reach F = 1, and the sum of P shows it.
    """
    half = np.diff(edges) / 2
    panels = density.reshape(a.size, half.size, _NODES)
    start = edges[0]
    # The smaller of x and 1 - x, so that no digit of it is lost.
    tail = special.expit(-abs(start))
    first = special.betaincc(b, a, tail) if start > 0 else special.betainc(a, b, tail)
    at_edge = np.cumsum((panels @ _WEIGHTS) * half, axis=1)
    at_edge = first[:, np.newaxis] + np.pad(at_edge[:, :-1], ((0, 0), (1, 0)))
    inside = (panels @ _PARTIAL_WEIGHTS.T) * half[:, np.newaxis]
    values = (at_edge[:, :, np.newaxis] + inside).reshape(density.shape)
    # Where F is nil its rounding may be below 0.
    cumulative: FloatArray = np.maximum(values, 0.0)
    return cumulative


def _partial_weights(points: FloatArray, weights: FloatArray) -> FloatArray:
    """Return W with (W g)_i = integral from -1 to point i of the polynomial through g.

    Expands in Legendre polynomials and integrates each by
    (2k + 1) integral of P_k = P_{k+1} - P_{k-1}.
    """
    size = points.size
    values = legendre.legvander(points, size)
    order = np.arange(size)
    integrals = np.empty((size, size))
    integrals[:, 0] = points + 1
    integrals[:, 1:] = (values[:, 2:] - values[:, :-2]) / (2 * order[1:] + 1)
    expand = values[:, :size] * weights[:, np.newaxis] * (order + 0.5)
    return integrals @ expand.T


_POINTS, _WEIGHTS = legendre.leggauss(_NODES)
_PARTIAL_WEIGHTS = _partial_weights(_POINTS, _WEIGHTS)
