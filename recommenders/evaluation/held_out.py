"""A test in time: what happened after training, in its rows."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recommenders.interactions import IntArray, Interactions


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
    is_new = ~np.isin(
        pair_keys(rows, items, width), pair_keys(trained.row, trained.col, width)
    )
    return HeldOut(
        since=since,
        rows=rows,
        items=items,
        is_new=is_new,
        unknown_pairs=int(len(pairs) - known.sum()),
    )


def pair_keys(
    rows: NDArray[np.integer], items: NDArray[np.integer], width: int
) -> NDArray[np.int64]:
    """Return one number for each pair; items must be less than `width`."""
    return rows.astype(np.int64) * width + items
