"""Moving: which events wait, in their order, and which need not be kept any more."""

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

from experiment_service.journal.groups import (
    DAMAGED,
    GroupReader,
    Place,
    first_place,
    segment_numbers,
    segment_path,
)
from experiment_service.journal.slot import Ends, Moved

_READ_BYTES = 8 << 20
# Segments that were moved and are kept to be written over, which is safe on disk sooner
# than making a file longer.
_SPARES = 2


def moved_so_far(folder: Path, ends: Ends) -> Moved:
    """Return how far a folder's events were moved; nothing where that is not known."""
    moved = ends.moved
    if segment_path(folder, moved.place.segment).exists():
        return moved
    place = first_place(folder)
    sequence = max(moved.sequence, place.sequence)
    return Moved(place, sequence, moved.events, moved.size)


class Mover:
    """Reads the events that wait, and forgets those that were moved; for one thread.

    Attributes
    ----------
    moved : Moved
        What is forgotten for good.
    gone, gone_size : int
        Events forgotten behind one that still waits, and their bytes.
    """

    def __init__(self, folder: Path, ends: Ends) -> None:
        # Told at once: segments before it may be written over.
        self.moved = ends.moved = moved_so_far(folder, ends)
        self.gone_size = 0
        self._folder = folder
        self._ends = ends
        self._reader = GroupReader(folder, self.moved.place)
        # Bytes of each event that was read, from the first one that waits on.
        self._sizes: dict[int, int] = {}
        self._gone: set[int] = set()
        # Groups that were read, each with the number after its last event.
        self._groups: deque[tuple[Place, int]] = deque()
        # Events that were read and not returned yet, and the last number returned.
        self._ahead: deque[tuple[int, bytes]] = deque()
        self._returned = 0

    @property
    def gone(self) -> int:
        """Events forgotten behind one that still waits."""
        return len(self._gone)

    def read(self, limit: int, after: int) -> list[tuple[int, bytes]]:
        """Return the oldest events with numbers above `after`, at most some 8 MiB.

        Raises
        ------
        OSError
            When a file can't be read.
        """
        if after != self._returned and self._sizes:
            self._begin_again()
        entries: list[tuple[int, bytes]] = []
        size = 0
        while len(entries) < limit and size < _READ_BYTES:
            if not self._ahead:
                if not self._read_ahead():
                    break
                continue
            sequence, payload = self._ahead.popleft()
            if sequence > after and self.waits(sequence):
                entries.append((sequence, payload))
                size += len(payload)
        self._returned = entries[-1][0] if entries else after
        self._advance()
        return entries

    def waits(self, sequence: int) -> bool:
        """Whether an event was read and is not forgotten."""
        return sequence in self._sizes and sequence not in self._gone

    def _begin_again(self) -> None:
        self._reader.place = self.moved.place
        self._sizes.clear()
        self._groups.clear()
        self._ahead.clear()

    def _read_ahead(self) -> bool:
        """Read one more group; False when there is none."""
        group = self._reader.read(complete=self._ends.appended.complete)
        if group is None:
            return False
        self._groups.append((group.place, group.end.sequence))
        for sequence, payload in enumerate(group.payloads, group.place.sequence):
            if sequence >= self.moved.sequence:
                self._sizes[sequence] = len(payload)
                self._ahead.append((sequence, payload))
        return True

    def forget(self, sequences: Sequence[int]) -> None:
        """Forget events that were read; others are none of ours.

        Raises
        ------
        OSError
            When a file that is not needed any more can't be removed.
        """
        for sequence in sequences:
            if self.waits(sequence):
                self._gone.add(sequence)
                self.gone_size += self._sizes[sequence]
        self._advance()

    def _advance(self) -> None:
        """Forget for good what is gone from the front."""
        passed = list(takewhile(self._gone.__contains__, self._sizes))
        if not passed:
            return
        size = sum(self._sizes.pop(sequence) for sequence in passed)
        self._gone.difference_update(passed)
        self.gone_size -= size
        following = passed[-1] + 1
        while self._groups and self._groups[0][1] <= following:
            self._groups.popleft()
        place = self._groups[0][0] if self._groups else self._reader.place
        self.moved = Moved(
            place, following, self.moved.events + len(passed), self.moved.size + size
        )
        self._keep_damaged(place.segment)
        self._ends.moved = self.moved
        self._tidy(place.segment)

    def _keep_damaged(self, needed: int) -> None:
        """Put damaged segments out of the way, to be looked into by hand."""
        for number in [each for each in self._reader.damaged if each < needed]:
            path = segment_path(self._folder, number)
            with suppress(FileNotFoundError):
                path.rename(path.with_suffix(DAMAGED))
            self._reader.damaged.remove(number)

    def _tidy(self, needed: int) -> None:
        """Remove segments before the one that is needed, but for the spares."""
        used = [n for n in segment_numbers(self._folder) if n < needed]
        for number in used[:-_SPARES]:
            # Another process may take it to be written over at the same time.
            segment_path(self._folder, number).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        self._reader.close()
