"""The journal: what it has acknowledged survives, whatever dies."""

import logging
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import wait
from contextlib import closing
from types import SimpleNamespace

import pytest

from experiment_service import journal_file
from experiment_service.errors import Unavailable
from experiment_service.journal import Journal

LARGE = 1 << 30


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def journal(directory):
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        yield journal


def append(journal, *payloads):
    journal.append(payloads).result(timeout=10)


def payloads_of(journal):
    return [payload for _, payload in journal.read(1_000_000)]


def test_events_are_read_in_the_order_of_their_appends(journal):
    append(journal, b"a", b"b")
    append(journal, b"c")
    entries = journal.read(2)
    assert journal.read(1, after=entries[0][0]) == entries[1:]
    assert [payload for _, payload in entries] == [b"a", b"b"]
    journal.delete([sequence for sequence, _ in entries])
    assert payloads_of(journal) == [b"c"]


def test_counters_follow_what_waits(directory):
    now = [1000.0]
    with closing(
        Journal.open(directory, max_bytes=LARGE, clock=lambda: now[0])
    ) as journal:
        assert (journal.depth, journal.pending_bytes, journal.oldest_age) == (
            0,
            0,
            None,
        )
        append(journal, b"12", b"345")
        now[0] += 5
        append(journal, b"6")
        now[0] += 2
        assert (journal.depth, journal.pending_bytes, journal.oldest_age) == (3, 6, 7)
        journal.delete([sequence for sequence, _ in journal.read(2)])
        assert (journal.depth, journal.pending_bytes, journal.oldest_age) == (1, 1, 2)
        now[0] -= 60
        assert journal.oldest_age == 0
    with closing(
        Journal.open(directory, max_bytes=LARGE, clock=lambda: 1100)
    ) as journal:
        assert (journal.depth, journal.pending_bytes, journal.oldest_age) == (1, 1, 95)


def test_deleting_twice_or_the_unknown_changes_nothing(journal):
    append(journal, b"a", b"b")
    (first, _), _ = journal.read(2)
    for _ in range(2):
        journal.delete([first, 10**9])
    assert (journal.depth, journal.pending_bytes) == (1, 1)


def test_many_threads_append_at_once(journal):
    def work(name):
        for number in range(200):
            append(journal, f"{name}-{number}".encode())

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    moved = []
    while any(thread.is_alive() for thread in threads) or journal.depth:
        entries = journal.read(50)
        moved += [payload for _, payload in entries]
        journal.delete([sequence for sequence, _ in entries])
    expected = {
        f"{name}-{number}".encode() for name in range(8) for number in range(200)
    }
    assert len(moved) == 1600
    assert set(moved) == expected
    assert (journal.depth, journal.pending_bytes, journal.oldest_age) == (0, 0, None)


def test_appends_share_their_wait_for_the_disk(journal, monkeypatch):
    groups = []
    write = journal._write
    entered, go_on = threading.Event(), threading.Event()

    def slow_write(payloads, size):
        groups.append(len(payloads))
        entered.set()
        assert go_on.wait(10)
        return write(payloads, size)

    monkeypatch.setattr(journal, "_write", slow_write)
    futures = [journal.append([b"first"])]
    assert entered.wait(10)
    futures += [journal.append([b"x", b"y"]) for _ in range(100)]
    assert not any(future.done() for future in futures)
    assert journal.pending_bytes == 205
    go_on.set()
    wait(futures, timeout=10)
    assert groups == [1, 200]
    assert journal.depth == 201


def test_future_is_not_cancelled_by_one_who_gives_up(journal):
    future = journal.append([b"a"])
    assert not future.cancel()
    future.result(timeout=10)
    assert payloads_of(journal) == [b"a"]


def test_nothing_may_be_appended(journal):
    append(journal)
    assert journal.depth == 0
    assert journal.oldest_age is None


def test_arrival_wakes_a_waiting_thread(journal):
    assert not journal.arrived.is_set()
    append(journal, b"a")
    assert journal.arrived.wait(10)


def test_reading_stops_at_a_few_megabytes(journal):
    append(journal, *[bytes(1 << 20)] * 12)
    assert len(journal.read(100)) == 8


def test_full_journal_refuses_and_takes_again(directory):
    with closing(Journal.open(directory, max_bytes=10)) as journal:
        append(journal, b"1234567")
        with pytest.raises(Unavailable, match="journal is full: 7 of 10 bytes") as full:
            journal.append([b"12", b"34"])
        assert full.value.retry_after > 0
        append(journal, b"890")
        journal.delete([journal.read(1)[0][0]])
        append(journal, b"1234567")
        assert payloads_of(journal) == [b"890", b"1234567"]
    with closing(Journal.open(directory, max_bytes=10)) as journal:
        with pytest.raises(Unavailable, match="full"):
            journal.append([b"x"])
        assert journal.depth == 2


def test_bound_holds_for_what_is_not_written_yet(journal, monkeypatch):
    journal._max_bytes = 100
    go_on = threading.Event()
    write = journal._write
    monkeypatch.setattr(
        journal, "_write", lambda *args: go_on.wait(10) and write(*args)
    )
    futures = [journal.append([bytes(30)]) for _ in range(3)]
    with pytest.raises(Unavailable, match="full"):
        journal.append([bytes(30)])
    go_on.set()
    wait(futures, timeout=10)
    assert journal.depth == 3


def test_closed_journal_refuses(directory):
    journal = Journal.open(directory, max_bytes=LARGE)
    future = journal.append([b"a"])
    journal.close()
    assert future.result(timeout=0) is None
    for use in (
        lambda: journal.append([b"b"]),
        lambda: journal.read(1),
        lambda: journal.delete([1]),
        lambda: journal.set_aside(1, "no"),
    ):
        with pytest.raises(Unavailable):
            use()
    journal.close()
    with closing(Journal.open(directory, max_bytes=LARGE)) as again:
        assert payloads_of(again) == [b"a"]


def test_set_aside_events_are_kept_counted_and_told(directory, caplog):
    with closing(Journal.open(directory, max_bytes=10)) as journal:
        append(journal, b"good", b"bad")
        sequence = journal.read(2)[1][0]
        with caplog.at_level(logging.ERROR):
            journal.set_aside(sequence, "kind is 'stare'")
        assert f"sequence={sequence} reason=kind is 'stare'" in caplog.text
        assert (journal.depth, journal.pending_bytes) == (1, 4)
        assert journal.set_aside_count == 1
        assert payloads_of(journal) == [b"good"]
        with pytest.raises(Unavailable, match="7 of 10"):
            journal.append([b"1234"])
    path = directory / "journal-0.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT payload, reason FROM set_aside").fetchall()
    assert rows == [(b"bad", "kind is 'stare'")]
    with closing(Journal.open(directory, max_bytes=10)) as journal:
        assert (journal.depth, journal.set_aside_count) == (1, 1)
        journal.arrived.clear()
        assert journal.retry_set_aside() == 1
        assert journal.arrived.is_set()
        assert (journal.depth, journal.set_aside_count) == (2, 0)
        assert (journal.pending_bytes, payloads_of(journal)) == (7, [b"good", b"bad"])
        assert journal.retry_set_aside() == 0


def test_each_journal_has_its_slot(directory):
    journals = [Journal.open(directory, max_bytes=LARGE) for _ in range(3)]
    for number, journal in enumerate(journals):
        append(journal, str(number).encode())
    assert sorted(path.name for path in directory.glob("*.sqlite3")) == [
        "journal-0.sqlite3",
        "journal-1.sqlite3",
        "journal-2.sqlite3",
    ]
    journals[1].close()
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        assert payloads_of(journal) == [b"1"]
        assert journal.arrived.is_set()
    for journal in journals:
        journal.close()


def test_only_journals_without_owner_are_abandoned(directory, journal):
    append(journal, b"mine")
    dead = Journal.open(directory, max_bytes=LARGE)
    append(dead, b"left")
    empty = Journal.open(directory, max_bytes=LARGE)
    assert list(Journal.abandoned(directory)) == []
    dead.close()
    empty.close()
    found = list(Journal.abandoned(directory))
    assert [payloads_of(each) for each in found] == [[b"left"], []]
    # They are claimed: nobody else finds them.
    assert list(Journal.abandoned(directory)) == []
    for each in found:
        each.close(remove=True)
    names = {path.name for path in directory.iterdir() if path.suffix != ".lock"}
    assert "journal-1.sqlite3" in names  # an event is left in it
    assert not any(name.startswith("journal-2") for name in names)
    (again,) = Journal.abandoned(directory)
    again.delete([sequence for sequence, _ in again.read(10)])
    again.close(remove=True)
    assert not list(directory.glob("journal-1.sqlite3*"))
    with closing(Journal.open(directory, max_bytes=LARGE)) as new:
        append(new, b"new")
        assert new._path.name == "journal-1.sqlite3"


def test_abandoned_journal_that_another_process_removed_is_passed_over(
    directory, monkeypatch
):
    other = Journal.open(directory, max_bytes=LARGE)
    path = other._path
    other.close(remove=True)
    assert not path.exists()
    # As if the file went away between the look and the lock.
    monkeypatch.setattr(type(directory), "glob", lambda *_: iter([path]))
    assert list(Journal.abandoned(directory)) == []
    monkeypatch.undo()
    assert not path.exists()


def test_damaged_file_is_kept_and_a_new_one_made(directory, caplog):
    directory.mkdir()
    (directory / "journal-0.sqlite3").write_bytes(b"not a database" * 1000)
    with caplog.at_level(logging.ERROR):
        journal = Journal.open(directory, max_bytes=LARGE)
    with closing(journal):
        append(journal, b"a")
        assert payloads_of(journal) == [b"a"]
    (kept,) = directory.glob("journal-0.sqlite3.damaged-*")
    assert kept.read_bytes().startswith(b"not a database")
    assert str(kept) in caplog.text


def test_unusable_directory_is_told(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(Unavailable, match=r"file/journal can't be used"):
        Journal.open(file / "journal", max_bytes=LARGE)


def test_space_is_given_back_after_a_burst(journal, directory):
    path = directory / "journal-0.sqlite3"
    for _ in range(20):
        append(journal, *[bytes(2000)] * 2500)
    assert path.stat().st_size > 90 << 20
    while entries := journal.read(2500):
        journal.delete([sequence for sequence, _ in entries])
    for _ in range(10):
        append(journal, b"x")
        journal.delete([journal.read(1)[0][0]])
    journal.close()
    assert path.stat().st_size < 25 << 20
    assert not directory.joinpath("journal-0.sqlite3-wal").exists()


def test_steady_traffic_reuses_its_space(journal, directory):
    for _ in range(100):
        append(journal, *[bytes(1000)] * 1000)
        journal.delete([sequence for sequence, _ in journal.read(1000)])
    sizes = [path.stat().st_size for path in directory.glob("journal-0.sqlite3*")]
    assert sum(sizes) < 32 << 20  # of 100 MB that went through


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from experiment_service import journal_file
from experiment_service.errors import Unavailable
from experiment_service.journal import Journal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal.open(Path(sys.argv[1]), max_bytes=1 << 30)
journal.append([b"before"]).result(50)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
failed = [journal.append([bytes(1 << 21)]) for _ in range(5)]
for future in failed:
    error = future.exception(50)
    assert isinstance(error, Unavailable), error
    assert "journal-0.sqlite3 can't be used" in error.message, error.message
assert journal.depth == 1 and journal.pending_bytes == 6
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
journal.append([bytes(1 << 21), b"after"]).result(50)
assert [len(payload) for _, payload in journal.read(10)] == [6, 1 << 21, 5]
journal.delete([sequence for sequence, _ in journal.read(10)])
assert journal.depth == 0 and journal.pending_bytes == 0
journal.close()
print("recovered")
"""


def run_child(script, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_full_disk_fails_appends_until_there_is_space(directory):
    out, err = run_child(FULL_DISK, directory).communicate(timeout=60)
    assert out == "recovered\n", err
    assert err.count("journal can't be written") == 1
    assert err.count("journal is written again") == 1


def test_last_room_of_a_disk_is_left_for_deleting(journal, monkeypatch):
    append(journal, b"a")
    monkeypatch.setattr(journal_file, "_ROOM_BYTES", 1 << 60)
    with pytest.raises(Unavailable, match=r"has \d+ MiB left.*; free some space"):
        append(journal, b"b")
    assert (journal.depth, journal.pending_bytes) == (1, 1)
    journal.delete([sequence for sequence, _ in journal.read(10)])
    monkeypatch.undo()
    append(journal, b"c")
    assert payloads_of(journal) == [b"c"]


APPENDER = """
import os, sys
from pathlib import Path
from experiment_service.journal import Journal

journal = Journal.open(Path(sys.argv[1]), max_bytes=1 << 30)

def acknowledge(numbers):
    def tell(future):
        future.result()
        os.write(1, "".join(f"{number}\\n" for number in numbers).encode())
    return tell

number = 0
while True:
    numbers = range(number, number + 1 + number % 7)
    number += len(numbers)
    payloads = [str(each).encode() + b"." * 300 for each in numbers]
    journal.append(payloads).add_done_callback(acknowledge(numbers))
    if number % 50 == 0:
        entries = journal.read(20)
        journal.delete([sequence for sequence, _ in entries])
        gone = " ".join(payload.partition(b".")[0].decode() for _, payload in entries)
        os.write(1, f"deleted {gone}\\n".encode())
"""


@pytest.mark.parametrize("target", [100, 1000, 5000])
def test_kill_loses_and_doubles_nothing(directory, target):
    lines = []
    with run_child(APPENDER, directory) as child:
        for line in child.stdout:
            lines.append(line)
            if len(lines) == target:
                child.kill()
    assert child.returncode == -signal.SIGKILL
    acknowledged, deleted = set(), set()
    for line in lines:
        if not line.endswith("\n"):
            continue  # cut off by the kill
        if line.startswith("deleted"):
            deleted.update(map(int, line.split()[1:]))
        else:
            acknowledged.add(int(line))
    assert acknowledged
    (journal,) = Journal.abandoned(directory)
    with closing(journal):
        depth, left = journal.depth, []
        while entries := journal.read(10_000):
            left += [int(payload.partition(b".")[0]) for _, payload in entries]
            journal.delete([sequence for sequence, _ in entries])
    assert depth == len(left)
    assert len(left) == len(set(left))
    # A deletion may have been made and not told; the numbers are then the oldest ones.
    missing = acknowledged - deleted - set(left)
    assert all(number < min(left, default=math.inf) for number in missing)
    assert len(missing) <= 20


FORKED = """
import os, sys, time
from pathlib import Path
from experiment_service.journal import Journal

journal = Journal.open(Path(sys.argv[1]), max_bytes=1 << 30)
journal.append([b"a"]).result(50)
print("ready", flush=True)
time.sleep(60)
"""


def test_slot_is_free_as_soon_as_its_process_is_dead(directory):
    child = run_child(FORKED, directory)
    assert child.stdout.readline() == "ready\n"
    assert list(Journal.abandoned(directory)) == []
    os.kill(child.pid, signal.SIGKILL)
    child.communicate(timeout=10)
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        assert journal._path.name == "journal-0.sqlite3"
        assert payloads_of(journal) == [b"a"]


def test_another_process_moves_the_events_of_a_living_one(directory):
    with closing(Journal.open(directory, max_bytes=10, shared=True)) as mine:
        append(mine, b"1234", b"5678")
        (moved,) = Journal.living(directory)
        with closing(moved):
            assert list(Journal.living(directory)) == []  # one moves it, not two
            assert (moved.depth, payloads_of(moved)) == (2, [b"1234", b"5678"])
            with pytest.raises(Unavailable, match="full: 8 of 10"):
                mine.append([b"abc"])
            moved.delete([moved.read(1)[0][0]])
            assert (mine.depth, mine.pending_bytes, moved.depth) == (1, 4, 1)
            mine._caught_up_at = 0.0  # as after a while
            append(mine, b"abc")
            assert payloads_of(moved) == [b"5678", b"abc"]
            assert not moved.claim()
            mine.close()
            assert moved.claim()
            assert moved.depth == 2


def test_journal_that_its_own_process_moves_is_left_to_it(directory, journal):
    append(journal, b"a")
    assert list(Journal.living(directory)) == []


def test_journal_of_a_dead_process_is_left_to_the_one_that_moves_it(directory):
    dead = Journal.open(directory, max_bytes=LARGE, shared=True)
    append(dead, b"a")
    (moved,) = Journal.living(directory)
    dead.close()
    assert list(Journal.abandoned(directory)) == []
    # A new process may append to it meanwhile; then it is not to be removed.
    with closing(Journal.open(directory, max_bytes=LARGE, shared=True)) as new:
        assert not moved.claim()
        append(new, b"b")
        assert payloads_of(moved) == [b"a", b"b"]
    moved.delete([sequence for sequence, _ in moved.read(10)])
    assert moved.claim()
    moved.close(remove=True)
    assert not list(directory.glob("journal-0.sqlite3*"))


def test_log_of_a_shared_journal_stays_short(directory):
    log = directory / "journal-0.sqlite3-wal"
    with closing(Journal.open(directory, max_bytes=LARGE, shared=True)) as mine:
        append(mine, b"first")
        (moved,) = Journal.living(directory)
        with closing(moved):
            for _ in range(60):
                append(mine, *[bytes(1000)] * 1000)
                moved.delete([sequence for sequence, _ in moved.read(2000)])
            assert moved.depth == mine.depth == 0
        assert log.stat().st_size < 48 << 20  # of 60 MB that went through, twice


def test_a_copied_log_is_written_over_and_cut_when_room_is_short(
    directory, monkeypatch
):
    log = directory / "journal-0.sqlite3-wal"
    with closing(Journal.open(directory, max_bytes=LARGE, shared=True)) as mine:
        for _ in range(20):
            append(mine, bytes(1_000_000))
        (moved,) = Journal.living(directory)
        with closing(moved):
            assert len(moved.read(100)) == 9
            long = log.stat().st_size
            assert long > 16 << 20
            append(mine, b"more")
            # Not cut, and not longer.
            assert log.stat().st_size == long
            left = SimpleNamespace(f_bavail=17 << 20, f_frsize=1)
            monkeypatch.setattr(os, "statvfs", lambda _: left)
            with pytest.raises(Unavailable, match="has 17 MiB left, and it needs 35"):
                append(mine, b"and more")
            moved.read(1)
            append(mine, b"and more")


OPENED = """
import sys
from pathlib import Path
from experiment_service.journal import Journal

opened = []
sys.addaudithook(
    lambda event, given: opened.append(str(given[0])) if event == "open" else None
)
directory = Path(sys.argv[1])
mine = Journal.open(directory, max_bytes=1 << 30, shared=True)
(moved,) = Journal.living(directory)
mine.append([bytes(1 << 25)]).result()
del opened[:]
mine.append([b"a"]).result()
moved.delete([sequence for sequence, _ in moved.read(10)])
assert moved.depth == 1, moved.depth
files = [path.name for path in directory.glob("*.sqlite3*")]
assert len(files) == 3, files
print([path for path in opened if "sqlite3" in path])
"""


def test_no_file_of_sqlites_is_opened_beside_it(directory):
    # Closing one gives up the locks of the process: two would write at once.
    out, err = run_child(OPENED, directory).communicate(timeout=60)
    assert out == "[]\n", err
