"""What the commands share: the database, who acts and when, how results are shown."""

import getpass
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from sqlalchemy import Engine

from experiment_service.config import Settings
from experiment_service.errors import InvalidRequest
from experiment_service.storage.database import (
    check_migrated,
    create_engine,
    reading_engine,
    running_database,
)


@contextmanager
def open_engine(settings: Settings) -> Iterator[Engine]:
    """Open the database, embedded or not, with its schema checked."""
    with running_database(settings.database_url, settings.data_dir) as url:
        engine = create_engine(url, pool_size=2, name="cli")
        try:
            check_migrated(engine)
            yield engine
        finally:
            engine.dispose()


@contextmanager
def open_reader(settings: Settings) -> Iterator[Engine]:
    """Open the database to read only, by the reading role when there is one."""
    with reading_engine(settings.reading_url, settings.data_dir, name="cli") as engine:
        yield engine


def actor() -> str:
    """Name the operator for the audit log."""
    return f"cli:{getpass.getuser()}"


def clock() -> datetime:
    """Read the clock."""
    return datetime.now(UTC)


def print_json(document: object) -> None:
    """Print a document as JSON."""
    print(json.dumps(document, indent=2, ensure_ascii=False, default=str))


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows in columns as wide as they must be."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def pairs(name: str, pairs: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=VALUE`` pairs; a name may hold ``=``, a value may not.

    Raises
    ------
    InvalidRequest
        When one can't be read.
    """
    read = {}
    for pair in pairs:
        left, equals, right = pair.rpartition("=")
        if not equals or not left:
            raise InvalidRequest(f"{name} {pair!r} can't be read; write NAME=VALUE")
        read[left] = right
    return read


def json_object(name: str, text: str) -> dict[str, object]:
    """Read an option that is a JSON object.

    Raises
    ------
    InvalidRequest
        When it is not one.
    """
    try:
        read = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{name} {text!r} is not JSON: {error}") from error
    if not isinstance(read, dict):
        raise InvalidRequest(f"{name} {text!r} must be a JSON object")
    return read


def instant(name: str, text: str) -> datetime:
    """Read an instant; UTC when it has no time zone.

    Raises
    ------
    InvalidRequest
        When it is not ISO 8601.
    """
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"{name} {text!r} is not a time; write 2017-12-01 or an ISO 8601 instant"
        ) from None
    return read if read.tzinfo else read.replace(tzinfo=UTC)
