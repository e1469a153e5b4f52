"""What an experiment is and what traffic it had, whatever the metric."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from experiment_service.domain.experiment import Epoch, Experiment, Outcome, Variant
from experiment_service.reporting.values import (
    Decision,
    EpochReport,
    Facts,
    SegmentReport,
    VariantFacts,
)
from experiment_service.storage.counts import (
    Activity,
    ExposureCount,
    UnitCell,
    UnitCount,
)
from experiment_service.storage.experiments import AuditEntry, Reallocation


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Epochs and looks of an experiment, and what was counted in them."""

    epochs: Sequence[Epoch]
    units: Mapping[UnitCell, UnitCount]
    exposures: Mapping[str, ExposureCount]
    activity: Activity
    looks: Sequence[Reallocation]
    decision: AuditEntry | None = None


def facts_of(experiment: Experiment, traffic: Traffic, *, as_of: datetime) -> Facts:
    """Say what an experiment is and how far it has come."""
    declaration = experiment.declaration
    started = experiment.started_at
    running_for = timedelta(0)
    if started is not None:
        running_for = max((experiment.stopped_at or as_of) - started, running_for)
    seen = [each.last_at for each in traffic.exposures.values()]
    return Facts(
        key=experiment.key,
        description=declaration.description,
        kind=declaration.kind,
        state=experiment.state,
        placement=declaration.placement,
        reward_metric=declaration.reward_metric,
        attribution_window=declaration.attribution_window,
        started_at=started,
        stopped_at=experiment.stopped_at,
        running_for=running_for,
        epoch=traffic.epochs[-1].number if traffic.epochs else None,
        variants=tuple(_variant(each, traffic) for each in declaration.variants),
        units=sum(each.units for each in traffic.units.values()),
        crossed=sum(each.crossed for each in traffic.units.values()),
        interactions=traffic.activity.interactions,
        last_exposure_at=max(seen, default=None),
        decision=_decision(traffic.decision),
    )


def _decision(entry: AuditEntry | None) -> Decision | None:
    if entry is None:
        return None
    return Decision(
        outcome=Outcome(entry.after["outcome"]),
        variant=entry.after["variant"],
        reason=entry.reason or "",
        actor=entry.actor,
        decided_at=entry.recorded_at,
    )


def _variant(variant: Variant, traffic: Traffic) -> VariantFacts:
    shown = traffic.exposures.get(variant.key)
    units = [
        each.units
        for cell, each in traffic.units.items()
        if cell.variant == variant.key
    ]
    return VariantFacts(
        key=variant.key,
        recommender=variant.recommender,
        control=variant.control,
        weight=traffic.epochs[-1].weights[variant.key] if traffic.epochs else None,
        units=sum(units),
        exposures=0 if shown is None else shown.exposures,
        fallbacks=0 if shown is None else shown.fallbacks,
    )


def epoch_reports(experiment: Experiment, traffic: Traffic) -> tuple[EpochReport, ...]:
    """Put the units of each epoch beside its weights."""
    variants = [variant.key for variant in experiment.declaration.variants]
    units: Counter[tuple[int, str]] = Counter()
    by_segment: Counter[tuple[int, str | None]] = Counter()
    for cell, each in traffic.units.items():
        units[cell.epoch, cell.variant] += each.units
        by_segment[cell.epoch, cell.segment] += each.units
    return tuple(
        EpochReport(
            number=epoch.number,
            started_at=epoch.started_at,
            weights={variant: epoch.weights[variant] for variant in variants},
            units={variant: units[epoch.number, variant] for variant in variants},
            segments={
                name: SegmentReport(
                    weights={variant: each.weights[variant] for variant in variants},
                    units=by_segment[epoch.number, name],
                )
                for name, each in (epoch.segments or {}).items()
            },
            cutoff=epoch.cutoff,
            reason=epoch.reason,
        )
        for epoch in traffic.epochs
    )
