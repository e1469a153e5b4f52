"""A real PostgreSQL for the tests: one server a session, one database a test.

`--server debian` runs them on the server of the Debian package instead of the embedded
one; EXPERIMENT_SERVICE_TEST_DATABASE_URL on any other.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine as plain_engine
from sqlalchemy import text
from sqlalchemy.engine import make_url

from experiment_service.storage import database

# Threads of OpenMP that wait in a loop take a core from the tests beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_addoption(parser):
    parser.addoption("--server", choices=("embedded", "debian"), default="embedded")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class DebianServer:
    """The server of Debian's package on a free port, as its own user.

    Parameters
    ----------
    directory : Path
        Empty; the server's user must be able to reach it.
    options : str
        More of the server's options, such as ``-c fsync=off``.
    """

    def __init__(self, directory: Path, options: str = "") -> None:
        binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not binaries:
            pytest.fail(
                "no PostgreSQL of Debian here; run `apt-get install postgresql`"
            )
        self._binaries = binaries[-1]
        self._as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self._as_user:
            shutil.chown(directory, "postgres")
        self.directory, self.data, self.port = (
            directory,
            directory / "data",
            free_port(),
        )
        self._options = (
            f"-p {self.port} -c listen_addresses=127.0.0.1 -k {directory} {options}"
        )
        self._run("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [
                *self._as_user,
                str(self._binaries / program),
                "-D",
                str(self.data),
                *arguments,
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.directory,
        )

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        log = str(self.directory / "log")
        self._run("pg_ctl", "-w", "-l", log, "-o", self._options, "start")

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-w", "-m", mode, "stop")


@contextmanager
def debian_server(directory: Path):
    """Run the server of Debian's package."""
    server = DebianServer(directory, "-c fsync=off -c max_wal_size=128MB")
    server.start()
    try:
        yield server.url()
    finally:
        server.stop()


def server_directory() -> Path:
    """Make a directory in memory if there is room, as databases come and go by hundreds.

    What has to outlast a crash is tested on servers of its own, on the disk.
    """
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30
    return Path(tempfile.mkdtemp(prefix="es-test-", dir=memory if has_room else None))


@pytest.fixture(scope="session")
def server_url(request):
    given = os.environ.get("EXPERIMENT_SERVICE_TEST_DATABASE_URL")
    if given:
        yield database.normalise_url(given).render_as_string(hide_password=False)
        return
    with ExitStack() as stack:
        directory = server_directory()
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        directory.chmod(0o755)
        if request.config.getoption("--server") == "debian":
            yield stack.enter_context(debian_server(directory))
        else:
            url = stack.enter_context(database.running_database(None, directory))
            with admin(url) as connection:
                connection.execute(text("ALTER SYSTEM SET fsync = off"))
                connection.execute(text("ALTER SYSTEM SET max_wal_size = '128MB'"))
                connection.execute(text("SELECT pg_reload_conf()"))
            yield url


@contextmanager
def admin(url):
    engine = plain_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@pytest.fixture(scope="session")
def template_database(server_url):
    name = f"template_{uuid.uuid4().hex[:12]}"
    with admin(server_url) as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = make_url(server_url).set(database=name)
    database.migrate(url.render_as_string(hide_password=False))
    yield name
    with admin(server_url) as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def empty_database_url(server_url):
    """A database without our schema."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with admin(server_url) as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    with admin(server_url) as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def database_url(server_url, template_database):
    """A migrated database of the test's own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with admin(server_url) as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template_database}"))
    yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    with admin(server_url) as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def engine(database_url):
    engine = database.create_engine(database_url, name="test")
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine):
    """A transaction of the test's own; commit through `engine` where two are needed."""
    with database.transaction(engine) as connection:
        yield connection
