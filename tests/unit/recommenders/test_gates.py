"""Gates: verdicts from figures and from paired differences to what serves."""

import numpy as np
import pandas as pd
import pytest

from recommenders import build_recommender
from recommenders.evaluation import difference, differences, evaluate, hold_out, judge
from recommenders.gates import COMPARED, Comparison, Gate, check_gates
from recommenders.interactions import Interactions
from recommenders.tables import split_at

START = pd.Timestamp("2026-01-01", tz="UTC")


@pytest.fixture(scope="module")
def judged():
    rng = np.random.default_rng(0)
    units, items = rng.integers(60, size=3000), rng.integers(15, size=3000)
    frame = pd.DataFrame(
        {
            "unit_id": [f"u{unit}" for unit in units],
            "item_id": [f"i{2 * i + u % 2}" for i, u in zip(items, units, strict=True)],
            "occurred_at": START + pd.to_timedelta(rng.integers(100, size=3000), "D"),
        }
    )
    since = START + pd.Timedelta(days=80)
    earlier, later = split_at(frame, since.to_pydatetime())
    known = Interactions.from_columns(
        earlier["unit_id"].tolist(), earlier["item_id"].tolist()
    )
    held_out = hold_out(known, later, since=since.to_pydatetime())
    return {
        name: judge(
            build_recommender(name, {}).fit(known, rng), held_out, repeats="allowed"
        )
        for name in ("item_knn", "popularity")
    }


@pytest.fixture(scope="module")
def evaluation(judged):
    knn = judged["item_knn"]
    return evaluate(knn.trained, knn.held_out, repeats="allowed")


def compared(mine, other):
    apart = differences(mine, other, COMPARED, np.random.default_rng(1))
    return Comparison(
        live="home/3",
        differences={("allowed", name): interval for name, interval in apart.items()},
    )


def verdicts(evaluation, comparison, **gate):
    gates = [Gate(repeats="allowed", **gate)]
    return check_gates(gates, [evaluation], comparison)


def test_a_minimum_is_of_the_figure(evaluation):
    (kept,) = verdicts(evaluation, None, at_least=evaluation.ndcg)
    (missed,) = verdicts(evaluation, None, at_least=evaluation.ndcg + 1e-9)
    assert (kept.passed, missed.passed) == (True, False)
    assert kept.value == evaluation.ndcg
    (coverage,) = verdicts(evaluation, None, measure="coverage", at_least=0.5)
    assert coverage.value == evaluation.coverage


def test_worse_than_what_serves_is_by_the_interval(judged, evaluation):
    """Popularity does not know the two tastes, so it is surely worse."""
    knn, popular = judged["item_knn"], judged["popularity"]
    better = compared(knn, popular)
    apart = better.differences["allowed", "ndcg"]
    assert apart == difference(knn, popular, "ndcg", np.random.default_rng(1)) or (
        apart.low > 0
    )
    assert apart.value == pytest.approx(
        (knn.values["ndcg"] - popular.values["ndcg"]).mean()
    )
    (check,) = verdicts(evaluation, better, worse_than_live_by_at_most=0.0)
    assert (check.passed, check.value, check.threshold) == (True, apart.low, 0)
    worse = compared(popular, knn)
    low = worse.differences["allowed", "ndcg"].low
    for allowed, passed in ((0.0, False), (-low - 1e-9, False), (-low, True)):
        (check,) = verdicts(evaluation, worse, worse_than_live_by_at_most=allowed)
        assert check.passed is passed
    assert "less that of home/3" in str(check)


def test_the_same_lists_are_not_worse_than_themselves(judged, evaluation):
    same = compared(judged["item_knn"], judged["item_knn"])
    (check,) = verdicts(evaluation, same, worse_than_live_by_at_most=0.0)
    assert (check.passed, check.value) == (True, 0)


def test_nothing_serving_is_nothing_to_compare_with(evaluation):
    assert verdicts(evaluation, None, worse_than_live_by_at_most=0.0) == []
    both = verdicts(evaluation, None, worse_than_live_by_at_most=0.0, at_least=0.0)
    assert len(both) == 1


def test_what_can_not_be_compared_does_not_pass(evaluation):
    lost = Comparison(live="home/3", differences={}, problem="home/3 is gone")
    (check,) = verdicts(evaluation, lost, worse_than_live_by_at_most=1.0)
    assert not check.passed
    assert "home/3 is gone" in str(check)
