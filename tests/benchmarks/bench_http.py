"""How fast the API answers, beside an empty FastAPI under the same server settings.

Run by `make bench`, in under 90 seconds. Both are driven by the same client in a
process of its own, in alternating rounds, so that a busy machine slows both: read the
ratios. The client is `wrk` when it is installed, else `closed_loop.py`.

    recommendations  POST, 10 of 50 items, exposure on disk before the answer
    prefetch         the same with log_exposure false: no journal
    floor            GET of a FastAPI route that returns {"hello": "world"}
"""

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

from experiment_service import experimentation
from experiment_service.domain.declaration import parse_declaration
from experiment_service.storage import database, models
from recommenders.lists import publish_lists

CLIENT = Path(__file__).with_name("closed_loop.py")

UNITS = 100_000
ITEMS = 20_000
DEPTH = 50
BODIES = 2_000

# Enough connections to saturate, then hardly any.
PEAK = {"connections": 32, "rounds": 5, "seconds": 2}
CALM = {"connections": 2, "rounds": 3, "seconds": 2}

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
local bodies = {}
for line in io.lines("%s") do bodies[#bodies + 1] = line end
local number = 0
wrk.headers["Content-Type"] = "application/json"
request = function()
  number = number %% #bodies + 1
  return wrk.format("%s", nil, nil, bodies[number])
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


@dataclass
class Round:
    """One round: answers per second, and latencies in milliseconds."""

    rate: float
    p50: float
    p99: float
    bad: int


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
        yield
    finally:
        process.terminate()
        process.wait(30)


def drive(target, directory, *, connections, seconds):
    """Run one round in a client process."""
    if shutil.which("wrk"):
        script = directory / f"{target.name}.lua"
        script.write_text(WRK % (target.bodies, target.method))
        command = [
            "wrk",
            *("-t", "1", "-c", str(connections), "-d", f"{seconds}s"),
            *("-s", str(script), target.address),
        ]
    else:
        command = [
            *(sys.executable, str(CLIENT), target.address),
            *("--method", target.method, "--bodies", str(target.bodies)),
            *("--connections", str(connections), "--seconds", str(seconds)),
        ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    return Round(**json.loads(line.removeprefix("RESULT ")))


def drain(api):
    """Let the database catch up, so that one round does not slow the next."""
    for _ in range(200):
        with urllib.request.urlopen(f"{api}/v1/status", timeout=10) as answer:
            if not json.load(answer)["journal"]["events"]:
                return
        time.sleep(0.05)


# The result


def report(title, rounds):
    print(f"\n{title}")
    print(f"  {'':16}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'rate / floor':>14}")
    floor = statistics.median(each.rate for each in rounds["floor"])
    for name, done in rounds.items():
        rate, p50, p99 = (
            statistics.median(getattr(each, field) for each in done)
            for field in ("rate", "p50", "p99")
        )
        bad = sum(each.bad for each in done)
        print(
            f"  {name:16}{rate:12,.0f}{p50:9.2f}{p99:9.2f}{rate / floor:14.2f}"
            + (f"   {bad} BAD ANSWERS" if bad else "")
        )


def main():
    with tempfile.TemporaryDirectory(prefix="es-bench-") as name:
        bench(Path(name))


def bench(directory):
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
            started(API, f"{api}/health/live", environment, directory / "api.log"),
            started(FLOOR % port, floor, environment, directory / "floor.log"),
        ):
            print(
                f"client {'wrk' if shutil.which('wrk') else 'asyncio'}, "
                f"{os.cpu_count()} cores, {UNITS:,} units x {DEPTH} items"
            )
            measure("peak", targets, directory, api, **PEAK)
            measure("few connections", targets, directory, api, **CALM)


def measure(title, targets, directory, api, *, connections, rounds, seconds):
    done = {target.name: [] for target in targets}
    for _ in range(rounds):
        for target in targets:
            done[target.name].append(
                drive(target, directory, connections=connections, seconds=seconds)
            )
            drain(api)
    report(f"{title}: {connections} connections, {rounds} rounds of {seconds} s", done)


if __name__ == "__main__":
    main()
