"""Writing published lists: a folder of plain arrays, whole or not at all.

Which files it has, and what must be true of them, is told in `list_format`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
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
from recommenders.list_format import (
    FORMAT,
    FORMAT_VERSION,
    IDS,
    MANIFEST,
    NAMES,
    Hashes,
    Rows,
    Scores,
    Sources,
    check_codes,
    check_scores,
    hashes_of,
    in_range,
    is_fade,
    read_manifest,
)

_BLOCK_ROWS = 65_536


def publish_lists(
    directory: Path,
    *,
    name: str,
    version: int,
    unit_ids: Sequence[str],
    lists: Rows,
    item_ids: Sequence[str],
    default: Rows,
    related: Rows | None = None,
    item_names: Sequence[str] | None = None,
    sources: Sources | None = None,
    labels: Sequence[str] = (),
    related_scores: Scores | None = None,
    session_fade: Sequence[float] = (),
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
    related_scores : float32 array, shape (I, depth), optional
        Of the items of `related`, finite; anything in the padding.
    session_fade : sequence of float
        Given with `related_scores`: how much those of the items of a session count, the
        latest first, each in (0, 1]; those before do not.

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
    fade = list(session_fade)
    if related_scores is not None or fade:
        _check_session(related, related_scores, fade)
    unit_hashes, unit_order = _sorted_hashes("unit", unit_ids)
    item_hashes, item_order = _sorted_hashes("item", item_ids)
    # One place more than items, so that the padding -1 indexes to itself.
    new_row = np.full(len(item_ids) + 1, -1, dtype=np.int32)
    new_row[item_order] = np.arange(len(item_ids), dtype=np.int32)
    with new_folder(directory, f"lists {name}/{version}") as folder:
        files = {
            "units.npy": write_array(folder / "units.npy", unit_hashes),
            "lists.npy": _write_ordered(
                folder / "lists.npy", lists, unit_order, new_row
            ),
            "items.npy": write_array(folder / "items.npy", item_hashes),
            **_write_texts(folder, IDS, [item_ids[row] for row in item_order.tolist()]),
            "default.npy": write_array(folder / "default.npy", new_row[default]),
        }
        if related is not None:
            files["related.npy"] = _write_ordered(
                folder / "related.npy", related, item_order, new_row
            )
        if item_names is not None and any(item_names):
            if len(item_names) != len(item_ids):
                raise ValueError(
                    f"item_names are {len(item_names)}; there are {len(item_ids)} items"
                )
            files |= _write_texts(
                folder, NAMES, [item_names[row] for row in item_order.tolist()]
            )
        if sources is not None:
            files["sources.npy"] = _write_ordered(
                folder / "sources.npy", sources, unit_order
            )
        if related_scores is not None:
            files["related_scores.npy"] = _write_ordered(
                folder / "related_scores.npy", related_scores, item_order
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
            "session_fade": fade,
            "files": files,
        }
        content = _encoded(manifest)
        write_file(folder / MANIFEST, [content])
    return hashlib.sha256(content).hexdigest()


def relabel(directory: Path, *, name: str, version: int) -> str:
    """Give lists that nobody serves yet another name and number; return the new digest.

    Raises
    ------
    ValueError
        When the manifest is not one.
    OSError
        When it can't be written.
    """
    manifest, _ = read_manifest(directory)
    content = _encoded({**manifest, "name": name, "version": version})
    (directory / MANIFEST).unlink()
    write_file(directory / MANIFEST, [content])
    flush_folder(directory)
    return hashlib.sha256(content).hexdigest()


def _checked_rows(what: str, rows: Rows, shape: tuple[int, ...], items: int) -> Rows:
    rows = np.asarray(rows)
    if rows.dtype != np.int32 or rows.shape != shape or 0 in shape:
        raise ValueError(
            f"{what} is {rows.dtype} of shape {rows.shape}; it must be int32 of shape "
            f"{shape}, none of them 0"
        )
    for start in range(0, len(rows), _BLOCK_ROWS):
        if not in_range(rows[start : start + _BLOCK_ROWS], items):
            raise ValueError(
                f"{what} holds rows outside -1 to {items - 1}; there are {items} items"
            )
    return rows


def _check_sources(
    sources: Sources, shape: tuple[int, ...], labels: Sequence[str]
) -> None:
    if sources.dtype != np.int8 or sources.shape != shape:
        raise ValueError(
            f"sources is {sources.dtype} of shape {sources.shape}; it must be int8 of "
            f"shape {shape}"
        )
    check_codes(sources, labels)


def _check_session(
    related: Rows | None, scores: Scores | None, fade: list[float]
) -> None:
    if related is None or scores is None or not fade:
        raise ValueError(
            "related, related_scores and session_fade go together; give all"
        )
    if scores.dtype != np.float32 or scores.shape != related.shape:
        raise ValueError(
            f"related_scores is {scores.dtype} of shape {scores.shape}; it must be "
            f"float32 of shape {related.shape}"
        )
    if not is_fade(fade):
        raise ValueError(f"session_fade is {fade}; it must be of numbers in (0, 1]")
    check_scores(scores, related)


def _sorted_hashes(
    what: str, identifiers: Sequence[str]
) -> tuple[Hashes, NDArray[np.intp]]:
    for identifier in identifiers:
        try:
            encoded = identifier.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{what} id {identifier!r} is not valid text ({error.reason})"
            ) from error
        if not encoded:
            raise ValueError(f"an empty {what} id; ids must have a character or more")
    hashes = hashes_of(identifiers)
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    same = np.flatnonzero(hashes[1:] == hashes[:-1])
    if same.size:
        one, other = (identifiers[row] for row in order[same[0] : same[0] + 2])
        if one == other:
            raise ValueError(f"{what} id {one!r} is given twice; ids must be distinct")
        raise ValueError(f"{what} ids {one!r} and {other!r} have one hash; rename one")
    return hashes, order


def _encoded(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, indent=2, sort_keys=True).encode()


def _write_ordered(
    path: Path,
    rows: NDArray[Any],
    order: NDArray[np.intp],
    numbers: Rows | None = None,
) -> dict[str, Any]:
    """Write rows in another order, a block at a time: `rows` may not fit in memory.

    Given `numbers`, these are written instead of what they are the places of.
    """
    starts = range(0, len(order), _BLOCK_ROWS)
    blocks = (rows[order[start : start + _BLOCK_ROWS]] for start in starts)
    if numbers is not None:
        blocks = (numbers[block] for block in blocks)
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
