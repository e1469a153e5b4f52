"""Scores of an off-policy estimator, and the values and differences that follow.

Scores hold an estimate and what each unit adds to its error. Whether a number may be
shown is decided by the overlap, in one place.
"""

import math
from dataclasses import dataclass
from typing import Literal

from scipy.special import ndtri

from policies.base import FloatArray, check_number
from policies.overlap import Overlap

#: What a value is a mean of: rewards of rounds, or summed rewards of carousels.
Per = Literal["round", "slate"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """What an estimator found, before it is decided whether it may be shown.

    Attributes
    ----------
    estimate : float
        Mean reward per round (or slate) under the target; nan when no round has weight
        and the estimator divides by the weights.
    influence : float64 array, shape (U,)
        What each unit adds to the error of the estimate, to first order; sums to 0. At
        the place of the unit's code (or rank of it), 0 where no unit is.
    units : int
        Units in the log.
    rounds : int
        Rounds in the log.
    method : str
        The estimator with its parameters.
    per : "round" or "slate"
    overlap : Overlap
    """

    estimate: float
    influence: FloatArray
    units: int
    rounds: int
    method: str
    per: Per
    overlap: Overlap

    @property
    def standard_error(self) -> float:
        """Clustered by unit; nan when there is one unit only."""
        if self.units < 2:
            return math.nan
        squares = float(self.influence @ self.influence)
        return math.sqrt(squares * self.units / (self.units - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A value of a policy, or a difference of two, with its interval.

    Attributes
    ----------
    estimate, standard_error, low, high : float or None
        None when the overlap's verdict is "withheld".
    level : float
        Of the normal interval from low to high.
    method : str
        The estimator with its parameters.
    per : "round" or "slate"
        What the value is a mean of.
    rounds, units : int
        Rounds and units of the log.
    overlap : Overlap
        Whether the value may be shown, and why; of a difference the worse one.
    """

    estimate: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    level: float
    method: str
    per: Per
    rounds: int
    units: int
    overlap: Overlap


def value(scores: Scores, *, level: float = 0.95) -> Value:
    """Return the value with its interval, or no number where overlap is too thin.

    Parameters
    ----------
    scores : Scores
    level : float, 0.5 to 0.9999

    Raises
    ------
    ValueError
        If level is out of range.
    """
    check_number("level", level, low=0.5, high=0.9999)
    numbers: tuple[float | None, ...] = (None,) * 4
    if scores.overlap.verdict != "withheld":
        error = scores.standard_error
        half = float(ndtri(0.5 + level / 2)) * error
        low, high = scores.estimate - half, scores.estimate + half
        numbers = (scores.estimate, error, low, high)
    return Value(
        estimate=numbers[0],
        standard_error=numbers[1],
        low=numbers[2],
        high=numbers[3],
        level=level,
        method=scores.method,
        per=scores.per,
        rounds=scores.rounds,
        units=scores.units,
        overlap=scores.overlap,
    )


def difference(first: Scores, second: Scores, *, level: float = 0.95) -> Value:
    """Return first minus second of two policies on the same log, unit by unit.

    The units are the same, so what they share cancels: the interval is narrower than
    two intervals side by side suggest.

    Raises
    ------
    ValueError
        If the scores are not of the same log or not per the same thing.
    """
    for name in ("rounds", "units", "per"):
        ours, theirs = getattr(first, name), getattr(second, name)
        if ours != theirs:
            raise ValueError(
                f"{name} is {ours!r} in one and {theirs!r} in the other; a difference "
                "takes two policies on the same log, valued per the same thing"
            )
    order = ("fine", "warning", "withheld")
    worse = max(
        first.overlap, second.overlap, key=lambda overlap: order.index(overlap.verdict)
    )
    same = first.method == second.method
    return value(
        Scores(
            estimate=first.estimate - second.estimate,
            influence=first.influence - second.influence,
            units=first.units,
            rounds=first.rounds,
            method=first.method if same else f"{first.method} - {second.method}",
            per=first.per,
            overlap=worse,
        ),
        level=level,
    )
