"""Shadows: what other versions would have shown, computed and stored beside the answers.

A request is only noted, in a list of bounded length. A thread computes what was noted
and stores it; when it falls behind, or the database is away, shadow answers are dropped
and counted. No request ever waits for one.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from uuid import UUID

from sqlalchemy import Engine
from uuid_utils.compat import uuid7

from experiment_service.domain.shadow import in_shadow
from experiment_service.errors import Unavailable
from experiment_service.serving.answer import Carousel, fill_carousel
from experiment_service.serving.snapshot import OpenShadow, Snapshot
from experiment_service.storage.database import transaction
from experiment_service.storage.shadows import ShadowAnswer, insert_answers

log = logging.getLogger(__name__)

#: Requests that may wait to be computed, and answers that may wait for the database.
MAX_WAITING = 2_000
MAX_UNSTORED = 20_000

#: Seconds between two looks at what was noted; the thread is never woken, which would
#: cost a request more than the note.
_PAUSE_SECONDS = 0.1
_STORE_SECONDS = 1.0
_STORE_ROWS = 1_000
_PROBLEM_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Noted:
    shadow: OpenShadow
    snapshot: Snapshot
    recommender: str
    unit_id: str
    shown: Carousel
    k: int
    item_id: str | None
    recent_item_ids: Sequence[str]
    exclude: Collection[str]
    answer_id: UUID | None


class ShadowRunner:
    """Computes and stores the answers of shadows in a thread of its own.

    Parameters
    ----------
    engine : Engine
        Where answers are stored.
    clock : callable
        Returns the present instant, UTC.

    Attributes
    ----------
    counts : Counter
        Answers by (label of the version, what became of them): ``made``; ``failed``;
        ``dropped``, as too many waited; ``lost``, as they could not be stored.
    """

    def __init__(self, engine: Engine, *, clock: Callable[[], datetime]) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._engine = engine
        self._clock = clock
        self._waiting: deque[_Noted] = deque()
        self._unstored: deque[tuple[str, ShadowAnswer]] = deque()
        self._stopping = threading.Event()
        self._told_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after it has stored what it has."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def note(
        self,
        snapshot: Snapshot,
        recommender: str,
        unit_id: str,
        shown: Carousel,
        *,
        k: int,
        item_id: str | None,
        recent_item_ids: Sequence[str],
        exclude: Collection[str],
        answer_id: UUID | None,
    ) -> None:
        """Note a request for every shadow that gets it; call only where there are some.

        Parameters
        ----------
        snapshot : Snapshot
            What was answered from.
        recommender, unit_id, k, item_id, recent_item_ids, exclude
            As of `fill_carousel`.
        shown : Carousel
            The answer.
        answer_id : UUID or None
            Of the exposure; None when there is none.
        """
        for shadow in snapshot.shadows.get(recommender, ()):
            if not in_shadow(shadow.label, shadow.share, unit_id):
                continue
            if len(self._waiting) >= MAX_WAITING:
                self.counts[shadow.label, "dropped"] += 1
                continue
            self._waiting.append(
                _Noted(
                    shadow=shadow,
                    snapshot=snapshot,
                    recommender=recommender,
                    unit_id=unit_id,
                    shown=shown,
                    k=k,
                    item_id=item_id,
                    recent_item_ids=recent_item_ids,
                    exclude=exclude,
                    answer_id=answer_id,
                )
            )

    def _run(self) -> None:
        stored_at = time.monotonic()
        while True:
            ending = self._stopping.wait(_PAUSE_SECONDS)
            try:
                self._compute()
                if ending or time.monotonic() - stored_at >= _STORE_SECONDS:
                    stored_at = time.monotonic()
                    self._store()
            except Exception as error:  # serving goes on, whatever happens to a shadow
                self._tell(error)
            if ending:
                return

    def _compute(self) -> None:
        for _ in range(len(self._waiting)):  # what comes meanwhile waits its turn
            noted = self._waiting.popleft()
            answer = _answer(noted, now=self._clock())
            outcome = "made" if answer.error is None else "failed"
            self.counts[noted.shadow.label, outcome] += 1
            if len(self._unstored) >= MAX_UNSTORED:
                label, _ = self._unstored.popleft()
                self.counts[label, "lost"] += 1
            self._unstored.append((noted.shadow.label, answer))
            time.sleep(0)  # requests go first

    def _store(self) -> None:
        while self._unstored:
            batch = list(islice(self._unstored, _STORE_ROWS))
            try:
                with transaction(self._engine) as connection:
                    insert_answers(connection, [answer for _, answer in batch])
            except Unavailable:
                raise  # they are kept and tried again; their key lets each in once
            except Exception:
                self.counts.update((label, "lost") for label, _ in batch)
                self._forget(len(batch))
                raise
            self._forget(len(batch))
        self._told_at = None

    def _forget(self, count: int) -> None:
        for _ in range(count):
            self._unstored.popleft()

    def _tell(self, error: Exception) -> None:
        now = time.monotonic()
        if self._told_at is None or now - self._told_at > _PROBLEM_SECONDS:
            self._told_at = now
            reason = error.message if isinstance(error, Unavailable) else repr(error)
            log.warning("shadow answers not stored reason=%s", reason)


def _answer(noted: _Noted, *, now: datetime) -> ShadowAnswer:
    """Compute what a shadow would have shown, and compare it with what was."""
    shadow, shown = noted.shadow, noted.shown
    error, fallback = shadow.problem, True
    made: tuple[str, ...] = ()
    started = time.perf_counter()
    if shadow.lists is not None:
        lists = {**noted.snapshot.lists, noted.recommender: shadow.lists}
        try:
            carousel = fill_carousel(
                replace(noted.snapshot, lists=lists),
                noted.recommender,
                noted.unit_id,
                k=noted.k,
                item_id=noted.item_id,
                recent_item_ids=noted.recent_item_ids,
                exclude=noted.exclude,
            )
        except Exception as failure:  # that is what a shadow is there to find out
            told = f"{type(failure).__name__}: {failure}"
            error = told.replace("\0", "")[:500]  # no text of PostgreSQL's holds it
        else:
            made, fallback = tuple(carousel.items), carousel.fallback
    seconds = time.perf_counter() - started
    return ShadowAnswer(
        version_id=shadow.version_id,
        id=noted.answer_id or uuid7(),
        unit_id=noted.unit_id,
        shown=len(shown.items),
        made=len(made),
        common=len(set(made).intersection(shown.items)),
        same_places=[
            place
            for place, (one, other) in enumerate(
                zip(shown.items, made, strict=False), start=1
            )
            if one == other
        ],
        shown_fallback=shown.fallback,
        fallback=fallback,
        seconds=seconds,
        error=error,
        answered_at=now,
    )
