"""Target: what another policy would have done in each round of a log.

A scheduled policy has one vector of weights per version, so the probabilities are a
small table and the row of it that held in each round.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policies.base import SUM_TOLERANCE, FloatArray
from policies.logged import LoggedRounds, check_rows, chunks


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """Probabilities of all K arms in each of T rounds, under a policy to evaluate.

    Attributes
    ----------
    table : float64 array, shape (M, K)
        Vectors of probabilities; each sums to 1 within 1e-9.
    row : int32 array, shape (T,), or None
        The vector that holds in each round. None: M is 1 and it holds in all rounds,
        or M is T and each round has its own.

    Raises
    ------
    ValueError
        Names the array, the row, its value and the rule.
    """

    table: FloatArray
    row: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        table = np.asarray(self.table, dtype=np.float64)
        if table.ndim != 2 or table.shape[0] < 1 or table.shape[1] < 2:
            raise ValueError(
                f"table has shape {table.shape}; it must be (M, K) with M >= 1 vectors "
                "of K >= 2 arms"
            )
        for start, stop in chunks(len(table)):
            part = table[start:stop]
            good = (part >= 0).all(axis=1)
            good &= np.abs(part.sum(axis=1) - 1) <= SUM_TOLERANCE
            if not good.all():
                bad = start + int(np.argmin(good))
                raise ValueError(
                    f"row {bad} of table is {table[bad].tolist()}; it must hold "
                    "probabilities >= 0 that sum to 1 within 1e-9"
                )
        object.__setattr__(self, "table", table)
        if self.row is not None:
            row = np.asarray(self.row)
            check_rows(
                "row",
                row,
                lambda r: (r >= 0) & (r < len(table)),
                f"it must be an index into the {len(table)} vectors",
            )
            object.__setattr__(self, "row", row.astype(np.int32, copy=False))

    @classmethod
    def constant(cls, weights: ArrayLike) -> "Target":
        """Return the target that gives all rounds the same weights, shape (K,)."""
        return cls(table=np.atleast_2d(np.asarray(weights, dtype=np.float64)))

    @classmethod
    def from_positions(cls, table: ArrayLike, rounds: LoggedRounds) -> "Target":
        """Return the target of a carousel with probabilities per position.

        Parameters
        ----------
        table : array-like, shape (P, K)
            Probability of each arm at position 1, 2, ..., P.
        rounds : LoggedRounds
            With positions, none above P.
        """
        if rounds.position is None:
            raise ValueError("the log has no positions; a table by position needs them")
        return cls(
            table=np.asarray(table, dtype=np.float64),
            row=rounds.position.astype(np.int32) - 1,
        )

    @classmethod
    def from_epochs(
        cls, starts: ArrayLike, weights: ArrayLike, rounds: LoggedRounds
    ) -> "Target":
        """Return the target of a policy that changed its weights over the log.

        Parameters
        ----------
        starts : int array, shape (E,)
            First round of each epoch; increasing, the first is 0.
        weights : float64 array, shape (E, S, K)
            Weights by epoch and segment; S is 1 when segments share them.
        rounds : LoggedRounds
            The log.
        """
        begin, table = np.asarray(starts), np.asarray(weights, dtype=np.float64)
        if (
            table.ndim != 3
            or begin.shape != table.shape[:1]
            or not begin.size
            or begin[0] != 0
            or (np.diff(begin) <= 0).any()
            or begin[-1] >= rounds.rounds
        ):
            raise ValueError(
                f"starts has shape {begin.shape} beside weights of shape "
                f"{table.shape}; they must be (E,), increasing from 0 and below the "
                "number of rounds, and (E, S, K)"
            )
        lengths = np.diff(np.append(begin, rounds.rounds))
        row = np.repeat(np.arange(len(begin), dtype=np.int32), lengths)
        segments = table.shape[1]
        if segments > 1:
            if rounds.segment is None or len(rounds.segments) != segments:
                raise ValueError(
                    f"weights has {segments} segments and the log has "
                    f"{len(rounds.segments)}; they must agree"
                )
            row *= np.int32(segments)
            row += rounds.segment
        return cls(table=table.reshape(-1, table.shape[2]), row=row)

    def check_fits(self, rounds: LoggedRounds) -> None:
        """Refuse a target that is not of the log's arms and rounds.

        Raises
        ------
        ValueError
            Names both shapes.
        """
        arms, vectors = len(rounds.arms), len(self.table)
        length = vectors if self.row is None else len(self.row)
        everywhere = self.row is None and vectors == 1
        if self.table.shape[1] != arms or not (everywhere or length == rounds.rounds):
            raise ValueError(
                f"the target is of {self.table.shape[1]} arms and {length} rounds; the "
                f"log has {arms} arms and {rounds.rounds} rounds"
            )

    def probabilities(self, start: int, stop: int) -> FloatArray:
        """Return the probabilities in rounds start to stop - 1, shape (stop-start, K).

        When one vector holds in all rounds the shape is (1, K).
        """
        if self.row is not None:
            return self.table[self.row[start:stop]]
        return self.table if len(self.table) == 1 else self.table[start:stop]

    def of_logged(self, rounds: LoggedRounds, start: int, stop: int) -> FloatArray:
        """Return the probability of the logged arm in rounds start to stop - 1."""
        row: NDArray[np.int32] | int = 0
        if self.row is not None:
            row = self.row[start:stop]
        elif len(self.table) > 1:
            row = np.arange(start, stop, dtype=np.int32)
        return np.asarray(self.table[row, rounds.arm[start:stop]])


def chances_of_logged(
    rounds: LoggedRounds, target: Target | FloatArray
) -> Callable[[int, int], FloatArray]:
    """Return a function that gives the target's probability of the logged arms."""
    if isinstance(target, Target):
        target.check_fits(rounds)
        return lambda start, stop: target.of_logged(rounds, start, stop)
    chances = np.asarray(target, dtype=np.float64)
    if chances.shape != rounds.propensity.shape:
        raise ValueError(
            f"target has shape {chances.shape}; it must be one probability for each of "
            f"the {rounds.rounds} rounds"
        )
    check_rows(
        "target",
        chances,
        lambda p: (p >= 0) & (p <= 1),
        "it must be a number from 0 to 1",
    )
    return lambda start, stop: chances[start:stop]
