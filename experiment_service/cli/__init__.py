"""The command `experiment-service`: thin over the use cases.

Entry point: reads settings and the clock, opens transactions, prints. Errors of the
service end in one sentence on stderr and exit status 2.
"""

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

from experiment_service import logs
from experiment_service.config import Settings
from experiment_service.errors import ExperimentServiceError

#: Commands with their help, by the function that adds them. What a command needs may take
#: seconds to load, so only the one that is asked for is.
COMMANDS: Mapping[str, Mapping[str, str]] = {
    "services:add_services": {
        "demo": "run everything on real retail data",
        "serve": "run the API",
        "worker": "run the scheduled jobs",
        "dashboard": "run the dashboard",
        "hash-password": "ask for the dashboard's password and print its hash",
        "migrate": "bring the schema up to date",
        "rebuild-outcomes": "recompute unit outcomes from raw events",
        "retention": "show which months of raw events may go, and retire them",
    },
    "experiments:add_experiments": {
        "create": "create an experiment from a file",
        "list": "list experiments",
        "show": "show an experiment, its epochs and its history",
        "start": "let a draft run",
        "stop": "end a running experiment",
        "decide": "store what was decided after an experiment",
        "set-weights": "open an epoch with other weights",
        "set-overrides": "send test units to a variant",
        "explain": "say which variant a unit gets, and why",
        "reallocate": "look at a bandit now instead of on schedule",
        "set-placement": "what shows outside experiments",
    },
    "models:add_models": {"train": "train, check and publish recommenders"},
    "versions:add_versions": {
        "models": "list, shadow, promote and reject versions",
        "rollback": "serve a former version again",
    },
    "releases:add_releases": {
        "release": "take a pipeline from data to a version that serves",
        "pipeline-schema": "print the JSON Schema of pipelines, for editors",
    },
    "mirrors:add_mirrors": {
        "mirror": "bring the MLflow mirror up to date",
        "import-model": "take a version from MLflow, as a candidate",
    },
    "searches:add_search": {"search": "search for better parameters"},
    "reports:add_report": {"report": "print the report"},
    "monitors:add_monitors": {
        "monitors": "say what monitors see in what serves, and which alerts are open"
    },
    "plans:add_plan": {
        "plan": "say how many units and days a test needs, and what it can see by when"
    },
    "replays:add_replay": {
        "replay": "say what other policies would have earned on a log"
    },
    "replays:add_export": {
        "export": "write an experiment's rounds or raw events to CSV or Parquet"
    },
    "keys:add_keys": {"keys": "create, list, revoke and rotate API keys"},
    "keys:add_privacy": {
        "audit": "show who changed what, newest first",
        "erase": "remove all that is stored of a unit",
        "create-reader": "make a database role that can only read",
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    # The first that is no option of the program itself; without one, help is shown.
    asked = next((each for each in given if not each.startswith("-")), "")
    parsed = build_parser(asked).parse_args(given)
    try:
        settings = Settings.from_environment()
        logs.configure(
            logging.DEBUG if parsed.verbose else logging.INFO, settings.log_format
        )
        parsed.command(settings, parsed)
        sys.stdout.flush()
    except ExperimentServiceError as error:
        print(f"experiment-service: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read what we print has ended, such as `head`; Python flushes once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def build_parser(asked: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of all commands.

    Parameters
    ----------
    asked : str, optional
        Of other commands than this one the names and help only.
    """
    parser = argparse.ArgumentParser(
        prog="experiment-service",
        description="A/B tests and bandits for recommender variants.",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log debug lines")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for adder, summaries in COMMANDS.items():
        if asked is None or asked in summaries:
            module, name = adder.split(":")
            getattr(import_module(f"{__name__}.{module}"), name)(commands)
        else:
            for name, summary in summaries.items():
                commands.add_parser(name, help=summary)
    return parser
