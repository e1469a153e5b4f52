"""The dashboard's only door to data: reports, kept for a few seconds.

Every viewer shares one copy of a report. One that takes long to build is kept ten times
as long as it took, so that watching never costs the database more than a tenth of its
time.
"""

import atexit
import tempfile
import threading
import time
from collections.abc import Callable, Hashable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypeVar

import streamlit as st

from experiment_service.analysis.planning import Design
from experiment_service.config import Settings
from experiment_service.domain.monitor import thresholds
from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.replay.comparison import ReplayReport
from experiment_service.replay.export import Content
from experiment_service.replay.service import export_experiment, replay_experiment
from experiment_service.reporting import (
    Alerts,
    Days,
    ExampleList,
    Group,
    Journey,
    ListedExperiment,
    ModelReport,
    MonitoredDay,
    Operations,
    OverviewRow,
    Report,
    Reports,
    SegmentsReport,
)
from experiment_service.reporting.planning import Plan, make_plan

#: Seconds between two looks of a page at its numbers.
REFRESH_SECONDS = 5

#: Values kept before old ones are dropped.
_MOST_KEPT = 100

_Value = TypeVar("_Value")


class Fresh:
    """Values by key, built anew once they are old; one thread builds, others wait.

    Parameters
    ----------
    clock : callable
        Returns seconds that only grow.
    seconds : float
        Least time for which a value is kept.
    """

    def __init__(self, *, clock: Callable[[], float], seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._values: dict[Hashable, tuple[float, Any]] = {}
        self._lock = threading.Lock()
        self._building: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, build: Callable[[], _Value]) -> _Value:
        """Return the value of a key; what `build` raises is not kept."""
        with self._lock:
            building = self._building.setdefault(key, threading.Lock())
        with building:
            started = self._clock()
            good_until, kept = self._values.get(key, (started, None))
            if started < good_until:
                value: _Value = kept
                return value
            value = build()
            took = self._clock() - started
            self._values[key] = (started + max(self._seconds, 10 * took), value)
            self._forget(started)
            return value

    def drop(self, key: Hashable) -> None:
        """Build the value of a key anew when it is asked for next."""
        with self._lock:
            self._values.pop(key, None)

    def _forget(self, now: float) -> None:
        """Drop what is old once much is kept; addresses can ask for any days."""
        with self._lock:
            if len(self._values) <= _MOST_KEPT:
                return
            old = [key for key, (until, _) in self._values.items() if until < now]
            for key in old:
                del self._values[key]
                # Whoever holds the lock still may build once more than needed.
                self._building.pop(key, None)


class _Door:
    def __init__(self, database_url: str | None, data_dir: Path) -> None:
        self.reports = Reports(database_url, data_dir)
        # A little less than the refresh, or every second look would be at old numbers.
        self.fresh = Fresh(clock=time.monotonic, seconds=0.8 * REFRESH_SECONDS)
        atexit.register(self.reports.close)

    def close(self) -> None:
        atexit.unregister(self.reports.close)
        self.reports.close()


@st.cache_resource(show_spinner=False, on_release=_Door.close)
def _open(database_url: str | None, data_dir: Path) -> _Door:
    return _Door(database_url, data_dir)


def _door() -> _Door:
    settings = Settings.from_environment()
    return _open(settings.reading_url, settings.data_dir)


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - an entry point reads the clock


def experiments() -> tuple[ListedExperiment, ...]:
    """Name every experiment, the running ones first."""
    door = _door()
    return door.fresh.get("experiments", door.reports.experiments)


def bandits() -> tuple[ListedExperiment, ...]:
    """Name every bandit, the running ones first."""
    return tuple(each for each in experiments() if each.kind == "bandit")


def overview() -> tuple[OverviewRow, ...]:
    """Return a line for every experiment."""
    door = _door()
    return door.fresh.get("overview", lambda: door.reports.overview(as_of=_now()))


def report(key: str, days: Days | None = None, group: Group | None = None) -> Report:
    """Return the report of an experiment, of units of some days and group or all."""
    door = _door()
    return door.fresh.get(
        ("report", key, days, group),
        lambda: door.reports.report(key, as_of=_now(), days=days, group=group),
    )


def journey(key: str, days: Days | None = None, group: Group | None = None) -> Journey:
    """Return funnel and positions of an experiment."""
    door = _door()
    return door.fresh.get(
        ("journey", key, days, group),
        lambda: door.reports.journey(key, as_of=_now(), days=days, group=group),
    )


def segments(key: str) -> SegmentsReport:
    """Return the reward of an experiment by the attributes of its units."""
    door = _door()
    return door.fresh.get(
        ("segments", key), lambda: door.reports.segments(key, as_of=_now())
    )


def models() -> tuple[ModelReport, ...]:
    """Return every model with its versions and what it serves."""
    door = _door()
    return door.fresh.get("models", door.reports.models)


def models_changed() -> None:
    """Read the models again at the next look."""
    _door().fresh.drop("models")


def examples(
    name: str, versions: tuple[int, ...], *, unit_id: str, item_id: str, k: int
) -> tuple[ExampleList, ...]:
    """Return lists of versions side by side; an empty text names nobody and nothing."""
    unit_key = Settings.from_environment().unit_key
    return _door().reports.examples(
        name,
        versions,
        unit_id=Pseudonyms(unit_key).of(unit_id) if unit_id else None,
        item_id=item_id or None,
        k=k,
    )


def operations() -> Operations:
    """Say how the service as a whole is doing."""
    door = _door()
    return door.fresh.get("operations", lambda: door.reports.operations(as_of=_now()))


def alerts() -> Alerts:
    """Return the alerts of all experiments."""
    door = _door()
    return door.fresh.get("alerts", door.reports.alerts)


def monitored(key: str) -> tuple[MonitoredDay, ...]:
    """Return what monitors measured of an experiment by day and variant."""
    door = _door()
    return door.fresh.get(
        ("monitored", key), lambda: door.reports.monitored(key, as_of=_now())
    )


def monitor_thresholds() -> dict[str, float]:
    """Return the threshold of each monitor."""
    return thresholds(Settings.from_environment().monitor_thresholds)


def export(key: str, content: Content, ending: str) -> bytes:
    """Return a file of what an experiment recorded; ending is .csv or .parquet."""
    settings = Settings.from_environment()
    with tempfile.TemporaryDirectory(prefix="experiment-service-") as folder:
        path = Path(folder) / f"{key}-{content}{ending}"
        export_experiment(
            settings.reading_url,
            settings.data_dir,
            key,
            content,
            path,
            cutoff=_now(),
        )
        return path.read_bytes()


def now() -> datetime:
    """Return the present instant, UTC."""
    return _now()


def today() -> date:
    """Return the day it is, in UTC."""
    return _now().date()


def replay(
    key: str,
    *,
    policies: tuple[str, ...],
    metric: str | None,
    estimator: str,
    segment_by: tuple[str, ...],
    progress: Callable[[float], None],
) -> ReplayReport:
    """Compare policies on the log of an experiment; see `replay_experiment`."""
    settings = Settings.from_environment()
    return _door().fresh.get(
        ("replay", key, policies, metric, estimator, segment_by),
        lambda: replay_experiment(
            settings.reading_url,
            settings.data_dir,
            key,
            policies=policies,
            metric=metric,
            estimator=estimator,
            segment_by=segment_by,
            cutoff=_now(),
            progress=progress,
        ),
    )


def plan(
    key: str,
    *,
    metric: str | None,
    lift: float,
    power: float,
    comparisons: int,
    variance_explained: float,
) -> Plan:
    """Plan a test on the traffic of an experiment; see `make_plan`."""
    door = _door()
    baseline = door.fresh.get(
        ("baseline", key, metric),
        lambda: door.reports.baseline(key, metric=metric, as_of=_now()),
    )
    design = Design(
        power=power, comparisons=comparisons, variance_explained=variance_explained
    )
    return make_plan(baseline, design, lift=lift)
