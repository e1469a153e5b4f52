"""Releases on schedule: each in a process of its own, tried again, told when it fails.

Belongs to the worker. A training takes hours and gigabytes, so it must neither hold up
the worker's other jobs nor take the worker along when the machine runs out of memory.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import procrastinate

from experiment_service.child import run_command
from experiment_service.notification import notify

log = logging.getLogger(__name__)

#: Queue of its own, with a procrastinate worker of its own: one release at a time.
QUEUE = "releases"

#: After a failure it is tried again in 8 s, 64 s, 9 min and 68 min; then people are told.
RETRIES = 4
_WAIT_SECONDS = 8

#: A release that takes longer is ended, told, and not tried again.
LIMIT_SECONDS = 12 * 3600

#: How often is looked for releases whose worker died.
_LOST_SECONDS = 60

#: Exit statuses of the command: all is said, and trying again would say the same.
_RELEASED, _REFUSED = 0, 2


class ReleaseFailed(Exception):  # noqa: N818 - what it says of a release
    """A release ended by something that may be over later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseJob:
    """A model that is released on a schedule.

    Attributes
    ----------
    model : str
        Name of the model.
    path : Path
        Of the pipeline.
    market : str or None
    cron : str
    """

    model: str
    path: Path
    market: str | None
    cron: str


def find_jobs(folder: Path) -> list[ReleaseJob]:
    """Return a job for each market of each pipeline that has a schedule.

    Raises
    ------
    InvalidRequest
        When the folder is missing or a pipeline is wrong.
    """
    # Here, as the recommenders that a pipeline is checked by take seconds to load.
    from experiment_service.training import find_pipelines  # noqa: PLC0415

    return [
        ReleaseJob(
            model=pipeline.model_name(market),
            path=path.absolute(),
            market=market,
            cron=pipeline.schedule,
        )
        for path, pipeline in find_pipelines(folder).items()
        if pipeline.schedule is not None
        for market in pipeline.markets_of(None)
    ]


def register(
    app: procrastinate.App,
    jobs: Sequence[ReleaseJob],
    *,
    environment: Mapping[str, str],
    urls: Sequence[str],
) -> None:
    """Put releases on their schedules.

    Parameters
    ----------
    environment : mapping
        Of the processes, with the settings of this one.
    urls : sequence of str
        Whom to tell, as of `notify`.
    """

    @app.task(
        name="release",
        queue=QUEUE,
        pass_context=True,
        retry=procrastinate.RetryStrategy(
            max_attempts=RETRIES, exponential_wait=_WAIT_SECONDS
        ),
    )
    async def run(
        context: procrastinate.JobContext,
        timestamp: int,  # noqa: ARG001 - procrastinate passes the tick
        model: str,
        path: str,
        market: str | None,
    ) -> None:
        status, said = await _run(path, market, environment)
        log.info("release ended model=%s status=%s", model, status)
        if status == _RELEASED:
            return
        refused = status in (_REFUSED, None)
        if refused or context.job.attempts >= RETRIES:
            reason = "was not released" if refused else f"failed {RETRIES + 1} times"
            await asyncio.to_thread(notify, f"Model {model} {reason}", said, urls=urls)
        if not refused:
            raise ReleaseFailed(f"model {model} ended with status {status}")

    for job in jobs:
        app.periodic(
            cron=job.cron,
            periodic_id=job.model,
            queueing_lock=f"release of {job.model}",
            task_kwargs={
                "model": job.model,
                "path": str(job.path),
                "market": job.market,
            },
        )(run)


async def work(app: procrastinate.App) -> None:
    """Release what is due, one after the other, until it is cancelled."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_retry_lost(app))
        group.create_task(
            app.run_worker_async(
                queues=[QUEUE],
                name=QUEUE,
                install_signal_handlers=False,
                delete_jobs="successful",
                fetch_job_polling_interval=5.0,
                shutdown_graceful_timeout=0,
            )
        )


async def _retry_lost(app: procrastinate.App) -> None:
    """Do again what a worker was doing when it died."""
    while True:
        for job in await app.job_manager.get_stalled_jobs(queue=QUEUE):
            log.warning("release was lost, done again arguments=%s", job.task_kwargs)
            await app.job_manager.retry_job(job)
        await asyncio.sleep(_LOST_SECONDS)


async def _run(
    path: str, market: str | None, environment: Mapping[str, str]
) -> tuple[int | None, str]:
    """Run the command, as of `run_command`."""
    command = ["release", path, "--scheduled"]
    command += () if market is None else ("--market", market)
    return await run_command(
        command, environment=environment, limit_seconds=LIMIT_SECONDS
    )
