"""The command `train`."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from experiment_service import training
from experiment_service.cli.common import (
    actor,
    clock,
    instant,
    json_object,
    open_engine,
)
from experiment_service.cli.mirrors import mirror_stored
from experiment_service.config import Settings
from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.errors import InvalidRequest, InvalidState
from experiment_service.storage.models import ModelStatus
from experiment_service.version import code_version
from recommenders import RECOMMENDERS


def add_models(commands: Any) -> None:  # noqa: ANN401 - argparse names no type
    """Add the command."""
    train = commands.add_parser("train", help="train, check and publish recommenders")
    train.add_argument("recommender", nargs="+", help="; ".join(RECOMMENDERS))
    source = train.add_mutually_exclusive_group(required=True)
    source.add_argument("--interactions", type=Path, help="CSV or Parquet; see README")
    source.add_argument(
        "--complete-journey", action="store_true", help="the demo's retail data"
    )
    train.add_argument("--catalogue", type=Path, help="CSV or Parquet; see README")
    train.add_argument("--cut", help="train on what lies before this day (ISO 8601)")
    train.add_argument("--name", help="model name; the recommender's when left out")
    train.add_argument("--parameters", default="{}", help="JSON object")
    train.add_argument(
        "--reranking", type=Path, help="YAML or JSON list of steps; see docs"
    )
    train.add_argument("--depth", type=int, default=50, help="items per list")
    train.add_argument(
        "--exclude-seen", action="store_true", help="leave out what a unit had before"
    )
    train.add_argument("--seed", type=int, default=0)
    train.add_argument(
        "--keep", type=int, default=5, help="former versions whose lists stay on disk"
    )
    train.set_defaults(command=_train)


def _train(settings: Settings, parsed: argparse.Namespace) -> None:
    parameters = json_object("--parameters", parsed.parameters)
    if parsed.name is not None and len(parsed.recommender) > 1:
        raise InvalidRequest("--name is for one recommender; train them one by one")
    interactions = training.load_interactions(
        parsed.interactions,
        catalogue=parsed.catalogue,
        cut=None if parsed.cut is None else instant("--cut", parsed.cut),
    )
    if settings.unit_key is not None:
        interactions = training.pseudonymised(
            interactions, Pseudonyms(settings.unit_key)
        )
    catalogue = _catalogue(parsed, interactions)
    reranking = () if parsed.reranking is None else _steps(parsed.reranking)
    rejected = []
    with open_engine(settings) as engine:
        for recommender in parsed.recommender:
            version = training.train(
                engine,
                data_dir=settings.data_dir,
                interactions=interactions,
                recommender=recommender,
                parameters=parameters,
                catalogue=catalogue,
                reranking=reranking,
                name=parsed.name,
                depth=parsed.depth,
                exclude_seen=parsed.exclude_seen,
                seed=parsed.seed,
                keep=parsed.keep,
                now=clock(),
                code_version=code_version(),
                actor=actor(),
                progress=lambda text: print(text, file=sys.stderr),
            )
            print(f"{version.label}: {version.status} ({version.reason})")
            mirror_stored(settings, engine, version.name)
            if version.status is ModelStatus.REJECTED:
                rejected.append(version.label)
    if rejected:
        raise InvalidState(
            f"{', '.join(rejected)} failed the checks; what served before still serves"
        )


def _catalogue(
    parsed: argparse.Namespace, interactions: pd.DataFrame
) -> pd.DataFrame | None:
    if parsed.catalogue is None and not parsed.complete_journey:
        return None
    return training.load_catalogue(parsed.catalogue, interactions=interactions)


def _steps(path: Path) -> list[dict[str, object]]:
    try:
        steps = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidRequest(f"--reranking {path} can't be read: {error}") from error
    if not isinstance(steps, list):
        raise InvalidRequest(f"--reranking {path} must hold a list of steps")
    return steps
