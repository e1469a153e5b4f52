"""Telling people of alerts: once when one is raised, once when it is over."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Engine

from experiment_service.domain.monitor import title_of
from experiment_service.notification import notify
from experiment_service.storage.alerts import Alert, lock_untold, mark_told
from experiment_service.storage.database import transaction

#: One message has so many alerts at most; the next one follows at once.
_ALERTS_PER_MESSAGE = 25


def tell(engine: Engine, now: datetime, *, urls: Sequence[str]) -> int:
    """Send what has not been told yet; return the number of messages that got through.

    The rows are locked while a message is under way, so of two workers one tells. What
    nobody took, or what a process that died had not noted as told, is sent again by the
    next call.
    """
    messages = 0
    while True:
        with transaction(engine) as connection:
            untold = lock_untold(connection, limit=_ALERTS_PER_MESSAGE)
            if not untold or not notify(*_message(untold), urls=urls):
                return messages
            mark_told(connection, untold, now=now)
        messages += 1


def _message(untold: Sequence[Alert]) -> tuple[str, str]:
    """Return subject and body."""
    raised = [each for each in untold if each.resolved_at is None]
    over = [each for each in untold if each.resolved_at is not None]
    if len(untold) == 1:
        state = "Alert" if raised else "Over"
        subject = f"{state}: {_name(untold[0])}"
    else:
        counted = [f"{len(raised)} alerts"] * bool(raised)
        counted += [f"{len(over)} over"] * bool(over)
        subject = f"{', '.join(counted)}: {_name(untold[0])} and others"
    body = [f"Alert: {_name(each)}\n{each.reason}" for each in raised]
    body += [
        f"Over: {_name(each)}\n{each.resolution} It was raised {_moment(each.raised_at)}: "
        f"{each.reason}"
        for each in over
    ]
    return subject, "\n\n".join(body)


def _name(alert: Alert) -> str:
    return f"{title_of(alert.monitor)} of {alert.about}"


def _moment(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
