"""Thompson sampling for rewards of 0 or 1, with exact weights instead of draws."""

from dataclasses import dataclass

import numpy as np

from policies.base import ArmStatistics, FloatArray, check_all, check_number
from policies.probability_best import SMALLEST_PARAMETER, probability_best

# Leaves room for 1e12 units above it in `probability_best`.
_STRONGEST_PRIOR = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Thompson:
    """Give each arm the probability that it is the best one (Beta-Bernoulli).

    One draw from each posterior and the arm with the best draw, for every unit, is the
    same law; the probability itself makes the logged propensity exact.

    Attributes
    ----------
    prior_successes, prior_failures : float, 0.1 to 1e9
        Parameters of each arm's Beta prior; 1, 1 holds every rate equally likely,
        0.5, 0.5 is the prior of Jeffreys.

    Raises
    ------
    ValueError
        If a parameter is not such a number.

    References
    ----------
    Thompson, W. R. (1933). Biometrika 25, 285-294.
    Scott, S. L. (2010). A modern Bayesian look at the multi-armed bandit. Applied
    Stochastic Models in Business and Industry 26, 639-658.
    """

    prior_successes: float = 1.0
    prior_failures: float = 1.0

    def __post_init__(self) -> None:
        for name in ("prior_successes", "prior_failures"):
            value = check_number(
                name, getattr(self, name), low=SMALLEST_PARAMETER, high=_STRONGEST_PRIOR
            )
            object.__setattr__(self, name, value)

    def allocate(
        self,
        statistics: ArmStatistics,
        rng: np.random.Generator,  # noqa: ARG002 - of the contract; nothing is drawn
    ) -> FloatArray:
        """Return each arm's posterior probability of being the best.

        Parameters
        ----------
        statistics : ArmStatistics
            Of a proportion: the rewards of an arm are its units that succeeded.

        Returns
        -------
        float64 array, shape (K,)
            Sums to 1 within 1e-9; 0 for an arm that cannot win.

        Raises
        ------
        ValueError
            If an arm's rewards are not in 0 to its units, so no proportion.
        """
        rewards, units = statistics.reward_sum, statistics.units
        check_all(
            "reward_sum",
            rewards,
            (rewards >= 0) & (rewards <= units),
            "of a proportion it must lie in 0 to the arm's units",
        )
        return probability_best(
            self.prior_successes + rewards,
            self.prior_failures + (units - rewards),
            lower_is_better=statistics.lower_is_better,
        )
