"""A search for parameters, from data to a figure that the search never saw."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiment_service.training.data import (
    as_invalid_request,
    check_interactions,
    default_test_start,
    shown_before,
    to_be_found,
    to_matrix,
)
from recommenders import build_recommender
from recommenders.evaluation import HeldOut, Judged, hold_out, judge
from recommenders.interactions import Interactions
from recommenders.search import Bounds, Found, Goal, conclusions, search
from recommenders.space import Space, read_space
from recommenders.tables import split_at

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """A search and what its best parameters are worth.

    Attributes
    ----------
    recommender : str
    found : Found
        On the validation period.
    conclusions : mapping of str to str
        Sentences about the test period, as of `recommenders.search.conclusions`.
    command : str
        How to train with what was found.
    """

    recommender: str
    found: Found
    conclusions: Mapping[str, str]
    command: str


def search_parameters(
    interactions: pd.DataFrame,
    *,
    recommender: str,
    catalogue: pd.DataFrame | None = None,
    shown: pd.DataFrame | None = None,
    parameters: Mapping[str, object] | None = None,
    space: Mapping[str, object] | None = None,
    goal: Goal,
    bounds: Bounds,
    validate_since: datetime | None = None,
    test_since: datetime | None = None,
    storage: Path | None = None,
    seed: int = 0,
    now: datetime,
    progress: Callable[[str], None] = log.debug,
) -> Searched:
    """Search on a validation period, then judge what was found on a later one.

    Parameters
    ----------
    interactions, catalogue : DataFrame
        As of `train`.
    shown : DataFrame, optional
        What units were shown, as of `to_matrix`.
    parameters, space : mapping, optional
        Where to start, and where to look (as of `recommenders.space.read_space`); the
        recommender's own when left out.
    validate_since, test_since : datetime, optional
        Starts of the two periods; each after four fifths of what lies before its end
        when left out.
    storage : Path, optional
        File of the trials, to go on later.

    Raises
    ------
    InvalidRequest
        When the data, a name or a value breaks a rule, or every trial failed.
    """
    check_interactions(interactions, now=now)
    with as_invalid_request():
        built = build_recommender(recommender, parameters or {})
        read = _read_space(space)
        test_since = test_since or default_test_start(interactions)
        earlier, later = split_at(interactions, test_since)
        validate_since = validate_since or default_test_start(earlier)
        learned, validated = split_at(earlier, validate_since)
        cold_items = built.capabilities.cold_items

        def prepared(
            known: pd.DataFrame, after: pd.DataFrame, since: datetime
        ) -> tuple[Interactions, HeldOut]:
            data = to_matrix(
                known,
                catalogue,
                shown=shown_before(shown, since),
                cold_items=cold_items,
            )
            return data, hold_out(data, to_be_found(after), since=since)

        progress(
            f"searching {recommender} by {goal}, learning before "
            f"{validate_since:%Y-%m-%d}, judging until {test_since:%Y-%m-%d}"
        )
        found = search(
            recommender,
            *prepared(learned, validated, validate_since),
            goal=goal,
            bounds=bounds,
            parameters=parameters,
            space=read,
            storage=storage,
            seed=seed,
            progress=progress,
        )
        progress(f"judging on what happened since {test_since:%Y-%m-%d}")
        data, held_out = prepared(earlier, later, test_since)

        def judged(name: str, chosen: Mapping[str, object]) -> Judged:
            rng = np.random.default_rng(seed)  # noqa: TID251 - the seed is given
            trained = build_recommender(name, chosen).fit(data, rng)
            return judge(trained, held_out, k=goal.k, repeats=goal.repeats)

        said = conclusions(
            judged(recommender, found.parameters),
            judged(recommender, parameters or {}),
            judged("popularity", {}),
            goal=goal,
            rng=np.random.default_rng(seed),  # noqa: TID251 - the seed is given
        )
    return Searched(
        recommender=recommender,
        found=found,
        conclusions=said,
        command=_command(recommender, found.parameters),
    )


def _read_space(space: Mapping[str, object] | None) -> dict[str, Space] | None:
    if space is None:
        return None
    return {name: read_space(name, value) for name, value in space.items()}


def _command(recommender: str, parameters: Mapping[str, Any]) -> str:
    return (
        f"experiment-service train {recommender} --parameters "
        f"'{json.dumps(dict(parameters), sort_keys=True)}'"
    )
