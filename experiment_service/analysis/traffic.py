"""Health checks of the traffic: bots, late events, what is missing in a variant.

As those of `health`: pure functions of counts, and each says what a failure means.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from experiment_service.analysis.health import (
    HealthCheck,
    Status,
    check_epochs,
    grade,
    graded,
    graded_share,
    nothing,
)

#: A unit with no more events than this is never called absurd.
FEWEST_ABSURD = 100.0

# Least expected count of a cell, the usual rule for the chi-squared approximation.
_EXPECTED = 5.0

# Fewer units with nothing missing say nothing.
_FEWEST_UNITS = 100.0


def absurd_above(lower_quartile: float, upper_quartile: float) -> float:
    """Return the number of events of a unit above which it is no shopper.

    Three times the distance of the quartiles above the upper one, on the log scale, and
    at least 100: where half of the units have 1 to 4 exposures, 256. Quartiles do not
    move when up to a quarter of the units are bots; means and deviations do.

    Parameters
    ----------
    lower_quartile, upper_quartile : float
        Of the events per unit, over the units of all variants with at least one.

    Raises
    ------
    ValueError
        Unless 0 < lower <= upper, and both are finite.

    References
    ----------
    Tukey (1977), Exploratory data analysis: the outer fence, for far out values.
    """
    if not 0 < lower_quartile <= upper_quartile < math.inf:
        raise ValueError(
            f"quartiles are {lower_quartile} and {upper_quartile}; must be finite, above "
            "0 and in order"
        )
    spread = upper_quartile / lower_quartile
    return max(upper_quartile * spread * spread * spread, FEWEST_ABSURD)


def bots(
    absurd_units: Mapping[str, float],
    absurd_events: Mapping[str, float],
    events: Mapping[str, float],
    *,
    bound: float,
    what: str = "exposures",
    warning_above: float = 0.02,
    failed_above: float = 0.2,
) -> HealthCheck:
    """Check the share of events that belong to units with absurdly many.

    Metrics per unit hardly see a few bots, those per exposure and clicks per visitor do.
    The variant with the largest share counts, as bots that all fell into one variant
    look like an effect.

    Parameters
    ----------
    absurd_units, absurd_events : mapping of str to float
        By variant, the units with more events than the bound, and their events.
    events : mapping of str to float
        By variant, the events of all units.
    bound : float
        That of `absurd_above`, the same for all variants.
    what : str
        The events, for the message: exposures or interactions.

    Returns
    -------
    HealthCheck
        Its value is the share of the worst variant. Not enough data without events.

    Raises
    ------
    ValueError
        If a count is negative, or a variant has more absurd events than events.
    """
    for variant, part in absurd_events.items():
        whole, units = events.get(variant, 0.0), absurd_units.get(variant, 0.0)
        if not (0 <= part <= whole < math.inf and 0 <= units <= part):
            raise ValueError(
                f"bots: {units} units with {part} of {whole} {what} in {variant!r}, "
                "must be 0 <= units <= part <= whole"
            )
    total = math.fsum(events.values())
    if total == 0:
        return nothing("bots", failed_above, "There is nothing to check yet.")
    shares = {
        variant: part / events[variant]
        for variant, part in absurd_events.items()
        if part > 0
    }
    worst = max(shares, key=lambda variant: shares[variant], default="")
    share = shares.get(worst, 0.0)
    units = math.fsum(absurd_units.values())
    found = f"{units:.0f} units have more than {bound:.0f} {what} each"
    if share > 0:
        overall = math.fsum(absurd_events.values()) / total
        found += f": {overall:.2%} of all, {share:.2%} of those of {worst!r}"
    return graded(
        "bots",
        share,
        grade(share, warning_above, failed_above),
        threshold=failed_above,
        found=f"{found}.",
        causes="crawlers, load tests or monitoring that are not filtered out, or one "
        "identifier for many shoppers (a kiosk, a default id); block them at the source, "
        "and trust metrics per unit over those per exposure",
    )


def late_events(
    late: float,
    interactions: float,
    *,
    warning_above: float = 0.01,
    failed_above: float = 0.05,
) -> HealthCheck:
    """Check the share of interactions recorded after their window had closed.

    Their units were counted as complete before they arrived: numbers told until then,
    and weights set by them, missed these events.

    Parameters
    ----------
    late, interactions : float
        Interactions that happened within the attribution window of an exposure and were
        recorded after its end, and all that happened within it.

    Raises
    ------
    ValueError
        Unless 0 <= late <= interactions.
    """
    return graded_share(
        "late_events",
        late,
        interactions,
        bounds=(warning_above, failed_above),
        what="of interactions were recorded after their attribution window had closed",
        causes="clients that send when they are online again, orders imported once a day, "
        "a journal that was stuck, or a window that is too short",
    )


def missing_views(
    viewed: Sequence[Mapping[str, float]],
    units: Sequence[Mapping[str, float]],
    *,
    failed_below: float = 0.0001,
    warning_below: float = 0.001,
    smallest_gap: float = 0.005,
) -> HealthCheck:
    """Compare between variants the share of served units that viewed, epoch by epoch.

    What is shown hardly changes whether a carousel comes into sight, so shares that
    differ mean that views (and with them clicks) are lost in one variant, or that it is
    slower. Chi-squares are summed over epochs, as weights may move. Units, not exposures
    are compared: exposures of one unit go together and would raise false alarms.

    Parameters
    ----------
    viewed, units : sequence of mapping of str to float
        By variant for each epoch: units with at least one view, and all served.
    failed_below, warning_below : float
        Bounds for the p-value.
    smallest_gap : float
        Shares nearer than this to the common one are ok, whatever the p-value: many
        units make any difference certain.

    Returns
    -------
    HealthCheck
        Its value is the p-value. Not enough data unless two variants of an epoch expect
        5 units each that viewed and that did not; so too when no view is ever sent.

    Raises
    ------
    ValueError
        If the lengths differ, a count is negative, or more units viewed than were
        served.
    """
    compared = _compare(viewed, units, what="viewed", of="served")
    if compared is None:
        return nothing(
            "missing_views", failed_below, "Too few units viewed to compare variants."
        )
    return compared.check(
        "missing_views",
        bounds=(warning_below, failed_below),
        smallest_gap=smallest_gap,
        what="units that viewed",
        causes="a variant that renders late or fails in some browsers, views that are not "
        "sent for one variant, or a carousel placed elsewhere",
    )


def missing_exposures(
    missing: Sequence[Mapping[str, float]],
    units: Sequence[Mapping[str, float]],
    *,
    failed_below: float = 0.0001,
    warning_below: float = 0.001,
    smallest_gap: float = 0.005,
) -> HealthCheck:
    """Compare between variants how often an exposure never arrived, epoch by epoch.

    Somebody acted on a carousel, so it was shown: an interaction whose exposure nobody
    knows is an exposure lost on its way. Each unit counts once, by the first of its
    interactions that name an exposure, so that busy units do not count more. Units of
    which no exposure arrived are not here; the sample ratio tells of them.

    Parameters
    ----------
    missing, units : sequence of mapping of str to float
        By variant for each epoch: units whose exposure is missing, and all that named
        one.
    failed_below, warning_below, smallest_gap : float
        As of `missing_views`.

    Returns
    -------
    HealthCheck
        Its value is the p-value, 1 when nothing is missing. Not enough data below 100
        units, or unless two variants of an epoch expect 5 units of each sort.

    Raises
    ------
    ValueError
        If the lengths differ, a count is negative, or a part is more than its whole.
    """
    compared = _compare(missing, units, what="miss an exposure", of="acting")
    if compared is not None:
        return compared.check(
            "missing_exposures",
            bounds=(warning_below, failed_below),
            smallest_gap=smallest_gap,
            what="units whose exposure never arrived",
            causes="exposures of one variant that are sent later and lost (a page that is "
            "left, a blocker, an error of its own), or made under another key",
        )
    total = math.fsum(n for epoch in units for n in epoch.values())
    lost = math.fsum(n for epoch in missing for n in epoch.values())
    if lost or total < _FEWEST_UNITS:
        return nothing(
            "missing_exposures",
            failed_below,
            f"{lost:.0f} exposures of {total:.0f} units never arrived: too few to compare "
            "variants.",
        )
    return HealthCheck(
        name="missing_exposures",
        status="ok",
        value=1.0,
        threshold=failed_below,
        message=f"The exposures that {total:.0f} units named have all arrived.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    """Shares of units by variant: how likely by chance, and how far off the common one."""

    p_value: float
    gaps: Mapping[str, float]

    def check(
        self,
        name: str,
        *,
        bounds: tuple[float, float],
        smallest_gap: float,
        what: str,
        causes: str,
    ) -> HealthCheck:
        warning_below, failed_below = bounds
        worst = max(self.gaps, key=lambda name: abs(self.gaps[name]))
        gap = self.gaps[worst]
        status: Status = "ok"
        if abs(gap) >= smallest_gap:
            status = grade(-self.p_value, -warning_below, -failed_below)
        return graded(
            name,
            self.p_value,
            status,
            threshold=failed_below,
            found=f"The share of {what} is {gap:+.2%} off the common one in {worst!r}, "
            f"p = {self.p_value:.2g}.",
            causes=causes,
        )


def _compare(
    part: Sequence[Mapping[str, float]],
    whole: Sequence[Mapping[str, float]],
    *,
    what: str,
    of: str,
) -> _Compared | None:
    """Compare a share of units between variants; None when there are too few."""
    check_epochs(part, whole)
    chi_squared, degrees = 0.0, 0
    expected: dict[str, float] = {}
    observed: dict[str, float] = {}
    total: dict[str, float] = {}
    for number, (seen, units) in enumerate(zip(part, whole, strict=True)):
        for variant, count in seen.items():
            if count > units.get(variant, 0.0):
                raise ValueError(
                    f"{count} units of {variant!r} {what} in epoch {number}, of "
                    f"{units.get(variant, 0.0)} {of}"
                )
        used, share = _comparable(seen, units)
        degrees += max(len(used) - 1, 0)
        for variant in used:
            n, count = units[variant], seen.get(variant, 0.0)
            chi_squared += (count - n * share) ** 2 / (n * share * (1 - share))
            expected[variant] = expected.get(variant, 0.0) + n * share
            observed[variant] = observed.get(variant, 0.0) + count
            total[variant] = total.get(variant, 0.0) + n
    if degrees == 0:
        return None
    return _Compared(
        p_value=float(stats.chi2.sf(chi_squared, degrees)),
        gaps={name: (observed[name] - expected[name]) / total[name] for name in total},
    )


def _comparable(
    seen: Mapping[str, float], units: Mapping[str, float]
) -> tuple[list[str], float]:
    """Return the variants of an epoch that can be compared, and their common share."""
    used = [variant for variant, n in units.items() if n > 0]
    while len(used) > 1:
        n = math.fsum(units[variant] for variant in used)
        share = math.fsum(seen.get(variant, 0.0) for variant in used) / n
        smallest = min(used, key=lambda variant: units[variant])
        if units[smallest] * min(share, 1 - share) >= _EXPECTED:
            return used, share
        used.remove(smallest)
    return [], 0.0
