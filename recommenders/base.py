"""The contract of a recommender, and the one place where lists are cut and filtered.

A recommender is a frozen dataclass of its parameters. `fit` gives it what it learned, a
`Scorer`; `TrainedRecommender` turns scores into lists, the same way for all of them:
what must not be shown is taken out before a list is cut, so that none gets shorter.
Rows and scores only: no files, no HTTP, no database.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from recommenders.interactions import FloatArray, IntArray, Interactions
from recommenders.ranking import top_k
from recommenders.space import Space

#: Scores that a core holds at a time; 32 MB of float32.
BLOCK_SCORES = 8_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a recommender can do.

    Attributes
    ----------
    cold_units : bool
        Its list for a unit without history is its own, the same for all units.
    cold_items : bool
        It recommends items of the catalogue that nobody had.
    context_item : bool
        It has items that go with an item, `TrainedRecommender.related`; its scorer is a
        `ContextScorer`.
    session : bool
        It has items for what somebody, known or not, just looked at,
        `TrainedRecommender.for_sessions`; its scorer is a `SessionScorer`.
    new_items : bool
        It recommends to a unit what that unit has not had.
    dislikes : bool
        It learns from what units were shown and did not take, `Interactions.passed`.
    """

    cold_units: bool = False
    cold_items: bool = False
    context_item: bool = False
    session: bool = False
    new_items: bool = True
    dislikes: bool = False


class Scorer(Protocol):
    """What a recommender learned: scores for blocks of rows.

    A frozen dataclass of arrays, sparse matrices, numbers, texts and other such
    dataclasses, so that it can be saved. Higher is better; -inf means never; nan is
    refused. Arrays returned are the caller's to change.
    """

    def unit_scores(self, rows: IntArray) -> FloatArray:
        """Score every item for each of these units, shape (rows, items)."""
        ...


class ContextScorer(Scorer, Protocol):
    """A scorer of a recommender that says `context_item`."""

    def item_scores(self, rows: IntArray) -> FloatArray:
        """Score how well every item goes with each of these, shape (rows, items)."""
        ...


class SessionScorer(Scorer, Protocol):
    """A scorer of a recommender that says `session`."""

    def session_scores(self, sessions: IntArray) -> FloatArray:
        """Score every item for each session, shape (sessions, items).

        `sessions` has shape (sessions, length): item rows, the latest last; -1 is none.
        """
        ...


@runtime_checkable
class AdditiveSessionScorer(ContextScorer, SessionScorer, Protocol):
    """A scorer of sessions by sums, so that they can be scored from related lists.

    Up to a factor of each session, and rounding, its `session_scores` are the sums of the
    `item_scores` of the session's items times `fade`; -inf counts as nothing.
    """

    @property
    def fade(self) -> FloatArray:
        """How much the items of a session count, the latest first; in [0, 1].

        Those before do not count; one that comes twice counts for both.
        """
        ...


@runtime_checkable
class RoutedScorer(Protocol):
    """A scorer that is made of several, and tells which of them scored an item."""

    #: Names of its parts.
    routes: tuple[str, ...]

    def route_of(self, units: IntArray, items: IntArray) -> NDArray[np.int8]:
        """Return the part that scored each item, shape of `items`, (units, k).

        A unit of -1 is nobody in particular; an item of -1 may have any part.
        """
        ...


class Recommender(Protocol):
    """A way to recommend and its parameters; a frozen dataclass.

    Attributes
    ----------
    capabilities : Capabilities
        What it can do, whatever its parameters.
    space : mapping of str to Space
        Where a search looks for better parameters.
    """

    capabilities: ClassVar[Capabilities]
    space: ClassVar[Mapping[str, Space]]

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
class Lists:
    """Lists of items, best first, and why each item is there.

    Attributes
    ----------
    items : int32 array, shape (n, k)
        Item rows, no one twice in a list; -1, the padding, where there are no more.
    scores : float32 array, shape (n, k)
        Not comparable between recommenders; -inf in the padding. They fall along a list
        unless a re-ranker moved items.
    sources : int8 array, shape (n, k)
        Place in `labels` of what put the item there; 0 in the padding.
    labels : tuple of str
        Empty for the recommender itself, else its part or a re-ranking step.
    propensities : float32 array, shape (n, k)
        Probability that this item was put in this place, in (0, 1]; 1 where nothing was
        drawn, and in the padding.
    """

    items: IntArray
    scores: FloatArray
    sources: NDArray[np.int8]
    labels: tuple[str, ...]
    propensities: FloatArray


class Reranker(Protocol):
    """A step that changes the order of lists, or what is in them, before they are cut.

    Attributes
    ----------
    candidates : int, >= 1
        How many items per place of a list it wants to choose from.
    """

    @property
    def candidates(self) -> int:
        """How many items per place of a list it wants to choose from."""
        ...

    def rerank(
        self, lists: Lists, k: int, units: IntArray, seen: csr_matrix | None
    ) -> Lists:
        """Return lists whose first k places are settled; the others may follow.

        Parameters
        ----------
        lists : Lists
            Candidates, `candidates` times k of them or more if there are so many.
        k : int
            Length of the final lists.
        units : int32 array, shape (n,)
            Whose lists; -1 is nobody in particular.
        seen : csr_matrix of shape (n, items), optional
            Stored entries are items that must not be added.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rules:
    """What goes for the lists of every recommender; made by `rerank.prepare`.

    Attributes
    ----------
    hidden : bool array, shape (items,), optional
        Items never shown, whoever asks.
    recent : csr_matrix of shape (units, items), optional
        Stored entries are left out of a unit's list even where repeats are allowed.
    boosts : float32 array, shape (items,), optional
        Added to an item's scores, in units of the range of the scores of a list.
    rerankers : tuple of Reranker
        In the order in which they are applied. Lists of units and the default list
        only: what goes with an item is asked for because it is alike.
    """

    hidden: NDArray[np.bool_] | None = None
    recent: csr_matrix | None = None
    boosts: FloatArray | None = None
    rerankers: tuple[Reranker, ...] = ()


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
    rules : Rules
        Filters and re-rankers; none by default.
    never : int array
        Items that no list can hold: hidden, or had by nobody and so of no use to a
        recommender without `cold_items`.
    """

    recommender: Recommender
    interactions: Interactions
    scorer: Scorer
    rules: Rules = field(default_factory=Rules)
    never: NDArray[np.intp] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        never = np.zeros(len(self.interactions.items), dtype=bool)
        if not self.capabilities.cold_items:
            never |= self.interactions.item_units() == 0
        if self.rules.hidden is not None:
            never |= self.rules.hidden
        object.__setattr__(self, "never", np.flatnonzero(never))

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        return self.recommender.capabilities

    def recommend(
        self, rows: IntArray, k: int, *, exclude_seen: bool
    ) -> tuple[IntArray, FloatArray]:
        """Return the items and scores of `lists`."""
        made = self.lists(rows, k, exclude_seen=exclude_seen)
        return made.items, made.scores

    def lists(self, rows: IntArray, k: int, *, exclude_seen: bool) -> Lists:
        """Return the best items for units.

        Parameters
        ----------
        rows : int array, shape (n,)
            Rows of units in training.
        k : int, >= 1
            Length of a list; may be more than there are items.
        exclude_seen : bool
            Leave out the items that the unit had in training.

        Raises
        ------
        ValueError
            When a row is not of a unit in training, or `k` is below 1.
        """
        rows = _checked_rows("unit", rows, len(self.interactions.units))
        seen = self.interactions.matrix if exclude_seen else self.rules.recent

        def of(block: slice) -> _Scored:
            units = rows[block]
            return _Scored(
                units=units,
                scores=self.scorer.unit_scores(units),
                seen=None if seen is None else seen[units],
            )

        return self._lists(len(rows), k, of, self.rules.rerankers)

    def for_sessions(self, sessions: IntArray, k: int, *, exclude_seen: bool) -> Lists:
        """Return the best items for what somebody just had to do with, known or not.

        Parameters
        ----------
        sessions : int array, shape (n, length)
            Item rows, the latest last; -1 where a session is shorter.
        k : int, >= 1
            Length of a list.
        exclude_seen : bool
            Leave out the items of the session.

        Raises
        ------
        ValueError
            When the recommender has no `session`, a row is not of an item in training,
            or `k` is below 1.
        """
        if not self.capabilities.session:
            raise self._cannot("lists for sessions", "session")
        n, length = np.shape(sessions) if np.ndim(sessions) == 2 else (-1, 0)
        flat = np.ravel(sessions)
        flat = _checked_rows("session item", flat, len(self.interactions.items), -1)
        if n < 0:
            raise ValueError(
                f"sessions have {np.ndim(sessions)} dimensions; they must have two, "
                "sessions and items"
            )
        rows = flat.reshape(n, length)
        scorer = cast("SessionScorer", self.scorer)

        def of(block: slice) -> _Scored:
            some = rows[block]
            return _Scored(
                units=np.full(len(some), -1, dtype=np.int32),
                scores=scorer.session_scores(some),
                seen=_one_hot(some, len(self.interactions.items))
                if exclude_seen
                else None,
            )

        return self._lists(n, k, of, self.rules.rerankers)

    def default(self, k: int) -> IntArray:
        """Return the list for a unit that was not in training.

        Its own where it has `cold_units`, else the items of most units.

        Returns
        -------
        int32 array, shape (k,)
            Item rows; equal ones by row; -1 where there are no more.

        Raises
        ------
        ValueError
            When `k` is below 1.
        """

        def of(_: slice) -> _Scored:
            if self.capabilities.cold_units:
                scores = self.scorer.unit_scores(np.zeros(1, dtype=np.int32))
            else:
                units = self.interactions.item_units()[np.newaxis]
                scores = np.where(units > 0, units, -np.float32(np.inf))
            return _Scored(
                units=np.full(1, -1, dtype=np.int32), scores=scores, seen=None
            )

        items: IntArray = self._lists(1, k, of, self.rules.rerankers).items[0]
        return items

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
        if not self.capabilities.context_item:
            raise self._cannot("related items", "context_item")
        rows = _checked_rows("item", rows, len(self.interactions.items))
        scorer = cast("ContextScorer", self.scorer)

        def of(block: slice) -> _Scored:
            items = rows[block]
            scores = scorer.item_scores(items)
            scores[np.arange(len(items)), items] = -np.inf
            nobody = np.full(len(items), -1, dtype=np.int32)
            return _Scored(units=nobody, scores=scores, seen=None)

        made = self._lists(len(rows), k, of, ())
        return made.items, made.scores

    def _lists(
        self,
        n: int,
        k: int,
        of: "Callable[[slice], _Scored]",
        rerankers: tuple[Reranker, ...],
    ) -> Lists:
        _check_k(k)
        made = _empty(n, k, self.scorer)
        depth = k * max((step.candidates for step in rerankers), default=1)
        step = max(1, BLOCK_SCORES // len(self.interactions.items))
        blocks = [slice(start, start + step) for start in range(0, n, step)]

        def cut(block: slice) -> Lists:
            scored = of(block)
            self._hide(scored)
            lists = self._best(scored, depth)
            for reranker in rerankers:
                lists = reranker.rerank(lists, k, scored.units, scored.seen)
            return lists

        for block, lists in zip(blocks, _on_all_cores(cut, blocks), strict=True):
            made.items[block] = lists.items[:, :k]
            made.scores[block] = lists.scores[:, :k]
            made.sources[block] = lists.sources[:, :k]
            made.propensities[block] = lists.propensities[:, :k]
            if lists.labels != made.labels:
                made = replace(made, labels=lists.labels)
        return made

    def _hide(self, scored: "_Scored") -> None:
        """Take out what must not be shown; nothing else in the project does."""
        scores, seen = scored.scores, scored.seen
        if self.rules.boosts is not None:
            scores += self.rules.boosts * _range(scores)
        if self.never.size:
            scores[:, self.never] = -np.inf
        if seen is not None:
            owners = np.repeat(np.arange(len(scores)), np.diff(seen.indptr))
            scores[owners, seen.indices] = -np.inf

    def _best(self, scored: "_Scored", depth: int) -> Lists:
        items, scores = top_k(scored.scores, depth)
        if isinstance(self.scorer, RoutedScorer):
            sources = self.scorer.route_of(scored.units, items)
        else:
            sources = np.zeros(items.shape, dtype=np.int8)
        return Lists(
            items=items,
            scores=scores,
            sources=np.where(items < 0, np.int8(0), sources),
            labels=_labels(self.scorer),
            propensities=np.ones(items.shape, dtype=np.float32),
        )

    def _cannot(self, what: str, flag: str) -> ValueError:
        return ValueError(
            f"{type(self.recommender).__name__} has no {what}; ask one whose {flag} is "
            "true"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scored:
    units: IntArray
    scores: FloatArray
    seen: csr_matrix | None


def _on_all_cores(
    cut: "Callable[[slice], Lists]", blocks: Sequence[slice]
) -> Iterator[Lists]:
    """Cut lists of blocks, one on each core: numbers do not depend on how many.

    A sum that BLAS splits among cores does.
    """
    if len(blocks) < 2:
        yield from map(cut, blocks)
        return
    cores = len(os.sched_getaffinity(0))
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores) as pool:
        yield from pool.map(cut, blocks)


def _labels(scorer: Scorer) -> tuple[str, ...]:
    return scorer.routes if isinstance(scorer, RoutedScorer) else ("",)


def _empty(n: int, k: int, scorer: Scorer) -> Lists:
    return Lists(
        items=np.full((n, k), -1, dtype=np.int32),
        scores=np.full((n, k), -np.inf, dtype=np.float32),
        sources=np.zeros((n, k), dtype=np.int8),
        labels=_labels(scorer),
        propensities=np.ones((n, k), dtype=np.float32),
    )


def _range(scores: FloatArray) -> FloatArray:
    """Return greatest less least finite score of each row, shape (n, 1); 0 if none."""
    finite = np.isfinite(scores)
    high = np.where(finite, scores, -np.inf).max(axis=1, keepdims=True)
    low = np.where(finite, scores, np.inf).min(axis=1, keepdims=True)
    spans: FloatArray = np.where(high >= low, high - low, 0).astype(np.float32)
    return spans


def _one_hot(rows: IntArray, width: int) -> csr_matrix:
    """Return who has what, from padded rows; a pair given twice is stored once."""
    owners, places = np.nonzero(rows >= 0)
    ones = np.ones(owners.size, dtype=np.float32)
    columns = rows[owners, places]
    matrix = csr_matrix((ones, (owners, columns)), shape=(len(rows), width))
    matrix.sum_duplicates()
    return matrix


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


def _checked_rows(
    what: str, rows: NDArray[np.integer], count: int, low: int = 0
) -> IntArray:
    rows = np.asarray(rows)
    if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(
            f"{what} rows are {rows.dtype} of shape {rows.shape}; they must be integers "
            "in one dimension"
        )
    outside = rows[(rows < low) | (rows >= count)]
    if outside.size:
        raise ValueError(
            f"{what} row {outside[0]} is not in training; rows go from {low} to "
            f"{count - 1}"
        )
    checked: IntArray = rows.astype(np.int32)
    return checked


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; a list must have 1 item or more")
