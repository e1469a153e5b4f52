"""Files that hold what belongs to shoppers: no other user of the machine reads them."""

import os
from pathlib import Path
from typing import BinaryIO

#: Mode of a file that only its owner may read and write.
OWNER_ONLY = 0o600


def make_private_directory(path: Path) -> None:
    """Make a folder that only its owner may enter; one that is there stays as it is."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def open_private(path: Path) -> BinaryIO:
    """Open a new file to write, which only its owner may read.

    Raises
    ------
    FileExistsError
        When there is a file of that name.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
    return os.fdopen(descriptor, "wb")


def keep_private(path: Path) -> None:
    """Make a file if there is none, and let only its owner read it.

    For programs that open a path themselves, such as SQLite; its log and the index of
    its log get the mode of the file. One that is there, maybe of a former version, is not
    opened: closing it again would drop the locks that this process has on it.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, OWNER_ONLY))
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            path.chmod(OWNER_ONLY)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a crash."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
