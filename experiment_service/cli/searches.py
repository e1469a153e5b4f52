"""The command that searches for parameters; it needs no database."""

import argparse
import sys
from pathlib import Path
from typing import Any

from experiment_service import training
from experiment_service.cli.common import clock, instant, json_object
from experiment_service.config import Settings
from experiment_service.errors import InvalidRequest
from recommenders import RECOMMENDERS
from recommenders.search import MEASURES, Bounds, Goal


def add_search(commands: Any) -> None:  # noqa: ANN401 - argparse names no type
    """Add the command."""
    search = commands.add_parser("search", help="search for better parameters")
    search.add_argument("recommender", nargs="+", help="; ".join(RECOMMENDERS))
    source = search.add_mutually_exclusive_group(required=True)
    source.add_argument("--interactions", type=Path, help="CSV or Parquet; see README")
    source.add_argument(
        "--complete-journey", action="store_true", help="the demo's retail data"
    )
    search.add_argument("--catalogue", type=Path, help="CSV or Parquet; see README")
    search.add_argument("--measure", default="ndcg", choices=MEASURES)
    search.add_argument("--k", type=int, default=10, help="length of the lists judged")
    search.add_argument(
        "--repeats",
        action="store_true",
        help="what a unit had before may be recommended, and counts",
    )
    search.add_argument("--validate-since", help="start of what trials are judged on")
    search.add_argument("--test-since", help="start of what no trial sees")
    search.add_argument(
        "--parameters", default="{}", help="where to start; JSON object"
    )
    search.add_argument("--space", help="where to look; JSON object, see docs")
    search.add_argument("--trials", type=int, default=30, help="in all, at most")
    search.add_argument("--minutes", type=float, default=10.0, help="for each, at most")
    search.add_argument(
        "--storage", type=Path, help="file of the trials; the same file goes on"
    )
    search.add_argument("--seed", type=int, default=0)
    search.set_defaults(command=_search)


def _search(_: Settings, parsed: argparse.Namespace) -> None:
    test_since = _instant("--test-since", parsed.test_since)
    interactions = training.load_interactions(
        parsed.interactions, catalogue=parsed.catalogue, counted_before=test_since
    )
    catalogue = None
    if parsed.complete_journey or parsed.catalogue is not None:
        catalogue = training.load_catalogue(parsed.catalogue, interactions=interactions)
    try:
        goal = Goal(
            measure=parsed.measure,
            repeats="allowed" if parsed.repeats else "new only",
            k=parsed.k,
        )
        bounds = Bounds(trials=parsed.trials, seconds=parsed.minutes * 60)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    for recommender in parsed.recommender:
        searched = training.search_parameters(
            interactions,
            recommender=recommender,
            catalogue=catalogue,
            parameters=json_object("--parameters", parsed.parameters),
            space=None
            if parsed.space is None
            else json_object("--space", parsed.space),
            goal=goal,
            bounds=bounds,
            validate_since=_instant("--validate-since", parsed.validate_since),
            test_since=test_since,
            storage=parsed.storage,
            seed=parsed.seed,
            now=clock(),
            progress=lambda text: print(text, file=sys.stderr),
        )
        found = searched.found
        print(
            f"{recommender}: {found.trials} trials, {found.failed} failed; validation "
            f"{goal.measure} {found.given:.4f} at the start, {found.value:.4f} at best"
        )
        if not found.is_better:
            print("  nothing better was found than where it started")
        for about, sentence in searched.conclusions.items():
            print(f"  {about}: {sentence}")
        print(f"  {searched.command}")


def _instant(name: str, text: str | None) -> Any:  # noqa: ANN401 - a time or nothing
    return None if text is None else instant(name, text)
