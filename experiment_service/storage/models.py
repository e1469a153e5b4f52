"""Model versions in the database: what was trained, how it was judged, what serves.

Functions take a connection; nobody here commits. Files are the use case's: a version
knows the folder of its artifact by name only.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, exists, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from experiment_service.domain.configuration import LiveModel
from experiment_service.domain.experiment import check_key
from experiment_service.domain.shadow import ShadowRule, check_share
from experiment_service.errors import (
    Conflict,
    InvalidRequest,
    InvalidState,
    NotFound,
    known,
)
from experiment_service.storage import schema
from experiment_service.storage.database import (
    lock_for_transaction,
    notify_change,
    violated_constraint,
)
from experiment_service.storage.experiments import record_audit

#: Folder of all models below the data directory, each version in one of its own.
MODELS = "models"

_UQ_LIVE = "uq_model_version_live"


class ModelStatus(StrEnum):
    """Life of a version; only a live one serves, at most one of a name."""

    CANDIDATE = "candidate"
    REJECTED = "rejected"
    SHADOW = "shadow"
    LIVE = "live"
    RETIRED = "retired"


_NEXT: Mapping[ModelStatus, frozenset[ModelStatus]] = {
    ModelStatus.CANDIDATE: frozenset(
        {ModelStatus.REJECTED, ModelStatus.SHADOW, ModelStatus.LIVE}
    ),
    ModelStatus.REJECTED: frozenset(),
    ModelStatus.SHADOW: frozenset(
        {ModelStatus.SHADOW, ModelStatus.LIVE, ModelStatus.REJECTED}
    ),
    ModelStatus.LIVE: frozenset({ModelStatus.RETIRED}),
    ModelStatus.RETIRED: frozenset({ModelStatus.LIVE}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One training of a model.

    Attributes
    ----------
    name, version : str, int
        Versions of a name count from 1.
    recommender, parameters : str, mapping
        What was trained, and every setting that made the artifact.
    metrics : mapping
        Offline evaluation with its protocol; None for a number that was not finite.
    checklist : sequence of mapping
        The gate: per check its name, value, threshold and verdict.
    data_from, data_to : datetime
        First and last interaction of the training data.
    data_digest : str
        SHA-256 of the training data, whatever its order.
    code_version : str
        Of the program that trained it.
    artifact, sha256 : str
        Folder of its lists below the data directory, and the digest of its manifest;
        empty for a version that was rejected before it was published.
    decided_by, decided_at, reason : str, datetime, str or None
        Who gave it its status, when and why; None for a candidate.
    shadow_share : float or None
        Share of units whose requests a shadow gets; None for every other status.
    shadow_rule : ShadowRule or None
        What decides on a shadow; None when people do. Stays when it has decided.
    shadow_result : mapping or None
        How it compared when it was decided on, as `ShadowSums` writes it.
    parent : int or None
        Version that served when this one was trained, and that its gates compared it
        with.
    data_profile : mapping or None
        Of its training data, as of `recommenders.data_checks.DataProfile`.
    """

    id: int
    name: str
    version: int
    recommender: str
    parameters: Mapping[str, Any]
    metrics: Mapping[str, Any]
    checklist: Sequence[Mapping[str, Any]]
    data_from: datetime
    data_to: datetime
    data_digest: str
    code_version: str
    artifact: str
    sha256: str
    status: ModelStatus
    created_at: datetime
    decided_by: str | None = None
    decided_at: datetime | None = None
    reason: str | None = None
    shadow_share: float | None = None
    shadow_rule: ShadowRule | None = None
    shadow_result: Mapping[str, Any] | None = None
    parent: int | None = None
    data_profile: Mapping[str, Any] | None = None

    @property
    def label(self) -> str:
        """Name and version, as exposures record them: ``als/3``."""
        return f"{self.name}/{self.version}"

    @property
    def configuration_digest(self) -> str:
        """SHA-256 of recommender and parameters, hexadecimal."""
        content = json.dumps([self.recommender, self.parameters], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def _model_version(row: Row[Any]) -> ModelVersion:
    rule = row.shadow_rule
    return ModelVersion(
        **{
            **row._asdict(),
            "status": ModelStatus(row.status),
            "shadow_rule": None if rule is None else ShadowRule.parse(rule),
        }
    )


def lock_model(connection: Connection, name: str) -> None:
    """Let whoever changes the versions of this name wait until the transaction ends."""
    # Another training may be writing its lists under this lock, for longer than the
    # engine lets a statement wait.
    connection.execute(text("SET LOCAL lock_timeout = '10min'"))
    connection.execute(text("SET LOCAL statement_timeout = '10min'"))
    lock_for_transaction(connection, f"model:{name}")


def next_version(connection: Connection, name: str) -> int:
    """Return the number of the next version of a name.

    It stays the next one until the transaction ends, as it holds `lock_model`.
    """
    lock_model(connection, name)
    version = schema.model_version.c
    newest = connection.scalar(
        select(func.max(version.version)).where(version.name == name)
    )
    return (newest or 0) + 1


def insert_version(
    connection: Connection,
    *,
    name: str,
    recommender: str,
    parameters: Mapping[str, Any],
    metrics: Mapping[str, Any],
    checklist: Sequence[Mapping[str, Any]],
    data_from: datetime,
    data_to: datetime,
    data_digest: str,
    code_version: str,
    artifact: str,
    sha256: str,
    now: datetime,
    parent: int | None = None,
    data_profile: Mapping[str, Any] | None = None,
) -> ModelVersion:
    """Store a candidate; its number is that of `next_version`.

    Raises
    ------
    InvalidRequest
        When the name is not a key.
    """
    row = connection.execute(
        insert(schema.model_version)
        .values(
            name=check_key("model name", name),
            version=next_version(connection, name),
            recommender=recommender,
            parameters=dict(parameters),
            metrics=dict(metrics),
            checklist=[dict(check) for check in checklist],
            data_from=data_from,
            data_to=data_to,
            data_digest=data_digest,
            code_version=code_version,
            artifact=artifact,
            sha256=sha256,
            status=ModelStatus.CANDIDATE,
            created_at=now,
            parent=parent,
            data_profile=None if data_profile is None else dict(data_profile),
        )
        .returning(schema.model_version)
    ).one()
    return _model_version(row)


def decide(
    connection: Connection,
    version_id: int,
    status: ModelStatus,
    *,
    decided_by: str,
    reason: str,
    now: datetime,
    share: float | None = None,
    rule: ShadowRule | None = None,
) -> ModelVersion:
    """Give a version its next status, with an audit row.

    A candidate may be rejected, shadow or live; a shadow live, rejected, or shadow with
    another share; a live one retired; a retired one live again. What becomes live
    retires its predecessor.

    Parameters
    ----------
    share : float, optional
        Share of units whose requests a shadow gets, above 0 and at most 1; given for a
        shadow only.
    rule : ShadowRule, optional
        What decides on the shadow; people do when left out.

    Raises
    ------
    InvalidRequest
        When the share of a shadow is missing or out of range.
    NotFound
        When there is no such version.
    InvalidState
        When its present status does not lead there.
    Conflict
        When another transaction made a version of that name live meanwhile.
    """
    version = _locked(connection, version_id)
    if status not in _NEXT[version.status]:
        raise InvalidState(
            f"model version {version.label} is {version.status} and can't become "
            f"{status}; from there it can become {known(_NEXT[version.status])}"
        )
    shadow = _shadow_values(version, status, share, rule)
    former = live_version(connection, version.name)
    if status is ModelStatus.LIVE and former is not None:
        replaced = f"replaced by {version.label}"
        _set_status(
            connection, former, ModelStatus.RETIRED, decided_by, replaced, now=now
        )
    decided = _set_status(
        connection, version, status, decided_by, reason, now=now, **shadow
    )
    live = live_version(connection, version.name)
    record_audit(
        connection,
        actor=decided_by,
        action=f"set_{status}",
        subject=f"model/{version.name}",
        before=_summary(version, former),
        after=_summary(decided, live),
        reason=reason,
    )
    if live != former or ModelStatus.SHADOW in (version.status, status):
        notify_change(connection)
    return decided


def _shadow_values(
    version: ModelVersion,
    status: ModelStatus,
    share: float | None,
    rule: ShadowRule | None,
) -> dict[str, Any]:
    """Return what a decision stores about the shadow; what it was decided by stays."""
    if status is ModelStatus.SHADOW:
        return {
            "shadow_share": check_share(share),
            "shadow_rule": None if rule is None else rule.document(),
        }
    if share is not None or rule is not None:
        raise InvalidRequest(
            f"share and rule are for a shadow; {version.label} is to become {status}",
            field="share",
        )
    return {"shadow_share": None}


def set_live(
    connection: Connection,
    version_id: int,
    *,
    decided_by: str,
    reason: str,
    now: datetime,
) -> ModelVersion:
    """Let a version serve and retire its predecessor; `decide` with status live."""
    return decide(
        connection,
        version_id,
        ModelStatus.LIVE,
        decided_by=decided_by,
        reason=reason,
        now=now,
    )


def keep_shadow_result(
    connection: Connection, version_id: int, result: Mapping[str, Any]
) -> None:
    """Store how a shadow compared; its answers may then be removed."""
    connection.execute(
        update(schema.model_version)
        .where(schema.model_version.c.id == version_id)
        .values(shadow_result=dict(result))
    )


def _locked(connection: Connection, version_id: int) -> ModelVersion:
    """Return a version; decisions on its name wait until the transaction ends."""
    question = select(schema.model_version).where(
        schema.model_version.c.id == version_id
    )
    row = connection.execute(question).one_or_none()
    if row is None:
        raise NotFound(f"model version with id {version_id} does not exist")
    lock_model(connection, row.name)
    return _model_version(connection.execute(question.with_for_update()).one())


def live_version(connection: Connection, name: str) -> ModelVersion | None:
    """Return the version of a model that serves, if one does."""
    version = schema.model_version
    row = connection.execute(
        select(version).where(
            version.c.name == name, version.c.status == ModelStatus.LIVE
        )
    ).one_or_none()
    return None if row is None else _model_version(row)


def _set_status(
    connection: Connection,
    version: ModelVersion,
    status: ModelStatus,
    decided_by: str,
    reason: str,
    *,
    now: datetime,
    **shadow: object,
) -> ModelVersion:
    try:
        row = connection.execute(
            update(schema.model_version)
            .where(schema.model_version.c.id == version.id)
            .values(
                status=status,
                decided_by=decided_by,
                decided_at=now,
                reason=reason,
                **shadow,
            )
            .returning(schema.model_version)
        ).one()
    except IntegrityError as error:
        if violated_constraint(error) == _UQ_LIVE:
            raise Conflict(
                f"another version of model {version.name!r} became live meanwhile; "
                "look at the versions and try again"
            ) from error
        raise
    return _model_version(row)


def _summary(version: ModelVersion, live: ModelVersion | None) -> dict[str, Any]:
    summary = {
        "version": version.version,
        "status": version.status,
        "live": None if live is None else live.version,
    }
    if version.status is ModelStatus.SHADOW:
        rule = version.shadow_rule
        summary["share"] = version.shadow_share
        summary["rule"] = None if rule is None else rule.document()
    return summary


def get_version(connection: Connection, name: str, version: int) -> ModelVersion:
    """Return a version.

    Raises
    ------
    NotFound
        Lists the versions of that name, or the names.
    """
    versions = list_versions(connection, name)
    for each in versions:
        if each.version == version:
            return each
    listed = ", ".join(str(each.version) for each in versions)
    raise NotFound(
        f"model {name!r} has no version {version}; versions: {listed}", field="version"
    )


def list_versions(
    connection: Connection, name: str | None = None
) -> list[ModelVersion]:
    """Return the versions of one model or all, by name, the newest first.

    Raises
    ------
    NotFound
        When there is no model of the name given; lists the names.
    """
    version = schema.model_version
    question = select(version).order_by(version.c.name, version.c.version.desc())
    if name is not None:
        question = question.where(version.c.name == name)
    versions = [_model_version(row) for row in connection.execute(question)]
    if name is not None and not versions:
        names = connection.scalars(select(version.c.name).distinct()).all()
        raise NotFound(
            f"model {name[:80]!r} does not exist; models: {known(names)}", field="name"
        )
    return versions


def statuses(connection: Connection) -> frozenset[tuple[int, str]]:
    """Return the status of every version, by its id."""
    version = schema.model_version.c
    rows = connection.execute(select(version.id, version.status))
    return frozenset((row.id, row.status) for row in rows)


def list_artifacts(connection: Connection, name: str, *, former: int) -> set[str]:
    """Return the folders of a model's versions that serve, may serve, or did lately.

    Parameters
    ----------
    former : int
        How many of the retired versions, those that served last. The one that a roll
        back leads to is among them, if there is one, whatever the number.
    """
    versions = list_versions(connection, name) if _exists(connection, name) else []
    rejected_or_retired = (ModelStatus.REJECTED, ModelStatus.RETIRED)
    kept = {v.artifact for v in versions if v.status not in rejected_or_retired}
    retired = [v for v in versions if v.status is ModelStatus.RETIRED]
    retired.sort(key=lambda v: (v.decided_at or v.created_at, v.version), reverse=True)
    kept |= {v.artifact for v in retired[:former]}
    target = rollback_target(versions)
    return kept if target is None else kept | {target.artifact}


def _exists(connection: Connection, name: str) -> bool:
    version = schema.model_version.c
    return bool(connection.scalar(select(exists().where(version.name == name))))


def rollback_target(versions: Sequence[ModelVersion]) -> ModelVersion | None:
    """Return the version that a roll back without a number leads to, if there is one.

    That is the newest retired one, of those before the live one if one is.

    Parameters
    ----------
    versions : sequence of ModelVersion
        All of one model, the newest first.
    """
    live = [each for each in versions if each.status is ModelStatus.LIVE]
    for each in versions:
        is_before = not live or each.version < live[0].version
        if is_before and each.status is ModelStatus.RETIRED:
            return each
    return None


def live_models(connection: Connection) -> dict[str, LiveModel]:
    """Return what serves, by name."""
    version = schema.model_version.c
    rows = connection.execute(
        select(
            version.name,
            version.version,
            version.artifact,
            version.sha256,
            version.data_to,
            version.data_digest,
        )
        .where(version.status == ModelStatus.LIVE)
        .order_by(version.name)
    )
    return {row.name: LiveModel(**row._asdict()) for row in rows}
