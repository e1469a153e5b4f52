"""Replay of one log: ours, MABWiser in batches, and the Open Bandit Pipeline.

    python tests/benchmarks/bench_replay.py [--rounds 1000000] [--large]

The peers are no dependencies of the project: they get an environment of their own under
`.tools/peers` and run as child processes on the same log file. ``--large`` replays a
log of 10^8 rounds on disk instead and prints the memory that it took.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from policies import build_policy
from policies.logged import LoggedRounds
from policies.off_policy import snips
from policies.replay import ReplayRun, replay
from policies.target import Target

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".tools" / "peers"
ARMS, BATCH, REPEATS = 10, 1_000, 5
COLUMNS = ("arm", "propensity", "reward", "time")

MABWISER = """
import json, sys, time
import numpy as np
from mabwiser.mab import MAB, LearningPolicy
arm, reward = np.load(sys.argv[1] + "/arm.npy"), np.load(sys.argv[1] + "/reward.npy")
batch, arms = int(sys.argv[2]), int(sys.argv[3])
taken = []
for _ in range(int(sys.argv[4])):
    started = time.perf_counter()
    bandit = MAB(list(range(arms)), LearningPolicy.ThompsonSampling(), seed=1)
    bandit.fit(arm[:batch], reward[:batch])
    for start in range(batch, len(arm), batch):
        part = slice(start, start + batch)
        # Without contexts one call is one draw; dummy ones make it a batch.
        chosen = np.asarray(bandit.predict(np.zeros((len(arm[part]), 1))))
        kept = chosen == arm[part]
        bandit.partial_fit(arm[part][kept], reward[part][kept])
    taken.append(time.perf_counter() - started)
print(json.dumps(taken))
"""

# Its package imports torch and scikit-learn for what replay does not use.
OBP = """
import importlib.util, json, sys, time, types
import numpy as np
for name in ("torch", "torch.nn", "torch.nn.functional", "torch.optim", "torch.utils",
             "torch.utils.data"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__getattr__ = lambda _: type("Unused", (), {})
home = importlib.util.find_spec("obp").submodule_search_locations[0]
for name in ("obp", "obp.policy", "obp.simulator"):
    module = types.ModuleType(name)
    module.__path__ = [home + name[3:].replace(".", "/")]
    sys.modules[name] = module
import importlib
base = importlib.import_module("obp.policy.base")
for name in ("BaseContextFreePolicy", "BaseContextualPolicy"):
    setattr(sys.modules["obp.policy"], name, getattr(base, name))
from obp.policy.contextfree import BernoulliTS
from obp.simulator.simulator import run_bandit_simulation
arm, reward = np.load(sys.argv[1] + "/arm.npy"), np.load(sys.argv[1] + "/reward.npy")
batch, arms, rounds = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[5])
feedback = {
    "n_rounds": rounds, "n_actions": arms, "action": arm[:rounds].astype(int),
    "reward": reward[:rounds], "position": np.zeros(rounds, dtype=int),
    "pscore": np.full(rounds, 1 / arms), "context": np.zeros((rounds, 1)),
}
taken = []
for _ in range(int(sys.argv[4])):
    policy = BernoulliTS(n_actions=arms, batch_size=batch, random_state=1)
    started = time.perf_counter()
    run_bandit_simulation(dict(feedback), policy)
    taken.append(time.perf_counter() - started)
print(json.dumps(taken))
"""


def make_peers():
    """Make the peers' environment once."""
    if (PEERS / ".installed").exists():
        return
    shutil.rmtree(PEERS, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
    pip = [str(PEERS / "bin" / "pip"), "install", "--quiet"]
    needed = ["mabwiser==2.7.4", "pandas<3", "scikit-learn", "tqdm", "pyyaml"]
    subprocess.run([*pip, *needed], check=True)
    # Newer ones are not for this Python; what it would pull in replay does not use.
    subprocess.run([*pip, "--no-deps", "obp==0.4.1"], check=True)
    (PEERS / ".installed").touch()


def make_log(directory, rounds):
    """Write a uniform log column by column, as memory maps."""
    rng = np.random.default_rng(0)
    rates = 0.05 + 0.005 * np.arange(ARMS)
    types = {"arm": np.int32}
    columns = {
        name: np.lib.format.open_memmap(
            directory / f"{name}.npy",
            mode="w+",
            dtype=types.get(name, np.float64),
            shape=(rounds,),
        )
        for name in COLUMNS
    }
    for start in range(0, rounds, 1 << 20):
        stop = min(start + (1 << 20), rounds)
        arm = rng.integers(0, ARMS, stop - start)
        columns["arm"][start:stop] = arm
        columns["propensity"][start:stop] = 1 / ARMS
        columns["reward"][start:stop] = rng.random(stop - start) < rates[arm]
        columns["time"][start:stop] = np.arange(start, stop)


def open_log(directory):
    columns = {
        name: np.load(directory / f"{name}.npy", mmap_mode="r") for name in COLUMNS
    }
    return LoggedRounds(arms=tuple(map(str, range(ARMS))), **columns)


def run_of(name, method):
    return ReplayRun(
        label=name,
        policy=build_policy(name, {}),
        method=method,
        update_every=BATCH,
    )


def ours(log, name, method):
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        replay(log, run_of(name, method))
        taken.append(time.perf_counter() - started)
    return taken


def theirs(script, directory, rounds, repeats):
    given = [str(directory), str(BATCH), str(ARMS), str(repeats), str(rounds)]
    done = subprocess.run(
        [str(PEERS / "bin" / "python"), "-W", "ignore", "-c", script, *given],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def compare(directory, rounds):
    make_peers()
    make_log(directory, rounds)
    log = open_log(directory)
    # A tenth of the log is enough to time what goes round by round.
    some = min(rounds, 100_000)
    results = {
        "MABWiser 2.7.4, batches": (
            rounds,
            theirs(MABWISER, directory, rounds, REPEATS),
        ),
        "obp 0.4.1, run_bandit_simulation": (some, theirs(OBP, directory, some, 3)),
    }
    for method in ("expected", "rejection"):
        results[f"ours, {method}"] = (rounds, ours(log, "thompson", method))
    rates = {
        name: done / statistics.median(taken) for name, (done, taken) in results.items()
    }
    mabwiser, obp = list(rates.values())[:2]
    print(
        f"Thompson sampling, {ARMS} arms, a look every {BATCH:,} rounds, "
        f"{rounds:,} rounds\n"
    )
    print("| | rounds/s | / MABWiser | / obp |\n|---|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / mabwiser:.1f} | {rate / obp:.1f} |")


class AnonymousMemory:
    """Peak of the memory that is the process's own, pages of mapped files left out."""

    def __enter__(self):
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        while not self._stop.wait(0.02):
            status = Path("/proc/self/status").read_text()
            line = next(x for x in status.splitlines() if x.startswith("RssAnon"))
            self.peak = max(self.peak, int(line.split()[1]) / 1024)

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def large(directory, rounds):
    make_log(directory, rounds)
    log = open_log(directory)
    size = sum(getattr(log, name).nbytes for name in COLUMNS) / 2**20
    print(f"{rounds:,} rounds on disk, {size:,.0f} MB")
    with AnonymousMemory() as memory:
        started = time.perf_counter()
        result = replay(log, run_of("thompson", "expected"))
        taken = time.perf_counter() - started
    print(
        f"replayed in {taken:.1f} s ({rounds / taken:,.0f} rounds/s), "
        f"{memory.peak:,.0f} MB of memory"
    )
    with AnonymousMemory() as memory:
        started = time.perf_counter()
        scores = snips(log, Target.from_epochs(result.starts, result.weights, log))
        taken = time.perf_counter() - started
    print(
        f"valued at {scores.estimate:.5f} in {taken:.1f} s, {memory.peak:,.0f} MB of "
        "memory (each round is a unit of its own)"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--large", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="es-bench-") as name:
        if given.large:
            large(Path(name), given.rounds or 100_000_000)
        else:
            compare(Path(name), given.rounds or 1_000_000)


if __name__ == "__main__":
    main()
