"""Integrals over the posteriors of several arms: panels, nodes, and who is above whom.

Gauss-Legendre panels as narrow as the narrowest posterior that still matters at a
place. Knows no family of distributions: it gets densities and distribution functions at
the nodes, in whatever coordinate they are smooth in.
"""

import math
from functools import cache
from typing import Final

import numpy as np
from numpy.polynomial import legendre

from policies.base import FloatArray

#: Half a range in standard deviations: beyond it a normal hump has under 1e-17.
DEVIATIONS: Final = 9.0

_NODES = 16
# Width of a panel in units of the narrowest posterior that still matters there.
_PANEL_WIDTH = 1.6
# Far from its centre a posterior needs only panels in proportion to the distance.
_TAIL_SHARE = 0.25


def panel_edges(
    start: float, ends: FloatArray, centre: FloatArray, width: FloatArray
) -> FloatArray:
    """Return rising edges of panels that resolve every arm from start to its end.

    Every arm that can win reaches back to the start, so at each place the arms that
    matter are those that have not ended.

    Parameters
    ----------
    start : float
        Where the integral begins.
    ends, centre, width : float64 array, shape (K,)
        Where each posterior has ended, its centre, and its width there.
    """
    # Plain floats: for some tens of arms they are several times as fast as arrays.
    arms = sorted(
        zip(ends.tolist(), centre.tolist(), width.tolist(), strict=True), reverse=True
    )
    edge, edges = start, [start]
    while arms:
        step = math.inf
        for _, middle, narrow in arms:
            tail = (edge - middle if edge > middle else middle - edge) * _TAIL_SHARE
            allowed = tail if tail > narrow else narrow  # noqa: FURB136 - 3 times as fast
            if allowed < step:  # noqa: PLR1730
                step = allowed
        edge += _PANEL_WIDTH * step
        edges.append(edge)
        while arms and arms[-1][0] <= edge:
            arms.pop()
    return np.array(edges)


def nodes(edges: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the nodes of all panels and their weights, each of shape (nodes,)."""
    points, weights, _ = _rule()
    half = (edges[1:, np.newaxis] - edges[:-1, np.newaxis]) / 2
    places = edges[:-1, np.newaxis] + half + half * points
    return places.ravel(), (half * weights).ravel()


def cumulative(first: FloatArray, density: FloatArray, edges: FloatArray) -> FloatArray:
    """Return distribution functions at the nodes, by integrating the densities.

    An arm whose density the panels do not resolve does not reach 1, and whoever sums
    probabilities sees it.

    Parameters
    ----------
    first : float64 array, shape (K,)
        The distribution functions at the first edge.
    density : float64 array, shape (K, nodes)
        The densities at the nodes.
    """
    _, _, partial = _rule()
    half = (edges[1:, np.newaxis] - edges[:-1, np.newaxis]) / 2
    # One matrix product for all panels; the last column integrates a whole panel.
    inside = density.reshape(-1, _NODES) @ partial
    inside = inside.reshape(first.size, half.size, _NODES + 1) * half
    at_edge = np.empty((first.size, half.size))
    at_edge[:, 0] = 0.0
    np.cumsum(inside[:, :-1, _NODES], axis=1, out=at_edge[:, 1:])
    at_edge += first[:, np.newaxis]
    values = (at_edge[:, :, np.newaxis] + inside[:, :, :_NODES]).reshape(density.shape)
    # Where F is nil its rounding may be below 0.
    result: FloatArray = np.maximum(values, 0.0)
    return result


def all_others_below(below: FloatArray) -> FloatArray:
    """Return for each arm and node the product of F over the other arms.

    By running products from both sides: a division by the arm's own F would be 0 / 0
    where F underflows.
    """
    before = np.ones_like(below)
    np.cumprod(below[:-1], axis=0, out=before[1:])
    after = np.cumprod(below[:0:-1], axis=0)[::-1]
    before[:-1] *= after
    return before


def others_above(below: FloatArray, count: int) -> FloatArray:
    """Return the chance that exactly 0, 1, ... of the other arms are above each node.

    Parameters
    ----------
    below : float64 array, shape (K, nodes)
        F of each arm.
    count : int
        How many numbers of arms, from 0.

    Returns
    -------
    float64 array, shape (count, K, nodes)

    Notes
    -----
    Poisson-binomial, by recursion from both sides and one convolution, so that no arm
    has to be divided out again. O(K count^2 nodes).
    """
    arms, places = below.shape
    before = np.zeros((arms, count, places))
    after = np.zeros((arms, count, places))
    before[0, 0] = after[-1, 0] = 1.0
    for arm in range(1, arms):
        before[arm] = _one_more(before[arm - 1], below[arm - 1])
        after[-arm - 1] = _one_more(after[-arm], below[-arm])
    result = np.zeros((count, arms, places))
    for number in range(count):
        for left in range(number + 1):
            result[number] += before[:, left] * after[:, number - left]
    return result


def _one_more(chances: FloatArray, below: FloatArray) -> FloatArray:
    result = chances * below
    result[1:] += chances[:-1] * (1 - below)
    return result


@cache
def _rule() -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return points, weights, and W with (g W)_i = integral from -1 to point i.

    The last column of W, of shape (nodes, nodes + 1), integrates up to 1.

    Expands in Legendre polynomials and integrates each by
    (2k + 1) integral of P_k = P_{k+1} - P_{k-1}.
    """
    points, weights = legendre.leggauss(_NODES)
    values = legendre.legvander(points, _NODES)
    order = np.arange(_NODES)
    integrals = np.empty((_NODES, _NODES))
    integrals[:, 0] = points + 1
    integrals[:, 1:] = (values[:, 2:] - values[:, :-2]) / (2 * order[1:] + 1)
    expand = values[:, :_NODES] * weights[:, np.newaxis] * (order + 0.5)
    partial = (integrals @ expand.T).T
    return points, weights, np.column_stack([partial, weights])
