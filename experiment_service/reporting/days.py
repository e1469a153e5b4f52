"""A range of days: only units first exposed on them count."""

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta

from experiment_service.analysis.moments import Moments
from experiment_service.domain.experiment import Experiment
from experiment_service.reporting.values import Days
from experiment_service.storage.reads import MetricCells


def within(cells: MetricCells, days: Days | None) -> MetricCells:
    """Keep the units first exposed on these days; open units have no day and go."""
    if days is None:
        return cells
    first, last = days.first, days.last
    return dataclasses.replace(
        cells,
        moments={c: m for c, m in cells.moments.items() if first <= c.day <= last},
        covariates={
            c: m for c, m in cells.covariates.items() if first <= c.day <= last
        },
        open_units={},
        series={},
    )


def by_day(
    experiment: Experiment, cells: MetricCells, days: Days
) -> Mapping[str, list[Moments]]:
    """Return the moments of each variant on each of the days, for a series."""
    count = (days.last - days.first).days + 1
    series = {
        variant.key: [Moments.zero()] * count
        for variant in experiment.declaration.variants
    }
    for cell, moments in cells.moments.items():
        series[cell.variant][(cell.day - days.first).days] += moments
    return series


def bounds(days: Days) -> tuple[datetime, datetime]:
    """Return the first instant of the days and the first after them, in UTC."""
    midnight = time(tzinfo=UTC)
    return (
        datetime.combine(days.first, midnight),
        datetime.combine(days.last + timedelta(days=1), midnight),
    )
