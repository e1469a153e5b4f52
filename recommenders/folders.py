"""Folders that are written once, whole or not at all, and the files in them.

Knows bytes and arrays, and not what they mean.
"""

import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

#: A folder of this ending was left by a process that died while it wrote.
PARTIAL_SUFFIX = ".partial"


@contextmanager
def new_folder(directory: Path, what: str) -> Iterator[Path]:
    """Yield a folder that becomes `directory` at the end, or goes away on an error."""
    if directory.exists():
        raise FileExistsError(
            f"{what} can't be written: {directory} exists; versions never change"
        )
    partial = directory.parent / f".{directory.name}-{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        flush_folder(partial)
        partial.rename(directory)
        flush_folder(directory.parent)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{what} could not be written to {directory} ({error.strerror}); nothing "
            "was published",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def flush_folder(folder: Path) -> None:
    """Flush what is in a folder, but not the files themselves."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, parts: Iterable[bytes]) -> dict[str, Any]:
    """Write and flush a file; return what the manifest says about it."""
    digest = hashlib.sha256()
    size = 0
    with path.open("xb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
            size += len(part)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def write_array(path: Path, array: NDArray[Any]) -> dict[str, Any]:
    """Write and flush an array; return as `write_file`."""
    return write_file(path, npy_parts(array.dtype, array.shape, [array]))


def npy_parts(
    dtype: np.dtype[Any], shape: tuple[int, ...], blocks: Iterable[NDArray[Any]]
) -> Iterator[bytes]:
    """Yield an array file, little-endian, from blocks of rows one after the other."""
    header = io.BytesIO()
    little = dtype.newbyteorder("<")
    npy.write_array_header_1_0(
        header,
        {"descr": little.str, "fortran_order": False, "shape": shape},
    )
    yield header.getvalue()
    for block in blocks:
        yield block.astype(little, copy=False).tobytes()
