"""Raw events of an experiment, streamed by a server-side cursor."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from sqlalchemy import Connection, Select, exists, select, union_all

from experiment_service.domain.experiment import Experiment
from experiment_service.storage import schema
from experiment_service.storage.database import allow_time
from experiment_service.storage.outcomes import names

EventTable = Literal["exposures", "interactions"]

_BATCH = 20_000


def stream_events(
    connection: Connection, experiment: Experiment, table: EventTable
) -> Iterator[list[dict[str, Any]]]:
    """Yield batches of an experiment's exposures, or of interactions that count for it.

    In the order of their ids, which for those of our own making is that of time.
    Identifiers are texts, the context is JSON as text.
    """
    # A large table takes longer to read than a request may take.
    allow_time(connection)
    rows = connection.execution_options(
        stream_results=True, max_row_buffer=_BATCH
    ).execute(_query(experiment, table))
    for batch in rows.mappings().partitions(_BATCH):
        yield [_plain(row) for row in batch]


def _query(experiment: Experiment, table: EventTable) -> Select[Any]:
    made, done = schema.exposure, schema.interaction
    if table == "exposures":
        columns = (each for each in made.c if each.name != "experiment_id")
        chosen = made.c.experiment_id == experiment.id
        return select(*columns).where(chosen).order_by(made.c.id)
    counted = schema.attribution
    of_unit = exists().where(
        counted.c.interaction_id == done.c.id,
        counted.c.experiment_id == experiment.id,
    )
    named = (
        select(*done.c)
        .join(made, names(made, done))
        .where(
            made.c.experiment_id == experiment.id,
            done.c.occurred_at.between(
                made.c.exposed_at,
                made.c.exposed_at + experiment.declaration.attribution_window,
            ),
        )
    )
    rows = union_all(named, select(*done.c).where(of_unit)).subquery("interactions")
    return select(rows).order_by(rows.c.id)


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    plain = {str(name): value for name, value in row.items()}
    for name in ("id", "exposure_id"):
        if plain.get(name) is not None:
            plain[name] = str(plain[name])
    if "context" in plain:
        plain["context"] = json.dumps(plain["context"], ensure_ascii=False)
    if plain.get("value") is not None:
        plain["value"] = float(plain["value"])
    return plain
