"""Reports from the database: one experiment in full, all experiments in a line each."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection

from experiment_service.domain.experiment import Experiment
from experiment_service.domain.metric import Metric
from experiment_service.reporting.bandit import bandit_report
from experiment_service.reporting.checks import (
    experiment_checks,
    operations_checks,
    worst_status,
)
from experiment_service.reporting.days import bounds, by_day, within
from experiment_service.reporting.facts import Traffic, epoch_reports, facts_of
from experiment_service.reporting.metrics import (
    cumulative_series,
    daily_effects,
    metric_data,
    metric_report,
    pooled_moments,
    with_corrections,
)
from experiment_service.reporting.summary import summarise
from experiment_service.reporting.values import (
    Check,
    Days,
    Group,
    ListedExperiment,
    MetricReport,
    Operations,
    OverviewRow,
    Report,
    Series,
)
from experiment_service.storage import counts, reads
from experiment_service.storage import experiments as storage

SERIES_POINTS = 60
#: Health checks and timelines of raw events look back this far.
RECENT = timedelta(hours=1)

_STATES = ("running", "draft", "stopped")


def build_report(
    connection: Connection,
    key: str,
    *,
    as_of: datetime,
    days: Days | None = None,
    group: Group | None = None,
    level: float = 0.95,
) -> Report:
    """Build the report of an experiment.

    Parameters
    ----------
    as_of : datetime
        Last instant used; units count when their window has closed by then.
    days : Days, optional
        Only units first exposed on them make metrics and series; facts, checks and
        policy are always of all units.
    group : Group, optional
        Likewise, only units of it.
    level : float
        Coverage of every interval, in (0, 1).

    Raises
    ------
    NotFound
        Lists the experiments that exist.
    """
    experiment = storage.get_experiment(connection, key)
    reward = experiment.declaration.reward
    catalogue = experiment.declaration.catalogue.values()
    others = [metric for metric in catalogue if metric is not reward]
    return _build(
        connection,
        experiment,
        [reward, *others],
        as_of,
        level,
        days=days,
        group=group,
    )


def overview(
    connection: Connection, *, as_of: datetime, level: float = 0.95
) -> tuple[OverviewRow, ...]:
    """Build a line for every experiment: running ones first, then by key."""
    rows = []
    # Of all experiments, so one look does for every line.
    orphans = counts.orphan_count(connection, since=as_of - RECENT)
    for experiment in storage.list_experiments(connection):
        report = glance(
            connection, experiment, as_of=as_of, level=level, orphans=orphans
        )
        rows.append(
            OverviewRow(
                facts=report.facts,
                summary=report.summary,
                health=worst_status(report.checks),
                reward=report.reward,
            )
        )
    return tuple(sorted(rows, key=lambda row: _STATES.index(row.facts.state)))


def glance(
    connection: Connection,
    experiment: Experiment,
    *,
    as_of: datetime,
    level: float = 0.95,
    orphans: counts.OrphanCount | None = None,
) -> Report:
    """Build a report on the reward and the guardrails alone, without series.

    Parameters
    ----------
    orphans : OrphanCount, optional
        Those of the last hour, when they have been counted already.
    """
    declaration = experiment.declaration
    metrics = [
        declaration.reward,
        *map(declaration.metric, declaration.guardrails),
    ]
    return _build(
        connection,
        experiment,
        metrics,
        as_of,
        level,
        with_series=False,
        orphans=orphans,
    )


def list_experiments(connection: Connection) -> tuple[ListedExperiment, ...]:
    """Name every experiment, in the order of `overview`."""
    listed = [
        ListedExperiment(
            key=each.key,
            kind=each.declaration.kind,
            state=each.state,
            started_at=each.started_at,
        )
        for each in storage.list_experiments(connection)
    ]
    return tuple(sorted(listed, key=lambda each: _STATES.index(each.state)))


def operations(connection: Connection, *, as_of: datetime) -> Operations:
    """Say how the service as a whole is doing."""
    lag = counts.recording_lag(connection)
    orphans = counts.orphan_count(connection, since=as_of - RECENT)
    return Operations(
        as_of=as_of,
        checks=operations_checks(
            lag,
            orphans,
            counts.default_partition_rows(connection),
            counts.intake(connection, since=as_of.date() - timedelta(days=1)),
        ),
        lag=lag,
        minutes=tuple(counts.events_by_minute(connection, since=as_of - RECENT)),
        database_bytes=counts.database_size(connection),
    )


def _build(
    connection: Connection,
    experiment: Experiment,
    metrics: Sequence[Metric],
    as_of: datetime,
    level: float,
    *,
    with_series: bool = True,
    days: Days | None = None,
    group: Group | None = None,
    orphans: counts.OrphanCount | None = None,
) -> Report:
    """Build a report on the given metrics, the reward first."""
    traffic = _traffic(connection, experiment, as_of)
    spans = _spans(experiment, as_of) if with_series and days is None else None
    all_cells = reads.moments_by_metric(
        connection,
        experiment,
        metrics,
        cutoff=as_of,
        spans=spans,
        group=None if group is None else (group.attribute, group.value),
    )
    cells = {name: within(each, days) for name, each in all_cells.items()}
    data = {
        metric.name: metric_data(metric, cells[metric.name], traffic.epochs)
        for metric in metrics
    }
    reports = with_corrections(
        [
            metric_report(
                experiment, metric, cells[metric.name], data[metric.name], level=level
            )
            for metric in metrics
        ]
    )
    reward, rewards = metrics[0], cells[metrics[0].name]
    # Facts, checks and policy are of all units, whichever the numbers are of.
    all_rewards, all_data, whole = rewards, data[reward.name], reports[0]
    if days is not None or group is not None:
        if group is not None:
            all_cells = reads.moments_by_metric(
                connection, experiment, [reward], cutoff=as_of
            )
        all_rewards = all_cells[reward.name]
        all_data = metric_data(reward, all_rewards, traffic.epochs)
        whole = metric_report(experiment, reward, all_rewards, all_data, level=level)
    facts = facts_of(experiment, traffic, as_of=as_of)
    if orphans is None:
        orphans = counts.orphan_count(connection, since=as_of - RECENT)
    checks = _checks(
        connection,
        experiment,
        traffic,
        (whole, all_rewards),
        orphans=orphans,
        as_of=as_of,
    )
    return Report(
        as_of=as_of,
        level=level,
        facts=facts,
        summary=summarise(
            facts,
            checks,
            reports,
            data[reward.name],
            level=level,
        ),
        checks=checks,
        metrics=reports,
        epochs=epoch_reports(experiment, traffic),
        bandit=bandit_report(
            experiment,
            pooled_moments(experiment, all_rewards),
            traffic.looks,
            epochs=all_data.epochs,
            healthy=worst_status(checks) != "failed",
            level=level,
        ),
        series=_series(experiment, reward, rewards, spans, level=level)
        if days is None
        else _daily_series(experiment, reward, rewards, days, level=level),
        days=days,
        group=group,
    )


def _checks(
    connection: Connection,
    experiment: Experiment,
    traffic: Traffic,
    reward: tuple[MetricReport, reads.MetricCells],
    *,
    orphans: counts.OrphanCount,
    as_of: datetime,
) -> tuple[Check, ...]:
    report, cells = reward
    return experiment_checks(
        experiment,
        traffic,
        lag=counts.recording_lag(connection, experiment),
        orphans=orphans,
        missing=counts.missing_exposure_counts(
            connection, experiment, since=as_of - RECENT
        ),
        late=counts.late_count(connection, experiment, as_of=as_of),
        reward=report,
        effects=daily_effects(experiment, report.kind, cells, traffic.epochs),
        as_of=as_of,
    )


def _traffic(
    connection: Connection, experiment: Experiment, as_of: datetime
) -> Traffic:
    return Traffic(
        epochs=storage.list_epochs(connection, experiment.id),
        units=counts.unit_counts(connection, experiment, cutoff=as_of),
        exposures=counts.exposure_counts(connection, experiment),
        activity=counts.activity(connection, experiment),
        looks=storage.list_reallocations(connection, experiment.id),
        decision=storage.last_decision(connection, experiment.key),
    )


def _spans(experiment: Experiment, as_of: datetime) -> reads.Spans | None:
    """Return the time in which windows closed; None before the first did."""
    if experiment.started_at is None:
        return None
    window = experiment.declaration.attribution_window
    start = experiment.started_at + window
    end = min(as_of, (experiment.stopped_at or as_of) + window)
    if end <= start:
        return None
    return reads.Spans(start=start, end=end, count=SERIES_POINTS)


def _series(
    experiment: Experiment,
    metric: Metric,
    cells: reads.MetricCells,
    spans: reads.Spans | None,
    *,
    level: float,
) -> tuple[Series, ...]:
    """Return the reward over the time in which windows closed."""
    if spans is None:
        return ()
    ordered = {
        variant.key: cells.series[variant.key]
        for variant in experiment.declaration.variants
        if variant.key in cells.series
    }
    return cumulative_series(
        metric, ordered, start=spans.start, end=spans.end, level=level
    )


def _daily_series(
    experiment: Experiment,
    metric: Metric,
    cells: reads.MetricCells,
    days: Days,
    *,
    level: float,
) -> tuple[Series, ...]:
    """Return the reward over days of first exposure."""
    start, end = bounds(days)
    return cumulative_series(
        metric, by_day(experiment, cells, days), start=start, end=end, level=level
    )
