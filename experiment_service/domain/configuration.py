"""Configuration: all that serving must know, as one immutable value.

Every serving process holds one in memory and a copy on disk, so that it can answer, and
start, without the database.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from experiment_service.domain.declaration import (
    declaration_document,
    parse_declaration,
)
from experiment_service.domain.event import AttributeValue
from experiment_service.domain.experiment import (
    Epoch,
    EpochSegment,
    Experiment,
    ExperimentState,
)
from experiment_service.domain.key import ApiKey, key_record, parse_key_record
from experiment_service.errors import NotFound, known

#: Epochs kept per experiment, for sticky units and prefetched exposures.
RECENT_EPOCHS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A place that shows a carousel, and what it shows outside experiments."""

    key: str
    recommender: str
    settings: Mapping[str, AttributeValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveModel:
    """The version of a model that serves.

    Attributes
    ----------
    artifact, sha256 : str
        Folder of its lists, and the digest of their manifest.
    data_to : datetime or None
        Last interaction of its training data; None in a copy that did not have it yet.
    data_digest : str
        SHA-256 of the training data.
    """

    name: str
    version: int
    artifact: str
    sha256: str
    data_to: datetime | None = None
    data_digest: str = ""

    @property
    def label(self) -> str:
        """Name and version, as exposures record them: ``als/3``."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowModel:
    """A version that is computed beside the live one for a share of units."""

    version_id: int
    model: LiveModel
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningExperiment:
    """A running experiment and its epochs by number, the current one last."""

    experiment: Experiment
    epochs: Mapping[int, Epoch]

    @property
    def current(self) -> Epoch:
        """The epoch in force."""
        return self.epochs[max(self.epochs)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """Placements, running experiments, and live models, by key or name.

    Attributes
    ----------
    states : mapping of str to str
        State of every experiment, also of those that do not run.
    loaded_at : datetime
        When it was read from the database.
    keys : mapping of str to ApiKey
        Every API key by id, also those that are refused; without the days of use.
    erased : frozenset of str
        Digests, hexadecimal, of units that were erased lately; see `storage.erasure`.
    oldest_id : UUID or None
        Events with a smaller id belong to months that were retired; None takes all.
    shadows : tuple of ShadowModel
        Versions that are computed beside the live ones, by name and version.
    """

    placements: Mapping[str, Placement]
    running: Mapping[str, RunningExperiment]
    states: Mapping[str, str]
    models: Mapping[str, LiveModel]
    loaded_at: datetime
    keys: Mapping[str, ApiKey] = field(default_factory=dict)
    erased: frozenset[str] = frozenset()
    oldest_id: UUID | None = None
    shadows: tuple[ShadowModel, ...] = ()

    def placement(self, key: str) -> Placement:
        """Return a placement.

        Raises
        ------
        NotFound
            Lists the placements that exist.
        """
        if key not in self.placements:
            raise NotFound(
                f"placement {key[:80]!r} does not exist; placements: "
                f"{known(self.placements)}",
                field="placement",
            )
        return self.placements[key]

    def experiments_of(self, placement: str) -> list[RunningExperiment]:
        """Return the running experiments of a placement, by key."""
        return [
            each
            for _, each in sorted(self.running.items())
            if each.experiment.declaration.placement == placement
        ]

    def experiment(self, key: str) -> RunningExperiment | None:
        """Return an experiment if it runs, None if it exists but does not.

        Raises
        ------
        NotFound
            Lists the experiments that exist.
        """
        if key not in self.states:
            raise NotFound(
                f"experiment {key[:80]!r} does not exist; experiments: "
                f"{known(self.states)}",
                field="experiment",
            )
        return self.running.get(key)


def _instant(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone(UTC).isoformat()


def _parse_instant(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value)


def epoch_document(epoch: Epoch) -> dict[str, Any]:
    """Write an epoch as a JSON document."""
    return {
        "number": epoch.number,
        "weights": dict(epoch.weights),
        "segments": segments_document(epoch),
        "floor": epoch.floor,
        "control_share": epoch.control_share,
        "statistics": epoch.statistics,
        "cutoff": _instant(epoch.cutoff),
        "policy": epoch.policy,
        "seed": epoch.seed,
        "reason": epoch.reason,
        "started_at": _instant(epoch.started_at),
    }


def segments_document(epoch: Epoch) -> dict[str, Any] | None:
    """Write the segments of an epoch as a JSON document, None without any."""
    if epoch.segments is None:
        return None
    return {
        name: {"weights": dict(each.weights), "statistics": each.statistics}
        for name, each in epoch.segments.items()
    }


def parse_segments(
    document: Mapping[str, Any] | None,
) -> dict[str, EpochSegment] | None:
    """Read what `segments_document` wrote."""
    if document is None:
        return None
    return {name: EpochSegment(**each) for name, each in document.items()}


def parse_epoch(document: Mapping[str, Any]) -> Epoch:
    """Read what `epoch_document` wrote."""
    return Epoch(
        **{
            **document,
            # A copy on disk may be of a version that had no segments.
            "segments": parse_segments(document.get("segments")),
            "cutoff": _parse_instant(document["cutoff"]),
            "started_at": datetime.fromisoformat(document["started_at"]),
        }
    )


def experiment_document(experiment: Experiment) -> dict[str, Any]:
    """Write a stored experiment as a JSON document."""
    return {
        "id": experiment.id,
        "declaration": declaration_document(experiment.declaration),
        "state": experiment.state.value,
        "layer_salt": experiment.layer_salt,
        "traffic_salt": experiment.traffic_salt,
        "variant_salt": experiment.variant_salt,
        "created_at": _instant(experiment.created_at),
        "started_at": _instant(experiment.started_at),
        "stopped_at": _instant(experiment.stopped_at),
    }


def parse_experiment(document: Mapping[str, Any]) -> Experiment:
    """Read what `experiment_document` wrote."""
    return Experiment(
        id=document["id"],
        declaration=parse_declaration(document["declaration"]),
        state=ExperimentState(document["state"]),
        layer_salt=document["layer_salt"],
        traffic_salt=document["traffic_salt"],
        variant_salt=document["variant_salt"],
        created_at=datetime.fromisoformat(document["created_at"]),
        started_at=_parse_instant(document["started_at"]),
        stopped_at=_parse_instant(document["stopped_at"]),
    )


def configuration_document(configuration: Configuration) -> dict[str, Any]:
    """Write a configuration as a JSON document, for the copy on disk."""
    return {
        "placements": [
            {"key": p.key, "recommender": p.recommender, "settings": dict(p.settings)}
            for p in configuration.placements.values()
        ],
        "running": [
            {
                "experiment": experiment_document(each.experiment),
                "epochs": [epoch_document(epoch) for epoch in each.epochs.values()],
            }
            for each in configuration.running.values()
        ],
        "states": dict(configuration.states),
        "models": [_model_document(each) for each in configuration.models.values()],
        "loaded_at": _instant(configuration.loaded_at),
        "keys": [key_record(key) for key in configuration.keys.values()],
        "erased": sorted(configuration.erased),
        "oldest_id": configuration.oldest_id and str(configuration.oldest_id),
        "shadows": [
            {**asdict(shadow), "model": _model_document(shadow.model)}
            for shadow in configuration.shadows
        ],
    }


def _model_document(model: LiveModel) -> dict[str, Any]:
    return {**asdict(model), "data_to": _instant(model.data_to)}


def _parse_model(document: Mapping[str, Any]) -> LiveModel:
    return LiveModel(**{**document, "data_to": _parse_instant(document.get("data_to"))})


def parse_configuration(document: Mapping[str, Any]) -> Configuration:
    """Read what `configuration_document` wrote."""
    running: dict[str, RunningExperiment] = {}
    for each in document["running"]:
        experiment = parse_experiment(each["experiment"])
        epochs = [parse_epoch(epoch) for epoch in each["epochs"]]
        running[experiment.key] = RunningExperiment(
            experiment=experiment, epochs={epoch.number: epoch for epoch in epochs}
        )
    return Configuration(
        placements={p["key"]: Placement(**p) for p in document["placements"]},
        running=running,
        states=document["states"],
        models={m["name"]: _parse_model(m) for m in document["models"]},
        loaded_at=datetime.fromisoformat(document["loaded_at"]),
        # A copy on disk may be of a version that had none of these.
        keys={k["id"]: parse_key_record(k) for k in document.get("keys", ())},
        erased=frozenset(document.get("erased", ())),
        oldest_id=UUID(oldest) if (oldest := document.get("oldest_id")) else None,
        shadows=tuple(
            ShadowModel(**{**s, "model": _parse_model(s["model"])})
            for s in document.get("shadows", ())
        ),
    )
