"""Commands about model versions: list, shadow, promote, reject, roll back."""

import argparse
from typing import Any

from experiment_service import promotion
from experiment_service.cli.common import (
    actor,
    clock,
    json_object,
    open_engine,
    print_table,
)
from experiment_service.config import Settings
from experiment_service.domain.shadow import ShadowRule
from experiment_service.storage.database import transaction
from experiment_service.storage.models import ModelVersion, list_versions


def add_versions(commands: Any) -> None:  # noqa: ANN401 - argparse names no type
    """Add the commands about model versions."""
    about = commands.add_parser(
        "models", help="list, shadow, promote and reject versions"
    )
    about.set_defaults(command=_models)
    chosen = about.add_subparsers(metavar="WHAT")
    chosen.add_parser("list", help="show all versions").set_defaults(command=_models)
    shadow = _decision(chosen, "shadow", "compute it beside the live one, never shown")
    shadow.add_argument(
        "--share", type=float, required=True, help="of units, above 0 and at most 1"
    )
    shadow.add_argument(
        "--rule", help="JSON object of thresholds that decides unasked; see docs"
    )
    shadow.set_defaults(command=_shadow)
    promote = _decision(chosen, "promote", "let a candidate or a shadow serve")
    promote.set_defaults(command=_promote)
    reject = _decision(chosen, "reject", "end a candidate or a shadow for ever")
    reject.set_defaults(command=_reject)
    rollback = commands.add_parser("rollback", help="serve a former version again")
    rollback.add_argument("name")
    rollback.add_argument("--version", type=int, help="the one before when left out")
    rollback.add_argument("--reason", default="rolled back by hand")
    rollback.set_defaults(command=_rollback)


def _decision(chosen: Any, name: str, summary: str) -> argparse.ArgumentParser:  # noqa: ANN401
    parser: argparse.ArgumentParser = chosen.add_parser(name, help=summary)
    parser.add_argument("name")
    parser.add_argument("version", type=int)
    parser.add_argument("--reason", default="decided by hand", help="for the audit log")
    return parser


def _models(settings: Settings, _: argparse.Namespace) -> None:
    with open_engine(settings) as engine, transaction(engine) as connection:
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
    print_table(("MODEL", "STATUS", "RECOMMENDER", "DATA TO", "TRAINED", "WHY"), rows)


def _shadow(settings: Settings, parsed: argparse.Namespace) -> None:
    rule = None
    if parsed.rule is not None:
        rule = ShadowRule.parse(json_object("--rule", parsed.rule))
    with open_engine(settings) as engine, transaction(engine) as connection:
        version = promotion.set_shadow(
            connection,
            data_dir=settings.data_dir,
            name=parsed.name,
            version=parsed.version,
            share=parsed.share,
            rule=rule,
            actor=actor(),
            reason=parsed.reason,
            now=clock(),
        )
    print(f"{version.label}: {version.status} of {parsed.share:g} of units")


def _promote(settings: Settings, parsed: argparse.Namespace) -> None:
    with open_engine(settings) as engine, transaction(engine) as connection:
        version = promotion.promote(
            connection,
            data_dir=settings.data_dir,
            name=parsed.name,
            version=parsed.version,
            actor=actor(),
            reason=parsed.reason,
            now=clock(),
        )
    _tell(version)


def _reject(settings: Settings, parsed: argparse.Namespace) -> None:
    with open_engine(settings) as engine, transaction(engine) as connection:
        version = promotion.reject(
            connection,
            name=parsed.name,
            version=parsed.version,
            actor=actor(),
            reason=parsed.reason,
            now=clock(),
        )
    _tell(version)


def _rollback(settings: Settings, parsed: argparse.Namespace) -> None:
    with open_engine(settings) as engine, transaction(engine) as connection:
        version = promotion.roll_back(
            connection,
            data_dir=settings.data_dir,
            name=parsed.name,
            version=parsed.version,
            actor=actor(),
            reason=parsed.reason,
            now=clock(),
        )
    _tell(version)


def _tell(version: ModelVersion) -> None:
    print(f"{version.label}: {version.status}")
