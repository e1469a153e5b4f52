"""A training from data to lists and verdicts; all computing, before anything is stored."""

import json
import logging
import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from sqlalchemy import Engine

from experiment_service.domain.event import MAX_POSITION
from experiment_service.domain.experiment import check_key
from experiment_service.errors import InvalidRequest
from experiment_service.storage.models import ModelVersion
from experiment_service.training.data import (
    as_invalid_request,
    check_interactions,
    default_test_start,
    digest,
    time_range,
    to_matrix,
    unit_groups,
)
from experiment_service.training.publishing import (
    KEPT_VERSIONS,
    Candidate,
    CandidateLists,
    live_lists,
    store_version,
)
from recommenders import build_recommender, describe
from recommenders.base import Recommender, TrainedRecommender
from recommenders.checklist import Cost, check_lists
from recommenders.evaluation import Evaluation, evaluate, hold_out
from recommenders.interactions import IntArray, Interactions
from recommenders.rerank import Step, build_steps, prepare
from recommenders.tables import split_at

log = logging.getLogger(__name__)

_BLOCK_ROWS = 16_384


def train(
    engine: Engine,
    *,
    data_dir: Path,
    interactions: pd.DataFrame,
    recommender: str,
    parameters: Mapping[str, object] | None = None,
    catalogue: pd.DataFrame | None = None,
    reranking: Sequence[Mapping[str, object]] = (),
    name: str | None = None,
    depth: int = 50,
    exclude_seen: bool = False,
    with_related: bool = True,
    test_since: datetime | None = None,
    seed: int = 0,
    keep: int = KEPT_VERSIONS,
    now: datetime,
    code_version: str,
    actor: str,
    progress: Callable[[str], None] = log.debug,
) -> ModelVersion:
    """Train a recommender, judge it, and let it serve if every check passes.

    It is judged by what it foretells from `test_since` on with what lies before, then
    trained again on everything. A version that fails a check is stored as rejected with
    the reasons, without lists, and the live one stays.

    Parameters
    ----------
    engine : Engine
        Its own transaction, at the end: computing takes too long to hold one open.
    data_dir : Path
        Lists go to ``models/<name>/<version>`` below it.
    interactions : DataFrame
        Columns ``unit_id``, ``item_id`` (text), ``occurred_at`` (with a time zone) and
        ``weight``, as of `load_interactions`. All of it is trained on: cut it first.
    recommender, parameters : str, mapping
        Key of `recommenders.RECOMMENDERS`; parameters left out have defaults.
    catalogue : DataFrame, optional
        What is known of the items, as of `load_catalogue`; some recommenders need it.
    reranking : sequence of mapping
        Filters, business rules and re-rankers, as of `recommenders.rerank.build_steps`;
        judged as they would have been at `test_since`, published as they are at `now`.
    name : str, optional
        Of the model; the recommender's when left out.
    depth : int, 1 to 1000
        Items per list; the data must have as many.
    exclude_seen : bool
        Leave out of a unit's list what it had in the data; by default it may repeat.
    with_related : bool
        Make a list per item too, for placements beside an item, where the recommender
        can; half of the time of a training.
    test_since : datetime, optional
        Start of the test period; after four fifths of the interactions when left out.
    keep : int, >= 1
        Former versions of the model whose lists stay on disk.
    seed : int, >= 0
        The same data, parameters and seed give the same lists.
    progress : callable
        Told each step in a few words.

    Raises
    ------
    InvalidRequest
        When a parameter or the data breaks a rule; nothing is stored.
    Unavailable
        When the lists can't be written or the database does not answer.
    """
    name = check_key("model name", recommender if name is None else name)
    if not 1 <= depth <= MAX_POSITION:
        raise InvalidRequest(f"depth is {depth}; it must be 1 to {MAX_POSITION}")
    if keep < 1:
        raise InvalidRequest(f"keep is {keep}; it must be 1 or more")
    check_interactions(interactions, now=now)
    with as_invalid_request():
        built = build_recommender(recommender, parameters or {})
        # As it will be stored: YAML makes dates of what looks like one, JSON has none.
        declared = json.loads(json.dumps(list(reranking), default=str))
        steps = build_steps(declared)
        able = built.capabilities
        if exclude_seen and not able.new_items:
            raise InvalidRequest(
                f"recommender {recommender!r} recommends only what a unit had; train it "
                "without exclude_seen"
            )
        data = to_matrix(interactions, catalogue, cold_items=able.cold_items)
        _check_depth(depth, data)
        test_since = test_since or default_test_start(interactions)
        judging, learning = np.random.default_rng(seed).spawn(2)  # noqa: TID251 - the seed is stored
        progress(f"judging {name} on what happened since {test_since:%Y-%m-%d %H:%M}")
        evaluations = _judge(
            built,
            steps,
            interactions=interactions,
            catalogue=catalogue,
            test_since=test_since,
            rng=judging,
        )
        progress(f"training {name} on {len(interactions)} interactions")
        trained = built.fit(data, learning)
        trained = replace(trained, rules=prepare(steps, data, now=now))
        progress(f"making lists of {name} for {len(data.units)} units")
        started = time.perf_counter()
        lists = _make_lists(
            trained, depth, exclude_seen=exclude_seen, with_related=with_related
        )
        cost = _cost(time.perf_counter() - started, lists)
    data_from, data_to = time_range(interactions)
    document = {
        "recommender": describe(built),
        "reranking": declared,
        "depth": depth,
        "exclude_seen": exclude_seen,
        "with_related": with_related,
        "test_since": test_since.isoformat(),
        "seed": seed,
    }
    candidate = Candidate(
        name=name,
        recommender=recommender,
        parameters=document,
        metrics=_metrics(evaluations, len(interactions), data),
        checks=check_lists(
            trained,
            lists.units,
            lists.default,
            evaluations,
            related=lists.related,
            previous=live_lists(
                engine, data_dir, name, recommender, document, data=data
            ),
            cost=cost,
        ),
        data_from=data_from,
        data_to=data_to,
        data_digest=digest(interactions),
        code_version=code_version,
        data=data,
        lists=lists,
    )
    progress(f"publishing {name}")
    version = store_version(
        engine, candidate, data_dir=data_dir, actor=actor, now=now, keep=keep
    )
    log.info("trained model=%s status=%s", version.label, version.status)
    return version


def _check_depth(depth: int, data: Interactions) -> None:
    if len(data.items) < depth:
        raise InvalidRequest(
            f"depth is {depth}, but interactions are with {len(data.items)} items; it "
            "must not be more"
        )


def _judge(
    recommender: Recommender,
    steps: Sequence[Step],
    *,
    interactions: pd.DataFrame,
    catalogue: pd.DataFrame | None,
    test_since: datetime,
    rng: np.random.Generator,
) -> list[Evaluation]:
    """Evaluate on the test period, with repeats and with new items only."""
    earlier, later = split_at(interactions, test_since)
    cold_items = recommender.capabilities.cold_items
    known = to_matrix(earlier, catalogue, cold_items=cold_items)
    held_out = hold_out(known, later, since=test_since)
    trained = recommender.fit(known, rng)
    trained = replace(trained, rules=prepare(steps, known, now=test_since))
    groups = unit_groups(earlier, known)
    return [
        evaluate(trained, held_out, repeats="allowed", rng=rng, groups=groups),
        evaluate(trained, held_out, repeats="new only", rng=rng, groups=groups),
    ]


def _make_lists(
    trained: TrainedRecommender, depth: int, *, exclude_seen: bool, with_related: bool
) -> CandidateLists:
    """Make all lists, a block at a time: what a block needs is many times its lists."""

    def in_blocks(count: int, make: Callable[[IntArray], IntArray]) -> IntArray:
        made = np.empty((count, depth), dtype=np.int32)
        for start in range(0, count, _BLOCK_ROWS):
            rows = np.arange(start, min(start + _BLOCK_ROWS, count), dtype=np.int32)
            made[rows] = make(rows)
        return made

    def for_units(rows: IntArray) -> IntArray:
        return trained.recommend(rows, depth, exclude_seen=exclude_seen)[0]

    def related(rows: IntArray) -> IntArray:
        return trained.related(rows, depth)[0]

    data = trained.interactions
    return CandidateLists(
        units=in_blocks(len(data.units), for_units),
        default=trained.default(depth),
        related=in_blocks(len(data.items), related)
        if with_related and trained.capabilities.context_item
        else None,
    )


def _cost(seconds: float, lists: CandidateLists) -> Cost:
    related = 0 if lists.related is None else len(lists.related)
    return Cost(
        seconds=seconds,
        lists=len(lists.units) + related,
        # Linux counts in KiB.
        memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        available=psutil.virtual_memory().total,
    )


def _metrics(
    evaluations: Sequence[Evaluation], count: int, data: Interactions
) -> dict[str, Any]:
    """Return the evaluations by protocol; JSON knows no nan, so it becomes None."""
    metrics: dict[str, Any] = {
        "trained_on": {
            "interactions": count,
            "units": len(data.units),
            "items": len(data.items),
        }
    }
    for each in evaluations:
        metrics[f"repeats {each.repeats}"] = _finite(asdict(each))
    return metrics


def _finite(value: Any) -> Any:  # noqa: ANN401 - a document
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
