"""What a group of events costs in the journal, in an SQLite file and on the bare disk.

Run by `make bench`, in a minute. Groups go one after the other: each waits for the
disk, and every hundred of them what waits is read and forgotten.

    journal  as requests use it: in an event loop, which hears when events are safe
    thread   the same, seen to by the journal's own thread
    files    the same files, written by the caller itself
    SQLite   a table with a log (WAL), of which each commit waits for the disk
    disk     the same bytes, written over the same file

Figures are medians of the rounds, which take turns.
"""

import argparse
import os
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

import uvloop

from experiment_service.journal import Journal
from experiment_service.journal.groups import GroupWriter
from experiment_service.journal.moving import Mover
from experiment_service.journal.slot import Ends

EVENT = os.urandom(350).hex().encode()
SIZES = (1, 7, 100)
GROUPS = 500
MOVED = 100
# Rounds until files are written over, not made longer.
WARMING = 3


def in_loop(directory, count):
    with (
        closing(Journal.open(directory, max_bytes=1 << 30)) as journal,
        closing(uvloop.new_event_loop()) as loop,
        journal.settled_by(loop),
    ):
        while True:
            journal.append([EVENT] * count).add_done_callback(lambda _: loop.stop())
            loop.run_forever()
            if (yield):
                forget(journal, count)


def in_thread(directory, count):
    with closing(Journal.open(directory, max_bytes=1 << 30)) as journal:
        while True:
            journal.append([EVENT] * count).result()
            if (yield):
                forget(journal, count)


def forget(journal, count):
    entries = journal.read(MOVED * count)
    journal.delete([sequence for sequence, _ in entries])


def in_files(directory, count):
    directory.mkdir()
    ends = Ends(directory, make=True)
    writer, mover = (
        GroupWriter(directory, segment=0, sequence=1),
        Mover(directory, ends),
    )
    with closing(ends), closing(writer), closing(mover):
        while True:
            unsafe = writer.write(
                0.0, [EVENT] * count, used=lambda: mover.moved.place.segment
            )
            os.fdatasync(unsafe.file)
            writer.confirm()
            if (yield):
                entries = mover.read(MOVED * count, 0)
                mover.forget([sequence for sequence, _ in entries])


def in_sqlite(directory, count):
    connection = sqlite3.connect(directory.with_suffix(".sqlite"), isolation_level=None)
    with closing(connection):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE waiting (id INTEGER PRIMARY KEY, event BLOB)")
        insert = "INSERT INTO waiting (event) VALUES " + ", ".join(["(?)"] * count)
        while True:
            connection.execute(insert, [EVENT] * count)
            if (yield):
                rows = connection.execute("SELECT id, event FROM waiting").fetchall()
                connection.execute("DELETE FROM waiting WHERE id <= ?", rows[-1][:1])


def on_disk(directory, count):
    content = EVENT * count
    path = directory.with_suffix(".bare")
    path.write_bytes(content * MOVED)
    file = os.open(path, os.O_WRONLY | os.O_DSYNC)
    try:
        while True:
            for number in range(MOVED):
                os.pwrite(file, content, number * len(content))
                yield
    finally:
        os.close(file)


def round_of(way):
    """Return the median wait and the processor's time of a group, in microseconds."""
    waits = []
    before = time.process_time()
    for number in range(GROUPS):
        begun = time.perf_counter()
        way.send(number % MOVED == MOVED - 1)
        waits.append(time.perf_counter() - begun)
    used = time.process_time() - before
    return 1e6 * statistics.median(waits), 1e6 * used / GROUPS


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print(f"groups of events of {len(EVENT)} bytes, microseconds, {rounds} rounds")
    print(f"  {'events':>6}  {'':8} {'wait':>6} {'/ disk':>7} {'cpu':>6} {'/ disk':>7}")
    for count in SIZES:
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
            ways = {
                "journal": in_loop(Path(name) / "journal", count),
                "thread": in_thread(Path(name) / "thread", count),
                "files": in_files(Path(name) / "files", count),
                "SQLite": in_sqlite(Path(name) / "peer", count),
                "disk": on_disk(Path(name) / "floor", count),
            }
            done = {label: [] for label in ways}
            for way in ways.values():
                next(way)
                for _ in range(WARMING):
                    round_of(way)
            for _ in range(rounds):
                for label, way in ways.items():
                    done[label].append(round_of(way))
            for way in ways.values():
                way.close()
        floor = [statistics.median(each) for each in zip(*done["disk"], strict=True)]
        for label, each in done.items():
            wait, cpu = (
                statistics.median(values) for values in zip(*each, strict=True)
            )
            print(
                f"  {count:6}  {label:8} {wait:6.0f} {wait / floor[0]:7.2f}"
                f" {cpu:6.0f} {cpu / floor[1]:7.2f}"
            )


if __name__ == "__main__":
    main()
