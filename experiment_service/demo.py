"""The demo: every part on real retail data, with shoppers that come over HTTP.

An entry point of its own: it trains what is missing, starts API, worker and dashboard as
processes, lets households shop, and stops all of it in order.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
from sqlalchemy import Connection, Engine

from experiment_service import experimentation, keys, training
from experiment_service.config import Settings
from experiment_service.domain.declaration import parse_declaration
from experiment_service.domain.experiment import ExperimentState
from experiment_service.domain.key import Scope
from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.errors import Unavailable
from experiment_service.simulation import Shoppers, future_households, products_of
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import (
    create_engine,
    migrate,
    running_database,
    transaction,
)
from experiment_service.storage.keys import list_keys
from experiment_service.termination import termination_as_exit
from experiment_service.version import code_version
from recommenders.complete_journey import load_catalogue, load_interactions
from recommenders.tables import split_at

log = logging.getLogger(__name__)

#: Recommenders learn from purchases before it; shoppers click by purchases after it.
CUT = datetime(2017, 12, 1, tzinfo=UTC)

_ACTOR = "demo"
_READY_SECONDS = 60
_STATUS_SECONDS = 10
_STOP_SECONDS = 20

_VARIANTS: list[dict[str, Any]] = [
    {
        "key": "popularity",
        "recommender": "popularity",
        "control": True,
        "settings": {"title": "Popular this month"},
    },
    {
        "key": "item_knn",
        "recommender": "item_knn",
        "settings": {"title": "Goes with what you bought"},
    },
    {"key": "als", "recommender": "als", "settings": {"title": "Picked for you"}},
]

EXPERIMENTS: tuple[dict[str, Any], ...] = (
    {
        "key": "home-carousel",
        "kind": "ab",
        "placement": "home",
        "layer": "home",
        "description": "Which recommender earns more interactions on the home page?",
        "variants": _VARIANTS,
        "attribution_window": "15s",
    },
    {
        "key": "offers-carousel",
        "kind": "bandit",
        "placement": "offers",
        "layer": "offers",
        "description": "The same recommenders, with traffic moving to the better one.",
        "variants": _VARIANTS,
        "attribution_window": "10s",
        "policy": {
            "name": "thompson",
            "floor": 0.05,
            "control_share": 0.1,
            "interval": "20s",
            "minimum_units": 100,
        },
    },
)


def run(
    settings: Settings, *, visits_per_second: float, seconds: float | None = None
) -> None:
    """Run the demo until Ctrl-C, SIGTERM, or `seconds` after the shoppers came.

    Raises
    ------
    Unavailable
        When a part does not start; says which, and shows its last lines.
    """
    settings = replace(
        settings,
        port=_free_port(settings.host, settings.port),
        dashboard_port=_free_port(settings.host, settings.dashboard_port),
    )
    logging.getLogger("experiment_service").setLevel(logging.WARNING)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with termination_as_exit(), ExitStack() as stack:
        _say("starting PostgreSQL")
        url = stack.enter_context(
            running_database(settings.database_url, settings.data_dir)
        )
        migrate(url)
        engine = create_engine(url, pool_size=2, name="demo")
        stack.callback(engine.dispose)
        _say("loading The Complete Journey, a year of purchases of 2,469 households")
        earlier, later = split_at(load_interactions(counted_before=CUT), CUT)
        _prepare(engine, settings, earlier)
        _say("starting API, worker and dashboard")
        for part in ("dashboard", "worker", "serve"):
            # Closed in reverse: the API drains while the database is still there.
            stack.enter_context(_running(part, settings, url))
        _wait_until_ready(settings)
        products = products_of(load_catalogue())
        households = future_households(earlier, later, products)
        shoppers = Shoppers(
            f"http://{settings.host}:{settings.port}",
            placements=[str(each["placement"]) for each in EXPERIMENTS],
            households=households,
            products=products,
            visits_per_second=visits_per_second,
            rng=np.random.default_rng(),
            key=_storefront_key(engine),
        )
        _print_addresses(settings, len(households), visits_per_second)
        asyncio.run(_shop(shoppers, engine, seconds))
        _say("stopping; events on their way are stored first")
    _say("stopped; run `make demo` again to go on where it ended")


def _say(text: str) -> None:
    print(f"[{datetime.now(UTC):%H:%M:%S}] {text}", flush=True)


def _free_port(host: str, preferred: int) -> int:
    for port in (preferred, 0):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            return int(listener.getsockname()[1])
    raise Unavailable(f"no port can be opened on {host}; check EXPERIMENT_SERVICE_HOST")


def _prepare(engine: Engine, settings: Settings, purchases: pd.DataFrame) -> None:
    """Train what is missing, and start the experiments."""
    if settings.unit_key is not None:
        purchases = training.pseudonymised(purchases, Pseudonyms(settings.unit_key))
    with transaction(engine) as connection:
        live = storage.list_model_names(connection, live=True)
    for variant in _VARIANTS:
        name = str(variant["recommender"])
        if name in live and _is_published(engine, settings.data_dir, name):
            continue
        version = training.train(
            engine,
            data_dir=settings.data_dir,
            interactions=purchases,
            recommender=name,
            with_related=False,
            now=datetime.now(UTC),
            code_version=code_version(),
            actor=_ACTOR,
            progress=_say,
        )
        if version.status != "live":
            raise Unavailable(f"{version.label} failed its checks: {version.reason}")
    with transaction(engine) as connection:
        stored = {each.key: each.state for each in storage.list_experiments(connection)}
        for document in EXPERIMENTS:
            _ensure_running(connection, document, stored)


def _is_published(engine: Engine, data_dir: Path, name: str) -> bool:
    with transaction(engine) as connection:
        configuration = storage.load_configuration(connection, now=datetime.now(UTC))
    return (data_dir / configuration.models[name].artifact).is_dir()


def _ensure_running(
    connection: Connection,
    document: Mapping[str, object],
    stored: Mapping[str, ExperimentState],
) -> None:
    declaration = parse_declaration(document)
    now = datetime.now(UTC)
    if declaration.key not in stored:
        experimentation.create(connection, declaration, actor=_ACTOR, now=now)
    if stored.get(declaration.key, ExperimentState.DRAFT) is ExperimentState.DRAFT:
        experimentation.start(connection, declaration.key, actor=_ACTOR, now=now)


def part_command(part: str) -> list[str]:
    """Return the command that runs a part as a process of its own."""
    return [sys.executable, "-m", "experiment_service", part]


@contextmanager
def _running(part: str, settings: Settings, url: str) -> Iterator[None]:
    """Run a part with its output in a log file; end it by SIGTERM."""
    log_file = settings.data_dir / f"{part}.log"
    with log_file.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            part_command(part),
            env=settings.environment(database_url=url),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            # Ctrl-C reaches this process only, which ends the parts in order.
            start_new_session=True,
        )
        try:
            yield
            if process.poll() not in (None, 0):
                log.warning("%s ended by itself; see %s", part, log_file)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _storefront_key(engine: Engine) -> str | None:
    """Make a key for the shoppers of a day, if the service asks for keys at all."""
    with transaction(engine) as connection:
        if not list_keys(connection):
            return None
        made = keys.create(
            connection,
            "demo shoppers",
            [Scope.STOREFRONT],
            life=timedelta(days=1),
            actor=_ACTOR,
            now=datetime.now(UTC),
        )
    return made.written


def _wait_until_ready(settings: Settings) -> None:
    pages = {
        "serve": f"http://{settings.host}:{settings.port}/health/ready",
        "dashboard": f"http://{settings.host}:{settings.dashboard_port}/_stcore/health",
    }
    for part, page in pages.items():
        deadline = time.monotonic() + _READY_SECONDS
        while not _is_ready(page):
            if time.monotonic() > deadline:
                last = (settings.data_dir / f"{part}.log").read_text(errors="replace")
                raise Unavailable(
                    f"`experiment-service {part}` did not start; its last lines:\n"
                    + "\n".join(last.splitlines()[-5:])
                )
            time.sleep(0.2)


def _is_ready(page: str) -> bool:
    try:
        return httpx.get(page, timeout=2).is_success
    except httpx.HTTPError:
        return False


def _print_addresses(settings: Settings, shoppers: int, rate: float) -> None:
    api = f"http://{settings.host}:{settings.port}"
    dashboard = f"http://{settings.host}:{settings.dashboard_port}"
    print(
        f"""
{shoppers:,} households come shopping, {rate:g} visits a second. They click by what they
really bought in the weeks after the recommenders were trained: nothing is planted.

  Dashboard   {dashboard}
              Overview: both experiments at a glance
              Experiment: home-carousel, an A/B test of three recommenders
              Bandit: offers-carousel, weights move every 20 s
              Planning: how long the next test takes on this traffic
              Replay: what another policy would have earned
              Models: which versions there are, and what serves where
              Health: events, lag, and what could make the numbers wrong
  API         {api}/docs
  Logs        {settings.data_dir}/serve.log, worker.log, dashboard.log

Ctrl-C stops everything.
""",
        flush=True,
    )


async def _shop(shoppers: Shoppers, engine: Engine, seconds: float | None) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopping.set)
    if seconds is not None:
        loop.call_later(seconds, stopping.set)
    status = asyncio.create_task(_print_status(shoppers, engine))
    try:
        await shoppers.run(stopping)
    finally:
        status.cancel()


async def _print_status(shoppers: Shoppers, engine: Engine) -> None:
    while True:
        await asyncio.sleep(_STATUS_SECONDS)
        weights = await asyncio.to_thread(_bandit_weights, engine)
        tally = shoppers.tally
        speed = statistics.median(tally.milliseconds) if tally.milliseconds else 0.0
        _say(
            f"{tally.visits:,} visits, {tally.clicks:,} clicks, {tally.failures} "
            f"failures, answers in {speed:.1f} ms (median); bandit {weights}"
        )


def _bandit_weights(engine: Engine) -> str:
    key = str(EXPERIMENTS[1]["key"])
    try:
        with transaction(engine) as connection:
            experiment = storage.get_experiment(connection, key)
            epoch = storage.list_epochs(connection, experiment.id, last=1)[-1]
    except Unavailable as error:
        return f"unknown: {error.message}"
    shares = ", ".join(f"{v} {w:.0%}" for v, w in epoch.weights.items())
    return f"epoch {epoch.number}: {shares}"
