"""Model versions as people look at them: how each was judged, and what it serves."""

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from experiment_service.analysis.shadow import (
    RuleCheck,
    ShadowComparison,
    ShadowSums,
    compare,
    judge,
)
from experiment_service.domain.experiment import ExperimentState
from experiment_service.domain.shadow import ShadowRule
from experiment_service.storage import experiments as storage
from experiment_service.storage import models
from experiment_service.storage.models import ModelStatus, ModelVersion
from experiment_service.storage.shadow_sums import sum_answers


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GateCheck:
    """One check of the gate.

    Attributes
    ----------
    value, threshold : float or None
        Measured, and the bound; None for a number that was not finite or not stored.
    rule : str
        "at least" or "at most".
    """

    name: str
    value: float | None
    threshold: float | None
    rule: str
    passed: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of an offline evaluation.

    Attributes
    ----------
    low, high : float or None
        Of its interval, if one was stored.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Figures under one protocol; they compare under the same protocol only."""

    title: str
    protocol: str
    figures: tuple[Figure, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShadowReport:
    """A version as a shadow, now or before it was decided on.

    Attributes
    ----------
    share : float or None
        Of units; None once it was decided on.
    rule : ShadowRule or None
        None when people decide.
    checks : tuple of RuleCheck
        The rule held against the answers; empty while it waits for more of them.
    """

    share: float | None
    rule: ShadowRule | None
    comparison: ShadowComparison
    checks: tuple[RuleCheck, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VersionReport:
    """One version of a model; fields as of `ModelVersion`.

    Attributes
    ----------
    configuration_digest : str
        Equal for versions of equal recommender and parameters.
    shadow : ShadowReport or None
        None when it never was one.
    """

    version: int
    status: ModelStatus
    recommender: str
    parameters: Mapping[str, Any]
    configuration_digest: str
    judgements: tuple[Judgement, ...]
    checks: tuple[GateCheck, ...]
    data_from: datetime
    data_to: datetime
    data_digest: str
    code_version: str
    sha256: str
    created_at: datetime
    decided_by: str | None
    decided_at: datetime | None
    reason: str | None
    shadow: ShadowReport | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A running experiment that has variants of a model."""

    experiment: str
    placement: str
    variants: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """A model: its versions, the newest first, and where it is asked for.

    Attributes
    ----------
    live : int or None
        The version that serves.
    placements : tuple of str
        Those that show it outside experiments.
    uses : tuple of Use
        Running experiments.
    """

    name: str
    live: int | None
    versions: tuple[VersionReport, ...]
    placements: tuple[str, ...]
    uses: tuple[Use, ...]


def build_models(connection: Connection) -> tuple[ModelReport, ...]:
    """Return every model by name."""
    by_name: dict[str, list[ModelVersion]] = {}
    for version in models.list_versions(connection):
        by_name.setdefault(version.name, []).append(version)
    placements = storage.list_placements(connection).values()
    running = [
        each.declaration
        for each in storage.list_experiments(connection)
        if each.state is ExperimentState.RUNNING
    ]
    return tuple(
        ModelReport(
            name=name,
            live=next(
                (v.version for v in versions if v.status is ModelStatus.LIVE), None
            ),
            versions=tuple(_version(connection, each) for each in versions),
            placements=tuple(p.key for p in placements if p.recommender == name),
            uses=tuple(
                Use(experiment=d.key, placement=d.placement, variants=variants)
                for d in running
                if (
                    variants := tuple(
                        v.key for v in d.variants if v.recommender == name
                    )
                )
            ),
        )
        for name, versions in by_name.items()
    )


def _version(connection: Connection, version: ModelVersion) -> VersionReport:
    return VersionReport(
        version=version.version,
        status=version.status,
        recommender=version.recommender,
        parameters=version.parameters,
        configuration_digest=version.configuration_digest,
        judgements=_judgements(version.metrics),
        checks=tuple(map(_check, version.checklist)),
        data_from=version.data_from,
        data_to=version.data_to,
        data_digest=version.data_digest,
        code_version=version.code_version,
        sha256=version.sha256,
        created_at=version.created_at,
        decided_by=version.decided_by,
        decided_at=version.decided_at,
        reason=version.reason,
        shadow=_shadow(connection, version),
    )


def _shadow(connection: Connection, version: ModelVersion) -> ShadowReport | None:
    if version.status is ModelStatus.SHADOW:
        sums = sum_answers(connection, version.id)
    elif version.shadow_result is not None:
        sums = ShadowSums.parse(version.shadow_result)
    else:
        return None
    rule = version.shadow_rule
    return ShadowReport(
        share=version.shadow_share,
        rule=rule,
        comparison=compare(sums),
        checks=() if rule is None else judge(sums, rule),
    )


def _check(document: Mapping[str, Any]) -> GateCheck:
    return GateCheck(
        name=str(document.get("name", "")),
        value=_number(document.get("value")),
        threshold=_number(document.get("threshold")),
        rule=str(document.get("rule", "at least")),
        passed=bool(document.get("passed", False)),
    )


def _judgements(metrics: Mapping[str, Any]) -> tuple[Judgement, ...]:
    """Read what a training stored: figures by protocol, or figures without one."""
    loose = {k: v for k, v in metrics.items() if not _is_group(v)}
    found = [_judgement("Evaluation", loose)] if loose else []
    found += [_judgement(k, v) for k, v in metrics.items() if _is_group(v)]
    return tuple(found)


def _judgement(title: str, values: Mapping[str, Any]) -> Judgement:
    return Judgement(
        title=title,
        protocol=str(values.get("protocol", "")),
        figures=tuple(
            _figure(name, value)
            for name, value in values.items()
            if value is None or _is_number(value) or _is_interval(value)
        ),
    )


def _figure(name: str, value: object) -> Figure:
    if isinstance(value, Mapping):
        return Figure(
            name=name,
            value=_number(value.get("estimate", value.get("value"))),
            low=_number(value.get("low")),
            high=_number(value.get("high")),
        )
    return Figure(name=name, value=_number(value))


def _is_group(value: object) -> bool:
    return isinstance(value, Mapping) and not _is_interval(value)


def _is_interval(value: object) -> bool:
    return isinstance(value, Mapping) and {"low", "high"} <= set(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: object) -> float | None:
    """Return a number as it was stored, so that a count stays one."""
    return value if isinstance(value, int | float) else None
