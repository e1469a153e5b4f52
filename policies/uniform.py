"""The policy that explores only: all arms alike, whatever the rewards."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import ArmStatistics, FloatArray, RewardKind, check_arms


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """The same share for every arm: the log that any other policy is judged on best."""

    reward_kinds: ClassVar[tuple[RewardKind, ...]] = ("proportion", "mean", "ratio")
    segmented: ClassVar[bool] = False
    half_life: ClassVar[None] = None

    def allocate(
        self,
        statistics: ArmStatistics,
        rng: np.random.Generator,  # noqa: ARG002 - of the contract; nothing is drawn
    ) -> FloatArray:
        """Return equal weights, shape (K,)."""
        check_arms(statistics)
        return np.full(statistics.arms, 1 / statistics.arms)
