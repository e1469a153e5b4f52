"""AIPW scores of two variants, summed over the units of each epoch.

Owns the weights h, the augmentation, the variance and the overlap of a weighted
contrast; knows no interval.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from experiment_service.analysis.interval import NO_SPREAD, Overlap, Withheld
from experiment_service.analysis.moments import EpochMoments, Moments, successes_of
from experiment_service.domain.metric import MetricKind

_Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WeightedArm:
    """One variant under the weights h; arrays have one entry per used epoch.

    Attributes
    ----------
    value : float
        Weighted mean of y, or ratio r of the weighted means of y and x.
    size : float
        Units of simple random sampling that would give the same variance.
    n, propensity : ndarray, shape (epochs,)
        Units of the variant and its weight, > 0.
    sum_z, sum_zz : ndarray, shape (epochs,)
        Sums over the variant's units of z = (y - r x) / mean(x), the influence of a
        unit on the value, and of z squared.
    augmentation : ndarray, shape (epochs,)
        Guess of z from earlier epochs, the same for every unit of the epoch.
    """

    value: float
    size: float
    n: _Floats
    propensity: _Floats
    sum_z: _Floats
    sum_zz: _Floats
    augmentation: _Floats


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WeightedPair:
    """Two variants under common weights h, one entry per used epoch.

    Attributes
    ----------
    treatment, control : WeightedArm
        The two variants.
    h, epoch_units : ndarray, shape (epochs,)
        Weight of a unit's score, and units of all variants.
    pooled_variance : float
        Variance of z of the units of both, each around its own mean, > 0.
    overlap : Overlap
        Of the variant that has less.
    """

    treatment: WeightedArm
    control: WeightedArm
    h: _Floats
    epoch_units: _Floats
    pooled_variance: float
    overlap: Overlap

    @property
    def units(self) -> float:
        """Units of all variants in the used epochs."""
        return float(self.epoch_units.sum())

    def variance(self, scale1: float = 1.0, scale0: float = 1.0) -> float:
        """Variance of scale1 times the treatment minus scale0 times the control; > 0.

        The sum of squared scores, but never less than the pooled variance implies: a
        variant seen rarely and with bad luck has few successes, so by itself it
        would get a small variance just when its value is most wrong.
        """
        floor = self.pooled_variance * (
            scale1**2 / self.treatment.size + scale0**2 / self.control.size
        )
        return max(self.realised_variance(scale1, scale0), floor)

    def realised_variance(self, scale1: float = 1.0, scale0: float = 1.0) -> float:
        """Sum of squared weighted scores over the squared sum of weights.

        A unit of neither variant scores the difference of the augmentations; a unit of
        one of them has (z - augmentation) / propensity on top.
        """
        base = scale1 * self.treatment.augmentation - scale0 * self.control.augmentation
        others = self.epoch_units - self.treatment.n - self.control.n
        squares = others * base**2
        for arm, scale in ((self.treatment, scale1), (self.control, -scale0)):
            m, step = arm.augmentation, scale / arm.propensity
            spread = arm.sum_zz - 2 * m * arm.sum_z + m**2 * arm.n
            squares += arm.n * base**2
            squares += 2 * base * step * (arm.sum_z - arm.n * m)
            squares += step**2 * spread
        total = float((self.h * self.epoch_units).sum())
        return float((self.h**2 * squares).sum()) / total**2


def weigh(
    epochs: Sequence[EpochMoments],
    *,
    kind: MetricKind,
    treatment: str,
    control: str,
    minimum_effective_sample_size: float,
) -> WeightedPair | Withheld:
    """Weigh the scores of two variants over the epochs in which both had weight.

    With h = (1/e_treatment + 1/e_control)^(-1/2) every unit adds the same variance,
    whatever the weights were: the condition for a normal limit in adaptive data. Where
    segments have weights of their own, effects are meant to differ between them, and h
    would favour those whose weights are even: there h = 1, so that the values are those
    of all units, whatever their segment. A floor keeps the variance in bounds.

    Parameters
    ----------
    epochs : sequence of EpochMoments
        In the order of time; the segments of an epoch one after the other.
    kind : {"proportion", "mean", "ratio"}
        Only a ratio looks at x.
    treatment, control : str
        Two different variants.
    minimum_effective_sample_size : float
        In units.

    Returns
    -------
    WeightedPair or Withheld
        Withheld without traffic, with traffic at weight 0, with too small an
        effective sample, without spread or without denominator.

    Raises
    ------
    ValueError
        If a variant is in no epoch, both are the same, or a proportion's moments are
        not of 0 and 1.

    References
    ----------
    Hadad et al. (2021), PNAS 118(15); Kish (1965) for the effective sample size.
    """
    if treatment == control:
        raise ValueError(f"treatment and control are both {treatment!r}")
    for variant in (treatment, control):
        if epochs and not any(variant in epoch.weights for epoch in epochs):
            raise ValueError(f"variant {variant!r} is in none of the epochs")
        if any(_leaks(epoch, variant) for epoch in epochs):
            return Withheld(reason="A variant had units in an epoch with weight 0.")
    used = [epoch for epoch in epochs if _shares(epoch, treatment, control)]
    names = {treatment, control, *(name for epoch in used for name in epoch.moments)}
    sums = {
        name: _rows([epoch.moments.get(name, Moments.zero()) for epoch in used], kind)
        for name in sorted(names)  # sums are rounded by their order
    }
    treated, controlled = (_traffic(used, name, sums) for name in (treatment, control))
    if treated.total.n < 2 or controlled.total.n < 2:
        return Withheld(reason="A variant has no units in epochs that both shared.")
    h = (1 / treated.propensity + 1 / controlled.propensity) ** -0.5
    if any(epoch.segment is not None for epoch in used):
        h = np.ones_like(h)
    overlap = _overlap(treated, controlled, h)
    if overlap.effective_sample_size < minimum_effective_sample_size:
        return Withheld(
            reason=(
                f"The effective sample size is {overlap.effective_sample_size:.0f}, "
                f"below {minimum_effective_sample_size:.0f}: a variant had too little "
                "traffic."
            ),
            overlap=overlap,
        )
    units = np.array([epoch.units for epoch in used])
    return _pair(treated, controlled, h, units, overlap)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Traffic:
    """What one variant had; `sums` has a row per epoch in the order of `Moments`.

    The guesses are means of y and x before the epoch.
    """

    propensity: _Floats
    sums: _Floats
    guess_y: _Floats
    guess_x: _Floats
    total: Moments


def _leaks(epoch: EpochMoments, variant: str) -> bool:
    moments = epoch.moments.get(variant)
    return moments is not None and moments.n > 0 and epoch.weights[variant] == 0


def _shares(epoch: EpochMoments, treatment: str, control: str) -> bool:
    weights = epoch.weights
    return (
        epoch.units > 0
        and weights.get(treatment, 0.0) > 0
        and weights.get(control, 0.0) > 0
    )


def _traffic(
    epochs: Sequence[EpochMoments], variant: str, by_variant: Mapping[str, _Floats]
) -> _Traffic:
    sums = by_variant[variant]
    everyone = np.sum(list(by_variant.values()), axis=0)
    # Without a past there is the epoch itself: the scores then give the plain
    # difference of means, which fixed weights allow.
    source = np.cumsum(sums, axis=0) - sums
    for fallback in (sums, everyone):
        source = np.where(source[:, :1] > 0, source, fallback)
    return _Traffic(
        propensity=np.array([epoch.weights[variant] for epoch in epochs]),
        sums=sums,
        guess_y=source[:, 1] / source[:, 0],
        guess_x=source[:, 3] / source[:, 0],
        total=Moments.from_row(sums.sum(axis=0)),
    )


def _rows(moments: Sequence[Moments], kind: MetricKind) -> _Floats:
    """Return a row of sums for each; x = 1 unless the metric is a ratio."""
    rows = np.array([each.row for each in moments], dtype=np.float64)
    rows = rows.reshape(-1, 6)
    if kind != "ratio":
        rows[:, 3] = rows[:, 4] = rows[:, 0]
        rows[:, 5] = rows[:, 1]
    if kind == "proportion":
        for each in moments:
            successes_of(each)
    return rows


def _overlap(treated: _Traffic, controlled: _Traffic, h: _Floats) -> Overlap:
    sizes = []
    for traffic in (treated, controlled):
        n, weight = traffic.sums[:, 0], h / traffic.propensity
        sizes.append(float((weight * n).sum() ** 2 / (weight**2 * n).sum()))
    smallest = min(treated.propensity.min(), controlled.propensity.min())
    return Overlap(
        effective_sample_size=min(sizes), smallest_propensity=float(smallest)
    )


def _pair(
    treated: _Traffic,
    controlled: _Traffic,
    h: _Floats,
    units: _Floats,
    overlap: Overlap,
) -> WeightedPair | Withheld:
    arms = [_arm(traffic, h, units) for traffic in (treated, controlled)]
    if arms[0] is None or arms[1] is None:
        return Withheld(
            reason="The denominator of the ratio is 0 in a variant.", overlap=overlap
        )
    totals = (treated.total, controlled.total)
    squares = sum(m.ratio_variance * m.n * (m.n - 1) for m in totals)
    if squares == 0:
        return Withheld(reason=NO_SPREAD, overlap=overlap)
    return WeightedPair(
        treatment=arms[0],
        control=arms[1],
        h=h,
        epoch_units=units,
        pooled_variance=squares / (treated.total.n + controlled.total.n - 2),
        overlap=overlap,
    )


def _arm(traffic: _Traffic, h: _Floats, units: _Floats) -> WeightedArm | None:
    """Weigh one variant; None when its denominator is not positive."""
    e = traffic.propensity
    n, sum_y, sum_yy, sum_x, sum_xx, sum_xy = traffic.sums.T
    total = float((h * units).sum())
    scores_x = units * traffic.guess_x + (sum_x - n * traffic.guess_x) / e
    scores_y = units * traffic.guess_y + (sum_y - n * traffic.guess_y) / e
    mean_x = float((h * scores_x).sum()) / total
    if mean_x <= 0 or traffic.total.sum_x == 0:
        return None
    r = float((h * scores_y).sum()) / total / mean_x
    return WeightedArm(
        value=r,
        size=total**2 / float((h**2 * units / e).sum()),
        n=n,
        propensity=e,
        sum_z=(sum_y - r * sum_x) / mean_x,
        sum_zz=(sum_yy - 2 * r * sum_xy + r * r * sum_xx) / mean_x**2,
        augmentation=(traffic.guess_y - r * traffic.guess_x) / mean_x,
    )
