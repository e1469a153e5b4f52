"""A release: a pipeline from data to a version that serves, or to the reason why not.

Goes step by step and stops at the first that fails; what served before still serves.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import pandas as pd
from sqlalchemy import Engine

from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.errors import ExperimentServiceError, InvalidState
from experiment_service.storage.database import held_alone, transaction
from experiment_service.storage.experiments import record_audit
from experiment_service.storage.models import ModelVersion
from experiment_service.training.data import (
    check_interactions,
    default_test_start,
    time_range,
)
from experiment_service.training.judging import Judgement, compare
from experiment_service.training.own_events import said
from experiment_service.training.pipeline import Pipeline, Search
from experiment_service.training.publishing import (
    open_lists,
    serving_version,
    store_version,
)
from experiment_service.training.run import (
    Training,
    check_made,
    judge_training,
    make,
    prepare_training,
    to_candidate,
)
from experiment_service.training.search import search_parameters
from experiment_service.training.sources import Loaded, load
from recommenders.checklist import Check
from recommenders.data_checks import (
    DataProfile,
    check_data,
    check_overlap,
    compare_data,
    profile,
)
from recommenders.gates import Comparison, check_gates

log = logging.getLogger(__name__)

#: Folder of the trials of searches that have not ended, below the data directory.
SEARCHES = "searches"

Verdict = Literal["passed", "failed", "not reached", "would follow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a release.

    Attributes
    ----------
    seconds : float
        What it took.
    said : str
        What came of it, or why it failed; of a step ahead, what it does.
    """

    name: str
    verdict: Verdict
    seconds: float
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What came of a release.

    Attributes
    ----------
    name : str
        Of the model.
    steps : tuple of Step
        All of them, also those that were not reached.
    version : ModelVersion or None
        What was stored, released or rejected.
    serving : str or None
        Label of the version that serves after it.
    error : ExperimentServiceError or None
        Why it failed.
    """

    name: str
    steps: tuple[Step, ...]
    version: ModelVersion | None
    serving: str | None
    error: ExperimentServiceError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Where a release runs, and who runs it.

    Attributes
    ----------
    folder : Path
        Of the pipeline; paths of data are seen from there.
    data_dir : Path
    pseudonyms : Pseudonyms or None
        Given when pseudonyms stand for units in this service.
    now, code_version, actor : datetime, str, str
    progress : callable
        Told what goes on, in a few words.
    """

    engine: Engine
    folder: Path
    data_dir: Path
    pseudonyms: Pseudonyms | None
    now: datetime
    code_version: str
    actor: str
    progress: Callable[[str], None] = log.debug


def release(
    pipeline: Pipeline,
    market: str | None,
    around: Surroundings,
    *,
    dry_run: bool = False,
) -> Release:
    """Take a pipeline from data to a version that serves, if nothing speaks against it.

    Every failure that the service knows ends in `Release.error`; unforeseen ones are
    raised. One release of a model runs at a time.

    Parameters
    ----------
    market : str or None
        One of the pipeline's, or None where it has none.
    dry_run : bool
        Look at the data only, and say what would follow.
    """
    book = _Book(ahead=_steps_ahead(pipeline), progress=around.progress)
    run = _Run(
        pipeline=pipeline, market=market, around=around, book=book, is_dry=dry_run
    )
    version: ModelVersion | None = None
    error: ExperimentServiceError | None = None
    try:
        if dry_run:
            with book.step("data"):
                _data(run)
        else:
            with held_alone(around.engine, f"release of {run.name}"):
                version = _go(run)
    except _Rejected as rejection:
        version, error = rejection.version, rejection
    except ExperimentServiceError as failure:
        error = failure
    return Release(
        name=run.name,
        steps=book.closed("would follow" if dry_run and not error else "not reached"),
        version=version,
        serving=_serving_label(around.engine, run.name),
        error=error,
    )


class _Rejected(InvalidState):
    """A version was made and does not serve."""

    def __init__(self, version: ModelVersion) -> None:
        super().__init__(version.reason or "")
        self.version = version


def _go(run: "_Run") -> ModelVersion:
    pipeline, around, book = run.pipeline, run.around, run.book
    with book.step("data"):
        loaded, live, checks = _data(run)
    test_since = _test_start(pipeline, loaded.interactions)
    parameters = pipeline.parameters
    if pipeline.search is not None:
        with book.step("search"):
            parameters = _search(run, pipeline.search, loaded, test_since)
    compares = any(g.worse_than_live_by_at_most is not None for g in pipeline.gates)
    with book.step("judge"):
        training = _training(run, loaded, parameters, test_since)
        judgement = judge_training(training, live if compares else None)
        book.say(_figures(judgement))
    with book.step("train"):
        made = make(training, progress=around.progress)
        units = len(made.trained.interactions.units)
        book.say(f"lists of {pipeline.depth} for {units} units")

    def store(comparison: Comparison | None = None) -> ModelVersion:
        candidate = to_candidate(
            training,
            judgement,
            made,
            checks=checks,
            comparison=comparison,
            live=live,
            code_version=around.code_version,
        )
        stored = store_version(
            around.engine,
            candidate,
            data_dir=around.data_dir,
            actor=around.actor,
            now=around.now,
            share=None if pipeline.shadow is None else pipeline.shadow.share,
            rule=None if pipeline.shadow is None else pipeline.shadow.rule,
        )
        log.info("released model=%s status=%s", stored.label, stored.status)
        run.trials.unlink(missing_ok=True)
        return stored

    with book.step("checklist"):
        listed = check_made(
            training, judgement, made, live=live, data_dir=around.data_dir
        )
        checks += listed
        if not all(check.passed for check in listed):
            raise _Rejected(store())
        book.say(f"{len(listed)} checks")
    comparison = None
    with book.step("gate"):
        if compares and live is not None:
            comparison = _compare(training, judgement, live)
        gates = check_gates(pipeline.gates, judgement.evaluations, comparison)
        checks += gates
        if not all(check.passed for check in gates):
            raise _Rejected(store(comparison))
        book.say(_gates_passed(gates, compares=compares, live=live))
    with book.step("shadow" if pipeline.shadow else "publish"):
        version = store(comparison)
        book.say(f"{version.label} is {version.status}")
    return version


def _data(run: "_Run") -> tuple[Loaded, ModelVersion | None, list[Check]]:
    """Load data and check it by itself and against that of what serves.

    Raises
    ------
    InvalidRequest
        When it can't be read.
    InvalidState
        When a check failed; the refusal is in the audit log.
    """
    pipeline, around = run.pipeline, run.around
    loaded = load(
        pipeline,
        run.market,
        engine=around.engine,
        folder=around.folder,
        pseudonyms=around.pseudonyms,
        now=around.now,
    )
    check_interactions(loaded.interactions, now=around.now)
    live = serving_version(around.engine, run.name)
    checks = check_data(
        loaded.unfiltered,
        pipeline.checks,
        catalogue=loaded.catalogue,
        # Data that was asked for until a day is as old as it is on that day.
        now=min(around.now, pipeline.data.until or around.now),
    )
    if live is not None:
        checks += _against_live(run, loaded, live)
    failed = [str(check) for check in checks if not check.passed]
    if failed:
        reason = "; ".join(failed)
        if not run.is_dry:
            with transaction(around.engine) as connection:
                record_audit(
                    connection,
                    actor=around.actor,
                    action="refuse_data",
                    subject=f"model/{run.name}",
                    reason=reason,
                )
        raise InvalidState(reason)
    first, last = time_range(loaded.interactions)
    run.book.say(
        f"{len(checks)} checks; {len(loaded.interactions)} interactions, "
        f"{first:%Y-%m-%d} to {last:%Y-%m-%d}"
        + ("" if loaded.own_events is None else f"; {said(loaded.own_events)}")
    )
    return loaded, live, checks


def _against_live(run: "_Run", loaded: Loaded, live: ModelVersion) -> list[Check]:
    thresholds = run.pipeline.checks
    checks: list[Check] = []
    if live.data_profile is not None:
        old = DataProfile(**live.data_profile)
        new = profile(loaded.interactions, loaded.catalogue, like=old)
        checks += compare_data(new, old, thresholds)
    lists = open_lists(live, run.around.data_dir)
    if lists is not None:
        items = loaded.interactions["item_id"].unique().tolist()
        if loaded.catalogue is not None:
            items += loaded.catalogue["item_id"].tolist()
        units = loaded.interactions["unit_id"].unique().tolist()
        checks += check_overlap(*lists.shares_known(units, items), thresholds)
    return checks


def _test_start(pipeline: Pipeline, interactions: pd.DataFrame) -> datetime:
    if pipeline.test_days is None:
        return default_test_start(interactions)
    return time_range(interactions)[1] - timedelta(days=pipeline.test_days)


def _search(
    run: "_Run", search: Search, loaded: Loaded, test_since: datetime
) -> dict[str, object]:
    """Return the parameters found; those of the pipeline where none is better."""
    pipeline = run.pipeline
    searched = search_parameters(
        loaded.interactions,
        recommender=pipeline.recommender,
        catalogue=loaded.catalogue,
        shown=loaded.shown,
        parameters=pipeline.parameters,
        space=search.space,
        goal=search.goal,
        bounds=search.bounds,
        test_since=test_since,
        storage=run.trials,
        seed=pipeline.seed,
        now=run.around.now,
        progress=run.around.progress,
    )
    found = searched.found
    worth = (
        searched.conclusions["over the start"]
        if found.is_better
        else "nothing better was found than the parameters it started from"
    )
    run.book.say(f"{found.trials} trials, {found.failed} failed; {worth}")
    return dict(found.parameters)


def _training(
    run: "_Run",
    loaded: Loaded,
    parameters: dict[str, object],
    test_since: datetime,
) -> Training:
    pipeline = run.pipeline
    return prepare_training(
        interactions=loaded.interactions,
        recommender=pipeline.recommender,
        parameters=parameters,
        catalogue=loaded.catalogue,
        reranking=pipeline.reranking,
        name=run.name,
        depth=pipeline.depth,
        exclude_seen=pipeline.exclude_seen,
        with_related=pipeline.with_related,
        test_since=test_since,
        seed=pipeline.seed,
        now=run.around.now,
        shown=loaded.shown,
        own_events=loaded.own_events,
    )


def _compare(
    training: Training, judgement: Judgement, live: ModelVersion
) -> Comparison:
    return compare(
        judgement,
        live,
        training.recommender,
        training.parameters,
        rng=training.rngs[2],
    )


def _figures(judgement: Judgement) -> str:
    return "; ".join(
        f"ndcg@{each.k} {each.intervals['ndcg']}, repeats: {each.repeats}"
        for each in judgement.evaluations
    )


def _gates_passed(
    gates: list[Check], *, compares: bool, live: ModelVersion | None
) -> str:
    said = f"kept {len(gates)} of {len(gates)} rules" if gates else "no rules"
    if compares and live is None:
        return f"{said}; nothing serves yet to be compared with"
    return said


def _serving_label(engine: Engine, name: str) -> str | None:
    try:
        live = serving_version(engine, name)
    except ExperimentServiceError:
        # The failure that is told already is of the same database.
        return None
    return None if live is None else live.label


def _steps_ahead(pipeline: Pipeline) -> dict[str, str]:
    """Return the steps by name, with what each does."""
    ahead = {"data": "load and check the data"}
    if pipeline.search is not None:
        search = pipeline.search
        ahead["search"] = (
            f"maximise {search.goal} of {pipeline.recommender}, at most "
            f"{search.trials} trials and {search.minutes:g} minutes"
        )
    period = (
        "fifth of the interactions"
        if pipeline.test_days is None
        else f"{pipeline.test_days:g} days"
    )
    ahead["judge"] = f"on the last {period}"
    given = ", ".join(f"{key} {value}" for key, value in pipeline.parameters.items())
    ahead["train"] = f"{pipeline.recommender} ({given or 'default parameters'})"
    steps = ", ".join(str(step.get("step")) for step in pipeline.reranking)
    ahead["checklist"] = f"of the lists, re-ranked by {steps or 'nothing'}"
    ahead["gate"] = ", ".join(map(str, pipeline.gates)) or "no rules"
    if pipeline.shadow:
        ahead["shadow"] = "compute it beside what serves, and show it to nobody"
    else:
        ahead["publish"] = "let it serve"
    return ahead


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Run:
    """One release while it goes on."""

    pipeline: Pipeline
    market: str | None
    around: Surroundings
    book: "_Book"
    is_dry: bool

    @property
    def name(self) -> str:
        return self.pipeline.model_name(self.market)

    @property
    def trials(self) -> Path:
        """File of the trials, so that a search goes on after it was killed."""
        return self.around.data_dir / SEARCHES / f"{self.name}.journal"


@dataclass(slots=True, kw_only=True, eq=False)
class _Book:
    """What each step came to."""

    ahead: dict[str, str]
    progress: Callable[[str], None]
    steps: list[Step] = field(default_factory=list)
    said: str = ""

    def say(self, text: str) -> None:
        self.said = text

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        does = self.ahead.pop(name)
        self.progress(f"{name}: {does}")
        self.said, started = "", time.perf_counter()
        verdict: Verdict = "failed"
        try:
            yield
            verdict = "passed"
        except ExperimentServiceError as error:
            self.said = error.message
            raise
        finally:
            seconds = time.perf_counter() - started
            step = Step(name=name, verdict=verdict, seconds=seconds, said=self.said)
            self.steps.append(step)

    def closed(self, verdict: Verdict) -> tuple[Step, ...]:
        rest = (
            Step(name=name, verdict=verdict, seconds=0.0, said=does)
            for name, does in self.ahead.items()
        )
        return (*self.steps, *rest)
