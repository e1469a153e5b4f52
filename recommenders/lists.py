"""Published lists: what a trained version recommends, as a folder of plain arrays.

`publishing` writes a folder once, whole or not at all; `PublishedLists` maps it into
memory, so that all serving processes share one copy through the page cache. Knows ids
and rows only: neither how lists were made nor when they are served.

Units and items lie in the order of the first 64 bits of SHA-256 of their id, which makes
finding one a binary search in the map.
"""

import fcntl
import hashlib
import mmap
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommenders.list_format import (
    IDS,
    NAMES,
    check_codes,
    check_scores,
    damaged,
    hash_of,
    hashes_of,
    in_range,
    read_manifest,
)

# How many ids a version keeps as texts, of some 60 bytes each beside 8 for every item. Rows
# lie in the order of a hash: these are as often asked for as others.
_KEPT_IDS = 250_000

# A mapped array as plain numbers: one is read ten times faster than through NumPy.
_Numbers = memoryview | NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PublishedLists:
    """The lists of one version, mapped into memory; safe to read from many threads.

    Attributes
    ----------
    name, version : str, int
        Of the model.
    label : str
        Both, such as ``als/3``.
    depth : int
        Longest list.
    units, items : int
        How many units have a list, and how many items the catalogue has.
    sha256 : str
        Of the manifest; equal to what `publish_lists` returned.
    default : list of str
        What a unit without a list is shown.
    labels : tuple of str
        What puts items into the lists of units, as of `publish_lists`; none where it is
        the recommender itself throughout.
    session_fade : tuple of float
        As of `publish_lists`; none where `for_session` has nothing to go by.
    """

    directory: Path
    name: str
    version: int
    label: str
    depth: int
    units: int
    items: int
    sha256: str
    default: list[str]
    labels: tuple[str, ...]
    session_fade: tuple[float, ...]
    _files: Mapping[str, Mapping[str, Any]]
    _unit_hashes: _Numbers
    _lists: _Numbers
    _sources: _Numbers | None
    _item_hashes: _Numbers
    _item_ids: mmap.mmap
    _item_offsets: _Numbers
    # Ids by row, once needed: each is in many lists, and takes longer to make than to find.
    _known_ids: list[str | None]
    _related: _Numbers | None
    _related_scores: _Numbers | None
    _names: tuple[mmap.mmap, _Numbers] | None

    @classmethod
    def open(cls, directory: Path) -> "PublishedLists":
        """Map a folder; takes no longer for many units than for few.

        Raises
        ------
        ValueError
            When a file is missing, cut off, of another format or shape. Changed bytes
            inside a file of the right size are found by `verify` only.
        """
        manifest, sha256 = read_manifest(directory)
        units, items, depth = (manifest[key] for key in ("units", "items", "depth"))
        files = manifest["files"]

        def array(file: str, dtype: type[np.generic], *shape: int) -> NDArray[Any]:
            _check_size(directory, file, files)
            return _map_array(directory / file, np.dtype(dtype), shape)

        def texts(name: str, offsets: str) -> tuple[mmap.mmap, NDArray[np.int64]]:
            starts = array(offsets, np.int64, items + 1)
            _check_size(directory, name, files)
            return _map_texts(directory / name, starts), starts

        item_ids, offsets = texts(*IDS)
        if np.any(np.diff(offsets) < 1):
            raise damaged(directory / IDS[1], "holds an empty item id")
        names = texts(*NAMES) if NAMES[0] in files else None
        default = array("default.npy", np.int32, depth)
        if not in_range(default, items):
            raise damaged(directory / "default.npy", "names an item that is not there")
        related = "related.npy" in files
        sources, labels = None, tuple(manifest.get("labels", ()))
        if labels:
            sources = array("sources.npy", np.int8, units, depth)
        scores, fade = None, tuple(manifest.get("session_fade", ()))
        if fade:
            scores = array("related_scores.npy", np.float32, items, depth)
            related = True
        return cls(
            directory=directory,
            name=manifest["name"],
            version=manifest["version"],
            label=f"{manifest['name']}/{manifest['version']}",
            depth=depth,
            units=units,
            items=items,
            sha256=sha256,
            default=_texts(default.tolist(), item_ids, offsets),
            labels=labels,
            session_fade=fade,
            _files=files,
            _unit_hashes=_numbers(array("units.npy", np.uint64, units)),
            _lists=_numbers(array("lists.npy", np.int32, units, depth)),
            _sources=None if sources is None else _numbers(sources),
            _item_hashes=_numbers(array("items.npy", np.uint64, items)),
            _item_ids=item_ids,
            _item_offsets=_numbers(offsets),
            _known_ids=[None] * items,
            _related=_numbers(array("related.npy", np.int32, items, depth))
            if related
            else None,
            _related_scores=None if scores is None else _numbers(scores),
            _names=None if names is None else (names[0], _numbers(names[1])),
        )

    @classmethod
    def open_verified(cls, directory: Path, sha256: str) -> "PublishedLists":
        """Map a folder that must have this digest, and read every byte of it.

        Raises
        ------
        ValueError
            As `open` and `verify`, or when the folder is of another digest.
        """
        lists = cls.open(directory)
        if lists.sha256 != sha256:
            raise ValueError(
                f"{directory} has digest {lists.sha256}, the registry says {sha256}"
            )
        lists.verify()
        return lists

    def for_unit(self, unit_id: str, limit: int | None = None) -> list[str] | None:
        """Return a unit's items, best first; None when it has no list.

        Parameters
        ----------
        limit : int, optional
            How many at most; each costs time.
        """
        return self._list(self._lists, _find(self._unit_hashes, unit_id), limit)

    def for_unit_labelled(
        self, unit_id: str, limit: int | None = None
    ) -> tuple[list[str], list[str]] | None:
        """Return a unit's items, and the label of each; None when it has no list.

        Of lists that have labels; `limit` as in `for_unit`.
        """
        row = _find(self._unit_hashes, unit_id)
        items = self._list(self._lists, row, limit)
        if row is None or items is None or self._sources is None:
            return None
        start = row * self.depth
        codes = self._sources[start : start + len(items)].tolist()
        return items, [self.labels[code] for code in codes]

    def related(self, item_id: str, limit: int | None = None) -> list[str] | None:
        """Return items that go with an item; None when it or the relation is unknown.

        `limit` as in `for_unit`.
        """
        if self._related is None:
            return None
        return self._list(self._related, _find(self._item_hashes, item_id), limit)

    def for_session(self, item_ids: Sequence[str], limit: int) -> list[str]:
        """Return the items that go best with those that somebody just had to do with.

        Scores are summed up as in training, in its order and precision; they are those
        of `TrainedRecommender.for_sessions` as far as the related lists reach.

        Parameters
        ----------
        item_ids : sequence of str
            The latest last; one that comes twice counts for both, unknown ones do not.
        limit : int, >= 1
            How many at most.

        Returns
        -------
        list of str
            Best first, equal ones by id; the given ones may be among them.
        """
        if self._related is None or self._related_scores is None:
            return []
        found = (_find(self._item_hashes, each) for each in reversed(item_ids))
        known = (row for row in found if row is not None)
        weights: dict[int, float] = {}
        for row, weight in zip(known, self.session_fade, strict=False):
            weights[row] = weights.get(row, 0.0) + weight
        if not weights:
            return []
        order = sorted(weights, key=self._item_id)
        spans = [slice(row * self.depth, (row + 1) * self.depth) for row in order]
        rows = np.concatenate([self._related[span] for span in spans])
        scores = np.concatenate([self._related_scores[span] for span in spans])
        factors = np.array([weights[row] for row in order], dtype=np.float32)
        real = rows >= 0
        candidates, places = np.unique(rows[real], return_inverse=True)
        sums = np.zeros(candidates.size, dtype=np.float32)
        np.add.at(sums, places, scores[real] * np.repeat(factors, self.depth)[real])
        if sums.size > limit:
            least = np.partition(sums, -limit)[-limit]
            candidates, sums = candidates[sums >= least], sums[sums >= least]
        ids = self._ids(candidates.tolist())
        best = sorted(zip((-sums).tolist(), ids, strict=True))
        return [each for _, each in best[:limit]]

    def _ids(self, rows: list[int]) -> list[str]:
        known = self._known_ids
        return [known[row] or self._item_id(row) for row in rows if row >= 0]

    def _item_id(self, row: int) -> str:
        (text,) = _texts([row], self._item_ids, self._item_offsets)
        if row < _KEPT_IDS:
            self._known_ids[row] = text
        return text

    def name_of(self, item_id: str) -> str:
        """Return what people call an item; empty when it is not known."""
        row = _find(self._item_hashes, item_id)
        if row is None or self._names is None:
            return ""
        (name,) = _texts([row], *self._names)
        return name

    def shares_known(
        self, unit_ids: Sequence[str], item_ids: Sequence[str]
    ) -> tuple[float, float]:
        """Return the shares of its units and of its items that are among these ids."""
        ours, given = (self._unit_hashes, self._item_hashes), (unit_ids, item_ids)
        units, items = (
            float(np.isin(np.asarray(hashes), hashes_of(ids)).mean())
            for hashes, ids in zip(ours, given, strict=True)
        )
        return units, items

    def check_content(self) -> list[str]:
        """Check what `open` trusts a writer with: lists name items, ids are in order.

        For lists that come from elsewhere.

        Returns
        -------
        list of str
            The item ids, which may break rules of whoever shows them.

        Raises
        ------
        ValueError
            Names the file that breaks a rule.
        """
        self._check_rows()
        rows = list(range(self.items))
        try:
            ids = _texts(rows, self._item_ids, self._item_offsets)
            if self._names is not None:
                _texts(rows, *self._names)
        except UnicodeDecodeError as error:
            raise damaged(
                self.directory, f"holds a text that is none: {error}"
            ) from error
        ordered = {"units.npy": self._unit_hashes, "items.npy": self._item_hashes}
        for file, numbers in ordered.items():
            hashes = np.asarray(numbers)
            if np.any(hashes[1:] <= hashes[:-1]):
                raise damaged(self.directory / file, "is not in ascending order")
        if not np.array_equal(hashes_of(ids), np.asarray(self._item_hashes)):
            raise damaged(self.directory / "items.npy", "is not of the item ids")
        return ids

    def _check_rows(self) -> None:
        for file, flat in (("lists.npy", self._lists), ("related.npy", self._related)):
            if flat is not None and not in_range(np.asarray(flat), self.items):
                raise damaged(self.directory / file, "names an item that is not there")
        file = ""
        try:
            if self._sources is not None:
                file = "sources.npy"
                check_codes(np.asarray(self._sources), self.labels)
            if self._related is not None and self._related_scores is not None:
                file = "related_scores.npy"
                scores = np.asarray(self._related_scores)
                check_scores(scores, np.asarray(self._related))
        except ValueError as error:
            raise damaged(self.directory / file, f"is wrong: {error}") from error

    def _list(
        self, lists: _Numbers, row: int | None, limit: int | None
    ) -> list[str] | None:
        if row is None:
            return None
        start = row * self.depth
        end = start + (self.depth if limit is None else min(limit, self.depth))
        return self._ids(lists[start:end].tolist())

    def verify(self) -> None:
        """Read every byte and compare with the manifest; about 1 s per GB.

        Raises
        ------
        ValueError
            Names the file that changed since it was published.
        """
        for file, facts in self._files.items():
            path = self.directory / file
            try:
                with path.open("rb") as content:
                    digest = hashlib.file_digest(content, "sha256").hexdigest()
            except OSError as error:
                raise damaged(path, f"can't be read ({error.strerror})") from error
            if digest != facts["sha256"]:
                raise damaged(path, f"has SHA-256 {digest}, not {facts['sha256']}")


def is_open(directory: Path) -> bool:
    """Whether a process of this machine has a folder of lists mapped."""
    try:
        with (directory / IDS[0]).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _find(hashes: _Numbers, identifier: str) -> int | None:
    wanted = hash_of(identifier)
    row = bisect_left(hashes, wanted)
    return row if row < len(hashes) and hashes[row] == wanted else None


def _texts(rows: list[int], blob: mmap.mmap, offsets: _Numbers) -> list[str]:
    return [blob[offsets[row] : offsets[row + 1]].decode() for row in rows if row >= 0]


def _numbers(array: NDArray[Any]) -> _Numbers:
    """Return an array, its rows one after the other, for reading single numbers."""
    flat = array.reshape(-1)
    # A memoryview knows the machine's own byte order only.
    return flat.data if flat.dtype.isnative else flat


def _check_size(directory: Path, file: str, files: Mapping[str, Any]) -> None:
    path = directory / file
    try:
        size = path.stat().st_size
    except OSError as error:
        raise damaged(path, f"can't be read ({error.strerror})") from error
    if file not in files or size != files[file]["bytes"]:
        expected = files.get(file, {}).get("bytes")
        raise damaged(path, f"has {size} bytes; the manifest says {expected}")


def _map_array(
    path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise damaged(path, f"is not an array file ({error})") from error
    if array.dtype != dtype.newbyteorder("<") or array.shape != shape:
        raise damaged(
            path,
            f"is {array.dtype} of shape {array.shape}, not {dtype} of shape {shape}",
        )
    # The plain view of the same memory; `numpy.memmap` slows down each indexing.
    return np.asarray(array).view(np.ndarray)


def _map_texts(path: Path, offsets: NDArray[np.int64]) -> mmap.mmap:
    with path.open("rb") as file:
        # The map holds the file open, and with it the lock that `is_open` looks for.
        with suppress(OSError):  # on a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH)
        texts = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if offsets[0] != 0 or offsets[-1] != len(texts) or np.any(np.diff(offsets) < 0):
        raise damaged(path, "does not fit its offsets")
    return texts
