"""Promotion: a version becomes a shadow, serves, is rejected, or serves again.

One transaction checks, decides and writes the audit. What can't serve is refused with
its reason, and what served before still serves.
"""

import logging
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, Engine

from experiment_service.analysis.shadow import judge
from experiment_service.domain.shadow import ShadowRule
from experiment_service.errors import InvalidState
from experiment_service.storage import models
from experiment_service.storage.database import each_alone, transaction
from experiment_service.storage.models import ModelStatus, ModelVersion
from experiment_service.storage.shadow_sums import (
    count_answers,
    remove_answers,
    sum_answers,
)
from recommenders.lists import PublishedLists

log = logging.getLogger(__name__)

#: Who decides by the rule of a shadow, in the audit.
RULE = "rule"


def set_shadow(
    connection: Connection,
    *,
    data_dir: Path,
    name: str,
    version: int,
    share: float,
    rule: ShadowRule | None,
    actor: str,
    reason: str,
    now: datetime,
) -> ModelVersion:
    """Compute a version beside the live one for a share of units, or another share.

    Raises
    ------
    NotFound
        When there is no such model or version.
    InvalidRequest
        When the share is out of range.
    InvalidState
        When a check of it failed, its lists are damaged, or it is past being a shadow.
    """
    target = _checked(connection, data_dir, name, version, "be a shadow")
    return models.decide(
        connection,
        target.id,
        ModelStatus.SHADOW,
        decided_by=actor,
        reason=reason,
        now=now,
        share=share,
        rule=rule,
    )


def promote(
    connection: Connection,
    *,
    data_dir: Path,
    name: str,
    version: int,
    actor: str,
    reason: str,
    now: datetime,
) -> ModelVersion:
    """Let a candidate or a shadow serve, after reading every byte of its lists.

    Raises
    ------
    NotFound
        When there is no such model or version.
    InvalidState
        When a check of it failed, its lists are damaged, or it is neither.
    """
    target = _checked(connection, data_dir, name, version, "serve")
    if target.status is ModelStatus.RETIRED:
        raise InvalidState(
            f"model version {target.label} is retired; roll back to let it serve again"
        )
    return _settle(
        connection, target, ModelStatus.LIVE, actor=actor, reason=reason, now=now
    )


def reject(
    connection: Connection,
    *,
    name: str,
    version: int,
    actor: str,
    reason: str,
    now: datetime,
) -> ModelVersion:
    """End a candidate or a shadow for ever; nothing that serves changes.

    Raises
    ------
    NotFound
        When there is no such model or version.
    InvalidState
        When it is neither.
    """
    models.lock_model(connection, name)
    target = models.get_version(connection, name, version)
    return _settle(
        connection, target, ModelStatus.REJECTED, actor=actor, reason=reason, now=now
    )


def roll_back(
    connection: Connection,
    *,
    data_dir: Path,
    name: str,
    version: int | None = None,
    actor: str,
    reason: str,
    now: datetime,
) -> ModelVersion:
    """Let a former version serve again, after reading every byte of its lists.

    Parameters
    ----------
    version : int, optional
        A retired one; the newest retired before the live one when left out.

    Raises
    ------
    NotFound
        When there is no such model or version.
    InvalidState
        When the version is not retired, there is none, or its lists are damaged.
    """
    models.lock_model(connection, name)
    if version is None:
        target = _former(models.list_versions(connection, name))
    else:
        target = models.get_version(connection, name, version)
    if target.status is not ModelStatus.RETIRED:
        raise InvalidState(
            f"model version {target.label} is {target.status}; only a retired one can "
            "serve again"
        )
    _verify(data_dir, target, "serve again")
    return models.set_live(
        connection, target.id, decided_by=actor, reason=reason, now=now
    )


def _former(versions: Sequence[ModelVersion]) -> ModelVersion:
    target = models.rollback_target(versions)
    if target is None:
        live = [each for each in versions if each.status is ModelStatus.LIVE]
        raise InvalidState(
            f"model {versions[0].name!r} has no retired version"
            + (f" before {live[0].label}" if live else "")
            + "; there is nothing to go back to"
        )
    return target


def _checked(
    connection: Connection, data_dir: Path, name: str, version: int, what: str
) -> ModelVersion:
    """Return a version whose checks passed and whose lists are whole."""
    models.lock_model(connection, name)
    target = models.get_version(connection, name, version)
    failed = [str(check["name"]) for check in target.checklist if not check["passed"]]
    if failed:
        raise InvalidState(
            f"{target.label} can't {what}: it failed {', '.join(failed)}"
        )
    _verify(data_dir, target, what)
    return target


def _verify(data_dir: Path, version: ModelVersion, what: str) -> None:
    if not version.artifact:
        raise InvalidState(f"{version.label} can't {what}: it was never published")
    if not (data_dir / version.artifact).is_dir():
        raise InvalidState(
            f"{version.label} can't {what}: its lists are not in "
            f"{data_dir / version.artifact}; they were published elsewhere, or removed "
            "as newer versions had served since. Train it again"
        )
    try:
        PublishedLists.open_verified(data_dir / version.artifact, version.sha256)
    except ValueError as error:
        raise InvalidState(f"{version.label} can't {what}: {error}") from error


def _settle(
    connection: Connection,
    version: ModelVersion,
    status: ModelStatus,
    *,
    actor: str,
    reason: str,
    now: datetime,
) -> ModelVersion:
    """Decide on a version; how a shadow compared stays with it."""
    if version.status is ModelStatus.SHADOW:
        sums = sum_answers(connection, version.id)
        models.keep_shadow_result(connection, version.id, sums.document())
    return models.decide(
        connection, version.id, status, decided_by=actor, reason=reason, now=now
    )


def judge_shadows(engine: Engine, now: datetime) -> None:
    """Promote or reject each shadow that has answered enough for its rule.

    Serving processes have read every byte of its lists by then. Answers of shadows that
    were decided on are removed.

    Raises
    ------
    Exception
        The last failure, after all others were tried.
    """
    with transaction(engine) as connection:
        ruled = {
            version.label: version
            for version in models.list_versions(connection)
            if version.status is ModelStatus.SHADOW and version.shadow_rule is not None
        }
    try:
        each_alone(
            engine,
            ruled,
            lambda connection, _, version: _judge(connection, version, now),
            failed=partial(log.exception, "shadow not judged model=%s"),
        )
    finally:
        left = True
        while left:
            with transaction(engine) as connection:
                left = remove_answers(connection)


def _judge(connection: Connection, shadow: ModelVersion, now: datetime) -> None:
    models.lock_model(connection, shadow.name)
    version = models.get_version(connection, shadow.name, shadow.version)
    rule = version.shadow_rule
    if version.status is not ModelStatus.SHADOW or rule is None:
        return  # somebody was first
    if count_answers(connection, version.id) < rule.answers:
        return
    checks = judge(sum_answers(connection, version.id), rule)
    failed = [str(check) for check in checks if not check.passed]
    decided = _settle(
        connection,
        version,
        ModelStatus.REJECTED if failed else ModelStatus.LIVE,
        actor=RULE,
        reason="; ".join(failed)
        or f"kept every threshold of its rule in {rule.answers} answers or more",
        now=now,
    )
    log.info(
        "shadow decided model=%s status=%s reason=%s",
        decided.label,
        decided.status,
        decided.reason,
    )
