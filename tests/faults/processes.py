"""Really started processes of the service, and how they are made to die."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from urllib import request

import psutil

from tests.conftest import free_port

_STARTED_SECONDS = 90


def _environment(data_dir, url, **settings):
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("EXPERIMENT_SERVICE_") and name != "DATABASE_URL"
    }
    return environment | {
        "EXPERIMENT_SERVICE_DATA_DIR": str(data_dir),
        "DATABASE_URL": url,
        **settings,
    }


def wait_for(condition, what, seconds=240):
    """Wait until `condition()` is true; return the seconds it took."""
    started = time.monotonic()
    while not condition():
        waited = time.monotonic() - started
        assert waited < seconds, f"waited {waited:.0f} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - started


def kill_one(find):
    """SIGKILL the first process that `find()` lists, and wait for another instead."""
    before = find()
    before[0].kill()
    wait_for(
        lambda: len(find()) == len(before) and before[0] not in find(),
        "another process instead of a killed one",
    )


class Program:
    """A command of the service, in a process group of its own."""

    def __init__(self, command, log, environment):
        self.command, self.log, self.environment = command, log, environment
        self.process = None

    def launch(self):
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "experiment_service", *self.command],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def children(self):
        """Processes it has started that live, each with its command line."""
        found = {}
        for each in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found[each] = " ".join(each.cmdline())
        return {each: line for each, line in found.items() if line}

    def kill(self):
        """SIGKILL it and all that it has started, the parent first."""
        killed = [psutil.Process(self.process.pid), *self.children]
        for each in killed:
            each.kill()
        self.process.wait()
        psutil.wait_procs(killed, timeout=10)

    def terminate(self):
        """SIGTERM it; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    @property
    def said(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Worker(Program):
    """`experiment-service worker`."""

    def __init__(self, directory, name, url, **settings):
        environment = _environment(directory / name, url, **settings)
        super().__init__(["worker"], directory / f"{name}.log", environment)

    def start(self):
        before = self.said.count("worker started")
        self.launch()
        wait_for(
            lambda: self.said.count("worker started") > before or self._fail(),
            "the worker starts",
        )

    def _fail(self):
        assert self.process.poll() is None, self.said[-4000:]


class Service(Program):
    """`experiment-service serve`, with a data directory and a port of its own.

    Attributes
    ----------
    faults : list of [float, float]
        Spans of `time.monotonic` in which connections to it may break: from a kill to
        the next answer.
    """

    def __init__(self, directory, name, url, *, workers=1, **settings):
        self.name, self.port = name, free_port()
        self.data_dir = directory / name
        environment = _environment(
            self.data_dir, url, EXPERIMENT_SERVICE_PORT=str(self.port), **settings
        )
        command = ["serve", "--workers", str(workers)]
        super().__init__(command, directory / f"{name}.log", environment)
        self.faults = []

    def start(self):
        """Start it as a supervisor would: again, while its port is still taken."""
        self.launch()
        deadline = time.monotonic() + _STARTED_SECONDS
        while self.get("/health/live")[0] != 200:
            if self.process.poll() is not None:
                assert "can't listen" in self.said[-2000:], self.said[-4000:]
                self.launch()
            assert time.monotonic() < deadline, self.said[-4000:]
            time.sleep(0.1)

    @contextlib.contextmanager
    def fault(self):
        """Mark a span in which connections may break; at its end it answers again."""
        span = [time.monotonic(), float("inf")]
        self.faults.append(span)
        yield
        while self.get("/health/live")[0] != 200:
            time.sleep(0.05)
        span[1] = time.monotonic()

    def may_break(self, opened_at, failed_at):
        """Whether a connection of that span met a fault."""
        return any(
            start <= failed_at and end >= opened_at for start, end in self.faults
        )

    def get(self, path):
        """Return status, document and headers; status 0 without an answer."""
        address = f"http://127.0.0.1:{self.port}{path}"
        try:
            with request.urlopen(address, timeout=20) as answer:
                return answer.status, json.load(answer), answer.headers
        except request.HTTPError as error:
            return error.code, json.load(error), error.headers
        except (OSError, ValueError):
            return 0, {}, {}

    @property
    def waiting(self):
        """Events in the journals of this machine, by what is in the files."""
        return self.get("/v1/status")[1]["writer"]["depth"]

    @property
    def writers(self):
        """Its process that moves events to the database, in a list."""
        return [each for each, line in self.children.items() if "api.writing" in line]

    @property
    def serving(self):
        """Its processes that answer."""
        forked = [each for each, line in self.children.items() if "serve" in line]
        return forked or [psutil.Process(self.process.pid)]

    @property
    def resident_mib(self):
        """Largest resident memory of a process that answers, in MiB."""
        return max(each.memory_info().rss for each in self.serving) / (1 << 20)
