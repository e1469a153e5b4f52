"""How long the carousels of an experiment are."""

from sqlalchemy import Connection, func, select

from experiment_service.domain.experiment import Experiment
from experiment_service.storage import schema

_LATEST_EXPOSURES = 1000


def carousel_length(connection: Connection, experiment: Experiment) -> int:
    """Return the most items in one of the latest 1,000 exposures; 0 without any."""
    made = schema.exposure
    latest = (
        select(func.cardinality(made.c["items"]).label("length"))
        .where(made.c.experiment_id == experiment.id)
        .order_by(made.c.exposed_at.desc())
        .limit(_LATEST_EXPOSURES)
        .subquery("latest")
    )
    return connection.scalar(select(func.max(latest.c.length))) or 0
