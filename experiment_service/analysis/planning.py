"""How many units a test needs, what it can see, and how long it takes.

Normal approximation for two variants, two-sided. Watched tests pay for their any-time
interval, tests adjusted by earlier behaviour need fewer units; both are factors on the
same formula. Knows no table and no experiment.
"""

import dataclasses
import math

from scipy import optimize, stats

from experiment_service.analysis.interval import check_level
from experiment_service.analysis.moments import Moments
from experiment_service.analysis.sequential import half_width
from experiment_service.domain.metric import MetricKind


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a metric varies between units of the control.

    Attributes
    ----------
    value : float
        Rate, mean or ratio of the control.
    deviation : float
        Standard deviation of one unit's contribution, > 0; of a rate p it is
        sqrt(p (1 - p)), of a ratio that of its linearisation.
    proportion : bool
        Whether the deviation follows from the value, so that it changes with it.
    """

    value: float
    deviation: float
    proportion: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"value is {self.value}; it must be finite")
        if not 0 < self.deviation < math.inf:
            raise ValueError(
                f"deviation is {self.deviation}; it must be a number above 0"
            )

    @classmethod
    def of_rate(cls, rate: float) -> "Spread":
        """Return the spread of a proportion.

        Raises
        ------
        ValueError
            When the rate is not between 0 and 1.
        """
        if not 0 < rate < 1:
            raise ValueError(f"rate is {rate}; it must lie between 0 and 1")
        return cls(value=rate, deviation=math.sqrt(rate * (1 - rate)), proportion=True)

    @classmethod
    def of_moments(cls, kind: MetricKind, moments: Moments) -> "Spread":
        """Return the spread that units have shown.

        Raises
        ------
        ValueError
            When there are fewer than 2 units, or all have the same value.
        """
        if moments.n < 2:
            raise ValueError(
                f"there are {moments.n:.0f} units; a spread needs at least 2"
            )
        if kind == "proportion":
            return cls.of_rate(moments.mean)
        if kind == "mean":
            return cls(value=moments.mean, deviation=math.sqrt(moments.variance))
        return cls(
            value=moments.ratio,
            deviation=math.sqrt(moments.ratio_variance * moments.n),
        )

    def shifted(self, difference: float) -> "Spread":
        """Return the spread of a treatment that differs by so much.

        Raises
        ------
        ValueError
            When a rate would leave 0 to 1.
        """
        if self.proportion:
            return Spread.of_rate(self.value + difference)
        return dataclasses.replace(self, value=self.value + difference)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """How a test is to be read.

    Attributes
    ----------
    level : float
        Coverage of the interval; the false-alarm rate is 1 - level.
    power : float
        Chance to see the difference that is planned for, in (0, 1).
    treatment_share : float
        Share of the two variants' units that the treatment gets, in (0, 1).
    any_time : bool
        Read at every look by a confidence sequence, instead of once at the end.
    variance_explained : float
        Share of the variance that adjustment by earlier behaviour removes (the
        squared correlation of CUPED), in [0, 1).
    comparisons : int
        Treatments compared with the control; alpha is divided by them (Bonferroni).
    """

    level: float = 0.95
    power: float = 0.8
    treatment_share: float = 0.5
    any_time: bool = False
    variance_explained: float = 0.0
    comparisons: int = 1

    def __post_init__(self) -> None:
        check_level(self.level)
        for name in ("power", "treatment_share"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ValueError(f"{name} is {value}; it must lie between 0 and 1")
        if not 0 <= self.variance_explained < 1:
            raise ValueError(
                f"variance_explained is {self.variance_explained}; it must be at "
                "least 0 and below 1"
            )
        if self.comparisons < 1:
            raise ValueError(f"comparisons is {self.comparisons}; it must be 1 or more")

    def separation(self, units: float) -> float:
        """Return difference / standard error at which the power is reached."""
        level = 1 - (1 - self.level) / self.comparisons
        if self.any_time:
            look = half_width(1.0, units, planned_units=units, level=level)
        else:
            look = float(stats.norm.isf((1 - level) / 2))
        return look + float(stats.norm.ppf(self.power))


def detectable_difference(control: Spread, units: float, design: Design) -> float:
    """Return the smallest difference that so many units show with the design's power.

    Parameters
    ----------
    units : float, >= 2
        Of both variants together.

    Returns
    -------
    float
        > 0, in the unit of the metric; the treatment is taken to be higher.

    Raises
    ------
    ValueError
        When there are fewer than 2 units, or no difference that a rate can have is
        large enough.
    """
    if not units >= 2:
        raise ValueError(f"units is {units}; it must be 2 or more")

    def excess(difference: float) -> float:
        return difference - design.separation(units) * _error(
            control, control.shifted(difference), units, design
        )

    if not control.proportion:
        return -excess(0.0)
    largest = (1 - control.value) * (1 - 1e-9)
    if excess(largest) < 0:
        raise ValueError(
            f"units is {units:g}; even a rate of 100% could not be told from "
            f"{control.value:.2%} with so few"
        )
    return float(optimize.brentq(excess, 0.0, largest, xtol=1e-15))


def needed_units(control: Spread, difference: float, design: Design) -> int:
    """Return the units of both variants together that show a difference.

    Parameters
    ----------
    difference : float
        Treatment minus control, not 0, in the unit of the metric.

    References
    ----------
    Fleiss, Levin and Paik (2003), Statistical methods for rates and proportions, 4.2,
    without continuity correction and with each variant's own variance.

    Raises
    ------
    ValueError
        When the difference is 0 or takes a rate out of 0 to 1.
    """
    if difference == 0 or not math.isfinite(difference):
        raise ValueError(f"difference is {difference}; it must be a number but 0")
    treatment = control.shifted(difference)
    once = _error(control, treatment, 1.0, design) / abs(difference)
    units = 2.0
    # The any-time multiple depends only weakly on the units: it settles at once.
    for _ in range(50):
        former, units = units, max((design.separation(units) * once) ** 2, 2.0)
        if abs(units - former) < 1e-9 * units:
            break
    return math.ceil(units - 1e-9)


def _error(control: Spread, treatment: Spread, units: float, design: Design) -> float:
    share = design.treatment_share
    variance = treatment.deviation**2 / share + control.deviation**2 / (1 - share)
    return math.sqrt(variance * (1 - design.variance_explained) / units)
