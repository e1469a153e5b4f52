"""A look at everything that runs: what was measured, and what calls for an alert."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from functools import partial

from sqlalchemy import Connection, Engine

from experiment_service.domain.experiment import Experiment, ExperimentState
from experiment_service.domain.monitor import MONITORS
from experiment_service.monitoring.measures import (
    SOON,
    Served,
    fallback_share,
    measure,
)
from experiment_service.reporting import Report, glance
from experiment_service.storage import alerts, monitors
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import each_alone, transaction
from experiment_service.storage.models import list_versions
from experiment_service.storage.monitors import MonitoredDay, ServedExposure

log = logging.getLogger(__name__)

#: Days of which measures are made up for, when no worker ran.
HISTORY = timedelta(days=14)

_DAY = timedelta(days=1)
_REFERENCE = timedelta(days=7)
_HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a monitor says now.

    Attributes
    ----------
    raised : bool or None
        None when nothing can be said, so that an alert stays as it is.
    finding : str
        The value in words.
    causes : str
        What an alert usually means.
    """

    monitor: str
    subject: str
    value: float
    threshold: float
    raised: bool | None
    finding: str
    causes: str


def watch(engine: Engine, now: datetime, *, thresholds: Mapping[str, float]) -> None:
    """Look at every running experiment, each on its own; store measures and alerts.

    A second look, or two at once, changes nothing. Days on which nobody looked are
    measured afterwards, but raise no alert.

    Parameters
    ----------
    thresholds : mapping of str to float
        Of every monitor.

    Raises
    ------
    Exception
        The last failure, after all others were tried.
    """
    with transaction(engine) as connection:
        running = {
            each.key: each
            for each in storage.list_experiments(connection)
            if each.state is ExperimentState.RUNNING
        }
        for alert in alerts.open_alerts(connection):
            if alert.experiment not in running:
                _resolve(connection, alert, "The experiment no longer runs.", now)
    each_alone(
        engine,
        running,
        lambda connection, _, experiment: _watch_experiment(
            connection, experiment, now, thresholds
        ),
        failed=partial(log.exception, "monitoring failed experiment=%s"),
    )


def _watch_experiment(
    connection: Connection,
    experiment: Experiment,
    now: datetime,
    thresholds: Mapping[str, float],
) -> None:
    trained_at = {each.label: each.created_at for each in list_versions(connection)}
    for end in _missed(connection, experiment, now):
        missed = _look(connection, experiment, trained_at, end)
        monitors.store_days(connection, experiment.id, missed)
    days = _look(connection, experiment, trained_at, now)
    monitors.store_days(connection, experiment.id, days)
    found = {
        (each.monitor, each.subject): each
        for each in alerts.open_alerts(connection)
        if each.experiment == experiment.key
    }
    readings = [
        *_monitor_readings(
            days, _newest(connection, experiment, now), thresholds, set(found)
        ),
        *_report_readings(glance(connection, experiment, as_of=now)),
    ]
    _store(connection, experiment, readings, found, now)


def _missed(
    connection: Connection, experiment: Experiment, now: datetime
) -> Iterator[datetime]:
    """Return the ends of past days on which the last look was not at their end."""
    today = now.astimezone(UTC).date()
    first = (now - HISTORY).astimezone(UTC).date()
    if experiment.started_at is not None:
        first = max(first, experiment.started_at.astimezone(UTC).date())
    looked: dict[object, datetime] = {}
    for each in monitors.list_days(connection, experiment.id, since=first):
        looked[each.day] = min(each.until, looked.get(each.day, each.until))
    for number in range((today - first).days):
        day = first + number * _DAY
        end = datetime.combine(day + _DAY, time(), UTC)
        if day not in looked or looked[day] < end:
            yield end


def _look(
    connection: Connection,
    experiment: Experiment,
    trained_at: Mapping[str, datetime],
    until: datetime,
) -> list[MonitoredDay]:
    """Measure every variant over the 24 hours up to an instant."""
    start = until - _DAY
    current = _served(connection, experiment, start, until, slices=48, per_slice=100)
    before = _served(
        connection, experiment, start - _REFERENCE, start, slices=168, per_slice=30
    )
    categories = monitors.item_categories(
        connection, since=start - _REFERENCE, until=until
    )
    days = []
    for variant in (each.key for each in experiment.declaration.variants):
        measured, positions = measure(
            current[variant],
            before[variant],
            categories=categories,
            trained_at=trained_at,
            until=until,
        )
        days.append(
            MonitoredDay(
                variant=variant,
                # Midnight ends a day.
                day=(until - timedelta(microseconds=1)).astimezone(UTC).date(),
                until=until,
                exposures=len(current[variant].exposures),
                measured=measured,
                positions=positions,
            )
        )
    return days


def _served(
    connection: Connection,
    experiment: Experiment,
    start: datetime,
    end: datetime,
    *,
    slices: int,
    per_slice: int,
) -> dict[str, Served]:
    sample = monitors.sample_exposures(
        connection,
        experiment.id,
        start=start,
        end=end,
        slices=slices,
        per_slice=per_slice,
    )
    acted = monitors.acted_places(connection, [each.id for each in sample], within=SOON)
    return {
        variant: Served(exposures=exposures, acted=acted)
        for variant, exposures in _by_variant(experiment, sample).items()
    }


def _newest(
    connection: Connection, experiment: Experiment, now: datetime
) -> dict[str, float | None]:
    """Return the share of fallback of the last hour, by variant."""
    sample = monitors.sample_exposures(
        connection,
        experiment.id,
        start=now - _HOUR,
        end=now,
        slices=60,
        per_slice=40,
    )
    return {
        variant: fallback_share(exposures)
        for variant, exposures in _by_variant(experiment, sample).items()
    }


def _by_variant(
    experiment: Experiment, sample: Sequence[ServedExposure]
) -> dict[str, list[ServedExposure]]:
    found: dict[str, list[ServedExposure]] = {
        each.key: [] for each in experiment.declaration.variants
    }
    for each in sample:
        if each.variant in found:
            found[each.variant].append(each)
    return found


def _monitor_readings(
    days: Sequence[MonitoredDay],
    newest: Mapping[str, float | None],
    thresholds: Mapping[str, float],
    alerting: set[tuple[str, str]],
) -> Iterator[Reading]:
    for each in days:
        for name, monitor in MONITORS.items():
            value, span = each.measured[name], "in the last 24 hours"
            if name == "fallback_share" and newest[each.variant] is not None:
                # What broke an hour ago should not wait for the day's average.
                value, span = newest[each.variant], "in the last hour"
            threshold = thresholds[name]
            yield Reading(
                monitor=name,
                subject=each.variant,
                value=0.0 if value is None else value,
                threshold=threshold,
                raised=None
                if value is None
                else monitor.is_beyond(
                    value, threshold, alerting=(name, each.variant) in alerting
                ),
                finding=""
                if value is None
                else f"{monitor.write(value)} {monitor.what}, {span}; an alert "
                f"{monitor.alerts} {monitor.write(threshold)}.",
                causes=monitor.causes,
            )


def _report_readings(report: Report) -> Iterator[Reading]:
    """Read the sample ratio and the guardrails, both valid at any look."""
    for check in report.checks:
        result = check.result
        if result.name == "sequential_srm" and result.value is not None:
            yield Reading(
                monitor="sample_ratio",
                subject="",
                value=result.value,
                threshold=result.threshold or 0.0,
                # Between the two an alert stays as it is.
                raised={"failed": True, "ok": False}.get(result.status),
                finding=result.message,
                causes="",
            )
    for metric in report.metrics:
        for compared in metric.comparisons:
            if compared.guardrail is None or metric.margin is None:
                continue
            difference = compared.any_time
            yield Reading(
                monitor="guardrail",
                subject=f"{compared.variant}/{metric.name}",
                value=getattr(difference, "estimate", 0.0),
                threshold=metric.margin,
                raised={"breached": True, "held": False}.get(compared.guardrail),
                finding=f"{metric.title} of {compared.variant} is "
                + (
                    f"worse than that of {report.facts.control}, at any look."
                    if compared.guardrail == "breached"
                    else f"within {metric.margin:.0%} of {report.facts.control}'s."
                ),
                causes="what the variant shows",
            )


def _store(
    connection: Connection,
    experiment: Experiment,
    readings: Sequence[Reading],
    found: Mapping[tuple[str, str], alerts.Alert],
    now: datetime,
) -> None:
    for each in sorted(readings, key=lambda each: (each.monitor, each.subject)):
        alert = found.get((each.monitor, each.subject))
        if each.raised and alert is None:
            reason = each.finding
            if each.causes:
                reason += f" Usual causes: {each.causes}."
            if alerts.raise_alert(
                connection,
                experiment.id,
                monitor=each.monitor,
                subject=each.subject,
                value=each.value,
                threshold=each.threshold,
                reason=reason,
                now=now,
            ):
                log.warning(
                    "alert raised monitor=%s experiment=%s subject=%s value=%.4g",
                    each.monitor,
                    experiment.key,
                    each.subject,
                    each.value,
                )
        elif each.raised is False and alert is not None:
            _resolve(connection, alert, each.finding, now)


def _resolve(
    connection: Connection, alert: alerts.Alert, resolution: str, now: datetime
) -> None:
    if alerts.resolve_alert(connection, alert.id, resolution=resolution, now=now):
        log.info(
            "alert over monitor=%s experiment=%s subject=%s",
            alert.monitor,
            alert.experiment,
            alert.subject,
        )
