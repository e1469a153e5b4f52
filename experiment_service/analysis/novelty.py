"""Novelty and primacy: effects that fade or grow while an experiment runs.

Shoppers try what is new and tire of it, or need time to find its use. Then the mean over
the days so far is not what a variant does in the long run. A hint, not a verdict.
"""

import dataclasses
import math
from collections.abc import Mapping

from scipy import stats

from experiment_service.analysis.contrasts import Contrast
from experiment_service.analysis.health import HealthCheck, graded, nothing
from experiment_service.analysis.interval import Withheld

#: Days with a contrast below which no trend is looked for.
MINIMUM_DAYS = 5

_CAUSES = {
    "fades": "shoppers who try what is new and tire of it, or a season that ends; the "
    "later days tell more of the long run",
    "grows": "shoppers who need time to find its use, a model that learns, or a season "
    "that begins; run it longer before deciding",
    "changes sign": "shoppers who try what is new and tire of it, or a season; the mean "
    "over all days tells little, so run it longer",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """Line through the daily effects, each weighted by 1 / its variance.

    Attributes
    ----------
    slope, standard_error : float
        Change of the effect per day, and its error by the variances of the days.
    p_value : float
        Of a slope of 0, for one look at a planned end.
    first, last : float
        The line on the first and the last of the days.
    first_error, last_error : float
        Their standard errors.
    """

    slope: float
    standard_error: float
    p_value: float
    first: float
    last: float
    first_error: float
    last_error: float


def trend(contrasts: Mapping[float, Contrast]) -> Trend:
    """Fit a line to the effect of each day.

    Parameters
    ----------
    contrasts : mapping of float to Contrast
        By day since the start, at least 2 of them. Days must be of different units, or
        of units drawn anew: by the day of a unit's first exposure.

    Raises
    ------
    ValueError
        When there are fewer than 2 days.
    """
    if len(contrasts) < 2:
        raise ValueError(f"there are {len(contrasts)} days; a trend needs at least 2")
    # Relative to the largest, so that tiny variances do not overflow.
    smallest = min(each.variance for each in contrasts.values())
    weights = {day: smallest / each.variance for day, each in contrasts.items()}
    total = math.fsum(weights.values())
    centre = math.fsum(weights[day] * day for day in contrasts) / total
    level = math.fsum(weights[day] * contrasts[day].estimate for day in contrasts)
    level /= total
    spread = math.fsum(weights[day] * (day - centre) ** 2 for day in contrasts)
    slope = math.fsum(
        weights[day] * (day - centre) * contrasts[day].estimate for day in contrasts
    )
    slope /= spread
    error = math.sqrt(smallest / spread)
    ends = [day - centre for day in (min(contrasts), max(contrasts))]
    first_error, last_error = (
        math.sqrt(smallest / total + (end * error) ** 2) for end in ends
    )
    return Trend(
        slope=slope,
        standard_error=error,
        p_value=float(2 * stats.norm.sf(abs(slope) / error)),
        first=level + slope * ends[0],
        last=level + slope * ends[1],
        first_error=first_error,
        last_error=last_error,
    )


def novelty(
    contrasts: Mapping[float, Contrast | Withheld], *, warning_below: float = 0.001
) -> HealthCheck:
    """Look for an effect that fades or grows.

    Parameters
    ----------
    contrasts : mapping of float to Contrast or Withheld
        As for `trend`; days whose contrast is withheld are left out.
    warning_below : float
        Bound for the p-value. At 0.001 a test watched for 20 days alarms without cause
        about as often as one that is looked at once does at 0.01 (docs/calibration.md).

    Returns
    -------
    HealthCheck
        Its value is the p-value. Never failed: a trend is something to know, not a
        fault. Not enough data below 5 days.
    """
    known = {day: each for day, each in contrasts.items() if isinstance(each, Contrast)}
    if len(known) < MINIMUM_DAYS:
        return nothing(
            "novelty",
            None,
            f"{len(known)} days have enough units to compare, {MINIMUM_DAYS} are needed.",
        )
    line = trend(known)
    found = (
        f"The effect went from {line.first:+.3g} to {line.last:+.3g} over "
        f"{max(known) - min(known):g} days, p = {line.p_value:.2g}."
    )
    how = _course(line)
    calm = line.p_value >= warning_below
    return graded(
        "novelty",
        line.p_value,
        "ok" if calm else "warning",
        threshold=None,
        found=f"{'No sign that the effect fades or grows' if calm else f'The effect {how}'}"
        f". {found}",
        causes=_CAUSES[how],
    )


def _course(line: Trend) -> str:
    # An effect that fades to nothing is no line: the fitted one may end beyond 0.
    sure = min(
        abs(line.first) / line.first_error, abs(line.last) / line.last_error
    ) > stats.norm.isf(0.025)
    if line.first * line.last < 0 and sure:
        return "changes sign"
    return "fades" if abs(line.last) < abs(line.first) else "grows"
