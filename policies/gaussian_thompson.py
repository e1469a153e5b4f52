"""Thompson sampling for rewards that are numbers or ratios, with exact weights."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import (
    ArmStatistics,
    FloatArray,
    RewardKind,
    check_arms,
    check_number,
)
from policies.posteriors import LARGEST_SPREAD
from policies.probability_best import probability_best_normal
from policies.values import arm_values


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianThompson:
    """Give each arm the probability that its mean (or ratio) is the best one.

    The posterior of an arm is normal, by the central limit theorem over its units: its
    precision is that of the prior plus units / variance. The prior is worth
    `prior_units` units at the value of all arms pooled, with their pooled variance; so
    is the variance of an arm with few units. A fresh arm thus is as uncertain as one
    unit, whatever the unit of the reward. A ratio has the delta method's variance.

    Attributes
    ----------
    prior_units : float, 0.01 to 1e6
        Worth of the prior in units.

    Raises
    ------
    ValueError
        If it is not such a number.

    References
    ----------
    Agrawal, S. and Goyal, N. (2013). Further optimal regret bounds for Thompson
    sampling, AISTATS (normal posteriors).
    Kass, R. E. and Wasserman, L. (1995). A reference Bayesian test for nested
    hypotheses. JASA 90, 928-934 (a prior worth one unit).
    """

    prior_units: float = 1.0
    reward_kinds: ClassVar[tuple[RewardKind, ...]] = ("proportion", "mean", "ratio")
    segmented: ClassVar[bool] = False
    half_life: ClassVar[None] = None

    def __post_init__(self) -> None:
        units = check_number("prior_units", self.prior_units, low=0.01, high=1e6)
        object.__setattr__(self, "prior_units", units)

    def allocate(
        self,
        statistics: ArmStatistics,
        rng: np.random.Generator,  # noqa: ARG002 - of the contract; nothing is drawn
    ) -> FloatArray:
        """Return each arm's posterior probability of being the best.

        Returns
        -------
        float64 array, shape (K,)
            Sums to 1 within 1e-9; equal shares while all rewards are alike.

        Raises
        ------
        ValueError
            If the statistics are per segment, or a ratio has no base.
        """
        check_arms(statistics)
        mean, deviation = self.posterior(statistics)
        if not deviation.any():
            return np.full(statistics.arms, 1 / statistics.arms)
        return probability_best_normal(
            mean,
            np.maximum(deviation, deviation.max() / LARGEST_SPREAD),
            lower_is_better=statistics.lower_is_better,
        )

    def posterior(self, statistics: ArmStatistics) -> tuple[FloatArray, FloatArray]:
        """Return mean and standard deviation of each arm's posterior, shape (K,).

        The deviations are 0 while the rewards of all units are alike.
        """
        seen = arm_values(statistics)
        units, prior = statistics.units, self.prior_units
        worth = units + prior
        mean = (units * seen.value + prior * seen.pooled_value) / worth
        # An arm's own variance counts as much as its units, the pooled one as the prior.
        variance = (units * seen.variance + prior * seen.pooled_variance) / worth
        return mean, np.sqrt(variance / worth)
