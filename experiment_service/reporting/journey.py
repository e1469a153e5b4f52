"""What shoppers did on the way: the funnel, and clicks by position in the carousel.

Built from proportions of units, so that the numbers are exact, count like those of the
report, and cost one pass over units and not one over events.
"""

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType

from sqlalchemy import Connection

from experiment_service.analysis.interval import Estimate
from experiment_service.analysis.sequential import arm_sequence
from experiment_service.domain.experiment import Experiment
from experiment_service.domain.metric import Metric
from experiment_service.reporting.days import within
from experiment_service.reporting.metrics import PLANNED_UNITS, pooled_moments
from experiment_service.reporting.values import Days, Group
from experiment_service.storage import experiments as storage
from experiment_service.storage.carousel import carousel_length
from experiment_service.storage.reads import MetricCells, moments_by_metric

#: Steps after the exposure, by the kind of interaction.
STEPS: Mapping[str, str] = MappingProxyType(
    {
        "viewed": "Viewed it",
        "click": "Clicked",
        "add_to_cart": "Put an item in the cart",
        "purchase": "Bought an item",
    }
)
#: A page shows no more positions; the rest adds columns to the pass over units.
MAX_POSITIONS = 12


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How many units of a variant did something.

    Attributes
    ----------
    units, of : int
        Those that did, of those that count: their attribution window has closed.
    share : Interval or Withheld
        At every look at once, also in a bandit.
    """

    variant: str
    units: int
    of: int
    share: Estimate


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the funnel."""

    kind: str
    title: str
    reached: tuple[Reach, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One position of the carousel, from 1: units that clicked there."""

    position: int
    clicked: tuple[Reach, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """Funnel and positions of an experiment at one instant.

    Attributes
    ----------
    length : int
        Items in the longest of the latest carousels; `places` may be fewer.
    """

    as_of: datetime
    level: float
    days: Days | None
    steps: tuple[Step, ...]
    places: tuple[Place, ...]
    length: int


def build_journey(
    connection: Connection,
    key: str,
    *,
    as_of: datetime,
    days: Days | None = None,
    group: Group | None = None,
    level: float = 0.95,
) -> Journey:
    """Build funnel and positions of an experiment.

    Parameters
    ----------
    as_of : datetime
        Last instant used; units count when their window has closed by then.
    days : Days, optional
        Only units first exposed on them.
    group : Group, optional
        Only units of it.
    level : float
        Coverage of every interval, in (0, 1).

    Raises
    ------
    NotFound
        Lists the experiments that exist.
    """
    experiment = storage.get_experiment(connection, key)
    length = carousel_length(connection, experiment)
    steps = {kind: _share(f"step {kind}", kind) for kind in STEPS}
    places = {
        position: _share(f"place {position}", "click", position)
        for position in range(1, min(length, MAX_POSITIONS) + 1)
    }
    metrics = [*steps.values(), *places.values()]
    cells = moments_by_metric(
        connection,
        experiment,
        metrics,
        cutoff=as_of,
        group=None if group is None else (group.attribute, group.value),
    )

    def reached(metric: Metric) -> tuple[Reach, ...]:
        return _reached(experiment, within(cells[metric.name], days), level=level)

    return Journey(
        as_of=as_of,
        level=level,
        days=days,
        steps=tuple(
            Step(kind=kind, title=STEPS[kind], reached=reached(metric))
            for kind, metric in steps.items()
        ),
        places=tuple(
            Place(position=position, clicked=reached(metric))
            for position, metric in places.items()
        ),
        length=length,
    )


def _share(name: str, kind: str, position: int | None = None) -> Metric:
    return Metric(
        name=name,
        title=name,
        kind="proportion",
        event_kinds=(kind,),
        positions=None if position is None else (position, position),
    )


def _reached(
    experiment: Experiment, cells: MetricCells, *, level: float
) -> tuple[Reach, ...]:
    return tuple(
        Reach(
            variant=variant,
            units=round(moments.sum_y),
            of=int(moments.n),
            share=arm_sequence(
                "proportion", moments, level=level, planned_units=PLANNED_UNITS / 2
            ),
        )
        for variant, moments in pooled_moments(experiment, cells).items()
    )
