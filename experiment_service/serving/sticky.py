"""The epoch of each unit's first exposure, for experiments of mode sticky.

One small sqlite file shared by the serving processes of a machine. It is a cache of
`unit_exposure`: what it loses, the keeper fills in again from the database.
"""

import hashlib
import logging
import sqlite3
from collections.abc import Collection, Iterable
from datetime import datetime
from itertools import islice
from pathlib import Path

from experiment_service.files import keep_private

log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS first_epoch (
    experiment_id INTEGER NOT NULL,
    unit_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    PRIMARY KEY (experiment_id, unit_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS filled (
    experiment_id INTEGER PRIMARY KEY,
    until TEXT NOT NULL
);
"""
_REMEMBER = (
    "INSERT INTO first_epoch VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET"
    " epoch = excluded.epoch WHERE excluded.epoch < first_epoch.epoch"
)

# Longest wait for another process of the machine that is writing.
_BUSY_SECONDS = 0.25

# Rows per transaction of a fill, so that requests wait for it a millisecond at most.
_FILL_ROWS = 500


class StickyStore:
    """First epochs by (experiment, unit); the smallest number seen wins.

    Reading and remembering belong to one thread; `fill` and `filled_until` may run in
    another.

    Parameters
    ----------
    path : Path
        Made when missing, and made anew when damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            log.warning("sticky store made anew path=%s error=%s", path, error)
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        keep_private(self._path)
        connection = sqlite3.connect(
            self._path,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA journal_mode = WAL")
        # Outlives a killed process; a lost machine is filled from the database.
        connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(_SCHEMA)
        return connection

    def first_epoch(self, experiment_id: int, unit_id: str) -> int | None:
        """Return the epoch of a unit's first exposure, None when none is known."""
        try:
            row = self._connection.execute(
                "SELECT epoch FROM first_epoch WHERE experiment_id = ? AND unit_id = ?",
                (experiment_id, unit_id),
            ).fetchone()
        except sqlite3.Error:
            log.exception("sticky store not read path=%s", self._path)
            return None
        return None if row is None else int(row[0])

    def remember(self, experiment_id: int, unit_id: str, epoch: int) -> None:
        """Keep an exposure's epoch, unless a smaller one is known."""
        try:
            self._connection.execute(_REMEMBER, (experiment_id, unit_id, epoch))
        except sqlite3.Error:
            # The exposure itself is in the journal and comes back through `fill`.
            log.exception("sticky store not written path=%s", self._path)

    def filled_until(self, experiment_id: int) -> datetime | None:
        """Return the instant up to which the database was read, by any process."""
        connection = self._open()
        try:
            row = connection.execute(
                "SELECT until FROM filled WHERE experiment_id = ?", (experiment_id,)
            ).fetchone()
        finally:
            connection.close()
        return None if row is None else datetime.fromisoformat(row[0])

    def fill(
        self, experiment_id: int, epochs: Iterable[tuple[str, int]], *, until: datetime
    ) -> None:
        """Take over (unit, epoch) pairs that the database knows up to `until`.

        Raises
        ------
        sqlite3.Error
            When the file can't be written; `filled_until` then stays.
        """
        rows = ((experiment_id, unit_id, epoch) for unit_id, epoch in epochs)
        connection = self._open()
        try:
            while chunk := list(islice(rows, _FILL_ROWS)):
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(_REMEMBER, chunk)
                connection.execute("COMMIT")
            connection.execute(
                "INSERT INTO filled VALUES (?, ?) ON CONFLICT DO UPDATE SET"
                " until = excluded.until",
                (experiment_id, until.isoformat()),
            )
        finally:
            connection.close()

    def forget(self, digests: Collection[str]) -> int:
        """Remove the units of these SHA-256 digests, hexadecimal; return how many rows.

        Reads every row: a unit's digest is all that is known of one that was erased.

        Raises
        ------
        sqlite3.Error
            When the file can't be written.
        """
        connection = self._open()
        try:
            connection.create_function(
                "is_erased",
                1,
                lambda unit: hashlib.sha256(unit.encode()).hexdigest() in digests,
                deterministic=True,
            )
            return connection.execute(
                "DELETE FROM first_epoch WHERE is_erased(unit_id)"
            ).rowcount
        finally:
            connection.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
