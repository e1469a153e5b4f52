"""The writer's process: moves events to the database beside the processes that serve.

As a thread of a serving process it would hold up requests for milliseconds at a time, as
Python runs one thread at once. It is told to end by the end of its standard input, so it
outlives nobody, and it leaves a report of how it does beside the journals.
"""

import gc
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from experiment_service import logs
from experiment_service.ingestion import Writer, WriterStatus
from experiment_service.journal import Journal
from experiment_service.storage.database import create_engine

log = logging.getLogger(__name__)

#: Longest time that a stopping process spends on moving journals to the database; what
#: is left then stays on disk, and the next process takes it over.
DRAIN_SECONDS = 10.0

_REPORT = "writer.json"
_REPORT_SECONDS = 0.5
_SILENCE_SECONDS = 15.0
_RESTART_SECONDS = 1.0
# Serving comes first when there is not enough of the machine for both.
_NICENESS = 10
# Objects made, beyond those freed, until cycles are looked for.
_COLLECTED = 200_000

_STATUS: TypeAdapter[WriterStatus] = TypeAdapter(WriterStatus)


@contextmanager
def writer_process(url: str, directory: Path) -> Iterator[None]:
    """Keep a writer of the journals in a directory alive; let it finish at the end.

    Parameters
    ----------
    url : str
        The database.
    directory : Path
        Where the journals are; made when missing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    keeper = _Keeper(url, directory)
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()


class _Keeper:
    """Starts the process, and again whenever it dies."""

    def __init__(self, url: str, directory: Path) -> None:
        task = {
            "url": url,
            "directory": str(directory),
            "level": logging.getLogger().getEffectiveLevel(),
            "log_format": logs.present_format(),
        }
        self._task = json.dumps(task).encode() + b"\n"
        self._changing = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="writer", daemon=True)

    def start(self) -> None:
        self._process = self._launch()
        self._thread.start()

    def _launch(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE
        )
        # By its input: arguments and environment can be read by others.
        _tell(process, self._task)
        return process

    def _watch(self) -> None:
        while True:
            status = self._process.wait()
            if self._stopping.wait(_RESTART_SECONDS):
                return
            log.error("writer died and is started again status=%d", status)
            with self._changing:
                if self._stopping.is_set():
                    return
                self._process = self._launch()

    def stop(self) -> None:
        with self._changing:
            self._stopping.set()
        _tell(self._process, None)
        try:
            self._process.wait(DRAIN_SECONDS + 5)
        except subprocess.TimeoutExpired:
            log.warning("writer killed, events stay in the journals")
            self._process.kill()
            self._process.wait()
        self._thread.join()


def _tell(process: subprocess.Popen[bytes], task: bytes | None) -> None:
    """Write a task to a process, or end its input; it may be dead already."""
    if process.stdin is None:
        raise AssertionError("started with a pipe")
    try:
        if task is None:
            process.stdin.close()
        else:
            process.stdin.write(task)
            process.stdin.flush()
    except BrokenPipeError:
        return


class WriterReport:
    """What the writer's process says about itself, for the processes that serve."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _REPORT
        self._opened_at = time.time()

    def status(self) -> WriterStatus:
        """Return how the writer is doing; never waits."""
        try:
            written_at = self._path.stat().st_mtime
            status = _STATUS.validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            written_at, status = 0.0, _UNKNOWN
        silent = time.time() - max(written_at, self._opened_at)
        if silent < _SILENCE_SECONDS:
            return status
        return replace(
            status,
            last_error=f"the writer's process has said nothing for {silent:.0f} s",
        )


_UNKNOWN = WriterStatus(
    last_success_at=None,
    last_error=None,
    depth=0,
    oldest_age_seconds=None,
    set_aside=0,
)


def run_writer(task: dict[str, Any]) -> None:
    """Move events until standard input ends, then what is left."""
    directory = Path(task["directory"])
    journal = Journal.open(directory, max_bytes=sys.maxsize)
    engine = create_engine(task["url"], pool_size=2, name="writer")
    # Events hold no cycles, and looking for some takes as long as reading the events.
    gc.freeze()
    gc.set_threshold(_COLLECTED)
    writer = Writer(journal, engine, follow=True)
    writer.start()
    while not select.select([sys.stdin], [], [], _REPORT_SECONDS)[0]:
        _report(directory, writer)
    writer.stop(DRAIN_SECONDS)
    _report(directory, writer)
    journal.close(remove=True)
    engine.dispose()


def _report(directory: Path, writer: Writer) -> None:
    partial = directory / f".{_REPORT}.{uuid4().hex}"
    try:
        partial.write_bytes(to_json(writer.status()))
        partial.replace(directory / _REPORT)
    except OSError as error:
        log.warning("writer can't report error=%s", error)
        partial.unlink(missing_ok=True)


def main() -> None:
    """Run the process; its task is the first line of standard input."""
    # The end of the input ends it, after those who append have ended.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    line = sys.stdin.readline()
    if not line:
        return
    task = json.loads(line)
    logs.configure(task["level"], task["log_format"])
    os.nice(_NICENESS)
    run_writer(task)


if __name__ == "__main__":
    main()
