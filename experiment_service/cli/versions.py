"""Commands about model versions: list, shadow, promote, reject, roll back."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from experiment_service.cli.common import (
    actor,
    clock,
    json_object,
    open_engine,
    print_table,
)
from experiment_service.config import Settings
from experiment_service.domain.shadow import ShadowRule
from experiment_service.lazy import LazyModule
from experiment_service.storage.database import transaction
from experiment_service.storage.models import ModelVersion, list_versions

if TYPE_CHECKING:
    from experiment_service import promotion
else:
    promotion = LazyModule("experiment_service.promotion")


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
    decide = partial(
        promotion.set_shadow,
        data_dir=settings.data_dir,
        share=parsed.share,
        rule=rule,
    )
    version = _decide(settings, parsed, decide)
    print(f"{version.label}: {version.status} of {parsed.share:g} of units")


def _promote(settings: Settings, parsed: argparse.Namespace) -> None:
    decide = partial(promotion.promote, data_dir=settings.data_dir)
    _tell(_decide(settings, parsed, decide))


def _reject(settings: Settings, parsed: argparse.Namespace) -> None:
    _tell(_decide(settings, parsed, promotion.reject))


def _rollback(settings: Settings, parsed: argparse.Namespace) -> None:
    decide = partial(promotion.roll_back, data_dir=settings.data_dir)
    _tell(_decide(settings, parsed, decide))


def _decide(
    settings: Settings,
    parsed: argparse.Namespace,
    decide: Callable[..., ModelVersion],
) -> ModelVersion:
    with open_engine(settings) as engine, transaction(engine) as connection:
        return decide(
            connection,
            name=parsed.name,
            version=parsed.version,
            actor=actor(),
            reason=parsed.reason,
            now=clock(),
        )


def _tell(version: ModelVersion) -> None:
    print(f"{version.label}: {version.status}")
