"""The command that prints monitors of what serves, and alerts."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from experiment_service.cli.common import clock, open_reader, print_json, print_table
from experiment_service.config import Settings
from experiment_service.domain.monitor import MONITORS, title_of
from experiment_service.reporting import (
    Alerts,
    MonitoredDay,
    build_alerts,
    build_monitored,
    list_experiments,
)
from experiment_service.storage.database import transaction


def add_monitors(commands: Any) -> None:  # noqa: ANN401 - argparse names no type
    """Add the command about monitors."""
    monitors = commands.add_parser(
        "monitors",
        help="say what monitors see in what serves, and which alerts are open",
    )
    monitors.add_argument("key", nargs="?", help="one experiment; all that run else")
    monitors.add_argument("--json", action="store_true", help="every day, as JSON")
    monitors.set_defaults(command=_monitors)


def _monitors(settings: Settings, parsed: argparse.Namespace) -> None:
    now = clock()
    with open_reader(settings) as engine, transaction(engine) as connection:
        keys = [parsed.key] if parsed.key else []
        keys = keys or [
            each.key for each in list_experiments(connection) if each.state == "running"
        ]
        found = {key: build_monitored(connection, key, as_of=now) for key in keys}
        alerts = build_alerts(connection)
    if parsed.json:
        days = {key: list(map(dataclasses.asdict, each)) for key, each in found.items()}
        opened = list(map(dataclasses.asdict, alerts.open))
        print_json({"alerts": opened, "days": days})
        return
    _print_alerts(alerts)
    rows = [(key, *_cells(each)) for key, days in found.items() for each in _last(days)]
    if rows:
        print()
        titles = (each.title.upper() for each in MONITORS.values())
        print_table(
            ("EXPERIMENT", "VARIANT", "UNTIL (UTC)", "EXPOSURES", *titles), rows
        )
    else:
        print("Nothing was measured yet; a worker looks every ten minutes.")


def _last(days: Sequence[MonitoredDay]) -> list[MonitoredDay]:
    """Return what the last look at each variant found."""
    return list({each.variant: each for each in days}.values())


def _cells(day: MonitoredDay) -> tuple[object, ...]:
    values = (
        "-" if (value := day.measured.get(name)) is None else monitor.write(value)
        for name, monitor in MONITORS.items()
    )
    return (day.variant, f"{day.until:%Y-%m-%d %H:%M}", day.exposures, *values)


def _print_alerts(alerts: Alerts) -> None:
    if not alerts.open:
        print("No alert is open.")
    for each in alerts.open:
        print(
            f"ALERT {title_of(each.monitor)} of {each.about}, since "
            f"{each.raised_at:%Y-%m-%d %H:%M} UTC: {each.reason}"
        )
