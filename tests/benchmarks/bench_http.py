"""How fast the API answers, beside an empty FastAPI under the same server settings.

Run by `make bench`, in about two minutes. Both are driven by the same client in a
process of its own, in alternating rounds, so that a busy machine slows both: read the
ratios. The client is `wrk` when it is installed, else `closed_loop.py`; at half of the
floor's peak rate it is `open_loop.py`.

    recommendations  POST, 10 of 50 items, exposure on disk before the answer
    prefetch         the same with log_exposure false: no journal
    floor            GET of a FastAPI route that returns {"hello": "world"}

Each figure is the median of the rounds, with the lowest and highest of them. `cpu us` is
the processor time that the serving process took per request: it depends less on what
else the machine does. `left` is how many events waited for the database after a round,
at most.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil

from experiment_service import experimentation
from experiment_service.domain.declaration import parse_declaration
from experiment_service.storage import database, models
from recommenders.publishing import publish_lists

CLOSED_LOOP = Path(__file__).with_name("closed_loop.py")
OPEN_LOOP = Path(__file__).with_name("open_loop.py")

UNITS = 100_000
ITEMS = 20_000
DEPTH = 50
BODIES = 2_000

# Enough connections to saturate, and as many as a busy shop's front ends keep open.
CONNECTIONS = (32, 128)
SECONDS = 3

FLOOR = """
import socket, uvicorn
from fastapi import FastAPI
from experiment_service.api.app import SERVER_OPTIONS
app = FastAPI()
@app.get("/")
async def hello():
    return {"hello": "world"}
listener = socket.create_server(("127.0.0.1", %d))
uvicorn.Server(uvicorn.Config(app, **SERVER_OPTIONS)).run(sockets=[listener])
"""

API = """
from experiment_service.api.app import serve
from experiment_service.config import Settings
serve(Settings.from_environment())
"""

WRK = """
local requests = {}
init = function()
  wrk.headers["Content-Type"] = "application/json"
  for line in io.lines("%s") do
    requests[#requests + 1] = wrk.format("%s", nil, nil, line)
  end
end
local number = 0
request = function()
  number = number %% #requests + 1
  return requests[number]
end
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format('RESULT {"rate": %%f, "p50": %%f, "p99": %%f, "bad": %%d}\\n',
    1e6 * summary.requests / summary.duration, latency:percentile(50) / 1000,
    latency:percentile(99) / 1000,
    errors.status + errors.connect + errors.read + errors.timeout))
end
"""


@dataclass
class Target:
    """What one line of the result is about."""

    name: str
    address: str
    method: str
    bodies: Path
    server: psutil.Process | None = None


@dataclass
class Round:
    """One round: answers per second, milliseconds, microseconds of the processor."""

    rate: float
    p50: float
    p99: float
    bad: int
    cpu: float = 0.0
    left: int = 0


# The shop that is served


def publish_shop(engine, data_dir):
    rng = np.random.default_rng(7)
    items = [str(1_000_000 + number) for number in range(ITEMS)]
    units = [f"shopper-{number}" for number in range(UNITS)]
    now = datetime.now(UTC)
    with database.transaction(engine) as connection:
        for name in ("als", "popularity"):
            # A random start and stride: distinct items, without a sort per unit.
            start = rng.integers(0, ITEMS, (UNITS, 1))
            stride = 1 + 2 * rng.integers(0, 50, (UNITS, 1))
            lists = ((start + stride * np.arange(DEPTH)) % ITEMS).astype(np.int32)
            digest = publish_lists(
                data_dir / "models" / name / "1",
                name=name,
                version=1,
                unit_ids=units,
                lists=lists,
                item_ids=items,
                default=np.arange(DEPTH, dtype=np.int32),
            )
            version = models.insert_version(
                connection,
                name=name,
                recommender=name,
                parameters={},
                metrics={},
                checklist=[],
                data_from=now,
                data_to=now,
                data_digest="",
                code_version="bench",
                artifact=f"models/{name}/1",
                sha256=digest,
                now=now,
            )
            models.set_live(
                connection, version.id, decided_by="bench", reason="bench", now=now
            )
        document = {
            "key": "bench",
            "kind": "ab",
            "placement": "home",
            "variants": [
                {"key": "old", "recommender": "popularity", "control": True},
                {"key": "new", "recommender": "als"},
            ],
        }
        declaration = parse_declaration(document)
        experimentation.create(connection, declaration, actor="bench", now=now)
        experimentation.start(connection, "bench", actor="bench", now=now)


def write_bodies(path, **more):
    rng = np.random.default_rng(8)
    units = rng.integers(0, UNITS, BODIES).tolist()
    lines = [
        json.dumps({"unit_id": f"shopper-{unit}", "placement": "home", "k": 10, **more})
        for unit in units
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


# Processes


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def started(code, address, environment, log):
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=output, stderr=output
        )
    try:
        for _ in range(300):
            if process.poll() is not None:
                sys.exit(f"the server did not start:\n{log.read_text()}")
            try:
                urllib.request.urlopen(address, timeout=2).close()
                break
            except OSError:
                time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def cpu_seconds(process):
    times = process.cpu_times()
    return times.user + times.system


def drive(target, directory, connections, rate):
    """Run one round in a client process; as fast as it goes when `rate` is None."""
    before = cpu_seconds(target.server)
    output = subprocess.run(
        client(target, directory, connections, rate),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    done = Round(**json.loads(line.removeprefix("RESULT ")))
    done.cpu = 1e6 * (cpu_seconds(target.server) - before) / (done.rate * SECONDS)
    return done


def client(target, directory, connections, rate):
    ours = [
        *(target.address, "--method", target.method, "--bodies", str(target.bodies)),
        *("--seconds", str(SECONDS), "--connections", str(connections)),
    ]
    if rate is not None:
        return [sys.executable, str(OPEN_LOOP), *ours, "--rate", str(rate)]
    if shutil.which("wrk"):
        script = directory / f"{target.name}.lua"
        script.write_text(WRK % (target.bodies, target.method))
        return [
            "wrk",
            *("-t", "1", "-c", str(connections), "-d", f"{SECONDS}s"),
            *("-s", str(script), target.address),
        ]
    return [sys.executable, str(CLOSED_LOOP), *ours]


def drain(api):
    """Let the database catch up, so that one round does not slow the next.

    Returns how many events waited at first.
    """
    found = None
    for _ in range(600):
        with urllib.request.urlopen(f"{api}/v1/status", timeout=10) as answer:
            waiting = json.load(answer)["journal"]["events"]
        found = waiting if found is None else found
        if not waiting:
            return found
        time.sleep(0.05)
    sys.exit("the events of a round were not stored within 30 s")


# The result


def median(rounds, field):
    return statistics.median(getattr(each, field) for each in rounds)


def spread(rounds, field, form):
    values = [getattr(each, field) for each in rounds]
    middle = format(statistics.median(values), form)
    return f"{middle} ({min(values):{form}}-{max(values):{form}})"


def report(title, rounds, field):
    """Print medians, and the ratios of a field to the floor's, round by round."""
    print(f"\n{title}")
    print(
        f"  {'':16}{'requests/s':>24}{'p50 ms':>20}{'p99 ms':>22}{'cpu us':>8}{'left':>8}"
        f"   {field} / floor"
    )
    for name, done in rounds.items():
        bad = sum(each.bad for each in done)
        ratios = [
            getattr(ours, field) / getattr(floor, field)
            for ours, floor in zip(done, rounds["floor"], strict=True)
        ]
        print(
            f"  {name:16}{spread(done, 'rate', ',.0f'):>24}{spread(done, 'p50', '.2f'):>20}"
            f"{spread(done, 'p99', '.2f'):>22}{median(done, 'cpu'):8.0f}"
            f"{max(each.left for each in done):8,}"
            f"   {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            + (f"   {bad} BAD ANSWERS" if bad else "")
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="es-bench-") as name:
        bench(Path(name), arguments.rounds)


def bench(directory, rounds):
    data_dir = directory / "data"
    data_dir.mkdir()
    api, floor = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    with database.running_database(None, data_dir) as url:
        database.migrate(url)
        engine = database.create_engine(url, name="bench")
        publish_shop(engine, data_dir)
        engine.dispose()
        environment = os.environ | {
            "DATABASE_URL": url,
            "EXPERIMENT_SERVICE_DATA_DIR": str(data_dir),
            "EXPERIMENT_SERVICE_PORT": api.rsplit(":", 1)[1],
        }
        plain = write_bodies(directory / "bodies")
        prefetch = write_bodies(directory / "prefetch", log_exposure=False)
        targets = [
            Target("recommendations", f"{api}/v1/recommendations", "POST", plain),
            Target("prefetch", f"{api}/v1/recommendations", "POST", prefetch),
            Target("floor", f"{floor}/", "GET", plain),
        ]
        port = int(floor.rsplit(":", 1)[1])
        with (
            started(
                API, f"{api}/health/live", environment, directory / "api.log"
            ) as ours,
            started(FLOOR % port, floor, environment, directory / "floor.log") as empty,
        ):
            for target in targets:
                target.server = empty if target.name == "floor" else ours
            print(
                f"client {'wrk' if shutil.which('wrk') else 'asyncio'}, "
                f"{os.cpu_count()} cores, {UNITS:,} units x {DEPTH} items"
            )
            peak = 0
            for connections in CONNECTIONS:
                done = measure(targets, directory, api, rounds, connections=connections)
                title = f"peak: {connections} connections"
                report(f"{title}, {rounds} rounds of {SECONDS} s", done, "rate")
                peak = max(peak, median(done["floor"], "rate"))
            most = CONNECTIONS[-1]
            done = measure(
                targets, directory, api, rounds, connections=most, rate=peak / 2
            )
            title = f"half of the floor's peak, open loop: {peak / 2:,.0f} requests/s"
            report(f"{title}, {rounds} rounds of {SECONDS} s", done, "p99")


def measure(targets, directory, api, rounds, *, connections, rate=None):
    done = {target.name: [] for target in targets}
    for target in targets:
        drive(target, directory, connections, rate)  # warms up
        drain(api)
    for _ in range(rounds):
        for target in targets:
            each = drive(target, directory, connections, rate)
            each.left = drain(api)
            done[target.name].append(each)
    return done


if __name__ == "__main__":
    main()
