"""Commands about the MLflow mirror: bring it up to date, take a version from it."""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from experiment_service.cli.common import actor, clock, open_engine
from experiment_service.config import Settings, tracking_uri, variables
from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.errors import ExperimentServiceError, InvalidRequest
from experiment_service.lazy import LazyModule

if TYPE_CHECKING:
    from experiment_service.mirroring import importing, mirror
else:
    # The first loads what recommenders are made of.
    importing = LazyModule("experiment_service.mirroring.importing")
    mirror = LazyModule("experiment_service.mirroring.mirror")

log = logging.getLogger(__name__)

#: Seconds to wait for a mirror that was begun by another process.
_PATIENCE_SECONDS = 300.0


def add_mirrors(commands: Any) -> None:  # noqa: ANN401 - argparse names no type
    """Add the commands."""
    brought = commands.add_parser("mirror", help="bring the MLflow mirror up to date")
    brought.add_argument("name", nargs="?", help="of a model; all when left out")
    brought.set_defaults(command=_mirror)
    taken = commands.add_parser(
        "import-model", help="take a version from MLflow, as a candidate"
    )
    taken.add_argument("source", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    taken.add_argument("--name", help="of the model here; the one it had if left out")
    taken.add_argument("--tracking-uri", help="of another server than the mirror's")
    taken.set_defaults(command=_import)


def mirror_stored(settings: Settings, engine: Engine, name: str) -> None:
    """Mirror a model of which a version was just stored, if there is a mirror.

    Whatever fails is a warning: the version is stored, and the mirror can be brought up
    to date later.
    """
    if settings.mlflow_tracking_uri is None:
        return
    try:
        _bring(settings, engine, name)
    except ExperimentServiceError as error:
        _warn(name, error.message)
    except Exception as error:  # what is stored is stored
        log.debug("mirror failed", exc_info=True)
        _warn(name, repr(error))


def _bring(
    settings: Settings, engine: Engine, name: str | None
) -> Sequence["mirror.Mirrored"]:
    """Bring the mirror up to date, all of it or one model."""
    return mirror.mirror(
        engine,
        uri=_uri(settings, None),
        data_dir=settings.data_dir,
        pseudonyms=Pseudonyms(settings.unit_key),
        name=name,
        patience=_PATIENCE_SECONDS,
    )


def _warn(name: str, reason: str) -> None:
    log.warning(
        "not mirrored model=%s reason=%s; `experiment-service mirror` does it later",
        name,
        reason,
    )


def _mirror(settings: Settings, parsed: argparse.Namespace) -> None:
    _uri(settings, None)  # before a database is looked for
    with open_engine(settings) as engine:
        mirrored = _bring(settings, engine, parsed.name)
    for each in mirrored:
        print(
            f"{each.name}: runs made {each.runs}, versions registered "
            f"{each.versions}, changes followed {each.changes}"
        )
    if not mirrored:
        print("no models yet; run `experiment-service train`")


def _import(settings: Settings, parsed: argparse.Namespace) -> None:
    uri = _uri(settings, parsed.tracking_uri)
    with open_engine(settings) as engine:
        version = importing.import_version(
            engine,
            parsed.source,
            name=parsed.name,
            uri=uri,
            data_dir=settings.data_dir,
            pseudonyms=Pseudonyms(settings.unit_key),
            actor=actor(),
            now=clock(),
            progress=lambda text: print(text, file=sys.stderr),
        )
    print(f"{version.label}: {version.status}")


def _uri(settings: Settings, given: str | None) -> str:
    if given is not None:
        try:
            return tracking_uri(given)
        except ValueError as error:
            raise InvalidRequest(
                f"--tracking-uri is set, but not well; {error}"
            ) from error
    if settings.mlflow_tracking_uri is None:
        raise InvalidRequest(
            f"there is no tracking server; set {variables()['mlflow_tracking_uri']} "
            "to its address"
        )
    return settings.mlflow_tracking_uri
