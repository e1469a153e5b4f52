"""From lists to a version that serves or was rejected.

One transaction numbers, publishes and decides. A process that dies before its end leaves
a folder that the database does not know; the next training of that name removes it.
"""

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine

from experiment_service.domain.shadow import ShadowRule
from experiment_service.errors import Unavailable
from experiment_service.storage import models
from experiment_service.storage.database import transaction
from experiment_service.storage.models import MODELS, ModelStatus, ModelVersion
from recommenders.checklist import Check, Previous
from recommenders.folders import PARTIAL_SUFFIX
from recommenders.interactions import FloatArray, IntArray, Interactions
from recommenders.lists import PublishedLists, is_open
from recommenders.publishing import publish_lists

log = logging.getLogger(__name__)

#: Former versions whose lists stay on disk, to be rolled back to.
KEPT_VERSIONS = 5

#: Units whose lists are compared with those of the version that serves, about.
COMPARED_UNITS = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CandidateLists:
    """Item rows, padded with -1: per unit, for strangers, and per item if known.

    And what put each item into the list of its unit, as of `recommenders.base.Lists`;
    None where it was the recommender itself throughout. And the scores of related items,
    with how much the items of a session count, where sessions can be scored by them.
    """

    units: IntArray
    default: IntArray
    related: IntArray | None
    sources: NDArray[np.int8] | None
    labels: tuple[str, ...]
    related_scores: FloatArray | None
    session_fade: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """All that a training made; fields as of `ModelVersion`, and what to publish."""

    name: str
    recommender: str
    parameters: Mapping[str, Any]
    metrics: Mapping[str, Any]
    checks: Sequence[Check]
    data_from: datetime
    data_to: datetime
    data_digest: str
    data_profile: Mapping[str, Any]
    code_version: str
    parent: int | None
    data: Interactions
    lists: CandidateLists


def store_version(
    engine: Engine,
    candidate: Candidate,
    *,
    data_dir: Path,
    actor: str,
    now: datetime,
    keep: int = KEPT_VERSIONS,
    share: float | None = None,
    rule: ShadowRule | None = None,
) -> ModelVersion:
    """Let a candidate serve if all its checks passed, else store why it does not.

    Parameters
    ----------
    keep : int
        Former versions of the model, at least 1, whose lists stay on disk.
    share, rule : float, ShadowRule, optional
        Given a share of units, it begins as shadow, and the rule decides on it.

    Raises
    ------
    Unavailable
        When the lists can't be written or the database does not answer.
    """
    failed = [str(check) for check in candidate.checks if not check.passed]
    with transaction(engine) as connection:
        number = models.next_version(connection, candidate.name)
        artifact, sha256 = "", ""
        try:
            _sweep(connection, data_dir, candidate.name, keep)
            if not failed:
                artifact = f"{MODELS}/{candidate.name}/{number}"
                sha256 = _publish(candidate, number, data_dir / artifact)
        except OSError as error:
            raise Unavailable(
                f"{error}; make room or make it writable, then train again"
            ) from error
        stored = models.insert_version(
            connection,
            name=candidate.name,
            recommender=candidate.recommender,
            parameters=candidate.parameters,
            metrics=candidate.metrics,
            checklist=[_check_document(check) for check in candidate.checks],
            data_from=candidate.data_from,
            data_to=candidate.data_to,
            data_digest=candidate.data_digest,
            code_version=candidate.code_version,
            artifact=artifact,
            sha256=sha256,
            now=now,
            parent=candidate.parent,
            data_profile=candidate.data_profile,
        )
        status = ModelStatus.LIVE if share is None else ModelStatus.SHADOW
        return models.decide(
            connection,
            stored.id,
            ModelStatus.REJECTED if failed else status,
            decided_by=actor,
            reason="; ".join(failed) or "every check passed",
            now=now,
            share=None if failed else share,
            rule=None if failed else rule,
        )


def serving_version(engine: Engine, name: str) -> ModelVersion | None:
    """Return the version of a model that serves, if one does."""
    with transaction(engine) as connection:
        return models.live_version(connection, name)


def open_lists(version: ModelVersion, data_dir: Path) -> PublishedLists | None:
    """Map the lists of a version; None, and a warning, where they can't be read."""
    try:
        return PublishedLists.open(data_dir / version.artifact)
    except ValueError as error:
        log.warning("not compared model=%s reason=%s", version.label, error)
        return None


def live_lists(
    live: ModelVersion,
    data_dir: Path,
    recommender: str,
    parameters: Mapping[str, Any],
    *,
    data: Interactions,
) -> Previous | None:
    """Return lists of the version that serves, where a new one should be like it.

    That is where both are of one recommender, with the same parameters and re-ranking;
    None elsewhere, and where the lists can't be read: to be trained again is the cure.
    """
    if live.recommender != recommender:
        return None
    same = ("recommender", "reranking", "depth", "exclude_seen")
    if any(live.parameters.get(key) != parameters[key] for key in same):
        return None
    lists = open_lists(live, data_dir)
    if lists is None:
        return None
    step = max(1, len(data.units) // COMPARED_UNITS)
    rows, made = [], []
    for row in range(0, len(data.units), step):
        items = lists.for_unit(data.units.ids[row])
        if items is not None:
            padded = np.full(lists.depth, -1, dtype=np.int32)
            padded[: len(items)] = data.items.rows(items)
            rows.append(row)
            made.append(padded)
    if not rows:
        return None
    return Previous(rows=np.array(rows, dtype=np.int32), lists=np.stack(made))


def _check_document(check: Check) -> dict[str, Any]:
    value = check.value if math.isfinite(check.value) else None
    return {**asdict(check), "value": value, "passed": check.passed}


def _publish(candidate: Candidate, number: int, directory: Path) -> str:
    catalogue = candidate.data.catalogue
    sha256 = publish_lists(
        directory,
        name=candidate.name,
        version=number,
        unit_ids=candidate.data.units.ids,
        lists=candidate.lists.units,
        item_ids=candidate.data.items.ids,
        default=candidate.lists.default,
        related=candidate.lists.related,
        item_names=None if catalogue is None else catalogue.names,
        sources=candidate.lists.sources,
        labels=candidate.lists.labels,
        related_scores=candidate.lists.related_scores,
        session_fade=candidate.lists.session_fade,
    )
    PublishedLists.open_verified(directory, sha256)
    return sha256


def _sweep(connection: Connection, data_dir: Path, name: str, keep: int) -> None:
    """Remove what crashed trainings and rejected versions left, and old versions.

    A folder stays that serves or may serve: of a live version, a shadow or a candidate,
    of the last `keep` that served, and any that a process of this machine has open.
    """
    folder = data_dir / MODELS / name
    if not folder.is_dir():
        return
    kept = models.list_artifacts(connection, name, former=keep)
    for path in folder.iterdir():
        ours = path.name.isdecimal() or path.name.endswith(PARTIAL_SUFFIX)
        if ours and f"{MODELS}/{name}/{path.name}" not in kept and not is_open(path):
            log.info("removed lists folder=%s", path)
            shutil.rmtree(path)
