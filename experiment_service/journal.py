"""Journal: accepted events, safe on disk until the database has them.

One SQLite file per process, in a slot with two file locks: one for the process that
appends, one for the process that moves events on, which may be another. A lock dies with
its process; another one then takes over what waits. Payloads are bytes: the journal does
not know what they mean.
"""

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Self

from experiment_service.errors import Unavailable
from experiment_service.files import sync_directory
from experiment_service.journal_file import (
    DELETE,
    MEASURE,
    NOTE_REMOVED,
    NOTE_RETURNED,
    RETRY,
    SET_ASIDE,
    SPAN,
    Locks,
    check_room,
    claim_slot,
    connect,
    count_rows,
    empty_log,
    files_of,
    give_back_space,
    insert_rows,
    keep_damaged,
    lock_file,
    read_oldest,
    read_removed,
    transaction,
    translated,
    unavailable,
)

log = logging.getLogger(__name__)

_READ_BYTES = 8 << 20
# Rows that one transaction deletes, and vacuums after a deletion: appends wait meanwhile.
_DELETED = 250
_VACUUMS = 8
# Least time from the beginning of a group to that of the next, while events come.
_PACE_SECONDS = 0.0015
# How often a log that is not too long is copied into the file.
_EMPTY_SECONDS = 1.0
# How old the knowledge of what another process has moved may become.
_CATCH_UP_SECONDS = 0.05


class Journal:
    """The journal of a process; safe to use from any of its threads.

    `open` claims the one of this process, `abandoned` those of dead processes, and
    `living` the moving of events out of those that other processes append to.

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
        locks: Locks,
        *,
        max_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = path.parent
        self.arrived = threading.Event()
        self._path = path
        self._locks = locks
        self._max_bytes = max_bytes
        self._clock = clock
        # SQLite has one writer at a time and would have another poll for its turn.
        self._writing = threading.Lock()
        self._appending = connect(path, synchronous="FULL")
        # A deletion that a crash undoes is made again: it need not wait for the disk.
        self._moving = connect(path, synchronous="NORMAL")
        if locks.mover is None or locks.owner is None:
            # Copying the log into the file would hold up appends; see `empty_log`.
            for connection in (self._appending, self._moving):
                connection.execute("PRAGMA wal_autocheckpoint = 0")
        self._moves = threading.Lock()
        self._totals = count_rows(self._moving)
        self._caught_up_at = self._emptied_at = 0.0
        # Guards the queue; never held while the disk works.
        self._changed = threading.Condition()
        self._queue: list[tuple[Sequence[bytes], Future[None]]] = []
        self._queued_bytes = 0
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._failing = False
        if self._totals.waiting:
            self.arrived.set()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        max_bytes: int,
        shared: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Claim the first free slot of a directory, with what a dead process left in it.

        Parameters
        ----------
        max_bytes : int
            Payload that may be kept, across restarts too.
        shared : bool
            Whether another process moves the events; see `living`.
        clock : callable
            Seconds since 1970.

        Raises
        ------
        Unavailable
            When the directory can't be written, or its file system has no locks.
        """
        with translated(directory):
            directory.mkdir(parents=True, exist_ok=True)
            sync_directory(directory.parent)
            for slot in count():
                path = directory / f"journal-{slot}.sqlite3"
                locks = claim_slot(path, owner=True, mover=not shared)
                if locks is not None:
                    return cls._open(path, locks, max_bytes, clock)
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
            journal = cls._take_over(path, owner=True)
            if journal is not None:
                yield journal

    @classmethod
    def living(cls, directory: Path) -> Iterator[Self]:
        """Claim the moving of events that other processes append, one by one.

        Of journals that were opened as `shared`, unless a process moves them already.

        Raises
        ------
        Unavailable
            When one can't be opened.
        """
        for path in sorted(directory.glob("journal-*.sqlite3")):
            journal = cls._take_over(path, owner=False)
            if journal is not None:
                yield journal

    @classmethod
    def _take_over(cls, path: Path, *, owner: bool) -> Self | None:
        with translated(path):
            locks = claim_slot(path, owner=owner, mover=True)
            if locks is None:
                return None
            if not path.exists():
                locks.release()  # another process was first, and has removed it
                return None
            return cls._open(path, locks, 0, time.time)

    @classmethod
    def _open(
        cls, path: Path, locks: Locks, max_bytes: int, clock: Callable[[], float]
    ) -> Self:
        try:
            try:
                return cls(path, locks, max_bytes=max_bytes, clock=clock)
            except sqlite3.DatabaseError as error:
                if type(error) is not sqlite3.DatabaseError or locks.owner is None:
                    raise  # the disk or its rights are not sound, or it is not ours
                keep_damaged(path, error)
                return cls(path, locks, max_bytes=max_bytes, clock=clock)
        except BaseException:
            locks.release()
            raise

    def claim(self) -> bool:
        """Whether this journal is ours alone, by now: its process may have died.

        Raises
        ------
        Unavailable
            When its lock can't be used.
        """
        with self._moves, translated(self._path):
            if self._locks.owner is None:
                self._locks.owner = lock_file(self._path.with_suffix(".lock"))
                if self._locks.owner is None:
                    return False
                totals = count_rows(self._moving)
                with self._changed:
                    self._totals = totals
            return True

    @property
    def path(self) -> Path:
        """The file; no other living process has the same."""
        return self._path

    @property
    def depth(self) -> int:
        """Number of events that wait."""
        self._catch_up()
        return self._totals.waiting

    @property
    def pending_bytes(self) -> int:
        """Payload of the events that wait or are being written."""
        self._catch_up()
        return self._kept()

    def _kept(self) -> int:
        return self._totals.waiting_bytes + self._queued_bytes

    @property
    def set_aside_count(self) -> int:
        """Number of events that the database refused for good."""
        return self._totals.set_aside

    @property
    def oldest_age(self) -> float | None:
        """Seconds for which the oldest event has waited, None when none waits."""
        with self._moves:
            try:
                oldest_at = read_oldest(self._moving)
            except sqlite3.Error:
                return None  # closed, or the disk has failed, which is told elsewhere
        return None if oldest_at is None else max(0.0, self._clock() - oldest_at)

    def _catch_up(self) -> None:
        """See what has been removed, by this process or another."""
        with self._moves:
            try:
                events, size = read_removed(self._moving)
                if self._locks.owner is None:
                    # Another process appends. Rows go from the front, with gaps for as
                    # long as two batches are stored at a time.
                    (self._totals.waiting,) = self._moving.execute(SPAN).fetchone()
                    return
            except sqlite3.Error:
                return  # closed, or the disk has failed, which is told elsewhere
            self._caught_up_at = time.monotonic()
        with self._changed:
            totals = self._totals
            totals.waiting -= events - totals.removed
            totals.waiting_bytes -= size - totals.removed_bytes
            totals.removed, totals.removed_bytes = events, size

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
        if self._is_full(size) and self._is_out_of_date():
            self._catch_up()
        with self._changed:
            if self._closed.is_set():
                raise Unavailable("the journal is closed; this process is stopping")
            if self._is_full(size):
                kept = self._kept() + self._totals.set_aside_bytes
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

    def _is_full(self, size: int) -> bool:
        kept = self._kept() + self._totals.set_aside_bytes
        return kept + size > self._max_bytes

    def _is_out_of_date(self) -> bool:
        return time.monotonic() - self._caught_up_at > _CATCH_UP_SECONDS

    def _write_until_closed(self) -> None:
        while group := self._next_group():
            begun = time.monotonic()
            payloads = [payload for each, _ in group for payload in each]
            size = sum(map(len, payloads))
            failure = self._write(payloads, size)
            busy = bool(self._queue)
            for _, future in group:
                if failure is None:
                    future.set_result(None)
                else:
                    future.set_exception(failure)
            if busy:
                # A group costs as much whatever is in it: more may go into the next.
                self._closed.wait(begun + _PACE_SECONDS - time.monotonic())

    def _next_group(self) -> list[tuple[Sequence[bytes], Future[None]]]:
        """Wait for appends and take all there are; none when the journal is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed.is_set())
            group, self._queue = self._queue, []
            return group

    def _write(self, payloads: Sequence[bytes], size: int) -> Unavailable | None:
        now = self._clock()
        try:
            check_room(self._path)
            with self._writing:
                insert_rows(self._appending, now, payloads)
                with self._changed:
                    self._queued_bytes -= size
                    self._totals.waiting += len(payloads)
                    self._totals.waiting_bytes += size
        except Exception as error:  # the thread must live, and the callers must know
            with self._changed:
                self._queued_bytes -= size
            foreseen = error if isinstance(error, Unavailable) else None
            if not self._failing:
                log.error(  # noqa: TRY400 - a trace only where there is a riddle
                    "journal can't be written path=%s reason=%s",
                    self._path,
                    error,
                    exc_info=foreseen is None,
                )
            self._failing = True
            return foreseen or unavailable(self._path, error)
        if self._failing:
            log.warning("journal is written again path=%s", self._path)
        self._failing = False
        self.arrived.set()
        return None

    def read(self, limit: int, *, after: int = 0) -> list[tuple[int, bytes]]:
        """Return the oldest events with their sequence numbers, at most some 8 MiB.

        Parameters
        ----------
        limit : int
            How many at most.
        after : int
            Only events with larger sequence numbers.

        Raises
        ------
        Unavailable
            When the file can't be read.
        """
        entries: list[tuple[int, bytes]] = []
        size = 0
        with self._moves, translated(self._path):
            self._empty_log()
            rows = self._moving.execute(
                "SELECT sequence, payload FROM waiting WHERE sequence > ? "
                "ORDER BY sequence LIMIT ?",
                (after, limit),
            )
            for sequence, payload in rows:
                entries.append((sequence, payload))
                size += len(payload)
                if size >= _READ_BYTES:
                    break
            rows.close()
        return entries

    def _empty_log(self) -> None:
        now = time.monotonic()
        due = now - self._emptied_at > _EMPTY_SECONDS
        if due:
            self._emptied_at = now
        empty_log(self._moving, self._path, now=due)

    def delete(self, sequences: Sequence[int]) -> None:
        """Forget events: the database has them.

        Raises
        ------
        Unavailable
            When the file can't be written.
        """
        for start in range(0, len(sequences), _DELETED):
            self._remove(sequences[start : start + _DELETED], reason=None)
        for _ in range(_VACUUMS):
            with self._moves, translated(self._path), self._writing:
                if not give_back_space(self._moving):
                    break
        with self._moves, translated(self._path):
            self._empty_log()

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
        with self._moves, translated(self._path), self._writing:
            with transaction(self._moving) as connection:
                removed, size = connection.execute(MEASURE, chosen).fetchone()
                if reason is not None:
                    connection.execute(SET_ASIDE, chosen)
                connection.execute(DELETE, chosen)
                connection.execute(NOTE_REMOVED, (removed, size))
            if reason is not None:
                with self._changed:
                    self._totals.set_aside += removed
                    self._totals.set_aside_bytes += size
        self._catch_up()

    def retry_set_aside(self) -> int:
        """Let the events that were set aside wait again; return how many.

        Raises
        ------
        Unavailable
            When the file can't be written.
        """
        with self._moves, translated(self._path), self._writing:
            retried = self._totals.set_aside
            with transaction(self._moving) as connection:
                connection.execute(NOTE_RETURNED)
                connection.execute(RETRY)
                connection.execute("DELETE FROM set_aside")
                totals = count_rows(connection)
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
            already = self._closed.is_set()
            self._closed.set()
            self._changed.notify_all()
        if already:
            return
        if self._thread is not None:
            self._thread.join()
        with self._moves, self._writing:
            self._appending.close()
            self._moving.close()
            if remove and not self._totals.waiting and not self._totals.set_aside:
                for path in files_of(self._path):
                    path.unlink(missing_ok=True)
            self._locks.release()
