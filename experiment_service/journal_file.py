"""The file of a journal: its tables, its locks and its room. It knows no threads."""

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from experiment_service.errors import Unavailable
from experiment_service.files import keep_private

log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS waiting (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    appended_at REAL NOT NULL,
    payload BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS set_aside (
    sequence INTEGER PRIMARY KEY,
    appended_at REAL NOT NULL,
    payload BLOB NOT NULL,
    reason TEXT NOT NULL
);
-- What has left `waiting` so far: the appending process reads here what another moved.
CREATE TABLE IF NOT EXISTS removed (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    events INTEGER NOT NULL,
    bytes INTEGER NOT NULL
);
INSERT INTO removed SELECT 1, 0, 0 WHERE NOT EXISTS (SELECT * FROM removed);
"""

_APPEND = "INSERT INTO waiting (appended_at, payload) VALUES (?, ?)"

MEASURE = """
SELECT count(*), coalesce(sum(length(payload)), 0) FROM waiting
WHERE sequence IN (SELECT value FROM json_each(:sequences))
"""

SPAN = """
SELECT coalesce((SELECT max(sequence) FROM waiting)
                - (SELECT min(sequence) FROM waiting) + 1, 0)
"""

NOTE_REMOVED = """
UPDATE removed SET events = events + ?, bytes = bytes + ?
"""

SET_ASIDE = """
INSERT INTO set_aside SELECT sequence, appended_at, payload, :reason FROM waiting
WHERE sequence IN (SELECT value FROM json_each(:sequences))
"""

DELETE = """
DELETE FROM waiting WHERE sequence IN (SELECT value FROM json_each(:sequences))
"""

NOTE_RETURNED = """
UPDATE removed SET events = events - (SELECT count(*) FROM set_aside),
    bytes = bytes - (SELECT coalesce(sum(length(payload)), 0) FROM set_aside)
"""

RETRY = """
INSERT INTO waiting (appended_at, payload)
SELECT appended_at, payload FROM set_aside ORDER BY sequence
"""

_COUNT = """
SELECT count(*), coalesce(sum(length(payload)), 0) FROM waiting
UNION ALL SELECT count(*), coalesce(sum(length(payload)), 0) FROM set_aside
"""

_BUSY_SECONDS = 10
# A longer log is copied into the file now and then. Room that a log once took it keeps, up
# to the second bound: writing over it is safe on disk sooner than making a file longer.
_WAL_BYTES = 16 << 20
_WAL_KEPT_BYTES = 32 << 20
# Room on the disk that appends leave: deleting takes some too, and a journal that could
# not be emptied any more would stay full for ever.
_ROOM_BYTES = 16 << 20
# Rows of one INSERT.
_INSERTED = 64
# Pages of 4 KiB: free ones kept for the next burst, and given back at a time.
_SPARE_PAGES = 4096
_VACUUM_PAGES = 256


@dataclass(slots=True, kw_only=True)
class Totals:
    """What a file holds, kept in memory: counting a million rows takes a while."""

    waiting: int
    waiting_bytes: int
    set_aside: int
    set_aside_bytes: int
    removed: int
    removed_bytes: int


@dataclass(slots=True, kw_only=True)
class Locks:
    """Open lock files of a slot; None for what belongs to another process."""

    owner: int | None
    mover: int | None

    def release(self) -> None:
        """Give the locks back."""
        for lock in (self.owner, self.mover):
            if lock is not None:
                os.close(lock)
        self.owner = self.mover = None


def unavailable(path: Path, error: Exception) -> Unavailable:
    """Return what callers are told when a file fails them."""
    return Unavailable(
        f"the journal {path} can't be used ({error}); free some space, or make it "
        "writable"
    )


def check_room(path: Path) -> None:
    """Leave so much of the disk free that what waits can be moved and deleted.

    Copying the log into the file may take as much again as the log has.

    Raises
    ------
    Unavailable
        When less is free; says how much.
    """
    left, free, needed = _room(path)
    if left < 0:
        raise Unavailable(
            f"the disk of the journal {path} has {free >> 20} MiB left, and it needs "
            f"{needed >> 20}; free some space"
        )


def _room(path: Path) -> tuple[int, int, int]:
    """Return the bytes that are to spare, and of which they are the difference."""
    disk = os.statvfs(path)
    free = disk.f_bavail * disk.f_frsize
    # Never to be opened: whoever closes a file of SQLite's gives up its locks.
    needed = files_of(path)[1].stat().st_size + _ROOM_BYTES
    return free - needed, free, needed


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise Unavailable for what the file system or SQLite raises."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise unavailable(path, error) from error


def claim_slot(path: Path, *, owner: bool, mover: bool) -> Locks | None:
    """Take locks of a slot; None when one of them is held by a living process."""
    locks = Locks(owner=None, mover=None)
    try:
        if owner:
            locks.owner = lock_file(path.with_suffix(".lock"))
        if mover and (locks.owner is not None or not owner):
            locks.mover = lock_file(path.with_suffix(".mover.lock"))
    except OSError:
        locks.release()
        raise
    if (owner and locks.owner is None) or (mover and locks.mover is None):
        locks.release()
        return None
    return locks


def lock_file(path: Path) -> int | None:
    """Lock a file; None when another process holds it.

    The file stays for ever: were it removed, two processes could lock two files of that
    name.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError:
        os.close(lock)
        raise
    return lock


def files_of(path: Path) -> list[Path]:
    """Return the file, its log, and the index of its log."""
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]


def keep_damaged(path: Path, error: sqlite3.DatabaseError) -> None:
    """Move a file away that is no database any more, to be looked into by hand."""
    kept = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    log.error("journal is damaged, kept as path=%s reason=%s", kept, error)
    main, wal, shared = files_of(path)
    main.rename(kept)
    if wal.exists():
        wal.rename(files_of(kept)[1])
    shared.unlink(missing_ok=True)


def connect(
    path: Path, *, synchronous: Literal["FULL", "NORMAL"]
) -> sqlite3.Connection:
    """Open a file, with its tables; FULL waits for the disk at each commit."""
    keep_private(path)
    connection = sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        # Before the first table, or it has no effect.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_KEPT_BYTES}")
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Commit at the end, roll back on an error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        # A full disk may have ended it already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@cache
def _insertion(rows: int) -> str:
    return _APPEND + ", (?, ?)" * (rows - 1)


def insert_rows(
    connection: sqlite3.Connection, now: float, payloads: Sequence[bytes]
) -> None:
    """Insert rows in as few statements as can be: each gives up Python's lock."""
    values = [value for payload in payloads for value in (now, payload)]
    if len(payloads) <= _INSERTED:
        if payloads:
            connection.execute(_insertion(len(payloads)), values)
        return
    with transaction(connection):
        for start in range(0, len(values), 2 * _INSERTED):
            part = values[start : start + 2 * _INSERTED]
            connection.execute(_insertion(len(part) // 2), part)


def count_rows(connection: sqlite3.Connection) -> Totals:
    """Count what a file holds."""
    waiting, set_aside = connection.execute(_COUNT).fetchall()
    removed, removed_bytes = read_removed(connection)
    return Totals(
        waiting=waiting[0],
        waiting_bytes=waiting[1],
        set_aside=set_aside[0],
        set_aside_bytes=set_aside[1],
        removed=removed,
        removed_bytes=removed_bytes,
    )


def read_removed(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return events and bytes that have left `waiting` so far."""
    events, size = connection.execute("SELECT events, bytes FROM removed").fetchone()
    return int(events), int(size)


def read_oldest(connection: sqlite3.Connection) -> float | None:
    """Return when the oldest event that waits was appended."""
    row = connection.execute(
        "SELECT appended_at FROM waiting ORDER BY sequence LIMIT 1"
    ).fetchone()
    return None if row is None else float(row[0])


def empty_log(connection: sqlite3.Connection, path: Path, *, now: bool) -> None:
    """Copy a log that has grown long into the file, so that it begins anew.

    Appends go on meanwhile; only when they outrun the copying, or the disk is short of
    room, must they wait, and the log is cut.

    Parameters
    ----------
    path : Path
        Of the file.
    now : bool
        Whether to copy a log that is not longer than it may stay.
    """
    try:
        size = files_of(path)[1].stat().st_size
    except FileNotFoundError:
        return
    if size >= 4 * _WAL_KEPT_BYTES or (size > _WAL_BYTES and _room(path)[0] < 0):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    elif size > _WAL_KEPT_BYTES or (size > _WAL_BYTES and now):
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


def give_back_space(connection: sqlite3.Connection) -> bool:
    """Return some of the pages that a burst has left free; False when few are left."""
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    if free > _SPARE_PAGES:
        # A script runs to its end; `execute` would free one page.
        connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
    return bool(free > _SPARE_PAGES)
