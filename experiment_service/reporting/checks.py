"""Health checks of an experiment and of the service: which are made, on what counts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from experiment_service.analysis import adaptive, health
from experiment_service.analysis.contrasts import Contrast
from experiment_service.analysis.health import HealthCheck
from experiment_service.analysis.interval import Interval, Withheld
from experiment_service.analysis.novelty import novelty
from experiment_service.analysis.sample_ratio import sequential_srm
from experiment_service.analysis.traffic import (
    absurd_above,
    bots,
    late_events,
    missing_exposures,
    missing_views,
)
from experiment_service.domain.experiment import Experiment, ExperimentState
from experiment_service.reporting.facts import Traffic
from experiment_service.reporting.values import Check, MetricReport
from experiment_service.storage.counts import (
    Activity,
    ExposureCount,
    Intake,
    Lag,
    LateCount,
    MissingCount,
    OrphanCount,
    UnitCell,
)
from experiment_service.storage.experiments import Reallocation

#: Fewer units or events than these say nothing about a share.
MINIMUM_TO_JUDGE = 100

_LONG_LAG = timedelta(minutes=15)


def experiment_checks(
    experiment: Experiment,
    traffic: Traffic,
    *,
    lag: Lag | None,
    orphans: OrphanCount,
    missing: Mapping[UnitCell, MissingCount],
    late: LateCount,
    reward: MetricReport,
    effects: Mapping[str, Mapping[float, Contrast | Withheld]],
    as_of: datetime,
) -> tuple[Check, ...]:
    """Make every check that can say whether the numbers may be used; none of a draft.

    Parameters
    ----------
    effects : mapping of str to mapping
        By variant, the difference to the control in the reward by day since the start.
    """
    if experiment.state is ExperimentState.DRAFT:
        return ()
    checks = [
        *_unit_checks(traffic),
        *_fallback_checks(traffic.exposures),
        *_bot_checks(traffic.activity),
        *_view_checks(traffic),
        _orphan_check(orphans),
        *_exposure_checks(missing),
        _late_check(late),
        *(
            Check(title="Novelty", subject=variant, result=novelty(by_day))
            for variant, by_day in effects.items()
        ),
    ]
    if experiment.state is ExperimentState.RUNNING:
        checks.append(_lag_check(lag, experiment.declaration.attribution_window))
    if experiment.declaration.policy is not None:
        checks += _bandit_checks(experiment, reward, traffic.looks, as_of)
    return tuple(checks)


def _unit_checks(traffic: Traffic) -> list[Check]:
    by_number = {epoch.number: epoch for epoch in traffic.epochs}
    entries: dict[tuple[int, str | None], dict[str, float]] = {}
    for cell, each in traffic.units.items():
        entries.setdefault((cell.epoch, cell.segment), {})[cell.variant] = each.units
    counts = list(entries.values())
    weights = [by_number[number].weights_of(segment) for number, segment in entries]
    total = sum(each.units for each in traffic.units.values())
    crossed = sum(each.crossed for each in traffic.units.values())
    results = (
        # Reports are watched, so only what holds at any look stops their use.
        ("Sample ratio", sequential_srm(counts, weights)),
        (
            "Sample ratio, one look",
            health.srm(counts, weights, failed_below=0.0, warning_below=0.001),
        ),
        ("Traffic at weight 0", health.zero_weight_leak(counts, weights)),
        ("Crossovers", _if_enough(health.crossovers(crossed, total), total)),
    )
    return [
        Check(title=title, subject=None, result=result) for title, result in results
    ]


def operations_checks(
    lag: Lag | None,
    orphans: OrphanCount,
    default_rows: Mapping[str, int],
    taken: Intake,
) -> tuple[Check, ...]:
    """Make the checks of the service as a whole."""
    misplaced = sum(default_rows.values())
    listed = ", ".join(f"{count} of {name}" for name, count in default_rows.items())
    partitions = HealthCheck(
        name="partitions",
        status="warning" if misplaced else "ok",
        value=float(misplaced),
        threshold=None,
        message=(
            f"Events outside the monthly partitions: {listed}. Usual causes: a worker "
            "that did not run, so that months were not prepared, or clocks far off."
            if misplaced
            else "Every event is in a partition of its month."
        ),
    )
    return (
        _lag_check(lag, timedelta(0)),
        _orphan_check(orphans),
        Check(
            title="Repeated events",
            subject="today and yesterday",
            result=_if_enough(
                health.duplicates(taken.known, taken.received), taken.received
            ),
        ),
        Check(title="Partitions", subject=None, result=partitions),
    )


def worst_status(checks: Sequence[Check]) -> str:
    """Return the status that calls most for attention; ok without any check.

    Where nothing is wrong it is that of the first check, the sample ratio: that some
    other check needs more data is no news.
    """
    found = {check.result.status for check in checks}
    for status in ("failed", "warning"):
        if status in found:
            return status
    return checks[0].result.status if checks else "ok"


def _fallback_checks(exposures: Mapping[str, ExposureCount]) -> list[Check]:
    return [
        Check(
            title="Fallbacks",
            subject=variant,
            result=_if_enough(
                health.fallbacks(each.fallbacks, each.exposures), each.exposures
            ),
        )
        for variant, each in sorted(exposures.items())
    ]


def _bot_checks(activity: Activity) -> list[Check]:
    """Look for units with absurdly many exposures, and with absurdly many actions."""
    return [
        Check(title=title, subject=None, result=_bots(cells, what))
        for title, cells, what in (
            ("Units with too many exposures", activity.exposures, "exposures"),
            ("Units with too many interactions", activity.acts, "interactions"),
        )
    ]


def _bots(cells: Sequence[tuple[str, int, int]], what: str) -> HealthCheck:
    busy: Counter[int] = Counter()
    for _, number, units in cells:
        if number > 0:
            busy[number] += units
    if busy.total() < MINIMUM_TO_JUDGE:
        message = (
            f"Only {busy.total()} units have {what}, {MINIMUM_TO_JUDGE} are needed."
        )
        return health.nothing("bots", None, message)
    bound = absurd_above(_quantile(busy, 0.25), _quantile(busy, 0.75))
    events: Counter[str] = Counter()
    absurd_units: Counter[str] = Counter()
    absurd_events: Counter[str] = Counter()
    for variant, number, units in cells:
        events[variant] += number * units
        if number > bound:
            absurd_units[variant] += units
            absurd_events[variant] += number * units
    return bots(absurd_units, absurd_events, events, bound=bound, what=what)


def _quantile(units: Counter[int], share: float) -> int:
    """Return the smallest number that a share of the units do not exceed."""
    left = share * units.total()
    for number in sorted(units):
        left -= units[number]
        if left <= 0:
            return number
    return max(units)


def _view_checks(traffic: Traffic) -> list[Check]:
    """Compare the share of units that viewed; none where no view is ever sent."""
    if not any(each.viewed for each in traffic.units.values()):
        return []
    result = missing_views(
        _by_epoch({cell: each.viewed for cell, each in traffic.units.items()}),
        _by_epoch({cell: each.units for cell, each in traffic.units.items()}),
    )
    return [Check(title="Views by variant", subject=None, result=result)]


def _exposure_checks(missing: Mapping[UnitCell, MissingCount]) -> list[Check]:
    """Compare the share of units whose exposure is missing; none where none is named."""
    if not missing:
        return []
    result = missing_exposures(
        _by_epoch({cell: each.missing for cell, each in missing.items()}),
        _by_epoch({cell: each.units for cell, each in missing.items()}),
    )
    return [Check(title="Exposures by variant", subject="last hour", result=result)]


def _by_epoch(counts: Mapping[UnitCell, int]) -> list[dict[str, float]]:
    """Return counts by variant for each epoch and segment."""
    entries: dict[tuple[int, str | None], dict[str, float]] = {}
    for cell, count in counts.items():
        entries.setdefault((cell.epoch, cell.segment), {})[cell.variant] = count
    return list(entries.values())


def _late_check(late: LateCount) -> Check:
    """Warn only: once they have come, late events count like all others."""
    check = late_events(late.late, late.interactions, failed_above=1.0)
    return Check(
        title="Late events",
        subject="latest exposures with a closed window",
        result=_if_enough(check, late.interactions),
    )


def _orphan_check(orphans: OrphanCount) -> Check:
    return Check(
        title="Orphan interactions",
        subject="all experiments, last hour",
        result=_if_enough(
            health.orphans(orphans.orphans, orphans.interactions), orphans.interactions
        ),
    )


def _lag_check(lag: Lag | None, window: timedelta) -> Check:
    """Fail when units count although events of their window are still to come."""
    return Check(
        title="Ingestion lag",
        subject=None,
        result=health.ingestion_lag(
            None if lag is None else lag.newest,
            failed_above=max(_LONG_LAG, window).total_seconds(),
        ),
    )


def _bandit_checks(
    experiment: Experiment,
    reward: MetricReport,
    looks: Sequence[Reallocation],
    as_of: datetime,
) -> list[Check]:
    checks = [
        Check(
            title="Effective sample",
            subject=comparison.variant,
            result=_effective_sample(comparison.planned),
        )
        for comparison in reward.comparisons
    ]
    if experiment.state is ExperimentState.RUNNING:
        checks.append(
            Check(
                title="Reallocation on schedule",
                subject=None,
                result=_schedule(experiment, looks, as_of),
            )
        )
    return checks


def _effective_sample(contrast: Interval | Withheld) -> HealthCheck:
    bound = adaptive.MINIMUM_EFFECTIVE_SAMPLE_SIZE
    if contrast.overlap is None:
        # Fixed weights so far, or no traffic: nothing is weighted.
        return HealthCheck(
            name="effective_sample",
            status="not_enough_data" if isinstance(contrast, Withheld) else "ok",
            value=None,
            threshold=bound,
            message=contrast.reason
            if isinstance(contrast, Withheld)
            else "The weights have not moved, so no estimate is weighted.",
        )
    check = health.effective_sample(
        contrast.overlap, minimum_effective_sample_size=bound
    )
    # The one estimate it is about is withheld already; the others may be used.
    return replace(check, status="warning") if check.status == "failed" else check


def _schedule(
    experiment: Experiment, looks: Sequence[Reallocation], as_of: datetime
) -> HealthCheck:
    policy, last = experiment.declaration.policy, experiment.started_at
    assert policy is not None  # noqa: S101 - the caller asks for bandits only
    assert last is not None  # noqa: S101 - it runs, so it was started
    if looks:
        last = looks[-1].cutoff
    interval = policy.interval.total_seconds()
    late = (as_of - last).total_seconds() - interval
    # A worker looks every few seconds, and two missed looks are no hiccup.
    allowed = max(interval, 60.0)
    overdue = late > allowed
    return HealthCheck(
        name="schedule",
        status="warning" if overdue else "ok",
        value=max(late, 0.0),
        threshold=None,
        message=(
            f"The last look was {late + interval:.0f} s ago, the schedule is every "
            f"{interval:.0f} s. Usual causes: no worker runs, or it can't reach the "
            "database; weights stay as they are meanwhile."
            if overdue
            else f"Looked at every {interval:.0f} s."
        ),
    )


def _if_enough(check: HealthCheck, whole: float) -> HealthCheck:
    """Judge a share by enough cases only, so that one of ten alarms nobody."""
    if whole >= MINIMUM_TO_JUDGE or check.status == "ok":
        return check
    return replace(
        check,
        status="not_enough_data",
        message=f"Only {whole:.0f} cases, {MINIMUM_TO_JUDGE} are needed to judge.",
    )
