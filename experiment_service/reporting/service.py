"""The door to reports for programs that hold no database connection of their own."""

import contextlib
from datetime import datetime
from pathlib import Path

from experiment_service.reporting.build import (
    build_report,
    list_experiments,
    operations,
    overview,
)
from experiment_service.reporting.examples import ExampleList, build_examples
from experiment_service.reporting.journey import Journey, build_journey
from experiment_service.reporting.models import ModelReport, build_models
from experiment_service.reporting.monitors import (
    Alerts,
    build_alerts,
    build_monitored,
)
from experiment_service.reporting.planning import Baseline, read_baseline
from experiment_service.reporting.segments import build_segments
from experiment_service.reporting.values import (
    Days,
    Group,
    ListedExperiment,
    Operations,
    OverviewRow,
    Report,
    SegmentsReport,
)
from experiment_service.storage import database
from experiment_service.storage.monitors import MonitoredDay


class Reports:
    """Reports of one database; keep one per process and close it at the end.

    Every report is read in one snapshot, so its numbers agree with each other.

    Parameters
    ----------
    database_url : str or None
        Of a PostgreSQL with our schema; None opens the embedded one.
    data_dir : Path
        Where the embedded database and the published lists are.

    Raises
    ------
    InvalidRequest
        When the URL is not one of PostgreSQL.
    Unavailable
        When the server does not answer or start, or its schema is not up to date.
    """

    def __init__(self, database_url: str | None, data_dir: Path) -> None:
        self._data_dir = data_dir
        with contextlib.ExitStack() as stack:
            self._engine = stack.enter_context(
                database.reading_engine(database_url, data_dir, name="reports")
            )
            self._opened = stack.pop_all()

    def experiments(self) -> tuple[ListedExperiment, ...]:
        """Name every experiment, the running ones first.

        Raises
        ------
        Unavailable
            When the database does not answer.
        """
        with database.transaction(self._engine) as connection:
            return list_experiments(connection)

    def overview(self, *, as_of: datetime) -> tuple[OverviewRow, ...]:
        """Return a line for every experiment.

        Raises
        ------
        Unavailable
            When the database does not answer.
        """
        with database.transaction(self._engine) as connection:
            return overview(connection, as_of=as_of)

    def report(
        self,
        key: str,
        *,
        as_of: datetime,
        days: Days | None = None,
        group: Group | None = None,
    ) -> Report:
        """Return the report of an experiment; see `build_report`.

        Raises
        ------
        NotFound
            Lists the experiments that exist.
        Unavailable
            When the database does not answer.
        """
        with database.transaction(self._engine) as connection:
            return build_report(connection, key, as_of=as_of, days=days, group=group)

    def journey(
        self,
        key: str,
        *,
        as_of: datetime,
        days: Days | None = None,
        group: Group | None = None,
    ) -> Journey:
        """Return funnel and positions of an experiment; see `build_journey`.

        Raises
        ------
        NotFound
            Lists the experiments that exist.
        Unavailable
            When the database does not answer.
        """
        with database.transaction(self._engine) as connection:
            return build_journey(connection, key, as_of=as_of, days=days, group=group)

    def models(self) -> tuple[ModelReport, ...]:
        """Return every model with its versions and what it serves.

        Raises
        ------
        Unavailable
            When the database does not answer.
        """
        with database.transaction(self._engine) as connection:
            return build_models(connection)

    def examples(
        self,
        name: str,
        versions: tuple[int, ...],
        *,
        unit_id: str | None,
        item_id: str | None,
        k: int,
    ) -> tuple[ExampleList, ...]:
        """Return lists of versions of a model side by side; see `build_examples`.

        Raises
        ------
        NotFound
            Lists the versions or the models that exist.
        Unavailable
            When the database does not answer.
        """
        with database.transaction(self._engine) as connection:
            return build_examples(
                connection,
                self._data_dir,
                name,
                versions,
                unit_id=unit_id,
                item_id=item_id,
                k=k,
            )

    def segments(self, key: str, *, as_of: datetime) -> SegmentsReport:
        """Return the reward of an experiment by the attributes of its units.

        Raises
        ------
        NotFound
            Lists the experiments that exist.
        Unavailable
            When the database does not answer.
        """
        with database.transaction(self._engine) as connection:
            return build_segments(connection, key, as_of=as_of)

    def operations(self, *, as_of: datetime) -> Operations:
        """Say how the service as a whole is doing.

        Raises
        ------
        Unavailable
            When the database does not answer.
        """
        with database.transaction(self._engine) as connection:
            return operations(connection, as_of=as_of)

    def alerts(self) -> Alerts:
        """Return the alerts of all experiments.

        Raises
        ------
        Unavailable
            When the database does not answer.
        """
        with database.transaction(self._engine) as connection:
            return build_alerts(connection)

    def monitored(self, key: str, *, as_of: datetime) -> tuple[MonitoredDay, ...]:
        """Return what monitors measured of an experiment; see `build_monitored`.

        Raises
        ------
        NotFound
            Lists the experiments that exist.
        Unavailable
            When the database does not answer.
        """
        with database.transaction(self._engine) as connection:
            return build_monitored(connection, key, as_of=as_of)

    def baseline(
        self, key: str, *, metric: str | None = None, as_of: datetime
    ) -> Baseline:
        """Return what a plan on an experiment's traffic starts from.

        Raises
        ------
        InvalidState, NotFound
            As `read_baseline`.
        Unavailable
            When the database does not answer.
        """
        with database.transaction(self._engine) as connection:
            return read_baseline(connection, key, metric=metric, as_of=as_of)

    def close(self) -> None:
        """Give up the connections, and the embedded server if it was opened."""
        self._opened.close()
