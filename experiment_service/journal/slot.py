"""The slot of a journal: its locks, its folder, and how far appending and moving are.

The process that appends and the one that moves events on tell each other by `Ends`, a
page of memory that they share.
"""

import errno
import fcntl
import json
import logging
import mmap
import os
import re
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from experiment_service.errors import Unavailable
from experiment_service.files import OWNER_ONLY
from experiment_service.journal.groups import DAMAGED, Place

log = logging.getLogger(__name__)

_NAME = re.compile(r"journal-\d+")
_ENDS = "ends"
_SET_ASIDE = "set-aside.jsonl"

_ENDS_BYTES = 4096
_MOVED_AT, _APPENDED_AT = 0, 2048
_MOVED = struct.Struct("<6Q")
_APPENDED = struct.Struct("<4Q")
_CHECKSUM = struct.Struct("<I")
# Looks at a page that another process is writing to, which takes nanoseconds.
_LOOKS = 100


def unavailable(path: Path, error: Exception) -> Unavailable:
    """Return what callers are told when a journal's disk fails them."""
    return Unavailable(
        f"the journal {path} can't be used ({error}); free some space, or make it "
        "writable"
    )


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise Unavailable for what the file system raises."""
    try:
        yield
    except OSError as error:
        raise unavailable(path, error) from error


def slot_path(directory: Path, slot: int) -> Path:
    """Return the folder of a slot."""
    return directory / f"journal-{slot}"


def slot_paths(directory: Path) -> list[Path]:
    """Return the folders of the slots that were used."""
    return sorted(
        path for path in directory.glob("journal-*") if _NAME.fullmatch(path.name)
    )


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


def claim_slot(path: Path, *, owner: bool, mover: bool) -> Locks | None:
    """Take locks of a slot; None when one of them is held by a living process."""
    locks = Locks(owner=None, mover=None)
    try:
        if owner:
            locks.owner = lock_owner(path)
        if mover and (locks.owner is not None or not owner):
            locks.mover = _lock_file(path.with_suffix(".mover.lock"))
    except OSError:
        locks.release()
        raise
    if (owner and locks.owner is None) or (mover and locks.mover is None):
        locks.release()
        return None
    return locks


def lock_owner(path: Path) -> int | None:
    """Lock the appending of a slot; None when another process holds it."""
    return _lock_file(path.with_suffix(".lock"))


def _lock_file(path: Path) -> int | None:
    # The file stays for ever: were it removed, two processes could lock two files of
    # that name.
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


@dataclass(frozen=True, slots=True)
class Moved:
    """How far events have been moved on.

    Attributes
    ----------
    place : Place
        Of the group of the first event that waits.
    sequence : int
        Number of that event.
    events, size : int
        Events moved since the journal was made, and their bytes.
    """

    place: Place
    sequence: int
    events: int
    size: int


@dataclass(frozen=True, slots=True)
class Appended:
    """How far events have been appended.

    Attributes
    ----------
    segment : int
        Largest number of a segment that there ever was.
    complete : int
        All events with smaller numbers can be read.
    events, size : int
        Events appended since the journal was made, and their bytes.
    """

    segment: int
    complete: int
    events: int
    size: int


class Ends:
    """How far appending and moving are; each is written by one process.

    It outlives the processes, but not always the machine: after a crash it may be behind,
    and what was moved since is moved once more.

    Parameters
    ----------
    folder : Path
    make : bool
        Whether to make the file where there is none.

    Raises
    ------
    OSError
        When it can't be made, or is not there.
    """

    def __init__(self, folder: Path, *, make: bool) -> None:
        flags = os.O_RDWR | (os.O_CREAT if make else 0)
        file = os.open(folder / _ENDS, flags, OWNER_ONLY)
        try:
            if os.fstat(file).st_size < _ENDS_BYTES:
                # Not a hole: a full disk would end the process that writes to it.
                os.pwrite(file, bytes(_ENDS_BYTES), 0)
            self._page = mmap.mmap(file, _ENDS_BYTES)
        finally:
            os.close(file)
        self._last_moved = Moved(Place(0, 0, 0), 0, 0, 0)
        self._last_appended = Appended(0, 0, 0, 0)

    @staticmethod
    def are_in(folder: Path) -> bool:
        """Whether a folder has them by now."""
        try:
            return (folder / _ENDS).stat().st_size >= _ENDS_BYTES
        except FileNotFoundError:
            return False

    @property
    def moved(self) -> Moved:
        """What was moved; all 0 when nothing good is there."""
        numbers = self._load(_MOVED_AT, _MOVED)
        if numbers is not None:
            segment, offset, first, sequence, events, size = numbers
            place = Place(segment, offset, first)
            self._last_moved = Moved(place, sequence, events, size)
        return self._last_moved

    @moved.setter
    def moved(self, moved: Moved) -> None:
        place = moved.place
        numbers = (place.segment, place.offset, place.sequence)
        self._store(
            _MOVED_AT, _MOVED, *numbers, moved.sequence, moved.events, moved.size
        )

    @property
    def appended(self) -> Appended:
        """What was appended; all 0 when nothing good is there."""
        numbers = self._load(_APPENDED_AT, _APPENDED)
        if numbers is not None:
            self._last_appended = Appended(*numbers)
        return self._last_appended

    @appended.setter
    def appended(self, appended: Appended) -> None:
        self._store(
            _APPENDED_AT,
            _APPENDED,
            appended.segment,
            appended.complete,
            appended.events,
            appended.size,
        )

    def _load(self, at: int, form: struct.Struct) -> tuple[int, ...] | None:
        """Return numbers; None when they are not whole, or the page is closed."""
        for _ in range(_LOOKS):
            try:
                content = self._page[at : at + form.size + _CHECKSUM.size]
            except ValueError:
                break  # closed, maybe just now
            facts = content[: form.size]
            if content[form.size :] == _checksum(facts):
                return form.unpack(facts)
            if not any(content):
                break  # nobody has written it yet
        return None

    def _store(self, at: int, form: struct.Struct, *numbers: int) -> None:
        facts = form.pack(*numbers)
        self._page[at : at + form.size + _CHECKSUM.size] = facts + _checksum(facts)

    def close(self) -> None:
        """Close the page; what it last held can still be asked for."""
        if not self._page.closed:
            _ = self.moved, self.appended
            self._page.close()


def _checksum(facts: bytes) -> bytes:
    return _CHECKSUM.pack(zlib.crc32(facts))


class SetAside:
    """Events that the database refused for good, with the reason, a line each.

    Attributes
    ----------
    count, size : int
        How many there are, and their bytes.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _SET_ASIDE
        payloads = self.payloads()
        self.count, self.size = len(payloads), sum(map(len, payloads))

    def payloads(self) -> list[bytes]:
        """Return the events, each once.

        A line that a crash cut off is none: its event still waits.
        """
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        payloads: dict[bytes, None] = {}
        for line in filter(None, lines):
            try:
                payload = json.loads(line)["payload"].encode("utf-8", "surrogateescape")
            except (ValueError, LookupError, TypeError, AttributeError):
                log.warning("line is no event path=%s line=%r", self._path, line[:80])
                continue
            payloads[payload] = None
        return list(payloads)

    def add(self, payload: bytes, reason: str) -> None:
        """Keep an event; it is safe on disk before the call returns."""
        document = {
            "set_aside_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "reason": reason,
            "payload": payload.decode("utf-8", "surrogateescape"),
        }
        # On a line of its own, whatever a crash has left of the last one.
        line = b"\n" + json.dumps(document).encode() + b"\n"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_DSYNC
        file = os.open(self._path, flags, OWNER_ONLY)
        try:
            if os.write(file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(file)
        self.count += 1
        self.size += len(payload)

    def clear(self) -> None:
        """Forget all."""
        self._path.unlink(missing_ok=True)
        self.count = self.size = 0


def remove_slot(folder: Path) -> None:
    """Remove the folder of a slot whose events were all moved.

    Damaged segments stay, and their folder with them.
    """
    for path in folder.iterdir():
        if path.suffix != DAMAGED:
            path.unlink()
    with suppress(OSError):
        folder.rmdir()
