"""What a bandit's allocation earned beside the control: from moments per epoch alone.

The log's own mean minus the value of giving everyone the control, both over the same
units. The control's value is AIPW with the logged propensities, every unit counting the
same, as a gain is about the traffic that came and not about an average of epochs.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from experiment_service.analysis.interval import (
    NO_SPREAD,
    Interval,
    Overlap,
    Withheld,
    check_level,
)
from experiment_service.analysis.moments import EpochMoments, Moments
from experiment_service.analysis.sequential import half_width
from experiment_service.domain.metric import MetricKind

_Floats = NDArray[np.float64]

_VALID = (
    "Valid at every look in large samples, if the logged propensities are those in "
    "force; values may change over time."
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What the log earned, what the control alone would have, and the difference.

    Attributes
    ----------
    earned, control : float
        Per unit, or per exposure for a ratio.
    units : float
        Units of all variants behind both, > 0.
    difference : Interval
        Earned minus control, at every look at once.
    """

    earned: float
    control: float
    units: float
    difference: Interval


def gain_over_control(
    epochs: Sequence[EpochMoments],
    *,
    kind: MetricKind,
    control: str,
    level: float = 0.95,
    planned_units: float,
    minimum_effective_sample_size: float,
) -> Gain | Withheld:
    """Compare what an allocation earned with the control's value on the same units.

    With e the control's weight and m its mean over earlier epochs, a unit adds
    y - m - 1{control} (y - m) / e. These differences are those of a martingale around
    the gain of their epoch, whatever the weights follow, so nothing need be constant
    over time. Their variance is never taken below what the pooled variance of the
    variants implies, (1 - e) / e for each unit: a control seen rarely and with bad luck
    would else get a small one just when its value is most wrong.

    Parameters
    ----------
    epochs : sequence of EpochMoments
        In the order of time. Epochs in which control had weight 0 are left out.
    kind : {"proportion", "mean", "ratio"}
        Only a ratio looks at x.
    control : str
        The reference variant.
    level : float
        Coverage over all looks together, in (0, 1).
    planned_units : float
        Units at which the interval is narrowest; to be chosen before the data.
    minimum_effective_sample_size : float
        Of the control, in units; below it the gain is withheld.

    Returns
    -------
    Gain or Withheld
        Withheld without units, spread, denominator or enough of the control.

    References
    ----------
    Dudik et al. (2014), Statistical Science 29, for the doubly robust value;
    Waudby-Smith et al. (2024), arXiv 2103.06476, for the sequence.
    """
    check_level(level)
    used = [each for each in epochs if each.units > 0 and each.weights[control] > 0]
    log = _Log.of(used, kind, control)
    if log is None:
        return Withheld(
            reason="The control has no units yet, so there is no gain over it."
        )
    overlap = log.overlap()
    if overlap.effective_sample_size < minimum_effective_sample_size:
        return Withheld(
            reason=(
                "The control's effective sample size is "
                f"{overlap.effective_sample_size:.0f}, below "
                f"{minimum_effective_sample_size:.0f}: it had too little traffic."
            ),
            overlap=overlap,
        )
    scores = log.scores()
    if scores is None:
        return Withheld(reason="The denominator of the ratio is 0.", overlap=overlap)
    if scores.variance == 0:
        return Withheld(reason=NO_SPREAD, overlap=overlap)
    half = half_width(
        math.sqrt(scores.variance), log.units, planned_units=planned_units, level=level
    )
    estimate = scores.earned - scores.control
    return Gain(
        earned=scores.earned,
        control=scores.control,
        units=log.units,
        difference=Interval(
            estimate=estimate,
            low=estimate - half,
            high=estimate + half,
            level=level,
            method="Mean of the log minus AIPW of control, asymptotic confidence sequence",
            validity=_VALID,
            overlap=overlap,
        ),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Scores:
    earned: float
    control: float
    variance: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Log:
    """Sums per epoch in rows, in the order of `Moments`; of control and of the others.

    Attributes
    ----------
    e : ndarray, shape (epochs,)
        The control's weight, > 0.
    own, others : ndarray, shape (epochs, 6)
    within : float
        Sum of squared deviations of z = (y - r x) / mean(x) within variants, per degree
        of freedom.
    """

    e: _Floats
    own: _Floats
    others: _Floats
    within: float

    @classmethod
    def of(
        cls, epochs: Sequence[EpochMoments], kind: MetricKind, control: str
    ) -> "_Log | None":
        """Sum up the epochs; None without units of the control."""
        own, others = [], []
        totals: dict[str, Moments] = {}
        for epoch in epochs:
            rest = Moments.zero()
            for variant, given in epoch.moments.items():
                moments = given if kind == "ratio" else _per_unit(given)
                totals[variant] = totals.get(variant, Moments.zero()) + moments
                if variant != control:
                    rest += moments
            mine = epoch.moments.get(control, Moments.zero())
            own.append(_row(mine if kind == "ratio" else _per_unit(mine)))
            others.append(_row(rest))
        if totals.get(control, Moments.zero()).n < 2:
            return None
        return cls(
            e=np.array([epoch.weights[control] for epoch in epochs]),
            own=np.array(own),
            others=np.array(others),
            within=_within(list(totals.values())),
        )

    @property
    def epoch_units(self) -> _Floats:
        counts: _Floats = self.own[:, 0] + self.others[:, 0]
        return counts

    @property
    def units(self) -> float:
        return float(self.epoch_units.sum())

    def overlap(self) -> Overlap:
        n, weight = self.own[:, 0], 1 / self.e
        size = float((weight * n).sum() ** 2 / (weight**2 * n).sum())
        return Overlap(
            effective_sample_size=size, smallest_propensity=float(self.e.min())
        )

    def scores(self) -> _Scores | None:
        """Value the log and the control; None when a denominator is not positive."""
        units = self.epoch_units
        n, sum_y, _, sum_x, _, _ = self.own.T
        all_y, all_x = (self.own + self.others).sum(axis=0)[[1, 3]]
        guess_y, guess_x = self._guesses()
        control_y = float((units * guess_y + (sum_y - n * guess_y) / self.e).sum())
        control_x = float((units * guess_x + (sum_x - n * guess_x) / self.e).sum())
        if all_x <= 0 or control_x <= 0:
            return None
        earned, control = float(all_y / all_x), control_y / control_x
        # The influence of a unit: a + b y + c x, other for control than for the others.
        b, c = 1 / all_x, -earned / all_x
        shift = -(guess_y - control * guess_x) / control_x
        pull = 1 / self.e / control_x
        squares = _squares(self.others, shift, b, c) + _squares(
            self.own,
            shift + pull * (guess_y - control * guess_x),
            b - pull,
            c + pull * control,
        )
        floor = self.within * float((units * (1 - self.e) / self.e).sum())
        return _Scores(
            earned=earned,
            control=control,
            variance=max(float(squares.sum()), floor / self.units**2),
        )

    def _guesses(self) -> tuple[_Floats, _Floats]:
        """Return the control's means of y and x before each epoch.

        Without a past there is the epoch itself, or that of the others: the scores then
        give the plain difference of means, which fixed weights allow.
        """
        source = np.cumsum(self.own, axis=0) - self.own
        for fallback in (self.own, self.others):
            source = np.where(source[:, :1] > 0, source, fallback)
        return source[:, 1] / source[:, 0], source[:, 3] / source[:, 0]


def _squares(
    sums: _Floats, a: _Floats, b: float | _Floats, c: float | _Floats
) -> _Floats:
    """Return the sum of (a + b y + c x) squared in each epoch."""
    n, y, yy, x, xx, xy = sums.T
    squares: _Floats = (
        a * a * n + b * b * yy + c * c * xx + 2 * (a * b * y + a * c * x + b * c * xy)
    )
    return np.maximum(squares, 0.0)


def _within(totals: Sequence[Moments]) -> float:
    usable = [each for each in totals if each.n >= 2 and each.sum_x > 0]
    squares = math.fsum(m.ratio_variance * m.n * (m.n - 1) for m in usable)
    freedom = math.fsum(each.n - 1 for each in usable)
    return squares / freedom if freedom else 0.0


def _per_unit(moments: Moments) -> Moments:
    """Return the moments with x = 1."""
    return dataclasses.replace(
        moments, sum_x=moments.n, sum_xx=moments.n, sum_xy=moments.sum_y
    )


def _row(moments: Moments) -> tuple[float, ...]:
    return dataclasses.astuple(moments)
