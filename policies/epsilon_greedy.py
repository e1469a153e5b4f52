"""Mostly the arm that looks best, now and then any arm."""

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
from policies.values import arm_values


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonGreedy:
    """Share `epsilon` among all arms, and the rest among those that look best.

    Arms without units count as the best, so that each is tried; equal ones share. It
    explores by a fixed share for ever, so its regret grows with time; it is here as the
    baseline that everybody knows.

    Attributes
    ----------
    epsilon : float, 0 to 1
        Share that explores, the same for every arm.

    Raises
    ------
    ValueError
        If epsilon is not such a number.

    References
    ----------
    Sutton, R. S. and Barto, A. G. (2018). Reinforcement learning, section 2.2.
    """

    epsilon: float = 0.1
    reward_kinds: ClassVar[tuple[RewardKind, ...]] = ("proportion", "mean", "ratio")
    segmented: ClassVar[bool] = False
    half_life: ClassVar[None] = None

    def __post_init__(self) -> None:
        epsilon = check_number("epsilon", self.epsilon, low=0, high=1)
        object.__setattr__(self, "epsilon", epsilon)

    def allocate(
        self,
        statistics: ArmStatistics,
        rng: np.random.Generator,  # noqa: ARG002 - of the contract; ties are shared
    ) -> FloatArray:
        """Return the weights, shape (K,).

        Raises
        ------
        ValueError
            If the statistics are per segment, or a ratio has no base.
        """
        check_arms(statistics)
        value = arm_values(statistics).value
        if statistics.lower_is_better:
            value = -value
        best = statistics.units == 0
        if not best.any():
            best = value == value.max()
        weights: FloatArray = self.epsilon / best.size + (
            1 - self.epsilon
        ) * best / np.count_nonzero(best)
        return weights
