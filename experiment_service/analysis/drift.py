"""Drift of what is shown: population stability index, groups of items, variety."""

import math
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
from scipy import special

from recommenders.drift import stability_index as index_of_shares

#: Below the first nothing has changed, above the second much has: the usual convention
#: (Siddiqi 2006), with no test behind it; see `recommenders.drift`.
SMALL_CHANGE, LARGE_CHANGE = 0.1, 0.25

#: Groups that items are sorted into, the deciles of the convention.
GROUPS = 10

#: Of what no group knows.
UNKNOWN_GROUP = -1

_Key = TypeVar("_Key", bound=Hashable)


def stability_index(
    reference: Mapping[Hashable, float], current: Mapping[Hashable, float]
) -> float:
    """Return the population stability index of two distributions.

    That of `recommenders.drift`, over the groups that either knows. Half a count is added
    to each group, so that an empty one gives a finite number.

    Parameters
    ----------
    reference, current : mapping of group to float
        Counts, >= 0.

    Raises
    ------
    ValueError
        When one of them has no count.
    """
    groups = sorted({*reference, *current}, key=str)
    q, p = (
        np.array([counts.get(group, 0.0) for group in groups], dtype=np.float64)
        for counts in (reference, current)
    )
    if q.sum() <= 0 or p.sum() <= 0:
        raise ValueError("a stability index needs counts on both sides")
    q, p = ((counts + 0.5) / (counts + 0.5).sum() for counts in (q, p))
    return index_of_shares(p, q, least=0.0)


def popularity_groups(counts: Mapping[str, int]) -> dict[str, int]:
    """Sort items by how often they are shown into groups of about equal counts.

    Group 0 has the most shown items. An item that fills more than one group leaves the
    next ones empty.

    To compare two distributions over such groups, take the groups from other units than
    those compared: an item that was often shown by chance is shown less the next time.
    """
    total = sum(counts.values())
    groups, before = {}, 0
    for item in sorted(counts, key=lambda each: (-counts[each], each)):
        groups[item] = GROUPS * before // total
        before += counts[item]
    return groups


def grouped(
    counts: Mapping[_Key, int], groups: Mapping[_Key, Hashable]
) -> Counter[Hashable]:
    """Add up counts by the group of their key."""
    found: Counter[Hashable] = Counter()
    for key, count in counts.items():
        found[groups.get(key, UNKNOWN_GROUP)] += count
    return found


def distinct_items(counts: Mapping[str, int], exposures: int, *, of: int) -> float:
    """Return how many distinct items some of the exposures show, in expectation.

    ``sum(1 - C(N - n_i, k) / C(N, k))``: sample-based rarefaction, so that few exposures
    and many can be compared.

    Parameters
    ----------
    counts : mapping of str to int
        Exposures that showed an item, n_i, each from 1 to N.
    exposures : int
        All of them, N.
    of : int
        Exposures drawn without replacement, k, from 0 to N.

    Raises
    ------
    ValueError
        When more are drawn than there are.

    References
    ----------
    Colwell, Mao and Chang (2004), Interpolating, extrapolating, and comparing
    incidence-based species accumulation curves, Ecology 85, equation 5.
    """
    if not 0 <= of <= exposures:
        raise ValueError(f"{of} of {exposures} exposures can't be drawn")
    shown = np.fromiter(counts.values(), dtype=np.float64)
    missing = exposures - shown
    possible = missing >= of
    left = np.where(possible, missing, of)
    log_chance = (
        special.gammaln(left + 1)
        - special.gammaln(left - of + 1)
        - math.lgamma(exposures + 1)
        + math.lgamma(exposures - of + 1)
    )
    return float((1 - np.where(possible, np.exp(log_chance), 0.0)).sum())
