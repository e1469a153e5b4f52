"""Move a bandit's weights: recompute them from stored rows up to a cutoff.

A reallocation is a function of rows and a cutoff, so a retry, a late job or a second
worker changes nothing: cutoffs are aligned to the schedule and unique in the database.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

import numpy as np
from sqlalchemy import Connection

from experiment_service.analysis.moments import Moments
from experiment_service.domain.experiment import (
    Epoch,
    Experiment,
    ExperimentKind,
    ExperimentState,
    PolicySpecification,
)
from experiment_service.domain.metric import METRICS
from experiment_service.errors import InvalidState
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import lock_for_transaction
from experiment_service.storage.reads import metric_moments
from policies import ArmStatistics, allocate_with_floor, build_policy

log = logging.getLogger(__name__)

_SAME = 1e-12


def due_cutoff(
    experiment: Experiment, *, last: datetime | None, now: datetime
) -> datetime | None:
    """Return the latest scheduled cutoff not yet looked at, None when none is due.

    Cutoffs are whole intervals after the start, so every worker names the same one,
    and a worker that slept through several looks once, at the latest.
    """
    policy, started = experiment.declaration.policy, experiment.started_at
    if policy is None or started is None:
        return None
    intervals = (now - started) // policy.interval
    cutoff = started + intervals * policy.interval
    if intervals < 1 or (last is not None and cutoff <= last):
        return None
    return cutoff


def due_experiments(connection: Connection, *, now: datetime) -> dict[str, datetime]:
    """Return the cutoff that is due of each running bandit that has one, by key."""
    due: dict[str, datetime] = {}
    for experiment in storage.list_experiments(
        connection, state=ExperimentState.RUNNING
    ):
        if experiment.declaration.kind is not ExperimentKind.BANDIT:
            continue
        looks = storage.list_reallocations(connection, experiment.id, last=1)
        last = looks[-1].cutoff if looks else None
        cutoff = due_cutoff(experiment, last=last, now=now)
        if cutoff is not None:
            due[experiment.key] = cutoff
    return due


def reallocate(
    connection: Connection, key: str, *, cutoff: datetime, now: datetime
) -> storage.Reallocation:
    """Look at a bandit's rewards up to a cutoff and open an epoch if weights move.

    Parameters
    ----------
    cutoff : datetime
        Units count when their attribution window has closed by then.

    Returns
    -------
    Reallocation
        What was seen and decided; the stored one when this cutoff, or a later one,
        was looked at before.

    Raises
    ------
    InvalidState
        When the experiment does not run or is not a bandit.
    """
    lock_for_transaction(connection, f"reallocate:{key}")
    # Locked, or a stop could slip in between the check and the new epoch.
    experiment = storage.get_experiment(connection, key, for_update=True)
    policy = experiment.declaration.policy
    if experiment.state is not ExperimentState.RUNNING or policy is None:
        raise InvalidState(
            f"experiment {key!r} is a {experiment.state} "
            f"{experiment.declaration.kind}; only a running bandit is reallocated"
        )
    looks = storage.list_reallocations(connection, experiment.id, last=1)
    if looks and looks[-1].cutoff >= cutoff:
        return looks[-1]
    current = storage.list_epochs(connection, experiment.id, last=1)[-1]
    statistics = reward_statistics(connection, experiment, cutoff=cutoff)
    reason = _reason_to_wait(experiment, policy, statistics)
    epoch = current
    if reason is None:
        epoch, reason = _next_epoch(experiment, current, statistics, cutoff, now)
    if epoch is not current:
        storage.insert_epoch(connection, experiment.id, epoch)
    look = storage.Reallocation(
        cutoff=cutoff,
        epoch=epoch.number,
        moved=epoch is not current,
        statistics=statistics,
        reason=reason,
    )
    look = storage.insert_reallocation(connection, experiment.id, look)
    log.info(
        "reallocated experiment=%s cutoff=%s epoch=%d moved=%s weights=%s",
        key,
        cutoff.isoformat(),
        epoch.number,
        look.moved,
        {variant: round(weight, 4) for variant, weight in epoch.weights.items()},
    )
    return look


def reward_statistics(
    connection: Connection, experiment: Experiment, *, cutoff: datetime
) -> dict[str, dict[str, float]]:
    """Return units and rewards per variant, of units whose window closed by `cutoff`."""
    metric = METRICS[experiment.declaration.reward_metric]
    pooled = {each.key: Moments.zero() for each in experiment.declaration.variants}
    cells = metric_moments(connection, experiment, metric, cutoff=cutoff)
    for (variant, _, _), moments in cells.items():
        pooled[variant] += moments
    return {
        variant: {
            "units": moments.n,
            "reward_sum": moments.sum_y,
            "reward_sum_squares": moments.sum_yy,
        }
        for variant, moments in pooled.items()
    }


def _ruled_variants(experiment: Experiment, policy: PolicySpecification) -> list[str]:
    """Return the variants that the policy rules; a fixed control share is outside."""
    return [
        variant.key
        for variant in experiment.declaration.variants
        if not (variant.control and policy.control_share > 0)
    ]


def _reason_to_wait(
    experiment: Experiment,
    policy: PolicySpecification,
    statistics: Mapping[str, Mapping[str, float]],
) -> str | None:
    for variant in _ruled_variants(experiment, policy):
        units = statistics[variant]["units"]
        if units < policy.minimum_units:
            return (
                f"weights stay: variant {variant!r} has {units:.0f} units with a closed "
                f"window of the {policy.minimum_units} it needs"
            )
    return None


def _next_epoch(
    experiment: Experiment,
    current: Epoch,
    statistics: Mapping[str, Mapping[str, float]],
    cutoff: datetime,
    now: datetime,
) -> tuple[Epoch, str]:
    """Return the epoch that the statistics call for, or the current one if equal."""
    policy = experiment.declaration.policy
    assert policy is not None  # noqa: S101 - the caller has refused other experiments
    number = current.number + 1
    metric = METRICS[experiment.declaration.reward_metric]
    epoch = Epoch(
        number=number,
        weights=current.weights,
        floor=policy.floor,
        control_share=policy.control_share,
        statistics=statistics,
        cutoff=cutoff,
        policy={
            "name": policy.name,
            "parameters": dict(policy.parameters),
            "lower_is_better": metric.direction == "lower",
            "control": experiment.declaration.control.key,
        },
        seed=epoch_seed(experiment.variant_salt, number),
        reason=f"{policy.name} on rewards up to {cutoff.isoformat()}",
        started_at=now,
    )
    weights = compute_weights(epoch)
    if all(abs(weights[v] - current.weights[v]) < _SAME for v in weights):
        return current, "weights stay: the policy gives the weights in force"
    return replace(epoch, weights=weights), epoch.reason


def compute_weights(epoch: Epoch) -> dict[str, float]:
    """Compute the weights of an epoch from its own row: statistics, policy and seed.

    Returns
    -------
    dict of str to float
        Per variant, ``floor + (1 - sum of what is reserved) * policy weight``; the
        control's fixed share is outside the policy.

    Raises
    ------
    ValueError
        When the row holds no statistics, such as that of epoch 0.
    """
    if epoch.statistics is None or epoch.policy is None:
        raise ValueError(f"epoch {epoch.number} was not computed by a policy")
    variants = list(epoch.weights)
    control = (
        variants.index(epoch.policy["control"]) if epoch.control_share > 0 else None
    )
    ruled = [variant for i, variant in enumerate(variants) if i != control]
    columns = ("units", "reward_sum", "reward_sum_squares")
    units, sums, squares = (
        np.array([epoch.statistics[variant][column] for variant in ruled], dtype=float)
        for column in columns
    )
    policy = build_policy(epoch.policy["name"], epoch.policy["parameters"])
    preferred = policy.allocate(
        ArmStatistics(
            units=units,
            reward_sum=sums,
            reward_sum_squares=squares,
            lower_is_better=epoch.policy["lower_is_better"],
        ),
        np.random.default_rng(epoch.seed),
    )
    weights = allocate_with_floor(
        preferred,
        floor=epoch.floor,
        control=control,
        control_share=epoch.control_share,
    )
    return {variant: float(w) for variant, w in zip(variants, weights, strict=True)}


def epoch_seed(variant_salt: str, number: int) -> int:
    """Return the seed of an epoch: 63 bits of SHA-256 of salt and number."""
    digest = hashlib.sha256(f"{variant_salt}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
