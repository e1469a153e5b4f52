"""Exposures: what is recorded when a unit is served, now or after a prefetch.

Pure functions of a snapshot and a decision or a document; the caller stores the result.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from uuid import RFC_4122, UUID

from experiment_service.domain.assignment import assign
from experiment_service.domain.event import (
    MAX_AGE,
    MAX_AHEAD,
    AttributeValue,
    Exposure,
    check_instant,
)
from experiment_service.errors import InvalidRequest, NotFound, known
from experiment_service.serving.answer import Carousel, Decision, is_fallback
from experiment_service.serving.snapshot import ServedExperiment, Snapshot


def make_exposure(
    decision: Decision,
    carousel: Carousel,
    unit_id: str,
    attributes: Mapping[str, AttributeValue],
    *,
    exposure_id: UUID,
    now: datetime,
) -> Exposure | None:
    """Return what to record; None for a unit that is outside or has an override."""
    served, assignment = decision.served, decision.assignment
    if served is None or assignment is None or not assignment.counted:
        return None
    if (
        assignment.variant is None
        or assignment.epoch is None
        or assignment.propensity is None
    ):
        raise AssertionError("a counted assignment has variant, epoch and propensity")
    return Exposure(
        id=exposure_id,
        experiment_id=served.experiment.id,
        unit_id=unit_id,
        variant=assignment.variant,
        epoch=assignment.epoch,
        propensity=assignment.propensity,
        model=carousel.model,
        items=tuple(carousel.items),
        sources=tuple(carousel.sources),
        fallback=carousel.fallback,
        context=attributes,
        exposed_at=now,
        segment=assignment.segment,
    )


def verify_exposure(
    snapshot: Snapshot,
    *,
    exposure_id: UUID,
    experiment: str,
    unit_id: str,
    variant: str,
    epoch: int,
    model: str,
    items: Sequence[str],
    sources: Sequence[str],
    attributes: Mapping[str, AttributeValue],
    exposed_at: datetime | None,
    now: datetime,
) -> Exposure:
    """Rebuild the exposure of a prefetched carousel that was shown later.

    The assignment is computed again with the weights and salt of the epoch it names, so
    a client can neither choose a variant nor a propensity.

    Raises
    ------
    InvalidRequest
        Names what does not fit.
    """
    _check_exposure_id(exposure_id, now=now)
    served = _running(snapshot, experiment)
    if epoch not in served.epochs:
        raise InvalidRequest(
            f"epoch is {epoch}; experiment {experiment!r} has epochs "
            f"{min(served.epochs)} to {max(served.epochs)} at hand",
            field="epoch",
        )
    assignment = assign(served.experiment, served.epochs[epoch], unit_id, attributes)
    if not assignment.counted or assignment.propensity is None:
        raise InvalidRequest(
            f"unit_id {unit_id[:40]!r} has no exposure in experiment {experiment!r}: "
            f"{assignment.reason}",
            field="unit_id",
        )
    if assignment.variant != variant:
        raise InvalidRequest(
            f"variant is {variant[:80]!r}; in epoch {epoch} the unit has variant "
            f"{assignment.variant!r}",
            field="variant",
        )
    recommender = served.variants[variant].recommender
    return Exposure(
        id=exposure_id,
        experiment_id=served.experiment.id,
        unit_id=unit_id,
        variant=variant,
        epoch=epoch,
        propensity=assignment.propensity,
        model=model,
        items=tuple(items),
        sources=tuple(sources),
        # An assignment without items shows what the client has: nothing fell back.
        fallback=bool(sources) and is_fallback(recommender, sources),
        context=attributes,
        exposed_at=now
        if exposed_at is None
        else check_instant("exposed_at", exposed_at, now=now),
        segment=assignment.segment,
    )


def _running(snapshot: Snapshot, experiment: str) -> ServedExperiment:
    try:
        running = snapshot.configuration.experiment(experiment)
    except NotFound as error:
        raise InvalidRequest(error.message, field="experiment") from error
    if running is None:
        state = snapshot.configuration.states[experiment]
        raise InvalidRequest(
            f"experiment {experiment!r} is {state}; exposures are taken while it runs; "
            f"running: {known(snapshot.experiments)}",
            field="experiment",
        )
    return snapshot.experiments[experiment]


def _check_exposure_id(exposure_id: UUID, *, now: datetime) -> None:
    if exposure_id.version != 7 or exposure_id.variant != RFC_4122:
        raise InvalidRequest(
            f"exposure_id {exposure_id} is not a UUIDv7; send back the one of the answer",
            field="exposure_id",
        )
    # Milliseconds of a UUIDv7 reach beyond what a datetime holds: compare numbers.
    made = (exposure_id.int >> 80) / 1000
    if not (now - MAX_AGE).timestamp() <= made <= (now + MAX_AHEAD).timestamp():
        raise InvalidRequest(
            f"exposure_id {exposure_id} is out of range; it must have been made within "
            f"the last {MAX_AGE.days} days and not in the future "
            f"(it is {now.astimezone(UTC).isoformat()})",
            field="exposure_id",
        )
