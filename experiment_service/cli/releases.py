"""Commands about pipelines: release one, describe them to editors."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from experiment_service import training
from experiment_service.cli.common import (
    actor,
    clock,
    open_engine,
    print_json,
    print_table,
)
from experiment_service.cli.mirrors import mirror_stored
from experiment_service.config import Settings
from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.errors import (
    Conflict,
    InvalidRequest,
    InvalidState,
    Unavailable,
)
from experiment_service.version import code_version

#: Exit status of what a later try may mend; that of sysexits.h.
TRY_AGAIN = 75


def add_releases(commands: Any) -> None:  # noqa: ANN401 - argparse names no type
    """Add the commands."""
    release = commands.add_parser(
        "release",
        help="take a pipeline from data to a version that serves",
        epilog="Exit status: 0 released, 2 refused or rejected, 75 when a later try "
        "may do, as something was down; what served before then still serves.",
    )
    release.add_argument(
        "pipeline",
        type=Path,
        help="file, or name of one in EXPERIMENT_SERVICE_PIPELINES",
    )
    release.add_argument("--market", help="of the pipeline's; all when left out")
    release.add_argument(
        "--dry-run", action="store_true", help="check the data, say what would follow"
    )
    release.add_argument(
        "--scheduled",
        action="store_true",
        help="as the worker does: at low priority, and so named in the audit log",
    )
    release.set_defaults(command=_release)
    schema = commands.add_parser(
        "pipeline-schema", help="print the JSON Schema of pipelines, for editors"
    )
    schema.set_defaults(command=_schema)


def _release(settings: Settings, parsed: argparse.Namespace) -> None:
    path = _path(settings, parsed.pipeline)
    pipeline = training.read_pipeline(path)
    markets = pipeline.markets_of(parsed.market)
    releases = []
    if parsed.scheduled:
        os.nice(10)
    try:
        with open_engine(settings) as engine:
            around = training.Surroundings(
                engine=engine,
                folder=path.parent,
                data_dir=settings.data_dir,
                pseudonyms=Pseudonyms(settings.unit_key) if settings.unit_key else None,
                now=clock(),
                code_version=code_version(),
                actor="worker" if parsed.scheduled else actor(),
                progress=lambda text: print(text, file=sys.stderr),
            )
            for market in markets:
                made = training.release(
                    pipeline, market, around, dry_run=parsed.dry_run
                )
                _print(made)
                if made.version is not None:
                    mirror_stored(settings, engine, made.name)
                releases.append(made)
    except Unavailable as error:
        _try_again(error.message)
    failed = [each for each in releases if each.error is not None]
    if any(isinstance(each.error, Unavailable | Conflict) for each in failed):
        _try_again("; ".join(f"{each.name}: {each.error}" for each in failed))
    if failed:
        names = ", ".join(each.name for each in failed)
        raise InvalidState(f"not released: {names}; what served before still serves")


def _path(settings: Settings, given: Path) -> Path:
    """Return the file: the one given, or the one of that name in the folder."""
    if given.is_file() or settings.pipelines is None:
        return given
    for ending in ("", ".yaml", ".yml"):
        path = settings.pipelines / f"{given}{ending}"
        if path.is_file():
            return path
    raise InvalidRequest(
        f"pipeline {given} is no file, and there is none of that name in "
        f"{settings.pipelines}"
    )


def _print(made: training.Release) -> None:
    print(f"release of {made.name}")
    print_table(
        ("STEP", "VERDICT", "SECONDS", ""),
        [
            (each.name, each.verdict, f"{each.seconds:.1f}", each.said)
            for each in made.steps
        ],
    )
    if made.version is not None:
        print(f"{made.version.label}: {made.version.status}")
    print(f"serving: {made.serving or 'nothing yet'}")


def _try_again(message: str) -> NoReturn:
    print(f"experiment-service: {message}", file=sys.stderr)
    raise SystemExit(TRY_AGAIN)


def _schema(_: Settings, __: argparse.Namespace) -> None:
    print_json(training.pipeline_schema())
