"""LoggedRounds: what a bandit showed and earned, as arrays that are checked once.

Everything that looks back (replay, off-policy evaluation) reads these arrays and trusts
them. Knows no file, no database and no policy.
"""

import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from policies.base import FloatArray, Mask

IntArray = NDArray[np.int64]

#: Rows looked at together: temporary arrays stay at a few MB beside a log on disk.
CHUNK = 1 << 18

_FLOATS = ("propensity", "reward", "time")
_OPTIONAL = ("unit", "position", "segment")
_TYPES: dict[str, DTypeLike] = {
    "arm": np.int32,
    "propensity": np.float64,
    "reward": np.float64,
    "time": np.float64,
    "unit": np.int64,
    "position": np.int16,
    "segment": np.int32,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoggedRounds:
    """T rounds of a log in the order of their time; one row is one decision.

    Attributes
    ----------
    arms : tuple of str
        Names of the K >= 2 arms that could be chosen, whether the log has them or not.
    arm : int32 array, shape (T,)
        Index of the chosen arm.
    propensity : float64 array, shape (T,), in (0, 1]
        Probability with which that arm was chosen in that round; in a carousel, with
        which it came to that position. Never that of another version of the policy.
    reward : float64 array, shape (T,)
        Finite.
    time : float64 array, shape (T,)
        Seconds since 1970, non-decreasing.
    unit : int64 array, shape (T,), or None
        Code of who or what was randomised; rounds of one unit depend on each other.
        None: each round is a unit of its own. Dense codes (0, 1, 2, ...) are fastest.
    position : int16 array, shape (T,), or None
        Place in the carousel, from 1.
    segment : int32 array, shape (T,), or None
        Index into segments.
    segments : tuple of str
        Names of the segments; empty when segment is None.

    Raises
    ------
    ValueError
        If an array is not of shape (T,) with T >= 1 or breaks a rule above; names the
        first such row (from 0), its value and the rule.

    Notes
    -----
    Arrays of the right type are neither copied nor read as a whole, so they may be
    memory-mapped. They are read-only here; who gave them must not write to them.
    """

    arms: tuple[str, ...]
    arm: NDArray[np.int32]
    propensity: FloatArray
    reward: FloatArray
    time: FloatArray
    unit: IntArray | None = None
    position: NDArray[np.int16] | None = None
    segment: NDArray[np.int32] | None = None
    segments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "arms", _names("arms", self.arms, least=2))
        least = 0 if self.segment is None else 1
        object.__setattr__(self, "segments", _names("segments", self.segments, least))
        for name in _TYPES:
            if name not in _OPTIONAL or getattr(self, name) is not None:
                object.__setattr__(self, name, _column(name, getattr(self, name)))
        if self.rounds < 1:
            raise ValueError("the log is empty; it must have at least one round")
        for name in _TYPES:
            values = getattr(self, name)
            if values is not None and len(values) != self.rounds:
                raise ValueError(
                    f"{name} has {len(values)} rows and arm has {self.rounds}; all "
                    "columns must be of one length"
                )
        self._check_rows()

    def _check_rows(self) -> None:
        """Refuse the first row of each column that breaks the column's rule."""
        arms, segments = len(self.arms), len(self.segments)
        check_rows(
            "arm",
            self.arm,
            lambda a: (a >= 0) & (a < arms),
            f"it must be an index into the {arms} arms, 0 to {arms - 1}",
        )
        check_rows(
            "propensity",
            self.propensity,
            lambda p: (p > 0) & (p <= 1),
            "it must be a number above 0 and at most 1 (nan: it is missing)",
        )
        check_rows("reward", self.reward, np.isfinite, "it must be finite")
        check_rows("time", self.time, np.isfinite, "it must be finite")
        for start, stop in chunks(self.rounds):
            times = self.time[max(start - 1, 0) : stop]
            back = np.flatnonzero(times[1:] < times[:-1])
            if back.size:
                row = max(start - 1, 0) + int(back[0]) + 1
                raise ValueError(
                    f"time of row {row} is {self.time[row].item()!r}, before that of "
                    f"row {row - 1}, {self.time[row - 1].item()!r}; rows must be sorted by time"
                )
        if self.position is not None:
            check_rows(
                "position", self.position, lambda p: p >= 1, "positions count from 1"
            )
        if self.segment is not None:
            check_rows(
                "segment",
                self.segment,
                lambda s: (s >= 0) & (s < segments),
                f"it must be an index into the {segments} segments",
            )

    @classmethod
    def from_columns(
        cls,
        *,
        arms: Sequence[str],
        arm: Sequence[str],
        propensity: ArrayLike,
        reward: ArrayLike,
        time: ArrayLike,
        unit: Sequence[object] | None = None,
        position: ArrayLike | None = None,
        segment: Sequence[str] | None = None,
    ) -> "LoggedRounds":
        """Build the rounds from columns with names in place of indices.

        Parameters
        ----------
        arms : sequence of str
            Names of all arms; their order is that of the indices.
        arm : sequence of str, length T
            Name of the chosen arm.
        propensity, reward, time : array-like of numbers, length T
            As in the attributes; None counts as missing.
        unit : sequence of hashable, length T, or None
            Any identifiers; they become codes by their first appearance.
        position : array-like of int, length T, or None
            From 1.
        segment : sequence of str, length T, or None
            Names; `segments` holds them sorted.

        Raises
        ------
        ValueError
            If a row names an arm that `arms` lacks, or breaks a rule of the class.
        """
        index = {name: number for number, name in enumerate(arms)}
        for row, name in enumerate(arm):
            if name not in index:
                raise ValueError(
                    f"arm of row {row} is {reprlib.repr(name)}; it must be one of: "
                    f"{', '.join(map(str, arms))}"
                )
        codes: dict[object, int] = {}
        segments = tuple(sorted(set(segment))) if segment is not None else ()
        places = {name: number for number, name in enumerate(segments)}
        return cls(
            arms=tuple(arms),
            arm=np.array([index[name] for name in arm], dtype=np.int32),
            propensity=np.asarray(propensity, dtype=np.float64),
            reward=np.asarray(reward, dtype=np.float64),
            time=np.asarray(time, dtype=np.float64),
            unit=None
            if unit is None
            else np.array([codes.setdefault(u, len(codes)) for u in unit], np.int64),
            position=None if position is None else np.asarray(position),
            segment=None
            if segment is None
            else np.array([places[name] for name in segment], dtype=np.int32),
            segments=segments,
        )

    @property
    def rounds(self) -> int:
        """The number of rounds, T."""
        return len(self.arm)

    def slice(self, start: int, stop: int) -> "LoggedRounds":
        """Return rows start to stop - 1 as views, without checking them again."""
        part = object.__new__(LoggedRounds)
        for name in ("arms", "segments"):
            object.__setattr__(part, name, getattr(self, name))
        for name in _TYPES:
            values = getattr(self, name)
            values = None if values is None else values[start:stop]
            object.__setattr__(part, name, values)
        return part


def chunks(rows: int, size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Yield start and stop of consecutive ranges that cover the rows."""
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


def check_rows(
    name: str, values: NDArray[Any], rule: Callable[[Any], Mask], text: str
) -> None:
    """Refuse a column by its first row for which the rule is not true.

    Raises
    ------
    ValueError
        Names the column, the row (from 0), its value and the rule.
    """
    for start, stop in chunks(len(values)):
        passed = rule(values[start:stop])
        if not passed.all():
            row = start + int(np.argmin(passed))
            raise ValueError(f"{name} of row {row} is {values[row].item()!r}; {text}")


def add_to_units(
    total: FloatArray, codes: IntArray | None, start: int, values: FloatArray
) -> None:
    """Add values of rounds from start on to the totals of their units."""
    stop = start + len(values)
    if codes is None:
        total[start:stop] += values
    else:
        np.add.at(total, codes[start:stop], values)


def _names(name: str, given: Sequence[object], least: int) -> tuple[str, ...]:
    """Return names as a tuple if they are texts that differ."""
    if len(given) < least:
        raise ValueError(f"{name} has {len(given)} entries; it must have >= {least}")
    names: list[str] = []
    for number, text in enumerate(given):
        if not isinstance(text, str) or not text:
            raise ValueError(
                f"{name} entry {number} is {reprlib.repr(text)}; it must be a text "
                "that is not empty"
            )
        if text in names:
            raise ValueError(f"{name} has {reprlib.repr(text)} twice")
        names.append(text)
    return tuple(names)


def _column(name: str, given: ArrayLike) -> NDArray[Any]:
    """Return a read-only view of a column in its type, a copy only if it must be."""
    values = np.asarray(given)
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape}; it must be (T,)")
    wanted = np.dtype(_TYPES[name])
    if values.dtype != wanted:
        kinds = "fiub" if name in _FLOATS else "iu"
        if values.size and values.dtype.kind not in kinds:
            raise ValueError(
                f"{name} has type {values.dtype}; it must be "
                + ("numbers" if name in _FLOATS else "whole numbers")
            )
        if name not in _FLOATS and values.size:
            limits = np.iinfo(wanted)
            check_rows(
                name,
                values,
                lambda v: (v >= limits.min) & (v <= limits.max),
                f"it must fit in {wanted}",
            )
        values = values.astype(wanted)
    view = values.view()
    view.flags.writeable = False
    return view
