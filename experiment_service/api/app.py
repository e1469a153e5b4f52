"""The API as an ASGI application and as a server process; the entry point of HTTP.

FastAPI routes, documents and shapes everything. The hot routes are declared there too,
but answered in front of it: its layers cost more than the answers themselves.
"""

import asyncio
import contextlib
import gc
import logging
import socket
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from importlib import metadata
from time import perf_counter, time
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Message, Receive, Scope, Send

from experiment_service.api import (
    browser,
    management,
    models,
    monitoring,
    ofrep,
    routes,
)
from experiment_service.api.access import (
    Access,
    Caller,
    answer_headers,
    is_preflight,
    permission_needed,
)
from experiment_service.api.connections import GuardedHttp
from experiment_service.api.desk import Desk
from experiment_service.api.failures import Failure, describe
from experiment_service.api.latency import LatencyHistogram
from experiment_service.api.monitoring import Monitor
from experiment_service.api.openapi import declare_access
from experiment_service.api.processes import run_processes
from experiment_service.api.requests import TURNED_AWAY, Exchange, Refusals
from experiment_service.api.services import JOURNALS, Services, clock, open_services
from experiment_service.api.wire import (
    ClientGone,
    HotRoute,
    check_content_type,
    read_body,
    replay,
    send_empty,
    send_failure,
    with_headers,
)
from experiment_service.api.writing import writer_process
from experiment_service.config import Settings
from experiment_service.errors import (
    ExperimentServiceError,
    InvalidRequest,
    Unavailable,
)
from experiment_service.storage.database import running_database, transaction
from experiment_service.storage.keys import mark_used
from experiment_service.termination import termination_as_exit

log = logging.getLogger(__name__)

#: How uvicorn runs the API; the benchmark runs its floor in the same way.
SERVER_OPTIONS: dict[str, Any] = {
    "loop": "uvloop",
    "http": GuardedHttp,
    "ws": "none",
    "lifespan": "on",
    "access_log": False,
    "server_header": False,
    # Only where proxies are named whose X-Forwarded-For is believed.
    "proxy_headers": False,
    "log_config": None,
    "backlog": 2048,
    "timeout_keep_alive": 75,
    # Requests under way get these seconds to end before a stop.
    "timeout_graceful_shutdown": 10,
}

# By Python's default a thread waits 5 ms for its turn while another computes, such as the
# loop while a report is made. This costs little.
_SWITCH_SECONDS = 0.0002

# Objects made before the collector looks at them. Requests leave nothing behind for it,
# and by Python's default those under way would be looked at again and again.
_COLLECTED = 20_000

# Requests with these methods change nothing and leave no log line.
_QUIET = frozenset({"GET", "HEAD", "OPTIONS"})

# How often the days on which keys were used are stored.
_USE_SECONDS = 30.0

_ANYBODY = Caller(actor="anybody")

_ROUTERS = (
    routes.hot_router,
    routes.read_router,
    routes.change_router,
    models.router,
    management.router,
    routes.health_router,
    monitoring.router,
    browser.router,
    ofrep.router,
)


class ExperimentApi(FastAPI):
    """The application; its services are open between start-up and shutdown.

    Attributes
    ----------
    services, desk, access, monitor
        Set while it runs.
    latency : dict of str to LatencyHistogram
        By method and route, such as ``POST /v1/recommendations``.
    logs_flag_exposures : bool
        Whether evaluating a single flag over OFREP records an exposure.
    failure : ExperimentServiceError or None
        Why the start failed.
    """

    services: Services
    desk: Desk
    access: Access
    monitor: Monitor

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            title="Experiment Service",
            summary="A/B tests and bandits for recommender variants.",
            version=metadata.version("experiment-service"),
            lifespan=self._run,
            redirect_slashes=False,
            redoc_url=None,
        )
        self._settings = settings
        self.logs_flag_exposures = settings.ofrep_exposures == "single"
        self.failure: ExperimentServiceError | None = None
        self.latency: defaultdict[str, LatencyHistogram] = defaultdict(LatencyHistogram)
        for router in _ROUTERS:
            self.include_router(router)
        self._hot = {
            route.path: route
            for route in routes.hot_router.routes
            if isinstance(route, HotRoute)
        }
        for kind in (
            ExperimentServiceError,
            RequestValidationError,
            HTTPException,
            Exception,
        ):
            self.add_exception_handler(kind, _answer_failure)

    @asynccontextmanager
    async def _run(self, _: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        sys.setswitchinterval(_SWITCH_SECONDS)
        services = open_services(self._settings)
        try:
            # In a thread: opening waits for a database, closing for the journal.
            self.services = await loop.run_in_executor(None, services.__enter__)
        except ExperimentServiceError as error:
            self.failure = error
            raise
        try:
            self._open_desk(loop)
            # What is there now stays: the collector need not look at it again and again.
            gc.collect()
            gc.freeze()
            gc.set_threshold(_COLLECTED)
            storing = loop.create_task(self._store_use_for_ever())
            log.info("serving data_dir=%s", self._settings.data_dir)
            try:
                with self.monitor.running(), self.services.journal.settled_by(loop):
                    yield
            finally:
                storing.cancel()
                await loop.run_in_executor(None, self._store_use)
        except ExperimentServiceError as error:
            self.failure = error
            raise
        finally:
            await loop.run_in_executor(None, services.__exit__, None, None, None)
            log.info("stopped")

    def _open_desk(self, loop: asyncio.AbstractEventLoop) -> None:
        keeper, loopback = self.services.keeper, self._settings.is_loopback
        self.access = Access(
            lambda: keeper.snapshot.configuration.keys,
            loopback=loopback,
            refusals_per_second=self._settings.refusals_per_second,
        )
        if not loopback and not keeper.configuration.keys:
            raise Unavailable(
                f"the API listens on {self._settings.host}, where strangers can reach it, and there is "
                "no key; make one with `experiment-service keys create NAME --scope "
                "admin`, or listen on 127.0.0.1"
            )
        self.desk = Desk(self.services, loop)
        self._refusals = Refusals(self.desk.tally)
        self.monitor = Monitor(
            self.services,
            self.desk.tally,
            self.latency,
            directory=self._settings.data_dir / "metrics",
            clock=clock,
        )

    async def _store_use_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_USE_SECONDS)
            await loop.run_in_executor(None, self._store_use)

    def _store_use(self) -> None:
        days = self.access.take_used()
        if not days:
            return
        try:
            with transaction(self.services.engine) as connection:
                mark_used(connection, days)
        except Unavailable as error:
            log.debug("days of use not stored reason=%s", error.message)
            self.access.give_back(days)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever happens, in the one error shape."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        entry = self._enter(scope)
        if not isinstance(entry, Caller):
            await self._turn_away(scope, send, entry)
            return
        if entry.origin is not None:
            send = with_headers(send, answer_headers(entry.origin))
        scope["caller"] = entry
        started = perf_counter()
        route = self._hot.get(scope["path"]) if scope["method"] == "POST" else None
        exchange = Exchange(scope, send, make=route is None)
        status = 200
        try:
            if route is not None:
                scope["app"] = self
                await route.handle(scope, receive, exchange.send)
            else:
                await self._answer(scope, receive, exchange.send)
        except ClientGone:
            return
        except Exception as error:  # an answer comes, whatever it is
            failure = describe(error)
            status = int(failure.status)
            if status in TURNED_AWAY:
                exchange.identify()
            await send_failure(exchange.send, failure)
        if route is not None:
            name = route.path
        else:
            name = getattr(scope.get("route"), "path", "other")
        seconds = perf_counter() - started
        self._note(scope, name, exchange.status or status, seconds)

    def _enter(self, scope: Scope) -> Caller | Failure | Mapping[str, str]:
        """Decide who asks and whether they may; headers are the answer to a preflight."""
        method, path, headers = scope["method"], scope["path"], scope["headers"]
        if method == "OPTIONS" and is_preflight(headers):
            return self.access.preflight(headers, path, time())
        needed = permission_needed(method, path)
        if needed is None:
            return _ANYBODY
        address, _ = scope["client"] or ("", 0)
        return self.access.check(
            headers, needed, time(), scope["query_string"], address
        )

    async def _turn_away(
        self, scope: Scope, send: Send, answer: Failure | Mapping[str, str]
    ) -> None:
        """Answer without asking any route: a preflight, or whoever may not come in."""
        exchange = Exchange(scope, send, make=isinstance(answer, Failure))
        if not isinstance(answer, Failure):
            await send_empty(exchange.send, answer)
            return
        await send_failure(exchange.send, answer)
        name = next((route.path for route in _routes(scope)), "other")
        self.desk.tally.responses[f"{scope['method']} {name}", int(answer.status)] += 1
        self._refusals.note(scope, name, int(answer.status), time())

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, with what each route needs."""
        if self.openapi_schema is None:
            self.openapi_schema = declare_access(super().openapi())
        return self.openapi_schema

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in ("POST", "PUT", "PATCH"):
            receive = replay(await read_body(scope, receive), receive)
        # What FastAPI raises it has answered and logged before, by `_answer_failure`.
        with contextlib.suppress(Exception):
            await super().__call__(scope, receive, send)

    def _note(self, scope: Scope, path: str, status: int, seconds: float) -> None:
        """Count an answer, and tell of a change or of a refusal."""
        method = scope["method"]
        name = f"{method} {path}"
        self.desk.tally.responses[name, status] += 1
        self.latency[name].add(seconds)
        if status in TURNED_AWAY:
            self._refusals.note(scope, path, status, time())
        if method not in _QUIET and path not in self._hot and path.startswith("/v1"):
            log.info(
                "answered method=%s route=%s status=%d milliseconds=%.1f",
                method,
                path,
                status,
                1000 * seconds,
            )

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a failed start as its sentence, not as a traceback."""

        async def tell(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and self.failure:
                message = {**message, "message": self.failure.message}
            await send(message)

        try:
            await super().__call__(scope, receive, tell)
        except ExperimentServiceError:
            if self.failure is None:
                raise


async def _answer_failure(request: Request, error: Exception) -> Response:
    failure = describe(error)
    if isinstance(error, RequestValidationError):
        failure = _about_content_type(request) or failure
    elif failure.status is HTTPStatus.NOT_FOUND and isinstance(error, HTTPException):
        failure = replace(
            failure,
            message=f"{request.method} {request.url.path[:80]} is not a route; the "
            "routes are listed at /docs",
        )
    elif failure.status is HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(sorted(_methods(request)))
        failure = replace(
            failure,
            message=f"{request.method} is not allowed on {request.url.path[:80]}; "
            f"allowed: {allowed}",
            headers={"allow": allowed},
        )
    return Response(
        failure.body(),
        failure.status,
        headers=failure.headers,
        media_type="application/json",
    )


def _routes(scope: Scope) -> Iterator[Route]:
    """Yield the routes of a path, whatever the method."""
    for router in _ROUTERS:
        for route in router.routes:
            if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
                yield route


def _methods(request: Request) -> set[str]:
    """Return what a path takes; the framework tells the methods of one route only."""
    return {
        method for route in _routes(request.scope) for method in route.methods or ()
    } or {"GET"}


def _about_content_type(request: Request) -> Failure | None:
    """Return the real reason why a body of another type was not understood."""
    if request.method not in ("POST", "PUT", "PATCH"):
        return None
    try:
        check_content_type(request.scope)
    except Exception as error:
        return describe(error)
    return None


def create_app(settings: Settings) -> ExperimentApi:
    """Return the application; its services open when the server starts it."""
    return ExperimentApi(settings)


def serve(settings: Settings, *, workers: int = 1) -> None:
    """Run the API until SIGINT or SIGTERM, in `workers` processes.

    Raises
    ------
    InvalidRequest
        When the address can't be listened on.
    Unavailable
        When there is nothing to serve from; says what to do.
    """
    with (
        termination_as_exit(),
        _listening(settings) as listener,
        running_database(settings.database_url, settings.data_dir) as url,
        writer_process(url, settings.data_dir / JOURNALS),
    ):
        _run_server(replace(settings, database_url=url), listener, workers)


def _run_server(settings: Settings, listener: socket.socket, workers: int) -> None:
    log.info("listening address=http://%s:%d", *listener.getsockname()[:2])
    app = create_app(settings)
    options = dict(SERVER_OPTIONS)
    if settings.trusted_proxies:
        options |= {
            "proxy_headers": True,
            "forwarded_allow_ips": settings.trusted_proxies,
        }
    if workers > 1:
        run_processes(partial(_run_one, app, listener, options), workers)
    else:
        _run_one(app, listener, options)


def _run_one(
    app: ExperimentApi, listener: socket.socket, options: Mapping[str, Any]
) -> None:
    try:
        uvicorn.Server(uvicorn.Config(app, **options)).run(sockets=[listener])
    except SystemExit:
        if app.failure is not None:
            raise app.failure from None
        raise


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise InvalidRequest(
                f"the API can't listen on {settings.host} port {settings.port} "
                f"({error.strerror}); stop what uses it, or set EXPERIMENT_SERVICE_PORT"
            ) from error
        listener.set_inheritable(True)
        yield listener
