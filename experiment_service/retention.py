"""Retention: months of raw events that are old enough are archived, and dropped.

A month goes only when no event can count with it any more and its outcomes hold what its
rows say; it is archived whole or not at all, and dropped whole or not at all.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Connection, Engine

from experiment_service.domain.event import MAX_AGE
from experiment_service.errors import Conflict, Unavailable
from experiment_service.files import (
    make_private_directory,
    open_private,
    sync_directory,
)
from experiment_service.storage import retention as storage
from experiment_service.storage.database import transaction
from experiment_service.storage.events import lock_events
from experiment_service.storage.experiments import record_audit

log = logging.getLogger(__name__)

#: How long an event that was accepted may have waited in a journal; one that waited
#: longer, and belongs to a month that is gone, is set aside there.
GRACE = timedelta(days=7)

_TYPES: Mapping[type, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    list: pa.list_(pa.string()),
    datetime: pa.timestamp("us", tz="UTC"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a month may go.

    Attributes
    ----------
    month : date
        Its first day.
    size_bytes : int
        What it takes on disk.
    goes : bool
    reason : str
        Why, or why not.
    """

    month: date
    size_bytes: int
    goes: bool
    reason: str

    @property
    def name(self) -> str:
        """The month, such as ``2026-01``."""
        return f"{self.month:%Y-%m}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """A table of a month in a file.

    Attributes
    ----------
    file : str
        Its path.
    rows : int
    sha256 : str
        Of the file, hexadecimal.
    """

    file: str
    rows: int
    sha256: str


def judge_months(
    connection: Connection, *, days: int | None, now: datetime
) -> Iterator[Verdict]:
    """Yield the months that are kept, oldest first, and whether each may go.

    Months go in their order: ids below the oldest month that is kept are refused, so
    that none comes twice.

    Parameters
    ----------
    days : int or None
        How old every event of a month must be; None keeps all.
    """
    held: str | None = None
    for each in storage.list_months(connection):
        reason = held or _obstacle(connection, each, days, now)
        yield Verdict(
            month=each.month,
            size_bytes=each.size_bytes,
            goes=reason is None,
            reason=reason or f"all of it is older than {days} days, and safe",
        )
        if reason is not None and held is None:
            held = f"{each.month:%Y-%m} comes before it"


def _obstacle(
    connection: Connection, each: storage.StoredMonth, days: int | None, now: datetime
) -> str | None:
    if days is None:
        return "EXPERIMENT_SERVICE_RETENTION_DAYS is not set"
    old_at = each.end + timedelta(days=days)
    if now < old_at:
        return f"it is old enough on {old_at:%Y-%m-%d}"
    closed = storage.closed_until(connection, each.month)
    if closed is not None and now <= closed + MAX_AGE + GRACE:
        safe_at = closed + MAX_AGE + GRACE
        return f"late events can count with its events until {safe_at:%Y-%m-%d}"
    gaps = storage.outcome_gaps(connection, each.month)
    if gaps:
        return (
            f"{gaps} rows of outcomes hold less than its events say; run "
            "`experiment-service rebuild-outcomes`"
        )
    return None


def retire_months(
    engine: Engine,
    *,
    days: int | None,
    archive_dir: Path | None,
    actor: str,
    now: datetime,
) -> list[Verdict]:
    """Archive and drop every month that may go, each on its own; return them.

    Parameters
    ----------
    days : int or None
        See `judge_months`.
    archive_dir : Path or None
        Where Parquet files of the rows go; None keeps no copy.

    Raises
    ------
    Conflict
        When events of a month came or went while it was archived, or another file has
        its name; the month stays as it is.
    Unavailable
        When a file can't be written; likewise.
    """
    retired: list[Verdict] = []
    while True:
        verdict = _retire_next(engine, days, archive_dir, actor, now)
        if verdict is None:
            return retired
        retired.append(verdict)


def _retire_next(
    engine: Engine,
    days: int | None,
    archive_dir: Path | None,
    actor: str,
    now: datetime,
) -> Verdict | None:
    reading = engine.execution_options(isolation_level="REPEATABLE READ")
    with ExitStack() as stack:
        # What is judged is what is archived: one snapshot of the database.
        with transaction(reading) as connection:
            verdict = next(judge_months(connection, days=days, now=now), None)
            if verdict is None:
                return None
            if not verdict.goes:
                log.info("month stays month=%s reason=%s", verdict.name, verdict.reason)
                return None
            month = verdict.month
            closed = storage.closed_until(connection, month)
            seen = storage.fingerprints(connection, month)
            drafts = []
            if archive_dir is not None:
                for name in (name for name, each in seen.items() if each.rows):
                    draft = _Draft(archive_dir, name, month)
                    stack.callback(draft.discard)
                    draft.write(connection)
                    drafts.append(draft)
        with transaction(engine) as connection:
            lock_events(connection)
            if storage.fingerprints(connection, month) != seen:
                raise Conflict(
                    f"events of {verdict.name} came, or were erased, while it was being "
                    "archived; it is kept, and the next run tries again"
                )
            archive = {draft.table: asdict(draft.publish()) for draft in drafts}
            storage.retire_month(
                connection,
                month,
                closed=closed or _start_of(month),
                archive=archive or None,
            )
            record_audit(
                connection,
                actor=actor,
                action="retire",
                subject=f"events of {verdict.name}",
                after={
                    "rows": {name: each.rows for name, each in seen.items()},
                    "archive": archive or None,
                },
            )
    log.info("retired month=%s archived=%s", verdict.name, archive_dir is not None)
    return verdict


def _start_of(month: date) -> datetime:
    return datetime(month.year, month.month, 1, tzinfo=UTC)


class _Draft:
    """A file that is written and read again before it gets its name."""

    def __init__(self, directory: Path, table: str, month: date) -> None:
        self.table = table
        self._month = month
        self._path = directory / f"{table}_{month:%Y_%m}.parquet"
        self._partial = directory / f".{self._path.name}.{uuid4().hex}.partial"
        self._rows = 0
        self._sha256 = ""

    def write(self, connection: Connection) -> None:
        """Write the rows of the month, and see that the disk has them.

        Raises
        ------
        Unavailable
            When they can't be written, or read again.
        """
        ids = hashlib.sha256()
        try:
            make_private_directory(self._path.parent)
            with open_private(self._partial) as file:
                for batch in self._batches(connection, file):
                    self._rows += batch.num_rows
                    _add_ids(ids, batch)
                file.flush()
                os.fsync(file.fileno())
            self._check(ids.digest())
            self._sha256 = _sha256(self._partial)
        except (OSError, pa.ArrowException) as error:
            raise Unavailable(
                f"archive {str(self._path)!r} can't be written: {error}"
            ) from error

    def _batches(
        self, connection: Connection, file: BinaryIO
    ) -> Iterator[pa.RecordBatch]:
        types = storage.column_types(self.table)
        schema = pa.schema({name: _TYPES[kind] for name, kind in types.items()})
        with pq.ParquetWriter(
            file, schema, compression="zstd", write_page_checksum=True
        ) as writer:
            for rows in storage.stream_month(connection, self.table, self._month):
                arrays = [
                    pa.array(values, type=field.type)
                    for values, field in zip(
                        zip(*rows, strict=True), schema, strict=True
                    )
                ]
                batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
                writer.write_batch(batch)
                yield batch

    def _check(self, ids: bytes) -> None:
        """Read all of it again: every page by its checksum, ids and rows by ours."""
        found, rows = hashlib.sha256(), 0
        with pq.ParquetFile(self._partial, page_checksum_verification=True) as file:
            for batch in file.iter_batches():
                rows += batch.num_rows
                _add_ids(found, batch)
        if (rows, found.digest()) != (self._rows, ids):
            raise Unavailable(
                f"archive {str(self._path)!r} has {rows} rows where {self._rows} were "
                "written, or others; the disk is not to be trusted"
            )

    def publish(self) -> Archived:
        """Give the file its name.

        A run that was lost before its commit may have left the same file; that is
        replaced, and no other.

        Raises
        ------
        Conflict
            When another file has the name.
        Unavailable
            When the folder can't be written any more.
        """
        try:
            if self._path.exists() and _sha256(self._path) != self._sha256:
                raise Conflict(
                    f"archive {str(self._path)!r} exists and has other rows; move it away"
                )
            self._partial.replace(self._path)
            sync_directory(self._path.parent)
        except OSError as error:
            raise Unavailable(
                f"archive {str(self._path)!r} can't be written: {error}"
            ) from error
        return Archived(file=str(self._path), rows=self._rows, sha256=self._sha256)

    def discard(self) -> None:
        """Remove what was not published."""
        if self._partial.exists():  # and its folder is one
            self._partial.unlink()


def _add_ids(digest: Any, batch: pa.RecordBatch) -> None:  # noqa: ANN401 - of hashlib
    digest.update("".join(batch.column("id").to_pylist()).encode())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
