"""The client for threads; a thread of its own sends the events."""

import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import httpx

from experiment_service.client import common, messages
from experiment_service.client.common import Options
from experiment_service.client.outbox import Outbox
from experiment_service.client.values import (
    Assignment,
    AttributeValue,
    Recommendation,
)


class ExperimentClient:
    """Asks for carousels and tells what shoppers did; safe to share between threads.

    Parameters
    ----------
    address : str
        Of the service, such as ``http://127.0.0.1:8000``.
    api_key : str, optional
    fallback : sequence of str
        Items shown while the service does not answer; a call may give its own.
    options : Options, optional
    transport : httpx.BaseTransport, optional
        How requests travel; one try to connect again by default.

    Attributes
    ----------
    outbox : Outbox
        Events on their way.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        fallback: Sequence[str] = (),
        options: Options | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._options = options or Options()
        self._fallback = fallback
        self._http = httpx.Client(
            base_url=address,
            headers=common.headers(api_key),
            timeout=self._options.timeout,
            transport=transport or httpx.HTTPTransport(retries=1),
        )
        self.outbox = Outbox(
            batch_size=self._options.batch_size, limit=self._options.limit
        )
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._sending = threading.Lock()
        self._thread = threading.Thread(
            target=self._send_until_closed, name="experiment-client", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def recommend(
        self,
        unit_id: str,
        placement: str,
        *,
        k: int = 10,
        item_id: str | None = None,
        recent_item_ids: Sequence[str] = (),
        exclude: Sequence[str] = (),
        attributes: Mapping[str, AttributeValue] | None = None,
        log_exposure: bool = True,
        fallback: Sequence[str] | None = None,
    ) -> Recommendation:
        """Return a carousel; the fallback when the service does not answer in time.

        It is asked once: a second try would record a second exposure. Up to 20 recent
        items, the latest last, are used where the version that serves can.

        Raises
        ------
        RequestRefused
            When the request is wrong, such as an unknown placement.
        """
        document = self._ask(
            messages.RECOMMENDATIONS,
            messages.recommendation_request(
                unit_id,
                placement,
                k=k,
                item_id=item_id,
                recent_item_ids=recent_item_ids,
                exclude=exclude,
                attributes=attributes,
                log_exposure=log_exposure,
            ),
        )
        if document is None:
            items = self._fallback if fallback is None else fallback
            return messages.fallback_recommendation(unit_id, placement, items, k)
        return messages.read_recommendation(document)

    def assign(
        self,
        unit_id: str,
        *,
        experiment: str | None = None,
        placement: str | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
        log_exposure: bool = True,
    ) -> Assignment:
        """Return a unit's variant in an experiment or on a placement; give one of both.

        Raises
        ------
        RequestRefused
            When the request is wrong.
        """
        document = self._ask(
            messages.ASSIGNMENTS,
            messages.assignment_request(
                unit_id,
                experiment=experiment,
                placement=placement,
                attributes=attributes,
                log_exposure=log_exposure,
            ),
        )
        if document is None:
            return Assignment(served=False, unit_id=unit_id)
        return messages.read_assignment(document)

    def _ask(self, path: str, request: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            response = self._http.post(path, json=request)
        except httpx.TransportError:
            return None
        return messages.answer_of(response)

    def expose(self, shown: Recommendation | Assignment) -> None:
        """Record that something asked for without an exposure is shown now."""
        document = common.exposure(shown)
        if document is not None:
            self._put("exposure", document)

    def track(
        self,
        kind: str,
        *,
        id: str | None = None,  # noqa: A002 - what the service calls it
        exposure_id: str | None = None,
        unit_id: str | None = None,
        item_id: str | None = None,
        category: str | None = None,
        placement: str | None = None,
        position: int | None = None,
        value: float | None = None,
        occurred_at: datetime | None = None,
    ) -> None:
        """Tell what a unit did; never waits. Name the exposure, the unit, or both."""
        document = common.interaction(
            kind,
            event_id=id,
            exposure_id=exposure_id,
            unit_id=unit_id,
            item_id=item_id,
            category=category,
            placement=placement,
            position=position,
            value=value,
            occurred_at=occurred_at,
        )
        self._put("interaction", document)

    def _put(self, sort: str, document: dict[str, Any]) -> None:
        self.outbox.put(sort, document)
        if self.outbox.full:
            self._wake.set()

    def _send_until_closed(self) -> None:
        while not self._closed.is_set():
            pause = self.outbox.pause
            if pause:
                self._closed.wait(pause)
            else:
                self._wake.wait(self._options.flush_seconds)
            self._wake.clear()
            self._send_all(time.monotonic() + self._options.flush_seconds)

    def _send_all(self, deadline: float) -> None:
        with self._sending:
            while batch := self.outbox.next_batch():
                done = self.outbox.settle(batch, self._post(batch.path, batch.document))
                if not done or time.monotonic() > deadline:
                    return

    def _post(self, path: str, document: Mapping[str, Any]) -> httpx.Response | None:
        try:
            # Events may take their time; nobody waits for them.
            return self._http.post(path, json=document, timeout=10.0)
        except (httpx.TransportError, RuntimeError):  # closed meanwhile
            return None

    def flush(self, timeout: float = 5.0) -> int:
        """Send what waits, again and again; return how many events still do.

        Parameters
        ----------
        timeout : float
            Seconds after which it gives up for now.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._send_all(deadline)
            left = deadline - time.monotonic()
            if not self.outbox or left <= 0:
                return len(self.outbox)
            self._closed.wait(min(self.outbox.pause, left))

    def close(self, timeout: float = 5.0) -> int:
        """Flush and end; return how many events were lost."""
        if self._closed.is_set():
            return len(self.outbox)
        left = self.flush(timeout)
        self._closed.set()
        self._wake.set()
        self._thread.join(timeout)
        self._http.close()
        return left
