"""Several serving processes, forked from one that has loaded everything.

A forked process shares the memory of what was loaded before, and starts at once. The
first process serves nothing itself: it starts those that die again, and ends them.
"""

import gc
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from experiment_service.errors import ExperimentServiceError, Unavailable

log = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.5
# More than a process is given to end its requests.
_STOP_SECONDS = 20.0
# Exit status of a process that could not start, and would not if it were tried again.
_CANNOT_START = 3


def run_processes(serve: Callable[[], None], count: int) -> None:
    """Run `serve` in `count` processes until SIGINT or SIGTERM.

    Parameters
    ----------
    serve : callable
        Returns after SIGTERM; raises ExperimentServiceError when it can't start.

    Raises
    ------
    Unavailable
        When a process could not start; its log says why.
    """
    gc.collect()
    gc.freeze()  # collections in the children leave the shared memory alone
    with _signals() as wait, _lifeline() as hold_on:
        running = {_fork(serve, hold_on) for _ in range(count)}
        try:
            while not wait() & {signal.SIGINT, signal.SIGTERM}:
                for process in _ended(running):
                    time.sleep(_PAUSE_SECONDS)
                    log.error("serving process died pid=%d, starting another", process)
                    running.remove(process)
                    running.add(_fork(serve, hold_on))
        finally:
            _stop(running)


@contextmanager
def _signals() -> Iterator[Callable[[], set[int]]]:
    """Yield a function that waits for signals, also of children that end."""
    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
    former = {number: signal.getsignal(number) for number in caught}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in caught:
        signal.signal(number, lambda *_: None)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def wait() -> set[int]:
        select.select([reader], [], [])
        return set(os.read(reader, 1024))

    try:
        yield wait
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in former.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


@contextmanager
def _lifeline() -> Iterator[Callable[[], None]]:
    """Yield a function for children, which ends them when this process is gone."""
    reader, writer = os.pipe()

    def watch() -> None:
        os.read(reader, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    def hold_on() -> None:
        os.close(writer)
        threading.Thread(target=watch, name="lifeline", daemon=True).start()

    try:
        yield hold_on
    finally:
        os.close(reader)
        os.close(writer)


def _fork(serve: Callable[[], None], hold_on: Callable[[], None]) -> int:
    # The child begins with this process's handlers: a signal that came before it has set
    # its own would be lost.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    process = os.fork()
    if process:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        return process
    # From here on a process of its own, which must not unwind its parent's stack.
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent sends SIGTERM
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        hold_on()
        serve()
        status = 0
    except ExperimentServiceError as error:
        log.error("serving process can't start reason=%s", error.message)  # noqa: TRY400
        status = _CANNOT_START
    except BaseException:
        log.exception("serving process failed")
    finally:
        logging.shutdown()
        os._exit(status)


def _ended(running: set[int]) -> list[int]:
    ended = []
    for process in running:
        found, status = os.waitpid(process, os.WNOHANG)
        if not found:
            continue
        if os.waitstatus_to_exitcode(status) == _CANNOT_START:
            running.remove(process)
            raise Unavailable("a serving process could not start; its log says why")
        ended.append(process)
    return ended


def _stop(running: set[int]) -> None:
    for process in running:
        os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while running:
        for process in list(running):
            found, _ = os.waitpid(process, os.WNOHANG)
            if found:
                running.remove(process)
            elif time.monotonic() > deadline:
                log.warning("serving process killed pid=%d", process)
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)
