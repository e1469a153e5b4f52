"""A version taken from a tracking server: checked to the last byte, then a candidate here.

What comes is arrays and JSON that a mirror of this service wrote; nothing of it is ever
executed or unpickled.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from experiment_service.domain.event import check_id
from experiment_service.domain.experiment import check_key
from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.errors import InvalidRequest, Unavailable
from experiment_service.files import sync_directory
from experiment_service.mirroring.document import (
    SHA256,
    VersionDocument,
    digest,
    read_document,
    units_of,
)
from experiment_service.mirroring.mirror import DOCUMENT, LISTS
from experiment_service.mirroring.tracking import connect, known_failures
from experiment_service.storage import models
from experiment_service.storage.database import held_alone, transaction
from experiment_service.storage.experiments import record_audit
from experiment_service.storage.models import MODELS, ModelVersion
from recommenders import build_recommender
from recommenders.data_checks import DataProfile
from recommenders.list_format import MANIFEST, manifest_files
from recommenders.lists import PublishedLists
from recommenders.publishing import relabel
from recommenders.rerank import build_steps

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

#: Folder of what is being taken, below the data directory; no model has such a name.
IMPORTS = f"{MODELS}/.imports"

#: Downloads a file by its path in the version into a folder.
_Fetch = Callable[[str, Path], Path]

_SOURCE = re.compile(r"models:/([^/@:]+)(?:@([^/@:]+)|/([1-9]\d*))")


def import_version(
    engine: Engine,
    source: str,
    *,
    name: str | None = None,
    uri: str,
    data_dir: Path,
    pseudonyms: Pseudonyms,
    actor: str,
    now: datetime,
    progress: Callable[[str], None] = log.debug,
) -> ModelVersion:
    """Store a version of a tracking server as a candidate, which serves nobody yet.

    Parameters
    ----------
    source : str
        ``models:/name@alias`` or ``models:/name/version``, as MLflow has them; of a
        version that a mirror registered.
    name : str, optional
        Of the model here; the one it had where it was trained when left out.
    pseudonyms : Pseudonyms
        Of this installation; its lists must be of units as they are known here.
    progress : callable
        Told each step in a few words.

    Raises
    ------
    NotFound
        When there is no such version.
    InvalidRequest
        When it was not registered by a mirror, is damaged, of units known otherwise, or
        of a recommender that is not known here. Nothing is stored.
    Conflict
        When another import is running.
    Unavailable
        When the server or the database does not answer, or there is no room.
    """
    _parts(source)
    if name is not None:
        check_key("model name", name)
    client = connect(uri)
    with held_alone(engine, "import of a version"):
        # What an import left that was killed; this is the only one.
        folder = data_dir / IMPORTS
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
            progress(f"downloading {source}")
            with known_failures(uri):
                fetch, content = _find(client, source, folder, uri=uri)
                document = read_document(content, source=source)
                _check_document(document, source, pseudonyms)
                lists = _download_lists(fetch, folder, source)
            progress(f"checking {source}")
            _check_lists(lists, document, source)
            return _store(
                engine,
                document,
                lists,
                source=source,
                name=name or document.name,
                data_dir=data_dir,
                actor=actor,
                now=now,
            )
        except OSError as error:
            raise Unavailable(
                f"{source} can't be imported: {error}; make room in {data_dir} or make "
                "it writable, then import again"
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _parts(source: str) -> tuple[str, str | None, str | None]:
    """Return name, alias and number; one of the last two is there."""
    matched = _SOURCE.fullmatch(source)
    if matched is None:
        raise InvalidRequest(
            f"source {source[:200]!r} is no version; it must be models:/NAME@ALIAS or "
            "models:/NAME/VERSION"
        )
    name, alias, number = matched.groups()
    return name, alias, number


def _find(
    client: "MlflowClient", source: str, folder: Path, *, uri: str
) -> tuple[_Fetch, bytes]:
    """Return what downloads a file of the version, and its document as registered."""
    from mlflow.artifacts import download_artifacts  # noqa: PLC0415 - takes seconds

    registered, alias, number = _parts(source)
    found = (
        client.get_model_version_by_alias(registered, alias)
        if alias
        else client.get_model_version(registered, number)
    )
    expected = found.tags.get(SHA256)
    if expected is None:
        raise InvalidRequest(
            f"{source} can't be imported: it has no tag {SHA256}, so no mirror of this "
            "service registered it"
        )
    origin = client.get_model_version_download_uri(registered, found.version)

    def fetch(path: str, into: Path) -> Path:
        given = f"{origin.rstrip('/')}/{path}"
        options = {"tracking_uri": uri, "registry_uri": uri}
        download_artifacts(artifact_uri=given, dst_path=str(into), **options)
        return into / Path(path).name

    content = fetch(DOCUMENT, folder).read_bytes()
    if digest(content) != expected:
        raise InvalidRequest(
            f"{source} can't be imported: its document has SHA-256 {digest(content)}, "
            f"not {expected}; it was changed after it was registered"
        )
    return fetch, content


def _download_lists(fetch: _Fetch, folder: Path, source: str) -> Path:
    """Download the manifest of the lists and the files that it names, and no others."""
    lists = folder / LISTS
    fetch(f"{LISTS}/{MANIFEST}", lists)
    with _as_refusal(source):
        files = manifest_files(lists)
    for file in files:
        fetch(f"{LISTS}/{file}", lists)
    return lists


@contextmanager
def _as_refusal(source: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, InvalidRequest) as error:
        raise InvalidRequest(f"{source} can't be imported: {error}") from error


def _check_document(
    document: VersionDocument, source: str, pseudonyms: Pseudonyms
) -> None:
    """Check that its lists can be used here, and that it can be compared with."""
    if document.units != units_of(pseudonyms):
        raise InvalidRequest(
            f"{source} can't be imported: its lists are of units under another "
            "EXPERIMENT_SERVICE_UNIT_KEY, or none; nobody here would find a list"
        )
    with _as_refusal(source):
        check_key("model name", document.name)
        parameters = document.parameters.get("recommender")
        if not isinstance(parameters, dict):
            raise TypeError("the parameters of its recommender are not stored")
        build_recommender(document.recommender, parameters)
        build_steps(document.parameters.get("reranking", ()))
        if document.data_profile is not None:
            DataProfile(**document.data_profile)


def _check_lists(lists: Path, document: VersionDocument, source: str) -> None:
    """Check every byte, and what a training takes care of in its own lists."""
    with _as_refusal(source):
        opened = PublishedLists.open_verified(lists, document.sha256)
        for item in opened.check_content():
            check_id("item_id", item)


def _store(
    engine: Engine,
    document: VersionDocument,
    lists: Path,
    *,
    source: str,
    name: str,
    data_dir: Path,
    actor: str,
    now: datetime,
) -> ModelVersion:
    """Give it a number, move its lists and store it, in one transaction."""
    _flush(lists)
    with transaction(engine) as connection:
        number = models.next_version(connection, name)
        artifact = f"{MODELS}/{name}/{number}"
        directory = data_dir / artifact
        # The database knows no such version: somebody was killed before its commit.
        shutil.rmtree(directory, ignore_errors=True)
        sha256 = relabel(lists, name=name, version=number)
        directory.parent.mkdir(parents=True, exist_ok=True)
        lists.rename(directory)
        try:
            sync_directory(directory.parent)
            stored = models.insert_version(
                connection,
                name=name,
                recommender=document.recommender,
                parameters=document.parameters,
                metrics=document.metrics,
                checklist=document.checklist,
                data_from=document.data_from,
                data_to=document.data_to,
                data_digest=document.data_digest,
                code_version=document.code_version,
                artifact=artifact,
                sha256=sha256,
                now=now,
                data_profile=document.data_profile,
            )
            record_audit(
                connection,
                actor=actor,
                action="import_version",
                subject=f"model/{name}",
                after={
                    "version": number,
                    "status": stored.status,
                    "source": source,
                    "of": f"{document.name}/{document.version}",
                    "sha256": document.sha256,
                },
            )
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
    log.info("imported model=%s source=%s", stored.label, source)
    return stored


def _flush(folder: Path) -> None:
    """Bring what was downloaded to the disk, before the database says it is there."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_directory(folder)
