"""Snapshot: the configuration with its published lists opened, ready to answer from.

A snapshot is a value that never changes; `keeper` swaps in the next one. The module
reads and writes the copy on disk, and knows neither database nor threads.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from experiment_service.domain.configuration import (
    Configuration,
    LiveModel,
    RunningExperiment,
    ShadowModel,
    configuration_document,
    parse_configuration,
)
from experiment_service.domain.experiment import (
    AssignmentMode,
    Epoch,
    Experiment,
    Variant,
)
from experiment_service.errors import ExperimentServiceError
from experiment_service.files import open_private
from recommenders.lists import PublishedLists

log = logging.getLogger(__name__)

_COPY = "snapshot.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedExperiment:
    """A running experiment with what each request looks up in it.

    Attributes
    ----------
    epochs : mapping of int to Epoch
        The recent ones by number.
    current : Epoch
        The one in force.
    sticky : bool
        Whether a unit keeps the epoch of its first exposure.
    """

    experiment: Experiment
    epochs: Mapping[int, Epoch]
    current: Epoch
    variants: Mapping[str, Variant]
    sticky: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenShadow:
    """A shadow with its lists, or with what is wrong with them.

    Attributes
    ----------
    version_id : int
        Of the registry.
    label : str
        Such as ``als/4``.
    share : float
        Of units whose requests it gets.
    """

    version_id: int
    label: str
    share: float
    lists: PublishedLists | None
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that answers come from.

    Attributes
    ----------
    experiments : mapping of str to ServedExperiment
        Running experiments by key.
    by_placement : mapping of str to tuple of ServedExperiment
        The same by placement, in the order of their keys.
    lists : mapping of str to PublishedLists
        Opened lists by the name of the model.
    problems : mapping of str to str
        What is wrong with a live model, by name; its former lists serve meanwhile.
    shadows : mapping of str to tuple of OpenShadow
        Versions that are computed beside the live one, by the name of the model.
    """

    configuration: Configuration
    experiments: Mapping[str, ServedExperiment]
    by_placement: Mapping[str, tuple[ServedExperiment, ...]]
    lists: Mapping[str, PublishedLists] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    shadows: Mapping[str, tuple[OpenShadow, ...]] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether all lists that the configuration names could be opened."""
        return not self.problems and not any(
            shadow.problem for each in self.shadows.values() for shadow in each
        )


def build_snapshot(
    configuration: Configuration, data_dir: Path, previous: Snapshot | None = None
) -> Snapshot:
    """Open what a configuration names.

    Lists that `previous` has open are not opened again. A model whose folder is missing
    or damaged keeps the lists it had, if any, and is named in `problems`.
    """
    experiments = {
        key: _served(running) for key, running in sorted(configuration.running.items())
    }
    by_placement: dict[str, tuple[ServedExperiment, ...]] = {}
    for served in experiments.values():
        placement = served.experiment.declaration.placement
        by_placement[placement] = (*by_placement.get(placement, ()), served)
    lists, problems = _open_lists(configuration.models, data_dir, previous)
    shadows: dict[str, tuple[OpenShadow, ...]] = {}
    for shadow in configuration.shadows:
        name = shadow.model.name
        opened = _open_shadow(shadow, data_dir, previous)
        shadows[name] = (*shadows.get(name, ()), opened)
    return Snapshot(
        configuration=configuration,
        experiments=experiments,
        by_placement=by_placement,
        lists=lists,
        problems=problems,
        shadows=shadows,
    )


def _open_shadow(
    shadow: ShadowModel, data_dir: Path, previous: Snapshot | None
) -> OpenShadow:
    lists = _open_before(previous).get(shadow.model.sha256)
    opened = lists or _open(shadow.model, data_dir)
    return OpenShadow(
        version_id=shadow.version_id,
        label=shadow.model.label,
        share=shadow.share,
        lists=opened if isinstance(opened, PublishedLists) else None,
        problem=f"its lists can't be opened: {opened}"
        if isinstance(opened, str)
        else None,
    )


def _open_before(previous: Snapshot | None) -> dict[str, PublishedLists]:
    """Return all lists that are open, by digest."""
    if previous is None:
        return {}
    shadows = (shadow.lists for each in previous.shadows.values() for shadow in each)
    open_lists = [*previous.lists.values(), *filter(None, shadows)]
    return {lists.sha256: lists for lists in open_lists}


def _served(running: RunningExperiment) -> ServedExperiment:
    declaration = running.experiment.declaration
    return ServedExperiment(
        experiment=running.experiment,
        epochs=running.epochs,
        current=running.current,
        variants={variant.key: variant for variant in declaration.variants},
        sticky=declaration.mode is AssignmentMode.STICKY,
    )


def _open_lists(
    models: Mapping[str, LiveModel], data_dir: Path, previous: Snapshot | None
) -> tuple[dict[str, PublishedLists], dict[str, str]]:
    former = previous.lists if previous else {}
    known = previous.problems if previous else {}
    before = _open_before(previous)
    lists: dict[str, PublishedLists] = {}
    problems: dict[str, str] = {}
    for name, model in models.items():
        if model.sha256 in before:
            lists[name] = before[model.sha256]
            continue
        if name in former:
            lists[name] = former[name]
        opened = _open(model, data_dir)
        if isinstance(opened, PublishedLists):
            lists[name] = opened
            log.info("model opened model=%s units=%d", model.label, opened.units)
            continue
        problems[name] = f"model {model.label} can't be opened: {opened}"
        if known.get(name) != problems[name]:
            serving = f"{name}/{lists[name].version}" if name in lists else None
            log.error(
                "model not opened model=%s serving=%s error=%s",
                model.label,
                serving,
                opened,
            )
    return lists, problems


def _open(model: LiveModel, data_dir: Path) -> PublishedLists | str:
    """Return the lists of a version, or what is wrong with them."""
    try:
        # Verified once, here: a damaged row would fail in the middle of an answer.
        return PublishedLists.open_verified(data_dir / model.artifact, model.sha256)
    except (ValueError, OSError) as error:
        return str(error)


def write_copy(configuration: Configuration, data_dir: Path) -> None:
    """Write the copy that a start without database reads; whole or not at all.

    Raises
    ------
    OSError
        When it can't be written; the former copy stays.
    """
    content = json.dumps(configuration_document(configuration), indent=1).encode()
    partial = data_dir / f".{_COPY}.{os.getpid()}-{uuid4().hex}"
    try:
        with open_private(partial) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(data_dir / _COPY)
    finally:
        partial.unlink(missing_ok=True)


def read_copy(data_dir: Path) -> Configuration | None:
    """Return the copy on disk; None, with a log line, when there is no good one."""
    path = data_dir / _COPY
    if not path.exists():
        return None
    try:
        return parse_configuration(json.loads(path.read_bytes()))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ExperimentServiceError,
    ):
        log.exception("snapshot copy not readable path=%s", path)
        return None
