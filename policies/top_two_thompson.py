"""Top-two Thompson sampling: find the best arm soon, instead of using it most."""

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
from policies.probability_best import probability_best
from policies.thompson import beta_posterior, check_prior


@dataclass(frozen=True, slots=True, kw_only=True)
class TopTwoThompson:
    """Show the leader of a draw, or with chance 1 - `leader_share` its challenger.

    The challenger is the leader of a draw that is repeated until it is another arm. In
    closed form, with P the probabilities to be best,
    ``P_i (b + (1 - b) sum over j != i of P_j / (1 - P_j))``. This is Russo's rule; the
    mean of the chances of ranks 1 and 2 of one draw, which some call top-two as well,
    is another one.

    Attributes
    ----------
    leader_share : float, 0.01 to 1
        b, the share of the leader; 1 is Thompson sampling.
    prior_successes, prior_failures : float, 0.1 to 1e9
        Parameters of each arm's Beta prior.

    Raises
    ------
    ValueError
        If a parameter is not such a number.

    References
    ----------
    Russo, D. (2016). Simple Bayesian algorithms for best arm identification, COLT
    (arXiv 1602.08448), section 3.3 (top-two Thompson sampling).
    """

    leader_share: float = 0.5
    prior_successes: float = 1.0
    prior_failures: float = 1.0
    reward_kinds: ClassVar[tuple[RewardKind, ...]] = ("proportion",)
    segmented: ClassVar[bool] = False
    half_life: ClassVar[None] = None

    def __post_init__(self) -> None:
        share = check_number("leader_share", self.leader_share, low=0.01, high=1)
        object.__setattr__(self, "leader_share", share)
        for name in ("prior_successes", "prior_failures"):
            object.__setattr__(self, name, check_prior(name, getattr(self, name)))

    def allocate(
        self,
        statistics: ArmStatistics,
        rng: np.random.Generator,  # noqa: ARG002 - of the contract; nothing is drawn
    ) -> FloatArray:
        """Return the chance of each arm to be shown, shape (K,).

        Raises
        ------
        ValueError
            If the rewards are not those of a proportion, or are per segment.
        """
        check_arms(statistics)
        alpha, beta = beta_posterior(
            statistics, self.prior_successes, self.prior_failures
        )
        best = probability_best(alpha, beta, lower_is_better=statistics.lower_is_better)
        return top_two(best, self.leader_share)


def top_two(best: FloatArray, leader_share: float) -> FloatArray:
    """Return Russo's weights from the probabilities to be best.

    Parameters
    ----------
    best : float64 array, shape (K,)
        Sums to 1.
    leader_share : float, 0 to 1

    Returns
    -------
    float64 array, shape (K,)
        Sums to 1. Challengers that never lead share equally when the leader always
        does, which no chances of theirs can tell apart.
    """
    if best.size == 1:
        return np.ones(1)
    best = best / best.sum()
    leader = int(best.argmax())
    followers = np.arange(best.size) != leader
    # Of the leader as the sum of the others: 1 - P would cancel.
    rest = float(best[followers].sum())
    if rest == 0:
        challenge = followers / (best.size - 1)
    else:
        odds = np.where(followers, best / (1 - best * followers), 0.0)
        challenge = best * (odds.sum() - odds)
        # The ratio first: rest may be subnormal, and its inverse infinite.
        challenge += best * followers / rest * best[leader]
    weights = leader_share * best + (1 - leader_share) * challenge
    result: FloatArray = weights / weights.sum()
    return result
