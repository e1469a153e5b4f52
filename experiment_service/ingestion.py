"""Ingestion: events from the door to the journal, and from the journal to the database.

`accept_interactions` judges what clients send, `encode` and `decode` are the journal's
format, a `Writer` moves what waits. The module knows neither HTTP nor SQL.
"""

import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from pydantic_core import SchemaValidator, from_json, to_json
from pydantic_core.core_schema import uuid_schema
from sqlalchemy import Engine

from experiment_service.counting import BATCH_BOUNDS, Histogram
from experiment_service.domain.event import (
    MAX_VALUE,
    Exposure,
    Interaction,
    check_id,
    check_instant,
    event_uuid,
    is_uuid7_of_time,
)
from experiment_service.errors import InvalidRequest, Unavailable, known
from experiment_service.journal import Journal
from experiment_service.storage.database import transaction
from experiment_service.storage.events import store_events

log = logging.getLogger(__name__)

_SHOWN = 60
_UNSHOWN = 10**_SHOWN
_LOGGED = 300
_UUID_LENGTH = 36
# Reads what `to_json` wrote, and other forms, in a fifth of the time that `UUID` takes.
_read_uuid: Callable[[object], UUID] = SchemaValidator(uuid_schema()).validate_python

_BATCH = 10_000
# Batches of one journal before it is the turn of the next, and those stored at a time: one
# is read and sent while PostgreSQL works on the other. Writers take turns there.
_BATCHES = 8
_AT_ONCE = 2
# Pause after a batch that was not full, and after one with few events: a transaction costs
# as much as some 200 events, whatever is in it, and a large one holds up serving.
_GATHER_SECONDS = 0.05
_FEW, _FEW_SECONDS = 200, 0.25
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_ADOPTION_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why one event of a request was not taken.

    Attributes
    ----------
    index : int
        Its place in the request, from 0.
    id : str or None
        Its id, when it has one that is fit to be shown.
    reason : str
        Names the field, the value and the rule.
    field : str or None
        The offending field; None when the event as a whole is.
    """

    index: int
    id: str | None
    reason: str
    field: str | None


def accept_interactions(
    documents: Sequence[object],
    *,
    now: datetime,
    unit: Callable[[str], str] = str,
    oldest_id: UUID | None = None,
) -> tuple[list[Interaction], list[Refusal]]:
    """Read interactions one by one; a bad one is refused and spoils no other.

    Parameters
    ----------
    documents : sequence
        What JSON gave, whatever its type.
    now : datetime
        UTC; also the time of an interaction that names none.
    unit : callable
        Returns what stands for a unit id.
    oldest_id : UUID, optional
        Smaller ids are of months that were retired: nobody knows any more which of them
        were counted.

    Returns
    -------
    interactions : list of Interaction
        The good ones, in order.
    refusals : list of Refusal
        One for each other document.
    """
    interactions: list[Interaction] = []
    refusals: list[Refusal] = []
    for index, document in enumerate(documents):
        try:
            interactions.append(_interaction(document, now, unit, oldest_id))
        except InvalidRequest as error:
            refusal = Refusal(
                index=index,
                id=_presentable_id(document),
                reason=error.message,
                field=error.field,
            )
            refusals.append(refusal)
    return interactions, refusals


def _interaction(
    document: object,
    now: datetime,
    unit: Callable[[str], str],
    oldest_id: UUID | None,
) -> Interaction:
    if not isinstance(document, dict):
        raise InvalidRequest(f"the event is {_shown(document)}; it must be an object")
    values = _NO_VALUES.copy()
    for name, value in document.items():
        read = _READERS.get(name)
        if read is None:
            field = _shown(name).strip("'\"")
            raise InvalidRequest(
                f"{field} is not a field; the fields are {known(_READERS)}", field=field
            )
        if value is not None:
            values[name] = read(name, value)
    for name in ("id", "kind"):
        if values[name] is None:
            raise InvalidRequest(f"{name} is missing; it is required", field=name)
    if oldest_id is not None and values["id"] < oldest_id:
        raise InvalidRequest(
            f"id is {_shown(document['id'])}, a UUIDv7 of a month whose events have been "
            "retired; give a new event a new id",
            field="id",
        )
    if values["unit_id"] is not None:
        values["unit_id"] = unit(check_id("unit_id", values["unit_id"]))
    occurred_at = values["occurred_at"] or now
    values["occurred_at"] = check_instant("occurred_at", occurred_at, now=now)
    return Interaction(**values)


def _presentable_id(document: object) -> str | None:
    event_id = document.get("id") if isinstance(document, Mapping) else None
    try:
        return check_id("id", event_id) if isinstance(event_id, str) else None
    except InvalidRequest:
        return None  # it would break the answer, and its reason is told anyhow


def _shown(value: object) -> str:
    """Write a value for a message: short, and safe to encode."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and abs(value) >= _UNSHOWN:
        return f"a number of over {_SHOWN} digits"
    shown = repr(value) if isinstance(value, str) else json.dumps(value, default=repr)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def _refuse(name: str, value: object, rule: str) -> InvalidRequest:
    return InvalidRequest(f"{name} is {_shown(value)}; it must be {rule}", field=name)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _refuse(name, value, "a text")
    return value


def _event_id(name: str, value: object) -> UUID:
    parsed = _uuid_of(value)
    if parsed is not None and is_uuid7_of_time(parsed):
        return parsed  # as `event_uuid` would, without reading it again
    return event_uuid(_text(name, value))


def _uuid(name: str, value: object) -> UUID:
    parsed = _uuid_of(value)
    if parsed is None:
        raise _refuse(name, value, "a UUID, as the answer that showed the items has it")
    return parsed


def _uuid_of(value: object) -> UUID | None:
    """Return the UUID of a text with its four hyphens; None for anything else."""
    if not isinstance(value, str) or len(value) != _UUID_LENGTH:
        return None
    try:
        return _read_uuid(value)
    except ValueError:
        return None


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _refuse(name, value, "a whole number")
    if abs(value) >= _UNSHOWN:
        raise _refuse(name, value, "smaller")
    return value


def _amount(name: str, value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refuse(name, value, "a number")
    endless = isinstance(value, float) and not math.isfinite(value)
    if endless or abs(value) > MAX_VALUE:
        raise _refuse(name, value, f"finite and at most {MAX_VALUE:.0e}")
    return Decimal(str(value))


def _instant(name: str, value: object) -> datetime:
    rule = "an instant such as 2026-11-20T09:30:00Z"
    if not isinstance(value, str):
        raise _refuse(name, value, rule)
    try:
        return datetime.fromisoformat(value)
    except ValueError as error:
        raise _refuse(name, value, rule) from error


_READERS: Mapping[str, Callable[[str, object], Any]] = {
    "id": _event_id,
    "exposure_id": _uuid,
    "unit_id": _text,
    "kind": _text,
    "item_id": _text,
    "category": _text,
    "placement": _text,
    "position": _whole,
    "value": _amount,
    "occurred_at": _instant,
}
_NO_VALUES: dict[str, Any] = dict.fromkeys(_READERS)


def encode(event: Exposure | Interaction) -> bytes:
    """Write an event for the journal; `decode` reads exactly the same one."""
    if isinstance(event, Exposure):
        document = {
            "event": "exposure",
            "id": event.id,
            "experiment_id": event.experiment_id,
            "unit_id": event.unit_id,
            "variant": event.variant,
            "epoch": event.epoch,
            "propensity": event.propensity,
            "model": event.model,
            "items": event.items,
            "sources": event.sources,
            "fallback": event.fallback,
            "context": event.context,
            "exposed_at": event.exposed_at,
            "segment": event.segment,
        }
    else:
        document = {
            "event": "interaction",
            "id": event.id,
            "exposure_id": event.exposure_id,
            "unit_id": event.unit_id,
            "kind": event.kind,
            "item_id": event.item_id,
            "category": event.category,
            "placement": event.placement,
            "position": event.position,
            "value": None if event.value is None else str(event.value),
            "occurred_at": event.occurred_at,
        }
    return to_json(document)


def decode(payload: bytes) -> Exposure | Interaction:
    """Read an event from the journal.

    Raises
    ------
    InvalidRequest
        When the payload is damaged, or of another version of this program.
    """
    try:
        return _decoded(from_json(payload, cache_strings="keys"))
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
    ) as error:
        raise InvalidRequest(
            f"the journal's payload can't be read: {error!r}"
        ) from error


def _decoded(document: dict[str, Any]) -> Exposure | Interaction:
    # Fields are named one by one: Python takes as long again to match the names of a
    # dictionary that was read from JSON with those of the constructor.
    take = document.pop
    name = take("event")
    event: Exposure | Interaction
    if name == "exposure":
        event = Exposure(
            id=_read_uuid(take("id")),
            experiment_id=take("experiment_id"),
            unit_id=take("unit_id"),
            variant=take("variant"),
            epoch=take("epoch"),
            propensity=take("propensity"),
            model=take("model"),
            items=tuple(take("items")),
            sources=tuple(take("sources")),
            fallback=take("fallback"),
            context=take("context"),
            exposed_at=datetime.fromisoformat(take("exposed_at")),
            segment=take("segment", None),
        )
    elif name == "interaction":
        exposure_id, value = take("exposure_id"), take("value")
        event = Interaction(
            id=_read_uuid(take("id")),
            exposure_id=None if exposure_id is None else _read_uuid(exposure_id),
            unit_id=take("unit_id"),
            kind=take("kind"),
            item_id=take("item_id"),
            category=take("category", None),
            placement=take("placement", None),
            position=take("position"),
            value=None if value is None else Decimal(value),
            occurred_at=datetime.fromisoformat(take("occurred_at")),
        )
    else:
        raise InvalidRequest(f"the journal's payload is a {name!r:.60}, not an event")
    if document:
        raise LookupError(f"unknown fields: {known(document)}")
    return event


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterStatus:
    """What a writer has done and has before it.

    Attributes
    ----------
    last_success_at : datetime or None
        When it last stored events, UTC; None if it never has.
    last_error : str or None
        Why it can't store events at present, None when it can.
    depth : int
        Events that wait, in this process's journal and those it took over.
    oldest_age_seconds : float or None
        How long the oldest of them has waited.
    set_aside : int
        Events that the database refused for good.
    stored : int
        Events stored since it started.
    batch_counts : list of int
        Transactions that stored them, by `BATCH_BOUNDS` of their events.
    """

    last_success_at: datetime | None
    last_error: str | None
    depth: int
    oldest_age_seconds: float | None
    set_aside: int
    stored: int = 0
    batch_counts: list[int] = field(
        default_factory=lambda: [0] * (len(BATCH_BOUNDS) + 1)
    )


class Writer:
    """A thread that moves events from journals to the database, for ever.

    It deletes events after the commit that stored them; what a crash makes it store
    twice is known by its id. Journals of dead processes in the same directory are taken
    over and removed when they are empty.

    Parameters
    ----------
    journal : Journal
        The one of this process.
    engine : Engine
    follow : bool
        Move events out of the journals of living processes too.
    clock : callable
        Seconds since 1970.

    Attributes
    ----------
    batches : Histogram
        Events per transaction that stored them.
    """

    def __init__(
        self,
        journal: Journal,
        engine: Engine,
        *,
        follow: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._journal = journal
        self._engine = engine
        self._follow = follow
        self._clock = clock
        self.batches = Histogram(BATCH_BOUNDS)
        self._adopted: list[Journal] = []
        self._adopt_at = 0.0
        self._last_success_at: datetime | None = None
        self._last_error: str | None = None
        self._stopping = threading.Event()
        self._deadline = math.inf
        self._counting = threading.Lock()
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="store")
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        """Begin; what waits from an earlier run goes first."""
        self._thread.start()

    def stop(self, drain_timeout: float) -> None:
        """Store what waits and end.

        Parameters
        ----------
        drain_timeout : float
            Seconds after which, or after the first failure, the rest stays on disk for
            the next process.
        """
        self._deadline = time.monotonic() + drain_timeout
        self._stopping.set()
        self._journal.arrived.set()
        if self._thread.is_alive():
            self._thread.join(drain_timeout)
        depth = self.status().depth
        if depth:
            log.warning("events stay in the journal depth=%d", depth)

    def status(self) -> WriterStatus:
        """Return how the writer is doing; never waits."""
        journals = [self._journal, *self._adopted]
        ages = [each.oldest_age for each in journals]
        return WriterStatus(
            last_success_at=self._last_success_at,
            last_error=self._last_error,
            depth=sum(each.depth for each in journals),
            oldest_age_seconds=max(
                (age for age in ages if age is not None), default=None
            ),
            set_aside=sum(each.set_aside_count for each in journals),
            stored=int(self.batches.total),
            batch_counts=list(self.batches.counts),
        )

    def _run(self) -> None:
        self._attempt(self._journal.retry_set_aside)
        pause = _FIRST_PAUSE_SECONDS
        while not self._is_late():
            # Journals that were begun before the end was told are looked for once more.
            ending = self._stopping.is_set()
            if ending:
                self._adopt_at = 0.0
            self._journal.arrived.clear()
            moved = self._attempt(self._move_all)
            if moved is None:
                if self._stopping.wait(pause):
                    break
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                continue
            pause = _FIRST_PAUSE_SECONDS
            if ending and not self._is_waiting():
                break
            self._rest(moved)
        self._pool.shutdown()
        for journal in self._adopted:
            journal.close()

    def _is_late(self) -> bool:
        return self._stopping.is_set() and time.monotonic() > self._deadline

    def _is_waiting(self) -> bool:
        journals = [self._journal, *(self._adopted if self._follow else ())]
        return any(journal.depth for journal in journals)

    def _rest(self, moved: int) -> None:
        if self._stopping.is_set() or moved >= _BATCH:
            return
        if moved or self._follow:
            self._stopping.wait(_FEW_SECONDS if moved < _FEW else _GATHER_SECONDS)
        else:
            self._journal.arrived.wait(_ADOPTION_SECONDS)

    def _attempt(self, action: Callable[[], int]) -> int | None:
        """Return what an action returns; None when it failed, which is told once."""
        try:
            result = action()
        except Exception as error:  # whatever it is, the events must not be given up
            foreseen = isinstance(error, Unavailable)
            reason = str(error) if foreseen else repr(error)[:_LOGGED]
            if self._last_error is None:
                log.error(  # noqa: TRY400 - a trace only where there is a riddle
                    "events wait reason=%s depth=%d",
                    reason,
                    self._journal.depth,
                    exc_info=not foreseen,
                )
            self._last_error = reason
            return None
        if self._last_error is not None:
            log.warning("events are stored again depth=%d", self._journal.depth)
        self._last_error = None
        return result

    def _move_all(self) -> int:
        """Move what waits in each journal, in turns; return the number of events."""
        moved = self._move(self._journal)
        self._adopt()
        for journal in list(self._adopted):
            count = self._move(journal)
            moved += count
            if not count and journal.claim() and not journal.depth:
                self._adopted.remove(journal)
                journal.close(remove=True)
        return moved

    def _adopt(self) -> None:
        if time.monotonic() < self._adopt_at:
            return
        pause = _GATHER_SECONDS if self._follow else _ADOPTION_SECONDS
        self._adopt_at = time.monotonic() + pause
        for journal in Journal.abandoned(self._journal.directory):
            self._adopted.append(journal)
            journal.retry_set_aside(self._journal)
            log.info("journal taken over depth=%d", journal.depth)
        if self._follow:
            for journal in Journal.living(self._journal.directory):
                self._adopted.append(journal)
                journal.retry_set_aside(self._journal)

    def _move(self, journal: Journal) -> int:
        moved = last = 0
        storing: deque[Future[None]] = deque()
        try:
            for _ in range(_BATCHES):
                entries = journal.read(_BATCH, after=last)
                if not entries:
                    break
                storing.append(self._pool.submit(self._store, journal, entries))
                moved, last = moved + len(entries), entries[-1][0]
                if len(entries) < _BATCH:
                    break
                if len(storing) == _AT_ONCE:
                    storing.popleft().result()
        finally:
            # All must have ended before any is read again.
            wait(storing)
        for each in storing:
            each.result()
        return moved

    def _store(self, journal: Journal, entries: Sequence[tuple[int, bytes]]) -> None:
        """Store events, and halve again and again a batch that holds a bad one."""
        try:
            events = [decode(payload) for _, payload in entries]
            with transaction(self._engine) as connection:
                store_events(
                    connection,
                    [event for event in events if isinstance(event, Exposure)],
                    [event for event in events if isinstance(event, Interaction)],
                )
        except InvalidRequest as error:
            if len(entries) == 1:
                self._set_aside(journal, *entries[0], error.message)
                return
            middle = len(entries) // 2
            self._store(journal, entries[:middle])
            self._store(journal, entries[middle:])
            return
        with self._counting:
            self._last_success_at = datetime.fromtimestamp(self._clock(), UTC)
            self.batches.add(len(entries))
        journal.delete([sequence for sequence, _ in entries])

    def _set_aside(
        self, journal: Journal, sequence: int, payload: bytes, reason: str
    ) -> None:
        if journal is self._journal:
            journal.set_aside(sequence, payload, reason)
            return
        # To this process's journal, so that one taken over can be removed.
        self._journal.append([payload]).result()
        journal.delete([sequence])
