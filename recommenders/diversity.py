"""Variety in lists: by likeness to the items above, or by a unit's own mix.

Both choose greedily, place by place, among candidates of which each has one category.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recommenders.base import Lists
from recommenders.interactions import IntArray

_Floats = NDArray[np.float64]

#: Likeness of two items of one department and different categories.
SAME_DEPARTMENT = 0.5

#: Part of a unit's mix that stands in for a category that a list lacks, as in the paper.
SMOOTHING = 0.01


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaximalMarginalRelevance:
    """Put next the item with the best ``balance s - (1 - balance) max likeness``.

    The maximum is over the items above; s are the scores of a list brought to [0, 1].
    Likeness is 1 in one category, `SAME_DEPARTMENT` in one department, else 0; items of
    unknown category or department are like no other.

    Attributes
    ----------
    categories, departments : int32 arrays, shape (items,)
        Numbers; -1 is not known.
    balance : float in [0, 1]
    candidates : int

    References
    ----------
    Carbonell and Goldstein (1998), The use of MMR, diversity-based reranking.
    """

    categories: IntArray
    departments: IntArray
    balance: float
    candidates: int

    def rerank(
        self,
        lists: Lists,
        k: int,
        units: IntArray,  # noqa: ARG002 - of the protocol
        seen: csr_matrix | None,  # noqa: ARG002 - of the protocol
    ) -> Lists:
        """Order the first k places anew."""
        relevance = self.balance * scaled(lists.scores)
        category = np.where(lists.items >= 0, self.categories[lists.items], -1)
        department = np.where(lists.items >= 0, self.departments[lists.items], -1)
        likeness = np.zeros(lists.items.shape)
        chosen = np.empty((len(relevance), min(k, relevance.shape[1])), dtype=np.intp)
        rows = np.arange(len(relevance))
        for place in range(chosen.shape[1]):
            value = relevance - (1 - self.balance) * likeness
            best = _first_best(value, lists, chosen[:, :place])
            chosen[:, place] = best
            same = _equal(category, category[rows, best])
            near = _equal(department, department[rows, best])
            likeness = np.maximum(likeness, np.where(same, 1.0, SAME_DEPARTMENT * near))
        return reordered(lists, chosen)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """Choose a list with ``(1 - weight) sum of s - weight KL(p, q)`` as high as can be.

    p is the unit's own mix of categories, q that of the list so far, smoothed with p so
    that the divergence is finite; s are the scores of a list brought to [0, 1].

    Attributes
    ----------
    mixes : csr_matrix of float64, shape (units + 1, categories)
        p of each unit, and of all together in the last row, for nobody in particular.
    categories : int32 array, shape (items,)
        Numbers; -1 is not known, and of no one's mix.
    weight : float in [0, 1]
    candidates : int

    References
    ----------
    Steck (2018), Calibrated recommendations, equations 2, 4, 6 and 7.
    """

    mixes: csr_matrix
    categories: IntArray
    weight: float
    candidates: int

    @classmethod
    def of_history(
        cls,
        weights: csr_matrix,
        categories: IntArray,
        *,
        weight: float,
        candidates: int,
    ) -> "Calibration":
        """Take each unit's mix from how much it had of each category."""
        return cls(
            mixes=category_mixes(weights, categories),
            categories=categories,
            weight=weight,
            candidates=candidates,
        )

    def rerank(
        self,
        lists: Lists,
        k: int,
        units: IntArray,
        seen: csr_matrix | None,  # noqa: ARG002 - of the protocol
    ) -> Lists:
        """Choose the first k places anew."""
        relevance = (1 - self.weight) * scaled(lists.scores)
        codes = np.where(lists.items >= 0, self.categories[lists.items], -1)
        # Only the categories of a list's candidates matter: the others never gain.
        mix = self._mix_of(units, codes)
        counts = np.zeros(codes.shape)
        chosen = np.empty((len(codes), min(k, codes.shape[1])), dtype=np.intp)
        rows = np.arange(len(codes))
        for place in range(chosen.shape[1]):
            gain = mix * (
                _log_smoothed(mix, counts + 1, place + 1)
                - _log_smoothed(mix, counts, place + 1)
            )
            value = relevance + self.weight * gain
            best = _first_best(value, lists, chosen[:, :place])
            chosen[:, place] = best
            counts += _equal(codes, codes[rows, best])
        return reordered(lists, chosen)

    def _mix_of(self, units: IntArray, codes: IntArray) -> _Floats:
        """Return p of the category of each candidate, 0 where it is not known."""
        mixes = self.mixes[units].toarray()
        shares = np.take_along_axis(mixes, np.maximum(codes, 0), axis=1)
        found: _Floats = np.where(codes >= 0, shares, 0.0)
        return found


def category_mixes(weights: csr_matrix, categories: IntArray) -> csr_matrix:
    """Return the share of each category in what each unit had, and in all, float64.

    Returns
    -------
    csr_matrix, shape (units + 1, categories)
        Rows sum to 1, or to 0 where no category is known; the last row is of all.
    """
    known = np.flatnonzero(categories >= 0)
    shape = (categories.size, int(categories.max(initial=0)) + 1)
    ones = np.ones(known.size)
    membership = csr_matrix((ones, (known, categories[known])), shape=shape)
    sums = csr_matrix(weights.astype(np.float64) @ membership)
    everything = csr_matrix(np.asarray(sums.sum(axis=0)))
    both = csr_matrix(
        (
            np.concatenate([sums.data, everything.data]),
            np.concatenate([sums.indices, everything.indices]),
            np.concatenate([sums.indptr, sums.indptr[-1] + everything.indptr[1:]]),
        ),
        shape=(sums.shape[0] + 1, shape[1]),
    )
    totals = np.asarray(both.sum(axis=1)).ravel()
    both.data /= np.repeat(totals, np.diff(both.indptr))
    return both


def scaled(scores: NDArray[np.float32]) -> _Floats:
    """Bring the finite scores of each row to [0, 1]; padding is 0, equal ones are 1."""
    finite = np.isfinite(scores)
    high = np.where(finite, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    low = np.where(finite, scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    span = np.where(high > low, high - low, 1.0).astype(np.float64)
    top = np.where(np.isfinite(high), high, 0.0)
    return np.where(finite, 1.0 - (top - np.where(finite, scores, top)) / span, 0.0)


def reordered(lists: Lists, chosen: NDArray[np.intp]) -> Lists:
    """Return lists with the chosen places first, the others after them as they were."""
    places = np.full(lists.items.shape, chosen.shape[1], dtype=np.intp)
    rows = np.arange(len(places))[:, np.newaxis]
    places[rows, chosen] = np.arange(chosen.shape[1])
    order = np.argsort(places, axis=1, kind="stable")
    return taken(lists, order)


def taken(lists: Lists, order: NDArray[np.intp]) -> Lists:
    """Return lists with their places in another order, shape of `order`."""
    return replace(
        lists,
        items=np.take_along_axis(lists.items, order, axis=1),
        scores=np.take_along_axis(lists.scores, order, axis=1),
        sources=np.take_along_axis(lists.sources, order, axis=1),
        propensities=np.take_along_axis(lists.propensities, order, axis=1),
    )


def _first_best(
    value: _Floats, lists: Lists, above: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Return the best candidate not taken yet; padding only when nothing else is left.

    Of equal values the first wins, which is the one with the better score.
    """
    value = np.where(lists.items >= 0, value, -1e300)
    value[np.arange(len(value))[:, np.newaxis], above] = -np.inf
    best: NDArray[np.intp] = value.argmax(axis=1)
    return best


def _equal(codes: IntArray, one: IntArray) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = (codes == one[:, np.newaxis]) & (codes >= 0)
    return same


def _log_smoothed(mix: _Floats, counts: _Floats, length: int) -> _Floats:
    smoothed = (1 - SMOOTHING) * counts / length + SMOOTHING * mix
    # Where the unit's share is 0 the gain is 0 whatever stands here.
    return np.log(np.where(smoothed > 0, smoothed, 1.0))
