"""Lists of neighbours: the few items that go with each item, and scores by them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recommenders.interactions import FloatArray, IntArray


def keep_best(likeness: csr_matrix, count: int) -> csr_matrix:
    """Keep the greatest entries of each row; of equal ones the lowest columns.

    Entries that are not greater than 0 are left out.
    """
    likeness = csr_matrix(likeness)
    likeness.sort_indices()
    rows = np.repeat(np.arange(likeness.shape[0]), np.diff(likeness.indptr))
    order = np.lexsort((likeness.indices, -likeness.data, rows))
    places = np.arange(rows.size) - likeness.indptr[rows[order]]
    kept = order[(places < count) & (likeness.data[order] > 0)]
    kept.sort()
    chosen = (likeness.data[kept], (rows[kept], likeness.indices[kept]))
    best = csr_matrix(chosen, shape=likeness.shape, dtype=np.float32)
    best.sort_indices()
    return best


def dense(scores: csr_matrix) -> FloatArray:
    """Fill in what is no neighbour of anything with -inf: it is never recommended."""
    filled: FloatArray = scores.toarray()
    filled[filled <= 0] = -np.inf
    return filled


def session_weights(
    sessions: IntArray, width: int, fade: NDArray[np.float32]
) -> csr_matrix:
    """Return how much each item of a session counts, shape (sessions, width).

    Parameters
    ----------
    sessions : int array, shape (n, length)
        Item rows, the latest last; -1 is none.
    fade : float32 array
        Weight of the latest item, of the one before it, and so on; items before those
        do not count. An item that comes twice counts for both.
    """
    given = sessions >= 0
    after = np.cumsum(given[:, ::-1], axis=1)[:, ::-1] - 1
    owners, places = np.nonzero(given & (after < fade.size))
    weights = fade[after[owners, places]]
    columns = sessions[owners, places]
    summed = csr_matrix((weights, (owners, columns)), shape=(len(sessions), width))
    summed.sum_duplicates()
    return summed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NeighbourScorer:
    """Scores by what a unit had, or just looked at, and the neighbours of each item.

    Attributes
    ----------
    weights : csr_matrix of float32, shape (units, items)
        How much each item counts for each unit.
    likeness : csr_matrix of float32, shape (items, items)
        How well the item of the column goes with that of the row; > 0 where stored.
    fade : float32 array
        How much the items of a session count, the latest first.
    """

    weights: csr_matrix
    likeness: csr_matrix
    fade: FloatArray

    def unit_scores(self, rows: IntArray) -> FloatArray:
        """Sum up the likeness to what the unit had."""
        return dense(self.weights[rows] @ self.likeness)

    def item_scores(self, rows: IntArray) -> FloatArray:
        """Return the likeness to the item."""
        return dense(self.likeness[rows])

    def session_scores(self, sessions: IntArray) -> FloatArray:
        """Sum up the likeness to the items of the session."""
        width = self.likeness.shape[0]
        return dense(session_weights(sessions, width, self.fade) @ self.likeness)
