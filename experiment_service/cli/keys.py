"""Commands about access: keys, the audit log, erasure of a unit, the reading role."""

import argparse
from datetime import timedelta
from typing import Any

from experiment_service import erasure, keys
from experiment_service.cli.common import (
    actor,
    clock,
    open_engine,
    print_json,
    print_table,
)
from experiment_service.config import Settings
from experiment_service.domain.event import check_id
from experiment_service.domain.key import Scope, parse_scopes
from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.errors import InvalidRequest
from experiment_service.storage import keys as storage
from experiment_service.storage.audit import audit_document, page_of_audit
from experiment_service.storage.database import transaction
from experiment_service.storage.reader import create_reader


def add_keys(commands: Any) -> None:  # noqa: ANN401 - argparse names no type
    """Add the commands about access."""
    about = commands.add_parser("keys", help="create, list, revoke and rotate API keys")
    chosen = about.add_subparsers(required=True, metavar="WHAT")
    create = chosen.add_parser("create", help="make a key; it is shown once")
    create.add_argument("name", help="who or what will use it")
    create.add_argument(
        "--scope",
        action="append",
        required=True,
        help=f"one of {', '.join(Scope)}; may be given several times",
    )
    create.add_argument(
        "--origin", action="append", default=[], help="a page that may use it"
    )
    create.add_argument("--per-second", type=float, help="requests, for each process")
    create.add_argument("--days", type=float, help="until it expires")
    create.set_defaults(command=_create)
    chosen.add_parser("list", help="show all keys").set_defaults(command=_list)
    revoke = chosen.add_parser("revoke", help="refuse a key from now on")
    revoke.add_argument("id")
    revoke.add_argument("--reason", default="", help="kept in the audit log")
    revoke.set_defaults(command=_revoke)
    rotate = chosen.add_parser("rotate", help="replace a key; it is shown once")
    rotate.add_argument("id")
    rotate.add_argument(
        "--overlap-hours", type=float, default=24.0, help="the former one stays good"
    )
    rotate.set_defaults(command=_rotate)


def add_privacy(commands: Any) -> None:  # noqa: ANN401 - argparse names no type
    """Add the commands about what is stored and who changed it."""
    audit = commands.add_parser("audit", help="show who changed what, newest first")
    audit.add_argument("--subject", help="such as experiment/home-carousel")
    audit.add_argument("--limit", type=int, default=50)
    audit.add_argument("--before", type=int, help="number of the last entry seen")
    audit.add_argument("--json", action="store_true", help="with before and after")
    audit.set_defaults(command=_audit)
    erase = commands.add_parser("erase", help="remove all that is stored of a unit")
    erase.add_argument("unit_id")
    erase.add_argument("--reason", default="", help="for the audit log; not the unit")
    erase.set_defaults(command=_erase)
    reader = commands.add_parser(
        "create-reader", help="make a database role that can only read"
    )
    reader.add_argument("role", nargs="?", default="experiment_service_reader")
    reader.set_defaults(command=_create_reader)


def _days(name: str, number: float | None, unit: timedelta) -> timedelta | None:
    if number is None:
        return None
    try:
        return number * unit
    except (OverflowError, ValueError):
        raise InvalidRequest(f"{name} is {number}; it is out of range") from None


def _create(settings: Settings, parsed: argparse.Namespace) -> None:
    with open_engine(settings) as engine, transaction(engine) as connection:
        made = keys.create(
            connection,
            parsed.name,
            parse_scopes(parsed.scope),
            origins=parsed.origin,
            per_second=parsed.per_second,
            life=_days("--days", parsed.days, timedelta(days=1)),
            actor=actor(),
            now=clock(),
        )
    print(made.written)


def _list(settings: Settings, _: argparse.Namespace) -> None:
    with open_engine(settings) as engine, transaction(engine) as connection:
        found = storage.list_keys(connection)
    now = clock()
    rows = [
        (
            key.id,
            key.name,
            ", ".join(key.scopes),
            ", ".join(key.origins) or "-",
            "-" if key.per_second is None else f"{key.per_second:g}",
            f"{key.created_at:%Y-%m-%d}",
            key.used_on or "-",
            key.problem(now) or "good",
        )
        for key in found
    ]
    if not rows:
        print("no keys yet; on loopback the service is open, elsewhere it won't start")
        return
    print_table(
        ("ID", "NAME", "SCOPES", "ORIGINS", "PER SECOND", "CREATED", "USED", "STATE"),
        rows,
    )


def _revoke(settings: Settings, parsed: argparse.Namespace) -> None:
    with open_engine(settings) as engine, transaction(engine) as connection:
        keys.revoke(
            connection, parsed.id, actor=actor(), now=clock(), reason=parsed.reason
        )
    print(f"{parsed.id}: revoked")


def _rotate(settings: Settings, parsed: argparse.Namespace) -> None:
    overlap = _days("--overlap-hours", parsed.overlap_hours, timedelta(hours=1))
    with open_engine(settings) as engine, transaction(engine) as connection:
        made = keys.rotate(
            connection,
            parsed.id,
            overlap=keys.OVERLAP if overlap is None else overlap,
            actor=actor(),
            now=clock(),
        )
    print(made.written)


def _audit(settings: Settings, parsed: argparse.Namespace) -> None:
    if not 1 <= parsed.limit <= 10_000:
        raise InvalidRequest(f"--limit is {parsed.limit}; it must lie in 1 to 10000")
    with open_engine(settings) as engine, transaction(engine) as connection:
        page = page_of_audit(
            connection,
            limit=parsed.limit,
            before=parsed.before,
            subject=parsed.subject,
        )
    if parsed.json:
        print_json([audit_document(number, entry) for number, entry in page])
        return
    print_table(
        ("ENTRY", "AT (UTC)", "ACTOR", "ACTION", "SUBJECT", "REASON"),
        [
            (
                number,
                f"{entry.recorded_at:%Y-%m-%d %H:%M:%S}",
                entry.actor,
                entry.action,
                entry.subject,
                entry.reason or "",
            )
            for number, entry in page
        ],
    )


def _erase(settings: Settings, parsed: argparse.Namespace) -> None:
    unit_ids = Pseudonyms(settings.unit_key).all_of(check_id("unit_id", parsed.unit_id))
    with open_engine(settings) as engine, transaction(engine) as connection:
        erased = erasure.erase(
            connection, unit_ids, actor=actor(), now=clock(), reason=parsed.reason
        )
    print_table(("TABLE", "ROWS REMOVED"), list(erased.rows.items()))
    for key in erased.overrides:
        print(f"{key} has it among its overrides still; see set-overrides")
    for file in erased.archives:
        print(f"{file} may hold it still; it is an archive of a retired month")


def _create_reader(settings: Settings, parsed: argparse.Namespace) -> None:
    with open_engine(settings) as engine:
        print(create_reader(engine, parsed.role))
