"""Scenarios: a server of PostgreSQL to break, a shop on it, load, and the reckoning."""

import shutil
import signal
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text

from experiment_service import experimentation
from experiment_service.storage import database
from tests.conftest import DebianServer, admin
from tests.faults import checks
from tests.faults.load import Load
from tests.faults.processes import Service, Worker, wait_for
from tests.integration.serving.conftest import (
    bandit,
    declaration,
    make_live,
    publish,
    run_experiment,
)

#: Events that a scenario sends at least.
EVENTS = 100_000

_LATE_EVENTS = 3_000
_COLUMNS = (
    "scenario",
    "accepted",
    "sent twice",
    "503",
    "cut off",
    "not answered",
    "slowest, s",
    "prefetched",
    "epochs",
    "what happened",
)
_results = []


class Postgres(DebianServer):
    """A server to stop and crash. It waits for the disk, as in production."""

    def __init__(self, directory):
        # Any address: one that is cut off could not be listened on again.
        super().__init__(directory, "-c listen_addresses=0.0.0.0")
        self.start()

    @property
    def processes(self):
        """The first one, which starts the others, and these."""
        first = psutil.Process(
            int((self.data / "postmaster.pid").read_text().split()[0])
        )
        return [first, *first.children()]

    def revive(self):
        """Let it run again, whatever a test that failed has left."""
        try:
            for each in self.processes:
                each.send_signal(signal.SIGCONT)
        except (FileNotFoundError, psutil.NoSuchProcess):
            self.start()

    def kill(self):
        """SIGKILL all of it at once."""
        killed = self.processes
        for each in killed:
            each.kill()
        psutil.wait_procs(killed, timeout=20)


@pytest.fixture(scope="session")
def postgres():
    directory = Path(tempfile.mkdtemp(prefix="es-faults-"))
    directory.chmod(0o755)
    server = Postgres(directory)
    with admin(server.url()) as connection:
        connection.execute(text("CREATE DATABASE template_faults"))
    database.migrate(server.url("template_faults"))
    yield server
    server.stop()
    shutil.rmtree(directory)


@pytest.fixture
def scenario(request, postgres, tmp_path):
    name = request.node.name.removeprefix("test_")
    scenario = Scenario(name, postgres, tmp_path)
    yield scenario
    scenario.close()


class Scenario:
    """A database of its own, an A/B test and a bandit in it, processes and load."""

    def __init__(self, name, postgres, directory):
        self.name, self.postgres, self.directory = name, postgres, directory
        self.database = f"faults_{time.monotonic_ns()}"
        with admin(postgres.url()) as connection:
            connection.execute(
                text(f"CREATE DATABASE {self.database} TEMPLATE template_faults")
            )
        self.url = postgres.url(self.database)
        self.engine = database.create_engine(self.url, name="test")
        self.programs, self.loads = [], []
        self._is_open = False

    def _open_shop(self, data_dir):
        """Publish the lists to a machine; the first one also makes the experiments."""
        published = {name: publish(data_dir, name, 1) for name in ("als", "popularity")}
        if self._is_open:
            return
        self._is_open = True
        for name, artifact in published.items():
            make_live(self.engine, name, *artifact)
        with database.transaction(self.engine) as connection:
            for placement in ("home", "offers"):
                experimentation.set_placement(
                    connection,
                    placement,
                    recommender="popularity",
                    settings={},
                    actor="test",
                )
        run_experiment(self.engine, declaration("home-test"))
        policy = {"name": "thompson", "interval": "10s", "minimum_units": 20}
        run_experiment(
            self.engine,
            bandit(
                "offers-test",
                placement="offers",
                layer="offers",
                attribution_window="2s",
                policy=policy,
            ),
        )

    def service(self, name="api", *, url=None, **options):
        """Start a machine with an API."""
        service = Service(self.directory, name, url or self.url, **options)
        self._open_shop(service.data_dir)
        self.programs.append(service)
        service.start()
        return service

    def worker(self, name="worker", *, url=None, **settings):
        worker = Worker(self.directory, name, url or self.url, **settings)
        self.programs.append(worker)
        worker.start()
        return worker

    def load(self, *services, **options):
        load = Load(*services, name=f"load{len(self.loads)}", **options)
        self.loads.append(load)
        return load

    @property
    def services(self):
        return [each for each in self.programs if isinstance(each, Service)]

    def drain(self):
        """Wait until the database has all; return the seconds it took."""
        return wait_for(
            lambda: all(
                each.get("/v1/status")[1].get("writer", {}).get("depth") == 0
                and each.get("/health/ready")[1].get("status") == "ready"
                for each in self.services
            ),
            "the journals become empty",
            300,
        )

    def reckon(self, load, *, happened):
        """Check everything that must hold, and print what was counted.

        A last burst goes to each service just before its SIGTERM: the stop drains.
        """
        load.stop()
        assert load.accepted >= EVENTS
        drained = self.drain()
        for service in self.services:
            with self.load(service, rate=100_000) as burst:
                wait_for(
                    lambda: burst.accepted >= _LATE_EVENTS,
                    "the last burst",
                )
        for program in self.programs:
            assert program.terminate() == 0, program.said[-4000:]
        for service in self.services:
            checks.check_journals(service.data_dir)
        total = _total(self.loads)
        assert total.wrong == []
        assert total.unanswered == []
        exposures, interactions = checks.check_events(self.engine, total)
        outcomes = checks.check_outcomes(self.engine)
        epochs = checks.check_epochs(self.engine)
        row = (
            self.name.replace("_", " "),
            f"{len(total.exposures) + len(total.interactions):,}",
            f"{total.resent:,}",
            f"{total.refused:,}",
            f"{total.broken:,}",
            f"{len(total.unanswered)}",
            f"{total.slowest:.2f}",
            f"{total.probes:,}",
            f"{epochs['offers-test']}",
            f"{happened}; the rest stored {drained:.0f} s after the load",
        )
        _results.append(row)
        print(
            f"\nRESULT {self.name}: "
            + ", ".join(f"{k} {v}" for k, v in zip(_COLUMNS[1:], row[1:], strict=True))
            + f"; stored {exposures:,} exposures and {interactions:,} interactions,"
            f" {outcomes:,} outcomes"
        )

    def close(self):
        self.postgres.revive()
        for load in self.loads:
            load.abandon()
        for program in self.programs:
            if program.process and program.process.poll() is None:
                program.kill()
        self.engine.dispose()
        with admin(self.postgres.url()) as connection:
            connection.execute(text(f"DROP DATABASE {self.database} WITH (FORCE)"))


def _total(loads):
    """Add up what several loads know."""
    first, *others = loads
    for each in others:
        for name in ("exposures", "interactions", "sent"):
            getattr(first, name).update(getattr(each, name))
        for name in ("uncertain", "resent", "refused", "broken", "probes"):
            setattr(first, name, getattr(first, name) + getattr(each, name))
        first.unanswered += each.unanswered
        first.wrong += each.wrong
        first.slowest = max(first.slowest, each.slowest)
    return first


def pytest_terminal_summary(terminalreporter):
    """Print the table of docs/reliability.md."""
    if not _results:
        return
    terminalreporter.section("faults")
    for row in (_COLUMNS, ("---",) * len(_COLUMNS), *_results):
        terminalreporter.write_line(f"| {' | '.join(row)} |")
