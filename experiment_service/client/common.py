"""What both clients share: their options, and events as the service wants them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from uuid_utils import uuid7

from experiment_service.client.values import Assignment, Recommendation


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a client behaves.

    Attributes
    ----------
    timeout : float
        Seconds after which a carousel's fallback is shown.
    batch_size : int
        Events that make a batch worth sending at once; at most 1000.
    flush_seconds : float
        Longest time that an event waits for others to go with.
    limit : int
        Events kept while the service does not answer; the oldest go first.
    """

    timeout: float = 1.0
    batch_size: int = 100
    flush_seconds: float = 1.0
    limit: int = 10_000

    def __post_init__(self) -> None:
        for name in ("timeout", "flush_seconds"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if not 1 <= self.batch_size <= 1000:
            raise ValueError(
                f"batch_size is {self.batch_size}; it must lie in 1 to 1000"
            )
        if self.limit < self.batch_size:
            raise ValueError(
                f"limit is {self.limit}; it must be at least batch_size, "
                f"{self.batch_size}"
            )


def headers(api_key: str | None) -> dict[str, str]:
    """Return what goes with every request."""
    return {} if api_key is None else {"x-api-key": api_key}


def interaction(
    kind: str,
    *,
    event_id: str | None,
    exposure_id: str | None,
    unit_id: str | None,
    item_id: str | None,
    category: str | None,
    placement: str | None,
    position: int | None,
    value: float | None,
    occurred_at: datetime | None,
) -> dict[str, Any]:
    """Write an interaction with an id of its own and its time."""
    at = occurred_at or datetime.now(UTC)
    document = {
        "id": event_id or str(uuid7()),
        "kind": kind,
        "exposure_id": exposure_id,
        "unit_id": unit_id,
        "item_id": item_id,
        "category": category,
        "placement": placement,
        "position": position,
        "value": value,
        "occurred_at": at.isoformat(),
    }
    return {name: each for name, each in document.items() if each is not None}


def exposure(shown: Recommendation | Assignment) -> dict[str, Any] | None:
    """Write the exposure of something asked for without; None when it has none."""
    if shown.exposure is None:
        return None
    document: Mapping[str, Any] = shown.exposure
    return {**document, "exposed_at": datetime.now(UTC).isoformat()}
