"""What a process has answered, counted in plain structures; owned by its event loop."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from experiment_service.counting import BATCH_BOUNDS, Histogram
from experiment_service.domain.event import EVENT_KINDS

EventName = Literal["exposure", "interaction"]

#: Fields by which a refused event is counted; clients can make up any other name.
_FIELDS = frozenset(
    {
        "epoch",
        "experiment",
        "exposed_at",
        "exposure_id",
        "id",
        "item_id",
        "kind",
        "occurred_at",
        "position",
        "unit_id",
        "value",
        "variant",
    }
)


class Tally:
    """Counts since the process started.

    Attributes
    ----------
    responses : Counter
        By (method and route, status).
    turned_away : Counter
        By (method and route, reason): requests refused whatever they asked for.
    assignments : Counter
        By (experiment, variant, whether an exposure was logged with it).
    events : Counter
        Accepted events by kind: ``exposure`` or a kind of interaction.
    refusals : Counter
        Refused events by (``exposure`` or ``interaction``, offending field).
    request_events : Histogram
        Events per request that sends events.
    """

    def __init__(self) -> None:
        self.responses: Counter[tuple[str, int]] = Counter()
        self.turned_away: Counter[tuple[str, str]] = Counter()
        self.assignments: Counter[tuple[str, str, bool]] = Counter()
        self.events: Counter[str] = Counter(
            dict.fromkeys(("exposure", *EVENT_KINDS), 0)
        )
        self.refusals: Counter[tuple[str, str]] = Counter()
        self.request_events = Histogram(BATCH_BOUNDS)

    def assigned(self, experiment: str, variant: str, *, logged: bool) -> None:
        """Count an answer that names a variant."""
        self.assignments[experiment, variant, logged] += 1
        if logged:
            self.events["exposure"] += 1

    def received(
        self,
        event: EventName,
        accepted: Iterable[str],
        refused_fields: Iterable[str | None],
    ) -> None:
        """Count the events of one request.

        Parameters
        ----------
        accepted : iterable of str
            Kind of each good one.
        refused_fields : iterable of str or None
            What each other one was refused for.
        """
        size = 0
        for kind in accepted:
            self.events[kind] += 1
            size += 1
        for field in refused_fields:
            known = field if field in _FIELDS else "other"
            self.refusals[event, known or "other"] += 1
            size += 1
        self.request_events.add(size)
