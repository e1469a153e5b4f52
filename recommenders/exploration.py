"""A share of the places for items from below the list, drawn with known probability."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recommenders.base import Lists
from recommenders.interactions import IntArray

LABEL = "explored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """Each place from `first` to `last` explores with probability `share`, by itself.

    The explored places of a list show different items of its pool, the candidates after
    its k-th, drawn without replacement: the first explored place the first item of a
    random order of the pool, and so on. So by symmetry each item of a pool of m is at a
    given place with probability ``share / m``, and what was there with ``1 - share``;
    these are the propensities, exact and not estimated. A pool of fewer items than
    places that may explore leaves the list as it is.

    What is drawn depends on the seed, the unit and the place alone: the same list comes
    out alone or among others, today and tomorrow.
    """

    share: float
    first: int
    last: int
    seed: int
    candidates: int

    def rerank(
        self,
        lists: Lists,
        k: int,
        units: IntArray,
        seen: csr_matrix | None,  # noqa: ARG002 - of the protocol
    ) -> Lists:
        """Draw for all units but those of -1, nobody in particular."""
        labels = lists.labels if LABEL in lists.labels else (*lists.labels, LABEL)
        head, pool = lists.items[:, :k], lists.items[:, k:]
        last = min(self.last, k)
        width = last - self.first + 1
        size = (pool >= 0).sum(axis=1)
        able = (units >= 0) & (size >= width) & (head[:, -1:] >= 0).ravel()
        if width < 1 or not pool.shape[1] or self.share == 0:
            return lists
        places = slice(self.first - 1, last)
        explores = uniforms(self.seed, units, 0, width) < self.share
        explores &= able[:, np.newaxis]
        keys = uniforms(self.seed, units, width, pool.shape[1])
        order = np.argsort(np.where(pool >= 0, keys, 2.0), axis=1, kind="stable")
        turn = np.cumsum(explores, axis=1) - 1
        drawn = np.take_along_axis(order, np.maximum(turn, 0), axis=1) + k
        items, scores = lists.items.copy(), lists.scores.copy()
        sources, propensities = lists.sources.copy(), lists.propensities.copy()
        owners = np.arange(len(items))[:, np.newaxis]
        items[:, places] = np.where(explores, items[owners, drawn], items[:, places])
        scores[:, places] = np.where(explores, scores[owners, drawn], scores[:, places])
        sources[:, places][explores] = labels.index(LABEL)
        each = self.share / np.maximum(size, 1)[:, np.newaxis]
        chance = np.where(explores, each, 1 - self.share)
        propensities[:, places] *= np.where(able[:, np.newaxis], chance, 1.0)
        return Lists(
            items=items[:, :k],
            scores=scores[:, :k],
            sources=sources[:, :k],
            labels=labels,
            propensities=propensities[:, :k],
        )


def uniforms(seed: int, units: IntArray, start: int, count: int) -> NDArray[np.float64]:
    """Return numbers in [0, 1) that depend on seed, unit and place alone.

    The mixing function of SplitMix64 on a counter: one stream for each seed, of which
    each unit owns a stretch.

    Returns
    -------
    float64 array, shape (units, count)
        Of the places from `start` on.

    References
    ----------
    Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators.
    """
    with np.errstate(over="ignore"):
        stretch = _mixed(units.astype(np.int64).astype(np.uint64) + _mixed(_word(seed)))
        places = np.arange(start + 1, start + count + 1, dtype=np.uint64)
        words = _mixed(stretch[:, np.newaxis] + places * _word(0x9E3779B97F4A7C15))
    uniform: NDArray[np.float64] = (words >> _word(11)).astype(np.float64) * 2.0**-53
    return uniform


def _word(value: int) -> NDArray[np.uint64]:
    return np.array([value], dtype=np.uint64)


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ (words >> _word(30))) * _word(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> _word(27))) * _word(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = words ^ (words >> _word(31))
    return mixed
