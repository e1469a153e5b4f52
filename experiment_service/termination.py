"""SIGTERM as an orderly end, also before a service has handlers of its own."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def termination_as_exit() -> Iterator[None]:
    """Let SIGTERM unwind the stack and end the process with status 0.

    So an embedded server is given back and children are stopped, however early it
    comes. For the main thread of an entry point.
    """

    def leave(*_: object) -> None:
        raise SystemExit(0)

    former = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
