"""Overlap of a log with a target policy, and whether a weighted value may be shown.

A log says little about a policy that mostly does what the log seldom did. The weights,
target over logged propensity, show that before any reward is looked at.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from policies.base import FloatArray
from policies.logged import IntArray

Verdict = Literal["fine", "warning", "withheld"]

#: Below this effective sample size no weighted value is shown: a few heavy weights make
#: the estimate skew, normal intervals miss too often (docs/calibration.md; at 160 it is
#: 2 points, docs/off-policy.md), and one unit can hold over a tenth of all weight.
WITHHELD_SAMPLE_SIZE = 100.0
#: Below this the value is shown with a warning: one unit can hold 6 % of all weight.
WARNING_SAMPLE_SIZE = 300.0
#: One unit with more than this share of all weight moves the value visibly by itself.
WARNING_SHARE = 0.02
#: With the right propensities the weights have mean 1. A mean off by more than these
#: standard errors, and by more than this much, is no chance: the propensities are not
#: those of the log, or the target chooses what the log never could.
WARNING_ERRORS, WARNING_DEVIATION = 3.0, 0.01
WITHHELD_ERRORS, WITHHELD_DEVIATION = 4.0, 0.1
#: An estimator that cuts away more than this share of all weight answers in part
#: another question.
WARNING_CUT = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How far a log can speak about a target policy.

    Attributes
    ----------
    effective_sample_size : float
        Kish's (sum of weights)^2 / sum of squares of the weights as the estimator uses
        them, a unit's weights added up: as if all its rounds were one.
    largest_weight : float
        Of one round, before any clipping.
    largest_share : float
        Share of the largest unit in the sum of the weights as used, 0 to 1.
    smallest_propensity : float
        Logged, among the rounds whose arm the target could have chosen; nan when there
        are none.
    mean_weight, mean_weight_error : float
        Mean of the weights before any clipping, near 1 when the propensities are
        right, and its standard error, clustered by unit.
    cut_share : float
        Share of the weight that clipping, switching or shrinking took away, 0 to 1.
    verdict : "fine", "warning" or "withheld"
        Whether a value may be shown.
    reason : str
        The verdict in words.
    """

    effective_sample_size: float
    largest_weight: float
    largest_share: float
    smallest_propensity: float
    mean_weight: float
    mean_weight_error: float
    cut_share: float
    verdict: Verdict
    reason: str


class WeightSums:
    """Sums of weights by unit that `overlap` needs, taken in chunk by chunk.

    Parameters
    ----------
    counts : int64 array, shape (U,), or None
        Rounds of each unit; None when each round is a unit of its own.
    rounds : int
        Rounds of the log.
    """

    def __init__(self, counts: IntArray | None, rounds: int) -> None:
        self.rounds = rounds
        self.counts = counts
        self.raw = None if counts is None else np.zeros(len(counts))
        self.used = None if counts is None else np.zeros(len(counts))
        self.raw_sum = self.raw_squares = self.used_sum = self.used_squares = 0.0
        self.largest = self.largest_used = 0.0
        self.smallest_propensity = math.inf

    def add(
        self,
        raw: FloatArray,
        used: FloatArray,
        propensity: FloatArray,
        codes: IntArray | None,
    ) -> None:
        """Take in rounds; all arrays have shape (n,)."""
        self.raw_sum += float(raw.sum())
        self.used_sum += float(used.sum())
        self.largest = max(self.largest, float(raw.max()))
        likely = propensity[raw > 0]
        if likely.size:
            self.smallest_propensity = min(
                self.smallest_propensity, float(likely.min())
            )
        if codes is None or self.raw is None or self.used is None:
            self.raw_squares += float(raw @ raw)
            self.used_squares += float(used @ used)
            self.largest_used = max(self.largest_used, float(used.max()))
        else:
            np.add.at(self.raw, codes, raw)
            np.add.at(self.used, codes, used)

    def overlap(self, *, leans_on_model: bool) -> Overlap:
        """Return the measures and the verdict.

        Parameters
        ----------
        leans_on_model : bool
            Whether a reward model stands in for weight that is cut away, so that thin
            overlap means reliance on the model and not a wild value.
        """
        squares, largest = self.used_squares, self.largest_used
        mean = self.raw_sum / self.rounds
        spread = self.raw_squares - mean * self.raw_sum
        units = self.rounds
        if self.counts is not None and self.raw is not None and self.used is not None:
            squares, largest = float(self.used @ self.used), float(self.used.max())
            spread = float(np.square(self.raw - mean * self.counts).sum())
            units = int(np.count_nonzero(self.counts))
        error = math.nan
        if units > 1:
            error = math.sqrt(max(spread, 0) * units / (units - 1)) / self.rounds
        size = self.used_sum**2 / squares if squares > 0 else 0.0
        share = largest / self.used_sum if self.used_sum > 0 else 0.0
        cut = 1 - self.used_sum / self.raw_sum if self.raw_sum > 0 else 0.0
        verdict, reason = _judge(
            units=units,
            size=size,
            share=share,
            # Without weight, propensities do not enter the value.
            deviation=mean - 1 if self.used_sum > 0 else 0.0,
            error=error,
            cut=cut,
            leans_on_model=leans_on_model,
        )
        smallest = self.smallest_propensity
        return Overlap(
            effective_sample_size=size,
            largest_weight=self.largest,
            largest_share=share,
            smallest_propensity=smallest if math.isfinite(smallest) else math.nan,
            mean_weight=mean,
            mean_weight_error=error,
            cut_share=cut,
            verdict=verdict,
            reason=reason,
        )


def _judge(
    *,
    units: int,
    size: float,
    share: float,
    deviation: float,
    error: float,
    cut: float,
    leans_on_model: bool,
) -> tuple[Verdict, str]:
    """Return the verdict, with all reasons of its kind."""
    worth = f"the log is worth {size:,.0f} of its {units:,} units for this policy"
    mean = f"the weights have mean {1 + deviation:.3g} and not 1"
    withheld: list[str] = []
    if units < 2:
        withheld.append("the log has one unit only; a variance needs two")
    # Written so that a nan, from weights that overflow, is withheld too.
    if not (size >= WITHHELD_SAMPLE_SIZE or leans_on_model):
        withheld.append(f"{worth}; at least {WITHHELD_SAMPLE_SIZE:g} are needed")
    if not abs(deviation) <= max(WITHHELD_ERRORS * error, WITHHELD_DEVIATION):
        withheld.append(
            f"{mean}, more than {WITHHELD_ERRORS:g} standard errors off: the logged "
            "propensities are wrong, or the policy does what the log never did"
        )
    if withheld:
        return "withheld", "; ".join(withheld)
    warnings = _thin(worth, size, share, cut, leans_on_model=leans_on_model)
    if abs(deviation) > max(WARNING_ERRORS * error, WARNING_DEVIATION):
        warnings.append(f"{mean}, more than {WARNING_ERRORS:g} standard errors off")
    return ("warning", "; ".join(warnings)) if warnings else ("fine", worth)


def _thin(
    worth: str, size: float, share: float, cut: float, *, leans_on_model: bool
) -> list[str]:
    """Return what to warn of where the weights are few, large or cut away."""
    if cut == 1:
        return ["no weight is used: the value is as right as the reward model"]
    if cut > WARNING_CUT and leans_on_model:
        return [f"{cut:.0%} of the weight is cut away; there the model stands in"]
    warnings: list[str] = []
    if size < WARNING_SAMPLE_SIZE:
        warnings.append(f"{worth}; below {WARNING_SAMPLE_SIZE:g} the interval is rough")
    elif share > WARNING_SHARE:
        warnings.append(f"one unit holds {share:.1%} of all weight")
    if cut > WARNING_CUT:
        warnings.append(f"{cut:.0%} of the weight is cut away; the value is biased")
    return warnings
