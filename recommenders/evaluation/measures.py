"""Measures of lists, one number for each list, as arrays in and arrays out.

`found` says which places of a list hold an item that was to be found, `relevant` how
many such items there are; both as of one unit a row. Lists are padded with -1.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recommenders.interactions import IntArray

_Floats = NDArray[np.float64]
_Bools = NDArray[np.bool_]
_Counts = NDArray[np.integer]

#: As in `diversity.SMOOTHING`: a list that lacks a category is not infinitely far off.
_SMOOTHING = 0.01


def precision(found: _Bools) -> _Floats:
    """Return items found over k, also where a list is shorter."""
    values: _Floats = found.sum(axis=1) / found.shape[1]
    return values


def recall(found: _Bools, relevant: _Counts) -> _Floats:
    """Return items found over those to be found."""
    values: _Floats = found.sum(axis=1) / relevant
    return values


def hit_rate(found: _Bools) -> _Floats:
    """Return 1 where an item was found, else 0."""
    return np.where(found.any(axis=1), 1.0, 0.0)


def ndcg(found: _Bools, relevant: _Counts) -> _Floats:
    """Return the sum of ``1 / log2(rank + 1)`` over items found, over the best possible.

    References
    ----------
    Järvelin and Kekäläinen (2002), Cumulated gain-based evaluation of IR techniques,
    with gains 0 and 1.
    """
    k = found.shape[1]
    gains = 1.0 / np.log2(np.arange(2, k + 2))
    best = np.cumsum(gains)[np.minimum(relevant, k) - 1]
    values: _Floats = (found @ gains) / best
    return values


def average_precision(found: _Bools, relevant: _Counts) -> _Floats:
    """Return the mean of the precisions at the places of items found.

    Over the items to be found, or over k if those are more: 1 is possible for every
    unit. (Some divide by the items to be found in any case.)
    """
    k = found.shape[1]
    at = np.cumsum(found, axis=1) / np.arange(1, k + 1)
    values: _Floats = (at * found).sum(axis=1) / np.minimum(relevant, k)
    return values


def reciprocal_rank(found: _Bools) -> _Floats:
    """Return 1 over the place of the first item found, 0 if there is none."""
    return np.where(found.any(axis=1), 1.0 / (found.argmax(axis=1) + 1), 0.0)


def mean_over_items(values: _Floats, lists: IntArray) -> _Floats:
    """Return the mean of what each item is worth, over the items of each list.

    nan where a list is empty.
    """
    shown = lists >= 0
    count = shown.sum(axis=1)
    sums = np.where(shown, values[lists], 0.0).sum(axis=1)
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan)


def surprise(units: NDArray[np.floating], population: int) -> _Floats:
    """Return ``-log2`` of the share of units that had each item, in bits.

    An item that nobody had is taken as one that a single unit had.
    """
    values: _Floats = -np.log2(np.maximum(units.astype(np.float64), 1) / population)
    return values


def diversity(lists: IntArray, categories: IntArray) -> _Floats:
    """Return the share of the pairs of items of a list that are of two categories.

    An item of unknown category is unlike all others. nan where a list has no pair.
    """
    count = (lists >= 0).sum(axis=1).astype(np.float64)
    codes = np.where(lists >= 0, categories[lists], -1)
    rows, places = np.nonzero(codes >= 0)
    width = int(categories.max(initial=0)) + 1
    keys, sizes = np.unique(
        rows.astype(np.int64) * width + codes[rows, places], return_counts=True
    )
    same = np.bincount(keys // width, sizes * (sizes - 1.0), minlength=len(lists))
    pairs = count * (count - 1)
    return np.where(pairs > 0, 1 - same / np.maximum(pairs, 1), np.nan)


def miscalibration(
    lists: IntArray, categories: IntArray, mixes: csr_matrix, rows: IntArray
) -> _Floats:
    """Return how far the categories of each list are from those of the unit's history.

    The divergence KL(p, q) in nats of the list's shares q, smoothed by a hundredth of p,
    from the unit's p: 0 is equal, -ln 0.01 = 4.6 is the most. nan where nothing is
    known of the categories of the unit or of the list.

    Parameters
    ----------
    mixes : csr_matrix, shape (units, categories)
        p of each unit, as of `diversity.category_mixes`.
    rows : int32 array, shape (n,)
        Whose lists.

    References
    ----------
    Steck (2018), Calibrated recommendations, equations 4 to 6.
    """
    wanted = csr_matrix(mixes[rows])
    codes = np.where(lists >= 0, categories[lists], -1)
    places = np.nonzero(codes >= 0)
    counts = csr_matrix(
        (np.ones(places[0].size), (places[0], codes[places])), shape=wanted.shape
    )
    totals = np.asarray(counts.sum(axis=1)).ravel()
    owners = np.repeat(np.arange(len(rows)), np.diff(wanted.indptr))
    shares = np.asarray(counts[owners, wanted.indices]).ravel()
    q = shares / np.maximum(totals[owners], 1)
    p = wanted.data
    terms = p * np.log(p / ((1 - _SMOOTHING) * q + _SMOOTHING * p))
    sums = np.bincount(owners, terms, minlength=len(rows))
    known = (totals > 0) & (np.diff(wanted.indptr) > 0)
    return np.where(known, sums, np.nan)


def coverage(lists: IntArray, catalogue: int) -> float:
    """Return the share of the items that are in at least one list."""
    return np.unique(lists[lists >= 0]).size / catalogue


def concentration(lists: IntArray, catalogue: int) -> float:
    """Return the Gini coefficient of how often each item is shown.

    0 when all are shown alike, near 1 when all places go to one; nan without places.

    References
    ----------
    Gini coefficient of sorted counts x: ``sum (2 i - n - 1) x_i / (n sum x)``.
    """
    counts = np.sort(np.bincount(lists[lists >= 0], minlength=catalogue))
    total = counts.sum()
    if not total:
        return float("nan")
    ranks = 2 * np.arange(1, catalogue + 1) - catalogue - 1
    return float(ranks @ counts / (catalogue * total))
