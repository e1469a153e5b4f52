"""The format of published lists: their files, their manifest, and what must be true.

Arrays are little-endian; units and items lie in the order of `hash_of` their id.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "experiment-service lists"
FORMAT_VERSION = 1

MANIFEST = "manifest.json"
#: Files of texts, one after the other, and of where each begins.
IDS = ("item_ids.bin", "item_offsets.npy")
NAMES = ("item_names.bin", "item_name_offsets.npy")
_FILES = frozenset(
    {"units.npy", "lists.npy", "sources.npy", "items.npy", "default.npy"}
    | {"related.npy", "related_scores.npy", *IDS, *NAMES}
)
#: Characters of a label, so that it makes an id with the name of a model before it.
_MAX_LABEL = 60

Rows = NDArray[np.int32]
Sources = NDArray[np.int8]
Scores = NDArray[np.float32]
Hashes = NDArray[np.uint64]


def damaged(path: Path, what: str) -> ValueError:
    """Return the error that names a file of lists and what is wrong with it."""
    return ValueError(
        f"{path} {what}; the published lists are damaged, train or roll back"
    )


def read_manifest(directory: Path) -> tuple[dict[str, Any], str]:
    """Return the manifest of a folder of lists and its digest.

    Raises
    ------
    ValueError
        When there is none of this format.
    """
    path = directory / MANIFEST
    try:
        content = path.read_bytes()
    except OSError as error:
        raise damaged(path, f"can't be read ({error.strerror})") from error
    try:
        manifest = json.loads(content)
        readable = (manifest["format"], manifest["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, "is not a manifest of published lists") from error
    if readable != (FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"{path} has format {readable}; this program reads "
            f"{(FORMAT, FORMAT_VERSION)}, train again"
        )
    for key in ("units", "items", "depth", "version"):
        if type(manifest.get(key)) is not int or manifest[key] < 1:
            raise damaged(path, f"has {key} {manifest.get(key)!r}, not 1 or more")
    if type(manifest.get("name")) is not str or not _are_facts(manifest.get("files")):
        raise damaged(path, "lacks the name, or the size and SHA-256 of a file")
    labels = manifest.get("labels", [])  # of older ones there is none
    if not isinstance(labels, list) or not all(map(_is_label, labels)):
        raise damaged(path, f"has labels {str(labels)[:80]}, not plain texts")
    if not is_fade(fade := manifest.get("session_fade", [])):
        raise damaged(path, f"has session_fade {str(fade)[:80]}, not numbers in (0, 1]")
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


def manifest_files(directory: Path) -> list[str]:
    """Return the files that make up lists, beside the manifest in this folder.

    Raises
    ------
    ValueError
        When the manifest is not one, or names a file that lists don't have.
    """
    manifest, _ = read_manifest(directory)
    for file in manifest["files"]:
        if file not in _FILES:
            raise damaged(directory / MANIFEST, f"names the file {file[:80]!r}")
    return sorted(manifest["files"])


def hash_of(identifier: str) -> int:
    """Return the first 64 bits of SHA-256 of an id."""
    digest = hashlib.sha256(identifier.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def hashes_of(identifiers: Sequence[str]) -> Hashes:
    """Return `hash_of` each id."""
    return np.fromiter(map(hash_of, identifiers), np.uint64, len(identifiers))


def check_codes(sources: Sources, labels: Sequence[str]) -> None:
    """Refuse sources that are no places in the labels.

    Raises
    ------
    ValueError
        Says which there are.
    """
    low, high = sources.min(), sources.max()
    if low < 0 or high >= len(labels):
        raise ValueError(
            f"sources hold {low} to {high}; there are {len(labels)} labels"
        )


def check_scores(scores: Scores, related: Rows) -> None:
    """Refuse scores of related items that are no finite numbers.

    Raises
    ------
    ValueError
        Says how many.
    """
    wrong = np.count_nonzero(~np.isfinite(scores[related >= 0]))
    if wrong:
        raise ValueError(f"scores of {wrong} related items are no finite numbers")


def is_fade(values: object) -> bool:
    """Whether this is a list of factors of the latest items, each in (0, 1]."""
    return isinstance(values, list) and all(
        type(value) in (int, float) and 0 < value <= 1 for value in values
    )


def in_range(rows: Rows, items: int) -> bool:
    """Whether each is the row of an item or the padding."""
    return bool(rows.min() >= -1 and rows.max() < items)
