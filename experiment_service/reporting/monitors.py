"""What monitors measured of what serves, and the alerts they raised."""

import dataclasses
from datetime import datetime, timedelta

from sqlalchemy import Connection

from experiment_service.storage import experiments as storage
from experiment_service.storage import monitors
from experiment_service.storage.alerts import Alert, latest_alerts, open_alerts
from experiment_service.storage.monitors import MonitoredDay

#: Days that are shown.
SHOWN_DAYS = timedelta(days=14)

_LATEST_ALERTS = 30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Alerts:
    """Alerts of all experiments.

    Attributes
    ----------
    open : tuple of Alert
        Those that call for a look, the newest first.
    over : tuple of Alert
        The latest of those that are over, the newest first.
    """

    open: tuple[Alert, ...]
    over: tuple[Alert, ...]


def build_alerts(connection: Connection) -> Alerts:
    """Return what is open, and what was over lately."""
    latest = latest_alerts(connection, limit=_LATEST_ALERTS)
    return Alerts(
        open=tuple(open_alerts(connection)),
        over=tuple(each for each in latest if each.resolved_at is not None),
    )


def build_monitored(
    connection: Connection, key: str, *, as_of: datetime
) -> tuple[MonitoredDay, ...]:
    """Return the last 14 days of every variant of an experiment, by day.

    Raises
    ------
    NotFound
        Lists the experiments that exist.
    """
    experiment = storage.get_experiment(connection, key)
    since = (as_of - SHOWN_DAYS).date()
    return tuple(monitors.list_days(connection, experiment.id, since=since))
