"""Commands that run the service, and care for its database."""

import argparse
import getpass
import sys
from typing import TYPE_CHECKING, Any

from experiment_service.cli.common import actor, clock, open_engine, print_table
from experiment_service.config import Settings
from experiment_service.errors import InvalidRequest
from experiment_service.lazy import LazyModule
from experiment_service.passwords import hash_password
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import migrate, running_database, transaction
from experiment_service.storage.events import rebuild_outcomes
from experiment_service.termination import termination_as_exit

if TYPE_CHECKING:
    from dashboard import server
    from experiment_service import demo, retention, worker
    from experiment_service.api import app
else:
    # Each is a program of its own, and takes seconds to load.
    app = LazyModule("experiment_service.api.app")
    demo = LazyModule("experiment_service.demo")
    retention = LazyModule("experiment_service.retention")
    server = LazyModule("dashboard.server")
    worker = LazyModule("experiment_service.worker")


def add_services(commands: Any) -> None:  # noqa: ANN401 - argparse names no type
    """Add the commands that run the service."""
    demo_ = commands.add_parser("demo", help="run everything on real retail data")
    demo_.add_argument("--visits-per-second", type=float, default=30.0)
    demo_.add_argument(
        "--seconds", type=float, help="stop by itself after so many seconds"
    )
    demo_.set_defaults(command=_demo)
    serve = commands.add_parser("serve", help="run the API")
    serve.add_argument("--workers", type=int, default=1, help="number of processes")
    serve.set_defaults(command=_serve)
    worker_ = commands.add_parser("worker", help="run the scheduled jobs")
    worker_.set_defaults(command=_worker)
    dashboard = commands.add_parser("dashboard", help="run the dashboard")
    dashboard.set_defaults(command=_dashboard)
    hashed = commands.add_parser(
        "hash-password", help="ask for the dashboard's password and print its hash"
    )
    hashed.set_defaults(command=_hash_password)
    migrate = commands.add_parser("migrate", help="bring the schema up to date")
    migrate.add_argument("--revision", default="head", help="a revision, -1 or base")
    migrate.set_defaults(command=_migrate)
    rebuild = commands.add_parser(
        "rebuild-outcomes", help="recompute unit outcomes from raw events"
    )
    rebuild.add_argument("key", nargs="?", help="one experiment; all when left out")
    rebuild.set_defaults(command=_rebuild_outcomes)
    retention_ = commands.add_parser(
        "retention", help="show which months of raw events may go, and retire them"
    )
    retention_.add_argument(
        "--apply", action="store_true", help="archive and drop them; else only look"
    )
    retention_.set_defaults(command=_retention)


def _demo(settings: Settings, parsed: argparse.Namespace) -> None:
    if not 0.1 <= parsed.visits_per_second <= 1000:
        raise InvalidRequest(
            f"--visits-per-second is {parsed.visits_per_second}; it must lie in 0.1 to "
            "1000"
        )
    demo.run(
        settings,
        visits_per_second=parsed.visits_per_second,
        seconds=parsed.seconds,
    )


def _serve(settings: Settings, parsed: argparse.Namespace) -> None:
    if not 1 <= parsed.workers <= 64:
        raise InvalidRequest(f"--workers is {parsed.workers}; it must lie in 1 to 64")
    app.serve(settings, workers=parsed.workers)


def _worker(settings: Settings, _: argparse.Namespace) -> None:
    with (
        termination_as_exit(),
        running_database(settings.database_url, settings.data_dir) as url,
    ):
        worker.run_worker(url, settings)


def _dashboard(settings: Settings, _: argparse.Namespace) -> None:
    server.run(settings)


def _hash_password(_: Settings, __: argparse.Namespace) -> None:
    if sys.stdin.isatty():
        password = getpass.getpass("Password of the dashboard: ")
        if getpass.getpass("Once more: ") != password:
            raise InvalidRequest("the two passwords differ; nothing was made")
    else:
        password = sys.stdin.readline().rstrip("\n")
    print(hash_password(password))


def _migrate(settings: Settings, parsed: argparse.Namespace) -> None:
    with running_database(settings.database_url, settings.data_dir) as url:
        migrate(url, parsed.revision)
    print(f"schema is at {parsed.revision}")


def _rebuild_outcomes(settings: Settings, parsed: argparse.Namespace) -> None:
    with open_engine(settings) as engine, transaction(engine) as connection:
        experiment_id = None
        if parsed.key is not None:
            experiment_id = storage.get_experiment(connection, parsed.key).id
        rebuild_outcomes(connection, experiment_id)
    print(f"outcomes of {parsed.key or 'all experiments'} recomputed from raw events")


def _retention(settings: Settings, parsed: argparse.Namespace) -> None:
    days, at = settings.retention_days, clock()
    retired = []
    with open_engine(settings) as engine:
        if parsed.apply:
            retired = retention.retire_months(
                engine,
                days=days,
                archive_dir=settings.archive_dir,
                actor=actor(),
                now=at,
            )
        with transaction(engine) as connection:
            kept = list(retention.judge_months(connection, days=days, now=at))
    rows = [(each.name, _mebibytes(each), "retired", each.reason) for each in retired]
    rows += [
        (each.name, _mebibytes(each), "may go" if each.goes else "stays", each.reason)
        for each in kept
    ]
    print_table(("MONTH", "MIB", "RAW EVENTS", "BECAUSE"), rows)


def _mebibytes(verdict: "retention.Verdict") -> str:
    return f"{verdict.size_bytes / (1 << 20):.1f}"
