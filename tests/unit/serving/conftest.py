"""A small shop in memory and on disk, without a database."""

from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest

from experiment_service.domain.configuration import (
    Configuration,
    LiveModel,
    Placement,
    RunningExperiment,
)
from experiment_service.domain.declaration import parse_declaration
from experiment_service.domain.experiment import Epoch, Experiment, ExperimentState
from experiment_service.serving.snapshot import build_snapshot
from experiment_service.serving.sticky import StickyStore
from recommenders.publishing import publish_lists

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ITEMS = [f"i{number}" for number in range(10)]


def publish(data_dir, name, version=1, *, units, default, related=None, **labelled):
    """Publish hand-written lists of rows of `ITEMS`; return the live model."""
    depth = len(default)
    table = None
    if related is not None:
        table = np.full((len(ITEMS), depth), -1, dtype=np.int32)
        for item, row in related.items():
            table[item, : len(row)] = row
    lists = np.full((len(units), depth), -1, dtype=np.int32)
    for index, row in enumerate(units.values()):
        lists[index, : len(row)] = row
    artifact = f"models/{name}/{version}"
    digest = publish_lists(
        data_dir / artifact,
        name=name,
        version=version,
        unit_ids=list(units),
        lists=lists,
        item_ids=ITEMS,
        default=np.array(default, dtype=np.int32),
        related=table,
        **labelled,
    )
    return LiveModel(name=name, version=version, artifact=artifact, sha256=digest)


def epoch(number, weights, **more):
    return Epoch(number=number, weights=weights, reason="test", started_at=NOW, **more)


def running(key, *, number=1, epochs=None, **changes):
    """A running A/B test of `popularity` (old) and `als` (new), half and half."""
    declared = parse_declaration(
        {
            "key": key,
            "kind": "ab",
            "placement": "home",
            "variants": [
                {"key": "old", "recommender": "popularity", "control": True},
                {"key": "new", "recommender": "als", "settings": {"title": "You"}},
            ],
            **changes,
        }
    )
    experiment = Experiment(
        id=number,
        declaration=declared,
        state=ExperimentState.RUNNING,
        layer_salt=f"layer:{declared.layer}",
        traffic_salt=f"traffic:{key}",
        variant_salt=f"variant:{key}",
        created_at=NOW,
        started_at=NOW,
    )
    given = epochs or [epoch(0, {"old": 0.5, "new": 0.5})]
    return RunningExperiment(
        experiment=experiment, epochs={each.number: each for each in given}
    )


BANDIT = {"kind": "bandit", "policy": {"name": "thompson"}}


@pytest.fixture
def shop(tmp_path):
    """Helpers around a data directory: publish, configure, build a snapshot."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()

    def configuration(*experiments, models=()):
        return Configuration(
            placements={
                "home": Placement(
                    key="home", recommender="popularity", settings={"title": "Top"}
                )
            },
            running={each.experiment.key: each for each in experiments},
            states={each.experiment.key: "running" for each in experiments}
            | {"done": "stopped"},
            models={model.name: model for model in models},
            loaded_at=NOW,
        )

    def snapshot(*experiments, models=(), previous=None):
        return build_snapshot(
            configuration(*experiments, models=models), data_dir, previous
        )

    return SimpleNamespace(
        data_dir=data_dir,
        configuration=configuration,
        snapshot=snapshot,
        publish=lambda name, *rest, **more: publish(data_dir, name, *rest, **more),
    )


@pytest.fixture
def sticky(tmp_path):
    store = StickyStore(tmp_path / "sticky.sqlite")
    yield store
    store.close()
