"""The full report of a large experiment, beside the floor of reading its rows once.

    python tests/benchmarks/bench_report.py [--units 1000000] [--per-unit 2 20]

Fills a database of its own with an experiment of three variants and reports on it with
every built-in metric, once for each number of raw events per unit: with what was read
before in memory, and cold, after a restart of the server with its files put out of the
kernel's cache. The floor is one pass of PostgreSQL over the rows of units, without
statistics.
"""

import argparse
import os
import statistics
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import select, text

from experiment_service.domain.declaration import parse_declaration
from experiment_service.domain.experiment import Epoch, ExperimentState
from experiment_service.domain.metric import METRICS
from experiment_service.reporting import build_report
from experiment_service.storage import database, schema
from experiment_service.storage import experiments as storage
from experiment_service.storage.partitions import ensure_partitions
from experiment_service.storage.units import summarise_units

START = datetime(2026, 9, 1, tzinfo=UTC)
END = START + timedelta(days=28)
REPEATS = 3

UNITS = """
INSERT INTO unit_exposure (experiment_id, unit_id, epoch, variant, propensity, exposures,
                           fallback_exposures, context, first_at, last_at)
SELECT :id, 'unit-' || i, 0, (ARRAY['a', 'b', 'c'])[1 + i % 3], 1 / 3.0, 2, 0,
       jsonb_build_object('device', (ARRAY['phone', 'desktop'])[1 + i % 2]), at,
       at + interval '1 hour'
FROM generate_series(CAST(1 AS bigint), CAST(:units AS bigint)) i,
     LATERAL (SELECT :start + i * :step AS at) t
"""

OUTCOMES = """
INSERT INTO unit_outcome (experiment_id, unit_id, phase, kind, position, category,
                          placement, count, value_sum, first_at)
SELECT :id, 'unit-' || i, 0, kind, position, '', 'home', 1 + (i * 7) % 2,
       CASE WHEN kind = 'purchase' THEN 10 + i % 50 ELSE 0 END,
       :start + i * :step + interval '2 minutes'
FROM generate_series(CAST(1 AS bigint), CAST(:units AS bigint)) i,
     (VALUES ('viewed', 0, 80), ('click', 1, 8), ('click', 3, 6), ('add_to_cart', 1, 4),
             ('purchase', 1, 2), ('dismiss', 0, 1)) k(kind, position, share)
WHERE (i * 7919 + length(kind) * 104729 + position) % 100 < share
"""

RAW = """
INSERT INTO exposure (id, experiment_id, epoch, unit_id, variant, propensity, model, items,
                      sources, fallback, context, exposed_at)
SELECT (lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0')
        || '7' || lpad(to_hex(i % 4096), 3, '0') || '8'
        || lpad(to_hex(i), 15, '0'))::uuid,
       :id, 0, 'unit-' || (1 + i % :units), (ARRAY['a', 'b', 'c'])[1 + (i % :units) % 3],
       1 / 3.0, 'als/1', ARRAY['x', 'y'], ARRAY['als', 'als'], false, '{}', at
FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) i,
     LATERAL (SELECT :start + (i % :units) * :step AS at) t
"""


def fill(engine, units):
    variants = [
        {"key": key, "recommender": "popularity", "control": key == "a"}
        for key in "abc"
    ]
    document = {"key": "large", "kind": "ab", "placement": "home", "variants": variants}
    with database.transaction(engine) as connection:
        ensure_partitions(connection, now=END)
        experiment = storage.create_experiment(
            connection, parse_declaration(document), now=START
        )
        epoch = Epoch(
            number=0,
            weights=experiment.declaration.initial_weights,
            reason="start",
            started_at=START,
        )
        storage.insert_epoch(connection, experiment.id, epoch)
        storage.set_state(connection, experiment, ExperimentState.RUNNING, now=START)
        given = {
            "id": experiment.id,
            "units": units,
            "start": START,
            "step": (END - START) / units,
        }
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text(UNITS), given)
        connection.execute(text(OUTCOMES), given)
        started = time.perf_counter()
        shown = schema.unit_exposure
        keys = select(
            shown.c.experiment_id, shown.c.unit_id, shown.c.epoch.label("phase")
        )
        summarise_units(connection, keys.subquery())
        taken = time.perf_counter() - started
        print(f"rows of {units:,} units of analysis made in {taken:.1f} s")
    analyse(engine)
    return given


def add_events(engine, given, first, last):
    with database.transaction(engine) as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text(RAW), given | {"first": first, "last": last})
    analyse(engine)


def analyse(engine):
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))


def measure(engine, action):
    taken = []
    for _ in range(REPEATS):
        with database.transaction(engine) as connection:
            started = time.perf_counter()
            action(connection)
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def report(connection):
    build_report(connection, "large", as_of=END)


def floor(connection):
    connection.execute(
        text("SELECT count(*), max(first_at) FROM unit_of_analysis")
    ).one()


@contextmanager
def running(directory):
    with database.running_database(None, directory) as url:
        database.migrate(url)
        engine = database.create_engine(url, name="bench")
        yield engine
        engine.dispose()


def forget_files(directory):
    """Put the files of a stopped server out of the kernel's cache."""
    os.sync()
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_cold(directory):
    taken = []
    for _ in range(REPEATS):
        forget_files(directory)
        with running(directory) as engine, database.transaction(engine) as connection:
            started = time.perf_counter()
            report(connection)
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--per-unit", type=int, nargs="*", default=[2, 20])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory("es-bench") as made:
        directory = Path(made)
        directory.chmod(0o755)
        with running(directory) as engine:
            filled = fill(engine, given.units)
            least = measure(engine, floor)
        print(
            f"{given.units:,} units, 3 variants, {len(METRICS)} metrics; one pass over "
            f"their rows: {least:.2f} s"
        )
        print(
            "\n| raw events per unit | raw events | report, s | cold, s | / one pass "
            "| / first row |"
        )
        print("|---|---|---|---|---|---|")
        events, first = 0, None
        for per_unit in given.per_unit:
            with running(directory) as engine:
                if per_unit:
                    add_events(engine, filled, events, per_unit * given.units - 1)
                took = measure(engine, report)
            cold = measure_cold(directory)
            events = per_unit * given.units
            first = first or took
            print(
                f"| {per_unit} | {events:,} | {took:.2f} | {cold:.2f} "
                f"| {took / least:.1f} | {took / first:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
