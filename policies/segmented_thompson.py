"""Thompson sampling with weights of its own for each segment of units."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.base import ArmStatistics, FloatArray, RewardKind, check_proportion
from policies.posteriors import SMALLEST_PARAMETER
from policies.probability_best import probability_best
from policies.thompson import check_prior


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentedThompson:
    """Give each arm in each segment the probability that it is the best one there.

    The rate of an arm in a segment has as its prior what the other segments say about
    that arm, worth as many units as the segments agree (empirical Bayes). Where they
    agree, every segment gets the weights of all units pooled; where they differ, each
    learns for itself. The choice looks at the segment, but its propensity is the weight
    of the segment, exactly.

    Attributes
    ----------
    prior_successes, prior_failures : float, 0.1 to 1e9
        Parameters of each arm's Beta prior before any segment is seen.

    Raises
    ------
    ValueError
        If a parameter is not such a number.

    References
    ----------
    Kleinman, J. C. (1973). Proportions with extraneous variance: single and independent
    samples. JASA 68, 46-54 (moment estimate of the agreement, weights n).
    Efron, B. and Morris, C. (1975). Data analysis using Stein's estimator and its
    generalizations. JASA 70, 311-319 (partial pooling).
    """

    prior_successes: float = 1.0
    prior_failures: float = 1.0
    reward_kinds: ClassVar[tuple[RewardKind, ...]] = ("proportion",)
    segmented: ClassVar[bool] = True
    half_life: ClassVar[None] = None

    def __post_init__(self) -> None:
        for name in ("prior_successes", "prior_failures"):
            object.__setattr__(self, name, check_prior(name, getattr(self, name)))

    def allocate(
        self,
        statistics: ArmStatistics,
        rng: np.random.Generator,  # noqa: ARG002 - of the contract; nothing is drawn
    ) -> FloatArray:
        """Return the weights in each segment.

        Returns
        -------
        float64 array, shape (S, K) or (K,)
            Each segment's weights sum to 1 within 1e-9; shape (K,) is one segment.

        Raises
        ------
        ValueError
            If the rewards are not those of a proportion.
        """
        alpha, beta = self.posterior(statistics)
        rows = [
            probability_best(a, b, lower_is_better=statistics.lower_is_better)
            for a, b in zip(np.atleast_2d(alpha), np.atleast_2d(beta), strict=True)
        ]
        return np.array(rows).reshape(alpha.shape)

    def posterior(self, statistics: ArmStatistics) -> tuple[FloatArray, FloatArray]:
        """Return the parameters of the Beta posteriors, of the shape of units."""
        check_proportion(statistics)
        units = np.atleast_2d(statistics.units)
        successes = np.clip(np.atleast_2d(statistics.reward_sum), 0.0, units)
        others = units.sum(axis=0) - units
        worth = self.prior_successes + self.prior_failures + others
        mean = (
            self.prior_successes + np.maximum(successes.sum(axis=0) - successes, 0.0)
        ) / worth
        # Where segments agree, as much as the others' units; never so little that the
        # posterior leaves the range in which P(best) is exact.
        strength = np.minimum(worth, agreement(units, successes))
        strength = np.maximum(strength, SMALLEST_PARAMETER / np.minimum(mean, 1 - mean))
        alpha = strength * mean + successes
        beta = strength * (1 - mean) + units - successes
        shape = statistics.units.shape
        return alpha.reshape(shape), beta.reshape(shape)


def agreement(units: FloatArray, successes: FloatArray) -> FloatArray:
    """Return how many units the agreement of segments is worth, for each arm.

    It is a + b of the Beta distribution of an arm's rate over segments, by moments:
    with p the pooled rate, q = 1 - p and N all units, the intraclass correlation is
    ``(sum n (p_s - p)^2 - p q (S - 1)) / (p q (N - sum n^2 / N - (S - 1)))``.

    Parameters
    ----------
    units, successes : float64 array, shape (S, K)

    Returns
    -------
    float64 array, shape (K,)
        > 0; infinite where the segments differ no more than by chance, or too few have
        units to tell.
    """
    total = units.sum(axis=0)
    zero = np.zeros_like(total)
    pooled = np.divide(successes.sum(axis=0), total, out=zero.copy(), where=total > 0)
    rate = np.divide(successes, units, out=np.zeros_like(units), where=units > 0)
    spread = pooled * (1 - pooled)
    degrees = np.count_nonzero(units, axis=0) - 1.0
    excess = (units * (rate - pooled) ** 2).sum(axis=0) - spread * degrees
    room = total - degrees
    room -= np.divide((units**2).sum(axis=0), total, out=zero.copy(), where=total > 0)
    told = (excess > 0) & (degrees > 0) & (room > 0) & (spread > 0)
    correlation = np.divide(excess, spread * room, out=zero.copy(), where=told)
    correlation = np.minimum(correlation, 1.0)
    worth: FloatArray = np.divide(
        1 - correlation,
        correlation,
        out=np.full_like(total, np.inf),
        where=correlation > 0,
    )
    return worth
