"""Desk: the hot routes, answered from memory and the journal, never from Postgres."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from http import HTTPStatus
from typing import Any

from uuid_utils.compat import uuid7

from experiment_service.api.failures import Failure, Refused
from experiment_service.api.schemas import (
    AssignmentBatch,
    AssignmentRequest,
    ExposureBatch,
    PostedExposure,
    RecommendationRequest,
)
from experiment_service.api.services import Services, clock
from experiment_service.api.tally import EventName, Tally
from experiment_service.domain.assignment import Step
from experiment_service.domain.event import Exposure
from experiment_service.errors import ExperimentServiceError, InvalidRequest
from experiment_service.ingestion import accept_interactions, encode
from experiment_service.journal import Journal
from experiment_service.serving.answer import (
    Carousel,
    Decision,
    decide,
    decide_experiment,
    fill_carousel,
    model_label,
)
from experiment_service.serving.exposure import make_exposure, verify_exposure
from experiment_service.serving.snapshot import Snapshot

Document = dict[str, Any]

_PROBLEM_SECONDS = 10.0


class Outbox:
    """Gathers the events of one turn of the event loop into one append.

    Making events safe costs more than writing them; under load it is done once for all
    requests that arrived together.

    Parameters
    ----------
    journal : Journal
        Where events become durable; settled by the loop.
    loop : AbstractEventLoop
        The loop that requests run in; all calls come from it, this one too.
    """

    def __init__(self, journal: Journal, loop: asyncio.AbstractEventLoop) -> None:
        self._journal = journal
        self._loop = loop
        self._thread = threading.get_ident()
        self._payloads: list[bytes] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._failure: tuple[float, BaseException] | None = None

    @property
    def problem(self) -> str | None:
        """Why events were refused within the last seconds, None when none was.

        It fades: a process that gets no requests for it would never seem well again.
        """
        if self._failure is None:
            return None
        failed_at, error = self._failure
        if self._loop.time() - failed_at > _PROBLEM_SECONDS:
            return None
        return str(error)

    def put(self, payloads: Sequence[bytes]) -> asyncio.Future[None]:
        """Return a future that is done when the events would survive a crash.

        It fails with what the journal says, such as Unavailable when it is full.
        """
        if not self._waiters:
            self._loop.call_soon(self._flush)
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        self._payloads.extend(payloads)
        return waiter

    def _flush(self) -> None:
        payloads, waiters = self._payloads, self._waiters
        self._payloads, self._waiters = [], []
        try:
            durable = self._journal.append(payloads)
        except Exception as error:  # whatever it is, it belongs to the requests
            self._settle(waiters, error)
            return

        def settle(done: Future[None]) -> None:
            if threading.get_ident() == self._thread:
                self._settle(waiters, done.exception())
            else:  # the loop has left the journal, as the process ends
                self._loop.call_soon_threadsafe(self._settle, waiters, done.exception())

        durable.add_done_callback(settle)

    def _settle(
        self, waiters: Sequence[asyncio.Future[None]], error: BaseException | None
    ) -> None:
        if error is not None:
            self._failure = (self._loop.time(), error)
        for waiter in waiters:
            if waiter.done():
                continue  # its request was cancelled
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)


class Desk:
    """Answers requests; an answer goes out once its events are safe on disk.

    All methods run in the event loop and wait for the journal only.

    Attributes
    ----------
    tally : Tally
        What it has answered.
    """

    def __init__(self, services: Services, loop: asyncio.AbstractEventLoop) -> None:
        self.tally = Tally()
        self._keeper = services.keeper
        self._sticky = services.sticky
        self._shadows = services.shadows
        self._unit = services.pseudonyms.of
        self._outbox = Outbox(services.journal, loop)

    @property
    def problem(self) -> str | None:
        """Why events can't be taken at present, None when they can."""
        return self._outbox.problem

    async def recommend(self, request: RecommendationRequest) -> Document:
        """Return a carousel, and record that it was shown unless it is a prefetch.

        Raises
        ------
        NotFound
            When there is no such placement.
        Unavailable
            When the journal is full.
        """
        now, snapshot = clock(), self._keeper.snapshot
        unit_id = self._unit(request.unit_id)
        decision = decide(
            snapshot,
            self._sticky,
            request.placement,
            unit_id,
            request.attributes,
        )
        carousel = fill_carousel(
            snapshot,
            decision.recommender or "",
            unit_id,
            k=request.k,
            item_id=request.item_id,
            recent_item_ids=request.recent_item_ids,
            exclude=request.exclude_item_ids,
        )
        exposure = make_exposure(
            decision,
            carousel,
            unit_id,
            request.attributes,
            exposure_id=uuid7(),
            now=now,
        )
        if exposure is not None and request.log_exposure:
            self._remember(decision, exposure)
            await self._outbox.put((encode(exposure),))
        answer = {
            "unit_id": request.unit_id,
            "placement": request.placement,
            **_assignment(decision),
            "model": carousel.model,
            "settings": decision.settings,
            "items": _items(carousel),
            "fallback": carousel.fallback,
            **_exposure(
                decision, exposure, request.unit_id, logged=request.log_exposure
            ),
        }
        self._count(answer, logged=exposure is not None and request.log_exposure)
        if snapshot.shadows:
            self._shadows.note(
                snapshot,
                decision.recommender or "",
                unit_id,
                carousel,
                k=request.k,
                item_id=request.item_id,
                recent_item_ids=request.recent_item_ids,
                exclude=request.exclude_item_ids,
                answer_id=None if exposure is None else exposure.id,
            )
        return answer

    async def assign(self, body: AssignmentRequest | AssignmentBatch) -> Document:
        """Return the variant of one unit or of many, and record it likewise.

        Raises
        ------
        NotFound
            When there is no such experiment or placement; nothing is recorded.
        """
        now, snapshot = clock(), self._keeper.snapshot
        if isinstance(body, AssignmentRequest):
            answer, payload = self._assign(snapshot, body, now)
            if payload is not None:
                await self._outbox.put((payload,))
            self._count(answer, logged=payload is not None)
            return answer
        answers: list[Document] = []
        payloads: list[bytes] = []
        logged: list[bool] = []
        for index, request in enumerate(body.requests):
            try:
                answer, payload = self._assign(snapshot, request, now)
            except ExperimentServiceError as error:
                error.field = f"requests.{index}.{error.field}"
                raise
            answers.append(answer)
            logged.append(payload is not None)
            if payload is not None:
                payloads.append(payload)
        if payloads:
            await self._outbox.put(payloads)
        for answer, with_exposure in zip(answers, logged, strict=True):
            self._count(answer, logged=with_exposure)
        return {"assignments": answers}

    def _assign(
        self, snapshot: Snapshot, request: AssignmentRequest, now: datetime
    ) -> tuple[Document, bytes | None]:
        find, subject = (
            (decide_experiment, request.experiment)
            if request.experiment is not None
            else (decide, request.placement or "")
        )
        unit_id = self._unit(request.unit_id)
        decision = find(snapshot, self._sticky, subject, unit_id, request.attributes)
        model = model_label(snapshot, decision.recommender or "")
        exposure = make_exposure(
            decision,
            Carousel(model=model, items=(), sources=(), fallback=False),
            unit_id,
            request.attributes,
            exposure_id=uuid7(),
            now=now,
        )
        payload = None
        if exposure is not None and request.log_exposure:
            self._remember(decision, exposure)
            payload = encode(exposure)
        answer = {
            "unit_id": request.unit_id,
            "placement": request.placement,
            **_assignment(decision),
            "experiment": request.experiment or _key(decision),
            "reason": decision.reason,
            "recommender": decision.recommender,
            "settings": decision.settings,
            **_exposure(
                decision, exposure, request.unit_id, logged=request.log_exposure
            ),
        }
        return answer, payload

    async def expose(self, body: PostedExposure | ExposureBatch) -> Document:
        """Record prefetched carousels that were shown; each is verified on its own.

        Raises
        ------
        InvalidRequest
            When the only one given does not fit.
        Refused
            When none of several fits.
        """
        now, snapshot = clock(), self._keeper.snapshot
        if isinstance(body, PostedExposure):
            await self._outbox.put((self._verify(snapshot, body, now),))
            self.tally.received("exposure", ["exposure"], [])
            return {"accepted": 1, "refused": []}
        payloads: list[bytes] = []
        refused: list[Document] = []
        for index, posted in enumerate(body.exposures):
            try:
                payloads.append(self._verify(snapshot, posted, now))
            except InvalidRequest as error:
                refused.append(
                    {
                        "index": index,
                        "id": str(posted.exposure_id),
                        "field": error.field,
                        "reason": error.message,
                    }
                )
        kinds = ["exposure"] * len(payloads)
        return await self._store("exposure", kinds, payloads, refused)

    def _verify(
        self, snapshot: Snapshot, posted: PostedExposure, now: datetime
    ) -> bytes:
        exposure = verify_exposure(
            snapshot,
            exposure_id=posted.exposure_id,
            experiment=posted.experiment,
            unit_id=self._unit(posted.unit_id),
            variant=posted.variant,
            epoch=posted.epoch,
            model=posted.model,
            items=[item.item_id for item in posted.items],
            sources=[item.source for item in posted.items],
            attributes=posted.attributes,
            exposed_at=posted.exposed_at,
            now=now,
        )
        if snapshot.experiments[posted.experiment].sticky:
            self._sticky.remember(
                exposure.experiment_id, exposure.unit_id, exposure.epoch
            )
        return encode(exposure)

    async def interact(self, documents: Sequence[Mapping[str, Any]]) -> Document:
        """Record interactions; good ones are taken, bad ones refused one by one.

        Raises
        ------
        Refused
            When none is good.
        """
        interactions, refusals = accept_interactions(
            documents,
            now=clock(),
            unit=self._unit,
            oldest_id=self._keeper.configuration.oldest_id,
        )
        refused = [
            {
                "index": refusal.index,
                "id": refusal.id,
                "field": refusal.field,
                "reason": refusal.reason,
            }
            for refusal in refusals
        ]
        kinds = [each.kind for each in interactions]
        payloads = [encode(each) for each in interactions]
        return await self._store("interaction", kinds, payloads, refused)

    async def _store(
        self,
        event: EventName,
        kinds: Sequence[str],
        payloads: Sequence[bytes],
        refused: Sequence[Document],
    ) -> Document:
        receipt = {"accepted": len(payloads), "refused": refused}
        fields = [each["field"] for each in refused]
        if not payloads:
            self.tally.received(event, kinds, fields)
            raise Refused(
                Failure(
                    status=HTTPStatus.UNPROCESSABLE_ENTITY,
                    code="invalid_request",
                    message=f"no event was taken; the first: {refused[0]['reason']}",
                    field=refused[0]["field"],
                    details=receipt,
                )
            )
        await self._outbox.put(payloads)
        self.tally.received(event, kinds, fields)
        return receipt

    def _count(self, answer: Document, *, logged: bool) -> None:
        if answer["variant"] is not None:
            self.tally.assigned(answer["experiment"], answer["variant"], logged=logged)

    def _remember(self, decision: Decision, exposure: Exposure) -> None:
        if (
            decision.served is not None
            and decision.served.sticky
            and decision.assignment is not None
            and decision.assignment.step is not Step.STICKY
        ):
            self._sticky.remember(
                exposure.experiment_id, exposure.unit_id, exposure.epoch
            )


def _items(shown: Carousel | Exposure) -> list[Document]:
    return [
        {"item_id": item, "source": source}
        for item, source in zip(shown.items, shown.sources, strict=True)
    ]


def _key(decision: Decision) -> str | None:
    return decision.served.experiment.key if decision.served else None


_OUTSIDE: Document = dict.fromkeys(("experiment", "variant", "epoch", "propensity"))


def _assignment(decision: Decision) -> Document:
    assignment = decision.assignment
    if assignment is None or decision.served is None:
        return _OUTSIDE
    return {
        "experiment": assignment.experiment,
        "variant": assignment.variant,
        "epoch": assignment.epoch,
        "propensity": assignment.propensity,
    }


def _exposure(
    decision: Decision, exposure: Exposure | None, unit_id: str, *, logged: bool
) -> Document:
    if exposure is None:
        return {"exposure_id": None, "exposure": None}
    if logged:
        return {"exposure_id": exposure.id, "exposure": None}
    return {
        "exposure_id": exposure.id,
        "exposure": {
            "exposure_id": exposure.id,
            "experiment": _key(decision),
            "unit_id": unit_id,
            "variant": exposure.variant,
            "epoch": exposure.epoch,
            "model": exposure.model,
            "items": _items(exposure),
            "attributes": exposure.context,
        },
    }
