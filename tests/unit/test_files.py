"""What belongs to shoppers is read by no other user of the machine."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime

import pytest

from experiment_service.domain.configuration import Configuration
from experiment_service.files import keep_private
from experiment_service.journal import Journal
from experiment_service.serving.snapshot import write_copy
from experiment_service.serving.sticky import StickyStore


@pytest.fixture
def lax():
    """A mask that forbids nothing."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("lax")
def test_journal_snapshot_and_sticky_store_are_the_owners_only(tmp_path):
    configuration = Configuration(
        placements={},
        running={},
        states={},
        models={},
        loaded_at=datetime(2026, 11, 20, tzinfo=UTC),
    )
    (tmp_path / "sticky.sqlite").touch(0o666)  # of a former version
    with closing(Journal.open(tmp_path / "journal", max_bytes=1 << 20)) as journal:
        journal.append([b"{}"]).result()
        sticky = StickyStore(tmp_path / "sticky.sqlite")
        sticky.remember(1, "unit", 0)
        write_copy(configuration, tmp_path)
        found = {
            path.name: path.stat().st_mode & 0o777
            for path in tmp_path.rglob("*")
            if path.is_file() and not path.name.endswith(".lock")
        }
        sticky.close()
    assert len(found) == 6  # of the journal two, of the sticky store three
    assert set(found.values()) == {0o600}


OTHER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0)
connection.execute("INSERT INTO t VALUES (2)")
"""


def test_a_file_that_is_made_private_again_keeps_its_locks(tmp_path):
    """Closing any descriptor of a file drops all locks that a process has on it."""
    path = tmp_path / "db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("BEGIN IMMEDIATE")
        keep_private(path)
        other = subprocess.run(
            [sys.executable, "-c", OTHER, path],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "database is locked" in other.stderr
