"""The log of an experiment as rounds: one for each unit whose window has closed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import Connection

from experiment_service.domain.experiment import Declaration
from experiment_service.domain.metric import Metric
from experiment_service.errors import InvalidRequest, InvalidState, known
from experiment_service.replay.choice import PolicyChoice
from experiment_service.replay.comparison import ReplayPlan
from experiment_service.storage import experiments as storage
from experiment_service.storage.rounds import RoundBatch, stream_rounds
from policies.logged import LoggedRounds

#: Time between looks for an A/B test, which has no policy that says it.
_INTERVAL = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExperimentLog:
    """Rounds of an experiment and how it was run.

    Attributes
    ----------
    source : str
        What the log is, in words.
    rounds : LoggedRounds
        A round is a unit of analysis: its first exposure, and its reward once the
        attribution window has closed.
    metric : Metric
        What the reward is.
    control : str
        Key of the control variant.
    interval, window : timedelta
        Time between looks, and until a reward is known.
    minimum_units : int
        That every variant needs before weights move.
    """

    source: str
    rounds: LoggedRounds
    metric: Metric
    control: str
    interval: timedelta
    window: timedelta
    minimum_units: int

    def plan(self, policies: Sequence[PolicyChoice], **changes: Any) -> ReplayPlan:  # noqa: ANN401 - fields of a plan
        """Return the plan that repeats how the experiment was run.

        Parameters
        ----------
        changes
            Fields of the plan that are to differ; those that are None do not.

        Raises
        ------
        InvalidRequest
            As `ReplayPlan`.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        if "update_rounds" not in given:
            given.setdefault("update_seconds", self.interval.total_seconds())
        given.setdefault("delay_seconds", self.window.total_seconds())
        given.setdefault("minimum_units", self.minimum_units)
        return ReplayPlan(
            policies=tuple(policies),
            control=self.control,
            lower_is_better=self.metric.direction == "lower",
            **given,
        )


def read_experiment(
    connection: Connection,
    key: str,
    *,
    cutoff: datetime,
    metric: str | None = None,
    segment_by: Sequence[str] = (),
) -> ExperimentLog:
    """Read the log of an experiment, by a server-side cursor.

    Parameters
    ----------
    cutoff : datetime
        Units count when their attribution window has closed by then.
    metric : str, optional
        A proportion or mean; the experiment's reward when left out.
    segment_by : sequence of str
        Attributes of the first exposure that make a unit's segment.

    Raises
    ------
    NotFound
        When there is no such experiment or metric.
    InvalidRequest
        When the metric is a ratio, whose units do not add up to it.
    InvalidState
        When no unit counts yet.
    """
    experiment = storage.get_experiment(connection, key)
    declaration = experiment.declaration
    chosen = simple_metric(declaration, metric)
    batches = list(
        stream_rounds(
            connection, experiment, chosen, cutoff=cutoff, segment_by=segment_by
        )
    )
    if not batches:
        raise InvalidState(
            f"experiment {key!r} has no unit whose attribution window closed by "
            f"{cutoff:%Y-%m-%d %H:%M} UTC; there is nothing to replay yet"
        )
    policy = declaration.policy
    return ExperimentLog(
        source=f"experiment {key}, reward {chosen.name}",
        rounds=_rounds([variant.key for variant in declaration.variants], batches),
        metric=chosen,
        control=declaration.control.key,
        interval=policy.interval if policy else _INTERVAL,
        window=declaration.attribution_window,
        minimum_units=policy.minimum_units if policy else 0,
    )


def simple_metric(declaration: Declaration, name: str | None) -> Metric:
    """Return a metric that is a mean over units; the reward when none is named.

    Raises
    ------
    NotFound
        When there is no such metric.
    InvalidRequest
        When it is a ratio.
    """
    chosen = declaration.metric(name or declaration.reward_metric)
    if chosen.kind == "ratio":
        simple = [
            name for name, each in declaration.catalogue.items() if each.kind != "ratio"
        ]
        raise InvalidRequest(
            f"metric {chosen.name!r} is a ratio, which is no mean over units; choose "
            f"one of {known(simple)}",
            field="metric",
        )
    return chosen


def _rounds(variants: Sequence[str], batches: Sequence[RoundBatch]) -> LoggedRounds:
    _, unit = np.unique(
        np.concatenate([each.unit for each in batches]), return_inverse=True
    )
    segments: tuple[str, ...] = ()
    segment = None
    if batches[0].segment is not None:
        names = [name for each in batches for name in each.segment or ()]
        found, codes = np.unique(names, return_inverse=True)
        segments, segment = tuple(found.tolist()), codes.astype(np.int32)
    return LoggedRounds(
        arms=tuple(variants),
        arm=np.concatenate([each.arm for each in batches]),
        propensity=np.concatenate([each.propensity for each in batches]),
        reward=np.concatenate([each.reward for each in batches]),
        time=np.concatenate([each.time for each in batches]),
        unit=unit,
        segment=segment,
        segments=segments,
    )
