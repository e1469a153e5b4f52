"""A trained recommender as a folder: plain arrays and JSON, never pickled objects.

A trained recommender is a tree of frozen dataclasses of this package, and so is what is
written: each value by its field, arrays in one file, the rest in another. Loading builds
dataclasses of this package only, whatever the file says.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recommenders.base import TrainedRecommender

FORMAT = "experiment-service recommender"
FORMAT_VERSION = 1

_TREE, _ARRAYS = "recommender.json", "arrays.npz"
_PACKAGE = "recommenders"


def save_recommender(trained: TrainedRecommender, directory: Path) -> None:
    """Write a trained recommender into a new folder.

    Its rules are left out: they are of a moment, and made anew from what declares them.

    Raises
    ------
    FileExistsError
        When the folder exists.
    TypeError
        When the scorer holds something else than arrays, sparse matrices, numbers,
        texts, tuples of these, and dataclasses of this package.
    """
    arrays: dict[str, NDArray[Any]] = {}
    tree = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **{
            name: _write(getattr(trained, name), name, arrays)
            for name in ("recommender", "interactions", "scorer")
        },
    }
    directory.mkdir(parents=True)
    np.savez(directory / _ARRAYS, **arrays)  # type: ignore[arg-type]  # keyword names
    (directory / _TREE).write_text(json.dumps(tree), encoding="utf-8")


def load_recommender(directory: Path) -> TrainedRecommender:
    """Read a trained recommender; it makes the same lists as the one that was saved.

    Raises
    ------
    ValueError
        When a file is missing, damaged, or of another format.
    """
    path = directory / _TREE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        _check_format(tree)
        # Opened here, as NumPy leaves a file open that is no archive.
        with (directory / _ARRAYS).open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            parts = {
                name: _read(tree[name], arrays)
                for name in ("recommender", "interactions", "scorer")
            }
            return TrainedRecommender(**parts)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        BadZipFile,
    ) as error:
        raise ValueError(
            f"{path} can't be read as a trained recommender ({error}); train again"
        ) from error


def _check_format(tree: Mapping[str, object]) -> None:
    readable = (tree.get("format"), tree.get("format_version"))
    if readable != (FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"its format is {readable}; this program reads {(FORMAT, FORMAT_VERSION)}"
        )


@dataclass(frozen=True, slots=True)
class _Kinds:
    """Marks that tell in JSON what a value was."""

    array: str = "array"
    sparse: str = "sparse"
    items: str = "tuple"
    built: str = "class"


_KINDS = _Kinds()


def _write(value: object, name: str, arrays: dict[str, NDArray[Any]]) -> object:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {_KINDS.array: name}
    if isinstance(value, csr_matrix):
        arrays[f"{name}.data"] = value.data
        arrays[f"{name}.indices"] = value.indices
        arrays[f"{name}.indptr"] = value.indptr
        return {_KINDS.sparse: name, "shape": list(value.shape)}
    if isinstance(value, tuple):
        return {
            _KINDS.items: [
                _write(each, f"{name}.{place}", arrays)
                for place, each in enumerate(value)
            ]
        }
    if is_dataclass(value) and type(value).__module__.split(".")[0] == _PACKAGE:
        return {
            _KINDS.built: f"{type(value).__module__}:{type(value).__qualname__}",
            "fields": {
                each.name: _write(
                    getattr(value, each.name), f"{name}.{each.name}", arrays
                )
                for each in fields(value)
                if each.init
            },
        }
    raise TypeError(
        f"{name} is {type(value).__name__}; a trained recommender can hold arrays, "
        "sparse matrices, numbers, texts, and dataclasses of them only"
    )


def _read(value: object, arrays: Mapping[str, NDArray[Any]]) -> Any:  # noqa: ANN401 - whatever was saved
    if not isinstance(value, dict):
        return value
    if _KINDS.array in value:
        return arrays[value[_KINDS.array]]
    if _KINDS.sparse in value:
        name = value[_KINDS.sparse]
        parts = (arrays[f"{name}.{part}"] for part in ("data", "indices", "indptr"))
        return csr_matrix(tuple(parts), shape=tuple(value["shape"]))
    if _KINDS.items in value:
        return tuple(_read(each, arrays) for each in value[_KINDS.items])
    module, _, name = str(value[_KINDS.built]).partition(":")
    if module.split(".")[0] != _PACKAGE:
        raise ValueError(f"{module} is not of this package")
    kind = getattr(import_module(module), name)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise ValueError(f"{name} is no dataclass of {module}")
    return kind(**{key: _read(part, arrays) for key, part in value["fields"].items()})
