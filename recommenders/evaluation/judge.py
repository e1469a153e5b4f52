"""Figures of a recommender under one protocol: the same for all, stored beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from recommenders.base import TrainedRecommender
from recommenders.diversity import category_mixes
from recommenders.evaluation import measures
from recommenders.evaluation.held_out import HeldOut, pair_keys
from recommenders.evaluation.intervals import FEWEST, Interval, bootstrap, method
from recommenders.interactions import IntArray, Interactions

Repeats = Literal["allowed", "new only"]

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """Lists of the units of a test and what was found in them, before any mean.

    Attributes
    ----------
    trained : TrainedRecommender
        Whose lists.
    held_out : HeldOut
        What was to be found.
    repeats : {"allowed", "new only"}
    k : int
    units : int32 array, shape (n,)
        Rows of those with an item to be found, in order.
    lists : int32 array, shape (n, k)
        Item rows, padded with -1.
    rows, items : int arrays, shape (pairs,)
        Pairs to be found.
    values : mapping of str to float64 array, shape (n,)
        Each measure that is a mean over units; nan where it has no value.
    """

    trained: TrainedRecommender
    held_out: HeldOut
    repeats: Repeats
    k: int
    units: IntArray
    lists: IntArray
    rows: IntArray
    items: IntArray
    values: Mapping[str, _Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Figures of a part of the units, or of a part of what was to be found.

    Attributes
    ----------
    kind, name : str
        Such as ``history`` and ``light``.
    units, pairs : int
        Units with an item of this part to be found, and pairs.
    recall, ndcg, hit_rate : float
        Over the pairs of this part alone; lists are those of the whole.
    low, high : float, optional
        Interval of `ndcg`, by 200 replicates.
    """

    kind: str
    name: str
    units: int
    pairs: int
    recall: float
    ndcg: float
    hit_rate: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Figures of one recommender, and what they are figures of.

    Attributes
    ----------
    protocol : str
        What was measured, in a sentence; figures compare under one protocol only.
    repeats : {"allowed", "new only"}
        Whether what a unit had in training may be recommended and counts as found.
    k : int
        Length of the lists.
    units : int
        Units with an item to be found; means are over them.
    pairs : int
        Pairs of a unit and an item to be found.
    unknown_pairs : int
        Pairs of the test period left out, with a unit or item not in training.
    catalogue : int
        Items ranked.
    precision, recall, ndcg, map, mrr, hit_rate : float
        In [0, 1], higher is better; see `measures`.
    coverage : float
        Share of the catalogue that is in at least one list.
    concentration : float
        Gini coefficient of how often items are shown; 1 is all places for one item.
    novelty : float
        Mean surprise of the items shown, in bits; an item that half of the units had
        has 1.
    popularity : float
        Mean share of units that had the items shown.
    popularity_lift : float
        `popularity` over that of what the units had, less 1: above 0, lists are more
        popular than what shoppers choose (the GAP of Abdollahpouri et al., 2019).
    diversity : float
        Share of the pairs of items of a list that are of two categories.
    miscalibration : float
        Mean divergence of the categories of lists from those of the units' history; 0
        is equal. This and `diversity` are nan without categories.
    intervals : mapping of str to Interval
        Of those above that are means over units, by name.
    slices : sequence of Slice
        By age of the product, its category, history of the unit, and given groups.
    """

    protocol: str
    repeats: Repeats
    k: int
    units: int
    pairs: int
    unknown_pairs: int
    catalogue: int
    precision: float
    recall: float
    ndcg: float
    map: float
    mrr: float
    hit_rate: float
    coverage: float
    concentration: float
    novelty: float
    popularity: float
    popularity_lift: float
    diversity: float
    miscalibration: float
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    slices: Sequence[Slice] = ()


def judge(
    trained: TrainedRecommender,
    held_out: HeldOut,
    *,
    k: int = 10,
    repeats: Repeats = "new only",
) -> Judged:
    """Make lists for all units of a test and measure each.

    Parameters
    ----------
    held_out : HeldOut
        Made with the interactions that `trained` learned from.
    k : int, >= 1
        Length of the lists.
    repeats : {"allowed", "new only"}
        "new only": lists leave out what the unit had, and only new items are to be
        found. "allowed": neither.

    Raises
    ------
    ValueError
        When `k` is below 1, `repeats` is none of the two, or no pair is to be found.
    """
    if repeats not in get_args(Repeats):
        raise ValueError(
            f"repeats is {repeats!r}; it must be one of {', '.join(get_args(Repeats))}"
        )
    new_only = repeats == "new only"
    wanted = held_out.is_new if new_only else np.ones(held_out.rows.size, dtype=bool)
    if not wanted.any():
        raise ValueError("no test pair is new to its unit; there is nothing to find")
    rows, items = held_out.rows[wanted], held_out.items[wanted]
    units = np.unique(rows)
    lists, _ = trained.recommend(units, k, exclude_seen=new_only)
    found, relevant = found_in(lists, units, rows, items)
    return Judged(
        trained=trained,
        held_out=held_out,
        repeats=repeats,
        k=k,
        units=units,
        lists=lists,
        rows=rows,
        items=items,
        values={
            "precision": measures.precision(found),
            "recall": measures.recall(found, relevant),
            "ndcg": measures.ndcg(found, relevant),
            "map": measures.average_precision(found, relevant),
            "mrr": measures.reciprocal_rank(found),
            "hit_rate": measures.hit_rate(found),
            **_beyond_accuracy(trained.interactions, lists, units),
        },
    )


def evaluate(
    trained: TrainedRecommender,
    held_out: HeldOut,
    *,
    k: int = 10,
    repeats: Repeats = "new only",
    rng: np.random.Generator | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Evaluation:
    """Compare the lists of all units of a test with what they had to do with.

    Parameters
    ----------
    trained, held_out, k, repeats
        As of `judge`, and so are the errors.
    rng : Generator, optional
        For the intervals; there are none without it.
    groups : mapping of str to sequence of str, optional
        Kinds of slices of units, such as ``market``: a name for each unit in training.
    """
    judged = judge(trained, held_out, k=k, repeats=repeats)
    return summarise(judged, rng=rng, groups=groups)


def summarise(
    judged: Judged,
    *,
    rng: np.random.Generator | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Evaluation:
    """Return the figures of lists that were judged; parameters as of `evaluate`."""
    catalogue = len(judged.trained.interactions.items)
    names = list(judged.values)
    means = {name: _mean(values) for name, values in judged.values.items()}
    had = means.pop("popularity_had")
    protocol = (
        f"temporal split at {judged.held_out.since.isoformat()}, full ranking of "
        f"{catalogue} items, lists of {judged.k}, repeats: {judged.repeats}, mean over "
        f"{judged.units.size} units with items to find, "
        f"{judged.held_out.unknown_pairs} pairs with a unit or item not in training "
        "left out"
    )
    intervals: dict[str, Interval] = {}
    if rng is not None:
        protocol += f"; intervals: {method(judged.units.size)}"
        columns = np.stack([judged.values[name] for name in names], axis=1)
        made = bootstrap(columns, rng)
        intervals = {name: made[place] for place, name in enumerate(names)}
        del intervals["popularity_had"]
    return Evaluation(
        protocol=protocol,
        repeats=judged.repeats,
        k=judged.k,
        units=judged.units.size,
        pairs=judged.rows.size,
        unknown_pairs=judged.held_out.unknown_pairs,
        catalogue=catalogue,
        coverage=measures.coverage(judged.lists, catalogue),
        concentration=measures.concentration(judged.lists, catalogue),
        popularity_lift=means["popularity"] / had - 1,
        intervals=intervals,
        slices=tuple(slices_of(judged, rng=rng, groups=groups or {})),
        **means,
    )


def difference(
    first: Judged, second: Judged, measure: str, rng: np.random.Generator
) -> Interval:
    """Return by how much one is better than another, as of `differences`."""
    return differences(first, second, [measure], rng)[measure]


def differences(
    first: Judged, second: Judged, names: Sequence[str], rng: np.random.Generator
) -> dict[str, Interval]:
    """Return by how much one is better than another in some measures, unit by unit.

    Raises
    ------
    ValueError
        When they were judged on different units or pairs.
    """
    same = (
        first.k == second.k
        and np.array_equal(first.rows, second.rows)
        and np.array_equal(first.items, second.items)
    )
    if not same:
        raise ValueError(
            "the two were judged on different units, items or lengths; judge them on "
            "one test"
        )
    apart = [first.values[name] - second.values[name] for name in names]
    made = bootstrap(np.stack(apart, axis=1), rng)
    return {name: made[column] for column, name in enumerate(names)}


def found_in(
    lists: IntArray, units: IntArray, rows: IntArray, items: IntArray
) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Return which places hold an item to be found, and how many each unit has.

    Parameters
    ----------
    lists : int array, shape (n, k)
        Of `units`, in order.
    rows, items : int arrays, shape (pairs,)
        What is to be found; rows are of `units`.
    """
    width = int(max(lists.max(initial=0), items.max(initial=0))) + 1
    found = np.isin(
        pair_keys(units[:, np.newaxis], lists, width), pair_keys(rows, items, width)
    )
    # The padding -1 would be the key of the last item of the unit before.
    found &= lists >= 0
    relevant = np.bincount(np.searchsorted(units, rows), minlength=units.size)
    return found, relevant


def slices_of(
    judged: Judged,
    *,
    rng: np.random.Generator | None,
    groups: Mapping[str, Sequence[str]],
) -> list[Slice]:
    """Measure parts of the test by themselves.

    Raises
    ------
    ValueError
        When a group has not one name for each unit in training.
    """
    population = len(judged.trained.interactions.units)
    for kind, labels in groups.items():
        if len(labels) != population:
            raise ValueError(
                f"group {kind} has {len(labels)} names; it must have one for each of "
                f"{population} units in training"
            )
    parts = [
        *_by_product(judged),
        *_by_history(judged),
        *(
            (kind, name, np.asarray(labels)[judged.rows] == name)
            for kind, labels in groups.items()
            for name in sorted(set(labels))
        ),
    ]
    return [
        _slice(judged, kind, name, chosen, rng)
        for kind, name, chosen in parts
        if chosen.any()
    ]


_Part = tuple[str, str, NDArray[np.bool_]]

#: Categories of most pairs that are slices of their own.
_CATEGORIES = 10

#: A product is new in a slice if it was first had, or listed, so many days before.
NEW_DAYS = 30.0


def _by_product(judged: Judged) -> list[_Part]:
    interactions = judged.trained.interactions
    parts: list[_Part] = []
    if interactions.events is not None:
        is_new = interactions.item_ages() < NEW_DAYS
        is_new |= interactions.item_units() == 0
        chosen = is_new[judged.items]
        parts += [("product", "new", chosen), ("product", "known", ~chosen)]
    if interactions.catalogue is not None:
        codes = interactions.catalogue.category_codes[judged.items]
        sizes = np.bincount(codes[codes >= 0])
        largest = np.argsort(-sizes, kind="stable")[:_CATEGORIES]
        names = interactions.catalogue.category_names
        parts += [("category", names[code], codes == code) for code in largest]
    return parts


def _by_history(judged: Judged) -> list[_Part]:
    sizes = np.diff(judged.trained.interactions.matrix.indptr)
    low, high = np.quantile(sizes[judged.units], [1 / 3, 2 / 3])
    mine = sizes[judged.rows]
    return [
        ("history", "light", mine <= low),
        ("history", "medium", (mine > low) & (mine <= high)),
        ("history", "heavy", mine > high),
    ]


def _slice(
    judged: Judged,
    kind: str,
    name: str,
    chosen: NDArray[np.bool_],
    rng: np.random.Generator | None,
) -> Slice:
    rows, items = judged.rows[chosen], judged.items[chosen]
    units = np.unique(rows)
    lists = judged.lists[np.searchsorted(judged.units, units)]
    found, relevant = found_in(lists, units, rows, items)
    gains = measures.ndcg(found, relevant)
    interval = None
    if rng is not None:
        interval = bootstrap(gains[:, np.newaxis], rng, replicates=FEWEST)[0]
    return Slice(
        kind=kind,
        name=name,
        units=units.size,
        pairs=rows.size,
        recall=_mean(measures.recall(found, relevant)),
        ndcg=_mean(gains),
        hit_rate=_mean(measures.hit_rate(found)),
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
    )


def _beyond_accuracy(
    interactions: Interactions, lists: IntArray, units: IntArray
) -> dict[str, _Floats]:
    had = interactions.item_units().astype(np.float64)
    population = len(interactions.units)
    shares = had / population
    history = interactions.matrix[units]
    sums = np.asarray((history > 0).astype(np.float64) @ shares).ravel()
    values = {
        "novelty": measures.mean_over_items(measures.surprise(had, population), lists),
        "popularity": measures.mean_over_items(shares, lists),
        "popularity_had": sums / np.maximum(np.diff(history.indptr), 1),
    }
    nothing = np.full(len(units), np.nan)
    codes = None
    if interactions.catalogue is not None:
        codes = interactions.catalogue.category_codes
    if codes is None or (codes < 0).all():
        return {**values, "diversity": nothing, "miscalibration": nothing}
    mixes = category_mixes(interactions.matrix, codes)
    return {
        **values,
        "diversity": measures.diversity(lists, codes),
        "miscalibration": measures.miscalibration(lists, codes, mixes, units),
    }


def _mean(values: _Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
