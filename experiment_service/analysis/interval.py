"""What an estimate is: an interval that says how it was made, or a stated refusal.

Every method of this package returns one of the two; nan and infinity never leave it.
"""

import dataclasses
import math

ONE_LOOK = "Valid for one look at a planned end, with weights that did not move"
NO_SPREAD = "All units have the same value, so the spread cannot be estimated."


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How well a weighted estimate is supported by the traffic.

    Attributes
    ----------
    effective_sample_size : float
        Kish's (sum of weights)^2 / sum of squared weights, of the variant of the pair
        that has less; in units, > 0.
    smallest_propensity : float
        Smallest weight that either variant had in a used epoch, in (0, 1].
    """

    effective_sample_size: float
    smallest_propensity: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its interval.

    Attributes
    ----------
    estimate, low, high : float
        In the unit of the metric, or a relative lift (0.1 is +10 %); low <= estimate
        <= high.
    level : float
        Stated coverage, in (0, 1).
    method : str
        Name of the method, to be shown beside the numbers.
    validity : str
        One sentence: what makes the interval valid.
    overlap : Overlap or None
        Given by weighted estimates only.
    """

    estimate: float
    low: float
    high: float
    level: float
    method: str
    validity: str
    overlap: Overlap | None = None

    def __post_init__(self) -> None:
        check_level(self.level)
        for name in ("estimate", "low", "high"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}, must be finite")
        if not self.low <= self.estimate <= self.high:
            raise ValueError(
                f"estimate is {self.estimate}, must lie in [{self.low}, {self.high}]"
            )

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval; for differences and lifts."""
        return self.low > 0 or self.high < 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Withheld:
    """An estimate that is not given.

    Attributes
    ----------
    reason : str
        One sentence for the reader of a report.
    overlap : Overlap or None
        Given when the traffic was too thin for a weighted estimate.
    """

    reason: str
    overlap: Overlap | None = None


Estimate = Interval | Withheld


def check_level(level: float) -> None:
    """Raise ValueError unless 0 < level < 1."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, must lie between 0 and 1")


def check_counts(successes: float, n: float) -> None:
    """Raise ValueError unless both are whole numbers with 0 <= successes <= n."""
    if not (
        math.isfinite(n)
        and 0 <= successes <= n
        and successes == math.floor(successes)
        and n == math.floor(n)
    ):
        raise ValueError(
            f"{successes} successes of {n} units: must be whole numbers, 0 <= s <= n"
        )


def lift_interval(
    logs: tuple[float, float, float],
    *,
    level: float,
    method: str,
    validity: str,
    overlap: Overlap | None = None,
) -> Estimate:
    """Turn an interval for log(treatment / control) into one for the relative lift.

    Parameters
    ----------
    logs : tuple of float
        Estimate, lower and upper limit of the log ratio.
    level, method, validity, overlap
        Of the interval that is returned.

    Returns
    -------
    Interval or Withheld
        Withheld when the limits are too far out to be a number.
    """
    if max(map(abs, logs)) > 500:
        return Withheld(reason="There are too few data for a lift.", overlap=overlap)
    estimate, low, high = map(math.expm1, logs)
    return Interval(
        estimate=estimate,
        low=low,
        high=high,
        level=level,
        method=method,
        validity=validity,
        overlap=overlap,
    )
