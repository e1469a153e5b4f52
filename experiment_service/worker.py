"""The worker: scheduled jobs on procrastinate, in the same PostgreSQL.

Each job finds its own work from the rows, so a lost worker or a doubled run changes
nothing. A job here needs a function and a line in `JOBS`.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import procrastinate
from sqlalchemy import Engine

from experiment_service import scheduled_mirror, scheduled_releases
from experiment_service.config import Settings
from experiment_service.domain.monitor import thresholds
from experiment_service.lazy import LazyModule, require
from experiment_service.notification import check_urls
from experiment_service.reallocation import due_experiments, reallocate
from experiment_service.scheduled_releases import ReleaseJob, find_jobs
from experiment_service.storage.database import (
    PATIENCE,
    check_migrated,
    create_engine,
    each_alone,
    libpq_url,
    present_instant,
    transaction,
)
from experiment_service.storage.partitions import ensure_partitions

if TYPE_CHECKING:
    from experiment_service import monitoring, promotion, retention
else:
    # Each loads a library that takes a second, and is needed now and then.
    monitoring = LazyModule("experiment_service.monitoring")
    promotion = LazyModule("experiment_service.promotion")
    retention = LazyModule("experiment_service.retention")

log = logging.getLogger(__name__)

_MAX_PAUSE_SECONDS = 10.0

#: For jobs that run when the worker is asked to end.
_GRACE_SECONDS = 10

#: What was due while no worker ran is made up for, once, if it is not older.
_MOST_LATE_SECONDS = 6 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A scheduled job: what it runs and when (cron, seconds in the sixth field)."""

    name: str
    cron: str
    run: Callable[[Engine, datetime, Settings], None]


def reallocate_due(engine: Engine, now: datetime, _: Settings) -> None:
    """Reallocate every bandit whose next cutoff has passed, each on its own.

    Raises
    ------
    Exception
        The last failure, after all others were tried; the job is then retried.
    """
    with transaction(engine) as connection:
        due = due_experiments(connection, now=now)
    each_alone(
        engine,
        due,
        lambda connection, key, cutoff: reallocate(
            connection, key, cutoff=cutoff, now=now
        ),
        failed=partial(log.exception, "reallocation failed experiment=%s"),
    )


def make_partitions(engine: Engine, now: datetime, _: Settings) -> None:
    """Make the event partitions of the coming months."""
    with transaction(engine) as connection:
        ensure_partitions(connection, now=now)


def judge_shadows(engine: Engine, now: datetime, _: Settings) -> None:
    """Promote or reject each shadow that has answered enough for its rule."""
    promotion.judge_shadows(engine, now)


def retire_events(engine: Engine, now: datetime, settings: Settings) -> None:
    """Archive and drop the months of raw events that are old enough, if any may go."""
    if settings.retention_days is not None:
        retention.retire_months(
            engine,
            days=settings.retention_days,
            archive_dir=settings.archive_dir,
            actor="worker",
            now=now,
        )


def watch_serving(engine: Engine, now: datetime, settings: Settings) -> None:
    """Measure what serves, raise alerts and end them, and tell people of both."""
    try:
        monitoring.watch(
            engine, now, thresholds=thresholds(settings.monitor_thresholds)
        )
    finally:
        # What was raised is told even if one experiment could not be looked at.
        monitoring.tell(engine, now, urls=settings.notify_urls)


JOBS = (
    Job(name="reallocate_due", cron="* * * * * */5", run=reallocate_due),
    Job(name="judge_shadows", cron="* * * * *", run=judge_shadows),
    Job(name="make_partitions", cron="17 3 * * *", run=make_partitions),
    Job(name="retire_events", cron="47 3 * * *", run=retire_events),
    Job(name="watch_serving", cron="*/10 * * * *", run=watch_serving),
)


def create_app(
    engine: Engine, url: str, settings: Settings, releases: Sequence[ReleaseJob] = ()
) -> procrastinate.App:
    """Return procrastinate's app with every job of `JOBS` and releases on schedule."""
    connector = procrastinate.PsycopgConnector(
        conninfo=libpq_url(url),
        min_size=1,
        max_size=4 if not releases else 8,
        kwargs={
            "options": "-c search_path=procrastinate -c timezone=UTC",
            "application_name": "experiment-service worker",
            **PATIENCE,
        },
    )
    app = procrastinate.App(
        connector=connector, periodic_defaults={"max_delay": _MOST_LATE_SECONDS}
    )
    for job in JOBS:
        _register(app, job, engine, settings)
    if releases:
        scheduled_releases.register(
            app,
            releases,
            environment=settings.environment(database_url=url),
            urls=settings.notify_urls,
        )
    return app


def _register(
    app: procrastinate.App, job: Job, engine: Engine, settings: Settings
) -> None:
    def run(timestamp: int) -> None:  # noqa: ARG001 - procrastinate passes the tick
        job.run(engine, _now(engine), settings)

    task = app.task(
        name=job.name,
        queueing_lock=job.name,
        retry=procrastinate.RetryStrategy(max_attempts=5, exponential_wait=2),
    )(run)
    app.periodic(cron=job.cron)(task)


def run_worker(url: str, settings: Settings) -> None:
    """Run jobs until SIGINT or SIGTERM; a database that goes away is waited for.

    Parameters
    ----------
    url : str
        Of the database, also when it is the included one.
    settings : Settings
        For the jobs.

    Raises
    ------
    InvalidRequest
        At the start, when a pipeline is wrong, notifications can't be sent as the
        settings say, or MLflow is to be mirrored to and not installed.
    Unavailable
        At the start, when the schema is not up to date or the server does not answer.
    """
    check_urls(settings.notify_urls)
    if settings.mlflow_tracking_uri is not None:
        require("mlflow", extra="mlflow", why="a tracking server is given")
    releases: Sequence[ReleaseJob] = ()
    if settings.pipelines is not None:
        releases = find_jobs(settings.pipelines)
    engine = create_engine(url, pool_size=2, name="worker")
    try:
        check_migrated(engine)
        make_partitions(engine, _now(engine), settings)
        asyncio.run(_work(engine, url, settings, releases))
    finally:
        engine.dispose()


def _now(engine: Engine) -> datetime:
    """Return the database's instant: one clock for all workers, and for the rows.

    A cutoff that a machine's clock puts into the future would hold up all others until
    then.
    """
    with transaction(engine) as connection:
        return present_instant(connection)


async def _work(
    engine: Engine, url: str, settings: Settings, releases: Sequence[ReleaseJob]
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    pause = 0.5
    while not stopping.is_set():
        started = loop.time()
        running = asyncio.create_task(
            _run_until_failure(engine, url, settings, releases)
        )
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if stopping.is_set():
            await _end(running)
        failure = (await asyncio.gather(running, return_exceptions=True))[0]
        if stopping.is_set():
            break
        pause = (
            0.5 if loop.time() - started > 60 else min(2 * pause, _MAX_PAUSE_SECONDS)
        )
        log.warning("worker interrupted error=%r retry_seconds=%.1f", failure, pause)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), pause)
    log.info("worker stopped")


async def _end(running: asyncio.Task[None]) -> None:
    """Cancel it until it has ended: Python 3.11 may lose a cancellation.

    `asyncio.wait_for` does when what it waits for comes at the same moment.
    """
    while not running.done():
        running.cancel()
        await asyncio.wait({running}, timeout=_GRACE_SECONDS + 2)


async def _run_until_failure(
    engine: Engine, url: str, settings: Settings, releases: Sequence[ReleaseJob]
) -> None:
    app = create_app(engine, url, settings, releases)
    jobs = [job.name for job in JOBS] + [f"release {job.model}" for job in releases]
    try:
        await app.open_async()
        log.info("worker started jobs=%s", jobs)
        async with asyncio.TaskGroup() as group:
            if releases:
                group.create_task(scheduled_releases.work(app))
            if settings.mlflow_tracking_uri is not None:
                environment = settings.environment(database_url=url)
                group.create_task(
                    scheduled_mirror.follow(engine, environment=environment)
                )
            group.create_task(
                app.run_worker_async(
                    # Not those of another worker that has pipelines.
                    queues=["default"],
                    install_signal_handlers=False,
                    delete_jobs="successful",
                    fetch_job_polling_interval=1.0,
                    shutdown_graceful_timeout=_GRACE_SECONDS,
                )
            )
    finally:
        # Also when it was cancelled as it opened: a task of the pool that connects
        # survives being cancelled, and the process would wait for it for ever.
        await app.close_async()
