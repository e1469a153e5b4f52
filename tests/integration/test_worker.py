"""The worker as processes: one epoch however many run, one goes on when one dies."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from experiment_service import experimentation
from experiment_service.domain.declaration import parse_declaration
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import transaction
from tests.faults.network import SlowProxy
from tests.integration.test_reallocation import make_live, store_rewards

INTERVAL = timedelta(seconds=5)


@contextmanager
def worker(url, directory):
    log = directory / f"worker-{time.monotonic_ns()}.log"
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("EXPERIMENT_SERVICE_")
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiment_service", "worker"],
            env=environment
            | {"DATABASE_URL": url, "EXPERIMENT_SERVICE_DATA_DIR": str(directory)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    process.log = log
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


def wait_for(condition, processes, seconds=60):
    started = time.monotonic()
    while not condition():
        logs = "\n".join(process.log.read_text()[-2000:] for process in processes)
        assert time.monotonic() - started < seconds, logs
        time.sleep(0.05)


def has_started(process):
    assert process.poll() is None, process.log.read_text()
    return "worker started" in process.log.read_text()


@pytest.fixture
def bandit(engine):
    make_live(engine, "popularity")
    started_at = datetime.now(UTC) - timedelta(seconds=4)
    declaration = parse_declaration(
        {
            "key": "offers",
            "kind": "bandit",
            "placement": "offers",
            "variants": [
                {"key": "control", "recommender": "popularity", "control": True},
                {"key": "knn", "recommender": "popularity"},
            ],
            "attribution_window": "2m",
            "policy": {
                "name": "thompson",
                "interval": INTERVAL.total_seconds(),
                "minimum_units": 1,
            },
        }
    )
    with transaction(engine) as connection:
        experimentation.create(connection, declaration, actor="test", now=started_at)
        made = experimentation.start(connection, "offers", actor="test", now=started_at)
    at = started_at - timedelta(minutes=5)
    store_rewards(engine, made, {"control": (200, 20), "knn": (200, 30)}, at=at)
    return made


def looks(engine, experiment):
    with transaction(engine) as connection:
        return storage.list_reallocations(connection, experiment.id)


def test_two_workers_look_once_at_each_cutoff(engine, database_url, bandit, tmp_path):
    with (
        worker(database_url, tmp_path) as one,
        worker(database_url, tmp_path) as other,
    ):
        both = (one, other)
        wait_for(lambda: all(map(has_started, both)), both)
        wait_for(lambda: len(looks(engine, bandit)) >= 2, both)
        for process in both:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(30) for process in both] == [0, 0]
    seen = looks(engine, bandit)
    cutoffs = [look.cutoff for look in seen]
    assert cutoffs == sorted(set(cutoffs))
    assert all(
        (cutoff - bandit.started_at) % INTERVAL == timedelta(0) for cutoff in cutoffs
    )
    # All rewards were there from the start, so the first look moved and no other.
    assert [(look.moved, look.epoch) for look in seen] == [
        (number == 0, 1) for number in range(len(seen))
    ]


def test_another_goes_on_when_one_is_killed(engine, database_url, bandit, tmp_path):
    with worker(database_url, tmp_path) as one:
        wait_for(lambda: looks(engine, bandit), [one])
        one.kill()
        one.wait(30)
    before = len(looks(engine, bandit))
    with worker(database_url, tmp_path) as other:
        wait_for(lambda: len(looks(engine, bandit)) > before, [other])


def test_partitions_are_there_once_it_has_started(engine, database_url, tmp_path):
    month = datetime.now(UTC).replace(day=1)
    months = [month] + [month := (month + timedelta(days=32)) for _ in range(3)]
    with worker(database_url, tmp_path) as process:
        wait_for(lambda: has_started(process), [process])
        with transaction(engine) as connection:
            for each in months:
                for table in ("exposure", "interaction"):
                    assert connection.scalar(
                        text("SELECT to_regclass(:name) IS NOT NULL"),
                        {"name": f"{table}_{each:%Y_%m}"},
                    )


@pytest.mark.parametrize("delay", [0.3, 0.6, 0.9, 1.2])
def test_sigterm_while_it_starts_is_an_orderly_end(database_url, tmp_path, delay):
    with worker(database_url, tmp_path) as process:
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        status = process.wait(30)
        # Before Python has come to our code the signal ends it by itself.
        assert status in (0, -signal.SIGTERM), process.log.read_text()
        assert "Traceback" not in process.log.read_text()


def test_sigterm_while_its_jobs_connect_is_an_orderly_end(
    engine, database_url, tmp_path
):
    url = make_url(database_url)
    with (
        # The first connection is that of the start.
        SlowProxy(url.port, seconds=1, prompt_connections=1) as proxy,
        worker(url.set(port=proxy.port).render_as_string(False), tmp_path) as process,
    ):
        # The server knows of the second, and its answer is still on the way.
        wait_for(lambda: worker_connections(engine) == 2, [process])
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, process.log.read_text()
    assert "Traceback" not in process.log.read_text()


def worker_connections(engine):
    with transaction(engine) as connection:
        return connection.scalar(
            text(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE application_name = 'experiment-service worker'"
                " AND datname = current_database()"
            )
        )


def test_a_worker_of_a_missing_database_says_so(tmp_path):
    with worker("postgresql://nobody@127.0.0.1:1/nothing", tmp_path) as process:
        assert process.wait(30) == 2
        log = process.log.read_text()
    assert "the database does not answer" in log
    assert "Traceback" not in log
