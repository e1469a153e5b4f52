"""How sure a mean over units is: bootstrap intervals, also of paired differences."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Replicates, fewer where there are so many units that drawing takes long.
REPLICATES = 1000
FEWEST = 200
_DRAWS = 50_000_000
_BLOCK = 4_000_000

LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and where it would lie for other units of the same kind.

    Attributes
    ----------
    value : float
        The mean; nan where no unit has a number.
    low, high : float
        Bounds of the 95 % percentile interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def method(units: int) -> str:
    """Say how intervals over so many units are made."""
    return (
        f"{LEVEL:.0%} percentile bootstrap over units, {_replicates(units)} replicates"
    )


def bootstrap(
    values: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    replicates: int | None = None,
) -> dict[int, Interval]:
    """Return the interval of the mean of each column over units drawn again.

    All columns are of the same draws. Each unit counts a Poisson number of times, which
    is a multinomial bootstrap whose size varies a little, and can be drawn in blocks.

    Parameters
    ----------
    values : float64 array, shape (units, columns)
        nan is left out of the mean of its column.
    replicates : int, optional
        As many as `method` says when left out.

    References
    ----------
    Efron (1979), Bootstrap methods; Chamandy et al. (2012), Estimating uncertainty for
    massive data streams, section 3, for Poisson weights.
    """
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    means = _ratio(filled.sum(axis=0), known.sum(axis=0))
    replicates = replicates or _replicates(len(values))
    sums = np.zeros((replicates, values.shape[1]))
    counts = np.zeros_like(sums)
    step = max(1, _BLOCK // replicates)
    for start in range(0, len(values), step):
        block = slice(start, start + step)
        times = rng.poisson(1.0, (replicates, len(filled[block]))).astype(np.float64)
        sums += times @ filled[block]
        counts += times @ known[block].astype(np.float64)
    drawn = _ratio(sums, counts)
    tail = (1 - LEVEL) / 2
    return {
        column: Interval(
            value=float(means[column]),
            low=_quantile(drawn[:, column], tail),
            high=_quantile(drawn[:, column], 1 - tail),
        )
        for column in range(values.shape[1])
    }


def _replicates(units: int) -> int:
    return max(FEWEST, min(REPLICATES, _DRAWS // max(units, 1)))


def _ratio(
    sums: NDArray[np.float64], counts: NDArray[np.number]
) -> NDArray[np.float64]:
    return np.where(counts > 0, sums / np.maximum(counts, 1e-300), np.nan)


def _quantile(drawn: NDArray[np.float64], share: float) -> float:
    finite = drawn[~np.isnan(drawn)]
    return float(np.quantile(finite, share)) if finite.size else float("nan")
