"""Guardrails: metrics that a variant must not harm by more than a stated margin.

Non-inferiority at any look: with margin m and control value c, a variant must be above
(1 - m) c where higher is better, below (1 + m) c where lower is. The control is scaled
before anything is estimated, so its own error counts.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from experiment_service.analysis import adaptive, sequential
from experiment_service.analysis.interval import Estimate, Interval
from experiment_service.analysis.moments import EpochMoments, Moments
from experiment_service.domain.metric import MetricKind

#: Shown not to be worse by more than the margin; shown to be worse, and not within the
#: margin; neither yet.
Verdict = Literal["held", "breached", "open"]


def excess(
    epochs: Sequence[EpochMoments],
    *,
    kind: MetricKind,
    treatment: str,
    control: str,
    factor: float,
    moved: bool,
    level: float,
    planned_units: float,
) -> Estimate:
    """Any-time interval for the treatment less `factor` times the control.

    Parameters
    ----------
    epochs : sequence of EpochMoments
        In the order of time.
    kind : {"proportion", "mean", "ratio"}
        Of the metric; a scaled proportion is a mean.
    factor : float, > 0
        1 - margin, or 1 + margin where lower is better.
    moved : bool
        Whether weights have moved, so that units must be weighted.
    level, planned_units
        As for `sequential.difference_sequence`.

    Returns
    -------
    Interval or Withheld
        Withheld when that of the plain difference would be.
    """
    scaled = [
        dataclasses.replace(epoch, moments=_scaled(epoch.moments, control, factor))
        for epoch in epochs
    ]
    as_mean: MetricKind = "mean" if kind == "proportion" else kind
    if moved:
        return adaptive.contrast_sequence(
            scaled,
            kind=as_mean,
            treatment=treatment,
            control=control,
            level=level,
            planned_units=planned_units,
        )
    plain, scaled_pair = (
        [
            sum((e.moments.get(key, Moments.zero()) for e in each), Moments.zero())
            for key in (treatment, control)
        ]
        for each in (epochs, scaled)
    )
    # Rates need some successes and failures before they are as good as normal.
    difference = sequential.difference_sequence(
        kind, *plain, level=level, planned_units=planned_units
    )
    if not isinstance(difference, Interval):
        return difference
    return sequential.difference_sequence(
        as_mean, *scaled_pair, level=level, planned_units=planned_units
    )


def judge(difference: Estimate, beyond: Estimate, *, lower_is_better: bool) -> Verdict:
    """Return the verdict from the plain difference and from `excess`."""
    sign = -1.0 if lower_is_better else 1.0
    if isinstance(beyond, Interval) and min(sign * beyond.low, sign * beyond.high) > 0:
        return "held"
    if (
        isinstance(difference, Interval)
        and max(sign * difference.low, sign * difference.high) < 0
    ):
        return "breached"
    return "open"


def _scaled(
    moments: Mapping[str, Moments], control: str, factor: float
) -> dict[str, Moments]:
    scaled = dict(moments)
    if control in scaled:
        own = scaled[control]
        scaled[control] = dataclasses.replace(
            own,
            sum_y=factor * own.sum_y,
            sum_yy=factor * factor * own.sum_yy,
            sum_xy=factor * own.sum_xy,
        )
    return scaled
