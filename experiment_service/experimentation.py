"""Create, start, change and stop experiments; every change leaves an audit row.

Functions take a connection whose transaction the entry point owns, so that a change,
its epoch and its audit row are stored together or not at all.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

import numpy as np
from sqlalchemy import Connection

from experiment_service.domain.assignment import Assignment, assign
from experiment_service.domain.configuration import Placement, epoch_document
from experiment_service.domain.declaration import declaration_document
from experiment_service.domain.event import AttributeValue
from experiment_service.domain.experiment import (
    AssignmentMode,
    Declaration,
    Epoch,
    Experiment,
    ExperimentKind,
    ExperimentState,
    Outcome,
    check_key,
    check_weights,
)
from experiment_service.domain.metric import Metric
from experiment_service.errors import Conflict, InvalidRequest, InvalidState, known
from experiment_service.storage import experiments as storage
from policies import POLICIES, ArmStatistics, allocate_with_floor, build_policy
from recommenders import RECOMMENDERS

log = logging.getLogger(__name__)


def create(
    connection: Connection, declaration: Declaration, *, actor: str, now: datetime
) -> Experiment:
    """Store a draft.

    Raises
    ------
    InvalidRequest
        When a variant names an unknown recommender, or the policy is not known or
        can't take its parameters.
    Conflict
        When the key is in use.
    """
    _check_policy(declaration)
    _check_recommenders(connection, declaration)
    experiment = storage.create_experiment(connection, declaration, now=now)
    _audit(connection, experiment, "create", actor, after=declaration)
    log.info("created experiment=%s kind=%s", experiment.key, declaration.kind)
    return experiment


def _check_policy(declaration: Declaration) -> None:
    if declaration.policy is None:
        return
    if declaration.policy.name not in POLICIES:
        raise InvalidRequest(
            f"policy.name is {declaration.policy.name[:80]!r}; known policies: "
            f"{known(POLICIES)}",
            field="policy.name",
        )
    try:
        policy = build_policy(declaration.policy.name, declaration.policy.parameters)
    except ValueError as error:
        raise InvalidRequest(
            f"policy.parameters: {error}", field="policy.parameters"
        ) from error
    name, metric = declaration.policy.name, declaration.reward
    if metric.kind not in policy.reward_kinds:
        able = [
            key for key, each in POLICIES.items() if metric.kind in each.reward_kinds
        ]
        raise InvalidRequest(
            f"reward_metric is {metric.name!r}, a {metric.kind}; policy {name!r} learns "
            f"from {known(policy.reward_kinds)}, and {known(able)} from a {metric.kind}",
            field="reward_metric",
        )
    if policy.segmented != (declaration.policy.segment_by is not None):
        segmented = [key for key, each in POLICIES.items() if each.segmented]
        raise InvalidRequest(
            f"policy.segment_by is missing; policy {name!r} has weights per segment"
            if policy.segmented
            else f"policy.segment_by is given, but policy {name!r} has one table of "
            f"weights for all; {known(segmented)} has one per segment",
            field="policy.segment_by",
        )
    arms = len(declaration.variants) - (declaration.policy.control_share > 0)
    try:
        # A policy may be made for another number of variants.
        policy.allocate(_no_rewards(arms, metric), np.random.default_rng(0))  # noqa: TID251
    except ValueError as error:
        raise InvalidRequest(f"policy {name!r}: {error}", field="policy") from error


def _no_rewards(arms: int, metric: Metric) -> ArmStatistics:
    zeros = np.zeros(arms)
    base = zeros if metric.kind == "ratio" else None
    return ArmStatistics(
        units=zeros,
        reward_sum=zeros,
        reward_sum_squares=zeros,
        base_sum=base,
        base_sum_squares=base,
        reward_base_sum=base,
    )


def _check_recommenders(connection: Connection, declaration: Declaration) -> None:
    names = set(RECOMMENDERS) | set(storage.list_model_names(connection))
    for number, variant in enumerate(declaration.variants):
        if variant.recommender not in names:
            raise InvalidRequest(
                f"variants.{number}.recommender is {variant.recommender!r}; known "
                f"recommenders: {known(names)}",
                field=f"variants.{number}.recommender",
            )


def start(connection: Connection, key: str, *, actor: str, now: datetime) -> Experiment:
    """Let a draft run: it opens epoch 0 with the declared weights.

    Raises
    ------
    InvalidState
        When it is not a draft, or a variant's recommender has no live model.
    Conflict
        When its segments overlap those of a running experiment of the layer, or the
        placement is in use by an experiment of another layer.
    """
    experiment = storage.get_experiment(connection, key, for_update=True)
    declaration = experiment.declaration
    if experiment.state is not ExperimentState.DRAFT:
        raise InvalidState(
            f"experiment {key!r} is {experiment.state}; only a draft can be started"
        )
    storage.lock_placement(connection, declaration.placement)
    storage.lock_layer(connection, declaration.layer)
    _check_live_models(connection, declaration)
    for other in storage.list_experiments(connection, state=ExperimentState.RUNNING):
        _check_exclusive(declaration, other.declaration)
    weights, reason = _initial_allocation(declaration)
    epoch = Epoch(
        number=0,
        weights=weights,
        floor=declaration.policy.floor if declaration.policy else 0.0,
        control_share=declaration.policy.control_share if declaration.policy else 0.0,
        reason=reason,
        started_at=now,
    )
    storage.insert_epoch(connection, experiment.id, epoch)
    started = storage.set_state(
        connection, experiment, ExperimentState.RUNNING, now=now
    )
    _audit(connection, started, "start", actor, before=experiment.state, after=epoch)
    log.info("started experiment=%s weights=%s", key, dict(epoch.weights))
    return started


def _initial_allocation(declaration: Declaration) -> tuple[dict[str, float], str]:
    """Return epoch 0's weights; a bandit's obey its floor and control share."""
    initial = declaration.initial_weights
    policy = declaration.policy
    if policy is None:
        return initial, "declared weights"
    variants = list(initial)
    control = (
        variants.index(declaration.control.key) if policy.control_share > 0 else None
    )
    ruled = [v for i, v in enumerate(variants) if i != control]
    total = sum(initial[variant] for variant in ruled)
    weights = allocate_with_floor(
        [initial[variant] / total for variant in ruled],
        floor=policy.floor,
        control=control,
        control_share=policy.control_share,
    )
    return (
        {variant: float(w) for variant, w in zip(variants, weights, strict=True)},
        "declared weights with floor and control share",
    )


def _check_live_models(connection: Connection, declaration: Declaration) -> None:
    live = storage.list_model_names(connection, live=True)
    missing = {variant.recommender for variant in declaration.variants} - set(live)
    if missing:
        raise InvalidState(
            f"no live model of {known(missing)}; live models: {known(live)}; run "
            "`experiment-service train` first"
        )


def _check_exclusive(new: Declaration, running: Declaration) -> None:
    if new.layer != running.layer:
        if new.placement == running.placement:
            raise Conflict(
                f"placement {new.placement!r} is used by running experiment "
                f"{running.key!r} of layer {running.layer!r}; experiments of one "
                "placement must share a layer and own different segments",
                field="layer",
            )
        return
    if new.segments[0] < running.segments[1] and running.segments[0] < new.segments[1]:
        raise Conflict(
            f"segments {new.segments[0]} to {new.segments[1]} of layer {new.layer!r} "
            f"overlap those of running experiment {running.key!r}, "
            f"{running.segments[0]} to {running.segments[1]}",
            field="segments",
        )


def stop(
    connection: Connection, key: str, *, actor: str, now: datetime, reason: str = ""
) -> Experiment:
    """End a running experiment; its placement goes back to its own recommender.

    Raises
    ------
    InvalidState
        When it does not run.
    """
    experiment = _running(connection, key, "stopped")
    stopped = storage.set_state(
        connection, experiment, ExperimentState.STOPPED, now=now
    )
    _audit(
        connection,
        stopped,
        "stop",
        actor,
        before=experiment.state,
        after=stopped.state,
        reason=reason,
    )
    log.info("stopped experiment=%s", key)
    return stopped


def decide(
    connection: Connection,
    key: str,
    outcome: Outcome,
    *,
    variant: str | None = None,
    reason: str,
    actor: str,
) -> None:
    """Store what was decided after a stopped experiment; a later decision replaces it.

    It changes nothing that serves: `set-placement` does.

    Raises
    ------
    InvalidState
        When the experiment is not stopped.
    InvalidRequest
        When the reason is missing, a variant ships and none or the control is named, or
        none ships and one is named.
    """
    experiment = storage.get_experiment(connection, key, for_update=True)
    if experiment.state is not ExperimentState.STOPPED:
        raise InvalidState(
            f"experiment {key!r} is {experiment.state}; stop it before a decision"
        )
    declaration = experiment.declaration
    others = [v.key for v in declaration.variants if not v.control]
    if outcome is Outcome.SHIP and variant not in others:
        raise InvalidRequest(
            f"variant is {variant!r}; what ships must be one of {known(others)}",
            field="variant",
        )
    if outcome is not Outcome.SHIP and variant is not None:
        raise InvalidRequest(
            f"variant is {variant[:80]!r}, but the outcome is {outcome}; name one only "
            "if it ships",
            field="variant",
        )
    if not reason.strip():
        raise InvalidRequest(
            "reason is empty; say why, for those who ask later", field="reason"
        )
    former = storage.last_decision(connection, key)
    storage.record_audit(
        connection,
        actor=actor,
        action=storage.DECIDE,
        subject=f"experiment/{key}",
        before=former and former.after,
        after={"outcome": outcome.value, "variant": variant},
        reason=reason,
    )
    log.info("decided experiment=%s outcome=%s variant=%s", key, outcome, variant)


def set_weights(
    connection: Connection,
    key: str,
    weights: Mapping[str, float],
    *,
    actor: str,
    now: datetime,
    reason: str = "",
) -> Epoch:
    """Open a new epoch of a running A/B test with other weights.

    Raises
    ------
    InvalidState
        When it does not run, or is a bandit, whose weights its policy sets.
    InvalidRequest
        When weights do not name each variant once or do not sum to 1.
    """
    experiment = _running(connection, key, "given weights")
    if experiment.declaration.kind is ExperimentKind.BANDIT:
        raise InvalidState(
            f"experiment {key!r} is a bandit; its policy sets the weights"
        )
    check_weights(weights, [each.key for each in experiment.declaration.variants])
    current = storage.list_epochs(connection, experiment.id, last=1)[0]
    epoch = Epoch(
        number=current.number + 1,
        weights=dict(weights),
        reason=reason or f"weights set by {actor}",
        started_at=now,
    )
    storage.insert_epoch(connection, experiment.id, epoch)
    _audit(
        connection,
        experiment,
        "set_weights",
        actor,
        before=current,
        after=epoch,
        reason=reason,
    )
    log.info("set weights experiment=%s epoch=%d", key, epoch.number)
    return epoch


def set_overrides(
    connection: Connection,
    key: str,
    overrides: Mapping[str, str],
    *,
    actor: str,
) -> Experiment:
    """Replace the units that testers send to a variant of their choice.

    Raises
    ------
    InvalidState
        When the experiment has stopped.
    InvalidRequest
        When an override names an unknown variant.
    """
    experiment = storage.get_experiment(connection, key, for_update=True)
    if experiment.state is ExperimentState.STOPPED:
        raise InvalidState(f"experiment {key!r} is stopped; it can't be changed")
    declaration = replace(experiment.declaration, overrides=dict(overrides))
    changed = storage.set_declaration(connection, experiment, declaration)
    _audit(
        connection,
        changed,
        "set_overrides",
        actor,
        before=experiment.declaration,
        after=declaration,
    )
    return changed


def set_placement(
    connection: Connection,
    key: str,
    *,
    recommender: str,
    settings: Mapping[str, AttributeValue],
    actor: str,
) -> Placement:
    """Say what a placement shows outside experiments; makes it when it is new.

    Raises
    ------
    InvalidRequest
        When the recommender has no live model.
    """
    check_key("placement", key)
    live = storage.list_model_names(connection, live=True)
    if recommender not in live:
        raise InvalidRequest(
            f"recommender is {recommender[:80]!r}; live models: {known(live)}",
            field="recommender",
        )
    before = storage.list_placements(connection).get(key)
    placement = Placement(key=key, recommender=recommender, settings=dict(settings))
    storage.set_placement(connection, placement)
    storage.record_audit(
        connection,
        actor=actor,
        action="set_placement",
        subject=f"placement/{key}",
        before=_placement_document(before),
        after=_placement_document(placement),
    )
    return placement


def explain(
    connection: Connection,
    key: str,
    unit_id: str,
    attributes: Mapping[str, AttributeValue],
) -> Assignment:
    """Say which variant a unit gets now, and which step decided it.

    Raises
    ------
    InvalidState
        When the experiment was never started.
    """
    experiment = storage.get_experiment(connection, key)
    epochs = storage.list_epochs(connection, experiment.id)
    if not epochs:
        raise InvalidState(
            f"experiment {key!r} is a draft; start it to see assignments"
        )
    first_epoch = None
    if experiment.declaration.mode is AssignmentMode.STICKY:
        number = storage.first_epoch_of(connection, experiment.id, unit_id)
        first_epoch = None if number is None else epochs[number]
    return assign(experiment, epochs[-1], unit_id, attributes, first_epoch=first_epoch)


def _running(connection: Connection, key: str, participle: str) -> Experiment:
    experiment = storage.get_experiment(connection, key, for_update=True)
    if experiment.state is not ExperimentState.RUNNING:
        raise InvalidState(
            f"experiment {key!r} is {experiment.state}; only a running one can be "
            f"{participle}"
        )
    return experiment


def _placement_document(placement: Placement | None) -> object:
    if placement is None:
        return None
    return {"recommender": placement.recommender, "settings": dict(placement.settings)}


def _audit(
    connection: Connection,
    experiment: Experiment,
    action: str,
    actor: str,
    *,
    before: Declaration | Epoch | ExperimentState | None = None,
    after: Declaration | Epoch | ExperimentState | None = None,
    reason: str = "",
) -> None:
    storage.record_audit(
        connection,
        actor=actor,
        action=action,
        subject=f"experiment/{experiment.key}",
        before=_document(before),
        after=_document(after),
        reason=reason or None,
    )


def _document(value: Declaration | Epoch | ExperimentState | None) -> object:
    if isinstance(value, ExperimentState):
        return {"state": value.value}
    if isinstance(value, Epoch):
        return epoch_document(value)
    return None if value is None else declaration_document(value)
