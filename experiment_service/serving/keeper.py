"""SnapshotKeeper: a thread that keeps the snapshot fresh, with or without the database.

It listens for changes and also polls, in case a notification was lost. When the
database goes away the last snapshot serves on, and the keeper asks again for ever.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine

from experiment_service.domain.configuration import Configuration
from experiment_service.errors import Unavailable
from experiment_service.serving.snapshot import (
    Snapshot,
    build_snapshot,
    read_copy,
    write_copy,
)
from experiment_service.serving.sticky import StickyStore
from experiment_service.storage.database import (
    ChangeListener,
    present_instant,
    transaction,
)
from experiment_service.storage.experiments import (
    load_configuration,
    sticky_epochs_since,
)

log = logging.getLogger(__name__)

#: A row becomes visible some time after the instant it carries: its transaction ran on.
_STICKY_OVERLAP = timedelta(seconds=60)

_FIRST_PAUSE_SECONDS = 0.2
_LISTEN_SECONDS = 0.25
_MAX_DRAINED = 1000


class SnapshotKeeper:
    """Holds the current snapshot and renews it.

    Parameters
    ----------
    url, engine
        The same database, to listen and to read.
    data_dir : Path
        Holds the copy on disk and, below it, the published lists.
    poll_seconds : float
        Longest time until a change is seen when its notification was lost.
    sticky : StickyStore
        Filled with first exposures that other machines served.
    clock : callable
        Returns the present instant, UTC.
    """

    def __init__(
        self,
        url: str,
        engine: Engine,
        data_dir: Path,
        *,
        poll_seconds: float,
        sticky: StickyStore,
        clock: Callable[[], datetime],
    ) -> None:
        self._url = url
        self._engine = engine
        self._data_dir = data_dir
        self._poll_seconds = poll_seconds
        self._sticky = sticky
        self._clock = clock
        self._snapshot: Snapshot | None = None
        self._copied = False
        self._forgotten: frozenset[str] = frozenset()
        self._problem: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot to answer from.

        Raises
        ------
        Unavailable
            Before `start` has returned.
        """
        snapshot = self._snapshot
        if snapshot is None:
            raise Unavailable(
                "no configuration is loaded yet; try again", retry_after=1
            )
        return snapshot

    @property
    def configuration(self) -> Configuration:
        """The configuration of the snapshot."""
        return self.snapshot.configuration

    @property
    def problem(self) -> str | None:
        """Why the last look at the database failed, None when it did not."""
        return self._problem

    def age(self) -> timedelta:
        """Return how long ago the snapshot was known to be the database's state."""
        return self._clock() - self.configuration.loaded_at

    def start(self) -> None:
        """Load a snapshot, from the copy when the database is down, and keep it fresh.

        Raises
        ------
        Unavailable
            When there is neither a database nor a copy.
        """
        self._data_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._refresh()
        except Unavailable as error:
            self._start_from_copy(error)
        self._thread.start()

    def _start_from_copy(self, error: Unavailable) -> None:
        copy = read_copy(self._data_dir)
        if copy is None:
            raise Unavailable(
                f"there is nothing to serve from: {error.message}, and "
                f"{self._data_dir} holds no copy of an earlier configuration"
            ) from error
        self._problem = error.message
        self._snapshot = build_snapshot(copy, self._data_dir)
        log.warning(
            "serving from the copy on disk loaded_at=%s reason=%s",
            copy.loaded_at.isoformat(),
            error.message,
        )

    def stop(self) -> None:
        """End the thread; the snapshot stays usable."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            try:
                with closing(ChangeListener(self._url)) as listener:
                    # After LISTEN, so that no change falls between the two.
                    self._refresh()
                    pause = _FIRST_PAUSE_SECONDS
                    self._follow(listener)
            except Exception as error:  # whatever it is, serving and asking go on
                if self._problem is None:
                    log.warning("configuration not refreshed error=%r", error)
                first_line = str(error).partition("\n")[0]
                self._problem = f"the configuration can't be refreshed ({first_line})"
                self._stopping.wait(pause)
                pause = min(2 * pause, self._poll_seconds)

    def _follow(self, listener: ChangeListener) -> None:
        due = time.monotonic() + self._poll_seconds
        while not self._stopping.is_set():
            left = max(0.0, due - time.monotonic())
            if listener.wait(min(_LISTEN_SECONDS, left)):
                for _ in range(_MAX_DRAINED):  # many changes, one look
                    if not listener.wait(0.0):
                        break
            elif time.monotonic() < due:
                continue
            self._refresh()
            due = time.monotonic() + self._poll_seconds

    def _refresh(self) -> None:
        now = self._clock()
        with transaction(self._engine) as connection:
            loaded = load_configuration(connection, now=now)
        old = self._snapshot
        if old is None or _differ(old.configuration, loaded) or not old.is_whole:
            self._snapshot = build_snapshot(loaded, self._data_dir, old)
        else:
            self._snapshot = replace(old, configuration=loaded)
        if old is None or not self._copied or _differ(old.configuration, loaded):
            self._write_copy(loaded)
        if self._problem is not None:
            log.info("configuration is read from the database again")
        self._problem = None
        self._fill_sticky()

    def _write_copy(self, configuration: Configuration) -> None:
        try:
            write_copy(configuration, self._data_dir)
            self._copied = True
        except OSError:
            # A full disk must not keep a change from being served.
            log.exception("snapshot copy not written data_dir=%s", self._data_dir)
            self._copied = False

    def _fill_sticky(self) -> None:
        try:
            self._forget_erased()
            for served in self.snapshot.experiments.values():
                if served.sticky:
                    self._fill_experiment(served.experiment.id)
        except (sqlite3.Error, Unavailable):
            # The configuration is fresh all the same; the next look fills in more.
            log.exception("sticky store not filled")

    def _forget_erased(self) -> None:
        new = self.configuration.erased - self._forgotten
        if new:
            self._sticky.forget(new)
            self._forgotten = self.configuration.erased

    def _fill_experiment(self, number: int) -> None:
        with transaction(self._engine) as connection:
            # The rows carry the database's clock; this machine's may have jumped.
            now = present_instant(connection)
            until = self._sticky.filled_until(number)
            if until and until > now:
                until = None
            if until and now - until < timedelta(seconds=self._poll_seconds / 2):
                return  # another process of this machine was here
            since = until - _STICKY_OVERLAP if until else None
            epochs = sticky_epochs_since(connection, number, since)
        self._sticky.fill(number, epochs, until=now)


def _differ(one: Configuration, other: Configuration) -> bool:
    return replace(one, loaded_at=other.loaded_at) != other
