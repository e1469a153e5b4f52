"""The journal: what it has acknowledged survives, whatever dies."""

import asyncio
import errno
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import wait
from contextlib import closing
from datetime import UTC, datetime

import numpy as np
import pytest
import uvloop

from experiment_service.errors import Unavailable
from experiment_service.journal import Journal, groups, syncing
from experiment_service.journal import journal as journal_module
from experiment_service.journal.groups import GroupWriter
from experiment_service.journal.syncing import KernelSync, ThreadSync

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


@pytest.fixture
def go_on(monkeypatch):
    """Let no event become safe until it is set."""
    go_on = threading.Event()
    monkeypatch.setattr(syncing.os, "fdatasync", lambda _: go_on.wait(10))
    monkeypatch.setattr(journal_module, "make_sync", lambda _: ThreadSync())
    yield go_on
    go_on.set()


def test_appends_share_their_wait_for_the_disk(journal, go_on, monkeypatch):
    groups = []
    write = GroupWriter.write

    def note(self, now, payloads, **options):
        groups.append(len(payloads))
        return write(self, now, payloads, **options)

    monkeypatch.setattr(GroupWriter, "write", note)
    futures = [journal.append([b"first"])]
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


def test_bound_holds_for_what_is_not_safe_yet(directory, go_on):
    with closing(Journal.open(directory, max_bytes=100)) as journal:
        futures = [journal.append([bytes(30)]) for _ in range(3)]
        with pytest.raises(Unavailable, match="full"):
            journal.append([bytes(30)])
        go_on.set()
        wait(futures, timeout=10)
        assert journal.depth == 3


def test_closing_waits_for_what_was_handed_over(directory, go_on):
    journal = Journal.open(directory, max_bytes=LARGE)
    futures = [journal.append([b"a"]), journal.append([b"b"])]
    closing_ = threading.Thread(target=journal.close)
    closing_.start()
    assert not any(future.done() for future in futures)
    go_on.set()
    closing_.join(10)
    assert [future.result(timeout=0) for future in futures] == [None, None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop])
def loop(request):
    with closing(request.param()) as loop:
        yield loop


def test_event_loop_settles_what_it_appends(journal, loop):
    threads, tasks = set(), 50

    async def shop(number):
        for visit in range(20):
            future = journal.append([b"%d-%d" % (number, visit)])
            future.add_done_callback(lambda _: threads.add(threading.current_thread()))
            await asyncio.wrap_future(future)

    async def shops():
        await asyncio.gather(*(shop(number) for number in range(tasks)))

    with journal.settled_by(loop):
        loop.run_until_complete(asyncio.wait_for(shops(), 30))
        assert threads == {threading.main_thread()}
        late = [journal.append([b"late"]), journal.append([b"later"])]
    assert [future.result(timeout=0) for future in late] == [None, None]
    append(journal, b"last")
    found = payloads_of(journal)
    assert found[-3:] == [b"late", b"later", b"last"]
    assert len(set(found)) == len(found) == tasks * 20 + 3
    for number in range(tasks):
        mine = [each for each in found if each.startswith(b"%d-" % number)]
        assert mine == [b"%d-%d" % (number, visit) for visit in range(20)]


def test_closed_journal_refuses(directory):
    journal = Journal.open(directory, max_bytes=LARGE)
    future = journal.append([b"a"])
    journal.close()
    assert future.result(timeout=0) is None
    for use in (
        lambda: journal.append([b"b"]),
        lambda: journal.read(1),
        lambda: journal.delete([1]),
        lambda: journal.set_aside(1, b"a", "no"),
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
            journal.set_aside(sequence, b"bad", "kind is 'stare'")
        assert f"sequence={sequence} reason=kind is 'stare'" in caplog.text
        assert (journal.depth, journal.pending_bytes) == (1, 4)
        assert journal.set_aside_count == 1
        assert payloads_of(journal) == [b"good"]
        with pytest.raises(Unavailable, match="7 of 10"):
            journal.append([b"1234"])
        assert move_all(journal) == [b"good"]
        append(journal, b"more")
    (line,) = (directory / "journal-0/set-aside.jsonl").read_text().split("\n")[1:-1]
    kept = json.loads(line)
    assert (kept["payload"], kept["reason"]) == ("bad", "kind is 'stare'")
    assert datetime.fromisoformat(kept["set_aside_at"]) <= datetime.now(UTC)
    with closing(Journal.open(directory, max_bytes=10)) as journal:
        assert (journal.depth, journal.set_aside_count) == (1, 1)
        journal.arrived.clear()
        assert journal.retry_set_aside() == 1
        assert journal.arrived.is_set()
        assert (journal.depth, journal.set_aside_count) == (2, 0)
        assert (journal.pending_bytes, payloads_of(journal)) == (7, [b"more", b"bad"])
        assert journal.retry_set_aside() == 0


def test_each_journal_has_its_slot(directory):
    journals = [Journal.open(directory, max_bytes=LARGE) for _ in range(3)]
    for number, journal in enumerate(journals):
        append(journal, str(number).encode())
    assert [path.name for path in sorted(directory.iterdir()) if path.is_dir()] == [
        "journal-0",
        "journal-1",
        "journal-2",
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
    assert "journal-1" in names  # an event is left in it
    assert "journal-2" not in names
    (again,) = Journal.abandoned(directory)
    again.delete([sequence for sequence, _ in again.read(10)])
    again.close(remove=True)
    assert not (directory / "journal-1").exists()
    with closing(Journal.open(directory, max_bytes=LARGE)) as new:
        append(new, b"new")
        assert new.path.name == "journal-1"


def test_abandoned_journal_that_another_process_removed_is_passed_over(
    directory, monkeypatch
):
    other = Journal.open(directory, max_bytes=LARGE)
    path = other.path
    other.close(remove=True)
    assert not path.exists()
    # As if the file went away between the look and the lock.
    monkeypatch.setattr(type(directory), "glob", lambda *_: iter([path]))
    assert list(Journal.abandoned(directory)) == []
    monkeypatch.undo()
    assert not path.exists()


def test_unusable_directory_is_told(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(Unavailable, match=r"file/journal can't be used"):
        Journal.open(file / "journal", max_bytes=LARGE)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path

from experiment_service.errors import Unavailable
from experiment_service.journal import Journal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal.open(Path(sys.argv[1]), max_bytes=1 << 30)
journal.append([b"before"]).result(50)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
# Not of zeros, as the rest of the file is: half of it would be all of it.
failed = [journal.append([b"x" * (1 << 21)]) for _ in range(5)]
for future in failed:
    error = future.exception(50)
    assert isinstance(error, Unavailable), error
    assert "journal-0 can't be used" in error.message, error.message
assert journal.depth == 1 and journal.pending_bytes == 6
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert len(list(Path(sys.argv[1]).glob("journal-0/*.log"))) == 1
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
        assert journal.path.name == "journal-0"
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
    assert not (directory / "journal-0").exists()


def size_of(journal):
    return sum(path.stat().st_size for path in journal.path.iterdir())


def move_all(journal, limit=2500):
    moved = []
    while entries := journal.read(limit):
        moved += [payload for _, payload in entries]
        journal.delete([sequence for sequence, _ in entries])
    return moved


def test_space_is_given_back_after_a_burst(journal):
    for _ in range(20):
        append(journal, *[bytes(2000)] * 2500)
    assert size_of(journal) > 95 << 20
    assert len(move_all(journal)) == 50_000
    # The one that is written to, and two that will be again.
    assert size_of(journal) < 3 * (10 << 20)


def test_steady_traffic_writes_over_its_segments(journal, monkeypatch):
    made = set()
    begin = GroupWriter._begin

    def note(self, *args):
        unsafe = begin(self, *args)
        made.update(path.stat().st_ino for path in journal.path.glob("*.log"))
        return unsafe

    monkeypatch.setattr(GroupWriter, "_begin", note)
    for number in range(100):
        sent = [b"%d-%d" % (number, each) + bytes(1000) for each in range(1000)]
        append(journal, *sent)
        assert move_all(journal, 1000) == sent
    assert len(made) <= 3  # for 100 MB that went through


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(groups, "SEGMENT_BYTES", 500)


class Model:
    """What a journal must hold, beside one whose segments are short."""

    def __init__(self, directory):
        self.directory = directory
        self.journal = Journal.open(directory, max_bytes=LARGE)
        self.waiting, self.number = [], 0

    def append(self, rng):
        payloads = []
        for _ in range(rng.integers(1, 8)):
            payloads.append(b"%d." % self.number + bytes(rng.integers(0, 90)))
            self.number += 1
        append(self.journal, *payloads)
        self.waiting += payloads

    def move(self, rng):
        """Store two batches at a time, of which the first may fail."""
        first = self.journal.read(rng.integers(1, 20))
        if not first:
            return
        second = self.journal.read(rng.integers(1, 20), after=first[-1][0])
        found = [payload for _, payload in first + second]
        assert found == self.waiting[: len(found)]
        kept = []
        for batch in (second, first):
            if rng.random() < 0.8:
                self.journal.delete([sequence for sequence, _ in batch])
            else:
                kept = [payload for _, payload in batch] + kept
        self.waiting = kept + self.waiting[len(found) :]

    def restart(self, rng):
        """Begin again; what was forgotten behind one that waits comes once more."""
        while self.journal.depth and rng.random() < 0.5:
            self.move(rng)
        if self.journal._mover.gone:
            return
        self.journal.close()
        self.journal = Journal.open(self.directory, max_bytes=LARGE)

    def check(self):
        assert self.journal.depth == len(self.waiting)
        assert self.journal.pending_bytes == sum(map(len, self.waiting))


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_done_nothing_is_lost_or_doubled(directory, seed):
    rng = np.random.default_rng(seed)
    model = Model(directory)
    for _ in range(400):
        rng.choice([model.append, model.move, model.restart], p=[0.5, 0.45, 0.05])(rng)
        model.check()
    assert payloads_of(model.journal) == model.waiting
    assert len(list(model.journal.path.glob("*.log"))) < 400
    model.journal.close()


def segments_of(directory):
    return sorted((directory / "journal-0").glob("*.log"))


def written(directory, *, groups_of=3, times=3):
    """Write groups and close; return the payloads of each."""
    sent = []
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        for number in range(times):
            group = [b"%d.%d" % (number, each) for each in range(groups_of)]
            append(journal, *group)
            sent.append(group)
    return sent


def test_group_that_was_cut_off_was_never_accepted(directory, caplog):
    sent = written(directory)
    (segment,) = segments_of(directory)
    content = segment.read_bytes().rstrip(bytes(1))
    ends = directory / "journal-0/ends"
    ends.unlink()  # or it says how much was written
    lengths = set()
    for size in range(len(content)):
        segment.write_bytes(content[:size])
        with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
            found = payloads_of(journal)
            assert journal.depth == len(found)
        assert found == [each for group in sent[: len(found) // 3] for each in group]
        lengths.add(len(found))
        ends.unlink()
    assert lengths == {0, 3, 6}
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("spoiled", [0, 1, 2])
def test_damage_is_told_and_takes_only_its_own_group(directory, caplog, spoiled, known):
    sent = written(directory)
    (segment,) = segments_of(directory)
    content = bytearray(segment.read_bytes())
    content[content.index(b"%d.1" % spoiled)] ^= 1
    segment.write_bytes(content)
    if not known:
        (directory / "journal-0/ends").unlink()
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        append(journal, b"new")
        left = [each for n, group in enumerate(sent) if n != spoiled for each in group]
        if known or spoiled < 2:
            assert "journal is damaged path=" in caplog.text
            assert f"{segment} offset=" in caplog.text
            assert "lost=3" in caplog.text
        else:
            assert "damaged" not in caplog.text  # as if it was cut off
        assert move_all(journal) == [*left, b"new"]
        append(journal, b"more")
        assert move_all(journal) == [b"more"]
        kept = list((directory / "journal-0").glob("*.damaged"))
        assert [path.read_bytes() for path in kept] == (
            [content] if known or spoiled < 2 else []
        )
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        assert (journal.depth, payloads_of(journal)) == (0, [])


@pytest.mark.usefixtures("small_segments")
def test_damaged_head_of_a_segment_costs_nothing(directory):
    sent = written(directory, groups_of=8, times=30)
    for segment in segments_of(directory)[1:]:
        content = bytearray(segment.read_bytes())
        content[0] ^= 1
        segment.write_bytes(content)
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        assert payloads_of(journal) == [each for group in sent for each in group]


@pytest.mark.usefixtures("small_segments")
def test_memory_of_what_was_moved_may_be_lost(directory):
    """As after a crash of the machine: what was moved since comes once more."""
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        for number in range(40):
            append(journal, b"%d" % number + bytes(90))
        journal.delete([sequence for sequence, _ in journal.read(10)])
        before = (journal.path / "ends").read_bytes()
        journal.delete([sequence for sequence, _ in journal.read(20)])
    contents = (before, b"", bytes(4096), os.urandom(4096))
    for last, content in enumerate(contents, 40):
        (directory / "journal-0/ends").write_bytes(content)
        with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
            found = [int(each.rstrip(bytes(1))) for each in payloads_of(journal)]
            assert found == list(range(found[0], last))
            assert found[0] <= 30
            assert journal.depth == len(found)
            append(journal, b"%d" % last)
            assert payloads_of(journal)[-1] == b"%d" % last
            journal.delete([journal.read(100)[-1][0]])


def test_numbers_of_what_was_moved_are_never_used_again(directory):
    """A group that a crash took back was moved already, though nobody was told of it."""
    written(directory, times=1)
    (segment,) = segments_of(directory)
    before = segment.read_bytes()
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        append(journal, b"taken back")
        assert len(move_all(journal)) == 4
    for path in segments_of(directory)[1:]:
        path.unlink()
    segment.write_bytes(before)
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        append(journal, b"new")
        assert move_all(journal) == [b"new"]


class Disk:
    """A disk that fails at times: before, as or after it writes, or makes it safe."""

    def __init__(self, monkeypatch, failures=0.1):
        self.rng, self.failures = np.random.default_rng(11), failures
        self.pwrite, self.failed = os.pwrite, 0
        monkeypatch.setattr(groups.os, "pwrite", self)
        for kind in (KernelSync, ThreadSync):
            monkeypatch.setattr(kind, "has_ended", self.failing(kind.has_ended))

    def failing(self, has_ended):
        def ended_badly(sync):
            ended = has_ended(sync)
            if ended and self.rng.random() < self.failures:
                self.failed += 1
                raise OSError(errno.EIO, "the disk fails")
            return ended

        return ended_badly

    def __call__(self, file, content, offset):
        chance = self.rng.random()
        if chance < 0.15:
            self.failed += 1
            part = (0, len(content) // 2, len(content))[self.rng.integers(3)]
            self.pwrite(file, content[:part], offset)
            raise OSError(errno.EIO, "the disk fails")
        part = len(content) // 2 if chance < 0.3 and len(content) > 1 else len(content)
        return self.pwrite(file, content[:part], offset)


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("make_sync", [syncing.make_sync, lambda _: ThreadSync()])
def test_failing_disk_costs_only_what_was_refused(
    directory, make_sync, monkeypatch, caplog
):
    monkeypatch.setattr(journal_module, "make_sync", make_sync)
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        disk = Disk(monkeypatch)
        accepted, refused, moved = [], [], []
        for number in range(500):
            payload = b"%d" % number + bytes(60)
            try:
                append(journal, payload)
                accepted.append(payload)
            except Unavailable:
                refused.append(payload)
            if number % 3 == 0:
                entries = journal.read(5)
                moved += [payload for _, payload in entries]
                journal.delete([sequence for sequence, _ in entries])
        moved += move_all(journal)
        assert disk.failed > 50
        assert len(moved) == len(set(moved))
        assert set(accepted) <= set(moved)
        assert set(moved) - set(accepted) <= set(refused)
        assert moved == sorted(moved, key=lambda each: int(each.rstrip(bytes(1))))
        assert "damaged" not in caplog.text
        assert len(list(journal.path.glob("*.log"))) <= 4


@pytest.mark.parametrize("make_sync", [syncing.make_sync, lambda _: ThreadSync()])
def test_disk_that_makes_nothing_safe_is_not_filled(directory, make_sync, monkeypatch):
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        append(journal, b"before")
    journal = Journal.open(directory, max_bytes=LARGE)
    with closing(journal):
        with monkeypatch.context() as failing:
            failing.setattr(journal_module, "make_sync", make_sync)
            disk = Disk(failing, failures=1.0)
            failing.setattr(groups.os, "pwrite", disk.pwrite)
            for _ in range(30):
                with pytest.raises(Unavailable, match="the disk fails"):
                    append(journal, b"refused")
            assert len(segments_of(directory)) == 1
        append(journal, b"after")
        found = move_all(journal)
        assert [each for each in found if each != b"refused"] == [b"before", b"after"]


def test_journal_is_not_removed_with_an_event_that_was_counted_wrongly(
    directory, monkeypatch
):
    journal = Journal.open(directory, max_bytes=LARGE)
    append(journal, b"a")
    with monkeypatch.context() as failing:
        disk = Disk(failing, failures=1.0)
        failing.setattr(groups.os, "pwrite", disk.pwrite)
        with pytest.raises(Unavailable):
            append(journal, b"refused")
    # It was refused, and can be read all the same.
    assert move_all(journal) == [b"a", b"refused"]
    append(journal, b"accepted")
    journal.close(remove=True)
    (again,) = Journal.abandoned(directory)
    with closing(again):
        assert payloads_of(again) == [b"accepted"]


def test_append_keeps_nothing_when_no_thread_can_be_started(journal, monkeypatch):
    with monkeypatch.context() as failing:
        failing.setattr(threading.Thread, "start", no_more_threads)
        with pytest.raises(RuntimeError, match="can't start"):
            journal.append([b"refused"])
    append(journal, b"accepted")
    assert payloads_of(journal) == [b"accepted"]


def no_more_threads(_):
    raise RuntimeError("can't start new thread")


def test_mover_follows_a_process_that_begins_again(directory):
    """The slot's next owner writes on where a group may have been cut off."""
    first = Journal.open(directory, max_bytes=LARGE, shared=True)
    append(first, b"a")
    (moved,) = Journal.living(directory)
    with closing(moved):
        assert payloads_of(moved) == [b"a"]
        (segment,) = segments_of(directory)
        first.close()
        with segment.open("ab") as file:
            file.write(b"ESJg cut off")
        assert moved.read(10, after=1) == []
        with closing(Journal.open(directory, max_bytes=LARGE, shared=True)) as second:
            assert (second.path, second.depth) == (first.path, 1)
            append(second, b"b", b"c")
            assert move_all(moved) == [b"a", b"b", b"c"]
            assert (second.depth, second.pending_bytes) == (0, 0)


def test_journal_that_is_just_being_made_is_left_alone(directory):
    with closing(Journal.open(directory, max_bytes=LARGE, shared=True)) as journal:
        (journal.path / "ends").rename(journal.path / "later")
        assert list(Journal.living(directory)) == []
        (journal.path / "later").rename(journal.path / "ends")
        (moved,) = Journal.living(directory)
        moved.close()


@pytest.mark.parametrize("left", [None, b"", bytes(100)])
def test_events_that_a_crash_of_the_machine_left_alone_are_found(directory, left):
    """What is not waited for may be lost: all but the events."""
    sent = written(directory)
    ends = directory / "journal-0/ends"
    ends.unlink()
    if left is not None:
        ends.write_bytes(left)
    (found,) = Journal.abandoned(directory)
    assert found.depth == 9
    assert move_all(found) == [each for group in sent for each in group]
    found.close(remove=True)
    assert not (directory / "journal-0").exists()


def test_damaged_segments_outlive_their_journal(directory):
    written(directory)
    (segment,) = segments_of(directory)
    content = bytearray(segment.read_bytes())
    content[content.index(b"1.1")] ^= 1
    segment.write_bytes(content)
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        append(journal, b"new")
    (found,) = Journal.abandoned(directory)
    assert len(move_all(found)) == 7
    found.close(remove=True)
    assert [path.name for path in (directory / "journal-0").iterdir()] == [
        "0000000001.damaged"
    ]
    assert list(Journal.abandoned(directory)) == []
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        assert journal.path.name == "journal-0"
        append(journal, b"a")
        assert payloads_of(journal) == [b"a"]


def test_other_files_are_no_journals(directory):
    directory.mkdir()
    (directory / "journal-0.sqlite3").write_bytes(b"of a former build")
    (directory / "journal-x").mkdir()
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        (journal.path / "notes.log").touch()
        append(journal, b"a")
        assert payloads_of(journal) == [b"a"]
    (found,) = Journal.abandoned(directory)
    found.close()


@pytest.mark.parametrize(
    "line", ['{"set_aside_at": "2026', "{}", "[1]", '{"payload": 1}']
)
def test_set_aside_survives_a_line_that_is_no_event(directory, line, caplog):
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        append(journal, b"\xff not text", b"other")
        journal.set_aside(*journal.read(1)[0], "no text")
        path = journal.path / "set-aside.jsonl"
        with path.open("a") as file:
            file.write(line)
        journal.set_aside(*journal.read(1)[0], "no reason")
        assert (journal.depth, journal.set_aside_count) == (0, 2)
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        assert (journal.depth, journal.set_aside_count) == (0, 2)
        with closing(Journal.open(directory, max_bytes=LARGE)) as other:
            assert journal.retry_set_aside(other) == 2
            assert payloads_of(other) == [b"\xff not text", b"other"]
            assert f"line is no event path={path}" in caplog.text
        assert (journal.depth, journal.set_aside_count) == (0, 0)
        assert not path.exists()


WRITING = """
import os, sys
from pathlib import Path
from experiment_service.journal import Journal, groups

groups.SEGMENT_BYTES = 20_000
journal = Journal.open(Path(sys.argv[1]), max_bytes=1 << 30, shared=True)
number = int(sys.argv[2])
while True:
    numbers = range(number, number + 1 + number % 9)
    number += len(numbers)
    journal.append([b"%d." % each + bytes(each % 500) for each in numbers]).result()
    os.write(1, b"%d\\n" % number)
"""


def test_mover_of_another_process_misses_nothing(directory):
    """While that process is killed again and again, and goes on in its slot."""
    moved, first, journal = [], 0, None
    for target in (300, 1, 700, 40, 500):
        with run_child(WRITING, directory, first) as child:
            for _ in range(target):
                accepted = int(child.stdout.readline())
                if journal is None:
                    (journal,) = Journal.living(directory)
                entries = journal.read(100)
                moved += [int(payload.partition(b".")[0]) for _, payload in entries]
                journal.delete([sequence for sequence, _ in entries])
            child.kill()
            for line in child.stdout:
                accepted = int(line) if line.endswith("\n") else accepted
        first = accepted + 1000  # what was written and not told has numbers between
        moved += [int(each.partition(b".")[0]) for each in move_all(journal)]
        assert moved == sorted(set(moved))
        assert moved[-1] >= accepted - 1
        assert (journal.depth, journal.pending_bytes) == (0, 0)
    assert journal.claim()
    assert journal.depth == 0
    journal.close(remove=True)
    assert not journal.path.exists()


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("left", ["its old head", "half a head", "nothing"])
def test_segment_that_was_never_begun_holds_nothing(directory, left, caplog):
    """A process was killed after it had named a segment, and before it wrote to it."""
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        for number in range(60):
            append(journal, b"%d" % number + bytes(90))
        for _ in range(5):
            journal.delete([sequence for sequence, _ in journal.read(10)])
    oldest, *_, last = segments_of(directory)
    begun = last.with_name(f"{int(last.stem) + 1:010d}.log")
    oldest.rename(begun)
    if left != "its old head":
        os.truncate(begun, 10 if left == "half a head" else 0)
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        append(journal, b"60")
        found = [int(each.rstrip(bytes(1))) for each in move_all(journal)]
        assert found == list(range(50, 61))
        assert not list(journal.path.glob("*.damaged"))
    assert "damaged" not in caplog.text


def test_event_that_could_not_be_set_aside_still_waits(journal, monkeypatch):
    append(journal, b"bad")
    (sequence, _), *_ = journal.read(1)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:10]))
    with pytest.raises(Unavailable, match="No space left"):
        journal.set_aside(sequence, b"bad", "no reason")
    monkeypatch.undo()
    assert (journal.depth, journal.set_aside_count) == (1, 0)
    assert payloads_of(journal) == [b"bad"]
    journal.set_aside(sequence, b"bad", "no reason")
    assert (journal.depth, journal.set_aside_count) == (0, 1)


def test_what_waits_can_be_asked_while_a_journal_is_taken_over(directory, monkeypatch):
    first = Journal.open(directory, max_bytes=LARGE, shared=True)
    append(first, b"a")
    (moved,) = Journal.living(directory)
    first.close()
    asked, take_stock = [], Journal._take_stock

    def ask_first(self):
        asked.append((self.depth, self.oldest_age is not None))
        take_stock(self)

    monkeypatch.setattr(Journal, "_take_stock", ask_first)
    assert moved.claim()
    assert (asked, moved.depth) == ([(1, True)], 1)
    moved.close()
    shutil.rmtree(moved.path)
    assert (moved.depth, moved.oldest_age) == (1, None)
