"""Published lists: what a trained version recommends, as a folder of plain arrays.

`publish_lists` writes a folder once, whole or not at all; `PublishedLists` maps it into
memory, so that all serving processes share one copy through the page cache. Knows ids
and rows only: neither how lists were made nor when they are served.

Units and items lie in the order of the first 64 bits of SHA-256 of their id, which makes
finding one a binary search in the map.
"""

import fcntl
import hashlib
import json
import mmap
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommenders.folders import (
    flush_folder,
    new_folder,
    npy_parts,
    write_array,
    write_file,
)

FORMAT = "experiment-service lists"
FORMAT_VERSION = 1

MANIFEST = "manifest.json"
#: Files of texts, one after the other, and of where each begins.
_IDS = ("item_ids.bin", "item_offsets.npy")
_NAMES = ("item_names.bin", "item_name_offsets.npy")
_FILES = frozenset(
    {"units.npy", "lists.npy", "sources.npy", "items.npy", "default.npy", "related.npy"}
    | {*_IDS, *_NAMES}
)
_BLOCK_ROWS = 65_536
#: Characters of a label, so that it makes an id with the name of a model before it.
_MAX_LABEL = 60

_Rows = NDArray[np.int32]
_Sources = NDArray[np.int8]
_Hashes = NDArray[np.uint64]

# A mapped array as plain numbers: one is read ten times faster than through NumPy.
_Numbers = memoryview | NDArray[Any]


def publish_lists(
    directory: Path,
    *,
    name: str,
    version: int,
    unit_ids: Sequence[str],
    lists: _Rows,
    item_ids: Sequence[str],
    default: _Rows,
    related: _Rows | None = None,
    item_names: Sequence[str] | None = None,
    sources: _Sources | None = None,
    labels: Sequence[str] = (),
) -> str:
    """Write the lists of one version into a new folder.

    The folder is written under a temporary name beside `directory`, flushed to disk and
    renamed, so it exists whole or not at all.

    Parameters
    ----------
    directory : Path
        The folder to make; its parents are made too.
    unit_ids : sequence of str, length U
        Distinct, at least one.
    lists : int32 array, shape (U, depth)
        Rows of `item_ids`, best first, padded with -1 at the end; may be a memory map.
    item_ids : sequence of str, length I
        Distinct, at least one.
    default : int32 array, shape (depth,)
        What a unit without a list is shown; padded as `lists`.
    related : int32 array, shape (I, depth), optional
        Items that go with each item.
    item_names : sequence of str, length I, optional
        What people call each item, empty where nobody knows; no answer has them.
    sources : int8 array, shape (U, depth), optional
        Place in `labels` of what put each item of `lists` there.
    labels : sequence of str
        Empty for the recommender itself, else its part or a re-ranking step.

    Returns
    -------
    str
        SHA-256 of the manifest, which holds that of every file.

    Raises
    ------
    ValueError
        When a shape, type, item row or id breaks these rules, or two ids have one hash.
    FileExistsError
        When the folder exists; a published version is never changed.
    OSError
        When it can't be written, such as on a full disk; nothing is left behind.
    """
    if version < 1:
        raise ValueError(f"version is {version}; it must be 1 or more")
    lists = _checked_rows("lists", lists, (len(unit_ids), default.size), len(item_ids))
    default = _checked_rows("default", default, (lists.shape[1],), len(item_ids))
    if related is not None:
        shape = (len(item_ids), lists.shape[1])
        related = _checked_rows("related", related, shape, len(item_ids))
    if sources is not None:
        _check_sources(sources, lists.shape, labels)
    unit_hashes, unit_order = _sorted_hashes("unit", unit_ids)
    item_hashes, item_order = _sorted_hashes("item", item_ids)
    # One place more than items, so that the padding -1 indexes to itself.
    new_row = np.full(len(item_ids) + 1, -1, dtype=np.int32)
    new_row[item_order] = np.arange(len(item_ids), dtype=np.int32)
    with new_folder(directory, f"lists {name}/{version}") as folder:
        files = {
            "units.npy": write_array(folder / "units.npy", unit_hashes),
            "lists.npy": _write_rows(folder / "lists.npy", lists, unit_order, new_row),
            "items.npy": write_array(folder / "items.npy", item_hashes),
            **_write_texts(
                folder, _IDS, [item_ids[row] for row in item_order.tolist()]
            ),
            "default.npy": write_array(folder / "default.npy", new_row[default]),
        }
        if related is not None:
            files["related.npy"] = _write_rows(
                folder / "related.npy", related, item_order, new_row
            )
        if item_names is not None and any(item_names):
            if len(item_names) != len(item_ids):
                raise ValueError(
                    f"item_names are {len(item_names)}; there are {len(item_ids)} items"
                )
            files |= _write_texts(
                folder, _NAMES, [item_names[row] for row in item_order.tolist()]
            )
        if sources is not None:
            files["sources.npy"] = write_array(
                folder / "sources.npy", sources[unit_order]
            )
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "name": name,
            "version": version,
            "units": len(unit_ids),
            "items": len(item_ids),
            "depth": int(lists.shape[1]),
            "labels": [] if sources is None else list(labels),
            "files": files,
        }
        content = _encoded(manifest)
        write_file(folder / MANIFEST, [content])
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PublishedLists:
    """The lists of one version, mapped into memory; safe to read from many threads.

    Attributes
    ----------
    name, version : str, int
        Of the model.
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
    """

    directory: Path
    name: str
    version: int
    depth: int
    units: int
    items: int
    sha256: str
    default: list[str]
    labels: tuple[str, ...]
    _files: Mapping[str, Mapping[str, Any]]
    _unit_hashes: _Numbers
    _lists: _Numbers
    _sources: _Numbers | None
    _item_hashes: _Numbers
    _item_ids: mmap.mmap
    _item_offsets: _Numbers
    _related: _Numbers | None
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
        manifest, sha256 = _read_manifest(directory)
        units, items, depth = (manifest[key] for key in ("units", "items", "depth"))
        files = manifest["files"]

        def array(file: str, dtype: type[np.generic], *shape: int) -> NDArray[Any]:
            _check_size(directory, file, files)
            return _map_array(directory / file, np.dtype(dtype), shape)

        def texts(name: str, offsets: str) -> tuple[mmap.mmap, NDArray[np.int64]]:
            starts = array(offsets, np.int64, items + 1)
            _check_size(directory, name, files)
            return _map_texts(directory / name, starts), starts

        item_ids, offsets = texts(*_IDS)
        if np.any(np.diff(offsets) < 1):
            raise _damaged(directory / _IDS[1], "holds an empty item id")
        names = texts(*_NAMES) if _NAMES[0] in files else None
        default = array("default.npy", np.int32, depth)
        if not _in_range(default, items):
            raise _damaged(directory / "default.npy", "names an item that is not there")
        related = "related.npy" in files
        sources, labels = None, tuple(manifest.get("labels", ()))
        if labels:
            sources = array("sources.npy", np.int8, units, depth)
        return cls(
            directory=directory,
            name=manifest["name"],
            version=manifest["version"],
            depth=depth,
            units=units,
            items=items,
            sha256=sha256,
            default=_texts(default.tolist(), item_ids, offsets),
            labels=labels,
            _files=files,
            _unit_hashes=_numbers(array("units.npy", np.uint64, units)),
            _lists=_numbers(array("lists.npy", np.int32, units, depth)),
            _sources=None if sources is None else _numbers(sources),
            _item_hashes=_numbers(array("items.npy", np.uint64, items)),
            _item_ids=item_ids,
            _item_offsets=_numbers(offsets),
            _related=_numbers(array("related.npy", np.int32, items, depth))
            if related
            else None,
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
            float(np.isin(np.asarray(hashes), _hashes(ids)).mean())
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
        for file, flat in (("lists.npy", self._lists), ("related.npy", self._related)):
            if flat is not None and not _in_range(np.asarray(flat), self.items):
                raise _damaged(self.directory / file, "names an item that is not there")
        if self._sources is not None:
            try:
                _check_codes(np.asarray(self._sources), self.labels)
            except ValueError as error:
                raise _damaged(
                    self.directory / "sources.npy", f"is wrong: {error}"
                ) from error
        rows = list(range(self.items))
        try:
            ids = _texts(rows, self._item_ids, self._item_offsets)
            if self._names is not None:
                _texts(rows, *self._names)
        except UnicodeDecodeError as error:
            raise _damaged(
                self.directory, f"holds a text that is none: {error}"
            ) from error
        ordered = {"units.npy": self._unit_hashes, "items.npy": self._item_hashes}
        for file, numbers in ordered.items():
            hashes = np.asarray(numbers)
            if np.any(hashes[1:] <= hashes[:-1]):
                raise _damaged(self.directory / file, "is not in ascending order")
        if not np.array_equal(_hashes(ids), np.asarray(self._item_hashes)):
            raise _damaged(self.directory / "items.npy", "is not of the item ids")
        return ids

    def _list(
        self, lists: _Numbers, row: int | None, limit: int | None
    ) -> list[str] | None:
        if row is None:
            return None
        start = row * self.depth
        length = self.depth if limit is None else min(limit, self.depth)
        rows = lists[start : start + length].tolist()
        return _texts(rows, self._item_ids, self._item_offsets)

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
                raise _damaged(path, f"can't be read ({error.strerror})") from error
            if digest != facts["sha256"]:
                raise _damaged(path, f"has SHA-256 {digest}, not {facts['sha256']}")


def relabel(directory: Path, *, name: str, version: int) -> str:
    """Give lists that nobody serves yet another name and number; return the new digest.

    Raises
    ------
    ValueError
        When the manifest is not one.
    OSError
        When it can't be written.
    """
    manifest, _ = _read_manifest(directory)
    content = _encoded({**manifest, "name": name, "version": version})
    (directory / MANIFEST).unlink()
    write_file(directory / MANIFEST, [content])
    flush_folder(directory)
    return hashlib.sha256(content).hexdigest()


def manifest_files(directory: Path) -> list[str]:
    """Return the files that make up lists, beside the manifest in this folder.

    Raises
    ------
    ValueError
        When the manifest is not one, or names a file that lists don't have.
    """
    manifest, _ = _read_manifest(directory)
    for file in manifest["files"]:
        if file not in _FILES:
            raise _damaged(directory / MANIFEST, f"names the file {file[:80]!r}")
    return sorted(manifest["files"])


def is_open(directory: Path) -> bool:
    """Whether a process of this machine has a folder of lists mapped."""
    try:
        with (directory / _IDS[0]).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _checked_rows(what: str, rows: _Rows, shape: tuple[int, ...], items: int) -> _Rows:
    rows = np.asarray(rows)
    if rows.dtype != np.int32 or rows.shape != shape or 0 in shape:
        raise ValueError(
            f"{what} is {rows.dtype} of shape {rows.shape}; it must be int32 of shape "
            f"{shape}, none of them 0"
        )
    for start in range(0, len(rows), _BLOCK_ROWS):
        if not _in_range(rows[start : start + _BLOCK_ROWS], items):
            raise ValueError(
                f"{what} holds rows outside -1 to {items - 1}; there are {items} items"
            )
    return rows


def _check_sources(
    sources: _Sources, shape: tuple[int, ...], labels: Sequence[str]
) -> None:
    if sources.dtype != np.int8 or sources.shape != shape:
        raise ValueError(
            f"sources is {sources.dtype} of shape {sources.shape}; it must be int8 of "
            f"shape {shape}"
        )
    _check_codes(sources, labels)


def _check_codes(sources: _Sources, labels: Sequence[str]) -> None:
    low, high = sources.min(), sources.max()
    if low < 0 or high >= len(labels):
        raise ValueError(
            f"sources hold {low} to {high}; there are {len(labels)} labels"
        )


def _in_range(rows: _Rows, items: int) -> bool:
    return bool(rows.min() >= -1 and rows.max() < items)


def _hash(identifier: str) -> int:
    digest = hashlib.sha256(identifier.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def _hashes(identifiers: Sequence[str]) -> _Hashes:
    return np.fromiter(map(_hash, identifiers), np.uint64, len(identifiers))


def _sorted_hashes(
    what: str, identifiers: Sequence[str]
) -> tuple[_Hashes, NDArray[np.intp]]:
    for identifier in identifiers:
        try:
            encoded = identifier.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{what} id {identifier!r} is not valid text ({error.reason})"
            ) from error
        if not encoded:
            raise ValueError(f"an empty {what} id; ids must have a character or more")
    hashes = _hashes(identifiers)
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    same = np.flatnonzero(hashes[1:] == hashes[:-1])
    if same.size:
        one, other = (identifiers[row] for row in order[same[0] : same[0] + 2])
        if one == other:
            raise ValueError(f"{what} id {one!r} is given twice; ids must be distinct")
        raise ValueError(f"{what} ids {one!r} and {other!r} have one hash; rename one")
    return hashes, order


def _find(hashes: _Numbers, identifier: str) -> int | None:
    wanted = _hash(identifier)
    row = bisect_left(hashes, wanted)
    return row if row < len(hashes) and hashes[row] == wanted else None


def _texts(rows: list[int], blob: mmap.mmap, offsets: _Numbers) -> list[str]:
    return [blob[offsets[row] : offsets[row + 1]].decode() for row in rows if row >= 0]


def _numbers(array: NDArray[Any]) -> _Numbers:
    """Return an array, its rows one after the other, for reading single numbers."""
    flat = array.reshape(-1)
    # A memoryview knows the machine's own byte order only.
    return flat.data if flat.dtype.isnative else flat


# Writing


def _encoded(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, indent=2, sort_keys=True).encode()


def _write_rows(
    path: Path, rows: _Rows, order: NDArray[np.intp], new_row: _Rows
) -> dict[str, Any]:
    """Write rows in another order, a block at a time: `rows` may not fit in memory."""
    blocks = (
        new_row[rows[order[start : start + _BLOCK_ROWS]]]
        for start in range(0, len(order), _BLOCK_ROWS)
    )
    return write_file(path, npy_parts(rows.dtype, rows.shape, blocks))


def _write_texts(
    folder: Path, files: tuple[str, str], texts: Sequence[str]
) -> dict[str, dict[str, Any]]:
    # A lone surrogate can't be an id; in a name it is not worth a refusal.
    encoded = [each.encode(errors="replace") for each in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return {
        files[0]: write_file(folder / files[0], encoded),
        files[1]: write_array(folder / files[1], offsets),
    }


# Reading


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path} {what}; the published lists are damaged, train or roll back"
    )


def _read_manifest(directory: Path) -> tuple[dict[str, Any], str]:
    path = directory / MANIFEST
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _damaged(path, f"can't be read ({error.strerror})") from error
    try:
        manifest = json.loads(content)
        readable = (manifest["format"], manifest["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "is not a manifest of published lists") from error
    if readable != (FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"{path} has format {readable}; this program reads "
            f"{(FORMAT, FORMAT_VERSION)}, train again"
        )
    for key in ("units", "items", "depth", "version"):
        if type(manifest.get(key)) is not int or manifest[key] < 1:
            raise _damaged(path, f"has {key} {manifest.get(key)!r}, not 1 or more")
    if type(manifest.get("name")) is not str or not _are_facts(manifest.get("files")):
        raise _damaged(path, "lacks the name, or the size and SHA-256 of a file")
    labels = manifest.get("labels", [])  # of older ones there is none
    if not isinstance(labels, list) or not all(map(_is_label, labels)):
        raise _damaged(path, f"has labels {str(labels)[:80]}, not plain texts")
    return manifest, hashlib.sha256(content).hexdigest()


def _is_label(value: object) -> bool:
    return type(value) is str and len(value) <= _MAX_LABEL and value.isprintable()


def _are_facts(files: object) -> bool:
    return isinstance(files, dict) and all(
        isinstance(facts, dict)
        and type(facts.get("bytes")) is int
        and type(facts.get("sha256")) is str
        for facts in files.values()
    )


def _check_size(directory: Path, file: str, files: Mapping[str, Any]) -> None:
    path = directory / file
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _damaged(path, f"can't be read ({error.strerror})") from error
    if file not in files or size != files[file]["bytes"]:
        expected = files.get(file, {}).get("bytes")
        raise _damaged(path, f"has {size} bytes; the manifest says {expected}")


def _map_array(
    path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, f"is not an array file ({error})") from error
    if array.dtype != dtype.newbyteorder("<") or array.shape != shape:
        raise _damaged(
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
        raise _damaged(path, "does not fit its offsets")
    return texts
