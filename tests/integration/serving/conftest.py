"""A shop to serve: published lists, live models, and really started API processes."""

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from experiment_service import experimentation
from experiment_service.domain.declaration import parse_declaration
from experiment_service.storage import database, models
from recommenders.publishing import publish_lists
from tests.conftest import admin, free_port

ITEMS = [f"item-{number:03d}" for number in range(60)]
UNITS = [f"unit-{number}" for number in range(200)]
DEPTH = 20

SERVE = (
    "from experiment_service import logs;"
    "from experiment_service.api.app import serve;"
    "from experiment_service.config import Settings;"
    "settings = Settings.from_environment();"
    "logs.configure(20, settings.log_format);"
    "serve(settings, workers={workers})"
)


def now():
    return datetime.now(UTC)


def publish(data_dir, name, version, *, seed=0, related=True):
    """Publish random lists of `UNITS`; return the artifact's name and digest."""
    rng = np.random.default_rng([seed, version, len(name)])

    def rows(count):
        return np.array(
            [rng.permutation(len(ITEMS))[:DEPTH] for _ in range(count)], dtype=np.int32
        )

    sessions = {}
    if related and name == "als":
        falling = 1 / (1 + np.arange(DEPTH, dtype=np.float32))
        sessions["related_scores"] = np.tile(falling, (len(ITEMS), 1))
        sessions["session_fade"] = (1.0, 0.5)
    artifact = f"models/{name}/{version}"
    digest = publish_lists(
        data_dir / artifact,
        name=name,
        version=version,
        unit_ids=UNITS,
        lists=rows(len(UNITS)),
        item_ids=ITEMS,
        default=rows(1)[0],
        related=rows(len(ITEMS)) if related else None,
        **sessions,
    )
    return artifact, digest


def insert_version(engine, name, artifact, digest):
    """Register a version as a candidate; return its row."""
    with database.transaction(engine) as connection:
        return models.insert_version(
            connection,
            name=name,
            recommender=name,
            parameters={},
            metrics={},
            checklist=[],
            data_from=now() - timedelta(days=2),
            data_to=now() - timedelta(days=1),
            data_digest="0" * 64,
            code_version="test",
            artifact=artifact,
            sha256=digest,
            now=now(),
        )


def make_live(engine, name, artifact, digest):
    """Register a version and let it serve; return its row."""
    version = insert_version(engine, name, artifact, digest)
    with database.transaction(engine) as connection:
        return models.set_live(
            connection, version.id, decided_by="test", reason="test", now=now()
        )


def declaration(key, **changes):
    """An A/B test of two recommenders on the placement "home"."""
    return {
        "key": key,
        "kind": "ab",
        "placement": "home",
        "variants": [
            {"key": "old", "recommender": "popularity", "control": True},
            {"key": "new", "recommender": "als", "settings": {"title": "For you"}},
        ],
        **changes,
    }


def bandit(key, **changes):
    policy = {"name": "thompson", "interval": "1h"}
    return declaration(key, kind="bandit", **{"policy": policy} | changes)


def run_experiment(engine, document):
    """Create and start an experiment; return it."""
    parsed = parse_declaration(document)
    with database.transaction(engine) as connection:
        experimentation.create(connection, parsed, actor="test", now=now())
        return experimentation.start(connection, parsed.key, actor="test", now=now())


@contextmanager
def own_shop(server_url, template, directory, **more):
    """Run an API process over a database of its own, with a shop in it."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    data_dir = directory / "data"
    with admin(server_url) as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    url = make_url(server_url).set(database=name).render_as_string(hide_password=False)
    engine = database.create_engine(url, name="test")
    open_shop(engine, data_dir)
    server = launch(directory, data_dir, url, **more)
    server.engine = engine
    yield server
    server.stop()
    engine.dispose()
    with admin(server_url) as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="module")
def running_shop(server_url, template_database, tmp_path_factory):
    """One API process over a database of the module's own, with a shop in it."""
    directory = tmp_path_factory.mktemp("shop")
    with own_shop(server_url, template_database, directory) as server:
        yield server


@pytest.fixture(scope="session")
def common_shop(server_url, template_database, tmp_path_factory):
    """The same for tests that only send traffic; an A/B test runs on "offers"."""
    directory = tmp_path_factory.mktemp("common")
    json_logs = {"EXPERIMENT_SERVICE_LOG_FORMAT": "json"}
    with own_shop(server_url, template_database, directory, **json_logs) as server:
        with database.transaction(server.engine) as connection:
            experimentation.set_placement(
                connection, "offers", recommender="als", settings={}, actor="test"
            )
        run_experiment(
            server.engine,
            declaration("offers-test", placement="offers", layer="offers"),
        )
        request = {"unit_id": "first", "placement": "offers", "log_exposure": False}
        server.wait_for(
            lambda: server.post("/v1/recommendations", request).json().get("experiment")
        )
        yield server


@pytest.fixture
def data_dir(tmp_path):
    directory = tmp_path / "data"
    directory.mkdir()
    return directory


@pytest.fixture
def shop(engine, data_dir):
    """Live models `als` and `popularity` and a placement "home"."""
    open_shop(engine, data_dir)
    return engine


def open_shop(engine, data_dir):
    for name in ("als", "popularity"):
        make_live(engine, name, *publish(data_dir, name, 1))
    with database.transaction(engine) as connection:
        experimentation.set_placement(
            connection, "home", recommender="popularity", settings={}, actor="test"
        )


class Server:
    """A started API process."""

    def __init__(self, process, address, log):
        self.process = process
        self.address = address
        self.log = log
        self.client = httpx.Client(base_url=address, timeout=20)

    def post(self, path, document, **options):
        return self.client.post(path, json=document, **options)

    def get(self, path, **options):
        return self.client.get(path, **options)

    def wait_for(self, condition, seconds=40):
        """Wait until `condition()` is true; return the seconds it took."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < seconds, self.log.read_text()[-4000:]
            time.sleep(0.01)
        return time.monotonic() - started

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(60)
        self.client.close()


def settings_environment(data_dir, url, port, **more):
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("EXPERIMENT_SERVICE_") and name != "DATABASE_URL"
    }
    environment |= {
        "EXPERIMENT_SERVICE_DATA_DIR": str(data_dir),
        "EXPERIMENT_SERVICE_PORT": str(port),
        "EXPERIMENT_SERVICE_SNAPSHOT_POLL_SECONDS": "30",
        **more,
    }
    return environment | ({"DATABASE_URL": url} if url else {})


@pytest.fixture
def start_server(tmp_path, data_dir):
    """Start API processes on free ports; they are stopped at the end."""
    servers = []

    def start(url, **options):
        server = launch(tmp_path, data_dir, url, **options)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


def launch(directory, data_dir, url, *, workers=1, wait=True, **more):
    """Start an API process; `more` are environment variables."""
    port = free_port()
    log = directory / f"server-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE.format(workers=workers)],
            env=settings_environment(data_dir, url, port, **more),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(process, f"http://127.0.0.1:{port}", log)
    if wait:
        server.wait_for(lambda: is_live(server), seconds=60)
    return server


def is_live(server):
    if server.process.poll() is not None:
        raise AssertionError(server.log.read_text()[-4000:])
    try:
        return server.get("/health/live").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def own_postgres(directory):
    """Run a migrated server of the test's own; yields its URL."""
    with database.running_database(None, directory) as url:
        database.migrate(url)
        yield url
