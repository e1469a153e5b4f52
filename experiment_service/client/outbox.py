"""Events on their way to the service: batches, retries and bounds; no I/O.

An event has its id before it is first sent, so that whatever is sent twice counts once.
"""

import logging
import random
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import httpx

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0

#: Where each sort of event goes, and what the service calls a batch of it.
ROUTES = {
    "interaction": ("/v1/interactions", "interactions"),
    "exposure": ("/v1/exposures", "exposures"),
}

# The service will never take these, however often they come.
_HOPELESS = frozenset({400, 413, 415, 422})


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Events of one sort that are sent together."""

    sort: str
    events: tuple[dict[str, Any], ...]

    @property
    def path(self) -> str:
        """Where it goes."""
        return ROUTES[self.sort][0]

    @property
    def document(self) -> dict[str, Any]:
        """The body of its request."""
        return {ROUTES[self.sort][1]: list(self.events)}


class Outbox:
    """Events that the service does not have yet, oldest first; safe in threads.

    Parameters
    ----------
    batch_size : int
        Most events of one request.
    limit : int
        Most events kept; beyond it the oldest are given up and counted.

    Attributes
    ----------
    dropped : int
        Events given up because the service did not answer for too long.
    refused : int
        Events that the service refused; the log says why.
    pause : float
        Seconds to wait before the next try; 0 after a success.
    """

    def __init__(self, *, batch_size: int, limit: int) -> None:
        self._batch_size = batch_size
        self._limit = limit
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque()
        self._lock = threading.Lock()
        self._failures = 0
        self.dropped = 0
        self.refused = 0
        self.pause = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether a batch is worth sending at once."""
        return len(self._waiting) >= self._batch_size

    def put(self, sort: str, event: dict[str, Any]) -> None:
        """Add an event; the oldest goes when there is no room."""
        with self._lock:
            self._waiting.append((sort, event))
            while len(self._waiting) > self._limit:
                self._waiting.popleft()
                self.dropped += 1

    def next_batch(self) -> Batch | None:
        """Return the oldest events of one sort; they stay until `settle`."""
        with self._lock:
            if not self._waiting:
                return None
            sort = self._waiting[0][0]
            events: list[dict[str, Any]] = []
            for each, event in self._waiting:
                if each != sort or len(events) == self._batch_size:
                    break
                events.append(event)
            return Batch(sort=sort, events=tuple(events))

    def settle(self, batch: Batch, response: httpx.Response | None) -> bool:
        """Take note of what became of a batch; return whether it is done with.

        Parameters
        ----------
        response : Response or None
            None when there was no answer: the events may have arrived.
        """
        if response is not None and response.is_success:
            self._note_refusals(_details(response, "refused"))
        elif response is not None and response.status_code in _HOPELESS:
            details = _details(response, "error", "details", "refused")
            self._note_refusals(details or [{"reason": response.text[:300]}])
        else:
            self._failures += 1
            self.pause = self._pause_after(response)
            return False
        self._failures, self.pause = 0, 0.0
        done = {id(event) for event in batch.events}
        with self._lock:
            # The oldest may have been given up meanwhile.
            while self._waiting and id(self._waiting[0][1]) in done:
                self._waiting.popleft()
        return True

    def _note_refusals(self, refusals: list[Any]) -> None:
        self.refused += len(refusals)
        for refusal in refusals:
            reason = refusal.get("reason") if isinstance(refusal, dict) else refusal
            log.warning("event refused reason=%s", reason)

    def _pause_after(self, response: httpx.Response | None) -> float:
        pause: float = min(
            FIRST_PAUSE_SECONDS * 2 ** (self._failures - 1), LONGEST_PAUSE_SECONDS
        )
        # Spread, so that the clients of a shop do not all come back at once.
        pause *= random.uniform(0.5, 1.5)  # noqa: S311 - no secret
        asked = "" if response is None else str(response.headers.get("retry-after", ""))
        if asked.isdecimal():
            pause = max(pause, min(float(asked), LONGEST_PAUSE_SECONDS))
        return pause


def _details(response: httpx.Response, *path: str) -> list[Any]:
    try:
        found = response.json()
        for name in path:
            found = found[name]
    except (ValueError, KeyError, TypeError):
        return []
    return found if isinstance(found, list) else []
