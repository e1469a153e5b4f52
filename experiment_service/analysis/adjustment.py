"""CUPED: metrics adjusted by what units did before they were exposed.

A unit that bought much before buys much afterwards, in every variant alike. With z what
it did before, y - theta (z - mean z) has the same difference between variants as y and
less variance. The result is plain moments, so that every interval works on them as they
are. Knows no interval and no table.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from experiment_service.analysis.interval import NO_SPREAD, Withheld
from experiment_service.analysis.moments import EpochMoments, Moments, successes_of
from experiment_service.domain.metric import MetricKind

#: Fewer units of either variant, or of a proportion fewer successes or failures, are
#: not adjusted (docs/calibration.md).
MINIMUM_UNITS = 100
MINIMUM_EVENTS = 10

# Centred sums this small against what was subtracted are rounding.
_CANCELLATION = 1e-12
_TOLERANCE = 1e-9
# Below about 1e-162 the square of a value is zero while the value is not.
_UNDERFLOW = 1e-150


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CovariateMoments:
    """Moments of (y, x), and their sums with the covariate z, over the same units.

    Attributes
    ----------
    moments : Moments
        Of y and x.
    sum_z, sum_zz : float
        Sums of z and of z squared. Sums lose what is 1e-12 of the squares: a z that is
        large and hardly varies is better given less a constant.
    sum_yz, sum_xz : float
        Sums of y times z and of x times z.

    Raises
    ------
    ValueError
        If a sum is not finite, or no real data can have these sums.
    """

    moments: Moments
    sum_z: float
    sum_zz: float
    sum_yz: float
    sum_xz: float

    def __post_init__(self) -> None:
        own = self.moments
        for name in ("sum_z", "sum_zz", "sum_yz", "sum_xz"):
            value = float(getattr(self, name))
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}, must be finite")
            object.__setattr__(self, name, value)
        if self.sum_zz < 0:
            raise ValueError(f"sum_zz is {self.sum_zz}, must be >= 0")
        for name, value, squares in (
            ("sum_z", self.sum_z, own.n),
            ("sum_yz", self.sum_yz, own.sum_yy),
            ("sum_xz", self.sum_xz, own.sum_xx),
        ):
            norms = [math.sqrt(squares), math.sqrt(self.sum_zz)]
            slack = math.sqrt(own.n) * _UNDERFLOW
            bound = math.prod(norm + slack for norm in norms) * (1 + _TOLERANCE)
            if abs(value) > bound:
                raise ValueError(
                    f"{name} is {value}, but the squares allow at most {bound}"
                )

    def __add__(self, other: "CovariateMoments") -> "CovariateMoments":
        return CovariateMoments(
            moments=self.moments + other.moments,
            sum_z=self.sum_z + other.sum_z,
            sum_zz=self.sum_zz + other.sum_zz,
            sum_yz=self.sum_yz + other.sum_yz,
            sum_xz=self.sum_xz + other.sum_xz,
        )

    @classmethod
    def zero(cls) -> "CovariateMoments":
        """Return the moments of no units, the neutral element of `+`."""
        return cls(moments=Moments.zero(), sum_z=0, sum_zz=0, sum_yz=0, sum_xz=0)

    @classmethod
    def from_arrays(
        cls, y: ArrayLike, z: ArrayLike, x: ArrayLike | None = None
    ) -> "CovariateMoments":
        """Sum the values of units.

        Parameters
        ----------
        y, z : array_like, shape (n,)
            Value or numerator of each unit, and its covariate.
        x : array_like, shape (n,), optional
            Denominator of each unit; 1 when left out.

        Raises
        ------
        ValueError
            If the shapes are not one-dimensional and equal, or a sum is not finite.
        """
        moments = Moments.from_arrays(y, x)
        ys, zs = np.asarray(y, dtype=np.float64), np.asarray(z, dtype=np.float64)
        xs = np.ones_like(ys) if x is None else np.asarray(x, dtype=np.float64)
        if zs.shape != ys.shape:
            raise ValueError(f"z has shape {zs.shape} and y {ys.shape}, must be equal")
        return cls(
            moments=moments,
            sum_z=float(zs.sum()),
            sum_zz=float(np.square(zs).sum()),
            sum_yz=float((ys * zs).sum()),
            sum_xz=float((xs * zs).sum()),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CovariateEpoch:
    """As `EpochMoments`, of one epoch or one segment of it, with the covariate.

    Attributes
    ----------
    weights : mapping of str to float
        Probability of every variant of the experiment in this epoch; sums to 1.
    cells : mapping of str to CovariateMoments
        Of the units of the epoch, by variant; a missing variant had no units.
    segment : str or None
        The segment of the epoch that they are of, where each has its own weights.
    """

    weights: Mapping[str, float]
    cells: Mapping[str, CovariateMoments]
    segment: str | None = None

    def cell(self, variant: str) -> CovariateMoments:
        """Return what the variant had; that of no units when it had none."""
        return self.cells.get(variant, CovariateMoments.zero())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """Adjusted moments, to be used in place of the others.

    Attributes
    ----------
    kind : {"mean", "ratio"}
        To be named to the interval; an adjusted proportion is a mean.
    epochs : tuple of EpochMoments
        In the order given. They are for comparing variants: by itself, an adjusted
        value takes the mean of z as known, so its own interval would be too narrow.
    coefficients : mapping of str to float
        Theta of each variant, in units of y per unit of z.
    variance_reduction : float
        1 - variance afterwards / variance before, of what is compared; at most 1, and
        below 0 by chance when z says nothing.
    """

    kind: MetricKind
    epochs: tuple[EpochMoments, ...]
    coefficients: Mapping[str, float]
    variance_reduction: float

    def pooled(self, variant: str) -> Moments:
        """Return the adjusted moments of a variant over all epochs."""
        return sum(
            (each.moments.get(variant, Moments.zero()) for each in self.epochs),
            Moments.zero(),
        )


def adjust(
    epochs: Sequence[CovariateEpoch],
    *,
    kind: MetricKind,
    treatment: str,
    control: str,
    for_lift: bool = False,
    minimum_units: float = MINIMUM_UNITS,
) -> Adjustment | Withheld:
    """Adjust the moments of every variant for comparing treatment and control.

    Theta is the slope of y on z within variants, pooled over all of them: within each
    (epoch, segment, variant), so that neither effects nor seasons enter. For a ratio it
    is that of the linearised y - r x. The mean of z is that of all variants of the same
    epoch and segment.

    A lift compares the logarithms of the values. There the share theta / value of each
    variant must be the same, or the chance in the mean of z does not cancel and the
    interval is too narrow for large lifts. So for a lift each variant has a theta in
    proportion to its value.

    Parameters
    ----------
    epochs : sequence of CovariateEpoch
        In the order of time. z must be known before the exposure, or the effect itself
        would be adjusted away.
    kind : {"proportion", "mean", "ratio"}
        Of the metric.
    treatment, control : str
        The pair that decides whether there is an adjustment.
    for_lift : bool
        Whether the ratio of the two values is to be estimated, not their difference.
    minimum_units : float
        Of each of the two, >= 2.

    Returns
    -------
    Adjustment or Withheld
        Withheld when a variant has too few units (of a proportion, successes or
        failures), or when y or z does not vary: then the plain moments are to be used.

    References
    ----------
    Deng, Xu, Kohavi and Walker (2013), Improving the sensitivity of online controlled
    experiments by utilizing pre-experiment data, WSDM.
    """
    variants = sorted({name for each in epochs for name in each.cells})
    totals = {
        name: sum((each.cell(name) for each in epochs), CovariateMoments.zero()).moments
        for name in {*variants, treatment, control}
    }
    pair = (totals[treatment], totals[control])
    reason = _too_few(kind, pair, minimum_units)
    if reason is not None:
        return Withheld(reason=reason)
    if for_lift and min(each.sum_y for each in pair) <= 0:
        return Withheld(reason="A lift needs a positive value in both variants.")
    scales = {name: totals[name].mean if for_lift else 1.0 for name in variants}
    slope = _slope(epochs, kind=kind, totals=totals, scales=scales)
    if isinstance(slope, Withheld):
        return slope
    coefficients = {name: slope * scale for name, scale in scales.items()}
    adjusted = adjusted_epochs(epochs, coefficients)
    result = Adjustment(
        kind="ratio" if kind == "ratio" else "mean",
        epochs=adjusted,
        coefficients=coefficients,
        variance_reduction=0.0,
    )
    before, after = (
        math.fsum(
            _variance(kind, moments) / scales[name] / scales[name]
            for name, moments in both.items()
        )
        for both in (
            {name: totals[name] for name in (treatment, control)},
            {name: result.pooled(name) for name in (treatment, control)},
        )
    )
    if before == 0:
        return Withheld(reason=NO_SPREAD)
    return dataclasses.replace(result, variance_reduction=1 - after / before)


def adjusted_epochs(
    epochs: Sequence[CovariateEpoch], coefficients: Mapping[str, float]
) -> tuple[EpochMoments, ...]:
    """Return the moments of y - theta (z - mean z), with theta by variant.

    The mean of z is that of all variants of the same epoch and segment.
    """
    return tuple(
        EpochMoments(
            weights=epoch.weights,
            moments={
                name: _adjusted(cell, coefficients[name], _mean_z(epoch))
                for name, cell in epoch.cells.items()
            },
            segment=epoch.segment,
        )
        for epoch in epochs
    )


def _too_few(
    kind: MetricKind, pair: Sequence[Moments], minimum_units: float
) -> str | None:
    if min(each.n for each in pair) < max(minimum_units, 2):
        return (
            f"Adjustment by earlier behaviour needs {minimum_units:.0f} units in each "
            "variant."
        )
    if kind == "proportion":
        for successes, n in map(successes_of, pair):
            if min(successes, n - successes) < MINIMUM_EVENTS:
                return (
                    f"Adjustment by earlier behaviour needs {MINIMUM_EVENTS} successes "
                    f"and {MINIMUM_EVENTS} failures in each variant."
                )
    if kind == "ratio" and min(each.sum_x for each in pair) <= 0:
        return "The denominator of the ratio is 0 in a variant."
    return None


def _slope(
    epochs: Sequence[CovariateEpoch],
    *,
    kind: MetricKind,
    totals: Mapping[str, Moments],
    scales: Mapping[str, float],
) -> float | Withheld:
    """Slope of (y - r x) / scale on z within (epoch, segment, variant)."""
    products: list[float] = []
    squares: list[float] = []
    for epoch in epochs:
        for name, cell in epoch.cells.items():
            total = totals[name]
            if cell.moments.n == 0 or scales[name] <= 0:
                continue
            product = _centred_yz(cell)
            if kind == "ratio" and total.sum_x != 0:
                product -= total.ratio * _centred_xz(cell)
            products.append(product / scales[name])
            squares.append(_centred_zz(cell))
    spread = math.fsum(squares)
    if spread == 0:
        return Withheld(
            reason="All units behaved the same before, so there is nothing to adjust by."
        )
    return math.fsum(products) / spread


def _mean_z(epoch: CovariateEpoch) -> float:
    units = math.fsum(cell.moments.n for cell in epoch.cells.values())
    return math.fsum(cell.sum_z for cell in epoch.cells.values()) / max(units, 1.0)


def _adjusted(cell: CovariateMoments, theta: float, mean_z: float) -> Moments:
    own = cell.moments
    if own.n == 0 or theta == 0:
        return own
    sum_y = own.sum_y - theta * (cell.sum_z - own.n * mean_z)
    # Squares and products are centred before theta enters: they can't become negative,
    # and large sums do not swamp the little that is left.
    before = _centred(own.sum_yy, own.sum_y * own.sum_y, own.n)
    explained = theta * theta * _centred_zz(cell)
    squares = before - 2 * theta * _centred_yz(cell) + explained
    squares = squares if squares > _CANCELLATION * (before + explained) else 0.0
    product = own.sum_xy - own.sum_x * own.sum_y / own.n - theta * _centred_xz(cell)
    most = math.sqrt(squares * _centred(own.sum_xx, own.sum_x * own.sum_x, own.n))
    return dataclasses.replace(
        own,
        sum_y=sum_y,
        sum_yy=squares + sum_y * sum_y / own.n,
        sum_xy=min(max(product, -most), most) + own.sum_x * sum_y / own.n,
    )


def _centred_zz(cell: CovariateMoments) -> float:
    return _centred(cell.sum_zz, cell.sum_z * cell.sum_z, cell.moments.n)


def _centred_yz(cell: CovariateMoments) -> float:
    return cell.sum_yz - cell.moments.sum_y * cell.sum_z / cell.moments.n


def _centred_xz(cell: CovariateMoments) -> float:
    return cell.sum_xz - cell.moments.sum_x * cell.sum_z / cell.moments.n


def _centred(squares: float, squared_sum: float, n: float) -> float:
    """Sum of squared deviations; 0 when it is lost in rounding."""
    centred = squares - squared_sum / n
    return centred if centred > _CANCELLATION * squares else 0.0


def _variance(kind: MetricKind, moments: Moments) -> float:
    """Variance of the value that the moments estimate, times mean(x)^2 for a ratio."""
    if kind == "ratio":
        return moments.ratio_variance * (moments.sum_x / moments.n) ** 2
    return moments.variance / moments.n
