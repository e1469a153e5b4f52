"""Move a bandit's weights: recompute them from stored rows up to a cutoff.

A reallocation is a function of rows and a cutoff, so a retry, a late job or a second
worker changes nothing: cutoffs are aligned to the schedule and unique in the database.
"""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from sqlalchemy import Connection

from experiment_service.domain.experiment import (
    Epoch,
    EpochSegment,
    Experiment,
    ExperimentKind,
    ExperimentState,
    PolicySpecification,
)
from experiment_service.errors import InvalidState
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import lock_for_transaction
from experiment_service.storage.reads import reward_sums
from policies import ArmStatistics, allocate_with_floor, build_policy
from policies.base import FloatArray

log = logging.getLogger(__name__)

_SAME = 1e-12
# Names of the sums that a policy learns from, and what the database calls them.
_COLUMNS = {"units": "n", "reward_sum": "sum_y", "reward_sum_squares": "sum_yy"}
_BASE_COLUMNS = {
    "base_sum": "sum_x",
    "base_sum_squares": "sum_xx",
    "reward_base_sum": "sum_xy",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardStatistics:
    """Sufficient statistics of rewards, as an epoch keeps them.

    Attributes
    ----------
    pooled : mapping of str to dict
        Sums by variant: units, reward_sum, reward_sum_squares, and of a ratio those of
        its base.
    segments : mapping of str to such mapping, or None
        The same by segment; None when the policy has no segments.
    """

    pooled: Mapping[str, Mapping[str, float]]
    segments: Mapping[str, Mapping[str, Mapping[str, float]]] | None


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
    reason = _reason_to_wait(experiment, policy, statistics.pooled)
    epoch = current
    if reason is None:
        epoch, reason = _next_epoch(experiment, current, statistics, cutoff, now)
    if epoch is not current:
        storage.insert_epoch(connection, experiment.id, epoch)
    look = storage.Reallocation(
        cutoff=cutoff,
        epoch=epoch.number,
        moved=epoch is not current,
        statistics=statistics.pooled,
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
) -> RewardStatistics:
    """Return units and rewards of units whose window closed by `cutoff`.

    Where the policy discounts, each unit counts as much as its age leaves it.
    """
    policy = experiment.declaration.policy
    half_life = None
    if policy is not None:
        half_life = build_policy(policy.name, policy.parameters).half_life
    metric = experiment.declaration.reward
    found = reward_sums(
        connection, experiment, metric, cutoff=cutoff, half_life=half_life
    )
    columns = _COLUMNS if metric.kind != "ratio" else _COLUMNS | _BASE_COLUMNS

    def sums(segment: str | None, variant: str) -> dict[str, float]:
        read = found.get((segment, variant), {})
        return {column: read.get(name, 0.0) for column, name in columns.items()}

    variants = [each.key for each in experiment.declaration.variants]
    if policy is None or policy.segment_by is None:
        return RewardStatistics(
            pooled={variant: sums(None, variant) for variant in variants}, segments=None
        )
    segments = {
        name: {variant: sums(name, variant) for variant in variants}
        for name in sorted(policy.segment_by.names)
    }
    pooled = {
        variant: {
            column: math.fsum(each[variant][column] for each in segments.values())
            for column in columns
        }
        for variant in variants
    }
    return RewardStatistics(pooled=pooled, segments=segments)


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
    statistics: RewardStatistics,
    cutoff: datetime,
    now: datetime,
) -> tuple[Epoch, str]:
    """Return the epoch that the statistics call for, or the current one if equal."""
    policy = experiment.declaration.policy
    assert policy is not None  # noqa: S101 - the caller has refused other experiments
    number = current.number + 1
    metric = experiment.declaration.reward
    segments = None
    if statistics.segments is not None:
        segments = {
            name: EpochSegment(weights=current.weights_of(name), statistics=each)
            for name, each in statistics.segments.items()
        }
    epoch = compute_weights(
        Epoch(
            number=number,
            weights=current.weights,
            segments=segments,
            floor=policy.floor,
            control_share=policy.control_share,
            statistics=statistics.pooled,
            cutoff=cutoff,
            policy={
                "name": policy.name,
                "parameters": dict(policy.parameters),
                "lower_is_better": metric.direction == "lower",
                "control": experiment.declaration.control.key,
                # The order of a policy's arms, which JSON objects do not keep.
                "variants": [each.key for each in experiment.declaration.variants],
            },
            seed=epoch_seed(experiment.variant_salt, number),
            reason=f"{policy.name} on rewards up to {cutoff.isoformat()}",
            started_at=now,
        )
    )
    names = [None] if segments is None else list(segments)
    if all(
        abs(epoch.weights_of(name)[v] - current.weights_of(name)[v]) < _SAME
        for name in names
        for v in current.weights
    ):
        return current, "weights stay: the policy gives the weights in force"
    return epoch, epoch.reason


def compute_weights(epoch: Epoch) -> Epoch:
    """Compute the weights of an epoch from its own row: statistics, policy and seed.

    Returns
    -------
    Epoch
        With weights per variant, ``floor + (1 - sum of what is reserved) * policy
        weight``; the control's fixed share is outside the policy. With segments, each
        has its own, and those of all are their mean by units.

    Raises
    ------
    ValueError
        When the row holds no statistics, such as that of epoch 0.
    """
    if epoch.statistics is None or epoch.policy is None:
        raise ValueError(f"epoch {epoch.number} was not computed by a policy")
    variants = list(epoch.policy["variants"])
    control = (
        variants.index(epoch.policy["control"]) if epoch.control_share > 0 else None
    )
    ruled = [variant for i, variant in enumerate(variants) if i != control]
    policy = build_policy(epoch.policy["name"], epoch.policy["parameters"])
    tables = [epoch.statistics]
    if epoch.segments is not None:
        tables = [each.statistics for each in epoch.segments.values()]
    columns = tables[0][variants[0]]
    sums = {
        column: np.array(
            [[table[variant][column] for variant in ruled] for table in tables]
        )
        for column in columns
    }
    if epoch.segments is None:
        sums = {column: rows[0] for column, rows in sums.items()}
    preferred = policy.allocate(
        ArmStatistics(**sums, lower_is_better=epoch.policy["lower_is_better"]),
        np.random.default_rng(epoch.seed),
    )
    rows = [
        allocate_with_floor(
            row, floor=epoch.floor, control=control, control_share=epoch.control_share
        )
        for row in np.atleast_2d(preferred)
    ]
    if epoch.segments is None:
        return replace(epoch, weights=_named(variants, rows[0]))
    units = np.array([sum(table[v]["units"] for v in variants) for table in tables])
    shares = (
        units / units.sum() if units.sum() > 0 else np.full(len(units), 1 / len(units))
    )
    return replace(
        epoch,
        weights=_named(variants, shares @ np.array(rows)),
        segments={
            name: replace(each, weights=_named(variants, row))
            for (name, each), row in zip(epoch.segments.items(), rows, strict=True)
        },
    )


def _named(variants: Sequence[str], weights: FloatArray) -> dict[str, float]:
    return {variant: float(w) for variant, w in zip(variants, weights, strict=True)}


def epoch_seed(variant_salt: str, number: int) -> int:
    """Return the seed of an epoch: 63 bits of SHA-256 of salt and number."""
    digest = hashlib.sha256(f"{variant_salt}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
