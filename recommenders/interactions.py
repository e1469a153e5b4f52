"""Who interacted with what, and when: maps of ids to rows, weights, and the events.

Knows neither files nor recommenders. Ids are text outside and rows inside: everything
that computes sees rows only.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix

from recommenders.catalogue import Catalogue
from recommenders.instants import DAY, NO_TIME

#: The limit of the service for `unit_id` and `item_id`, in characters.
MAX_ID_LENGTH = 128

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdMap:
    """Ids in order, and the row of each.

    Attributes
    ----------
    ids : tuple of str
        Distinct and sorted by code point; the row of an id is its place here.

    Raises
    ------
    ValueError
        When there is none, or one isn't text of 1 to 128 characters, distinct, sorted.
    """

    ids: tuple[str, ...]
    _row_of: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.ids:
            raise ValueError("ids are empty; at least one is needed")
        for each in self.ids:
            _check_id(each)
        for before, after in pairwise(self.ids):
            if before >= after:
                raise ValueError(
                    f"id {after!r} follows {before!r}; ids must be distinct and sorted"
                )
        rows = {each: row for row, each in enumerate(self.ids)}
        object.__setattr__(self, "_row_of", rows)

    @classmethod
    def from_ids(cls, ids: Iterable[str]) -> "IdMap":
        """Map ids in sorted order, however often and in what order they come.

        Raises
        ------
        ValueError
            When there is none, or one isn't text of 1 to 128 characters.
        """
        distinct = set(ids)
        for each in distinct:
            _check_id(each)
        return cls(ids=tuple(sorted(distinct)))

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, item: object) -> bool:
        return item in self._row_of

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def rows(self, ids: Sequence[str]) -> IntArray:
        """Return the row of each id, shape (len(ids),); -1 for an unknown one."""
        get = self._row_of.get
        return np.fromiter((get(each, -1) for each in ids), np.int32, len(ids))

    def ids_of(self, rows: IntArray) -> list[str]:
        """Return the ids of rows; negative rows, the padding of a list, are left out."""
        return [self.ids[row] for row in rows.tolist() if row >= 0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Events:
    """Each interaction by itself, in order of time; equal times by unit and item.

    Attributes
    ----------
    units, items : int32 arrays, shape (events,)
        Rows.
    times : int64 array, shape (events,)
        Microseconds since 1970 in UTC.
    weights : float32 array, shape (events,)
        Greater than 0.
    """

    units: IntArray
    items: IntArray
    times: NDArray[np.int64]
    weights: FloatArray

    def by_unit(self) -> NDArray[np.intp]:
        """Return the order by unit, and by time within one, shape (events,)."""
        return np.argsort(self.units, kind="stable")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Interactions:
    """How much each unit had to do with each item.

    Attributes
    ----------
    units, items : IdMap
        Ids of the rows and columns of `matrix`.
    matrix : csr_matrix of float32, shape (units, items)
        Sum of weights of each pair, such as a number of baskets: finite and > 0 where
        stored, at least one stored. Sorted and without duplicates. Its arrays are made
        read-only, as trained models share them. An item of the catalogue that nobody
        had is an empty column.
    events : Events, optional
        What the matrix sums up, where it is known when it happened.
    catalogue : Catalogue, optional
        What is known of the items, in the order of `items`.
    passed : csr_matrix of float32, shape (units, items), optional
        Evidence against a pair, in the units of `matrix`: how often the unit probably
        looked at the item in a list and left it. By the rules of `matrix`, but may be
        empty.

    Raises
    ------
    ValueError
        When a matrix breaks these rules, or the catalogue is of other items.
    """

    units: IdMap
    items: IdMap
    matrix: csr_matrix
    events: Events | None = None
    catalogue: Catalogue | None = None
    passed: csr_matrix | None = None

    def __post_init__(self) -> None:
        self._check_matrix("interactions", self.matrix)
        if self.passed is not None:
            self._check_matrix("passed", self.passed)
        if self.catalogue and len(self.catalogue.names) != len(self.items):
            raise ValueError(
                f"catalogue has {len(self.catalogue.names)} items and interactions "
                f"{len(self.items)}; it must be in the order of these"
            )

    def _check_matrix(self, what: str, matrix: csr_matrix) -> None:
        if not isinstance(matrix, csr_matrix) or matrix.dtype != np.float32:
            raise ValueError(
                f"{what} are {type(matrix).__name__} of "
                f"{getattr(matrix, 'dtype', 'no type')}; they must be a csr_matrix of "
                "float32"
            )
        if matrix.shape != (len(self.units), len(self.items)):
            raise ValueError(
                f"{what} have shape {matrix.shape}; with {len(self.units)} units "
                f"and {len(self.items)} items it must be "
                f"{(len(self.units), len(self.items))}"
            )
        if not matrix.has_canonical_format:
            raise ValueError(
                f"{what} hold a pair twice or out of order; rows must be sorted "
                "and without duplicates"
            )
        if matrix is self.matrix or matrix.nnz:
            _check_weights(what, matrix.data)
        for array in (matrix.data, matrix.indices, matrix.indptr):
            array.flags.writeable = False

    @classmethod
    def from_columns(
        cls,
        unit_ids: Sequence[str],
        item_ids: Sequence[str],
        weights: Sequence[float] | NDArray[np.floating] | None = None,
        *,
        times: NDArray[np.int64] | None = None,
        catalogue: pd.DataFrame | None = None,
        cold_items: bool = False,
    ) -> "Interactions":
        """Build the matrix from one entry per interaction.

        Parameters
        ----------
        unit_ids, item_ids : sequences of str, of one length
            Who and what; a pair may occur many times, and its weights are summed.
        weights : sequence of float, optional
            Finite and > 0; 1 each when left out.
        times : int64 array, optional
            When, in microseconds since 1970 in UTC.
        catalogue : DataFrame, optional
            What is known of the items, as of `tables.read_catalogue`.
        cold_items : bool
            Number the items of the catalogue that nobody had too.

        Raises
        ------
        ValueError
            When the columns are empty or differ in length, an id isn't text of 1 to 128
            characters, a weight isn't finite and > 0, or the catalogue breaks its rules.
        """
        count = len(unit_ids)
        values = np.ones(count) if weights is None else np.asarray(weights, np.float64)
        if len(item_ids) != count or values.shape != (count,):
            raise ValueError(
                f"interactions have {count} unit_ids, {len(item_ids)} item_ids and "
                f"weights of shape {values.shape}; the columns must have one length"
            )
        _check_weights("weights", values)
        listed = catalogue["item_id"] if cold_items and catalogue is not None else ()
        units, items = IdMap.from_ids(unit_ids), IdMap.from_ids([*item_ids, *listed])
        unit_rows, item_rows = units.rows(unit_ids), items.rows(item_ids)
        shape = (len(units), len(items))
        summed = coo_matrix((values, (unit_rows, item_rows)), shape=shape).tocsr()
        # float32 may turn the largest and smallest of float64 into inf and 0; the
        # constructor refuses both.
        with np.errstate(over="ignore", under="ignore"):
            matrix = summed.astype(np.float32)
            singles = values.astype(np.float32)
        matrix.sort_indices()
        return cls(
            units=units,
            items=items,
            matrix=matrix,
            events=None
            if times is None
            else _in_order(unit_rows, item_rows, times, singles),
            catalogue=None
            if catalogue is None
            else Catalogue.from_frame(catalogue, items.ids),
        )

    def with_passed(
        self,
        unit_ids: Sequence[str],
        item_ids: Sequence[str],
        evidence: NDArray[np.float64],
    ) -> "Interactions":
        """Return the same with what units were shown and did not take.

        Parameters
        ----------
        unit_ids, item_ids, evidence : of one length
            Those of a pair are summed; one below 0 takes away from the others. Pairs
            whose sum is not above 0, and units and items that are not known, are left
            out.

        Raises
        ------
        ValueError
            When the sum of a pair isn't finite.
        """
        rows, columns = self.units.rows(unit_ids), self.items.rows(item_ids)
        known = (rows >= 0) & (columns >= 0)
        places = (evidence[known], (rows[known], columns[known]))
        summed = coo_matrix(places, shape=self.matrix.shape).tocsr()
        summed.data = np.maximum(summed.data, 0).astype(np.float32)
        summed.eliminate_zeros()
        summed.sort_indices()
        return replace(self, passed=summed)

    def item_units(self) -> FloatArray:
        """Return how many units had to do with each item, shape (items,)."""
        counts = np.bincount(self.matrix.indices, minlength=len(self.items))
        return counts.astype(np.float32)

    def item_ages(self) -> NDArray[np.float64]:
        """Return the days from when each item was first had or listed to the last event.

        Returns
        -------
        float64 array, shape (items,)
            The earlier of the two; inf where neither is known.

        Raises
        ------
        ValueError
            When the times of the interactions are not known.
        """
        events = self.timed("the age of a product")
        first = np.full(len(self.items), np.inf)
        had, places = np.unique(events.items, return_index=True)
        first[had] = events.times[places]
        if self.catalogue is not None:
            listed = self.catalogue.listed_at
            known = np.where(listed == NO_TIME, np.inf, listed.astype(np.float64))
            first = np.minimum(first, known)
        ages = (events.times[-1] - first) / DAY
        return np.where(np.isinf(first), np.inf, ages)

    def timed(self, who: str) -> Events:
        """Return the events, for a recommender that can't do without.

        Raises
        ------
        ValueError
            Names `who` needs them, when they are not known.
        """
        if self.events is None:
            raise ValueError(
                f"{who} needs to know when each interaction was; these have no times"
            )
        return self.events

    def described(self, who: str) -> Catalogue:
        """Return the catalogue, for a recommender or step that can't do without.

        Raises
        ------
        ValueError
            Names `who` needs it, when there is none.
        """
        if self.catalogue is None:
            raise ValueError(f"{who} needs a catalogue of the items; none was given")
        return self.catalogue


def _in_order(
    units: IntArray, items: IntArray, times: NDArray[np.int64], weights: FloatArray
) -> Events:
    times = np.asarray(times)
    if times.dtype != np.int64 or times.shape != units.shape:
        raise ValueError(
            f"times are {times.dtype} of shape {times.shape}; they must be int64 of "
            f"shape {units.shape}, microseconds since 1970"
        )
    order = np.lexsort((weights, items, units, times))
    return Events(
        units=units[order],
        items=items[order],
        times=times[order],
        weights=weights[order],
    )


def _check_id(value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(  # noqa: TRY004 - one type for every error of input
            f"id {value!r} is {type(value).__name__}; ids must be text"
        )
    if not 1 <= len(value) <= MAX_ID_LENGTH:
        raise ValueError(
            f"id {value[:40]!r} has {len(value)} characters; it must have 1 to "
            f"{MAX_ID_LENGTH}"
        )


def _check_weights(what: str, values: NDArray[np.floating]) -> None:
    if not values.size:
        raise ValueError(f"{what} are empty; at least one interaction is needed")
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if bad.size:
        raise ValueError(
            f"{what} hold {values[bad[0]]!s} at entry {bad[0]}, and {bad.size} such in "
            "all; each weight must be finite and greater than 0"
        )
