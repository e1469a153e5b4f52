"""The contract of a recommender, and the one place where lists are cut and filtered.

A recommender is a frozen dataclass of its parameters. `fit` gives it what it learned, a
`Scorer`; `TrainedRecommender` turns scores into lists, the same way for all of them.
Rows and scores only: no files, no HTTP, no database.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from recommenders.interactions import FloatArray, IntArray, Interactions
from recommenders.ranking import top_k

#: Scores held at a time; 32 MB of float32.
BLOCK_SCORES = 8_000_000


class Scorer(Protocol):
    """What a recommender learned: scores for blocks of rows.

    Higher is better; -inf means never; nan is refused. Arrays returned are the
    caller's to change.
    """

    def unit_scores(self, rows: IntArray) -> FloatArray:
        """Score every item for each of these units, shape (rows, items)."""
        ...

    def item_scores(self, rows: IntArray) -> FloatArray:
        """Score how well every item goes with each of these, shape (rows, items).

        Called only where the recommender says `context_item`.
        """
        ...


class Recommender(Protocol):
    """A way to recommend and its parameters; a frozen dataclass.

    Attributes
    ----------
    cold_units : bool
        Its list for a unit without history is its own, so `default` is no fallback.
    context_item : bool
        It has items that go with an item, `TrainedRecommender.related`.
    """

    cold_units: ClassVar[bool]
    context_item: ClassVar[bool]

    def fit(
        self, interactions: Interactions, rng: np.random.Generator
    ) -> "TrainedRecommender":
        """Learn from interactions; the same seed gives the same lists.

        Raises
        ------
        ValueError
            When these parameters learn nothing that can be used from this data.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedRecommender:
    """A recommender with what it learned; makes lists for rows of units and items.

    Lists are best first; equal scores go by item row, so they are reproducible. Each is
    padded at its end: items with -1, scores with -inf.

    Attributes
    ----------
    recommender : Recommender
        With the parameters used.
    interactions : Interactions
        What it was trained on: its ids, and what each unit has seen.
    scorer : Scorer
        What it learned.
    """

    recommender: Recommender
    interactions: Interactions
    scorer: Scorer

    @property
    def cold_units(self) -> bool:
        """Whether `default` is its own answer for a unit without history."""
        return self.recommender.cold_units

    @property
    def context_item(self) -> bool:
        """Whether it has `related` items."""
        return self.recommender.context_item

    def recommend(
        self, rows: IntArray, k: int, *, exclude_seen: bool
    ) -> tuple[IntArray, FloatArray]:
        """Return the best items for units.

        Parameters
        ----------
        rows : int array, shape (n,)
            Rows of units in training.
        k : int, >= 1
            Length of a list; may be more than there are items.
        exclude_seen : bool
            Leave out the items that the unit had in training.

        Returns
        -------
        items : int32 array, shape (n, k)
            Item rows, no one twice in a list, -1 where there are no more.
        scores : float32 array, shape (n, k)
            Not comparable between recommenders; -inf where there are no more.

        Raises
        ------
        ValueError
            When a row is not of a unit in training, or `k` is below 1.
        """
        rows = _checked_rows("unit", rows, len(self.interactions.units))

        def scores_of(block: IntArray) -> FloatArray:
            scores = self.scorer.unit_scores(block)
            if exclude_seen:
                seen = self.interactions.matrix[block]
                owners = np.repeat(np.arange(len(block)), np.diff(seen.indptr))
                scores[owners, seen.indices] = -np.inf
            return scores

        return self._lists(rows, k, scores_of)

    def default(self, k: int) -> IntArray:
        """Return the items of most units, for a unit that was not in training.

        Returns
        -------
        int32 array, shape (k,)
            Item rows; equally popular ones by row; -1 where there are no more.

        Raises
        ------
        ValueError
            When `k` is below 1.
        """
        _check_k(k)
        lists, _ = top_k(self.interactions.item_units()[np.newaxis], k)
        return lists.reshape(k)

    def related(self, rows: IntArray, k: int) -> tuple[IntArray, FloatArray]:
        """Return the items that go best with each of these, without itself.

        Parameters
        ----------
        rows : int array, shape (n,)
            Rows of items.
        k : int, >= 1
            Length of a list.

        Returns
        -------
        items : int32 array, shape (n, k)
            Item rows, -1 where there are no more.
        scores : float32 array, shape (n, k)
            Likeness; -inf where there are no more.

        Raises
        ------
        ValueError
            When the recommender has no `context_item`, a row is not of an item in
            training, or `k` is below 1.
        """
        if not self.context_item:
            raise ValueError(
                f"{type(self.recommender).__name__} has no related items; ask one "
                "whose context_item is true"
            )
        rows = _checked_rows("item", rows, len(self.interactions.items))

        def scores_of(block: IntArray) -> FloatArray:
            scores = self.scorer.item_scores(block)
            scores[np.arange(len(block)), block] = -np.inf
            return scores

        return self._lists(rows, k, scores_of)

    def _lists(
        self, rows: IntArray, k: int, scores_of: Callable[[IntArray], FloatArray]
    ) -> tuple[IntArray, FloatArray]:
        _check_k(k)
        catalogue = len(self.interactions.items)
        items = np.full((len(rows), k), -1, dtype=np.int32)
        scores = np.full((len(rows), k), -np.inf, dtype=np.float32)
        step = max(1, BLOCK_SCORES // catalogue)
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            items[block], scores[block] = top_k(scores_of(rows[block]), k)
        return items, scores


def check_integer(name: str, value: object, *, low: int, high: int) -> None:
    """Refuse a parameter that is not an int in [low, high].

    Raises
    ------
    ValueError
        Names the parameter, its value and the rule.
    """
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be an integer, {low} to {high}")


def check_number(name: str, value: object, *, low: float, high: float) -> None:
    """Refuse a parameter that is not an int or float in [low, high].

    Raises
    ------
    ValueError
        Names the parameter, its value and the rule.
    """
    number = value if isinstance(value, int | float) else float("nan")
    if isinstance(value, bool) or not low <= number <= high:
        raise ValueError(f"{name} is {value!r}; it must be a number, {low} to {high}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a parameter that is not one of the choices.

    Raises
    ------
    ValueError
        Names the parameter, its value and the choices.
    """
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")


def _checked_rows(what: str, rows: NDArray[np.integer], count: int) -> IntArray:
    rows = np.asarray(rows)
    if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(
            f"{what} rows are {rows.dtype} of shape {rows.shape}; they must be integers "
            "in one dimension"
        )
    outside = rows[(rows < 0) | (rows >= count)]
    if outside.size:
        raise ValueError(
            f"{what} row {outside[0]} is not in training; rows go from 0 to {count - 1}"
        )
    checked: IntArray = rows.astype(np.int32)
    return checked


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; a list must have 1 item or more")
