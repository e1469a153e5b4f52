"""Events into PostgreSQL, beside the floor: COPY of the same rows into the same tables.

    python tests/benchmarks/bench_ingestion.py [--events 100000] [--batch 5000]

Ours stores each event once, whatever is sent again, finds what it counts for, and keeps
the rows of units up to date; the floor does nothing of that. Half of the events are
exposures, half are interactions with them, of one unit for each five exposures, under two
experiments. Both write in batches, in turns, to empty databases of one server.
"""

import argparse
import itertools
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from experiment_service.domain.declaration import parse_declaration
from experiment_service.domain.event import Exposure, Interaction
from experiment_service.domain.experiment import ExperimentState
from experiment_service.storage import database, events
from experiment_service.storage import experiments as storage
from experiment_service.storage.partitions import ensure_partitions

START = datetime(2026, 9, 1, tzinfo=UTC)
REPEATS = 3
CONTEXT = {"device": "phone", "returning": True}
ITEMS = tuple(f"item-{i}" for i in range(10))


def uuid7(rng, instant):
    value = (int(instant.timestamp() * 1000) << 80) | rng.getrandbits(80)
    value = value & ~(0xF << 76) | (0x7 << 76)
    return UUID(int=value & ~(0x3 << 62) | (0x2 << 62))


def make_experiments(connection):
    ensure_partitions(connection, now=START)
    made = []
    for key in ("home", "cart"):
        document = {
            "key": key,
            "kind": "ab",
            "placement": key,
            "layer": key,
            "variants": [
                {"key": "a", "recommender": "popularity", "control": True},
                {"key": "b", "recommender": "popularity"},
            ],
        }
        experiment = storage.create_experiment(
            connection, parse_declaration(document), now=START
        )
        storage.set_state(connection, experiment, ExperimentState.RUNNING, now=START)
        made.append(experiment.id)
    return made


def make_events(experiments, count):
    rng = random.Random(7)
    kinds = ("viewed", "viewed", "viewed", "click", "click", "add_to_cart", "purchase")
    made = []
    for i in range(count // 2):
        unit = i // 5
        at = START + timedelta(milliseconds=20 * i)
        exposure = Exposure(
            id=uuid7(rng, at),
            experiment_id=experiments[unit % 2],
            unit_id=f"shopper-{unit:07d}",
            variant="ab"[unit // 2 % 2],
            epoch=0,
            propensity=0.5,
            model="als/3",
            items=ITEMS,
            sources=("als",) * len(ITEMS),
            fallback=False,
            context=CONTEXT,
            exposed_at=at,
        )
        later = at + timedelta(seconds=2)
        interaction = Interaction(
            id=uuid7(rng, later),
            exposure_id=exposure.id,
            unit_id=None,
            kind=kinds[i % len(kinds)],
            item_id="item-3",
            position=1 + i % 10,
            value=None,
            occurred_at=later,
        )
        made += [exposure, interaction]
    return made


def store(engine, batch):
    with database.transaction(engine) as connection:
        events.store_events(
            connection,
            [event for event in batch if isinstance(event, Exposure)],
            [event for event in batch if isinstance(event, Interaction)],
        )


def copy(engine, batch):
    with database.transaction(engine) as connection:
        cursor = connection.connection.driver_connection.cursor()
        for table, staging, row, kind in (
            ("exposure", events._new_exposure, events._exposure_row, Exposure),
            (
                "interaction",
                events._new_interaction,
                events._interaction_row,
                Interaction,
            ),
        ):
            statement = f"COPY {table} ({', '.join(staging.c.keys())}) FROM STDIN"
            with cursor.copy(statement) as copying:
                for event in batch:
                    if isinstance(event, kind):
                        copying.write_row(row(event))


def measure(url, action, made, size):
    """Return the rows per second into a fresh database."""
    name = f"bench_{time.monotonic_ns()}"
    engine = database.create_engine(url, name="bench")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
        admin.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    own = engine.url.set(database=name).render_as_string(hide_password=False)
    database.migrate(own)
    engine = database.create_engine(own, name="bench")
    with database.transaction(engine) as connection:
        experiments = make_experiments(connection)
    assert experiments == [1, 2]
    started = time.perf_counter()
    for first in range(0, len(made), size):
        action(engine, made[first : first + size])
    taken = time.perf_counter() - started
    engine.dispose()
    return len(made) / taken


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=5_000)
    given = parser.parse_args()
    made = make_events([1, 2], given.events)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory("es-bench")))
        directory.chmod(0o755)
        url = stack.enter_context(database.running_database(None, directory))
        rates = {"COPY": [], "stored": []}
        for _, (name, action) in itertools.product(
            range(REPEATS), (("COPY", copy), ("stored", store))
        ):
            rate = measure(url, action, made, given.batch)
            rates[name].append(rate)
        floor, ours = (statistics.median(rates[name]) for name in ("COPY", "stored"))
        print("| way | rows/s | / COPY |\n|---|---|---|")
        print(f"| COPY alone | {floor:,.0f} | 1.00 |")
        print(f"| stored once, counted | {ours:,.0f} | {ours / floor:.2f} |")


if __name__ == "__main__":
    main()
