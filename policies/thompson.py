"""Thompson sampling for rewards of 0 or 1, with exact weights instead of draws."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import (
    ArmStatistics,
    FloatArray,
    RewardKind,
    check_arms,
    check_number,
    check_proportion,
)
from policies.posteriors import SMALLEST_PARAMETER
from policies.probability_best import probability_best

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
    reward_kinds: ClassVar[tuple[RewardKind, ...]] = ("proportion",)
    segmented: ClassVar[bool] = False
    half_life: ClassVar[None] = None

    def __post_init__(self) -> None:
        for name in ("prior_successes", "prior_failures"):
            object.__setattr__(self, name, check_prior(name, getattr(self, name)))

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
            If an arm's rewards are not in 0 to its units, so no proportion, or the
            statistics are per segment.
        """
        check_arms(statistics)
        alpha, beta = beta_posterior(
            statistics, self.prior_successes, self.prior_failures
        )
        return probability_best(alpha, beta, lower_is_better=statistics.lower_is_better)


def check_prior(name: str, value: object) -> float:
    """Return a parameter of a Beta prior if it is a number in 0.1 to 1e9.

    Raises
    ------
    ValueError
        Names the parameter, its value and the rule.
    """
    return check_number(name, value, low=SMALLEST_PARAMETER, high=_STRONGEST_PRIOR)


def beta_posterior(
    statistics: ArmStatistics,
    prior_successes: float | FloatArray,
    prior_failures: float | FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Return the parameters of the arms' Beta posteriors, of the shape of units.

    Raises
    ------
    ValueError
        If an arm's rewards are not those of a proportion.
    """
    check_proportion(statistics)
    successes = np.maximum(np.minimum(statistics.reward_sum, statistics.units), 0.0)
    return prior_successes + successes, prior_failures + (statistics.units - successes)
