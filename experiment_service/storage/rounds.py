"""Rows of an experiment as rounds: one for each unit whose window has closed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Text,
    cast,
    extract,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY

from experiment_service.domain.experiment import Experiment
from experiment_service.domain.metric import Metric
from experiment_service.storage.database import allow_time
from experiment_service.storage.reads import (
    MISSING,
    has_segments,
    units_of_analysis,
    value_of_unit,
)

_BATCH = 50_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundBatch:
    """Rounds as arrays of shape (B,), in the order of their time.

    Attributes
    ----------
    arm : int32 array
        Index into the experiment's variants.
    unit : int64 array
        64 bits of the unit's name; the same unit has the same in every epoch.
    propensity : float64 array
        Of the unit's first exposure in the epoch.
    time : float64 array
        Of that exposure, seconds since 1970.
    reward : float64 array
    segment : list of str or None
        Values of the attributes asked for, joined by " / ".
    """

    arm: NDArray[np.int32]
    unit: NDArray[np.int64]
    propensity: NDArray[np.float64]
    time: NDArray[np.float64]
    reward: NDArray[np.float64]
    segment: list[str] | None


def stream_rounds(
    connection: Connection,
    experiment: Experiment,
    metric: Metric,
    *,
    cutoff: datetime,
    segment_by: Sequence[str] = (),
) -> Iterator[RoundBatch]:
    """Yield the units of analysis whose window has closed, by a server-side cursor.

    They are those that `metric_moments` counts, and their rewards add up to its sums.

    Parameters
    ----------
    metric : Metric
        A proportion or a mean.
    cutoff : datetime
        Last instant used, with time zone.
    segment_by : sequence of str
        Attributes in the context of the unit's first exposure that make its segment;
        the experiment's own segments, if it has any, when left out.
    """
    # A large log takes longer to sort than a request may take.
    allow_time(connection)
    units = units_of_analysis(experiment, [metric], cutoff=cutoff)
    value = value_of_unit(experiment, metric, units, cutoff=cutoff)
    variants = [each.key for each in experiment.declaration.variants]
    columns: list[ColumnElement[Any]] = [
        func.array_position(literal(variants, ARRAY(Text)), units.c.variant) - 1,
        func.hashtextextended(units.c.unit_id, 0),
        units.c.propensity,
        cast(extract("epoch", units.c.first_at), Float),
        cast(value.y, Float),
    ]
    if segment_by:
        parts = [
            func.coalesce(units.c.context.op("->>")(name), MISSING)
            for name in segment_by
        ]
        columns.append(func.concat_ws(" / ", *parts))
    elif has_segments(experiment):
        columns.append(units.c.segment)
    query = select(*columns).select_from(units).where(value.counts)
    query = query.order_by(units.c.first_at, units.c.unit_id)
    rows = connection.execution_options(
        stream_results=True, max_row_buffer=_BATCH
    ).execute(query)
    for batch in rows.partitions(_BATCH):
        arm, unit, propensity, time, reward, *segment = zip(*batch, strict=True)
        yield RoundBatch(
            arm=np.array(arm, dtype=np.int32),
            unit=np.array(unit, dtype=np.int64),
            propensity=np.array(propensity, dtype=np.float64),
            time=np.array(time, dtype=np.float64),
            reward=np.array(reward, dtype=np.float64),
            segment=list(segment[0]) if segment else None,
        )
