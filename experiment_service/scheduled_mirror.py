"""The mirror kept up to date by the worker, in processes of its own.

Trainings and releases mirror what they store by themselves. This follows decisions, and
makes up for what failed, by looking at the status of every version.
"""

import asyncio
import logging
from collections.abc import Mapping

from sqlalchemy import Engine

from experiment_service.child import run_command
from experiment_service.storage.database import transaction
from experiment_service.storage.models import statuses

log = logging.getLogger(__name__)

#: Between two looks, and the longest pause after failures.
PAUSE_SECONDS = 15.0
_MOST_SECONDS = 600.0

_LIMIT_SECONDS = 3600.0


async def follow(engine: Engine, *, environment: Mapping[str, str]) -> None:
    """Mirror whenever a version is new or has another status, until it is cancelled.

    Parameters
    ----------
    environment : mapping
        Of the processes, with the settings of this one.
    """
    mirrored: object = None
    pause = PAUSE_SECONDS
    while True:
        found = await asyncio.to_thread(_statuses, engine)
        if found != mirrored:
            status, said = await run_command(
                ["mirror"], environment=environment, limit_seconds=_LIMIT_SECONDS
            )
            if status == 0:
                log.info("models mirrored versions=%d", len(found))
                mirrored, pause = found, PAUSE_SECONDS
            else:
                last = said.splitlines()[-1:]
                log.warning("models not mirrored status=%s reason=%s", status, *last)
                pause = min(2 * pause, _MOST_SECONDS)
        await asyncio.sleep(pause)


def _statuses(engine: Engine) -> frozenset[tuple[int, str]]:
    with transaction(engine) as connection:
        return statuses(connection)
