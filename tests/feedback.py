"""Shoppers with known tastes, and a service that shows popular items first.

Four groups of shoppers like a fifth of the items far more than the rest. Each shopper
has a list of its own, drawn so that items which are popular for no reason of taste come
often and come first; on each day a look at position p has chance p to the power of less
`power`, and an item that is looked at is taken as far as it is liked.
"""

import numpy as np

from recommenders.interactions import Interactions

UNITS, ITEMS, LENGTH, DAYS = 400, 60, 15, 20
_UNITS = np.array([f"u{unit:03}" for unit in range(UNITS)])
_ITEMS = np.array([f"i{item:02}" for item in range(ITEMS)])


def tastes(rng):
    """Return how much each unit likes each item, shape (units, items)."""
    liked = rng.uniform(0.02, 0.1, size=(4, ITEMS))
    for group in liked:
        group[rng.choice(ITEMS, ITEMS // 5, replace=False)] += 0.4
    return liked[rng.integers(4, size=UNITS)]


def shown(rng):
    """Return a list for each unit, shape (units, places)."""
    appeal = np.exp(-4 * rng.permutation(ITEMS) / ITEMS)
    return np.argsort(rng.exponential(size=(UNITS, ITEMS)) / appeal, axis=1)[:, :LENGTH]


def shoppers(rng, *, power):
    """Return tastes, lists, and on how many days each place was taken."""
    taste, lists = tastes(rng), shown(rng)
    looks = np.arange(1, LENGTH + 1.0) ** -power
    taken = rng.binomial(DAYS, np.take_along_axis(taste, lists, axis=1) * looks)
    return taste, lists, taken


def browsed(rng, *, power):
    """Return tastes, and the places shown where lists change halfway."""
    taste = tastes(rng)
    looks = np.arange(1, LENGTH + 1.0) ** -power
    rows = []
    for lists in (shown(rng), shown(rng)):
        chances = np.take_along_axis(taste, lists, axis=1) * looks
        for _ in range(DAYS // 2):
            taken = rng.random(lists.shape) < chances
            units, places = np.indices(lists.shape)
            pairs = units * ITEMS + lists
            rows.append([each.ravel() for each in (pairs, units, places + 1, taken)])
    groups, units, positions, taken = map(np.concatenate, zip(*rows, strict=True))
    return taste, (groups, units, positions, taken)


def learned(lists, taken, *, weights=None, looks=None):
    """Return what is learned from: with weights by place, or with what was left."""
    units, places = np.nonzero(taken)
    counts = taken if weights is None else taken * weights
    data = Interactions.from_columns(
        _UNITS[units].tolist(),
        _ITEMS[lists[units, places]].tolist(),
        counts[units, places],
    )
    if looks is None:
        return data
    return data.with_passed(
        np.repeat(_UNITS, LENGTH).tolist(),
        _ITEMS[lists].ravel().tolist(),
        (DAYS * looks - taken).ravel(),
    )


def ndcg(recommender, data, taste, k=10):
    """Return NDCG@k of lists of all items, where the gain is how much each is liked."""
    trained = recommender.fit(data, np.random.default_rng(0))
    rows = np.arange(len(data.units))
    items = trained.recommend(rows, k, exclude_seen=False)[0]
    units = np.searchsorted(_UNITS, np.array(data.units.ids))
    found = np.searchsorted(_ITEMS, np.array(data.items.ids))[items]
    gains = np.where(items < 0, 0, taste[units[:, np.newaxis], found])
    best = -np.sort(-taste[units], axis=1)[:, :k]
    discounts = 1 / np.log2(np.arange(2, k + 2))
    return float(np.mean((gains @ discounts) / (best @ discounts)))
