"""What units were shown and did not take: how far it tells against an item.

By the position model, the chance that something follows at place p of a list is
``e(p) r``: that the unit looks there, times how much it likes what is there. A place
that nothing came of tells against its item as far as it was probably looked at.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

#: Bounds of the power; with the greater one, place 2 gets an eighth of the looks.
LEAST_POWER, GREATEST_POWER = 0.0, 3.0

#: An estimate from fewer interactions, or with a greater standard error, is refused.
LEAST_INTERACTIONS = 100
GREATEST_ERROR = 0.2

_Counts = NDArray[np.int64]
_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionBias:
    """How fast looks fall along a list: ``e(p) = p ** -power``.

    Attributes
    ----------
    power : float, 0 to 3
        0 is a list that is always looked at as a whole.
    standard_error : float or None
        None where the power was declared.
    interactions : int
        It was estimated from; 0 where it was declared.
    """

    power: float
    standard_error: float | None = None
    interactions: int = 0

    def examination(self, positions: _Counts | _Floats) -> _Floats:
        """Return the chance of a look at each position from 1, that at 1 being 1."""
        chances: _Floats = positions.astype(np.float64) ** -self.power
        return chances


def estimate_position_bias(
    groups: _Counts, units: _Counts, positions: _Counts, taken: NDArray[np.bool_]
) -> PositionBias:
    """Estimate the power from what was shown at several positions.

    What is in a group must be liked the same at whatever position it was shown: one item
    shown to one unit, or items drawn at random for any of the positions. How much it is
    liked then cancels: given how many of a group were taken, the positions of these are
    draws with chances in proportion to ``e(p)`` (the Poisson likelihood with an effect
    for each group). Only that mean has to be right for it to be consistent.

    Parameters
    ----------
    groups, units, positions : int64 arrays, shape (places,)
        Each place that was shown: what it is compared within, to whom, and its
        position, from 1.
    taken : bool array, shape (places,)
        Whether something came of it.

    Raises
    ------
    ValueError
        When there are too few for a standard error, clustered by unit, of 0.2 or less.

    References
    ----------
    Hausman, Hall and Griliches (1984), Econometric models for count data, section 2.
    Agarwal et al. (2019), Estimating position bias without intrusive interventions.
    """
    _, group = np.unique(groups, return_inverse=True)
    x = np.log(positions.astype(np.float64))
    # Only groups with something taken, and at several positions, tell anything.
    size = group.max(initial=-1) + 1
    lowest, highest = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(lowest, group, x)
    np.maximum.at(highest, group, x)
    tells = ((highest > lowest) & (np.bincount(group, taken, size) > 0))[group]
    _, group = np.unique(group[tells], return_inverse=True)
    _, unit = np.unique(units[tells], return_inverse=True)
    x, taken = x[tells], taken[tells]
    total = np.bincount(group, taken)
    interactions = int(taken.sum())
    if interactions < LEAST_INTERACTIONS:
        raise ValueError(
            f"{interactions} interactions are with what was shown at several positions; "
            f"{LEAST_INTERACTIONS} or more are needed to estimate position_bias, so "
            "declare a number, such as 1, or let lists explore"
        )

    def centred(power: float) -> tuple[_Floats, _Floats]:
        """Return how far each place was expected to be taken, and x less its mean."""
        chances = np.exp(-power * x)
        sums = np.bincount(group, chances)
        expected = chances * (total / sums)[group]
        return expected, x - (np.bincount(group, chances * x) / sums)[group]

    def slope(power: float) -> float:
        expected, _ = centred(power)
        return float(((expected - taken) * x).sum())

    # The likelihood is concave, so its slope falls.
    if slope(LEAST_POWER) <= 0:
        power = LEAST_POWER
    elif slope(GREATEST_POWER) >= 0:
        power = GREATEST_POWER
    else:
        power = float(brentq(slope, LEAST_POWER, GREATEST_POWER))
    expected, apart = centred(power)
    information = float((expected * apart**2).sum())
    of_units = np.bincount(unit, (expected - taken) * apart)
    error = float(np.sqrt((of_units**2).sum()) / information)
    if error > GREATEST_ERROR:
        raise ValueError(
            f"position_bias is estimated as {power:.2f} with standard error {error:.3f}; "
            f"it must not be more than {GREATEST_ERROR}, so declare a number, such as 1, "
            "or wait for more events"
        )
    return PositionBias(power=power, standard_error=error, interactions=interactions)
