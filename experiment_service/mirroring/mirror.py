"""The mirror: what the registry has and a tracking server lacks is brought there.

Looks at both sides and does what is missing, so it may end anywhere and be run again:
nothing is there twice. Of a version there is a run with parameters, metrics and tags, and
once its lists are at hand, a version of the registered model with the lists.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.errors import Conflict, InvalidState
from experiment_service.mirroring.document import (
    KEY,
    SHA256,
    digest,
    facts_of,
    key_of,
    metrics_of,
    parameters_of,
    standing_of,
    units_of,
    write_document,
)
from experiment_service.mirroring.tracking import all_pages, connect, known_failures
from experiment_service.storage.database import held_alone, transaction
from experiment_service.storage.models import ModelStatus, ModelVersion, list_versions
from recommenders.lists import PublishedLists

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

#: Folder among the artifacts of a run that a registered version consists of.
ARTIFACT = "model"
DOCUMENT = "version.json"
LISTS = "lists"

#: Statuses that are aliases too; each points at the newest version that has it.
ALIASES = (ModelStatus.LIVE, ModelStatus.SHADOW, ModelStatus.CANDIDATE)

_FINISHED = "FINISHED"

#: Most parameters that MLflow takes at once; it takes more of all else.
_BATCH = 100

_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrored:
    """What was missing on the tracking server of one model, and is there now.

    Attributes
    ----------
    runs, versions : int
        Runs and registered versions that were made.
    changes : int
        Versions whose status had changed, and aliases that had.
    """

    name: str
    runs: int
    versions: int
    changes: int


def mirror(
    engine: Engine,
    *,
    uri: str,
    data_dir: Path,
    pseudonyms: Pseudonyms,
    name: str | None = None,
    patience: float = 0.0,
) -> list[Mirrored]:
    """Bring a tracking server up to date with the registry.

    Parameters
    ----------
    uri : str
        Address of the tracking server.
    data_dir : Path
        Versions whose lists are not below it have a run, and are registered once they
        are mirrored from where their lists are.
    pseudonyms : Pseudonyms
        Of this installation.
    name : str, optional
        Of one model; all when left out.
    patience : float
        Seconds to wait for another mirror to end.

    Raises
    ------
    NotFound
        When there is no model of that name.
    InvalidRequest
        When MLflow is not installed.
    InvalidState
        When an experiment of ours was deleted there.
    Conflict
        When another mirror is running for longer.
    Unavailable
        When the server or the database does not answer, or refuses. What was done
        stays; run it again.
    """
    client = connect(uri)
    with _alone(engine, patience), known_failures(uri):
        with transaction(engine) as connection:
            versions = list_versions(connection, name)
        by_name: dict[str, list[ModelVersion]] = {}
        for version in reversed(versions):
            by_name.setdefault(version.name, []).append(version)
        units = units_of(pseudonyms)
        return [
            _mirror_model(client, each, data_dir=data_dir, units=units)
            for _, each in sorted(by_name.items())
        ]


@contextmanager
def _alone(engine: Engine, patience: float) -> Iterator[None]:
    """Hold the lock of mirrors; two at once would make everything twice."""
    deadline = time.monotonic() + patience
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(held_alone(engine, "mirror"))
                break
            except Conflict:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_LOOK_SECONDS)
        yield


def _mirror_model(
    client: "MlflowClient",
    versions: Sequence[ModelVersion],
    *,
    data_dir: Path,
    units: str,
) -> Mirrored:
    """Mirror the versions of one model, given the oldest first."""
    name = versions[0].name
    experiment = _experiment(client, f"experiment-service/{name}")
    runs = {
        run.data.tags[KEY]: run
        for run in all_pages(client.search_runs, [experiment])
        if KEY in run.data.tags
    }
    registered = {
        each.tags[KEY]: each
        for each in all_pages(client.search_model_versions, f"name = '{name}'")
        if KEY in each.tags
    }
    made_runs = made_versions = changes = 0
    for version in versions:
        key = key_of(version)
        run = runs.get(key)
        if run is None or run.info.status != _FINISHED:
            run = _log_run(client, experiment, version, run, units=units)
            made_runs += 1
        changed = _outdated(version, run.data.tags)
        for tag, value in changed.items():
            client.set_tag(run.info.run_id, tag, value)
        there = registered.get(key)
        if there is None:
            there = _register(client, run, version, data_dir, units=units)
            if there is None:
                continue
            registered[key] = there
            made_versions += 1
        behind = _outdated(version, there.tags)
        for tag, value in behind.items():
            client.set_model_version_tag(name, there.version, tag, value)
        changes += bool(changed or behind)
    changes += _set_aliases(client, versions, registered)
    return Mirrored(name=name, runs=made_runs, versions=made_versions, changes=changes)


def _experiment(client: "MlflowClient", name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name))
    if found.lifecycle_stage != "active":
        raise InvalidState(
            f"experiment {name!r} was deleted on the tracking server; restore it there, "
            "or let `mlflow gc` remove it for good"
        )
    return str(found.experiment_id)


def _log_run(
    client: "MlflowClient",
    experiment: str,
    version: ModelVersion,
    begun: Any,  # noqa: ANN401 - a run of MLflow, or None
    *,
    units: str,
) -> Any:  # noqa: ANN401
    """Log a run to its end; one that was begun before is gone on with."""
    from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415 - takes seconds

    made_at = int(version.created_at.timestamp() * 1000)
    run = begun or client.create_run(
        experiment, made_at, {KEY: key_of(version)}, run_name=version.label
    )
    run_id = run.info.run_id
    # Of one instant, so that what is logged again is the same.
    metrics = [Metric(k, v, made_at, 0) for k, v in metrics_of(version).items()]
    params = [Param(k, v) for k, v in parameters_of(version).items()]
    tags = facts_of(version) | standing_of(version)
    for start in range(0, max(len(metrics), len(params)), _BATCH):
        batch = slice(start, start + _BATCH)
        client.log_batch(run_id, metrics=metrics[batch], params=params[batch])
    client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
    document = write_document(version, units=units)
    client.log_text(run_id, document, f"{ARTIFACT}/{DOCUMENT}")
    client.set_terminated(run_id, _FINISHED, made_at)
    return client.get_run(run_id)


def _register(
    client: "MlflowClient",
    run: Any,  # noqa: ANN401 - a run of MLflow
    version: ModelVersion,
    data_dir: Path,
    *,
    units: str,
) -> Any:  # noqa: ANN401
    """Upload lists and register them; None where they are not here, or damaged."""
    folder = data_dir / version.artifact
    if not version.artifact or not folder.is_dir():
        return None
    try:
        # Held open, so that no training removes the folder meanwhile.
        lists = PublishedLists.open_verified(folder, version.sha256)
    except ValueError as error:
        log.warning("not mirrored model=%s reason=%s", version.label, error)
        return None
    run_id = run.info.run_id
    client.log_artifacts(run_id, str(lists.directory), f"{ARTIFACT}/{LISTS}")
    # Again, as the digest is of this one.
    document = write_document(version, units=units)
    client.log_text(run_id, document, f"{ARTIFACT}/{DOCUMENT}")
    _make_registered_model(client, version.name)
    return client.create_model_version(
        version.name,
        source=f"{run.info.artifact_uri}/{ARTIFACT}",
        run_id=run_id,
        tags={
            **facts_of(version),
            **standing_of(version),
            SHA256: digest(document.encode()),
        },
        description=f"Version {version.label} of Experiment Service",
        await_creation_for=None,
    )


def _make_registered_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - takes seconds

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _outdated(version: ModelVersion, tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a version that are not as they should be."""
    return {k: v for k, v in standing_of(version).items() if tags.get(k) != v}


def _set_aliases(
    client: "MlflowClient",
    versions: Sequence[ModelVersion],
    registered: Mapping[str, Any],
) -> int:
    """Let each alias point where it should, or go; return how many changed."""
    if not registered:
        return 0
    name = versions[0].name
    there = client.get_registered_model(name).aliases
    # The oldest come first, so the newest of a status stays.
    newest = {version.status: registered.get(key_of(version)) for version in versions}
    changes = 0
    for status in ALIASES:
        wanted, alias = newest.get(status), str(status)
        if wanted is not None and there.get(alias) != str(wanted.version):
            client.set_registered_model_alias(name, alias, str(wanted.version))
        elif wanted is None and alias in there:
            client.delete_registered_model_alias(name, alias)
        else:
            continue
        changes += 1
    return changes
