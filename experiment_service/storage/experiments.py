"""Experiments, epochs, placements and the audit log in the database.

Functions take a connection and return domain values; nobody here commits or decides.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError

from experiment_service.domain.configuration import (
    RECENT_EPOCHS,
    Configuration,
    LiveModel,
    Placement,
    RunningExperiment,
    ShadowModel,
    parse_segments,
    segments_document,
)
from experiment_service.domain.declaration import (
    declaration_document,
    parse_declaration,
)
from experiment_service.domain.experiment import (
    Declaration,
    Epoch,
    Experiment,
    ExperimentState,
)
from experiment_service.errors import Conflict, NotFound, known
from experiment_service.storage import schema
from experiment_service.storage.database import notify_change, violated_constraint
from experiment_service.storage.erasure import list_erased
from experiment_service.storage.keys import list_keys
from experiment_service.storage.partitions import oldest_id

#: Action in the audit log that holds a decision.
DECIDE = "decide"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reallocation:
    """One scheduled look at a bandit: what it saw and whether the weights moved.

    Attributes
    ----------
    cutoff : datetime
        Last instant used; unique per experiment.
    epoch : int
        The epoch it opened, or the one that stayed.
    statistics : mapping
        Units and rewards per variant.
    """

    cutoff: datetime
    epoch: int
    moved: bool
    statistics: Mapping[str, Mapping[str, float]]
    reason: str
    recorded_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One change: who did what to what, before and after."""

    actor: str
    action: str
    subject: str
    before: Any
    after: Any
    reason: str | None
    recorded_at: datetime


_EXPERIMENTS = select(schema.experiment, schema.layer.c.salt.label("layer_salt")).join(
    schema.layer, schema.layer.c.key == schema.experiment.c.layer
)


def _experiment(row: Row[Any]) -> Experiment:
    return Experiment(
        id=row.id,
        declaration=parse_declaration(row.declaration),
        state=ExperimentState(row.state),
        layer_salt=row.layer_salt,
        traffic_salt=row.traffic_salt,
        variant_salt=row.variant_salt,
        created_at=row.created_at,
        started_at=row.started_at,
        stopped_at=row.stopped_at,
    )


def create_experiment(
    connection: Connection, declaration: Declaration, *, now: datetime
) -> Experiment:
    """Store a draft; its layer and placement come into being with it.

    A new placement shows the control's recommender outside experiments.

    Raises
    ------
    Conflict
        When the key is in use.
    """
    connection.execute(
        upsert(schema.layer)
        .values(key=declaration.layer, salt=_salt("layer"))
        .on_conflict_do_nothing()
    )
    connection.execute(
        upsert(schema.placement)
        .values(
            key=declaration.placement,
            recommender=declaration.control.recommender,
            settings=dict(declaration.control.settings),
        )
        .on_conflict_do_nothing()
    )
    try:
        connection.execute(
            insert(schema.experiment).values(
                key=declaration.key,
                placement=declaration.placement,
                layer=declaration.layer,
                state=ExperimentState.DRAFT,
                declaration=declaration_document(declaration),
                traffic_salt=_salt("traffic"),
                variant_salt=_salt("variant"),
                created_at=now,
            )
        )
    except IntegrityError as error:
        if violated_constraint(error) == schema.UQ_EXPERIMENT_KEY:
            raise Conflict(
                f"experiment {declaration.key!r} exists already; choose another key",
                field="key",
            ) from error
        raise
    return get_experiment(connection, declaration.key)


def _salt(purpose: str) -> str:
    """Return a new hash input; 128 random bits, never shared."""
    return f"{purpose}:{secrets.token_hex(16)}"


def get_experiment(
    connection: Connection, key: str, *, for_update: bool = False
) -> Experiment:
    """Return an experiment; `for_update` locks its row until the transaction ends.

    Raises
    ------
    NotFound
        Lists the experiments that exist.
    """
    question = _EXPERIMENTS.where(schema.experiment.c.key == key)
    if for_update:
        question = question.with_for_update(of=schema.experiment)
    row = connection.execute(question).one_or_none()
    if row is None:
        names = connection.scalars(select(schema.experiment.c.key)).all()
        raise NotFound(
            f"experiment {key[:80]!r} does not exist; experiments: {known(names)}",
            field="experiment",
        )
    return _experiment(row)


def list_experiments(
    connection: Connection, *, state: ExperimentState | None = None
) -> list[Experiment]:
    """Return experiments by key, all or those of one state."""
    question = _EXPERIMENTS.order_by(schema.experiment.c.key)
    if state is not None:
        question = question.where(schema.experiment.c.state == state)
    return [_experiment(row) for row in connection.execute(question)]


def lock_layer(connection: Connection, layer: str) -> None:
    """Make starts in one layer wait for each other until the transaction ends."""
    connection.execute(
        select(schema.layer.c.key).where(schema.layer.c.key == layer).with_for_update()
    )


def lock_placement(connection: Connection, placement: str) -> None:
    """Make starts on one placement wait for each other until the transaction ends."""
    connection.execute(
        select(schema.placement.c.key)
        .where(schema.placement.c.key == placement)
        .with_for_update()
    )


def set_state(
    connection: Connection,
    experiment: Experiment,
    state: ExperimentState,
    *,
    now: datetime,
) -> Experiment:
    """Store a state and its time; the use case has checked the transition."""
    stamp = "started_at" if state is ExperimentState.RUNNING else "stopped_at"
    connection.execute(
        update(schema.experiment)
        .where(schema.experiment.c.id == experiment.id)
        .values({"state": state, stamp: now})
    )
    notify_change(connection)
    return get_experiment(connection, experiment.key)


def set_declaration(
    connection: Connection, experiment: Experiment, declaration: Declaration
) -> Experiment:
    """Replace the declaration, such as for new overrides."""
    connection.execute(
        update(schema.experiment)
        .where(schema.experiment.c.id == experiment.id)
        .values(declaration=declaration_document(declaration))
    )
    notify_change(connection)
    return get_experiment(connection, experiment.key)


def insert_epoch(connection: Connection, experiment_id: int, epoch: Epoch) -> None:
    """Store an epoch.

    Raises
    ------
    Conflict
        When that number exists; another process was first.
    """
    try:
        connection.execute(
            insert(schema.epoch).values(
                experiment_id=experiment_id,
                number=epoch.number,
                weights=dict(epoch.weights),
                segments=segments_document(epoch),
                floor=epoch.floor,
                control_share=epoch.control_share,
                statistics=epoch.statistics,
                cutoff=epoch.cutoff,
                policy=epoch.policy,
                seed=epoch.seed,
                reason=epoch.reason,
                started_at=epoch.started_at,
            )
        )
    except IntegrityError as error:
        if violated_constraint(error) == schema.PK_EPOCH:
            raise Conflict(f"epoch {epoch.number} exists already") from error
        raise
    notify_change(connection)


def list_epochs(
    connection: Connection, experiment_id: int, *, last: int | None = None
) -> list[Epoch]:
    """Return the epochs of an experiment by number, all or the `last` ones."""
    question = (
        select(schema.epoch)
        .where(schema.epoch.c.experiment_id == experiment_id)
        .order_by(schema.epoch.c.number.desc())
        .limit(last)
    )
    rows = connection.execute(question).all()
    return [
        Epoch(
            number=row.number,
            weights=row.weights,
            segments=parse_segments(row.segments),
            floor=row.floor,
            control_share=row.control_share,
            statistics=row.statistics,
            cutoff=row.cutoff,
            policy=row.policy,
            seed=row.seed,
            reason=row.reason,
            started_at=row.started_at,
        )
        for row in reversed(rows)
    ]


def insert_reallocation(
    connection: Connection, experiment_id: int, reallocation: Reallocation
) -> Reallocation:
    """Record a scheduled look, unique by its cutoff; return it as stored."""
    recorded_at = connection.scalar(
        insert(schema.reallocation)
        .values(
            experiment_id=experiment_id,
            cutoff=reallocation.cutoff,
            epoch=reallocation.epoch,
            moved=reallocation.moved,
            statistics=reallocation.statistics,
            reason=reallocation.reason,
        )
        .returning(schema.reallocation.c.recorded_at)
    )
    return replace(reallocation, recorded_at=recorded_at)


def list_reallocations(
    connection: Connection, experiment_id: int, *, last: int | None = None
) -> list[Reallocation]:
    """Return the looks at a bandit by cutoff, all or the `last` ones."""
    question = (
        select(schema.reallocation)
        .where(schema.reallocation.c.experiment_id == experiment_id)
        .order_by(schema.reallocation.c.cutoff.desc())
        .limit(last)
    )
    return [
        Reallocation(
            cutoff=row.cutoff,
            epoch=row.epoch,
            moved=row.moved,
            statistics=row.statistics,
            reason=row.reason,
            recorded_at=row.recorded_at,
        )
        for row in reversed(connection.execute(question).all())
    ]


def get_placement(connection: Connection, key: str) -> Placement:
    """Return a placement.

    Raises
    ------
    NotFound
        Lists the placements that exist.
    """
    placements = list_placements(connection)
    if key not in placements:
        raise NotFound(
            f"placement {key[:80]!r} does not exist; placements: {known(placements)}",
            field="placement",
        )
    return placements[key]


def list_placements(connection: Connection) -> dict[str, Placement]:
    """Return the placements by key."""
    rows = connection.execute(select(schema.placement).order_by(schema.placement.c.key))
    return {
        row.key: Placement(
            key=row.key, recommender=row.recommender, settings=row.settings
        )
        for row in rows
    }


def set_placement(connection: Connection, placement: Placement) -> None:
    """Store what a placement shows outside experiments."""
    values = {
        "recommender": placement.recommender,
        "settings": dict(placement.settings),
    }
    connection.execute(
        upsert(schema.placement)
        .values(key=placement.key, **values)
        .on_conflict_do_update(index_elements=["key"], set_=values)
    )
    notify_change(connection)


def load_configuration(connection: Connection, *, now: datetime) -> Configuration:
    """Read all that serving must know, in one transaction."""
    running = {
        experiment.key: RunningExperiment(
            experiment=experiment,
            epochs={
                epoch.number: _for_serving(epoch)
                for epoch in list_epochs(connection, experiment.id, last=RECENT_EPOCHS)
            },
        )
        for experiment in list_experiments(connection, state=ExperimentState.RUNNING)
    }
    states = connection.execute(
        select(schema.experiment.c.key, schema.experiment.c.state)
    )
    serving = _serving_versions(connection)
    return Configuration(
        placements=list_placements(connection),
        running=running,
        states={row.key: row.state for row in states},
        models={row.name: _live_model(row) for row in serving if row.status == "live"},
        shadows=tuple(
            ShadowModel(
                version_id=row.id, model=_live_model(row), share=row.shadow_share
            )
            for row in serving
            if row.status == "shadow"
        ),
        loaded_at=now,
        # The days of use change all the time, and no answer depends on them.
        keys={key.id: replace(key, used_on=None) for key in list_keys(connection)},
        erased=list_erased(connection),
        oldest_id=oldest_id(connection),
    )


def _serving_versions(connection: Connection) -> Sequence[Row[Any]]:
    """Return the versions that are live or shadow, by name and version."""
    version = schema.model_version
    question: Select[Any] = (
        select(
            version.c.id,
            version.c.name,
            version.c.version,
            version.c.artifact,
            version.c.sha256,
            version.c.data_to,
            version.c.data_digest,
            version.c.status,
            version.c.shadow_share,
        )
        .where(version.c.status.in_(("live", "shadow")))
        .order_by(version.c.name, version.c.version)
    )
    return connection.execute(question).all()


def _live_model(row: Row[Any]) -> LiveModel:
    return LiveModel(
        name=row.name,
        version=row.version,
        artifact=row.artifact,
        sha256=row.sha256,
        data_to=row.data_to,
        data_digest=row.data_digest,
    )


def _for_serving(epoch: Epoch) -> Epoch:
    """Leave out what the weights of segments were computed from: it may be much."""
    if epoch.segments is None:
        return epoch
    return replace(
        epoch,
        segments={
            name: replace(each, statistics={}) for name, each in epoch.segments.items()
        },
    )


def sticky_epochs_since(
    connection: Connection, experiment_id: int, since: datetime | None
) -> list[tuple[str, int]]:
    """Return (unit, epoch of its first exposure) of units recorded since an instant.

    A unit is recorded some time before it is seen, as its transaction takes a while:
    ask again with an overlap.
    """
    exposed = schema.unit_exposure
    question = (
        select(exposed.c.unit_id, func.min(exposed.c.epoch))
        .where(exposed.c.experiment_id == experiment_id)
        .group_by(exposed.c.unit_id)
    )
    if since is not None:
        question = question.where(exposed.c.recorded_at >= since)
    return [(unit, epoch) for unit, epoch in connection.execute(question)]


def first_epoch_of(
    connection: Connection, experiment_id: int, unit_id: str
) -> int | None:
    """Return the epoch of a unit's first exposure, None when it has none."""
    exposed = schema.unit_exposure
    number = connection.scalar(
        select(func.min(exposed.c.epoch)).where(
            exposed.c.experiment_id == experiment_id, exposed.c.unit_id == unit_id
        )
    )
    return None if number is None else int(number)


def list_model_names(connection: Connection, *, live: bool = False) -> list[str]:
    """Return the names of models in the registry, all or those that serve."""
    version = schema.model_version
    question = select(version.c.name).distinct().order_by(version.c.name)
    if live:
        question = question.where(version.c.status == "live")
    return list(connection.scalars(question))


def record_audit(
    connection: Connection,
    *,
    actor: str,
    action: str,
    subject: str,
    before: object = None,
    after: object = None,
    reason: str | None = None,
) -> None:
    """Write down a change, in the transaction that makes it."""
    connection.execute(
        insert(schema.audit).values(
            actor=actor,
            action=action,
            subject=subject,
            before=before,
            after=after,
            reason=reason,
        )
    )


def last_decision(connection: Connection, key: str) -> AuditEntry | None:
    """Return the latest decision on an experiment, None when there is none."""
    decided = [
        entry
        for entry in list_audit(connection, f"experiment/{key}")
        if entry.action == DECIDE
    ]
    return decided[-1] if decided else None


def list_audit(connection: Connection, subject: str) -> list[AuditEntry]:
    """Return the changes of one thing, such as ``experiment/home-carousel``."""
    rows = connection.execute(
        select(schema.audit)
        .where(schema.audit.c.subject == subject)
        .order_by(schema.audit.c.id)
    )
    return [
        AuditEntry(
            actor=row.actor,
            action=row.action,
            subject=row.subject,
            before=row.before,
            after=row.after,
            reason=row.reason,
            recorded_at=row.recorded_at,
        )
        for row in rows
    ]
