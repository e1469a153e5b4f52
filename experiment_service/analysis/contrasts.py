"""Differences between two variants with their variances, to be set side by side.

For segments and days, whose differences are compared with each other. Knows no interval.
"""

import dataclasses
from collections.abc import Sequence

from experiment_service.analysis.interval import NO_SPREAD, Withheld
from experiment_service.analysis.moments import EpochMoments, Moments, successes_of
from experiment_service.analysis.scores import weigh
from experiment_service.domain.metric import MetricKind

#: Of each variant; false alarms were measured from here on (docs/calibration.md).
MINIMUM_UNITS = 100
#: Successes and failures of a proportion in both variants together.
MINIMUM_EVENTS = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Estimated difference of two variants, treatment - control.

    Attributes
    ----------
    estimate : float
        In the unit of the metric.
    variance : float
        Of the estimate, > 0.
    """

    estimate: float
    variance: float


def plain_contrast(
    kind: MetricKind, treatment: Moments, control: Moments
) -> Contrast | Withheld:
    """Difference of two variants under weights that did not move.

    A proportion has the variance of both rates pooled: its own would be small just when
    a rate is by chance near 0, and those contrasts would get most of the weight.

    Returns
    -------
    Contrast or Withheld
        Withheld with fewer than 100 units in a variant, 10 successes or failures of
        both together, without denominator or without spread.
    """
    pair = (treatment, control)
    if min(each.n for each in pair) < MINIMUM_UNITS:
        return Withheld(reason=f"There are fewer than {MINIMUM_UNITS} units.")
    if kind == "proportion":
        (s1, n1), (s0, n0) = map(successes_of, pair)
        if min(s1 + s0, n1 + n0 - s1 - s0) < MINIMUM_EVENTS:
            return Withheld(
                reason=f"There are fewer than {MINIMUM_EVENTS} successes or failures."
            )
        rate = (s1 + s0) / (n1 + n0)
        return Contrast(
            estimate=s1 / n1 - s0 / n0,
            variance=rate * (1 - rate) * (1 / n1 + 1 / n0),
        )
    if kind == "ratio":
        if min(each.sum_x for each in pair) <= 0:
            return Withheld(reason="The denominator of the ratio is 0 in a variant.")
        values = [each.ratio for each in pair]
        variance = treatment.ratio_variance + control.ratio_variance
    else:
        values = [each.mean for each in pair]
        variance = treatment.variance / treatment.n + control.variance / control.n
    if variance == 0:
        return Withheld(reason=NO_SPREAD)
    return Contrast(estimate=values[0] - values[1], variance=variance)


def weighted_contrast(
    epochs: Sequence[EpochMoments],
    *,
    kind: MetricKind,
    treatment: str,
    control: str,
) -> Contrast | Withheld:
    """Difference of two variants whose weights moved, by the scores of `adaptive`.

    Returns
    -------
    Contrast or Withheld
        Withheld with an effective sample below 100 units, or as `scores.weigh`.
    """
    pair = weigh(
        epochs,
        kind=kind,
        treatment=treatment,
        control=control,
        minimum_effective_sample_size=MINIMUM_UNITS,
    )
    if isinstance(pair, Withheld):
        return pair
    return Contrast(
        estimate=pair.treatment.value - pair.control.value, variance=pair.variance()
    )
