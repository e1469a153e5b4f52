"""The gate of a trained recommender: checks with a value, a threshold and a verdict.

Looks at lists, evaluations and what publishing takes; what follows from a verdict is the
caller's. Thresholds are bounds of the plausible: a list that breaks one is a fault, not
a matter of taste.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recommenders.base import TrainedRecommender
from recommenders.catalogue import Catalogue
from recommenders.diversity import category_mixes
from recommenders.evaluation import Evaluation
from recommenders.interactions import IntArray, Interactions

#: Places at the top of a list that should be the recommender's own.
TOP_PLACES = 10

#: Least share of those places; with fewer, a test would compare fallbacks.
MIN_OWN_ITEMS = 0.9

#: The same for units that had fewer than `FEW_ITEMS` items, of whom less is known.
MIN_OWN_ITEMS_LIGHT = 0.5
FEW_ITEMS = 3

#: Least share of the items beyond one list's length that the lists of a personal
#: recommender show together.
MIN_OTHER_ITEMS = 0.01

#: Least share of lists that are not the default list.
MIN_PERSONAL_LISTS = 0.5

#: Greatest share of the first places for the `TOP_PLACES` items shown most; 1 is one
#: list for all.
MAX_TOP_SHARE = 0.9

#: How many times the median price shown may be that of what units had, or the reverse.
MAX_PRICE_RATIO = 10.0

#: Greatest share of places for items whose price is 0, though most have one.
MAX_FREE_ITEMS = 0.05

#: Greatest distance between the categories shown and those had: half the sum of the
#: differences of shares, 1 when they have nothing in common.
MAX_CATEGORY_SHIFT = 0.8

#: Least share of the places at the top that are as in the version that serves, where
#: both are of one recommender with one set of parameters.
MIN_OVERLAP = 0.1

#: Greatest time for making 1,000 lists, and memory of the process as share of all.
MAX_SECONDS_PER_THOUSAND = 60.0
MAX_MEMORY_SHARE = 0.8

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
    slice : str
        The part of the lists that it looks at; empty for all.
    """

    name: str
    value: float
    threshold: float
    rule: Literal["at least", "at most"] = "at least"
    slice: str = ""

    @property
    def passed(self) -> bool:
        """The verdict."""
        if self.rule == "at least":
            return self.value >= self.threshold
        return self.value <= self.threshold

    def __str__(self) -> str:
        where = f" ({self.slice})" if self.slice else ""
        return (
            f"{self.name}{where} is {self.value:.4g}, must be {self.rule} "
            f"{self.threshold:.4g}"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Previous:
    """Lists of the version that serves, for some units of the new one.

    Attributes
    ----------
    rows : int32 array, shape (n,)
        Units.
    lists : int32 array, shape (n, places)
        Item rows of the new version; -1 for an item that it does not know.
    """

    rows: IntArray
    lists: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What making the lists took.

    Attributes
    ----------
    seconds : float
        For all lists.
    lists : int
        How many.
    memory, available : int
        Bytes that the process took at most, and those of the machine.
    """

    seconds: float
    lists: int
    memory: int
    available: int


def check_lists(
    trained: TrainedRecommender,
    lists: IntArray,
    default: IntArray,
    evaluations: Sequence[Evaluation],
    *,
    related: IntArray | None = None,
    previous: Previous | None = None,
    cost: Cost | None = None,
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
    related : int32 array, shape (items, depth), optional
        Items that go with each item.
    previous : Previous, optional
        Given when the version that serves is of the same recommender and parameters.
    cost : Cost, optional

    Returns
    -------
    list of Check
        The gate is open when all have passed.
    """
    depth = lists.shape[1]
    seen = _look_at(trained, lists, default)
    checks = [
        Check(
            name="items in the default list",
            value=seen.default.size,
            # Filters may leave fewer items than a list has places.
            threshold=min(depth, _showable(trained)),
        ),
        Check(
            name="lists with gaps, repeated or unknown items",
            value=seen.malformed,
            threshold=0,
            rule="at most",
        ),
        *_blocked_checks(trained, lists, default, related),
        Check(
            name=f"share of the first {TOP_PLACES} places with items of its own",
            value=seen.own / (len(lists) * min(depth, TOP_PLACES)),
            threshold=MIN_OWN_ITEMS,
        ),
        *_light_checks(trained, lists),
        Check(
            name="figures of the evaluation that are not finite",
            value=sum(not math.isfinite(figure) for figure in _figures(evaluations)),
            threshold=0,
            rule="at most",
        ),
        Check(
            name="figures of the evaluation",
            value=len(_figures(evaluations)),
            threshold=1,
        ),
        *_personal_checks(trained, depth, seen, seen.personal / len(lists)),
    ]
    if trained.interactions.catalogue is not None:
        catalogue = trained.interactions.catalogue
        checks += _price_checks(trained.interactions, catalogue, seen.first)
        # One list for all has room for a few categories only, and may not be judged so.
        if not trained.capabilities.cold_units:
            checks += _category_checks(trained.interactions, catalogue, seen.first)
    if previous is not None and len(previous.rows):
        checks.append(_overlap_check(lists, previous))
    if cost is not None:
        checks += _cost_checks(cost)
    return checks


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Seen:
    malformed: int
    own: int
    personal: int
    shown: NDArray[np.bool_]
    first: NDArray[np.int64]
    default: IntArray


def _look_at(trained: TrainedRecommender, lists: IntArray, default: IntArray) -> _Seen:
    catalogue = len(trained.interactions.items)
    malformed, own, personal = 0, 0, 0
    shown = np.zeros(catalogue, dtype=bool)
    first = np.zeros(catalogue, dtype=np.int64)
    for start in range(0, len(lists), _BLOCK_ROWS):
        block = lists[start : start + _BLOCK_ROWS]
        malformed += int(_is_malformed(block, catalogue).sum())
        own += int((block[:, :TOP_PLACES] >= 0).sum())
        personal += int((block != default).any(axis=1).sum())
        shown[_known(block, catalogue)] = True
        top = _known(block[:, :TOP_PLACES], catalogue)
        first += np.bincount(top, minlength=catalogue)
    return _Seen(
        malformed=malformed,
        own=own,
        personal=personal,
        shown=shown,
        first=first,
        default=np.unique(_known(default, catalogue)),
    )


def _figures(evaluations: Sequence[Evaluation]) -> list[float]:
    return [
        figure
        for each in evaluations
        for figure in (
            each.precision,
            each.recall,
            each.ndcg,
            each.map,
            each.mrr,
            each.hit_rate,
            each.coverage,
        )
    ]


def _hidden(trained: TrainedRecommender) -> NDArray[np.bool_]:
    if trained.rules.hidden is None:
        return np.zeros(len(trained.interactions.items), dtype=bool)
    return trained.rules.hidden


def _showable(trained: TrainedRecommender) -> int:
    """Return how many items a default list may hold."""
    had = trained.interactions.item_units() > 0
    return int((had & ~_hidden(trained)).sum())


def _blocked_checks(
    trained: TrainedRecommender,
    lists: IntArray,
    default: IntArray,
    related: IntArray | None,
) -> list[Check]:
    """Count places of items that the filters hide, in all lists there are."""
    hidden = _hidden(trained)
    if not hidden.any():
        return []
    parts = {"units": lists, "default": default[np.newaxis]}
    if related is not None:
        parts["related"] = related
    return [
        Check(
            name="places with blocked items",
            value=int(hidden[_known(part, hidden.size)].sum()),
            threshold=0,
            rule="at most",
            slice=name,
        )
        for name, part in parts.items()
    ]


def _light_checks(trained: TrainedRecommender, lists: IntArray) -> list[Check]:
    """Check units of whom little is known, and sessions of strangers."""
    interactions = trained.interactions
    checks = []
    light = np.diff(interactions.matrix.indptr) < FEW_ITEMS
    # What shows nothing but a unit's own items has few of them here, rightly.
    if light.any() and trained.capabilities.new_items:
        first = lists[light][:, :TOP_PLACES]
        checks.append(
            Check(
                name=f"share of the first {TOP_PLACES} places with items of its own",
                value=float((first >= 0).mean()),
                threshold=MIN_OWN_ITEMS_LIGHT,
                slice=f"units with fewer than {FEW_ITEMS} items",
            )
        )
    if trained.capabilities.session:
        popular = np.argsort(-interactions.item_units(), kind="stable")[:TOP_PLACES]
        sessions = popular.astype(np.int32)[:, np.newaxis]
        answers = trained.for_sessions(sessions, 1, exclude_seen=True)
        checks.append(
            Check(
                name="share of sessions with an answer",
                value=float((answers.items[:, 0] >= 0).mean()),
                threshold=0.5,
                slice=f"strangers at one of the {len(popular)} most popular items",
            )
        )
    return checks


def _personal_checks(
    trained: TrainedRecommender,
    depth: int,
    seen: _Seen,
    personal: float,
) -> list[Check]:
    """Return the checks that one list for all would fail, as popularity's must."""
    distinct = Check(
        name="distinct items in all lists", value=int(seen.shown.sum()), threshold=depth
    )
    if trained.capabilities.cold_units:
        return [distinct]
    others = math.ceil(MIN_OTHER_ITEMS * (seen.shown.size - depth))
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
        Check(
            name=f"share of the first places for the {TOP_PLACES} items shown most",
            value=float(
                np.sort(seen.first)[-TOP_PLACES:].sum() / max(seen.first.sum(), 1)
            ),
            threshold=MAX_TOP_SHARE,
            rule="at most",
        ),
    ]


def _price_checks(
    interactions: Interactions, catalogue: Catalogue, counts: NDArray[np.int64]
) -> list[Check]:
    """Check prices of the first places, given how often each item is there."""
    had = interactions.item_units()
    checks = []
    prices = catalogue.prices
    priced = ~np.isnan(prices) & (prices > 0)
    if priced[had > 0].mean() > 0.5:
        free = counts[prices == 0].sum() / max(int(counts.sum()), 1)
        ratio = _median(prices, counts * priced) / _median(prices, had * priced)
        checks += [
            Check(
                name="times that median prices shown and had differ",
                value=max(ratio, 1 / ratio),
                threshold=MAX_PRICE_RATIO,
                rule="at most",
            ),
            Check(
                name="share of the first places with items of price 0",
                value=float(free),
                threshold=MAX_FREE_ITEMS,
                rule="at most",
            ),
        ]
    return checks


def _category_checks(
    interactions: Interactions, catalogue: Catalogue, counts: NDArray[np.int64]
) -> list[Check]:
    codes = catalogue.category_codes
    if not (codes >= 0).any():
        return []
    return [
        Check(
            name="distance of the categories shown from those had",
            value=_category_shift(interactions, counts, codes),
            threshold=MAX_CATEGORY_SHIFT,
            rule="at most",
        )
    ]


def _median(values: NDArray[np.float64], counts: NDArray[np.number]) -> float:
    """Return the median of values that occur so many times; nan without any."""
    order = np.argsort(values, kind="stable")
    sums = np.cumsum(counts[order], dtype=np.float64)
    if not sums[-1]:
        return float("nan")
    return float(values[order][np.searchsorted(sums, sums[-1] / 2)])


def _category_shift(
    interactions: Interactions, counts: NDArray[np.int64], codes: IntArray
) -> float:
    had = category_mixes(interactions.matrix, codes)[-1].toarray().ravel()
    known = codes >= 0
    shown = np.bincount(codes[known], counts[known], minlength=had.size)
    if not shown.sum():
        return float("nan")
    return float(np.abs(shown / shown.sum() - had).sum() / 2)


def _overlap_check(lists: IntArray, previous: Previous) -> Check:
    first = min(TOP_PLACES, lists.shape[1], previous.lists.shape[1])
    mine, theirs = lists[previous.rows][:, :first], previous.lists[:, :first]
    same = (mine[:, :, np.newaxis] == theirs[:, np.newaxis]) & (mine >= 0)[
        ..., np.newaxis
    ]
    return Check(
        name=f"share of the first {first} places as in the version that serves",
        value=float(same.any(axis=2).mean()),
        threshold=MIN_OVERLAP,
        slice=f"{len(previous.rows)} units",
    )


def _cost_checks(cost: Cost) -> list[Check]:
    return [
        Check(
            name="seconds to make 1,000 lists",
            value=1000 * cost.seconds / max(cost.lists, 1),
            threshold=MAX_SECONDS_PER_THOUSAND,
            rule="at most",
        ),
        Check(
            name="memory taken, as share of the machine's",
            value=cost.memory / cost.available,
            threshold=MAX_MEMORY_SHARE,
            rule="at most",
        ),
    ]


def _known(lists: IntArray, catalogue: int) -> IntArray:
    return lists[(lists >= 0) & (lists < catalogue)]


def _is_malformed(lists: IntArray, catalogue: int) -> NDArray[np.bool_]:
    filled = lists >= 0
    gap = (filled[:, 1:] & ~filled[:, :-1]).any(axis=1)
    unknown = ((lists < -1) | (lists >= catalogue)).any(axis=1)
    ordered = np.sort(lists, axis=1)
    repeated = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    verdict: NDArray[np.bool_] = gap | unknown | repeated
    return verdict
