"""Replay several policies, or seeds, on one log with all cores.

The log is shared, not copied to each process: arrays in memory are put once into shared
memory, memory-mapped ones are opened by their file.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any, cast

import numpy as np

from policies.logged import LoggedRounds
from policies.replay import ReplayResult, ReplayRun, replay

# Below this much work, in looks of all runs, starting processes takes longer.
_WORTH_PROCESSES = 20_000
# Rounds that take about as long as one look.
_ROUNDS_OF_A_LOOK = 250

_ARRAYS = ("arm", "propensity", "reward", "time", "unit", "position", "segment")


def replay_many(
    rounds: LoggedRounds,
    runs: Sequence[ReplayRun],
    *,
    processes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[ReplayResult]:
    """Return what `replay` returns for each run, in their order.

    Parameters
    ----------
    processes : int, >= 1, or None
        None: as many as there are cores, or none beside this one for little work.
    progress : callable, optional
        Called in this process with the number of rounds done since the last call.

    Raises
    ------
    ValueError
        As `replay`; names the policy.
    """
    if processes is None:
        enough = sum(_work(rounds, run) for run in runs) >= _WORTH_PROCESSES
        processes = len(os.sched_getaffinity(0)) if enough else 1
    if processes < 1:
        raise ValueError(f"processes is {processes}; it must be 1 or more")
    if min(processes, len(runs)) == 1:
        return [_named(rounds, run, progress) for run in runs]
    with _shared(rounds) as log, _pool(min(processes, len(runs)), log) as pool:
        futures = [pool.submit(_in_process, run) for run in runs]
        try:
            _await(futures, rounds.rounds, progress)
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def _work(rounds: LoggedRounds, run: ReplayRun) -> float:
    """Return about how many looks take as long as a run."""
    if run.update_every is not None:
        looks = rounds.rounds / run.update_every
    else:
        assert run.update_seconds is not None  # noqa: S101 - one of them is given
        span = float(rounds.time[-1] - rounds.time[0])
        looks = min(span / run.update_seconds, rounds.rounds)
    return looks + rounds.rounds / _ROUNDS_OF_A_LOOK


def _named(
    rounds: LoggedRounds, run: ReplayRun, progress: Callable[[int], None] | None
) -> ReplayResult:
    try:
        return replay(rounds, run, progress=progress)
    except ValueError as error:
        if run.label in str(error):
            raise
        raise ValueError(f"policy {run.label!r}: {error}") from error


def _await(
    futures: Sequence[Future[ReplayResult]],
    rounds: int,
    progress: Callable[[int], None] | None,
) -> None:
    open_ = set(futures)
    while open_:
        done, open_ = wait(open_, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
            if progress is not None:
                progress(rounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """Where a process finds an array: shared memory, or a part of a file."""

    name: str
    memory: str | None
    file: str | None
    offset: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Log:
    arms: tuple[str, ...]
    segments: tuple[str, ...]
    columns: tuple[_Column, ...]


@contextlib.contextmanager
def _shared(rounds: LoggedRounds) -> Iterator[_Log]:
    with contextlib.ExitStack() as stack:
        columns = []
        for name in _ARRAYS:
            array = getattr(rounds, name)
            if array is not None:
                columns.append(_column(name, array, stack))
        yield _Log(arms=rounds.arms, segments=rounds.segments, columns=tuple(columns))


def _column(
    name: str, array: np.ndarray[Any, Any], stack: contextlib.ExitStack
) -> _Column:
    memory, file, offset = None, None, 0
    root = _memory_map(array)
    if root is not None and root.filename is not None:
        file = str(root.filename)
        offset = int(root.offset) + array.ctypes.data - root.ctypes.data
    else:
        block = SharedMemory(create=True, size=max(array.nbytes, 1))
        stack.callback(block.unlink)
        stack.callback(block.close)
        np.ndarray(array.shape, array.dtype, buffer=block.buf)[:] = array
        memory = block.name
    return _Column(
        name=name,
        memory=memory,
        file=file,
        offset=offset,
        shape=array.shape,
        dtype=array.dtype.str,
    )


def _memory_map(array: np.ndarray[Any, Any]) -> "np.memmap[Any, Any] | None":
    """Return the memory map that an array is a view of, the outermost one."""
    found, base = None, cast("Any", array)
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            found = base
        base = base.base
    return found


@contextlib.contextmanager
def _pool(processes: int, log: _Log) -> Iterator[ProcessPoolExecutor]:
    # Not by fork: a server's threads may hold locks at that moment.
    with ProcessPoolExecutor(
        max_workers=processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_open,
        initargs=(log,),
    ) as pool:
        yield pool


#: The log of this process, and what must live as long as its arrays.
_opened: list[tuple[LoggedRounds, list[SharedMemory]]] = []


def _open(log: _Log) -> None:
    blocks: list[SharedMemory] = []
    columns: dict[str, np.ndarray[Any, Any]] = {}
    for column in log.columns:
        if column.memory is not None:
            block = SharedMemory(name=column.memory)
            blocks.append(block)
            columns[column.name] = np.ndarray(
                column.shape, np.dtype(column.dtype), buffer=block.buf
            )
        else:
            assert column.file is not None  # noqa: S101 - one of the two
            columns[column.name] = np.memmap(
                column.file,
                dtype=np.dtype(column.dtype),
                mode="r",
                offset=column.offset,
                shape=column.shape,
            )
    rounds = LoggedRounds(arms=log.arms, segments=log.segments, **columns)
    _opened.append((rounds, blocks))


def _in_process(run: ReplayRun) -> ReplayResult:
    return _named(_opened[0][0], run, None)
