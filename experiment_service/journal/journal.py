"""The journal as the service sees it: appending, moving, and who does which."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Self

from experiment_service.errors import Unavailable
from experiment_service.files import make_private_directory, sync_directory
from experiment_service.journal.groups import (
    GroupReader,
    GroupWriter,
    segment_numbers,
)
from experiment_service.journal.moving import Mover, moved_so_far
from experiment_service.journal.slot import (
    Appended,
    Ends,
    Locks,
    SetAside,
    claim_slot,
    lock_owner,
    remove_slot,
    slot_path,
    slot_paths,
    translated,
    unavailable,
)
from experiment_service.journal.syncing import Sync, make_sync, wait_for

log = logging.getLogger(__name__)

# Events of one append, and who waits for them.
_Appends = list[tuple[Sequence[bytes], Future[None]]]


class Journal:
    """The journal of a process; safe to use from any of its threads.

    `open` claims the one of this process, `abandoned` those of dead processes, and
    `living` the moving of events out of those that other processes append to.

    Attributes
    ----------
    directory : Path
        Where the journals of all processes are.
    path : Path
        The folder of this one; no other living process appends to it.
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
        self.path = path
        self.arrived = threading.Event()
        self._locks = locks
        self._max_bytes = max_bytes
        self._clock = clock
        self._ends = Ends(path, make=locks.owner is not None)
        self._set_aside = SetAside(path)
        if locks.owner is not None:
            self._take_stock()
        # Guards the mover; there is none where another process moves the events.
        self._moves = threading.Lock()
        self._mover = None if locks.mover is None else Mover(path, self._ends)
        # Guards what follows; not held while a group is made safe.
        self._appending = threading.Lock()
        self._queue: _Appends = []
        self._under_way: _Appends = []
        self._unsafe_bytes = 0
        self._sync: Sync | None = None
        self._is_settled_by_loop = False
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._failing = False
        if self.depth:
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
                path = slot_path(directory, slot)
                locks = claim_slot(path, owner=True, mover=not shared)
                if locks is not None:
                    with _released_on_failure(locks):
                        make_private_directory(path)
                        sync_directory(directory)
                        return cls(path, locks, max_bytes=max_bytes, clock=clock)
        raise AssertionError("unreachable")

    @classmethod
    def abandoned(cls, directory: Path) -> Iterator[Self]:
        """Claim the journals of dead processes, one by one, to be read and closed.

        Raises
        ------
        Unavailable
            When one can't be opened.
        """
        return cls._take_over_all(directory, owner=True)

    @classmethod
    def living(cls, directory: Path) -> Iterator[Self]:
        """Claim the moving of events that other processes append, one by one.

        Of journals that were opened as `shared`, unless a process moves them already.

        Raises
        ------
        Unavailable
            When one can't be opened.
        """
        return cls._take_over_all(directory, owner=False)

    @classmethod
    def _take_over_all(cls, directory: Path, *, owner: bool) -> Iterator[Self]:
        for path in slot_paths(directory):
            journal = cls._take_over(path, owner=owner)
            if journal is not None:
                yield journal

    @classmethod
    def _take_over(cls, path: Path, *, owner: bool) -> Self | None:
        with translated(path):
            locks = claim_slot(path, owner=owner, mover=True)
            if locks is None:
                return None
            with _released_on_failure(locks):
                # The crash of a machine may have left events alone.
                is_there = path.exists() and (
                    Ends.are_in(path) or (owner and bool(segment_numbers(path)))
                )
                if is_there:
                    return cls(path, locks, max_bytes=0)
            # Another process is making it, or has removed it.
            locks.release()
            return None

    def _take_stock(self) -> None:
        """Count what waits, and go on behind it."""
        moved = moved_so_far(self.path, self._ends)
        before = self._ends.appended
        reader = GroupReader(self.path, moved.place)
        events = size = 0
        while group := reader.read(complete=before.complete, ended=True):
            passed = max(0, moved.sequence - group.place.sequence)
            left = group.payloads[passed:]
            events += len(left)
            size += sum(map(len, left))
        reader.close()
        appended = Appended(
            segment=max(
                before.segment, moved.place.segment, *segment_numbers(self.path)
            ),
            complete=max(before.complete, moved.sequence, reader.place.sequence),
            events=moved.events + events,
            size=moved.size + size,
        )
        self._ends.appended = appended
        self._writer = GroupWriter(
            self.path, segment=appended.segment, sequence=appended.complete
        )

    def claim(self) -> bool:
        """Whether this journal is ours alone, by now: its process may have died.

        Raises
        ------
        Unavailable
            When its lock can't be used.
        """
        with self._moves, translated(self.path):
            if self._locks.owner is None:
                owner = lock_owner(self.path)
                if owner is None:
                    return False
                with _released_on_failure(Locks(owner=owner, mover=None)):
                    self._take_stock()
                self._locks.owner = owner
            return True

    @property
    def depth(self) -> int:
        """Number of events that wait."""
        return self._waiting()[0]

    @property
    def pending_bytes(self) -> int:
        """Payload of the events that wait or are about to."""
        return self._waiting()[1] + self._unsafe_bytes

    def _waiting(self) -> tuple[int, int]:
        """Return how many events wait, and their bytes."""
        appended, moved = self._ends.appended, self._ends.moved
        events, size = appended.events - moved.events, appended.size - moved.size
        if self._mover is not None:
            events, size = events - self._mover.gone, size - self._mover.gone_size
        return max(0, events), max(0, size)

    @property
    def set_aside_count(self) -> int:
        """Number of events that the database refused for good."""
        return self._set_aside.count

    @property
    def oldest_age(self) -> float | None:
        """Seconds for which the oldest event has waited, None when none waits."""
        if not self.depth:
            return None
        try:
            place = moved_so_far(self.path, self._ends).place
            with closing(GroupReader(self.path, place)) as reader:
                group = reader.read(complete=0)
        except OSError:
            return None  # removed, or the disk has failed, which is told elsewhere
        return None if group is None else max(0.0, self._clock() - group.written_at)

    def append(self, payloads: Sequence[bytes]) -> Future[None]:
        """Hand over events; return a future that is done once they are safe on disk.

        Never waits for the disk. The future fails with Unavailable when the disk does.
        Events that are handed over meanwhile become safe together, after these.

        Raises
        ------
        Unavailable
            When the journal is full or closed; nothing of this call is kept.
        """
        size = sum(map(len, payloads))
        future: Future[None] = Future()
        # Running: a caller that gives up can't cancel it for the others.
        future.set_running_or_notify_cancel()
        ended: list[tuple[_Appends, Exception | None]] = []
        with self._appending:
            self._check_open()
            if not self._is_settled_by_loop:
                self._start_thread()
            kept = self.pending_bytes + self._set_aside.size
            if kept + size > self._max_bytes:
                raise Unavailable(
                    f"the journal is full: {kept} of {self._max_bytes} bytes are used "
                    "by events that wait for the database; try again when it is back"
                )
            self._queue.append((payloads, future))
            self._unsafe_bytes += size
            if not self._under_way:
                ended = self._begin_next()
        _tell(ended)
        return future

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise Unavailable("the journal is closed; this process is stopping")

    @contextmanager
    def settled_by(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Let an event loop see to what was appended, in place of a thread.

        For the thread of the loop, from which alone events are appended meanwhile; futures
        are done there. At the end it waits for what is under way.

        Raises
        ------
        Unavailable
            When the folder can't be read.
        """
        with self._appending:
            if self._thread is not None:
                raise AssertionError("a thread settles what was appended before")
            sync = self._opened_sync()
            self._is_settled_by_loop = True
        loop.add_reader(sync.fileno, self._settle)
        try:
            yield
        finally:
            loop.remove_reader(sync.fileno)
            self._settle_all()
            self._is_settled_by_loop = False

    def _opened_sync(self) -> Sync:
        if self._sync is None:
            with translated(self.path):
                self._sync = make_sync(self.path)
        return self._sync

    def _start_thread(self) -> None:
        if self._thread is None:
            self._opened_sync()  # the thread waits for it
            thread = threading.Thread(
                target=self._settle_until_closed, name="journal", daemon=True
            )
            thread.start()
            self._thread = thread

    def _settle_until_closed(self) -> None:
        while not self._closed.is_set():
            self._settle(wait=True)

    def _settle_all(self) -> None:
        while self._under_way:
            self._settle(wait=True)

    def _settle(self, *, wait: bool = False) -> None:
        """Tell those whose events have become safe, and begin with the next."""
        if self._sync is None:
            return
        if wait:
            wait_for(self._sync)
        with self._appending:
            failure: Exception | None = None
            try:
                if not self._sync.has_ended():
                    return
                self._writer.confirm()
            except OSError as error:
                self._writer.give_up()
                failure = error
            group, self._under_way = self._under_way, []
            ended = [(group, self._note(group, failure)), *self._begin_next()]
        _tell(ended)

    def _begin_next(self) -> list[tuple[_Appends, Exception | None]]:
        """Write what is queued; return what has ended by that, as nothing is under way."""
        group, self._queue = self._queue, []
        payloads = [payload for each, _ in group for payload in each]
        failure: Exception | None = None
        if payloads:
            try:
                unsafe = self._writer.write(
                    self._clock(),
                    payloads,
                    used=lambda: self._ends.moved.place.segment,
                )
                self._opened_sync().begin(*unsafe)
            except Exception as error:  # whatever it is, the callers must know
                self._writer.give_up()
                failure = error
            else:
                self._under_way = group
                return []
        return [(group, self._note(group, failure))] if group else []

    def _note(self, group: _Appends, failure: Exception | None) -> Unavailable | None:
        """Count a group that has ended; return what its callers are told."""
        lengths = [len(payload) for payloads, _ in group for payload in payloads]
        self._unsafe_bytes -= sum(lengths)
        before = self._ends.appended
        written = (len(lengths), sum(lengths)) if failure is None else (0, 0)
        self._ends.appended = Appended(
            segment=self._writer.segment,
            complete=self._writer.complete,
            events=before.events + written[0],
            size=before.size + written[1],
        )
        if failure is None:
            if self._failing:
                log.warning("journal is written again path=%s", self.path)
            self.arrived.set()
        elif not self._failing:
            foreseen = isinstance(failure, OSError)
            log.error(
                "journal can't be written path=%s reason=%s",
                self.path,
                failure,
                exc_info=None if foreseen else failure,
            )
        self._failing = failure is not None
        return None if failure is None else unavailable(self.path, failure)

    def read(self, limit: int, *, after: int = 0) -> list[tuple[int, bytes]]:
        """Return the oldest events with their sequence numbers, at most some 8 MiB.

        Of a journal whose events this process moves.

        Parameters
        ----------
        limit : int
            How many at most.
        after : int
            Only events with larger sequence numbers.

        Raises
        ------
        Unavailable
            When a file can't be read.
        """
        with self._moving() as mover:
            return mover.read(limit, after)

    def delete(self, sequences: Sequence[int]) -> None:
        """Forget events that were read: the database has them.

        Raises
        ------
        Unavailable
            When a file that is not needed any more can't be removed.
        """
        with self._moving() as mover:
            mover.forget(sequences)

    def set_aside(self, sequence: int, payload: bytes, reason: str) -> None:
        """Keep an event that was read, and that the database refuses for good.

        Raises
        ------
        Unavailable
            When the file of such events can't be written; the event still waits.
        """
        with self._moving() as mover:
            if not mover.waits(sequence):
                return
            with self._appending:
                self._set_aside.add(payload, reason)
            mover.forget([sequence])
        log.error(
            "event set aside path=%s sequence=%d reason=%s", self.path, sequence, reason
        )

    def retry_set_aside(self, taker: "Journal | None" = None) -> int:
        """Let the events that were set aside wait again; return how many.

        Parameters
        ----------
        taker : Journal, optional
            Where they wait then, when not here: the journal that this process appends to.

        Raises
        ------
        Unavailable
            When they can't be read or written; they are still set aside then.
        """
        with self._moving():
            payloads = self._set_aside.payloads()
            if payloads:
                (taker or self).append(payloads).result()
                self._set_aside.clear()
        return len(payloads)

    @contextmanager
    def _moving(self) -> Iterator[Mover]:
        with self._moves, translated(self.path):
            self._check_open()
            if self._mover is None:
                raise AssertionError("another process moves the events of this journal")
            yield self._mover

    def close(self, *, remove: bool = False) -> None:
        """Write what was handed over, and free the slot.

        Parameters
        ----------
        remove : bool
            Remove the files too, if nothing is left in them.
        """
        with self._appending:
            already = self._closed.is_set()
            self._closed.set()
        if already:
            return
        if self._thread is not None and self._sync is not None:
            os.eventfd_write(self._sync.fileno, 1)
            self._thread.join()
        self._settle_all()
        with self._moves:
            empty = not self._set_aside.count and self._holds_nothing()
            if self._locks.owner is not None:
                self._writer.close()
            if self._sync is not None:
                self._sync.close()
            if self._mover is not None:
                self._mover.close()
            self._ends.close()
            if remove and empty:
                remove_slot(self.path)
            self._locks.release()

    def _holds_nothing(self) -> bool:
        """Whether no event is left, also none that was counted wrongly.

        One that was refused, as making it safe failed, may have been moved all the same.
        """
        if self.depth or self._mover is None:
            return not self.depth
        try:
            return not self._mover.read(1, 0)
        except OSError:
            return False


def _tell(ended: Sequence[tuple[_Appends, Exception | None]]) -> None:
    for group, failure in ended:
        for _, future in group:
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(failure)


@contextmanager
def _released_on_failure(locks: Locks) -> Iterator[None]:
    try:
        yield
    except BaseException:
        locks.release()
        raise
