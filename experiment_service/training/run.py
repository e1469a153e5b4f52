"""A training from data to lists and verdicts; all computing, before anything is stored.

`train` goes through the stages at a stroke, `release` looks at what each one says.
"""

import json
import logging
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
)
from experiment_service.training.judging import (
    Judgement,
    judge_recommender,
    metrics_document,
)
from experiment_service.training.publishing import (
    KEPT_VERSIONS,
    Candidate,
    CandidateLists,
    live_lists,
    serving_version,
    store_version,
)
from recommenders import build_recommender, describe
from recommenders.base import AdditiveSessionScorer, Recommender, TrainedRecommender
from recommenders.checklist import Check, Cost, check_lists
from recommenders.data_checks import profile
from recommenders.gates import Comparison
from recommenders.interactions import FloatArray, IntArray
from recommenders.rerank import Step, build_steps, prepare

log = logging.getLogger(__name__)

_BLOCK_ROWS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Training:
    """What to train, on what, and how to judge it: checked, before any computing.

    Attributes
    ----------
    name, recommender : str
        Of the model, and key of `recommenders.RECOMMENDERS`.
    built, steps : Recommender, sequence of Step
    interactions, catalogue : DataFrame
    test_since, now : datetime
    parameters : mapping
        Every setting that makes the lists, as it will be stored.
    shown : DataFrame or None
        What units were shown, as of `to_matrix`.
    own_events : mapping or None
        What was read of the service's own events, as it will be stored.
    """

    name: str
    recommender: str
    built: Recommender
    steps: tuple[Step, ...]
    interactions: pd.DataFrame
    catalogue: pd.DataFrame | None
    test_since: datetime
    now: datetime
    parameters: Mapping[str, Any]
    shown: pd.DataFrame | None
    own_events: Mapping[str, Any] | None

    @property
    def rngs(self) -> list[np.random.Generator]:
        """Randomness for judging, for training, and for judging what serves."""
        return np.random.default_rng(self.parameters["seed"]).spawn(3)  # noqa: TID251 - the seed is stored


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Made:
    """A recommender trained on everything, its lists, and what they took."""

    trained: TrainedRecommender
    lists: CandidateLists
    cost: Cost


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
        Make a list per item too, for placements beside an item and for sessions, where
        the recommender can; half of the time of a training.
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
    if keep < 1:
        raise InvalidRequest(f"keep is {keep}; it must be 1 or more")
    training = prepare_training(
        interactions=interactions,
        recommender=recommender,
        parameters=parameters,
        catalogue=catalogue,
        reranking=reranking,
        name=name,
        depth=depth,
        exclude_seen=exclude_seen,
        with_related=with_related,
        test_since=test_since,
        seed=seed,
        now=now,
    )
    name = training.name
    live = serving_version(engine, name)
    progress(
        f"judging {name} on what happened since {training.test_since:%Y-%m-%d %H:%M}"
    )
    judgement = judge_training(training)
    progress(f"training {name} on {len(interactions)} interactions")
    made = make(training, progress=progress)
    candidate = to_candidate(
        training,
        judgement,
        made,
        checks=check_made(training, judgement, made, live=live, data_dir=data_dir),
        live=live,
        code_version=code_version,
    )
    progress(f"publishing {name}")
    version = store_version(
        engine, candidate, data_dir=data_dir, actor=actor, now=now, keep=keep
    )
    log.info("trained model=%s status=%s", version.label, version.status)
    return version


def prepare_training(
    *,
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
    now: datetime,
    shown: pd.DataFrame | None = None,
    own_events: Mapping[str, Any] | None = None,
) -> Training:
    """Check what is to be trained; parameters and errors as of `train` and `Training`."""
    name = check_key("model name", recommender if name is None else name)
    if not 1 <= depth <= MAX_POSITION:
        raise InvalidRequest(f"depth is {depth}; it must be 1 to {MAX_POSITION}")
    check_interactions(interactions, now=now)
    with as_invalid_request():
        built = build_recommender(recommender, parameters or {})
        # As it will be stored: YAML makes dates of what looks like one, JSON has none.
        declared = json.loads(json.dumps(list(reranking), default=str))
        steps = build_steps(declared)
    if seed < 0:
        raise InvalidRequest(f"seed is {seed}; it must be 0 or more")
    _check_depth(depth, interactions, catalogue, built)
    if exclude_seen and not built.capabilities.new_items:
        raise InvalidRequest(
            f"recommender {recommender!r} recommends only what a unit had; train it "
            "without exclude_seen"
        )
    test_since = test_since or default_test_start(interactions)
    return Training(
        name=name,
        recommender=recommender,
        built=built,
        steps=steps,
        interactions=interactions,
        catalogue=catalogue,
        test_since=test_since,
        now=now,
        parameters={
            "recommender": describe(built),
            "reranking": declared,
            "depth": depth,
            "exclude_seen": exclude_seen,
            "with_related": with_related,
            "test_since": test_since.isoformat(),
            "seed": seed,
        },
        shown=shown,
        own_events=own_events,
    )


def judge_training(training: Training, live: ModelVersion | None = None) -> Judgement:
    """Judge on the test period.

    Parameters
    ----------
    live : ModelVersion, optional
        Given when it will be compared with.

    Raises
    ------
    InvalidRequest
        When the data can't be cut there, or nothing is to be found.
    """
    with as_invalid_request():
        return judge_recommender(
            training.built,
            training.steps,
            interactions=training.interactions,
            catalogue=training.catalogue,
            shown=training.shown,
            test_since=training.test_since,
            live=live,
            rng=training.rngs[0],
        )


def make(training: Training, *, progress: Callable[[str], None] = log.debug) -> Made:
    """Train on everything and make all lists.

    Raises
    ------
    InvalidRequest
        When the data breaks a rule, or a step can't be applied to it.
    """
    with as_invalid_request():
        data = to_matrix(
            training.interactions,
            training.catalogue,
            shown=training.shown,
            cold_items=training.built.capabilities.cold_items,
        )
        trained = training.built.fit(data, training.rngs[1])
        rules = prepare(training.steps, data, now=training.now)
        trained = replace(trained, rules=rules)
        progress(f"making lists of {training.name} for {len(data.units)} units")
        started = time.perf_counter()
        lists = _make_lists(trained, training.parameters)
    seconds = time.perf_counter() - started
    return Made(trained=trained, lists=lists, cost=_cost(seconds, lists))


def check_made(
    training: Training,
    judgement: Judgement,
    made: Made,
    *,
    live: ModelVersion | None,
    data_dir: Path,
) -> list[Check]:
    """Go through the checklist."""
    return check_lists(
        made.trained,
        made.lists.units,
        made.lists.default,
        judgement.evaluations,
        related=made.lists.related,
        previous=None
        if live is None
        else live_lists(
            live,
            data_dir,
            training.recommender,
            training.parameters,
            data=made.trained.interactions,
        ),
        cost=made.cost,
    )


def to_candidate(
    training: Training,
    judgement: Judgement,
    made: Made,
    *,
    checks: Sequence[Check],
    comparison: Comparison | None = None,
    live: ModelVersion | None,
    code_version: str,
) -> Candidate:
    """Put together all that is stored of a training."""
    interactions = training.interactions
    data_from, data_to = time_range(interactions)
    data = made.trained.interactions
    trained_on: dict[str, Any] = {
        "interactions": len(interactions),
        "units": len(data.units),
        "items": len(data.items),
    }
    if training.own_events is not None:
        trained_on["own_events"] = training.own_events
    return Candidate(
        name=training.name,
        recommender=training.recommender,
        parameters=training.parameters,
        metrics=metrics_document(
            judgement.evaluations, comparison, trained_on=trained_on
        ),
        checks=checks,
        data_from=data_from,
        data_to=data_to,
        data_digest=digest(interactions, training.shown),
        data_profile=profile(interactions, training.catalogue).document(),
        code_version=code_version,
        parent=None if live is None else live.version,
        data=data,
        lists=made.lists,
    )


def _check_depth(
    depth: int,
    interactions: pd.DataFrame,
    catalogue: pd.DataFrame | None,
    built: Recommender,
) -> None:
    items = set(interactions["item_id"])
    if built.capabilities.cold_items and catalogue is not None:
        items |= set(catalogue["item_id"])
    if len(items) < depth:
        raise InvalidRequest(
            f"depth is {depth}, but interactions are with {len(items)} items; it must "
            "not be more"
        )


def _make_lists(
    trained: TrainedRecommender, parameters: Mapping[str, Any]
) -> CandidateLists:
    """Make all lists, a block at a time: what a block needs is many times its lists."""
    depth, exclude_seen = parameters["depth"], parameters["exclude_seen"]

    def blocks(count: int) -> Iterator[IntArray]:
        for start in range(0, count, _BLOCK_ROWS):
            yield np.arange(start, min(start + _BLOCK_ROWS, count), dtype=np.int32)

    data = trained.interactions
    units = np.empty((len(data.units), depth), dtype=np.int32)
    sources = np.zeros(units.shape, dtype=np.int8)
    labels: tuple[str, ...] = ("",)
    for rows in blocks(len(units)):
        lists = trained.lists(rows, depth, exclude_seen=exclude_seen)
        # Which labels there are is a matter of the steps, not of the rows.
        units[rows], sources[rows], labels = lists.items, lists.sources, lists.labels
    related: IntArray | None = None
    scores: FloatArray | None = None
    fade: tuple[float, ...] = ()
    if parameters["with_related"] and trained.capabilities.context_item:
        related = np.empty((len(data.items), depth), dtype=np.int32)
        if isinstance(trained.scorer, AdditiveSessionScorer):
            scores = np.empty(related.shape, dtype=np.float32)
            # To so high a power a small number is none.
            fade = tuple(each for each in trained.scorer.fade.tolist() if each > 0)
        for rows in blocks(len(related)):
            related[rows], likeness = trained.related(rows, depth)
            if scores is not None:
                scores[rows] = likeness
    has_labels = any(labels[code] for code in np.unique(sources))
    return CandidateLists(
        units=units,
        default=trained.default(depth),
        related=related,
        sources=sources if has_labels else None,
        labels=labels if has_labels else (),
        related_scores=scores,
        session_fade=fade,
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
