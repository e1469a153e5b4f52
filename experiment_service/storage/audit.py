"""The audit log page by page, the newest entry first."""

from sqlalchemy import Connection, select

from experiment_service.storage import schema
from experiment_service.storage.experiments import AuditEntry


def page_of_audit(
    connection: Connection,
    *,
    limit: int,
    before: int | None = None,
    subject: str | None = None,
) -> list[tuple[int, AuditEntry]]:
    """Return entries by number, the newest first.

    Parameters
    ----------
    limit : int
        At most so many.
    before : int, optional
        Only entries with a smaller number: the last one of the page before.
    subject : str, optional
        Only changes of one thing, such as ``experiment/home-carousel``.
    """
    audit = schema.audit
    question = select(audit).order_by(audit.c.id.desc()).limit(limit)
    if before is not None:
        question = question.where(audit.c.id < before)
    if subject is not None:
        question = question.where(audit.c.subject == subject)
    return [
        (
            row.id,
            AuditEntry(
                actor=row.actor,
                action=row.action,
                subject=row.subject,
                before=row.before,
                after=row.after,
                reason=row.reason,
                recorded_at=row.recorded_at,
            ),
        )
        for row in connection.execute(question)
    ]


def audit_document(number: int, entry: AuditEntry) -> dict[str, object]:
    """Write an entry as a JSON document."""
    return {
        "id": number,
        "at": entry.recorded_at.isoformat(),
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.subject,
        "before": entry.before,
        "after": entry.after,
        "reason": entry.reason,
    }
