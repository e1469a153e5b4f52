"""I3: an accepted event is in Postgres exactly once, whatever dies."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager

import pytest
from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.engine import make_url

from experiment_service.ingestion import Writer, encode
from experiment_service.journal import Journal
from experiment_service.storage.database import transaction
from tests.conftest import admin
from tests.integration.test_events import Maker, make_experiment, outcomes

LARGE = 1 << 30


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def journal(directory):
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        yield journal


@pytest.fixture
def make():
    return Maker()


@pytest.fixture
def experiment_id(engine):
    with transaction(engine) as connection:
        return make_experiment(connection, "e")


@pytest.fixture
def exposures(make, experiment_id):
    """Return a function that makes exposures, each of its own unit."""

    def exposures(number, prefix="u"):
        units = (f"{prefix}{i}" for i in range(number))
        return [make.exposure(experiment_id, unit_id=unit) for unit in units]

    return exposures


@pytest.fixture
def poison(make, experiment_id):
    """An event that passes the door and that Postgres refuses."""
    return make.exposure(experiment_id, model="a\x00b")


@pytest.fixture
def disconnect(server_url, database_url):
    """Return a function that ends every connection to the database."""

    def disconnect():
        with admin(server_url) as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = :name"
                ),
                {"name": make_url(database_url).database},
            )

    return disconnect


@pytest.fixture
def outage(server_url, database_url, disconnect):
    """Return a context in which the database ends and refuses connections."""
    name = make_url(database_url).database

    def allow(answer):
        with admin(server_url) as connection:
            connection.execute(
                text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {answer}")
            )

    @contextmanager
    def outage():
        allow("false")
        disconnect()
        try:
            yield
        finally:
            allow("true")

    return outage


@contextmanager
def running(journal, engine, *, drain=10):
    writer = Writer(journal, engine)
    writer.start()
    try:
        yield writer
    finally:
        writer.stop(drain)


def wait_for(condition, *, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def append(journal, *events):
    journal.append([encode(event) for event in events]).result(10)


def count(engine, table):
    with transaction(engine) as connection:
        return connection.scalar(text(f"SELECT count(*) FROM {table}"))


def test_events_reach_the_database_unasked(engine, journal, make, experiment_id):
    with running(journal, engine) as writer:
        assert writer.status().last_success_at is None
        exposure = make.exposure(experiment_id)
        append(journal, exposure)
        wait_for(lambda: count(engine, "exposure") == 1)
        append(journal, make.interaction(exposure))
        wait_for(lambda: len(outcomes(engine)) == 1)
        wait_for(lambda: journal.depth == 0)
        status = writer.status()
    assert status.last_success_at is not None
    assert (status.depth, status.set_aside) == (0, 0)
    assert (status.oldest_age_seconds, status.last_error) == (None, None)


def test_status_is_a_document(engine, journal):
    document = json.loads(to_json(Writer(journal, engine).status()))
    assert set(document.pop("batch_counts")) == {0}
    assert document == {
        "stored": 0,
        "last_success_at": None,
        "last_error": None,
        "depth": 0,
        "oldest_age_seconds": None,
        "set_aside": 0,
    }


def test_more_than_a_batch_is_moved_and_outcomes_follow(
    engine, journal, make, exposures
):
    shown = exposures(6000)
    clicks = [make.interaction(each) for each in shown]
    append(journal, *clicks[:3000], *shown, *clicks[3000:])
    with running(journal, engine):
        wait_for(lambda: journal.depth == 0)
    assert count(engine, "exposure") == count(engine, "interaction") == 6000
    assert len(outcomes(engine)) == 6000


def test_stop_stores_what_waits(engine, journal, exposures):
    append(journal, *exposures(20))
    with running(journal, engine):
        pass
    assert journal.depth == 0
    assert count(engine, "exposure") == 20


def test_stop_stores_what_waits_in_journals_not_looked_at_before(
    engine, journal, directory, exposures
):
    with closing(Journal.open(directory, max_bytes=LARGE, shared=True)) as served:
        writer = Writer(journal, engine, follow=True)
        append(served, *exposures(20))
        # Told to end before its first look, as `stop` is before `start` here.
        writer._stopping.set()
        writer.start()
        writer.stop(10)
        assert served.depth == 0
    assert count(engine, "exposure") == 20


def test_writer_that_never_started_can_be_stopped(engine, journal):
    Writer(journal, engine).stop(0.1)


def test_only_refused_events_are_set_aside(engine, journal, exposures, poison, caplog):
    good = exposures(300)
    append(journal, *good[:100], poison, *good[100:250])
    journal.append([b"not an event", encode(poison)]).result(10)
    append(journal, *good[250:])
    with running(journal, engine) as writer:
        wait_for(lambda: journal.depth == 0)
        assert writer.status().last_error is None
        assert writer.status().set_aside == 3
    assert count(engine, "exposure") == 300
    told = [record for record in caplog.records if "set aside" in record.message]
    assert len(told) == 3
    assert {record.levelno for record in told} == {logging.ERROR}


def test_events_set_aside_are_tried_again_by_the_next_writer(
    engine, journal, exposures
):
    with transaction(engine) as connection:
        connection.execute(
            text("ALTER TABLE exposure ADD CONSTRAINT no_u7 CHECK (unit_id <> 'u7')")
        )
    append(journal, *exposures(10))
    with running(journal, engine):
        wait_for(lambda: journal.depth == 0)
    assert journal.set_aside_count == 1
    with transaction(engine) as connection:
        connection.execute(text("ALTER TABLE exposure DROP CONSTRAINT no_u7"))
    with running(journal, engine):
        wait_for(lambda: count(engine, "exposure") == 10)
    assert (journal.depth, journal.set_aside_count) == (0, 0)


def test_outage_is_waited_for_and_told_once(engine, journal, exposures, outage, caplog):
    shown = exposures(50)
    with running(journal, engine) as writer:
        append(journal, *shown[:10])
        wait_for(lambda: count(engine, "exposure") == 10)
        with outage():
            append(journal, *shown[10:])
            wait_for(lambda: writer.status().last_error is not None)
            assert "does not answer" in writer.status().last_error
            time.sleep(1)  # several attempts
            assert writer.status().depth == 40
            assert writer.status().oldest_age_seconds > 0.9
            assert writer.status().set_aside == 0
        wait_for(lambda: count(engine, "exposure") == 50)
        wait_for(lambda: writer.status().last_error is None)
    told = [record.message for record in caplog.records if record.name.endswith("ion")]
    assert len([each for each in told if each.startswith("events wait")]) == 1
    assert len([each for each in told if each.startswith("events are stored")]) == 1


def test_stop_does_not_wait_for_a_lost_database(
    engine, journal, exposures, outage, caplog
):
    with outage():
        with running(journal, engine, drain=30):
            append(journal, *exposures(5))
            started = time.monotonic()
        assert time.monotonic() - started < 15
        assert journal.depth == 5
    assert "events stay in the journal depth=5" in caplog.text
    with running(journal, engine):
        pass
    assert count(engine, "exposure") == 5


def test_lost_connections_lose_and_double_nothing(
    engine, journal, make, exposures, disconnect
):
    shown = exposures(3000)
    clicks = [make.interaction(each, unit_id=each.unit_id) for each in shown]
    done = threading.Event()

    def cut():
        while not done.wait(0.03):
            disconnect()

    cutter = threading.Thread(target=cut)
    with running(journal, engine):
        cutter.start()
        for start in range(0, 3000, 100):
            append(journal, *shown[start : start + 100], *clicks[start : start + 100])
            time.sleep(0.02)
        done.set()
        cutter.join(10)
        wait_for(lambda: journal.depth == 0)
    assert count(engine, "exposure") == count(engine, "interaction") == 3000
    assert {value[0] for value in outcomes(engine).values()} == {1}
    assert len(outcomes(engine)) == 3000


def test_trouble_of_the_schema_is_an_outage_and_no_refusal(
    engine, journal, make, experiment_id
):
    def rename(old, new):
        with transaction(engine) as connection:
            connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

    rename("unit_exposure", "elsewhere")
    append(journal, make.exposure(experiment_id))
    with running(journal, engine) as writer:
        wait_for(lambda: writer.status().last_error is not None)
        assert "unit_exposure" in writer.status().last_error
        assert (writer.status().depth, writer.status().set_aside) == (1, 0)
        rename("elsewhere", "unit_exposure")
        wait_for(lambda: journal.depth == 0)
    assert count(engine, "exposure") == 1


def test_journals_of_dead_processes_are_stored_and_removed(
    engine, directory, exposures, poison
):
    journals = [Journal.open(directory, max_bytes=LARGE) for _ in range(4)]
    for number, journal in enumerate(journals):
        append(journal, *exposures(10, prefix=f"p{number}-"))
    mine, alive, *dead = journals
    append(dead[1], poison)
    for journal in dead:
        journal.close()
    with running(mine, engine) as writer:
        wait_for(lambda: not list(directory.glob("journal-[23]")))
        wait_for(lambda: mine.depth == 0)
        assert writer.status().set_aside == 1
    assert count(engine, "exposure") == 30
    assert alive.depth == 10
    for journal in (mine, alive):
        journal.close()


def test_events_set_aside_by_a_dead_process_are_tried_again(
    engine, directory, make, experiment_id
):
    journals = [Journal.open(directory, max_bytes=LARGE) for _ in range(2)]
    append(journals[1], make.exposure(experiment_id))
    journals[1].set_aside(*journals[1].read(1)[0], "an older version's reason")
    journals[1].close()
    with closing(journals[0]), running(journals[0], engine):
        wait_for(lambda: count(engine, "exposure") == 1)
        wait_for(lambda: not list(directory.glob("journal-1")))


def test_unfinished_journals_of_dead_processes_stay_when_the_writer_stops(
    engine, directory, exposures, outage
):
    mine, dead = (Journal.open(directory, max_bytes=LARGE) for _ in range(2))
    append(dead, *exposures(10))
    dead.close()
    with outage(), running(mine, engine) as writer:
        wait_for(lambda: writer.status().depth == 10)
    mine.close()
    with (
        closing(Journal.open(directory, max_bytes=LARGE)) as again,
        running(again, engine),
    ):
        wait_for(lambda: count(engine, "exposure") == 10)


def test_journal_closed_under_the_writer_ends_it(engine, directory):
    journal = Journal.open(directory, max_bytes=LARGE)
    writer = Writer(journal, engine)
    writer.start()
    journal.close()
    wait_for(lambda: writer.status().last_error is not None or journal.arrived.set())
    writer.stop(5)
    assert not writer._thread.is_alive()


KILLED_AFTER_COMMIT = """
import os, signal, sys
from pathlib import Path
from experiment_service.ingestion import Writer
from experiment_service.journal import Journal
from experiment_service.storage.database import create_engine

class KilledJournal(Journal):
    def delete(self, sequences):
        os.kill(os.getpid(), signal.SIGKILL)

journal = KilledJournal.open(Path(sys.argv[1]), max_bytes=1 << 30)
writer = Writer(journal, create_engine(sys.argv[2]))
writer.start()
writer._thread.join(30)
"""


def test_kill_between_commit_and_deletion_counts_once(
    engine, directory, make, exposures, database_url
):
    shown = exposures(100)
    clicks = [make.interaction(each) for each in shown]
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        append(journal, *shown, *clicks)
    for _ in range(2):
        child = subprocess.run(
            [sys.executable, "-c", KILLED_AFTER_COMMIT, str(directory), database_url],
            check=False,
            timeout=60,
        )
        assert child.returncode == -signal.SIGKILL
        assert count(engine, "exposure") == count(engine, "interaction") == 100
    with closing(Journal.open(directory, max_bytes=LARGE)) as journal:
        assert journal.depth == 200
        with running(journal, engine):
            wait_for(lambda: journal.depth == 0)
    assert count(engine, "exposure") == count(engine, "interaction") == 100
    assert len(outcomes(engine)) == 100
    assert {value[0] for value in outcomes(engine).values()} == {1}


SERVER = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from experiment_service.ingestion import Writer, encode
from experiment_service.journal import Journal
from experiment_service.storage.database import create_engine
from tests.integration.test_events import Maker

journal = Journal.open(Path(sys.argv[1]), max_bytes=1 << 30)
Writer(journal, create_engine(sys.argv[2])).start()
make = Maker(int(sys.argv[3]))
experiment_id = int(sys.argv[4])
while True:
    shown = [make.exposure(experiment_id, unit_id=str(i)) for i in range(5)]
    events = shown + [make.interaction(each) for each in shown]
    future = journal.append([encode(event) for event in events])
    def tell(done, shown=shown):
        done.result()
        os.write(1, "".join(f"{each.id}\\n" for each in shown).encode())
    future.add_done_callback(tell)
    if journal.depth > 500:
        future.result()
"""


def test_i3_kills_at_any_time_lose_and_double_nothing(
    engine, directory, experiment_id, database_url
):
    acknowledged = set()
    for life, target in enumerate((1, 700, 1500)):
        arguments = map(str, (directory, database_url, life, experiment_id))
        with subprocess.Popen(
            [sys.executable, "-c", SERVER, *arguments],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            text=True,
        ) as child:
            for number, line in enumerate(child.stdout, 1):
                if line.endswith("\n"):
                    acknowledged.add(line.strip())
                if number == target:
                    child.kill()
        assert child.returncode == -signal.SIGKILL
    with (
        closing(Journal.open(directory, max_bytes=LARGE)) as journal,
        running(journal, engine),
    ):
        wait_for(lambda: journal.depth == 0, seconds=60)
    assert len(acknowledged) > 2000
    with transaction(engine) as connection:
        stored = connection.scalars(text("SELECT id::text FROM exposure")).all()
        clicks = connection.scalar(text("SELECT count(*) FROM interaction"))
        named = connection.scalar(
            text("SELECT count(DISTINCT exposure_id) FROM interaction")
        )
        counted = connection.scalar(text("SELECT sum(count) FROM unit_outcome"))
        shown = connection.scalar(text("SELECT sum(exposures) FROM unit_exposure"))
    assert acknowledged <= set(stored)
    assert len(stored) == len(set(stored)) == clicks == named == counted == shown
