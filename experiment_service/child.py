"""A command of this program in a process of its own, that the worker waits for.

What takes hours, gigabytes or a library of its own must neither hold up the worker's
jobs nor take the worker along.
"""

import asyncio
import contextlib
import sys
from collections.abc import Mapping, Sequence

#: Seconds to end in order, before it is killed.
_GRACE_SECONDS = 5

_LAST_LINES = 20


async def run_command(
    arguments: Sequence[str], *, environment: Mapping[str, str], limit_seconds: float
) -> tuple[int | None, str]:
    """Run a command; when this is cancelled, it is ended too.

    Returns
    -------
    status : int or None
        Its exit status; None when it took too long and was ended.
    said : str
        Its output, and the last lines of its log.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "experiment_service", *arguments),
        env=dict(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # The worker ends it in order; Ctrl-C in a terminal would reach both.
        start_new_session=True,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), limit_seconds)
    except TimeoutError:
        took = f"{limit_seconds / 3600:g} hours"
        return None, f"it took longer than {took} and was ended"
    finally:
        if process.returncode is None:
            await _end(process)
    last = err.decode(errors="replace").splitlines()[-_LAST_LINES:]
    return process.returncode, "\n".join([out.decode(errors="replace"), *last]).strip()


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _GRACE_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
