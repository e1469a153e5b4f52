"""From moments to the numbers of a report: which interval is shown, and why.

Weights that never moved get the methods of `estimate` and `sequential`. Once they have
moved, as in any bandit, variants are compared by `adaptive` over epochs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from experiment_service.analysis import adaptive, estimate, guardrail, sequential
from experiment_service.analysis.beliefs import belief
from experiment_service.analysis.interval import Estimate, Interval, Withheld
from experiment_service.analysis.moments import EpochMoments, Moments
from experiment_service.analysis.scores import weigh
from experiment_service.analysis.significance import corrected, p_value
from experiment_service.domain.experiment import Epoch, Experiment
from experiment_service.domain.metric import Metric, MetricKind
from experiment_service.reporting.values import (
    Comparison,
    MetricReport,
    Series,
    SeriesPoint,
    VariantResult,
)
from experiment_service.storage.reads import MetricCells

#: Where any-time intervals of means, ratios and differences are narrowest: units of the
#: two variants together. Fixed for all experiments, so never chosen from data; 10 times
#: as many or as few units cost about a fifth of the width.
PLANNED_UNITS = 20_000.0

_AtLevel = Callable[[float], Estimate]

_MOVED = Withheld(
    reason="The weights moved, so an interval for one planned look does not hold for a "
    "variant by itself. Use the any-time interval."
)
_NO_LIFT_SEQUENCE = Withheld(
    reason="Once weights have moved, the any-time interval is given for the difference."
)


def metric_report(
    experiment: Experiment,
    metric: Metric,
    cells: MetricCells,
    epochs: Sequence[Epoch],
    *,
    level: float,
) -> MetricReport:
    """Estimate a metric for every variant, and compare each to the control."""
    declaration = experiment.declaration
    pooled = pooled_moments(experiment, cells)
    by_epoch = epoch_moments(cells, epochs)
    moved = weights_moved(by_epoch)
    margin = declaration.guardrails.get(metric.name)
    return MetricReport(
        name=metric.name,
        title=metric.title,
        kind=metric.kind,
        direction=metric.direction,
        reward=metric.name == declaration.reward_metric,
        margin=margin,
        variants=tuple(
            VariantResult(
                variant=variant,
                units=int(moments.n),
                open_units=cells.open_units.get(variant, 0),
                planned=_MOVED
                if moved and moments.n
                else estimate.arm(metric.kind, moments, level=level),
                any_time=sequential.arm_sequence(
                    metric.kind, moments, level=level, planned_units=PLANNED_UNITS / 2
                ),
            )
            for variant, moments in pooled.items()
        ),
        comparisons=tuple(
            _guarded(
                _comparison(
                    metric, (variant, declaration.control.key), pooled, by_epoch, level
                ),
                metric,
                declaration.control.key,
                by_epoch,
                margin=margin,
                level=level,
            )
            for variant in pooled
            if variant != declaration.control.key
        ),
    )


def pooled_moments(experiment: Experiment, cells: MetricCells) -> dict[str, Moments]:
    """Pool epochs and days of each variant, in the order of the declaration."""
    pooled = {
        variant.key: Moments.zero() for variant in experiment.declaration.variants
    }
    for cell, moments in cells.moments.items():
        pooled[cell.variant] += moments
    return pooled


def epoch_moments(cells: MetricCells, epochs: Sequence[Epoch]) -> list[EpochMoments]:
    """Pool the days of each epoch that has units, in the order of time.

    With segments each of them is an entry of its own, as its weights are.
    """
    by_number = {epoch.number: epoch for epoch in epochs}
    pooled: dict[tuple[int, str | None], dict[str, Moments]] = {}
    for cell, moments in cells.moments.items():
        entry = pooled.setdefault((cell.epoch, cell.segment), {})
        entry[cell.variant] = entry.get(cell.variant, Moments.zero()) + moments
    return [
        EpochMoments(
            weights=by_number[number].weights_of(segment),
            moments=pooled[number, segment],
            segment=segment,
        )
        for number, segment in sorted(
            pooled, key=lambda entry: (entry[0], entry[1] or "")
        )
    ]


def weights_moved(epochs: Sequence[EpochMoments]) -> bool:
    """Whether units came under more than one allocation."""
    return any(dict(each.weights) != dict(epochs[0].weights) for each in epochs)


def differences(
    kind: MetricKind, variant: str, control: str, epochs: Sequence[EpochMoments]
) -> tuple[_AtLevel, _AtLevel]:
    """Return the interval for variant - control as a function of the level.

    The first holds for one look at a planned end, the second at every look.
    """
    if weights_moved(epochs):
        pair = weigh(
            epochs,
            kind=kind,
            treatment=variant,
            control=control,
            minimum_effective_sample_size=adaptive.MINIMUM_EFFECTIVE_SAMPLE_SIZE,
        )
        return (
            lambda level: adaptive.contrast_of(pair, kind=kind, level=level),
            lambda level: adaptive.sequence_of(
                pair, planned_units=PLANNED_UNITS, level=level
            ),
        )
    treated, controlled = (
        sum((each.moments.get(key, Moments.zero()) for each in epochs), Moments.zero())
        for key in (variant, control)
    )
    return (
        lambda level: estimate.difference(kind, treated, controlled, level=level),
        lambda level: sequential.difference_sequence(
            kind, treated, controlled, level=level, planned_units=PLANNED_UNITS
        ),
    )


def _comparison(
    metric: Metric,
    pair: tuple[str, str],
    pooled: Mapping[str, Moments],
    epochs: Sequence[EpochMoments],
    level: float,
) -> Comparison:
    variant, control = pair
    planned, any_time = differences(metric.kind, variant, control, epochs)
    treated, controlled = pooled[variant], pooled[control]
    p_values = [p_value(each) for each in (planned, any_time)]
    if weights_moved(epochs):
        lift_planned = adaptive.contrast_lift(
            epochs,
            kind=metric.kind,
            treatment=variant,
            control=control,
            level=level,
        )
        lift_any_time: Estimate = _NO_LIFT_SEQUENCE
    else:
        lift_planned = estimate.lift(metric.kind, treated, controlled, level=level)
        lift_any_time = sequential.lift_sequence(
            metric.kind, treated, controlled, level=level, planned_units=PLANNED_UNITS
        )
    return Comparison(
        variant=variant,
        planned=planned(level),
        any_time=any_time(level),
        lift_planned=lift_planned,
        lift_any_time=lift_any_time,
        p_planned=None if isinstance(p_values[0], Withheld) else p_values[0],
        p_any_time=None if isinstance(p_values[1], Withheld) else p_values[1],
        belief=belief(
            metric.kind,
            treated,
            controlled,
            lower_is_better=metric.direction == "lower",
        ),
    )


def _guarded(
    comparison: Comparison,
    metric: Metric,
    control: str,
    epochs: Sequence[EpochMoments],
    *,
    margin: float | None,
    level: float,
) -> Comparison:
    """Add the verdict on a guardrail."""
    if margin is None:
        return comparison
    lower = metric.direction == "lower"
    beyond = guardrail.excess(
        epochs,
        kind=metric.kind,
        treatment=comparison.variant,
        control=control,
        factor=1 + margin if lower else 1 - margin,
        moved=weights_moved(epochs),
        level=level,
        planned_units=PLANNED_UNITS,
    )
    verdict = guardrail.judge(comparison.any_time, beyond, lower_is_better=lower)
    return replace(comparison, guardrail=verdict)


def with_corrections(reports: Sequence[MetricReport]) -> tuple[MetricReport, ...]:
    """Correct p-values for being many: all variants and metrics are one family."""
    corrections = {
        name: corrected(
            {
                (report.name, each.variant): value
                for report in reports
                for each in report.comparisons
                if (value := getattr(each, name)) is not None
            },
            "holm",
        )
        for name in ("p_planned", "p_any_time")
    }
    return tuple(
        replace(
            report,
            comparisons=tuple(
                replace(
                    each,
                    corrected_planned=corrections["p_planned"].get(
                        (report.name, each.variant)
                    ),
                    corrected_any_time=corrections["p_any_time"].get(
                        (report.name, each.variant)
                    ),
                )
                for each in report.comparisons
            ),
        )
        for report in reports
    )


def cumulative_series(
    metric: Metric,
    spans: Mapping[str, Sequence[Moments]],
    *,
    start: datetime,
    end: datetime,
    level: float,
) -> tuple[Series, ...]:
    """Add moments up over equal spans of time, with the any-time interval at each.

    Points at which the interval is withheld are left out.
    """
    series = []
    for variant, moments in spans.items():
        points = []
        total = Moments.zero()
        for number, span in enumerate(moments, start=1):
            total += span
            interval = sequential.arm_sequence(
                metric.kind, total, level=level, planned_units=PLANNED_UNITS / 2
            )
            if isinstance(interval, Interval):
                at = start + (end - start) * number / len(moments)
                points.append(SeriesPoint(at=at, units=int(total.n), interval=interval))
        series.append(Series(variant=variant, points=tuple(points)))
    return tuple(series)
