"""Measures beside RecTools', implicit's and scikit-learn's, and closed forms."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from implicit.evaluation import ranking_metrics_at_k
from scipy.sparse import csr_matrix
from sklearn.metrics import ndcg_score
from threadpoolctl import threadpool_limits

from recommenders.diversity import category_mixes
from recommenders.evaluation import difference, evaluate, hold_out, judge, measures
from recommenders.evaluation.intervals import bootstrap
from recommenders.evaluation.judge import found_in
from recommenders.instants import DAY, microseconds_of
from recommenders.interactions import Interactions
from recommenders.item_knn import ItemKNN
from recommenders.popularity import Popularity

VECTORS = json.loads(
    (Path(__file__).parents[2] / "vectors" / "ranking.json").read_text()
)
LISTS = np.array(VECTORS["lists"])
UNITS = np.arange(len(LISTS))
ITEMS = len(VECTORS["categories"])
FOUND, RELEVANT = found_in(LISTS, UNITS, *np.array(VECTORS["test"]).T)
HAD = np.bincount(np.array(VECTORS["history"])[:, 1], minlength=ITEMS)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("precision", measures.precision(FOUND)),
        ("recall", measures.recall(FOUND, RELEVANT)),
        ("ndcg", measures.ndcg(FOUND, RELEVANT)),
        ("map", measures.average_precision(FOUND, RELEVANT)),
        ("mrr", measures.reciprocal_rank(FOUND)),
        ("hit_rate", measures.hit_rate(FOUND)),
        (
            "novelty",
            measures.mean_over_items(measures.surprise(HAD, len(UNITS)), LISTS),
        ),
        ("popularity", measures.mean_over_items(HAD.astype(float), LISTS)),
        ("diversity", measures.diversity(LISTS, np.array(VECTORS["categories"]))),
    ],
)
def test_measures_equal_those_of_rectools(name, values):
    np.testing.assert_allclose(values, VECTORS["per unit"][name], rtol=1e-9)


def test_coverage_equals_that_of_rectools():
    assert measures.coverage(LISTS, ITEMS) == pytest.approx(VECTORS["coverage"])


class GivenLists:
    """What implicit's evaluation asks of a model."""

    def recommend(self, userid, *_, N, **__):  # noqa: N803 - implicit's name
        return LISTS[userid][:, :N].astype(np.int32), None


@pytest.mark.parametrize("k", [3, 10])
def test_map_and_ndcg_equal_those_of_implicit(k):
    # With k 3 there is more to be found than places.
    rows, items = np.array(VECTORS["test"]).T
    test = csr_matrix((np.ones(rows.size), (rows, items)), shape=(len(LISTS), ITEMS))
    empty = csr_matrix(test.shape)
    with threadpool_limits(limits=1, user_api="blas"):
        theirs = ranking_metrics_at_k(
            GivenLists(), empty, test, K=k, show_progress=False
        )
    found = FOUND[:, :k]
    assert measures.ndcg(found, RELEVANT).mean() == pytest.approx(theirs["ndcg"])
    ours = measures.average_precision(found, RELEVANT).mean()
    assert ours == pytest.approx(theirs["map"])


def test_ndcg_equals_that_of_scikit_learn():
    wanted = np.zeros((len(LISTS), ITEMS))
    wanted[tuple(np.array(VECTORS["test"]).T)] = 1
    scores = np.zeros_like(wanted)
    np.put_along_axis(scores, LISTS, np.arange(10, 0, -1.0), axis=1)
    assert measures.ndcg(FOUND, RELEVANT).mean() == pytest.approx(
        ndcg_score(wanted, scores, k=10)
    )


def test_padding_is_nothing_shown():
    lists = np.array([[2, 0, -1], [1, -1, -1], [-1, -1, -1]])
    categories = np.array([0, 0, -1])
    np.testing.assert_allclose(
        measures.mean_over_items(np.array([1.0, 5.0, 3.0]), lists), [2, 5, np.nan]
    )
    np.testing.assert_allclose(
        measures.diversity(lists, categories), [1, np.nan, np.nan]
    )
    assert measures.coverage(lists, 4) == 3 / 4
    # One of unknown category is in no pair of a kind, even with another such.
    assert measures.diversity(np.array([[2, 3]]), np.array([0, 0, -1, -1]))[0] == 1


def test_concentration_is_the_gini_coefficient():
    # By its definition: half the mean absolute difference over the mean.
    lists = np.array([[0, 1], [0, 2], [0, 3], [0, -1]])
    counts = np.array([4, 1, 1, 1, 0])
    apart = np.abs(counts[:, np.newaxis] - counts).mean() / (2 * counts.mean())
    assert measures.concentration(lists, 5) == pytest.approx(apart)
    assert measures.concentration(np.array([[0, 1], [2, 3]]), 4) == 0
    assert measures.concentration(np.array([[0], [0]]), 100) == pytest.approx(0.99)
    assert np.isnan(measures.concentration(np.array([[-1]]), 3))


def test_an_item_that_nobody_had_is_as_surprising_as_one_that_a_unit_had():
    np.testing.assert_allclose(
        measures.surprise(np.array([0.0, 1, 2, 8]), 8), [3, 3, 2, 0]
    )


def test_miscalibration_is_a_smoothed_divergence():
    # History: 3/4 and 1/4; lists: the same mix; one category alone; unknown; nothing.
    weights = csr_matrix(np.array([[3, 1, 0], [3, 1, 0], [3, 1, 0], [0, 0, 1]], float))
    categories = np.array([0, 1, -1], dtype=np.int32)
    mixes = category_mixes(weights, categories)
    lists = np.array([[0, 0, 0, 1], [0, 0, 0, 0], [2, 2, 2, 2], [0, 1, 0, 1]])
    values = measures.miscalibration(lists, categories, mixes, np.arange(4))
    one = 0.75 * np.log(0.75 / (0.99 + 0.0075)) + 0.25 * np.log(1 / 0.01)
    np.testing.assert_allclose(values, [0, one, np.nan, np.nan], atol=1e-12)


# Intervals


def test_a_bootstrap_has_the_spread_of_the_mean():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, (4000, 1))
    interval = bootstrap(values, rng)[0]
    assert interval.value == pytest.approx(values.mean())
    error = values.std() / np.sqrt(4000)
    # Of 1,000 replicates the 2.5 % points have a standard error of 0.085 of theirs.
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.35 * error)
    assert interval.high == pytest.approx(
        values.mean() + 1.96 * error, abs=0.35 * error
    )


def test_intervals_cover_a_skewed_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(400):
        interval = bootstrap(
            rng.binomial(1, 0.2, (300, 1)).astype(float), rng, replicates=400
        )[0]
        hits.append(interval.low <= 0.2 <= interval.high)
    error = np.sqrt(0.95 * 0.05 / 400)
    assert np.mean(hits) == pytest.approx(0.95, abs=4 * error)


def test_units_without_a_number_are_left_out_of_a_mean():
    values = np.array([[1.0, np.nan], [3.0, np.nan]])
    made = bootstrap(values, np.random.default_rng(0))
    assert made[0].value == 2
    assert np.isnan([made[1].value, made[1].low, made[1].high]).all()


def test_blocks_of_units_give_the_intervals_of_one_block(monkeypatch):
    values = np.random.default_rng(2).normal(size=(500, 1))
    whole = bootstrap(values, np.random.default_rng(3))[0]
    monkeypatch.setattr("recommenders.evaluation.intervals._BLOCK", 100_000)
    cut = bootstrap(values, np.random.default_rng(4))[0]
    assert cut.value == whole.value
    spread = whole.high - whole.low
    assert cut.low == pytest.approx(whole.low, abs=0.15 * spread)


# Together

SINCE = datetime(2026, 3, 1, tzinfo=UTC)


def shop():
    rng = np.random.default_rng(6)
    units, items = rng.integers(0, 80, 1500), rng.integers(0, 40, 1500)
    late = items >= 36
    times = microseconds_of(SINCE) - np.where(late, 5, 60 + items % 3) * DAY
    catalogue = pd.DataFrame(
        {
            "item_id": [f"i{n:02}" for n in range(44)],
            "category": [f"c{n % 4}" for n in range(44)],
        }
    )
    interactions = Interactions.from_columns(
        [f"u{unit:02}" for unit in units],
        [f"i{item:02}" for item in items],
        times=times,
        catalogue=catalogue,
        cold_items=True,
    )
    rows = rng.integers(0, 80, 300), rng.integers(0, 44, 300)
    later = pd.DataFrame(
        {
            "unit_id": [f"u{unit:02}" for unit in rows[0]],
            "item_id": [f"i{item:02}" for item in rows[1]],
            "occurred_at": pd.Timestamp(SINCE),
        }
    )
    return interactions, hold_out(interactions, later, since=SINCE)


def test_an_evaluation_is_the_mean_of_its_measures_with_intervals_and_slices():
    interactions, held_out = shop()
    trained = ItemKNN().fit(interactions, np.random.default_rng(0))
    market = ["de" if n < 30 else "at" for n in range(len(interactions.units))]
    figures = evaluate(
        trained,
        held_out,
        repeats="allowed",
        rng=np.random.default_rng(0),
        groups={"market": market},
    )
    judged = judge(trained, held_out, repeats="allowed")
    for name in ("ndcg", "map", "mrr", "novelty", "diversity", "miscalibration"):
        mean = np.nanmean(judged.values[name])
        interval = figures.intervals[name]
        assert getattr(figures, name) == pytest.approx(mean)
        assert interval.value == pytest.approx(mean)
        assert interval.low < interval.value < interval.high
    history = interactions.matrix > 0
    shares = interactions.item_units() / len(interactions.units)
    mine = [shares[history[row].indices].mean() for row in judged.units]
    assert figures.popularity_lift == pytest.approx(
        figures.popularity / np.mean(mine) - 1
    )
    assert "95% percentile bootstrap over units, 1000 replicates" in figures.protocol
    parts = {(each.kind, each.name): each for each in figures.slices}
    assert {kind for kind, _ in parts} == {"product", "category", "history", "market"}
    for kind in ("product", "category", "history", "market"):
        pairs = sum(each.pairs for (of, _), each in parts.items() if of == kind)
        assert pairs == figures.pairs, kind
    new = judged.items >= 36
    assert parts["product", "new"].pairs == new.sum()
    one = parts["market", "de"]
    mine = judged.units < 30
    assert one.units == mine.sum()
    assert one.ndcg == pytest.approx(judged.values["ndcg"][mine].mean())
    assert one.low < one.ndcg < one.high
    sizes = np.diff(interactions.matrix.indptr)
    light = judged.units[sizes[judged.units] <= np.quantile(sizes[judged.units], 1 / 3)]
    assert parts["history", "light"].units == light.size
    found, relevant = found_in(
        judged.lists, judged.units, judged.rows[new], judged.items[new]
    )
    asked = relevant > 0
    expected = measures.recall(found[asked], relevant[asked]).mean()
    assert parts["product", "new"].recall == pytest.approx(expected)


def test_without_texts_and_times_the_measures_that_need_them_are_left_out():
    interactions = Interactions.from_columns(["a", "a", "b"], ["x", "y", "x"])
    later = pd.DataFrame(
        {"unit_id": ["b"], "item_id": ["y"], "occurred_at": [pd.Timestamp(SINCE)]}
    )
    held_out = hold_out(interactions, later, since=SINCE)
    trained = Popularity().fit(interactions, np.random.default_rng(0))
    figures = evaluate(trained, held_out, repeats="new only")
    assert np.isnan([figures.diversity, figures.miscalibration]).all()
    assert {each.kind for each in figures.slices} == {"history"}
    assert figures.intervals == {}
    assert figures.ndcg == 1


def test_a_difference_is_of_the_same_units():
    interactions, held_out = shop()
    rng = np.random.default_rng(0)
    first = judge(ItemKNN().fit(interactions, rng), held_out)
    second = judge(Popularity().fit(interactions, rng), held_out)
    apart = difference(first, second, "ndcg", rng)
    assert apart.value == pytest.approx(
        first.values["ndcg"].mean() - second.values["ndcg"].mean()
    )
    # Paired: each unit is compared with itself, so one is never better than itself.
    same = difference(first, first, "ndcg", rng)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    other = judge(Popularity().fit(interactions, rng), held_out, repeats="allowed")
    with pytest.raises(ValueError, match="judged on different units"):
        difference(first, other, "ndcg", rng)


def test_groups_must_name_every_unit():
    interactions, held_out = shop()
    trained = Popularity().fit(interactions, np.random.default_rng(0))
    with pytest.raises(ValueError, match="group market has 1 names; it must have one"):
        evaluate(trained, held_out, groups={"market": ["de"]})
