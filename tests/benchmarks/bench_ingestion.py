"""Events into PostgreSQL, beside the floor: COPY of the same rows into the same tables.

    python tests/benchmarks/bench_ingestion.py [--events 100000] [--batch 10000]

Ours stores each event once, whatever is sent again, finds what it counts for, and keeps
the rows of units up to date; the floor does nothing of that. Half of the events are
exposures, half are interactions with them, of one unit for each five exposures, under two
experiments. All ways take turns, each in an empty database of one server.

    stored      from memory, by one connection
    two at once likewise, by two connections, as the writer's process does
    over HTTP   the interactions, posted to `experiment-service serve` in batches of 100 by
                8 connections, until the last is in PostgreSQL; their exposures are there

The floors write by one connection, in batches as large as ours. `cpu` is the processor
time per row, in microseconds, of the serving and of the writer's process.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID

import psutil
from sqlalchemy import text

from experiment_service.domain.declaration import parse_declaration
from experiment_service.domain.event import Exposure, Interaction
from experiment_service.domain.experiment import Epoch, ExperimentState
from experiment_service.storage import database, events, staging
from experiment_service.storage import experiments as storage
from experiment_service.storage.partitions import ensure_partitions

START = datetime.now(UTC) - timedelta(hours=2)
REPEATS = 3
CONTEXT = {"device": "phone", "returning": True}
ITEMS = tuple(f"item-{i}" for i in range(10))
POSTED = 100
TAKEN = b'{"accepted":%d,"refused":[]}' % POSTED
CONNECTIONS = 8


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
        weights = {"a": 0.5, "b": 0.5}
        epoch = Epoch(number=0, weights=weights, reason="bench", started_at=START)
        storage.insert_epoch(connection, experiment.id, epoch)
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


def of(kind, made):
    return [event for event in made if isinstance(event, kind)]


def store(engine, batch):
    with database.transaction(engine) as connection:
        events.store_events(connection, of(Exposure, batch), of(Interaction, batch))


def copy(engine, batch):
    with database.transaction(engine) as connection:
        cursor = connection.connection.driver_connection.cursor()
        for table, rows, row, kind in (
            ("exposure", staging.new_exposure, staging.exposure_row, Exposure),
            (
                "interaction",
                staging.new_interaction,
                staging.interaction_row,
                Interaction,
            ),
        ):
            statement = f"COPY {table} ({', '.join(rows.c.keys())}) FROM STDIN"
            with cursor.copy(statement) as copying:
                for event in of(kind, batch):
                    copying.write_row(row(event))


@contextmanager
def fresh_database(url):
    """Yield the address of an empty database with the experiments in it."""
    name = f"bench_{time.monotonic_ns()}"
    admin = database.create_engine(url, name="bench")
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
        own = admin.url.set(database=name).render_as_string(hide_password=False)
        database.migrate(own)
        engine = database.create_engine(own, name="bench")
        with database.transaction(engine) as made:
            assert make_experiments(made) == [1, 2]
        yield own, engine
        engine.dispose()
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    admin.dispose()


def from_memory(url, action, made, size, *, at_once=1):
    """Return rows per second."""
    batches = [made[first : first + size] for first in range(0, len(made), size)]
    with fresh_database(url) as (_, engine), ThreadPoolExecutor(at_once) as pool:
        started = time.perf_counter()
        list(pool.map(partial(action, engine), batches))
        return len(made) / (time.perf_counter() - started)


# Over HTTP


def requests_of(interactions):
    """Encode requests of 100 interactions each, as a storefront sends them."""
    documents = [
        {
            "id": str(each.id),
            "exposure_id": str(each.exposure_id),
            "kind": each.kind,
            "item_id": each.item_id,
            "position": each.position,
            "occurred_at": each.occurred_at.isoformat(),
        }
        for each in interactions
    ]
    for first in range(0, len(documents), POSTED):
        body = json.dumps({"interactions": documents[first : first + POSTED]}).encode()
        head = (
            "POST /v1/interactions HTTP/1.1\r\nhost: localhost\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        yield head.encode() + body


def post(port, requests):
    """Send requests over connections that are kept, each as soon as one is answered."""
    failures = []

    def work(own):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            for request in own:
                connection.sendall(request)
                answer = b""
                while not answer.endswith(TAKEN):
                    part = connection.recv(65536)
                    answer += part
                    if not part or not answer.startswith(b"HTTP/1.1 200"):
                        failures.append(answer)
                        return

    threads = [
        threading.Thread(target=work, args=(requests[number::CONNECTIONS],))
        for number in range(CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit(f"{len(failures)} requests were refused; the first: {failures[0]!r}")


@contextmanager
def serving(url, directory):
    """Yield the port of a server, its process and that of its writer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = os.environ | {
        "DATABASE_URL": url,
        "EXPERIMENT_SERVICE_DATA_DIR": str(directory),
        "EXPERIMENT_SERVICE_PORT": str(port),
    }
    log = directory / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "experiment_service", "serve"],
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready").close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            sys.exit(f"the server did not start:\n{log.read_text()}")
        process = psutil.Process(server.pid)
        (writer,) = process.children()
        yield port, (process, writer)
    finally:
        server.terminate()
        server.wait(60)


def wait_for(engine, number):
    """Wait until so many events are stored."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        with database.transaction(engine) as connection:
            stored = text("SELECT sum(received - known) FROM intake")
            if connection.scalar(stored) >= number:
                return
        time.sleep(0.02)
    sys.exit(f"{number:,} events were not stored within 10 minutes")


def over_http(url, made, size):
    """Return rows per second, and seconds of the processor per process."""
    requests = list(requests_of(of(Interaction, made)))
    with ExitStack() as stack:
        own, engine = stack.enter_context(fresh_database(url))
        shown = of(Exposure, made)
        for first in range(0, len(shown), size):
            store(engine, shown[first : first + size])
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="es-bench"))
        port, processes = stack.enter_context(serving(own, Path(directory)))
        # The first batch finds the writer awake.
        post(port, requests[:1])
        wait_for(engine, len(shown) + POSTED)
        before = [each.cpu_times() for each in processes]
        started = time.perf_counter()
        post(port, requests[1:])
        wait_for(engine, len(made))
        taken = time.perf_counter() - started
        spent = [
            each.cpu_times().user + each.cpu_times().system - (was.user + was.system)
            for each, was in zip(processes, before, strict=True)
        ]
    return (len(made) / 2 - POSTED) / taken, spent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=10_000)
    given = parser.parse_args()
    made = make_events([1, 2], given.events)
    interactions = of(Interaction, made)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory("es-bench")))
        directory.chmod(0o755)
        url = stack.enter_context(database.running_database(None, directory))
        rates, cpu = defaultdict(list), []
        for _ in range(REPEATS):
            measure = partial(from_memory, url, size=given.batch)
            rates["COPY"].append(measure(copy, made=made))
            rates["stored"].append(measure(store, made=made))
            rates["two at once"].append(measure(store, made=made, at_once=2))
            rates["COPY of interactions"].append(measure(copy, made=interactions))
            rate, spent = over_http(url, made, given.batch)
            rates["over HTTP"].append(rate)
            cpu.append([1e6 * each / len(interactions) for each in spent])
    print("| way | rows/s | / COPY | cpu |\n|---|---|---|---|")
    floor = None
    for name, found in rates.items():
        rate = statistics.median(found)
        floor = rate if name.startswith("COPY") else floor
        spent = ""
        if name == "over HTTP":
            medians = map(statistics.median, zip(*cpu, strict=True))
            spent = "serving {:.1f}, writer {:.1f}".format(*medians)
        print(f"| {name} | {rate:,.0f} | {rate / floor:.2f} | {spent} |")


if __name__ == "__main__":
    main()
