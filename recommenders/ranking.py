"""The best of many scores, the same way every time."""

import numpy as np
from numpy.typing import NDArray

from recommenders.interactions import FloatArray, IntArray

# Groups of columns per score that is asked for, and how many times as many may be looked
# at more closely.
_GROUPS = 8
_CROWD = 4


def top_k(scores: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    """Return the columns of the k highest scores of each row, best first.

    Of equal scores the lowest column wins, also at the cut, which a partition alone
    does not promise.

    Parameters
    ----------
    scores : float32 array, shape (n, m)
        -inf means never; m >= 1.
    k : int, >= 1
        May be more than m.

    Returns
    -------
    columns : int32 array, shape (n, k)
        -1 where there are no more.
    values : float32 array, shape (n, k)
        -inf where there are no more.

    Raises
    ------
    ValueError
        When a score is nan.
    """
    n, m = scores.shape
    columns = np.full((n, k), -1, dtype=np.int32)
    values = np.full((n, k), -np.inf, dtype=np.float32)
    width = min(k, m)
    chosen = np.flatnonzero(_may_be_among(scores, width))
    rows, found = np.divmod(chosen, m)
    best = scores[rows, found]
    # Stable: of equal scores the lowest column stays first.
    order = np.lexsort((-best, rows))
    rows, found, best = rows[order], found[order], best[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, np.arange(n))[rows]
    kept = place < width
    columns[rows[kept], place[kept]] = found[kept]
    values[rows[kept], place[kept]] = best[kept]
    return columns, values


def _may_be_among(scores: FloatArray, width: int) -> NDArray[np.bool_]:
    """Mark few scores of each row, the best ones that are above -inf among them.

    The highest scores of groups of columns tell a bound that enough scores reach, without
    parting all of them.
    """
    heads = _heads(scores, width)
    if np.isnan(heads).any():
        raise ValueError("scores hold nan; every score must be a number or -inf")
    least = np.partition(heads, heads.shape[1] - width, axis=1)[:, -width, np.newaxis]
    marked: NDArray[np.bool_] = scores >= least
    crowded = np.count_nonzero(marked, axis=1) > _CROWD * width
    for row in np.flatnonzero(crowded | np.isneginf(least[:, 0])):
        bound = least[row, 0]
        marked[row] = scores[row] > bound
        missing = width - np.count_nonzero(marked[row])
        if missing > 0 and bound > -np.inf:
            marked[row, np.flatnonzero(scores[row] == bound)[:missing]] = True
    return marked


def _heads(scores: FloatArray, width: int) -> FloatArray:
    """Return the highest scores of groups of columns, many times `width` of them."""
    m = scores.shape[1]
    groups = min(m, _GROUPS * width)
    heads = scores[:, :groups].copy()
    for start in range(groups, m, groups):
        part = scores[:, start : start + groups]
        some = heads[:, : part.shape[1]]
        np.maximum(some, part, out=some)
    return heads
