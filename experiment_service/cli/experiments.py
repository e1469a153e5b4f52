"""Commands about experiments: declare, start, change, explain."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from experiment_service import experimentation
from experiment_service.cli.common import (
    actor,
    clock,
    open_engine,
    open_reader,
    pairs,
    print_json,
    print_table,
)
from experiment_service.config import Settings
from experiment_service.domain.configuration import (
    epoch_document,
    experiment_document,
)
from experiment_service.domain.declaration import parse_declaration, parse_outcome
from experiment_service.domain.event import check_attributes, check_id
from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.errors import InvalidRequest
from experiment_service.reallocation import reallocate
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import transaction

Command = Callable[[Settings, argparse.Namespace], None]


def add_experiments(commands: Any) -> None:  # noqa: ANN401 - argparse names no type
    """Add the commands about experiments."""

    def add(name: str, command: Command, text: str, *, key: bool = True) -> Any:  # noqa: ANN401
        sub = commands.add_parser(name, help=text)
        sub.set_defaults(command=command)
        if key:
            sub.add_argument("key", help="key of the experiment")
        return sub

    create = add("create", _create, "create an experiment from a file", key=False)
    create.add_argument("file", type=Path, help="YAML or JSON; - reads standard input")
    create.add_argument(
        "--metrics",
        type=Path,
        metavar="FILE",
        help="a list of metrics that several experiments share",
    )
    create.add_argument("--start", action="store_true", help="start it at once")
    add("list", _list, "list experiments", key=False)
    add("show", _show, "show an experiment, its epochs and its history")
    add("start", _start, "let a draft run")
    stop = add("stop", _stop, "end a running experiment")
    stop.add_argument("--reason", default="", help="kept in the audit log")
    decide = add("decide", _decide, "store what was decided after an experiment")
    decide.add_argument("outcome", help="ship, keep_control or inconclusive")
    decide.add_argument("--variant", help="what ships")
    decide.add_argument("--reason", required=True, help="for those who ask later")
    weights = add("set-weights", _set_weights, "open an epoch with other weights")
    weights.add_argument("weights", nargs="+", metavar="VARIANT=WEIGHT")
    weights.add_argument("--reason", default="")
    overrides = add("set-overrides", _set_overrides, "send test units to a variant")
    overrides.add_argument("overrides", nargs="*", metavar="UNIT=VARIANT")
    explain = add("explain", _explain, "say which variant a unit gets, and why")
    explain.add_argument("unit_id")
    explain.add_argument("attributes", nargs="*", metavar="NAME=VALUE")
    add("reallocate", _reallocate, "look at a bandit now instead of on schedule")
    placement = add("set-placement", _set_placement, "what shows outside experiments")
    placement.add_argument("recommender", help="name of a live model")


def _create(settings: Settings, parsed: argparse.Namespace) -> None:
    document = _read_document(parsed.file)
    if parsed.metrics is not None:
        document = _with_shared(
            document, _read_document(parsed.metrics), parsed.metrics
        )
    declaration = parse_declaration(document)
    overrides = Pseudonyms(settings.unit_key).of_keys(declaration.overrides)
    declaration = replace(declaration, overrides=overrides)
    with open_engine(settings) as engine, transaction(engine) as connection:
        experimentation.create(connection, declaration, actor=actor(), now=clock())
        if parsed.start:
            experimentation.start(
                connection, declaration.key, actor=actor(), now=clock()
            )
    print(f"{declaration.key}: {'running' if parsed.start else 'draft'}")


def _with_shared(document: object, shared: object, file: Path) -> object:
    """Put shared metrics before the experiment's own."""
    if not isinstance(shared, list):
        raise InvalidRequest(
            f"{file} holds a {type(shared).__name__}; it must be a list of metrics"
        )
    if not isinstance(document, dict):
        return document
    own = document.get("metrics") or []
    return {**document, "metrics": [*shared, *own] if isinstance(own, list) else own}


def _read_document(file: Path) -> object:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
        return yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise InvalidRequest(f"{file} is neither YAML nor JSON: {error}") from error


def _list(settings: Settings, _: argparse.Namespace) -> None:
    with open_reader(settings) as engine, transaction(engine) as connection:
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
    print_table(("KEY", "KIND", "STATE", "PLACEMENT", "VARIANTS"), rows)


def _show(settings: Settings, parsed: argparse.Namespace) -> None:
    with open_reader(settings) as engine, transaction(engine) as connection:
        experiment = storage.get_experiment(connection, parsed.key)
        epochs = storage.list_epochs(connection, experiment.id, last=20)
        history = storage.list_audit(connection, f"experiment/{parsed.key}")
    print_json(
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
    with open_engine(settings) as engine, transaction(engine) as connection:
        experimentation.start(connection, parsed.key, actor=actor(), now=clock())
    print(f"{parsed.key}: running")


def _stop(settings: Settings, parsed: argparse.Namespace) -> None:
    with open_engine(settings) as engine, transaction(engine) as connection:
        experimentation.stop(
            connection, parsed.key, actor=actor(), now=clock(), reason=parsed.reason
        )
    print(f"{parsed.key}: stopped")


def _decide(settings: Settings, parsed: argparse.Namespace) -> None:
    outcome = parse_outcome("outcome", parsed.outcome)
    with open_engine(settings) as engine, transaction(engine) as connection:
        experimentation.decide(
            connection,
            parsed.key,
            outcome,
            variant=parsed.variant,
            reason=parsed.reason,
            actor=actor(),
        )
    print(f"{parsed.key}: {outcome}{f' {parsed.variant}' if parsed.variant else ''}")


def _set_weights(settings: Settings, parsed: argparse.Namespace) -> None:
    weights = {}
    for variant, text in pairs("weight", parsed.weights).items():
        try:
            weights[variant] = float(text)
        except ValueError:
            raise InvalidRequest(
                f"weight of {variant!r} is {text!r}; it must be a number"
            ) from None
    with open_engine(settings) as engine, transaction(engine) as connection:
        epoch = experimentation.set_weights(
            connection,
            parsed.key,
            weights,
            actor=actor(),
            now=clock(),
            reason=parsed.reason,
        )
    print(f"{parsed.key}: epoch {epoch.number} with {dict(epoch.weights)}")


def _set_overrides(settings: Settings, parsed: argparse.Namespace) -> None:
    overrides = Pseudonyms(settings.unit_key).of_keys(
        pairs("override", parsed.overrides)
    )
    with open_engine(settings) as engine, transaction(engine) as connection:
        experimentation.set_overrides(connection, parsed.key, overrides, actor=actor())
    print(f"{parsed.key}: {len(overrides)} overrides")


def _explain(settings: Settings, parsed: argparse.Namespace) -> None:
    attributes = check_attributes(
        "attributes",
        {k: _attribute(v) for k, v in pairs("attribute", parsed.attributes).items()},
    )
    unit_id = Pseudonyms(settings.unit_key).of(check_id("unit_id", parsed.unit_id))
    with open_reader(settings) as engine, transaction(engine) as connection:
        assignment = experimentation.explain(
            connection, parsed.key, unit_id, attributes
        )
    print(f"variant     {assignment.variant or 'none: not in the experiment'}")
    if assignment.propensity is not None:
        print(f"propensity  {assignment.propensity:.6g} in epoch {assignment.epoch}")
    print(f"decided by  {assignment.step}: {assignment.reason}")


def _attribute(value: str) -> object:
    """Read true, false and numbers as such, anything else as text."""
    try:
        read = json.loads(value)
    except json.JSONDecodeError:
        return value
    return read if isinstance(read, bool | int | float) else value


def _reallocate(settings: Settings, parsed: argparse.Namespace) -> None:
    now = clock()
    with open_engine(settings) as engine, transaction(engine) as connection:
        look = reallocate(connection, parsed.key, cutoff=now, now=now)
    print(f"epoch {look.epoch}, {'moved' if look.moved else 'kept'}: {look.reason}")


def _set_placement(settings: Settings, parsed: argparse.Namespace) -> None:
    with open_engine(settings) as engine, transaction(engine) as connection:
        experimentation.set_placement(
            connection,
            parsed.key,
            recommender=parsed.recommender,
            settings={},
            actor=actor(),
        )
    print(f"placement {parsed.key} shows {parsed.recommender} outside experiments")
