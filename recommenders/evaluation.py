"""How well lists foretell what units had to do with later: temporal and full ranking.

Every item of the catalogue is ranked, never a sample of them, and the test lies after
the training in time. One evaluator for all recommenders.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recommenders.base import TrainedRecommender
from recommenders.interactions import IntArray, Interactions

Repeats = Literal["allowed", "new only"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """What happened after training, in its rows.

    Attributes
    ----------
    since : datetime
        Start of the test period; all of the training lies before it.
    rows, items : int32 arrays, shape (pairs,)
        Distinct pairs of a unit and an item of the training.
    is_new : bool array, shape (pairs,)
        Whether the unit had not had the item in training.
    unknown_pairs : int
        Distinct pairs left out, as no recommender could know their unit or item.
    """

    since: datetime
    rows: IntArray
    items: IntArray
    is_new: NDArray[np.bool_]
    unknown_pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Figures of one recommender, and what they are figures of.

    The five measures are means over `units`, each in [0, 1], higher is better.

    Attributes
    ----------
    protocol : str
        What was measured, in a sentence; figures compare under one protocol only.
    repeats : {"allowed", "new only"}
        Whether what a unit had in training may be recommended and counts as found.
    k : int
        Length of the lists.
    units : int
        Units with an item to be found.
    pairs : int
        Pairs of a unit and an item to be found.
    unknown_pairs : int
        Pairs of the test period left out, with a unit or item not in training.
    catalogue : int
        Items ranked.
    precision : float
        Items found, over k (also where a list is shorter).
    recall : float
        Items found, over those of the unit to be found.
    ndcg : float
        Sum of ``1 / log2(rank + 1)`` over items found, over the best possible.
    hit_rate : float
        Share of units with at least one item found.
    coverage : float
        Share of the catalogue that is in at least one list; not a mean over units.

    References
    ----------
    Järvelin and Kekäläinen (2002), Cumulated gain-based evaluation of IR techniques,
    with gains 0 and 1.
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
    hit_rate: float
    coverage: float


def hold_out(
    interactions: Interactions, later: pd.DataFrame, *, since: datetime
) -> HeldOut:
    """Bring what happened after training into the rows of the training.

    Parameters
    ----------
    interactions : Interactions
        The training, all of it before `since`.
    later : DataFrame
        Columns ``unit_id``, ``item_id``, ``occurred_at``, as of `tables.split_at`.
    since : datetime
        Start of the test period, with a time zone.

    Raises
    ------
    ValueError
        When a row lies before `since`, or no pair has both unit and item in training.
    """
    first = later["occurred_at"].min()
    if first < since:
        raise ValueError(
            f"a test interaction is of {first}; all must be at or after since "
            f"{since.isoformat()}"
        )
    pairs = later[["unit_id", "item_id"]].drop_duplicates()
    rows = interactions.units.rows(pairs["unit_id"].tolist())
    items = interactions.items.rows(pairs["item_id"].tolist())
    known = (rows >= 0) & (items >= 0)
    if not known.any():
        raise ValueError(
            f"none of {len(pairs)} test pairs has its unit and item in training; "
            "there is nothing to measure"
        )
    rows, items = rows[known], items[known]
    width = len(interactions.items)
    trained = interactions.matrix.tocoo()
    is_new = ~np.isin(_keys(rows, items, width), _keys(trained.row, trained.col, width))
    return HeldOut(
        since=since,
        rows=rows,
        items=items,
        is_new=is_new,
        unknown_pairs=int(len(pairs) - known.sum()),
    )


def evaluate(
    trained: TrainedRecommender,
    held_out: HeldOut,
    *,
    k: int = 10,
    repeats: Repeats = "new only",
) -> Evaluation:
    """Compare the lists of all units of a test with what they had to do with.

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
    units, relevant = np.unique(rows, return_counts=True)
    lists, _ = trained.recommend(units, k, exclude_seen=new_only)
    catalogue = len(trained.interactions.items)
    found = np.isin(
        _keys(units[:, np.newaxis], lists, catalogue), _keys(rows, items, catalogue)
    )
    # The padding -1 would be the key of the last item of the unit before.
    found &= lists >= 0
    hits = found.sum(axis=1)
    gains = 1.0 / np.log2(np.arange(2, k + 2))
    best = np.cumsum(gains)[np.minimum(relevant, k) - 1]
    return Evaluation(
        protocol=_protocol(held_out, repeats, k, units.size, catalogue),
        repeats=repeats,
        k=k,
        units=units.size,
        pairs=rows.size,
        unknown_pairs=held_out.unknown_pairs,
        catalogue=catalogue,
        precision=float(np.mean(hits / k)),
        recall=float(np.mean(hits / relevant)),
        ndcg=float(np.mean(found @ gains / best)),
        hit_rate=float(np.mean(hits > 0)),
        coverage=np.unique(lists[lists >= 0]).size / catalogue,
    )


def _protocol(
    held_out: HeldOut, repeats: Repeats, k: int, units: int, catalogue: int
) -> str:
    return (
        f"temporal split at {held_out.since.isoformat()}, full ranking of {catalogue} "
        f"items, lists of {k}, repeats: {repeats}, mean over {units} units with items "
        f"to find, {held_out.unknown_pairs} pairs with a unit or item not in training "
        "left out"
    )


def _keys(
    rows: NDArray[np.integer], items: NDArray[np.integer], width: int
) -> NDArray[np.int64]:
    return rows.astype(np.int64) * width + items
