"""Groups of events in segments: how they are written, and read again in their order.

A segment is a file of some 4 MiB. It begins with its own number and the number of its
first event, and holds groups: what is made safe at once, with its checksum. A
group that was cut off is no group, and what a used segment held before is of numbers long
past: both end what can be read. The module knows no locks, and not what events mean.
"""

import errno
import logging
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from experiment_service.files import OWNER_ONLY

log = logging.getLogger(__name__)

#: Bytes after which a segment is followed by another.
SEGMENT_BYTES = 4 << 20

# Mark, number, number of its first event, and the number before which all events are in
# former segments; a checksum of these.
_SEGMENT_FACTS = struct.Struct("<4sIQQ")
_SEGMENT_BYTES = _SEGMENT_FACTS.size + 4
_SEGMENT_MARK = b"ESJ1"
# Mark and checksum; bytes of the rest, events, number of the first one, seconds since
# 1970. The lengths of the events follow, and the events.
_GROUP = struct.Struct("<4sI")
_GROUP_FACTS = struct.Struct("<IIQd")
_GROUP_MARK = b"ESJg"
_HEAD_BYTES = _GROUP.size + _GROUP_FACTS.size

_WINDOW_BYTES = 256 << 10
_SUFFIX = ".log"
#: Suffix of segments that were put out of the way, to be looked into by hand.
DAMAGED = ".damaged"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a group begins or will begin.

    Attributes
    ----------
    segment, offset : int
        Number of the file, and bytes from its beginning.
    sequence : int
        Number of the group's first event.
    """

    segment: int
    offset: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Group:
    """Events that were written together.

    Attributes
    ----------
    place, end : Place
        Where it begins, and where the next one would.
    written_at : float
        Seconds since 1970.
    payloads : list of bytes
        The events; the first one's number is that of the place.
    """

    place: Place
    end: Place
    written_at: float
    payloads: list[bytes]


def segment_numbers(folder: Path) -> list[int]:
    """Return the numbers of the segments that are there, the smallest first."""
    return sorted(
        int(path.stem)
        for path in folder.iterdir()
        if path.suffix == _SUFFIX and path.stem.isdecimal()
    )


def segment_path(folder: Path, number: int) -> Path:
    """Return the file of a segment."""
    return folder / f"{number:010d}{_SUFFIX}"


def first_place(folder: Path) -> Place:
    """Return where the oldest segment begins; where the first will, if there is none."""
    for number in segment_numbers(folder):
        head = _read_head(folder, number)
        if head is not None and not head.damaged:
            return Place(number, _SEGMENT_BYTES, head.sequence)
    return Place(0, 0, 1)


@dataclass(frozen=True, slots=True)
class _Head:
    """How a segment begins; of a damaged one that is not known."""

    sequence: int = 0
    before: int = 0
    damaged: bool = False


def _write_head(number: int, sequence: int, before: int) -> bytes:
    facts = _SEGMENT_FACTS.pack(_SEGMENT_MARK, number, sequence, before)
    return facts + zlib.crc32(facts).to_bytes(4, "little")


def _read_head(folder: Path, number: int) -> _Head | None:
    """Return how a segment begins, None when it does not yet."""
    try:
        with segment_path(folder, number).open("rb", buffering=0) as file:
            content = file.read(_SEGMENT_BYTES)
    except FileNotFoundError:
        return None
    if len(content) < _SEGMENT_BYTES:
        return None
    _, own, sequence, before = _SEGMENT_FACTS.unpack_from(content)
    if content != _write_head(own, sequence, before):
        return _Head(damaged=True)
    # One with another number was used before, and is about to be written over.
    return _Head(sequence, before) if own == number else None


def _encode(sequence: int, now: float, payloads: Sequence[bytes]) -> bytes:
    count = len(payloads)
    body = b"".join((struct.pack(f"<{count}I", *map(len, payloads)), *payloads))
    facts = _GROUP_FACTS.pack(len(body), count, sequence, now)
    checksum = zlib.crc32(body, zlib.crc32(facts))
    return b"".join((_GROUP.pack(_GROUP_MARK, checksum), facts, body))


class Unsafe(NamedTuple):
    """What has to be synced before a group is safe.

    Attributes
    ----------
    file : int
        Descriptor of its segment.
    folder : int or None
        Descriptor of the segment's folder, when its name is new too.
    """

    file: int
    folder: int | None


class GroupWriter:
    """Writes groups, which the caller then makes safe; for one thread at a time.

    After a failure it goes on in another segment and with other numbers: nobody knows
    what of the group is on disk, and whoever reads may have seen it.

    Parameters
    ----------
    folder : Path
    segment : int
        Largest number of a segment that there ever was.
    sequence : int
        Number of the next event; all before are in segments, or moved.

    Attributes
    ----------
    segment : int
        Largest number of a segment that there ever was.
    complete : int
        All events with smaller numbers are safe, and can be read.
    """

    def __init__(self, folder: Path, *, segment: int, sequence: int) -> None:
        self._folder = folder
        self.segment = segment
        self._file: int | None = None
        self._folder_file: int | None = None
        # Whether nothing in the last segment has been made safe yet.
        self._is_unproven = False
        self._offset = 0
        self._next = self.complete = sequence

    def write(
        self, now: float, payloads: Sequence[bytes], *, used: Callable[[], int]
    ) -> Unsafe:
        """Write one group; `confirm` it once it is safe, or `give_up` when that failed.

        Parameters
        ----------
        now : float
            Seconds since 1970.
        used : callable
            Returns the number below which segments have been moved, and may be written
            over.

        Returns
        -------
        unsafe : Unsafe
            What has to be synced.

        Raises
        ------
        OSError
            When the disk fails or is full; the group may be readable all the same.
        """
        group = _encode(self._next, now, payloads)
        first = self._next
        self._next += len(payloads)
        try:
            if self._file is None or self._offset >= SEGMENT_BYTES:
                return self._begin(first, group, used)
            _write_all(self._file, group, self._offset)
        except BaseException:
            self.give_up()
            raise
        self._offset += len(group)
        return Unsafe(self._file, None)

    def confirm(self) -> None:
        """Take note that what was written is safe."""
        self.complete = self._next
        self._is_unproven = False

    def give_up(self) -> None:
        """Go on in another segment; one that holds nothing safe is removed."""
        self.close()
        if self._is_unproven:
            self._is_unproven = False
            with suppress(OSError):
                segment_path(self._folder, self.segment).unlink()

    def _begin(self, first: int, group: bytes, used: Callable[[], int]) -> Unsafe:
        """Begin a segment; the number of one that failed is not used again."""
        self.close()
        self.segment += 1
        self._is_unproven = True
        path = segment_path(self._folder, self.segment)
        content = _write_head(self.segment, first, self.complete) + group
        is_new = not self._take_used(path, used())
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, OWNER_ONLY)
        self._folder_file = os.open(self._folder, os.O_RDONLY)
        if is_new:
            # Once: each write that makes a file longer takes the disk longer.
            os.posix_fallocate(self._file, 0, SEGMENT_BYTES)
        _write_all(self._file, content, 0)
        self._offset = len(content)
        return Unsafe(self._file, self._folder_file)

    def _take_used(self, path: Path, used: int) -> bool:
        """Give the oldest used segment another name; False when there is none."""
        for number in segment_numbers(self._folder):
            if number >= used:
                break
            # Another process may remove it at the same time.
            with suppress(FileNotFoundError):
                segment_path(self._folder, number).rename(path)
                return True
        return False

    def close(self) -> None:
        """Close the files."""
        for file in (self._file, self._folder_file):
            if file is not None:
                os.close(file)
        self._file = self._folder_file = None


def _write_all(file: int, content: bytes, offset: int) -> None:
    written = os.pwrite(file, content, offset)
    while written < len(content):
        # Cut short by a full disk: the next call says so.
        more = os.pwrite(file, content[written:], offset + written)
        if not more:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        written += more


class GroupReader:
    """Reads groups in their order, also while another process writes; for one thread.

    Parameters
    ----------
    folder : Path
    place : Place
        Of the first group to read.

    Attributes
    ----------
    place : Place
        Of the next one.
    damaged : set of int
        Segments in which events could not be read that had been written.
    """

    def __init__(self, folder: Path, place: Place) -> None:
        self.place = place
        self.damaged: set[int] = set()
        self._folder = folder
        self._opened: tuple[int, int] | None = None
        self._window, self._window_at = b"", 0

    def read(self, *, complete: int, ended: bool = False) -> Group | None:
        """Return the next group; None when there is none yet.

        What is damaged is told in the log and passed over, up to the next good group.

        Parameters
        ----------
        complete : int
            As of `GroupWriter`: what can't be read before it is damaged.
        ended : bool
            Whether nobody writes any more, so that nothing good follows a bad group
            unless that is damaged.
        """
        while True:
            was_read_now = not self._window
            group = self._group_at(self.place.offset, self.place.sequence)
            if group is not None:
                self.place = group.end
                return group
            # What was read ahead may have been written by now: look once more.
            self._window = b""
            if was_read_now and not self._go_on(complete, ended=ended):
                return None

    def _go_on(self, complete: int, *, ended: bool) -> bool:
        """Go to where the next group may be; False when there is no such place yet."""
        following, bound = self._following(complete)
        is_short = self.place.sequence < bound
        if is_short or (ended and following is None):
            later = self._later_group()
            if later is not None or is_short:
                self._tell_damage(bound if later is None else later.sequence)
            if later is not None:
                self.place = later
                return True
        if following is not None:
            self.place = following
            return True
        if is_short:
            self.place = Place(self.place.segment, self.place.offset, bound)
        return False

    def _following(self, complete: int) -> tuple[Place | None, int]:
        """Return where the next segment begins, and the number before which all is here."""
        numbers = segment_numbers(self._folder)
        numbers = [number for number in numbers if number > self.place.segment]
        for number in numbers:
            head = _read_head(self._folder, number)
            if head is None:
                continue
            if not head.damaged:
                return Place(number, _SEGMENT_BYTES, head.sequence), head.before
            # The last one may be about to be written.
            if number < numbers[-1] or self.place.sequence < complete:
                self.damaged.add(number)
                here = self.place.sequence
                return Place(number, _SEGMENT_BYTES, here), here
        return None, complete

    def _later_group(self) -> Place | None:
        """Find the next good group of this segment, beyond one that is not."""
        file = self._file()
        if file is None:
            return None
        offset = self.place.offset
        content = os.pread(file, os.fstat(file).st_size, offset)
        found = content.find(_GROUP_MARK)
        while found >= 0:
            group = self._group_at(offset + found, None)
            if group is not None and group.place.sequence >= self.place.sequence:
                return group.place
            found = content.find(_GROUP_MARK, found + 1)
        return None

    def _tell_damage(self, until: int) -> None:
        if until == self.place.sequence:
            return  # it was written just now
        self.damaged.add(self.place.segment)
        log.error(
            "journal is damaged path=%s offset=%d lost=%d",
            segment_path(self._folder, self.place.segment),
            self.place.offset,
            until - self.place.sequence,
        )

    def _group_at(self, offset: int, sequence: int | None) -> Group | None:
        """Return the group at an offset if it is whole, and the one expected."""
        head = self._bytes(offset, _HEAD_BYTES)
        if len(head) < _HEAD_BYTES:
            return None
        mark, checksum = _GROUP.unpack_from(head)
        size, count, first, written_at = _GROUP_FACTS.unpack_from(head, _GROUP.size)
        if mark != _GROUP_MARK or sequence not in (None, first) or size < 4 * count:
            return None
        body = self._bytes(offset + _HEAD_BYTES, size)
        if len(body) < size or checksum != zlib.crc32(
            body, zlib.crc32(head[_GROUP.size :])
        ):
            return None
        payloads, begin = [], 4 * count
        for length in struct.unpack_from(f"<{count}I", body):
            payloads.append(body[begin : begin + length])
            begin += length
        segment = self.place.segment
        return Group(
            place=Place(segment, offset, first),
            end=Place(segment, offset + _HEAD_BYTES + size, first + count),
            written_at=written_at,
            payloads=payloads,
        )

    def _bytes(self, offset: int, size: int) -> bytes:
        """Return bytes of the segment, fewer where it ends."""
        file = self._file()
        if file is None:
            return b""
        begin = offset - self._window_at
        if begin < 0 or begin + size > len(self._window):
            # Never more than there is, whatever a damaged group says of its size.
            most = min(max(size, _WINDOW_BYTES), os.fstat(file).st_size)
            self._window, self._window_at = os.pread(file, most, offset), offset
            begin = 0
        return self._window[begin : begin + size]

    def _file(self) -> int | None:
        """Return the open file of the segment; None when there is none."""
        if self._opened is not None and self._opened[0] == self.place.segment:
            return self._opened[1]
        self.close()
        path = segment_path(self._folder, self.place.segment)
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        self._opened = (self.place.segment, file)
        return file

    def close(self) -> None:
        """Close the file."""
        self._window = b""
        if self._opened is not None:
            os.close(self._opened[1])
            self._opened = None
