"""The policy that does not learn: weights that people chose, whatever the rewards."""

import reprlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import (
    ArmStatistics,
    FloatArray,
    RewardKind,
    check_arms,
    check_number,
    check_weights,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """The same share for each arm at every look.

    Attributes
    ----------
    weights : tuple of float, or None
        Share of each arm, >= 0, sum 1 within 1e-9; None shares equally. A list is
        taken as well, as JSON has no tuples.

    Raises
    ------
    ValueError
        If the weights are not such numbers.
    """

    weights: tuple[float, ...] | None = None
    reward_kinds: ClassVar[tuple[RewardKind, ...]] = ("proportion", "mean", "ratio")
    segmented: ClassVar[bool] = False
    half_life: ClassVar[None] = None

    def __post_init__(self) -> None:
        given: object = self.weights
        if given is None:
            return
        if not isinstance(given, tuple | list):
            raise ValueError(  # noqa: TRY004 - every refused parameter is a ValueError
                f"weights is {reprlib.repr(given)}; it must be a list of numbers, or "
                "null for equal shares"
            )
        weights = tuple(
            check_number(f"weights[{arm}]", weight, low=0, high=1)
            for arm, weight in enumerate(given)
        )
        check_weights("weights", np.array(weights))
        object.__setattr__(self, "weights", weights)

    def allocate(
        self,
        statistics: ArmStatistics,
        rng: np.random.Generator,  # noqa: ARG002 - of the contract; nothing is drawn
    ) -> FloatArray:
        """Return the chosen weights.

        Returns
        -------
        float64 array, shape (K,)
            Sums to 1 within 1e-9.

        Raises
        ------
        ValueError
            If there are weights for another number of arms, or the statistics are per
            segment.
        """
        check_arms(statistics)
        if self.weights is None:
            return np.full(statistics.arms, 1 / statistics.arms)
        if len(self.weights) != statistics.arms:
            raise ValueError(
                f"weights has {len(self.weights)} entries for {statistics.arms} arms; "
                "it must have one for each"
            )
        return np.array(self.weights)
