"""Health checks that come before any number of a report is believed.

Sample ratio mismatch, leaks, overlap, and shares of what went wrong in collecting. The
counts come from the caller; each check says what a failure usually means.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from scipy import stats

from experiment_service.analysis.adaptive import MINIMUM_EFFECTIVE_SAMPLE_SIZE
from experiment_service.analysis.interval import Overlap

Status = Literal["ok", "warning", "failed", "not_enough_data"]

# Least expected count of a cell, the usual rule for the chi-squared approximation.
_EXPECTED = 5.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """Outcome of one check.

    Attributes
    ----------
    name : str
        Stable key, such as "srm".
    status : {"ok", "warning", "failed", "not_enough_data"}
        Failed means that the estimates of the report should not be used.
    value : float or None
        What was measured; None when there was nothing to measure.
    threshold : float or None
        Bound of a failure: below it for a p-value or a sample size, above it for
        a share or a time.
    message : str
        What was found and, unless ok, what usually causes it.
    """

    name: str
    status: Status
    value: float | None
    threshold: float | None
    message: str

    def __post_init__(self) -> None:
        for number in (self.value, self.threshold):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{self.name}: {number} must be finite")


def srm(
    counts: Sequence[Mapping[str, float]],
    weights: Sequence[Mapping[str, float]],
    *,
    failed_below: float = 0.001,
    warning_below: float = 0.01,
) -> HealthCheck:
    """Compare units per variant with the weights in force, epoch by epoch.

    Chi-squares and degrees of freedom are summed over epochs. One chi-square of the
    summed counts would be wrong: when weights move, those vary less than a multinomial.
    Variants that expect fewer than 5 units in an epoch share a cell there.

    Parameters
    ----------
    counts : sequence of mapping of str to float
        Units by variant for each epoch, each unit once; a missing variant had none.
        Variants of weight 0 are left to `zero_weight_leak`.
    weights : sequence of mapping of str to float
        Weights by variant for each epoch, >= 0; only their proportions matter.
    failed_below, warning_below : float
        Bounds for the p-value.

    Returns
    -------
    HealthCheck
        Its value is the p-value. Not enough data when no epoch has two cells that
        expect 5.

    Raises
    ------
    ValueError
        If the lengths differ, or a count or weight is negative or not finite.

    References
    ----------
    Fabijan et al. (2019), Diagnosing sample ratio mismatch in online controlled
    experiments, KDD.
    """
    check_epochs(counts, weights)
    chi_squared, degrees = 0.0, 0
    for epoch_counts, epoch_weights in zip(counts, weights, strict=True):
        statistic, cells = _chi_squared(epoch_counts, epoch_weights)
        chi_squared += statistic
        degrees += cells - 1
    if degrees == 0:
        return nothing(
            "srm", failed_below, "No epoch has 5 expected units in two variants yet."
        )
    p_value = float(stats.chi2.sf(chi_squared, degrees))
    return graded(
        "srm",
        p_value,
        grade(-p_value, -warning_below, -failed_below),
        threshold=failed_below,
        found=f"Units against weights: chi-squared {chi_squared:.1f}, df {degrees}, "
        f"p = {p_value:.2g}.",
        causes="exposures lost or filtered in one variant only, a slower or failing variant, "
        "bots, or weights changed outside an epoch",
    )


def zero_weight_leak(
    counts: Sequence[Mapping[str, float]], weights: Sequence[Mapping[str, float]]
) -> HealthCheck:
    """Find units in a variant that had weight 0, or no weight, in the epoch.

    A chi-square cannot see them: its expected count would be 0.

    Parameters
    ----------
    counts, weights : sequence of mapping of str to float
        As for `srm`.

    Returns
    -------
    HealthCheck
        Its value is the number of such units; any is a failure.

    Raises
    ------
    ValueError
        As `srm`.
    """
    check_epochs(counts, weights)
    leaks: dict[str, float] = {}
    for epoch_counts, epoch_weights in zip(counts, weights, strict=True):
        for variant, count in epoch_counts.items():
            if count > 0 and epoch_weights.get(variant, 0.0) == 0:
                leaks[variant] = leaks.get(variant, 0.0) + count
    listed = ", ".join(f"{variant} ({count:.0f})" for variant, count in leaks.items())
    return graded(
        "zero_weight_leak",
        math.fsum(leaks.values()),
        "failed" if leaks else "ok",
        threshold=0.0,
        found=f"Units in variants of weight 0: {listed or 'none'}.",
        causes="a replica that serves an old allocation, an override left in place, or "
        "hand-made events",
    )


def effective_sample(
    overlap: Overlap | None,
    *,
    minimum_effective_sample_size: float = MINIMUM_EFFECTIVE_SAMPLE_SIZE,
) -> HealthCheck:
    """Check that a weighted estimate rests on enough traffic of both variants.

    Parameters
    ----------
    overlap : Overlap or None
        That of the estimate; None when a variant had no traffic.
    minimum_effective_sample_size : float
        Below it the estimate is withheld, and the check fails; below 3 times it warns.
    """
    bound = minimum_effective_sample_size
    name = "effective_sample"
    if overlap is None:
        return nothing(name, bound, "A variant had no traffic beside the control yet.")
    size = overlap.effective_sample_size
    return graded(
        name,
        size,
        grade(-size, -3 * bound, -bound),
        threshold=bound,
        found=f"The effective sample size is {size:.0f} units, the smallest propensity "
        f"{overlap.smallest_propensity:.3g}.",
        causes="a policy that gives a variant little more than its floor, or a new variant; "
        "a higher floor or control share repairs it",
    )


def crossovers(
    crossed: float,
    units: float,
    *,
    warning_above: float = 0.01,
    failed_above: float = 0.05,
) -> HealthCheck:
    """Check the share of units that were seen in more than one variant.

    They are excluded from estimates, so a large share means a selected rest.
    """
    return graded_share(
        "crossovers",
        crossed,
        units,
        bounds=(warning_above, failed_above),
        what="of units were seen in more than one variant",
        causes="overrides, identifiers that change at login, or weights that moved",
    )


def fallbacks(
    fallback_exposures: float,
    exposures: float,
    *,
    warning_above: float = 0.05,
    failed_above: float = 0.2,
) -> HealthCheck:
    """Check the share of exposures that the variant's own model did not fill.

    They look the same in every variant, so they pull all differences to 0.
    """
    return graded_share(
        "fallbacks",
        fallback_exposures,
        exposures,
        bounds=(warning_above, failed_above),
        what="of exposures were filled by a fallback",
        causes="a model without live version, new items or shoppers it does not know, "
        "or filters that leave too little",
    )


def orphans(
    orphan_interactions: float,
    interactions: float,
    *,
    warning_above: float = 0.01,
    failed_above: float = 0.05,
) -> HealthCheck:
    """Check the share of interactions that name an exposure nobody has recorded."""
    return graded_share(
        "orphans",
        orphan_interactions,
        interactions,
        bounds=(warning_above, failed_above),
        what="of interactions name an unknown exposure",
        causes="exposures that were prefetched and never logged, a lost journal, or "
        "clients that make up identifiers",
    )


def duplicates(
    duplicate_events: float,
    events: float,
    *,
    warning_above: float = 0.05,
    failed_above: float = 0.5,
) -> HealthCheck:
    """Check the share of received events that had been recorded before.

    They are counted once, so this is a sign of trouble at the sender only.
    """
    return graded_share(
        "duplicates",
        duplicate_events,
        events,
        bounds=(warning_above, failed_above),
        what="of received events were repeats",
        causes="clients that retry after a timeout, or an import that ran twice",
    )


def ingestion_lag(
    seconds: float | None,
    *,
    warning_above: float = 60.0,
    failed_above: float = 900.0,
) -> HealthCheck:
    """Check how far the recorded events are behind those accepted.

    Parameters
    ----------
    seconds : float or None
        Age of the oldest accepted event that is not recorded yet, 0 when there is none;
        None when it is not known.
    warning_above, failed_above : float
        Bounds in seconds.
    """
    name = "ingestion_lag"
    if seconds is None:
        return nothing(name, failed_above, "The lag of ingestion is not known.")
    return graded(
        name,
        seconds,
        grade(seconds, warning_above, failed_above),
        threshold=failed_above,
        found=f"Recorded events are {seconds:.0f} s behind.",
        causes="a database that is down or slow, a stopped writer, or a burst that is being "
        "worked off; the newest results miss events",
    )


def graded_share(
    name: str,
    part: float,
    whole: float,
    *,
    bounds: tuple[float, float],
    what: str,
    causes: str,
) -> HealthCheck:
    """Grade the share that a part is of the whole. ValueError unless it is one."""
    if not 0 <= part <= whole < math.inf:
        raise ValueError(f"{name}: {part} of {whole}, must be 0 <= part <= whole")
    warning, failed = bounds
    if whole == 0:
        return nothing(name, failed, "There is nothing to check yet.")
    share = part / whole
    return graded(
        name,
        share,
        grade(share, warning, failed),
        threshold=failed,
        found=f"{share:.2%} {what} ({part:.0f} of {whole:.0f}).",
        causes=causes,
    )


def nothing(name: str, threshold: float | None, message: str) -> HealthCheck:
    """Return the check of too few data, with the reason."""
    return HealthCheck(
        name=name,
        status="not_enough_data",
        value=None,
        threshold=threshold,
        message=message,
    )


def grade(value: float, warning: float, failed: float) -> Status:
    """Grade a value of which less is better."""
    if value > failed:
        return "failed"
    return "warning" if value > warning else "ok"


def graded(
    name: str,
    value: float,
    status: Status,
    *,
    threshold: float | None,
    found: str,
    causes: str,
) -> HealthCheck:
    """Return a check that says what was found and, unless ok, its usual causes."""
    message = found if status == "ok" else f"{found} Usual causes: {causes}."
    return HealthCheck(
        name=name, status=status, value=value, threshold=threshold, message=message
    )


def check_epochs(
    counts: Sequence[Mapping[str, float]], weights: Sequence[Mapping[str, float]]
) -> None:
    """Refuse counts and weights of different epochs, or below 0. ValueError."""
    if len(counts) != len(weights):
        raise ValueError(f"{len(counts)} epochs of counts, {len(weights)} of weights")
    for name, epochs in (("count", counts), ("weight", weights)):
        for epoch, row in enumerate(epochs):
            for variant, value in row.items():
                if not 0 <= value < math.inf:
                    raise ValueError(
                        f"{name} of {variant!r} in epoch {epoch} is {value}, "
                        "must be finite and >= 0"
                    )


def _chi_squared(
    counts: Mapping[str, float], weights: Mapping[str, float]
) -> tuple[float, int]:
    """Return the statistic of one epoch and its number of cells, at least 1."""
    positive = [variant for variant, weight in weights.items() if weight > 0]
    n = math.fsum(counts.get(variant, 0.0) for variant in positive)
    total = math.fsum(weights[variant] for variant in positive)
    cells: list[tuple[float, float]] = []
    observed = expected = 0.0
    # From the smallest share up, cells are filled until they expect enough; which
    # variants share one depends on the weights and n only, never on the counts.
    for variant in sorted(positive, key=lambda name: (weights[name], name)):
        observed += counts.get(variant, 0.0)
        expected += n * weights[variant] / total
        if expected >= _EXPECTED:
            cells.append((observed, expected))
            observed = expected = 0.0
    if expected > 0 and cells:
        last_observed, last_expected = cells.pop()
        cells.append((last_observed + observed, last_expected + expected))
    statistic = math.fsum((o - e) ** 2 / e for o, e in cells)
    return statistic, max(len(cells), 1)
