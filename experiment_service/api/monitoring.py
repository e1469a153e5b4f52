"""Metrics for Prometheus, of all processes of a machine together.

A scrape reaches whichever process accepts it, so each writes what it has counted to a
file of its slot every second, and the one that is asked adds them all up. Counting
itself is plain Python; the multi-process mode of the client library would write to a
mapped file on every increment, and has no room for values known only at a scrape.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.responses import PlainTextResponse, Response

from experiment_service.api.connections import cut_off
from experiment_service.api.latency import BUCKETS_MS, LatencyHistogram
from experiment_service.api.services import Services
from experiment_service.api.tally import Tally
from experiment_service.counting import BATCH_BOUNDS, Histogram
from experiment_service.ingestion import WriterStatus
from experiment_service.serving.snapshot import Snapshot

log = logging.getLogger(__name__)

PREFIX = "experiment_service_"

#: Seconds between two writes of a process; a killed one loses as much of its counts.
WRITE_SECONDS = 1.0
# A file older than this is of a process that is gone: its counts stay, its state not.
_ALIVE_SECONDS = 10.0

_COUNTERS = {
    "responses": ("Answers by route and status.", ("method", "route", "status")),
    "requests_refused": (
        "Requests turned away, by route and reason.",
        ("method", "route", "reason"),
    ),
    "connections_cut_off": ("Connections cut off, by reason.", ("reason",)),
    "assignments": (
        "Answers that name a variant; logged: with an exposure.",
        ("experiment", "variant", "logged"),
    ),
    "events_accepted": ("Events on disk, by kind.", ("kind",)),
    "shadow_answers": (
        "Answers of shadows; outcome: made, failed, dropped or lost.",
        ("model", "outcome"),
    ),
    "events_refused": ("Events refused, by the offending field.", ("event", "field")),
}
_HISTOGRAMS: dict[str, tuple[str, tuple[str, ...], tuple[float, ...]]] = {
    "response_seconds": (
        "Time to answer by route.",
        ("method", "route"),
        tuple(bound / 1000 for bound in BUCKETS_MS),
    ),
    "request_events": ("Events per request that sends events.", (), BATCH_BOUNDS),
}
_GAUGES: dict[str, tuple[str, Callable[[Iterable[float]], float]]] = {
    "processes": ("API processes that live.", sum),
    "journal_events": ("Accepted events that wait for the database.", sum),
    "journal_bytes": ("Their size.", sum),
    "journal_oldest_seconds": ("How long the oldest of them has waited.", max),
    "snapshot_age_seconds": ("Age of the oldest configuration served from.", max),
    "snapshot_problems": ("Models that can't be opened, or no fresh snapshot.", max),
}

_PARTS = {"counters", "histograms", "written_at", "state"}

Samples = dict[tuple[str, ...], float]
Buckets = dict[tuple[str, ...], list[float]]


class Counts:
    """Counters and histograms of one process or of many; they add up.

    Attributes
    ----------
    counters : dict of str to Samples
        By name and label values.
    histograms : dict of str to Buckets
        Counts by bucket and, at the end, the sum of the values.
    """

    def __init__(self) -> None:
        self.counters: dict[str, Samples] = {name: {} for name in _COUNTERS}
        self.histograms: dict[str, Buckets] = {name: {} for name in _HISTOGRAMS}

    def count(self, name: str, labels: Iterable[object], value: float) -> None:
        """Add to a counter."""
        samples, key = self.counters[name], tuple(map(str, labels))
        samples[key] = samples.get(key, 0) + value

    def observe(self, name: str, labels: Iterable[str], buckets: list[float]) -> None:
        """Add to a histogram."""
        samples, key = self.histograms[name], tuple(labels)
        former = samples.get(key, [0] * len(buckets))
        samples[key] = [one + other for one, other in zip(former, buckets, strict=True)]

    def add(self, other: "Counts") -> None:
        """Add all that another one has."""
        for name, samples in other.counters.items():
            for labels, value in samples.items():
                self.count(name, labels, value)
        for name, histogram in other.histograms.items():
            for labels, buckets in histogram.items():
                self.observe(name, labels, buckets)

    def document(self) -> dict[str, Any]:
        """Write them as a JSON document."""
        return {
            "counters": {n: list(s.items()) for n, s in self.counters.items()},
            "histograms": {n: list(s.items()) for n, s in self.histograms.items()},
        }

    @classmethod
    def parse(cls, document: dict[str, Any]) -> "Counts":
        """Read what `document` wrote; what another version counted otherwise is left."""
        counts = cls()
        for name, (_, labels) in _COUNTERS.items():
            for values, value in document["counters"].get(name, ()):
                if len(values) == len(labels):
                    counts.count(name, values, value)
        for name, (_, labels, bounds) in _HISTOGRAMS.items():
            for values, buckets in document["histograms"].get(name, ()):
                if len(values) == len(labels) and len(buckets) == len(bounds) + 2:
                    counts.observe(name, values, buckets)
        return counts


class Monitor:
    """Writes what this process has counted, and reads what all have.

    Parameters
    ----------
    services : Services
        Whose state is told; the journal's slot names the file.
    tally, latency
        What the process counts.
    directory : Path
        Where the files of all processes are.
    clock : callable
        Returns the present instant, UTC.
    """

    def __init__(
        self,
        services: Services,
        tally: Tally,
        latency: dict[str, LatencyHistogram],
        *,
        directory: Path,
        clock: Callable[[], datetime],
    ) -> None:
        self._services = services
        self._tally = tally
        self._latency = latency
        self._directory = directory
        self._path = directory / f"{services.journal.path.stem}.json"
        self._clock = clock
        self._former = Counts()
        self._writing = threading.Lock()
        self._failing = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write every second, going on from what the slot's former process counted."""
        with self._writing:
            found = _read(self._path)
            if found is not None:
                self._former = Counts.parse(found)
        stopping = threading.Event()

        def run() -> None:
            while not stopping.wait(WRITE_SECONDS):
                self._write_or_tell()

        thread = threading.Thread(target=run, name="monitor", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()
            self._write_or_tell()

    def _write_or_tell(self) -> None:
        try:
            self.write()
        except Exception as error:  # counts are not worth a process
            if not self._failing:
                log.warning("metrics not written error=%r", error)
            self._failing = True
        else:
            self._failing = False

    def write(self) -> None:
        """Write the counts and the state of this process.

        Raises
        ------
        OSError
            When the file can't be written; the former one stays.
        """
        with self._writing:
            counts = Counts()
            counts.add(self._former)
            counts.add(self._own())
            document = counts.document() | {
                "written_at": time.time(),
                "state": self._state(),
            }
            self._directory.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(document))
            partial.replace(self._path)

    def _own(self) -> Counts:
        counts, tally = Counts(), self._tally
        for (name, status), value in tally.responses.copy().items():
            counts.count("responses", (*name.split(" ", 1), status), value)
        for (name, reason), value in tally.turned_away.copy().items():
            counts.count("requests_refused", (*name.split(" ", 1), reason), value)
        for cause, value in cut_off.copy().items():
            counts.count("connections_cut_off", (cause,), value)
        for (experiment, variant, logged), value in tally.assignments.copy().items():
            counts.count(
                "assignments", (experiment, variant, str(logged).lower()), value
            )
        for kind, value in tally.events.copy().items():
            counts.count("events_accepted", (kind,), value)
        for labels, value in tally.refusals.copy().items():
            counts.count("events_refused", labels, value)
        for labels, value in self._services.shadows.counts.copy().items():
            counts.count("shadow_answers", labels, value)
        for name, latency in self._latency.copy().items():
            seconds = [*latency.counts, latency.total_ms / 1000]
            counts.observe("response_seconds", name.split(" ", 1), seconds)
        counts.observe("request_events", (), _buckets(tally.request_events))
        return counts

    def _state(self) -> dict[str, float]:
        services = self._services
        keeper = services.keeper
        problems = len(keeper.snapshot.problems) + (keeper.problem is not None)
        return {
            "processes": 1,
            "journal_events": services.journal.depth,
            "journal_bytes": services.journal.pending_bytes,
            "journal_oldest_seconds": services.journal.oldest_age or 0.0,
            "snapshot_age_seconds": keeper.age().total_seconds(),
            "snapshot_problems": problems,
        }

    def read(self) -> tuple[Counts, list[dict[str, float]]]:
        """Return the counts of all processes and the states of those that live."""
        self._write_or_tell()  # so that no count of a former scrape is undercut
        counts, states = Counts(), []
        now = time.time()
        for path in sorted(self._directory.glob("*.json")):
            found = _read(path)
            if found is None:
                continue
            counts.add(Counts.parse(found))
            if abs(now - found["written_at"]) < _ALIVE_SECONDS:
                states.append(found["state"])
        return counts, states

    def collect(self) -> Iterator[Metric]:
        """Return every metric."""
        counts, states = self.read()
        for name, (text, labels) in _COUNTERS.items():
            yield _counter(name, text, labels, counts.counters[name])
        for name, (text, labels, bounds) in _HISTOGRAMS.items():
            yield _histogram(name, text, labels, bounds, counts.histograms[name])
        for name, (text, fold) in _GAUGES.items():
            gauge = GaugeMetricFamily(PREFIX + name, text)
            if states:
                gauge.add_metric((), fold(state.get(name, 0.0) for state in states))
            yield gauge
        yield from _writer(self._services.writer.status())
        snapshot, now = self._services.keeper.snapshot, self._clock()
        yield from _epochs(snapshot, now)
        yield _data_ages(snapshot, now)


def _buckets(histogram: Histogram) -> list[float]:
    return [*histogram.counts, histogram.total]


def _read(path: Path) -> dict[str, Any] | None:
    """Return the document of a process; None when it has none that makes sense."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("metrics not read path=%s error=%r", path, error)
        return None
    if not isinstance(found, dict) or not found.keys() >= _PARTS:
        return None
    return found


def _counter(
    name: str, text: str, labels: tuple[str, ...], samples: Samples
) -> CounterMetricFamily:
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for values, value in sorted(samples.items()):
        family.add_metric(values, value)
    return family


def _histogram(
    name: str,
    text: str,
    labels: tuple[str, ...],
    bounds: tuple[float, ...],
    samples: Buckets,
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(PREFIX + name, text, labels=labels)
    names = [*(repr(float(bound)) for bound in bounds), "+Inf"]
    for values, (*buckets, total) in sorted(samples.items()):
        family.add_metric(
            values, list(zip(names, accumulate(buckets), strict=True)), total
        )
    return family


def _writer(status: WriterStatus) -> Iterator[Metric]:
    """Return what the one writer of the machine says; it begins anew with its process."""
    yield GaugeMetricFamily(
        PREFIX + "journal_set_aside_events",
        "Events the database refused for good.",
        value=status.set_aside,
    )
    yield _histogram(
        "stored_events",
        "Events per transaction that stores them.",
        (),
        BATCH_BOUNDS,
        {(): [*status.batch_counts, status.stored]},
    )


def _epochs(snapshot: Snapshot, now: datetime) -> Iterator[Metric]:
    """Return what the configuration says: the same in every process."""
    by_experiment = ("experiment", "kind")
    number = GaugeMetricFamily(
        PREFIX + "epoch_number", "Epoch in force.", labels=by_experiment
    )
    age = GaugeMetricFamily(
        PREFIX + "epoch_age_seconds",
        "How long the weights have been in force.",
        labels=by_experiment,
    )
    weight = GaugeMetricFamily(
        PREFIX + "variant_weight",
        "Share of traffic in force; of a segmented policy over all segments.",
        labels=("experiment", "variant"),
    )
    for key, served in snapshot.experiments.items():
        labels = (key, served.experiment.declaration.kind.value)
        number.add_metric(labels, served.current.number)
        age.add_metric(labels, (now - served.current.started_at).total_seconds())
        for variant, share in served.current.weights.items():
            weight.add_metric((key, variant), share)
    yield from (number, age, weight)


def _data_ages(snapshot: Snapshot, now: datetime) -> Metric:
    age = GaugeMetricFamily(
        PREFIX + "model_data_age_seconds",
        "Age of the last interaction that a live model was trained on.",
        labels=("model",),
    )
    for name, live in snapshot.configuration.models.items():
        if live.data_to is not None:
            age.add_metric((name,), (now - live.data_to).total_seconds())
    return age


class _Scrape(Collector):
    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def collect(self) -> Iterator[Metric]:
        return self._monitor.collect()


router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request) -> Response:
    """Show metrics of all processes in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(request.app.monitor))
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), media_type=content_type)
