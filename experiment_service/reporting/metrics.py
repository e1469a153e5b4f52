"""From moments to the numbers of a report: which interval is shown, and why.

Weights that never moved get the methods of `estimate` and `sequential`. Once they have
moved, as in any bandit, variants are compared by `adaptive` over epochs.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, TypeVar

from experiment_service.analysis import adaptive, estimate, guardrail, sequential
from experiment_service.analysis.adjustment import (
    Adjustment,
    CovariateEpoch,
    CovariateMoments,
    adjust,
)
from experiment_service.analysis.beliefs import belief
from experiment_service.analysis.contrasts import (
    Contrast,
    plain_contrast,
    weighted_contrast,
)
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
from experiment_service.storage.reads import Cell, MetricCells

#: Where any-time intervals of means, ratios and differences are narrowest: units of the
#: two variants together. Fixed for all experiments, so never chosen from data; 10 times
#: as many or as few units cost about a fifth of the width.
PLANNED_UNITS = 20_000.0

AtLevel = Callable[[float], Estimate]

_MOVED = Withheld(
    reason="The weights moved, so an interval for one planned look does not hold for a "
    "variant by itself. Use the any-time interval."
)
_NO_LIFT_SEQUENCE = Withheld(
    reason="Once weights have moved, the any-time interval is given for the difference."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricData:
    """A metric by epoch and variant, with what units did before if that is used.

    Attributes
    ----------
    epochs : sequence of EpochMoments
        In the order of time.
    before : sequence of CovariateEpoch
        The same with the covariate; empty when comparisons are not adjusted.
    """

    kind: MetricKind
    epochs: Sequence[EpochMoments]
    before: Sequence[CovariateEpoch] = ()

    @property
    def moved(self) -> bool:
        """Whether units came under more than one allocation."""
        return weights_moved(self.epochs)

    def pooled(self, variant: str) -> Moments:
        """Add up the moments of a variant."""
        return _pooled(self.epochs, variant)

    def compared(
        self, variant: str, control: str, *, for_lift: bool = False
    ) -> tuple["MetricData", Adjustment | Withheld | None]:
        """Return what two variants are to be compared by, adjusted if it can be."""
        if not self.before:
            return self, None
        adjusted = adjust(
            self.before,
            kind=self.kind,
            treatment=variant,
            control=control,
            for_lift=for_lift,
        )
        if isinstance(adjusted, Withheld):
            return self, adjusted
        return MetricData(kind=adjusted.kind, epochs=adjusted.epochs), adjusted


def metric_data(
    metric: Metric, cells: MetricCells, epochs: Sequence[Epoch]
) -> MetricData:
    """Pool the days of each epoch that has units, in the order of time.

    With segments each of them is an entry of its own, as its weights are.
    """
    by_number = {epoch.number: epoch for epoch in epochs}
    moments = _by_epoch(cells.moments, Moments.zero())
    before = _by_epoch(cells.covariates, CovariateMoments.zero())
    return MetricData(
        kind=metric.kind,
        epochs=[
            EpochMoments(
                weights=by_number[number].weights_of(segment),
                moments=by_variant,
                segment=segment,
            )
            for (number, segment), by_variant in moments.items()
        ],
        before=[
            CovariateEpoch(
                weights=by_number[number].weights_of(segment),
                cells=by_variant,
                segment=segment,
            )
            for (number, segment), by_variant in before.items()
        ],
    )


_Sums = TypeVar("_Sums", Moments, CovariateMoments)


def _by_epoch(
    cells: Mapping[Cell, _Sums], nothing: _Sums
) -> dict[tuple[int, str | None], dict[str, _Sums]]:
    pooled: dict[tuple[int, str | None], dict[str, _Sums]] = {}
    for cell, sums in cells.items():
        entry = pooled.setdefault((cell.epoch, cell.segment), {})
        entry[cell.variant] = entry.get(cell.variant, nothing) + sums
    return dict(sorted(pooled.items(), key=lambda each: (each[0][0], each[0][1] or "")))


def metric_report(
    experiment: Experiment,
    metric: Metric,
    cells: MetricCells,
    data: MetricData,
    *,
    level: float,
) -> MetricReport:
    """Estimate a metric for every variant, and compare each to the control."""
    declaration = experiment.declaration
    control = declaration.control.key
    pooled = pooled_moments(experiment, cells)
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
                if data.moved and moments.n
                else estimate.arm(metric.kind, moments, level=level),
                any_time=sequential.arm_sequence(
                    metric.kind, moments, level=level, planned_units=PLANNED_UNITS / 2
                ),
            )
            for variant, moments in pooled.items()
        ),
        comparisons=tuple(
            _guarded(
                _comparison(metric, (variant, control), data, level),
                metric,
                control,
                data.epochs,
                margin=margin,
                level=level,
            )
            for variant in pooled
            if variant != control
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


def _pooled(epochs: Sequence[EpochMoments], variant: str) -> Moments:
    return sum(
        (each.moments.get(variant, Moments.zero()) for each in epochs), Moments.zero()
    )


def weights_moved(epochs: Sequence[EpochMoments]) -> bool:
    """Whether units came under more than one allocation."""
    return any(dict(each.weights) != dict(epochs[0].weights) for each in epochs)


def differences(
    data: MetricData, variant: str, control: str
) -> tuple[AtLevel, AtLevel]:
    """Return the interval for variant - control as a function of the level.

    The first holds for one look at a planned end, the second at every look.
    """
    used, adjustment = data.compared(variant, control)
    kind, epochs = used.kind, used.epochs
    if used.moved:
        pair = weigh(
            epochs,
            kind=kind,
            treatment=variant,
            control=control,
            minimum_effective_sample_size=adaptive.MINIMUM_EFFECTIVE_SAMPLE_SIZE,
        )
        planned, any_time = (
            functools.partial(adaptive.contrast_of, pair, kind=kind),
            functools.partial(adaptive.sequence_of, pair, planned_units=PLANNED_UNITS),
        )
    else:
        both = [used.pooled(key) for key in (variant, control)]
        planned, any_time = (
            functools.partial(estimate.difference, kind, *both),
            functools.partial(
                sequential.difference_sequence,
                kind,
                *both,
                planned_units=PLANNED_UNITS,
            ),
        )
    return _named(planned, adjustment), _named(any_time, adjustment)


def _named(
    interval: Callable[..., Estimate], adjustment: Adjustment | Withheld | None
) -> AtLevel:
    """Have intervals of adjusted moments say so."""

    def at_level(level: float) -> Estimate:
        found = interval(level=level)
        if isinstance(found, Interval) and isinstance(adjustment, Adjustment):
            return replace(found, method=f"CUPED, {found.method}")
        return found

    return at_level


def _lifts(data: MetricData, variant: str, control: str) -> tuple[AtLevel, AtLevel]:
    """Return the intervals for variant / control - 1, as `differences`."""
    used, adjustment = data.compared(variant, control, for_lift=True)
    kind = used.kind
    if used.moved:
        planned = functools.partial(
            adaptive.contrast_lift,
            used.epochs,
            kind=kind,
            treatment=variant,
            control=control,
        )
        return _named(planned, adjustment), lambda _: _NO_LIFT_SEQUENCE
    both = [used.pooled(key) for key in (variant, control)]
    return (
        _named(functools.partial(estimate.lift, kind, *both), adjustment),
        _named(
            functools.partial(
                sequential.lift_sequence, kind, *both, planned_units=PLANNED_UNITS
            ),
            adjustment,
        ),
    )


def _comparison(
    metric: Metric, pair: tuple[str, str], data: MetricData, level: float
) -> Comparison:
    planned, any_time = differences(data, *pair)
    lift_planned, lift_any_time = _lifts(data, *pair)
    used, adjustment = data.compared(*pair)
    p_values = [p_value(each) for each in (planned, any_time)]
    return Comparison(
        variant=pair[0],
        planned=planned(level),
        any_time=any_time(level),
        lift_planned=lift_planned(level),
        lift_any_time=lift_any_time(level),
        p_planned=None if isinstance(p_values[0], Withheld) else p_values[0],
        p_any_time=None if isinstance(p_values[1], Withheld) else p_values[1],
        variance_removed=adjustment.variance_reduction
        if isinstance(adjustment, Adjustment)
        else adjustment,
        belief=belief(
            used.kind,
            *(used.pooled(key) for key in pair),
            lower_is_better=metric.direction == "lower",
        ),
    )


def daily_effects(
    experiment: Experiment,
    kind: MetricKind,
    cells: MetricCells,
    epochs: Sequence[Epoch],
) -> dict[str, dict[float, Contrast | Withheld]]:
    """Return each variant's difference to the control, by day since the first one."""
    by_number = {epoch.number: epoch for epoch in epochs}
    days: dict[date, dict[Cell, Moments]] = {}
    for cell, moments in cells.moments.items():
        days.setdefault(cell.day, {})[cell] = moments
    control = experiment.declaration.control.key
    effects: dict[str, dict[float, Contrast | Withheld]] = {
        variant.key: {}
        for variant in experiment.declaration.variants
        if not variant.control
    }
    for day, of_day in sorted(days.items()):
        by_epoch = [
            EpochMoments(
                weights=by_number[number].weights_of(segment),
                moments=moments,
                segment=segment,
            )
            for (number, segment), moments in _by_epoch(of_day, Moments.zero()).items()
        ]
        for variant, by_day in effects.items():
            by_day[(day - min(days)).days] = contrast(kind, by_epoch, variant, control)
    return effects


def contrast(
    kind: MetricKind, epochs: Sequence[EpochMoments], variant: str, control: str
) -> Contrast | Withheld:
    """Return variant - control with its variance, to be set beside others."""
    if weights_moved(epochs):
        return weighted_contrast(epochs, kind=kind, treatment=variant, control=control)
    return plain_contrast(kind, _pooled(epochs, variant), _pooled(epochs, control))


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
    """Correct p-values for being many: all comparisons of the reports are one family."""
    found: dict[tuple[int, str], dict[str, Any]] = {
        (number, each.variant): {}
        for number, report in enumerate(reports)
        for each in report.comparisons
    }
    for look in ("planned", "any_time"):
        p_values = {
            (number, each.variant): value
            for number, report in enumerate(reports)
            for each in report.comparisons
            if (value := getattr(each, f"p_{look}")) is not None
        }
        holm = corrected(p_values, "holm")
        discovery = corrected(p_values, "benjamini_hochberg")
        for key, fields in found.items():
            fields[f"corrected_{look}"] = holm.get(key)
            fields[f"discovery_{look}"] = discovery.get(key)
    return tuple(
        replace(
            report,
            comparisons=tuple(
                replace(each, **found[number, each.variant])
                for each in report.comparisons
            ),
        )
        for number, report in enumerate(reports)
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
