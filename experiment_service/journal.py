"""Journal: accepted events, safe on disk until the database has them.

One SQLite file per process, in a slot guarded by a file lock. The lock dies with its
process; another one then takes over what waits. Payloads are bytes: the journal does
not know what they mean.
"""

import fcntl
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal, Self

from experiment_service.errors import Unavailable

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
"""

_APPEND = "INSERT INTO waiting (appended_at, payload) VALUES (?, ?)"

_MEASURE = """
SELECT count(*), coalesce(sum(length(payload)), 0) FROM waiting
WHERE sequence IN (SELECT value FROM json_each(:sequences))
"""

_SET_ASIDE = """
INSERT INTO set_aside SELECT sequence, appended_at, payload, :reason FROM waiting
WHERE sequence IN (SELECT value FROM json_each(:sequences))
"""

_DELETE = """
DELETE FROM waiting WHERE sequence IN (SELECT value FROM json_each(:sequences))
"""

_RETRY = """
INSERT INTO waiting (appended_at, payload)
SELECT appended_at, payload FROM set_aside ORDER BY sequence
"""

_COUNT = """
SELECT count(*), coalesce(sum(length(payload)), 0) FROM waiting
UNION ALL SELECT count(*), coalesce(sum(length(payload)), 0) FROM set_aside
"""

_BUSY_SECONDS = 10
_READ_BYTES = 8 << 20
_WAL_BYTES = 16 << 20
# Pages of 4 KiB: free ones kept for the next burst, and given back at a time.
_SPARE_PAGES = 4096
_VACUUM_PAGES = 2048


@dataclass(slots=True, kw_only=True)
class _Totals:
    """What a file holds, kept in memory: counting a million rows takes a while."""

    waiting: int
    waiting_bytes: int
    set_aside: int
    set_aside_bytes: int
    oldest_at: float | None


class Journal:
    """The journal of a process; safe to use from any of its threads.

    `open` claims the one of this process, `abandoned` those of dead processes.

    Attributes
    ----------
    directory : Path
        Where the journals of all processes are.
    arrived : threading.Event
        Set when events have come; whoever waits for them clears it.
    """

    def __init__(
        self,
        path: Path,
        lock: int,
        *,
        max_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = path.parent
        self.arrived = threading.Event()
        self._path = path
        self._lock = lock
        self._max_bytes = max_bytes
        self._clock = clock
        # SQLite has one writer at a time and would have another poll for its turn.
        self._writing = threading.Lock()
        self._appending = _connect(path, synchronous="FULL")
        # A deletion that a crash undoes is made again: it need not wait for the disk.
        self._moving = _connect(path, synchronous="NORMAL")
        self._moves = threading.Lock()
        self._totals = _count(self._moving)
        # Guards the queue; never held while the disk works.
        self._changed = threading.Condition()
        self._queue: list[tuple[Sequence[bytes], Future[None]]] = []
        self._queued_bytes = 0
        self._thread: threading.Thread | None = None
        self._failing = self._closed = False
        if self._totals.waiting:
            self.arrived.set()

    @classmethod
    def open(
        cls, directory: Path, *, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> Self:
        """Claim the first free slot of a directory, with what a dead process left in it.

        Parameters
        ----------
        max_bytes : int
            Payload that may be kept, across restarts too.
        clock : callable
            Seconds since 1970.

        Raises
        ------
        Unavailable
            When the directory can't be written, or its file system has no locks.
        """
        with _translated(directory):
            directory.mkdir(parents=True, exist_ok=True)
            _sync_directory(directory.parent)
            for slot in count():
                path = directory / f"journal-{slot}.sqlite3"
                lock = _claim(path)
                if lock is not None:
                    return cls._open(path, lock, max_bytes, clock)
        raise AssertionError("unreachable")

    @classmethod
    def abandoned(cls, directory: Path) -> Iterator[Self]:
        """Claim the journals of dead processes, one by one, to be read and closed.

        Raises
        ------
        Unavailable
            When one can't be opened.
        """
        for path in sorted(directory.glob("journal-*.sqlite3")):
            with _translated(path):
                lock = _claim(path)
                if lock is None:
                    continue
                if path.exists():
                    journal = cls._open(path, lock, 0, time.time)
                else:
                    os.close(lock)  # another process was first, and has removed it
                    continue
            yield journal

    @classmethod
    def _open(
        cls, path: Path, lock: int, max_bytes: int, clock: Callable[[], float]
    ) -> Self:
        try:
            try:
                return cls(path, lock, max_bytes=max_bytes, clock=clock)
            except sqlite3.DatabaseError as error:
                if type(error) is not sqlite3.DatabaseError:
                    raise  # the file is sound, the disk or its rights are not
                _keep_damaged(path, error)
                return cls(path, lock, max_bytes=max_bytes, clock=clock)
        except BaseException:
            os.close(lock)
            raise

    @property
    def depth(self) -> int:
        """Number of events that wait."""
        return self._totals.waiting

    @property
    def pending_bytes(self) -> int:
        """Payload of the events that wait or are being written."""
        return self._totals.waiting_bytes + self._queued_bytes

    @property
    def set_aside_count(self) -> int:
        """Number of events that the database refused for good."""
        return self._totals.set_aside

    @property
    def oldest_age(self) -> float | None:
        """Seconds for which the oldest event has waited, None when none waits."""
        oldest_at = self._totals.oldest_at
        return None if oldest_at is None else max(0.0, self._clock() - oldest_at)

    def append(self, payloads: Sequence[bytes]) -> Future[None]:
        """Hand over events; return a future that is done once they are safe on disk.

        Never waits for the disk. The future fails with Unavailable when the disk does.

        Raises
        ------
        Unavailable
            When the journal is full or closed; nothing of this call is kept.
        """
        size = sum(map(len, payloads))
        future: Future[None] = Future()
        # Running: a caller that gives up can't cancel it for the others.
        future.set_running_or_notify_cancel()
        with self._changed:
            if self._closed:
                raise Unavailable("the journal is closed; this process is stopping")
            kept = self.pending_bytes + self._totals.set_aside_bytes
            if kept + size > self._max_bytes:
                raise Unavailable(
                    f"the journal is full: {kept} of {self._max_bytes} bytes are used "
                    "by events that wait for the database; try again when it is back"
                )
            if self._thread is None:
                thread = threading.Thread(
                    target=self._write_until_closed, name="journal", daemon=True
                )
                thread.start()
                self._thread = thread
            self._queue.append((payloads, future))
            self._queued_bytes += size
            self._changed.notify()
        return future

    def _write_until_closed(self) -> None:
        while group := self._next_group():
            payloads = [payload for each, _ in group for payload in each]
            size = sum(map(len, payloads))
            failure = self._write(payloads, size)
            for _, future in group:
                if failure is None:
                    future.set_result(None)
                else:
                    future.set_exception(failure)

    def _next_group(self) -> list[tuple[Sequence[bytes], Future[None]]]:
        """Wait for appends and take all there are; none when the journal is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            group, self._queue = self._queue, []
            return group

    def _write(self, payloads: Sequence[bytes], size: int) -> Unavailable | None:
        now = self._clock()
        try:
            with self._writing:
                with _transaction(self._appending):
                    self._appending.executemany(
                        _APPEND, [(now, payload) for payload in payloads]
                    )
                with self._changed:
                    self._queued_bytes -= size
                    self._totals.waiting += len(payloads)
                    self._totals.waiting_bytes += size
                    if self._totals.oldest_at is None and payloads:
                        self._totals.oldest_at = now
        except Exception as error:  # the thread must live, and the callers must know
            with self._changed:
                self._queued_bytes -= size
            if not self._failing:
                log.exception("journal can't be written path=%s", self._path)
            self._failing = True
            return _unavailable(self._path, error)
        if self._failing:
            log.warning("journal is written again path=%s", self._path)
        self._failing = False
        self.arrived.set()
        return None

    def read(self, limit: int) -> list[tuple[int, bytes]]:
        """Return the oldest events with their sequence numbers, at most some 8 MiB.

        Raises
        ------
        Unavailable
            When the file can't be read.
        """
        entries: list[tuple[int, bytes]] = []
        size = 0
        with self._moves, _translated(self._path):
            rows = self._moving.execute(
                "SELECT sequence, payload FROM waiting ORDER BY sequence LIMIT ?",
                (limit,),
            )
            for sequence, payload in rows:
                entries.append((sequence, payload))
                size += len(payload)
                if size >= _READ_BYTES:
                    break
            rows.close()
        return entries

    def delete(self, sequences: Sequence[int]) -> None:
        """Forget events: the database has them.

        Raises
        ------
        Unavailable
            When the file can't be written.
        """
        self._remove(sequences, reason=None)
        with self._moves, _translated(self._path), self._writing:
            _give_back_space(self._moving)

    def set_aside(self, sequence: int, reason: str) -> None:
        """Keep an event that the database refuses for good, out of the way.

        Raises
        ------
        Unavailable
            When the file can't be written.
        """
        self._remove([sequence], reason=reason)
        log.error(
            "event set aside path=%s sequence=%d reason=%s",
            self._path,
            sequence,
            reason,
        )

    def _remove(self, sequences: Sequence[int], *, reason: str | None) -> None:
        chosen = {"sequences": json.dumps(list(sequences)), "reason": reason}
        with self._moves, _translated(self._path), self._writing:
            with _transaction(self._moving) as connection:
                removed, size = connection.execute(_MEASURE, chosen).fetchone()
                if reason is not None:
                    connection.execute(_SET_ASIDE, chosen)
                connection.execute(_DELETE, chosen)
                oldest_at = _oldest_at(connection)
            with self._changed:
                self._totals.waiting -= removed
                self._totals.waiting_bytes -= size
                self._totals.oldest_at = oldest_at
                if reason is not None:
                    self._totals.set_aside += removed
                    self._totals.set_aside_bytes += size

    def retry_set_aside(self) -> int:
        """Let the events that were set aside wait again; return how many.

        Raises
        ------
        Unavailable
            When the file can't be written.
        """
        with self._moves, _translated(self._path), self._writing:
            retried = self._totals.set_aside
            with _transaction(self._moving) as connection:
                connection.execute(_RETRY)
                connection.execute("DELETE FROM set_aside")
                totals = _count(connection)
            with self._changed:
                self._totals = totals
        if retried:
            self.arrived.set()
        return retried

    def close(self, *, remove: bool = False) -> None:
        """Write what was handed over, and free the slot.

        Parameters
        ----------
        remove : bool
            Remove the file too, if nothing is left in it.
        """
        with self._changed:
            already, self._closed = self._closed, True
            self._changed.notify_all()
        if already:
            return
        if self._thread is not None:
            self._thread.join()
        with self._moves, self._writing:
            self._appending.close()
            self._moving.close()
            if remove and not self._totals.waiting and not self._totals.set_aside:
                for path in _files(self._path):
                    path.unlink(missing_ok=True)
            os.close(self._lock)


def _unavailable(path: Path, error: Exception) -> Unavailable:
    return Unavailable(
        f"the journal {path} can't be used ({error}); free some space, or make it "
        "writable"
    )


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise _unavailable(path, error) from error


def _claim(path: Path) -> int | None:
    """Lock the slot of a journal; None when its process lives.

    The lock file stays for ever: were it removed, two processes could lock two files of
    that name.
    """
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError:
        os.close(lock)
        raise
    return lock


def _files(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]


def _keep_damaged(path: Path, error: sqlite3.DatabaseError) -> None:
    """Move a file away that is no database any more, to be looked into by hand."""
    kept = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    log.error("journal is damaged, kept as path=%s reason=%s", kept, error)
    main, wal, shared = _files(path)
    main.rename(kept)
    if wal.exists():
        wal.rename(_files(kept)[1])
    shared.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _connect(
    path: Path, *, synchronous: Literal["FULL", "NORMAL"]
) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        # Before the first table, or it has no effect.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        # A full disk may have ended it already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _count(connection: sqlite3.Connection) -> _Totals:
    waiting, set_aside = connection.execute(_COUNT).fetchall()
    return _Totals(
        waiting=waiting[0],
        waiting_bytes=waiting[1],
        set_aside=set_aside[0],
        set_aside_bytes=set_aside[1],
        oldest_at=_oldest_at(connection),
    )


def _oldest_at(connection: sqlite3.Connection) -> float | None:
    row = connection.execute(
        "SELECT appended_at FROM waiting ORDER BY sequence LIMIT 1"
    ).fetchone()
    return None if row is None else float(row[0])


def _give_back_space(connection: sqlite3.Connection) -> None:
    """Return some of the pages that a burst has left free to the file system."""
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    if free > _SPARE_PAGES:
        # A script runs to its end; `execute` would free one page.
        connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
