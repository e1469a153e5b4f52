"""The gate of a trained recommender: checks with a value, a threshold and a verdict.

Looks at lists and evaluations only; what follows from a verdict is the caller's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recommenders.base import TrainedRecommender
from recommenders.evaluation import Evaluation
from recommenders.interactions import IntArray

#: Places at the top of a list that should be the recommender's own.
TOP_PLACES = 10

#: Least share of those places; with fewer, a test would compare fallbacks.
MIN_OWN_ITEMS = 0.9

#: Least share of the items beyond one list's length that the lists of a personal
#: recommender show together.
MIN_OTHER_ITEMS = 0.01

#: Least share of lists that are not the default list.
MIN_PERSONAL_LISTS = 0.5

_BLOCK_ROWS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check: what was measured, and what it had to be.

    Attributes
    ----------
    name : str
        Of the check.
    value, threshold : float
        Measured, and the bound it is compared with; a nan never passes.
    rule : {"at least", "at most"}
        On which side of the threshold the value has to lie, or equal it.
    """

    name: str
    value: float
    threshold: float
    rule: Literal["at least", "at most"] = "at least"

    @property
    def passed(self) -> bool:
        """The verdict."""
        if self.rule == "at least":
            return self.value >= self.threshold
        return self.value <= self.threshold

    def __str__(self) -> str:
        return (
            f"{self.name} is {self.value:.4g}, must be {self.rule} {self.threshold:.4g}"
        )


def check_lists(
    trained: TrainedRecommender,
    lists: IntArray,
    default: IntArray,
    evaluations: Sequence[Evaluation],
) -> list[Check]:
    """Check the lists that a recommender would publish.

    Parameters
    ----------
    lists : int32 array, shape (units, depth)
        Item rows of each unit, padded with -1 at the end.
    default : int32 array, shape (depth,)
        Item rows for a unit without a list.
    evaluations : sequence of Evaluation
        Of the same recommender and parameters.

    Returns
    -------
    list of Check
        The gate is open when all have passed.
    """
    catalogue, depth = len(trained.interactions.items), lists.shape[1]
    malformed, own, personal = 0, 0, 0
    shown = np.zeros(catalogue, dtype=bool)
    for start in range(0, len(lists), _BLOCK_ROWS):
        block = lists[start : start + _BLOCK_ROWS]
        malformed += int(_is_malformed(block, catalogue).sum())
        own += int((block[:, :TOP_PLACES] >= 0).sum())
        personal += int((block != default).any(axis=1).sum())
        shown[block[(block >= 0) & (block < catalogue)]] = True
    places = len(lists) * min(depth, TOP_PLACES)
    default_items = default[(default >= 0) & (default < catalogue)]
    figures = [
        figure
        for each in evaluations
        for figure in (
            each.precision,
            each.recall,
            each.ndcg,
            each.hit_rate,
            each.coverage,
        )
    ]
    checks = [
        Check(
            name="items in the default list",
            value=np.unique(default_items).size,
            threshold=depth,
        ),
        Check(
            name="lists with gaps, repeated or unknown items",
            value=malformed,
            threshold=0,
            rule="at most",
        ),
        Check(
            name=f"share of the first {TOP_PLACES} places with items of its own",
            value=own / places,
            threshold=MIN_OWN_ITEMS,
        ),
        Check(
            name="figures of the evaluation that are not finite",
            value=sum(not math.isfinite(figure) for figure in figures),
            threshold=0,
            rule="at most",
        ),
        Check(name="figures of the evaluation", value=len(figures), threshold=1),
    ]
    return checks + _personal_checks(trained, depth, shown, personal / len(lists))


def _personal_checks(
    trained: TrainedRecommender,
    depth: int,
    shown: NDArray[np.bool_],
    personal: float,
) -> list[Check]:
    """Return the checks that one list for all would fail, as popularity's must."""
    distinct = Check(
        name="distinct items in all lists", value=int(shown.sum()), threshold=depth
    )
    if trained.capabilities.cold_units:
        return [distinct]
    others = math.ceil(MIN_OTHER_ITEMS * (shown.size - depth))
    return [
        Check(
            name=distinct.name,
            value=distinct.value,
            threshold=depth + others,
        ),
        Check(
            name="share of lists that are not the default list",
            value=personal,
            threshold=MIN_PERSONAL_LISTS,
        ),
    ]


def _is_malformed(lists: IntArray, catalogue: int) -> NDArray[np.bool_]:
    filled = lists >= 0
    gap = (filled[:, 1:] & ~filled[:, :-1]).any(axis=1)
    unknown = ((lists < -1) | (lists >= catalogue)).any(axis=1)
    ordered = np.sort(lists, axis=1)
    repeated = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    verdict: NDArray[np.bool_] = gap | unknown | repeated
    return verdict
