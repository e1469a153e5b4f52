"""An experiment's reward by attributes of its units, and whether effects differ.

The test over all levels of an attribute comes before any single level, and its p-values
are corrected for all attributes and variants: who looks at many segments finds some that
stand out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection

from experiment_service.analysis.heterogeneity import Heterogeneity, heterogeneity
from experiment_service.analysis.significance import corrected
from experiment_service.domain.experiment import Epoch, Experiment
from experiment_service.reporting.metrics import (
    contrast,
    metric_data,
    metric_report,
    with_corrections,
)
from experiment_service.reporting.values import (
    AttributeReport,
    EffectsDiffer,
    LevelReport,
    SegmentsReport,
)
from experiment_service.storage import experiments as storage
from experiment_service.storage import reads

#: Name of the level that holds all units in none of the largest levels.
OTHER_LEVELS = reads.OTHER_LEVELS
#: Attributes looked at, and levels of each; what is beyond is named or put together.
MOST_ATTRIBUTES = 10
MOST_LEVELS = 8


def build_segments(
    connection: Connection, key: str, *, as_of: datetime, level: float = 0.95
) -> SegmentsReport:
    """Report the reward of an experiment by every attribute of its exposures.

    Parameters
    ----------
    as_of : datetime
        Last instant used; units count when their window has closed by then.
    level : float
        Coverage of every interval, in (0, 1).

    Raises
    ------
    NotFound
        Lists the experiments that exist.
    """
    experiment = storage.get_experiment(connection, key)
    names = reads.attributes_logged(connection, experiment)
    epochs = storage.list_epochs(connection, experiment.id)
    reports = [
        _by_attribute(connection, experiment, epochs, name, as_of=as_of, level=level)
        for name in names[:MOST_ATTRIBUTES]
    ]
    return SegmentsReport(
        as_of=as_of,
        level=level,
        metric=experiment.declaration.reward_metric,
        attributes=_with_corrections(reports),
        left_out=tuple(names[MOST_ATTRIBUTES:]),
    )


def _by_attribute(
    connection: Connection,
    experiment: Experiment,
    epochs: Sequence[Epoch],
    attribute: str,
    *,
    as_of: datetime,
    level: float,
) -> AttributeReport:
    metric = experiment.declaration.reward
    cells = reads.moments_by_level(
        connection,
        experiment,
        metric,
        attribute=attribute,
        most=MOST_LEVELS,
        cutoff=as_of,
    )
    data = {name: metric_data(metric, each, epochs) for name, each in cells.items()}
    reports = with_corrections(
        [
            metric_report(experiment, metric, cells[name], data[name], level=level)
            for name in cells
        ]
    )
    control = experiment.declaration.control.key
    return AttributeReport(
        attribute=attribute,
        levels=tuple(
            LevelReport(level=name, report=report)
            for name, report in zip(cells, reports, strict=True)
        ),
        differ=tuple(
            EffectsDiffer(
                variant=variant.key,
                test=heterogeneity(
                    {
                        name: contrast(metric.kind, each.epochs, variant.key, control)
                        for name, each in data.items()
                    }
                ),
                corrected=None,
            )
            for variant in experiment.declaration.variants
            if not variant.control
        ),
    )


def _with_corrections(reports: list[AttributeReport]) -> tuple[AttributeReport, ...]:
    p_values: Mapping[tuple[str, str], float] = {
        (report.attribute, each.variant): each.test.p_value
        for report in reports
        for each in report.differ
        if isinstance(each.test, Heterogeneity)
    }
    holm = corrected(p_values, "holm")
    return tuple(
        replace(
            report,
            differ=tuple(
                replace(each, corrected=holm.get((report.attribute, each.variant)))
                for each in report.differ
            ),
        )
        for report in reports
    )
