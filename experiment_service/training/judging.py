"""How a training is judged before it is made: on what it has not seen, beside what serves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from experiment_service.storage.models import ModelVersion
from experiment_service.training.data import (
    shown_before,
    to_be_found,
    to_matrix,
    unit_groups,
)
from recommenders import build_recommender
from recommenders.base import Recommender
from recommenders.evaluation import (
    Evaluation,
    HeldOut,
    Judged,
    Repeats,
    differences,
    hold_out,
    judge,
    summarise,
)
from recommenders.gates import COMPARED, Comparison
from recommenders.interactions import Interactions
from recommenders.rerank import Step, build_steps, prepare
from recommenders.tables import split_at

PROTOCOLS: tuple[Repeats, ...] = ("allowed", "new only")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judgement:
    """A recommender judged, with all that another one needs to be judged alike.

    Attributes
    ----------
    known : Interactions
        What it learned from.
    held_out : HeldOut
        What was to be found.
    judged : mapping of Repeats to Judged
    evaluations : sequence of Evaluation
        One for each of `PROTOCOLS`.
    """

    known: Interactions
    held_out: HeldOut
    judged: Mapping[Repeats, Judged]
    evaluations: Sequence[Evaluation]


def judge_recommender(
    recommender: Recommender,
    steps: Sequence[Step],
    *,
    interactions: pd.DataFrame,
    catalogue: pd.DataFrame | None,
    shown: pd.DataFrame | None = None,
    test_since: datetime,
    live: ModelVersion | None,
    rng: np.random.Generator,
) -> Judgement:
    """Judge a recommender on the test period, with repeats and with new items only.

    Parameters
    ----------
    shown : DataFrame, optional
        What units were shown, as of `to_matrix`.
    live : ModelVersion, optional
        What serves: items that nobody had are ranked if either of the two can
        recommend such, so that the two can be compared.

    Raises
    ------
    ValueError
        When the data can't be cut there, or nothing is to be found.
    """
    earlier, later = split_at(interactions, test_since)
    cold_items = recommender.capabilities.cold_items or _has_cold_items(live)
    known = to_matrix(
        earlier,
        catalogue,
        shown=shown_before(shown, test_since),
        cold_items=cold_items,
    )
    held_out = hold_out(known, to_be_found(later), since=test_since)
    judged = _judged(recommender, steps, known, held_out, rng)
    groups = unit_groups(earlier, known)
    return Judgement(
        known=known,
        held_out=held_out,
        judged=judged,
        evaluations=[
            summarise(each, rng=rng, groups=groups) for each in judged.values()
        ],
    )


def compare(
    judgement: Judgement,
    live: ModelVersion,
    recommender: str,
    parameters: Mapping[str, Any],
    *,
    rng: np.random.Generator,
) -> Comparison:
    """Judge what serves as the new one was, and say how far apart they are.

    Its recommender, parameters and re-ranking are trained again on what the new one
    learned from: its own lists may have been made from the very test period, and then
    foretell nothing. So this compares ways to make lists; that both are as fresh is
    what a comparison of lists could not give.

    Parameters
    ----------
    recommender, parameters : str, mapping
        Of the new version, as they will be stored.

    Returns
    -------
    Comparison
        Without differences, and with the problem in words, where what serves can't be
        trained again.
    """
    same = ("recommender", "reranking", "seed")
    if live.recommender == recommender and all(
        live.parameters.get(key) == parameters[key] for key in same
    ):
        others = judgement.judged
    else:
        try:
            built, steps = _of_version(live)
            others = _judged(built, steps, judgement.known, judgement.held_out, rng)
        except ValueError as error:
            problem = f"{live.label} can't be trained again: {error}"
            return Comparison(live=live.label, differences={}, problem=problem)
    return Comparison(
        live=live.label,
        differences={
            (repeats, measure): apart
            for repeats, mine in judgement.judged.items()
            for measure, apart in differences(
                mine, others[repeats], COMPARED, rng
            ).items()
        },
    )


def metrics_document(
    evaluations: Sequence[Evaluation],
    comparison: Comparison | None,
    *,
    trained_on: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the figures by protocol; JSON knows no nan, so it becomes None.

    Parameters
    ----------
    trained_on : mapping
        How much data there was, and where it came from.
    """
    metrics: dict[str, Any] = {"trained_on": dict(trained_on)}
    for each in evaluations:
        metrics[f"repeats {each.repeats}"] = _finite(asdict(each))
    if comparison is not None and comparison.differences:
        for repeats in PROTOCOLS:
            metrics[f"repeats {repeats}, less {comparison.live}"] = {
                "protocol": f"new less {comparison.live}, trained again on the same "
                "interactions and judged on the same test; paired bootstrap over units",
                **{
                    measure: _finite(asdict(interval))
                    for (of, measure), interval in comparison.differences.items()
                    if of == repeats
                },
            }
    return metrics


def _judged(
    recommender: Recommender,
    steps: Sequence[Step],
    known: Interactions,
    held_out: HeldOut,
    rng: np.random.Generator,
) -> dict[Repeats, Judged]:
    trained = recommender.fit(known, rng)
    trained = replace(trained, rules=prepare(steps, known, now=held_out.since))
    return {each: judge(trained, held_out, repeats=each) for each in PROTOCOLS}


def _of_version(version: ModelVersion) -> tuple[Recommender, tuple[Step, ...]]:
    parameters = version.parameters.get("recommender")
    if not isinstance(parameters, Mapping):
        raise ValueError("its parameters are not stored")  # noqa: TRY004 - one type
    return (
        build_recommender(version.recommender, parameters),
        build_steps(version.parameters.get("reranking", ())),
    )


def _has_cold_items(version: ModelVersion | None) -> bool:
    if version is None:
        return False
    try:
        recommender, _ = _of_version(version)
    except ValueError:
        # What can't be built can't be compared with either; `compare` says so.
        return False
    return recommender.capabilities.cold_items


def _finite(value: Any) -> Any:  # noqa: ANN401 - a document
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
