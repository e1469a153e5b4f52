"""Alerts in the database: one open row per thing, told once at each end.

Functions take a connection; nobody here commits or sends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, case, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from experiment_service.storage import schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something that calls for a look.

    Attributes
    ----------
    experiment : str
        Key of the experiment it is about.
    monitor : str
        One of `MONITORS`, ``sample_ratio`` or ``guardrail``.
    subject : str
        A variant, ``variant/metric`` for a guardrail, empty for the whole experiment.
    value, threshold : float
        When it was raised.
    reason : str
        What was found and what usually causes it.
    resolved_at, resolution : datetime, str or None
        When and how it ended; None while it is open.
    raise_told_at, resolve_told_at : datetime or None
        When people were told; None while that is still to be done.
    """

    id: int
    experiment: str
    monitor: str
    subject: str
    value: float
    threshold: float
    reason: str
    raised_at: datetime
    resolved_at: datetime | None
    resolution: str | None
    raise_told_at: datetime | None
    resolve_told_at: datetime | None

    @property
    def about(self) -> str:
        """What it is about, as people read it: ``home-carousel/als``."""
        return "/".join(filter(None, (self.experiment, self.subject)))


_QUESTION: Select[Any] = select(
    *(each for each in schema.alert.c if each.name != "experiment_id"),
    schema.experiment.c.key.label("experiment"),
).join(schema.experiment)

_UNTOLD = or_(
    schema.alert.c.raise_told_at.is_(None),
    and_(
        schema.alert.c.resolved_at.is_not(None),
        schema.alert.c.resolve_told_at.is_(None),
    ),
)


def _alert(row: Row[Any]) -> Alert:
    return Alert(**row._mapping)  # noqa: SLF001


def open_alerts(connection: Connection) -> list[Alert]:
    """Return the open alerts, the newest first."""
    alert = schema.alert.c
    question = _QUESTION.where(alert.resolved_at.is_(None))
    rows = connection.execute(
        question.order_by(alert.raised_at.desc(), alert.id.desc())
    )
    return [_alert(row) for row in rows]


def latest_alerts(connection: Connection, *, limit: int) -> list[Alert]:
    """Return alerts, open or over, the newest first."""
    rows = connection.execute(_QUESTION.order_by(schema.alert.c.id.desc()).limit(limit))
    return [_alert(row) for row in rows]


def raise_alert(
    connection: Connection,
    experiment_id: int,
    *,
    monitor: str,
    subject: str,
    value: float,
    threshold: float,
    reason: str,
    now: datetime,
) -> bool:
    """Open an alert; False when one about the same thing is open."""
    raised = connection.scalar(
        insert(schema.alert)
        .values(
            experiment_id=experiment_id,
            monitor=monitor,
            subject=subject,
            value=value,
            threshold=threshold,
            reason=reason,
            raised_at=now,
        )
        .on_conflict_do_nothing()
        .returning(schema.alert.c.id)
    )
    return raised is not None


def resolve_alert(
    connection: Connection, alert_id: int, *, resolution: str, now: datetime
) -> bool:
    """End an alert; False when it was over already."""
    alert = schema.alert
    resolved = connection.scalar(
        update(alert)
        .where(alert.c.id == alert_id, alert.c.resolved_at.is_(None))
        .values(resolved_at=now, resolution=resolution)
        .returning(alert.c.id)
    )
    return resolved is not None


def lock_untold(connection: Connection, *, limit: int) -> list[Alert]:
    """Return alerts of which an end is still to be told, the oldest first.

    They stay this transaction's until it ends: another that asks gets none of them.
    """
    rows = connection.execute(
        _QUESTION.where(_UNTOLD)
        .order_by(schema.alert.c.id)
        .limit(limit)
        .with_for_update(of=schema.alert, skip_locked=True)
    )
    return [_alert(row) for row in rows]


def mark_told(
    connection: Connection, alerts: Sequence[Alert], *, now: datetime
) -> None:
    """Remember that people were told of these alerts as they are."""
    alert = schema.alert
    connection.execute(
        update(alert)
        .where(alert.c.id.in_([each.id for each in alerts]))
        .values(
            raise_told_at=case(
                (alert.c.raise_told_at.is_(None), now), else_=alert.c.raise_told_at
            ),
            resolve_told_at=case((alert.c.resolved_at.is_not(None), now), else_=None),
        )
    )
