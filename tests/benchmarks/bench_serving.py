"""What a serving process costs: its start, its memory, large lists, and news.

Run by `make bench`, in about a minute and a half.

    start      from the command to the first answer, with the lists of 100,000 units
    memory     private memory of each serving process beside the first, lists apart
    lists      opening and reading those of 1,000,000 units x 50 items
    refresh    from a change of weights until every serving process answers by it
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
import time
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
from bench_http import DEPTH, ITEMS, UNITS, free_port, publish_shop, write_bodies

from experiment_service import experimentation
from experiment_service.storage import database
from recommenders.publishing import publish_lists

MANY = 1_000_000
WORKERS = 3


@contextmanager
def serving(environment, port, workers):
    """Run the service; yields its process and the seconds to its first answer."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "experiment_service", "serve"),
            *("--workers", str(workers)),
        ],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                ask(port, "GET", "/health/live")
                break
            except OSError:
                time.sleep(0.01)
        yield psutil.Process(process.pid), time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(30)


def ask(port, method, path, document=None):
    """Send one request on a connection of its own; any process may answer it."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        method=method,
        data=json.dumps(document).encode() if document is not None else None,
        headers={"content-type": "application/json", "connection": "close"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def processes(port):
    """Return the ids of the serving processes."""
    return {ask(port, "GET", "/v1/status")["process"] for _ in range(60)}


def start(environment, port, rounds):
    seconds = []
    for _ in range(rounds):
        with serving(environment, port, 1) as (_, taken):
            seconds.append(taken)
    print(
        f"start       {statistics.median(seconds):.2f} s to the first answer "
        f"({min(seconds):.2f}-{max(seconds):.2f}, {rounds} rounds)"
    )


def memory(environment, port, bodies):
    """Print private memory after requests for many units at every process."""
    with serving(environment, port, WORKERS):
        while len(found := processes(port)) < WORKERS:
            time.sleep(0.1)
        for body in bodies[:1500]:
            ask(port, "POST", "/v1/recommendations", json.loads(body))
        private = [
            psutil.Process(process).memory_full_info().uss / 2**20 for process in found
        ]
    shown = ", ".join(f"{each:.0f}" for each in sorted(private))
    print(f"memory      private MiB of each of {WORKERS} serving processes: {shown}")


def refresh(environment, port, engine, rounds):
    """Print how long after the commit of new weights every process answers by them."""
    seconds = []
    with serving(environment, port, WORKERS):
        while len(workers := processes(port)) < WORKERS:
            time.sleep(0.1)
        for number in range(1, rounds + 1):
            share = random.Random(number).uniform(0.2, 0.8)
            with database.transaction(engine) as connection:
                epoch = experimentation.set_weights(
                    connection,
                    "bench",
                    {"old": share, "new": 1 - share},
                    actor="bench",
                    now=datetime.now(UTC),
                )
            began = time.perf_counter()
            left = set(workers)
            while left:
                left -= answering_by(port, epoch.number, left)
            seconds.append(time.perf_counter() - began)
    print(
        f"refresh     {1000 * statistics.median(seconds):.0f} ms until all {WORKERS} "
        f"processes answered by new weights (slowest {1000 * max(seconds):.0f} ms, "
        f"{rounds} changes)"
    )


def answering_by(port, epoch, wanted):
    """Return the process that answers on a new connection, if it knows an epoch."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        known = exchange(
            connection,
            "POST",
            "/v1/assignments",
            {"unit_id": "probe", "experiment": "bench", "log_exposure": False},
        )["epoch"]
        process = exchange(connection, "GET", "/v1/status")["process"]
    return {process} & wanted if known == epoch else set()


def exchange(connection, method, path, document=None):
    body = json.dumps(document).encode() if document is not None else b""
    connection.sendall(
        f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    received = b""
    while True:
        received += connection.recv(65_536)
        head, separator, content = received.partition(b"\r\n\r\n")
        if separator:
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
            if len(content) >= length:
                return json.loads(content)


LISTS = """
import random, sys, time
from pathlib import Path
from recommenders.lists import PublishedLists
def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(l.split()[1]) for l in lines if l.startswith("Private_Dirty")) / 1024
before = private()
began = time.perf_counter()
lists = PublishedLists.open(Path(sys.argv[1]))
opened = time.perf_counter() - began
rng = random.Random(5)
units = [f"shopper-{rng.randrange(lists.units)}" for _ in range(20_000)]
first = time.perf_counter()
for unit in units:
    assert len(lists.for_unit(unit, 10)) == 10
read = (time.perf_counter() - first) / len(units)
print(f"lists       {lists.units:,} units x {lists.depth}: opened in {1000 * opened:.1f} "
      f"ms, {1e6 * read:.1f} us per unit, {private() - before:.1f} MiB private")
"""


def many_lists(directory):
    rng = np.random.default_rng(3)
    start = rng.integers(0, ITEMS, (MANY, 1), dtype=np.int32)
    lists = (start + np.arange(DEPTH, dtype=np.int32)) % ITEMS
    publish_lists(
        directory / "large",
        name="large",
        version=1,
        unit_ids=[f"shopper-{number}" for number in range(MANY)],
        lists=lists.astype(np.int32),
        item_ids=[str(1_000_000 + number) for number in range(ITEMS)],
        default=np.arange(DEPTH, dtype=np.int32),
    )
    subprocess.run([sys.executable, "-c", LISTS, str(directory / "large")], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="es-bench-") as name:
        directory = Path(name)
        data_dir = directory / "data"
        data_dir.mkdir()
        port = free_port()
        with database.running_database(None, data_dir) as url:
            database.migrate(url)
            engine = database.create_engine(url, name="bench")
            publish_shop(engine, data_dir)
            environment = os.environ | {
                "DATABASE_URL": url,
                "EXPERIMENT_SERVICE_DATA_DIR": str(data_dir),
                "EXPERIMENT_SERVICE_PORT": str(port),
            }
            print(f"{os.cpu_count()} cores, {UNITS:,} units x {DEPTH} items")
            start(environment, port, rounds)
            bodies = write_bodies(directory / "bodies").read_text().splitlines()
            memory(environment, port, bodies)
            refresh(environment, port, engine, 2 * rounds)
            engine.dispose()
        many_lists(directory)


if __name__ == "__main__":
    main()
