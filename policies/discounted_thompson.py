"""Thompson sampling that forgets, for rates that drift."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import ArmStatistics, FloatArray, RewardKind, check_number
from policies.thompson import Thompson, check_prior


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscountedThompson:
    """Thompson sampling on rewards that count half after each `half_life`.

    A unit's age is measured at the cutoff of a look, so a look that runs late gives the
    same weights. The prior does not age: an arm that gets no units becomes uncertain
    again, and is tried again.

    Attributes
    ----------
    half_life : float, 1 to 1e9
        Seconds; a week if not given. The policy itself sees sums that are discounted
        already, by ``0.5 ** (age / half_life)``.
    prior_successes, prior_failures : float, 0.1 to 1e9
        Parameters of each arm's Beta prior.

    Raises
    ------
    ValueError
        If a parameter is not such a number.

    References
    ----------
    Raj, V. and Kalyani, S. (2017). Taming non-stationary bandits: a Bayesian approach,
    arXiv 1707.09727 (discounting per round; here per elapsed time).
    """

    half_life: float = 604_800.0
    prior_successes: float = 1.0
    prior_failures: float = 1.0
    reward_kinds: ClassVar[tuple[RewardKind, ...]] = ("proportion",)
    segmented: ClassVar[bool] = False

    def __post_init__(self) -> None:
        half_life = check_number("half_life", self.half_life, low=1, high=1e9)
        object.__setattr__(self, "half_life", half_life)
        for name in ("prior_successes", "prior_failures"):
            object.__setattr__(self, name, check_prior(name, getattr(self, name)))

    def allocate(
        self, statistics: ArmStatistics, rng: np.random.Generator
    ) -> FloatArray:
        """Return each arm's probability of being the best, shape (K,).

        Parameters
        ----------
        statistics : ArmStatistics
            Of a proportion, each unit discounted by its age.

        Raises
        ------
        ValueError
            As `Thompson.allocate`.
        """
        return Thompson(
            prior_successes=self.prior_successes, prior_failures=self.prior_failures
        ).allocate(statistics, rng)
