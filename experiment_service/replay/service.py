"""The door to replays for programs that hold no database connection of their own."""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from experiment_service.replay.choice import parse_policy
from experiment_service.replay.comparison import ReplayReport, compare
from experiment_service.replay.experiment import read_experiment
from experiment_service.replay.export import Content, export
from experiment_service.storage import database


def replay_experiment(
    database_url: str | None,
    data_dir: Path,
    key: str,
    *,
    policies: Sequence[str],
    cutoff: datetime,
    metric: str | None = None,
    estimator: str = "snips",
    segment_by: Sequence[str] = (),
    progress: Callable[[float], None] | None = None,
) -> ReplayReport:
    """Compare policies on the log of an experiment; nothing is written.

    Parameters
    ----------
    database_url, data_dir
        As of `Reports`.
    key : str
        Of the experiment.
    policies : sequence of str
        As `parse_policy` reads them.
    cutoff : datetime
        Units count when their attribution window has closed by then.
    metric : str, optional
        A proportion or mean; the experiment's reward when left out.
    estimator : str
        Key of `ESTIMATORS`.
    segment_by : sequence of str
        Attributes of the first exposure that make a unit's segment.
    progress : callable, optional
        Called with the share that is done, 0 to 1.

    Raises
    ------
    InvalidRequest, InvalidState, NotFound
        When something asked for is unknown or does not fit the log.
    Unavailable
        When the database does not answer.
    """
    chosen = [parse_policy(text) for text in policies]
    with (
        database.reading_engine(database_url, data_dir, name="replay") as engine,
        database.transaction(engine) as connection,
    ):
        log = read_experiment(
            connection, key, cutoff=cutoff, metric=metric, segment_by=segment_by
        )
    total, done = max(len(chosen) * log.rounds.rounds, 1), 0

    def advance(rounds: int) -> None:
        nonlocal done
        done += rounds
        if progress is not None:
            progress(done / total)

    plan = log.plan(chosen, estimator=estimator)
    return compare(log.rounds, plan, source=log.source, progress=advance)


def export_experiment(
    database_url: str | None,
    data_dir: Path,
    key: str,
    content: Content,
    path: Path,
    *,
    cutoff: datetime,
) -> int:
    """Write what an experiment recorded to a file, as `export` does.

    Parameters
    ----------
    database_url, data_dir
        As of `Reports`.

    Raises
    ------
    InvalidRequest, NotFound
        As `export`.
    Unavailable
        When the database does not answer.
    """
    with (
        database.reading_engine(database_url, data_dir, name="export") as engine,
        database.transaction(engine) as connection,
    ):
        return export(connection, key, content, path, cutoff=cutoff)
