"""A search for better parameters: bounded in trials and time, resumed where it ended.

Each trial trains on the past and is judged on what came after, as every evaluation is.
Optuna proposes parameters (TPE) and keeps the trials in a file; whoever dies in a trial
loses that trial only.
"""

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recommenders.evaluation import (
    HeldOut,
    Interval,
    Judged,
    Repeats,
    difference,
    judge,
    summarise,
)
from recommenders.interactions import Interactions
from recommenders.registry import RECOMMENDERS, build_recommender, describe
from recommenders.space import Choices, Integers, Space

if TYPE_CHECKING:
    import optuna

#: Measures that a search can maximise: means over units, higher is better.
MEASURES = ("ndcg", "recall", "precision", "map", "mrr", "hit_rate")

#: With no more combinations than this, each is tried once.
LARGEST_GRID = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What to maximise.

    Attributes
    ----------
    measure : str
        One of `MEASURES`.
    repeats : {"allowed", "new only"}
    k : int
        Length of the lists.
    """

    measure: str = "ndcg"
    repeats: Repeats = "new only"
    k: int = 10

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(
                f"measure is {self.measure!r}; it must be one of {', '.join(MEASURES)}"
            )

    def __str__(self) -> str:
        return f"{self.measure}@{self.k}, repeats: {self.repeats}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """When a search ends.

    Attributes
    ----------
    trials : int, >= 1
        Finished trials in all, those of earlier runs among them.
    seconds : float, > 0
        Of this run; a trial that has begun is finished, so it may take longer by that.
    """

    trials: int = 30
    seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"trials is {self.trials}; it must be 1 or more")
        if not self.seconds > 0:
            raise ValueError(f"seconds is {self.seconds}; it must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search found.

    Attributes
    ----------
    parameters : mapping
        The best, all of them, as of `build_recommender`; the given ones when no other
        was better.
    value : float
        Of the measure, on the validation period.
    given : float
        Of the parameters that the search started from.
    trials, failed : int
        Finished ones, and those whose parameters learned nothing.
    """

    parameters: Mapping[str, Any]
    value: float
    given: float
    trials: int
    failed: int

    @property
    def is_better(self) -> bool:
        """Whether the best is better than where the search started."""
        return self.value > self.given


def search(
    recommender: str,
    interactions: Interactions,
    held_out: HeldOut,
    *,
    goal: Goal,
    bounds: Bounds,
    parameters: Mapping[str, object] | None = None,
    space: Mapping[str, Space] | None = None,
    storage: Path | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
    progress: Callable[[str], None] = lambda _: None,
) -> Found:
    """Try parameters, the given ones first, and return the best.

    Parameters
    ----------
    recommender : str
        Key of `RECOMMENDERS`.
    interactions, held_out : Interactions, HeldOut
        Training and validation. Keep what you report on out of both.
    parameters : mapping, optional
        Where to start, and the value of all that `space` leaves out.
    space : mapping of str to Space, optional
        The recommender's own when left out.
    storage : Path, optional
        File of the trials; a search of the same recommender, parameters, space, goal,
        seed and data goes on with them. In memory when left out.
    clock : callable
        Seconds; for the time bound.
    progress : callable
        Told each trial in a few words.

    Raises
    ------
    ValueError
        When a name or value breaks its rule, nothing is to be searched, the file can't
        be read, or every trial failed.
    """
    given = build_recommender(recommender, parameters or {})
    if space is None:
        space = RECOMMENDERS[recommender].space
    if not space:
        raise ValueError(f"recommender {recommender!r} has no parameters to search")
    start = describe(given)
    for name in space:
        if name not in start:
            raise ValueError(
                f"space has {name!r}, which is no parameter of {recommender!r}; it "
                f"has: {', '.join(start) or 'none'}"
            )
    trials = _Trials(
        recommender=recommender,
        start=start,
        space=space,
        interactions=interactions,
        held_out=held_out,
        goal=goal,
        seed=seed,
    )
    study = trials.open(storage)
    started = clock()
    most = min(bounds.trials, trials.combinations or bounds.trials)
    while trials.finished(study) < most and clock() - started < bounds.seconds:
        trials.run(study, progress)
    return trials.conclude(study)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trials:
    recommender: str
    start: Mapping[str, Any]
    space: Mapping[str, Space]
    interactions: Interactions
    held_out: HeldOut
    goal: Goal
    seed: int
    known: dict[str, float] = field(default_factory=dict)

    @property
    def combinations(self) -> int | None:
        """How many parameters there are to try; None where that is no number."""
        if not all(isinstance(space, Choices) for space in self.space.values()):
            return None
        return math.prod(
            len(space.values)
            for space in self.space.values()
            if isinstance(space, Choices)
        )

    def open(self, storage: Path | None) -> "optuna.Study":
        """Begin or go on; what a dead process left running has failed."""
        # Here, as importing it takes a second, and only a search needs it.
        import optuna  # noqa: PLC0415

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(
                study_name=self._key(),
                storage=None if storage is None else _journal(storage),
                sampler=optuna.samplers.TPESampler(seed=self.seed),
                direction="maximize",
                load_if_exists=True,
            )
            past = study.get_trials()
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{storage} can't be read as trials ({error}); give another file"
            ) from error
        state = optuna.trial.TrialState
        for trial in past:
            if trial.state == state.RUNNING:
                study.tell(trial.number, state=state.FAIL)
            elif trial.value is not None:
                self.known[_key_of(trial.params)] = trial.value
        if past:
            # Else it would propose again what it proposed at the start of the last run.
            study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(past))
        else:
            first = {name: self.start[name] for name in self.space}
            if all(_holds(space, first[name]) for name, space in self.space.items()):
                study.enqueue_trial(first)
            if (self.combinations or LARGEST_GRID + 1) <= LARGEST_GRID:
                # Each once: a sampler would propose some again and again.
                for chosen in _grid(self.space):
                    study.enqueue_trial(chosen, skip_if_exists=True)
        return study

    def finished(self, study: "optuna.Study") -> int:
        """Return how many trials have ended, well or not."""
        return sum(trial.state.is_finished() for trial in study.get_trials())

    def run(self, study: "optuna.Study", progress: Callable[[str], None]) -> None:
        """Ask, train, judge, tell."""
        import optuna  # noqa: PLC0415

        distributions = {
            name: _distribution(space) for name, space in self.space.items()
        }
        trial = study.ask(distributions)
        key = _key_of(trial.params)
        began = time.perf_counter()
        known = self.known.get(key)
        try:
            value = self._value(trial.params) if known is None else known
        except ValueError as error:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            progress(f"trial {trial.number + 1}: failed, {error}")
            return
        self.known[key] = value
        study.tell(trial, value)
        progress(
            f"trial {trial.number + 1}: {self.goal.measure} {value:.4f}, best "
            f"{study.best_value:.4f}, {time.perf_counter() - began:.1f} s"
            f"{' (tried before)' if known is not None else ''}, {_shown(trial.params)}"
        )

    def conclude(self, study: "optuna.Study") -> Found:
        """Return the best; the start itself where nothing is better."""
        finished = self.finished(study)
        if not self.known:
            raise ValueError(
                f"none of {finished} trials of {self.recommender} could be judged; "
                "change the parameters or the space"
            )
        given = self._given()
        best = study.best_trial
        if best.value is not None and best.value > given:
            parameters, value = {**self.start, **best.params}, best.value
        else:
            parameters, value = dict(self.start), given
        failed = sum(
            trial.state.is_finished() and trial.value is None
            for trial in study.get_trials()
        )
        return Found(
            parameters=parameters,
            value=value,
            given=given,
            trials=finished,
            failed=failed,
        )

    def _given(self) -> float:
        first = {name: self.start[name] for name in self.space}
        key = _key_of(first)
        if key not in self.known:
            self.known[key] = self._value(first)
        return self.known[key]

    def _value(self, chosen: Mapping[str, object]) -> float:
        built = build_recommender(self.recommender, {**self.start, **chosen})
        trained = built.fit(self.interactions, np.random.default_rng(self.seed))  # noqa: TID251 - every trial of one seed
        judged = judge(trained, self.held_out, k=self.goal.k, repeats=self.goal.repeats)
        return float(judged.values[self.goal.measure].mean())

    def _key(self) -> str:
        """Name the search by all that makes two trials comparable."""
        matrix, held_out = self.interactions.matrix, self.held_out
        hashed = hashlib.sha256()
        for array in (
            matrix.data,
            matrix.indices,
            matrix.indptr,
            held_out.rows,
            held_out.items,
        ):
            hashed.update(np.ascontiguousarray(array).tobytes())
        what = [self.recommender, self.start, repr(dict(self.space)), str(self.goal)]
        hashed.update(json.dumps([*what, self.seed], sort_keys=True).encode())
        return f"{self.recommender}-{hashed.hexdigest()[:16]}"


def conclusions(
    best: Judged,
    given: Judged,
    popular: Judged,
    *,
    goal: Goal,
    rng: np.random.Generator,
) -> dict[str, str]:
    """Say on the test period what was gained, over the start and over popularity.

    Parameters
    ----------
    best, given, popular : Judged
        Trained on the same interactions and judged on the same test: the parameters
        found, those that the search started from, and `popularity`.

    Returns
    -------
    dict of str to str
        Sentences by ``figure``, ``over the start`` and ``over popularity``.
    """
    figure = summarise(best, rng=rng).intervals[goal.measure]
    return {
        "figure": f"{goal} is {figure} on the test period",
        "over the start": _verdict(
            difference(best, given, goal.measure, rng), "the parameters it started from"
        ),
        "over popularity": _verdict(
            difference(best, popular, goal.measure, rng), "popularity"
        ),
    }


def _verdict(apart: Interval, other: str) -> str:
    if apart.low > 0:
        return f"better than {other}, by {apart}"
    if apart.high < 0:
        return f"WORSE than {other}, by {apart}"
    return f"NO BETTER than {other}, by {apart}"


def _journal(path: Path) -> "optuna.storages.JournalStorage":
    from optuna.storages import JournalStorage  # noqa: PLC0415 - as above
    from optuna.storages.journal import JournalFileBackend  # noqa: PLC0415

    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def _distribution(space: Space) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import (  # noqa: PLC0415 - as above
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(space, Choices):
        return CategoricalDistribution(space.values)
    if isinstance(space, Integers):
        return IntDistribution(space.low, space.high, log=space.log)
    return FloatDistribution(space.low, space.high, log=space.log)


def _grid(space: Mapping[str, Space]) -> Iterator[dict[str, object]]:
    values = [each.values for each in space.values() if isinstance(each, Choices)]
    for chosen in itertools.product(*values):
        yield dict(zip(space, chosen, strict=True))


def _holds(space: Space, value: object) -> bool:
    if isinstance(space, Choices):
        return value in space.values
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and space.low <= value <= space.high  # type: ignore[operator]  # a number


def _key_of(chosen: Mapping[str, object]) -> str:
    return json.dumps(dict(chosen), sort_keys=True)


def _shown(chosen: Mapping[str, object]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in chosen.items()
    )
