"""The best of many scores, the same way every time."""

import numpy as np

from recommenders.interactions import FloatArray, IntArray


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
    width = min(k, m)
    columns = np.full((n, k), -1, dtype=np.int32)
    values = np.full((n, k), -np.inf, dtype=np.float32)
    parted = np.partition(scores, m - width, axis=1)[:, m - width :]
    # A partition puts nan last, among the best.
    if np.isnan(parted).any():
        raise ValueError("scores hold nan; every score must be a number or -inf")
    threshold = parted[:, :1]
    above, tied = scores > threshold, scores == threshold
    room = width - above.sum(axis=1, keepdims=True)
    chosen = above | (tied & (np.cumsum(tied, axis=1, dtype=np.int32) <= room))
    found = np.nonzero(chosen)[1].reshape(n, width)
    best = np.take_along_axis(scores, found, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    values[:, :width] = np.take_along_axis(best, order, axis=1)
    found = np.take_along_axis(found, order, axis=1)
    columns[:, :width] = np.where(np.isneginf(values[:, :width]), -1, found)
    return columns, values
