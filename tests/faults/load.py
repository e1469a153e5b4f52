"""Shoppers over HTTP who know which of their events were accepted."""

import asyncio
import itertools
import json
import random
import threading
import time
from uuid import UUID

import uvloop
from uuid_utils.compat import uuid7

from experiment_service.domain.event import event_uuid

_TIMEOUT_SECONDS = 30
_SHOPPERS = 8
_UNITS = 2000
#: A visit: exposures with a carousel, exposures without, batches of interactions.
_SINGLE, _ASSIGNED, _BATCHES = 10, 40, 2
_PROBE_SECONDS = 0.02
#: Kinds of the second interaction with an exposure; a purchase is by the unit alone.
_KINDS = ("click", "click", "add_to_cart", "purchase", "dismiss")


class Connection:
    """A connection that is kept; a request gets its answer or fails as a whole."""

    def __init__(self, service):
        self.service = service
        self.opened_at = time.monotonic()
        self._writer = None

    async def post(self, path, document):
        """Return status, headers and document."""
        body = json.dumps(document).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.service.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            if self._writer is None:
                self._reader, self._writer = await asyncio.open_connection(
                    "127.0.0.1", self.service.port
                )
            self._writer.write(head.encode() + body)
            raw = await self._reader.readuntil(b"\r\n\r\n")
            first, *lines = raw.decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines if line)
            content = await self._reader.readexactly(int(headers["content-length"]))
        return int(first.split(" ", 2)[1]), headers, json.loads(content)

    def close(self):
        if self._writer is not None:
            self._writer.close()


class Load:
    """A thread of shoppers who send until they are stopped, at most `rate` events/s.

    Each visit is 50 exposures, 10 of them with a carousel, and two batches of two
    interactions with each; in every fifth visit both are sent twice. What is not
    answered, or refused with Retry-After, is sent again, to the next service, until it
    is accepted.

    Attributes
    ----------
    exposures : dict of UUID to str
        The accepted ones, with their units.
    interactions : dict of UUID to tuple
        The accepted ones: exposure, unit, kind, position.
    sent : set of UUID
        Interactions that were sent, accepted or not.
    uncertain : int
        Exposures of requests that were not answered: they may be stored or not.
    resent, refused : int
        Interactions sent twice; answers 503 with Retry-After.
    broken, unanswered : int, list of str
        Requests whose connection met a fault, and those that failed without one.
    wrong : list of str
        Answers that are neither 200 nor 503 with Retry-After.
    probes, slowest : int, float
        Prefetched carousels answered beside the load; seconds of the slowest.
    """

    def __init__(self, *services, rate=4000, name="load"):
        self._services = services
        self._rate, self._name = rate, name
        self.exposures, self.interactions, self.sent = {}, {}, set()
        self.uncertain = self.resent = self.refused = self.broken = self.probes = 0
        self.unanswered, self.wrong = [], []
        self.slowest = 0.0
        self._numbers, self._visits = itertools.count(), itertools.count()
        self._random = random.Random(name)
        self._stopping = self._abandoned = False
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def accepted(self):
        return len(self.exposures) + len(self.interactions)

    def stop(self):
        """Let the shoppers end their visits."""
        self._stopping = True
        self._thread.join()

    def abandon(self):
        """Let the shoppers end at once, also those who wait for an answer."""
        self._abandoned = True
        self.stop()

    async def _run(self):
        self._started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(_SHOPPERS):
                group.create_task(self._shop(number))
            for service in self._services:
                group.create_task(self._probe(service))

    async def _shop(self, number):
        connections = [Connection(service) for service in self._services]
        turn = number
        while not self._stopping:
            visit = next(self._visits)
            events = (1 + 2 * _BATCHES) * (_SINGLE + _ASSIGNED)
            due = self._started + visit * events / self._rate
            await asyncio.sleep(due - time.monotonic())
            await self._visit(connections, visit, turn)
            turn += 1
        for connection in connections:
            connection.close()

    async def _visit(self, connections, visit, turn):
        shown = []
        for _ in range(_SINGLE):
            unit = self._unit()
            request = {"unit_id": unit, "placement": "home", "k": 5}
            answer = await self._send(
                connections, turn, "/v1/recommendations", request, exposures=1
            )
            shown.append((answer["exposure_id"], unit))
            self.exposures[UUID(answer["exposure_id"])] = unit
        requests = [
            {"unit_id": self._unit(), "placement": "offers"} for _ in range(_ASSIGNED)
        ]
        answer = await self._send(
            connections,
            turn,
            "/v1/assignments",
            {"requests": requests},
            exposures=_ASSIGNED,
        )
        for each in answer["assignments"]:
            shown.append((each["exposure_id"], each["unit_id"]))
            self.exposures[UUID(each["exposure_id"])] = each["unit_id"]
        for _ in range(_BATCHES):
            batch = [event for pair in shown for event in self._events(*pair)]
            await self._interact(connections, turn, batch, twice=visit % 5 == 0)

    async def _interact(self, connections, turn, batch, *, twice):
        for copy in range(1 + twice):
            answer = await self._send(
                connections, turn + copy, "/v1/interactions", {"interactions": batch}
            )
            if answer != {"accepted": len(batch), "refused": []}:
                self.wrong.append(str(answer))
        self.resent += twice * len(batch)
        for event in batch:
            self.interactions[event_uuid(event["id"])] = (
                event.get("exposure_id"),
                event.get("unit_id"),
                event["kind"],
                event.get("position"),
            )

    def _unit(self):
        return f"shopper-{self._random.randrange(_UNITS)}"

    def _events(self, exposure_id, unit):
        kind = self._random.choice(_KINDS)
        seen = {"exposure_id": exposure_id, "kind": "viewed"}
        done = {"exposure_id": exposure_id, "kind": kind, "position": 1}
        if kind == "purchase":
            done = {"unit_id": unit, "kind": kind, "value": 12.5}
        for event in (seen, done):
            number = next(self._numbers)
            # Ids of a shop's own, and those of our clients.
            event["id"] = str(uuid7()) if number % 2 else f"{self._name}:{number}"
            self.sent.add(event_uuid(event["id"]))
            yield event

    async def _send(self, connections, turn, path, document, *, exposures=0):
        """Send until it is accepted; return the answer."""
        for attempt in itertools.count():
            if self._abandoned:
                raise asyncio.CancelledError
            position = (turn + attempt) % len(connections)
            answer = await self._ask(connections, position, path, document)
            if answer is None:
                self.uncertain += exposures
                await asyncio.sleep(0.05)
                continue
            status, headers, content = answer
            if status == 200:
                return content
            if status == 503 and int(headers.get("retry-after", 0)) > 0:
                self.refused += 1
                await asyncio.sleep(0.25)
                continue
            self.wrong.append(f"{path}: {status} {content}")
            raise AssertionError(self.wrong[-1])
        raise AssertionError("unreachable")

    async def _ask(self, connections, position, path, document):
        """Ask one service once; None without an answer."""
        connection = connections[position]
        asked_at = time.monotonic()
        try:
            answer = await connection.post(path, document)
        except (OSError, EOFError, TimeoutError) as error:
            connection.close()
            service, failed_at = connection.service, time.monotonic()
            if service.may_break(connection.opened_at, failed_at):
                self.broken += 1
            else:
                self.unanswered.append(f"{service.name} {path}: {error!r}")
            connections[position] = Connection(service)
            return None
        self.slowest = max(self.slowest, time.monotonic() - asked_at)
        return answer

    async def _probe(self, service):
        """Ask for carousels that leave no event: they need no journal and no database."""
        connections = [Connection(service)]
        while not self._stopping:
            await asyncio.sleep(_PROBE_SECONDS)
            request = {"unit_id": self._unit(), "placement": "home"}
            answer = await self._ask(
                connections,
                0,
                "/v1/recommendations",
                request | {"log_exposure": False},
            )
            if answer is None:
                continue
            status, _, content = answer
            if status != 200 or len(content["items"]) != 10:
                self.wrong.append(f"prefetch: {status} {content}")
            self.probes += 1
        connections[0].close()
