"""The sticky store: smallest epoch wins, shared by processes, never in the way."""

import logging
import multiprocessing
import os
import signal
import sqlite3
from datetime import UTC, datetime

from experiment_service.serving.sticky import StickyStore

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_smallest_epoch_wins_in_any_order(sticky):
    assert sticky.first_epoch(1, "u") is None
    for number in (3, 5, 2, 4):
        sticky.remember(1, "u", number)
    assert sticky.first_epoch(1, "u") == 2
    assert sticky.first_epoch(2, "u") is None
    assert sticky.first_epoch(1, "U") is None


def test_fill_takes_over_many_and_says_until_when(sticky):
    sticky.remember(1, "u7", 9)
    sticky.remember(1, "u8", 0)
    assert sticky.filled_until(1) is None
    sticky.fill(1, ((f"u{n}", 4) for n in range(1234)), until=NOW)
    assert sticky.first_epoch(1, "u7") == 4
    assert sticky.first_epoch(1, "u8") == 0
    assert sticky.first_epoch(1, "u1233") == 4
    assert sticky.filled_until(1) == NOW


def test_other_processes_see_it_and_it_outlives_them(tmp_path):
    path = tmp_path / "sticky.sqlite"
    spawn = multiprocessing.get_context("spawn")
    children = [
        spawn.Process(target=_remember_many, args=(path, start)) for start in (0, 1)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
        assert child.exitcode == -9
    store = StickyStore(path)
    found = [store.first_epoch(1, f"u{number}") for number in range(400)]
    store.close()
    assert found == [0] * 400


def _remember_many(path, epoch):
    store = StickyStore(path)
    for number in range(400):
        store.remember(1, f"u{number}", epoch)
    os.kill(os.getpid(), signal.SIGKILL)


def test_damaged_file_is_made_anew(tmp_path, caplog):
    path = tmp_path / "sticky.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with caplog.at_level(logging.WARNING):
        store = StickyStore(path)
    store.remember(1, "u", 2)
    assert store.first_epoch(1, "u") == 2
    assert "made anew" in caplog.text
    store.close()


def test_lock_of_another_process_is_not_waited_for_long(tmp_path, sticky, caplog):
    sticky.remember(1, "u", 5)
    other = sqlite3.connect(tmp_path / "sticky.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = datetime.now(UTC)
    sticky.remember(1, "u", 1)
    assert (datetime.now(UTC) - started).total_seconds() < 1
    assert sticky.first_epoch(1, "u") == 5
    other.execute("ROLLBACK")
    other.close()
    assert "not written" in caplog.text
