"""Steps after scoring: by hand, against plain loops, and by the frequency they claim."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from recommenders import RECOMMENDERS, build_recommender
from recommenders.base import Lists
from recommenders.diversity import (
    SMOOTHING,
    Calibration,
    MaximalMarginalRelevance,
    category_mixes,
    scaled,
)
from recommenders.exploration import Exploration, uniforms
from recommenders.instants import DAY, microseconds_of
from recommenders.interactions import Interactions
from recommenders.pinning import Pins
from recommenders.popularity import Popularity
from recommenders.rerank import build_steps, prepare

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ITEMS = [f"i{n:02}" for n in range(20)]
CATALOGUE = pd.DataFrame(
    {
        "item_id": ITEMS,
        "name": [f"thing {n}" for n in range(20)],
        "category": ["a", "a", "a", "b", None] * 4,
        "department": ["food", "food", "food", "food", None] * 4,
        "price": [float(n) if n % 3 else np.nan for n in range(20)],
        "in_stock": [n % 4 != 1 for n in range(20)],
    }
)


def shop(catalogue=CATALOGUE, units=30):
    """Popular items have low numbers; unit 0 had all of the first ten."""
    rng = np.random.default_rng(4)
    rows = [("u00", item) for item in range(10)]
    for unit in range(1, units):
        chosen = rng.choice(20, 6, replace=False, p=np.arange(20, 0, -1) / 210)
        rows += [(f"u{unit:02}", item) for item in chosen]
    names, items = zip(*rows, strict=True)
    ages = np.arange(len(rows)) % 10
    return Interactions.from_columns(
        names,
        [ITEMS[item] for item in items],
        times=microseconds_of(NOW) - ages * DAY,
        catalogue=catalogue,
        cold_items=True,
    )


def lists_with(steps, recommender=None, k=8, exclude_seen=False, interactions=None):
    interactions = interactions or shop()
    built = recommender or Popularity()
    trained = built.fit(interactions, np.random.default_rng(0))
    rules = prepare(build_steps(steps), interactions, now=NOW)
    rows = np.arange(len(interactions.units))
    ruled = replace(trained, rules=rules)
    return ruled.lists(rows, k, exclude_seen=exclude_seen), ruled


# Filters


@pytest.mark.parametrize(
    ("step", "allowed"),
    [
        ({"step": "in_stock"}, lambda n: n % 4 != 1),
        (
            {"step": "price_band", "low": 5, "high": 16},
            lambda n: n % 3 and 5 <= n <= 16,
        ),
        (
            {"step": "price_band", "low": 5, "unknown": True},
            lambda n: n % 3 == 0 or n >= 5,
        ),
        ({"step": "block", "items": ["i03", "gone"]}, lambda n: n != 3),
        ({"step": "block", "categories": ["a"]}, lambda n: n % 5 > 2),
    ],
)
@pytest.mark.parametrize("name", ["popularity", "item_knn", "age_routed"])
def test_a_filter_hides_and_lists_stay_in_order_and_full(step, allowed, name):
    recommender = build_recommender(name, {})
    lists, ruled = lists_with([step], recommender, k=5)
    plain, _ = lists_with([], recommender, k=20)
    for kept, everything in zip(lists.items, plain.items, strict=True):
        expected = [item for item in everything if item >= 0 and allowed(item)][:5]
        assert kept[kept >= 0].tolist() == expected
    shown = {*lists.items.ravel(), *ruled.default(20)}
    if ruled.capabilities.context_item:
        shown |= set(ruled.related(np.arange(20), 20)[0].ravel())
    assert all(allowed(item) for item in shown - {-1})


def test_what_a_unit_had_lately_is_left_out_and_older_repeats_stay():
    steps = [{"step": "already_bought", "within_days": 4.5}]
    lists, ruled = lists_with(steps, k=20)
    events = ruled.interactions.events
    age = (microseconds_of(NOW) - events.times) / DAY
    for unit, items in enumerate(lists.items):
        lately = set(events.items[(events.units == unit) & (age <= 4.5)].tolist())
        older = set(events.items[(events.units == unit) & (age > 4.5)].tolist())
        shown = set(items[items >= 0].tolist())
        assert not shown & lately
        assert older - lately <= shown


def test_hiding_everything_is_refused():
    with pytest.raises(ValueError, match="the filters hide every item"):
        lists_with([{"step": "price_band", "low": 100}])


@pytest.mark.parametrize(
    ("step", "missing"),
    [
        ("in_stock", "in_stock needs a catalogue"),
        ("price_band", "price_band needs a catalogue"),
        ("mmr", "mmr needs a catalogue"),
        ("calibrate", "calibrate needs a catalogue"),
    ],
)
def test_a_step_without_a_catalogue_says_so(step, missing):
    with pytest.raises(ValueError, match=missing):
        lists_with([{"step": step}], interactions=shop(catalogue=None))


def test_a_catalogue_without_prices_or_categories_says_so():
    bare = CATALOGUE[["item_id", "name"]]
    with pytest.raises(ValueError, match="price_band needs prices"):
        lists_with([{"step": "price_band"}], interactions=shop(bare))
    with pytest.raises(ValueError, match="calibrate needs categories"):
        lists_with([{"step": "calibrate"}], interactions=shop(bare))


# Rules with dates


@pytest.mark.parametrize(
    ("since", "until", "holds"),
    [
        (None, None, True),
        ("2026-03-01", None, True),
        ("2026-03-01T00:00:01", None, False),
        (None, "2026-03-01T00:00:00Z", False),
        (None, "2026-03-01T01:00:00+02:00", False),
        (NOW - timedelta(days=1), NOW + timedelta(days=1), True),
    ],
)
@pytest.mark.parametrize("step", ["block", "boost", "pin"])
def test_a_rule_holds_from_its_start_to_before_its_end(step, since, until, holds):
    options = {"block": {"items": ["i00"]}, "pin": {"item": "i19"}}
    options["boost"] = {"items": ["i19"], "by": 1}
    declared = {"step": step, **options[step], "since": since, "until": until}
    lists, _ = lists_with([declared])
    plain, _ = lists_with([])
    assert np.array_equal(lists.items, plain.items) != holds


def test_a_boost_moves_by_the_range_of_the_scores():
    # Scores by hand: of 20 items the number of units; half of the range lifts an item
    # exactly so far.
    lists, ruled = lists_with([{"step": "boost", "items": ["i15"], "by": 0.5}], k=20)
    units = ruled.interactions.item_units()
    expected = units.copy()
    expected[15] += 0.5 * (units.max() - units.min())
    order = sorted(range(20), key=lambda item: (-expected[item], item))
    assert lists.items[3].tolist() == order
    lowered, _ = lists_with([{"step": "boost", "items": ["i00"], "by": -1}], k=20)
    assert lowered.items[3].tolist().index(0) > 15


def test_pins_are_where_they_should_be_and_the_others_keep_their_order():
    steps = [
        {"step": "pin", "item": "i05", "position": 4},
        {"step": "pin", "item": "i19", "position": 2},
        {"step": "pin", "item": "i01", "position": 7},
        {"step": "pin", "item": "nowhere", "position": 1},
        {"step": "pin", "item": "i18", "position": 30},
    ]
    lists, _ = lists_with(steps)
    plain, _ = lists_with([], k=20)
    for items, sources, order in zip(
        lists.items, lists.sources, plain.items, strict=True
    ):
        assert [items[3], items[1], items[6]] == [5, 19, 1]
        assert [lists.labels[s] == "pinned" for s in sources] == [
            place in {1, 3, 6} for place in range(8)
        ]
        others = [item for item in items if item not in {5, 19, 1}]
        rest = [item for item in order if item not in {5, 19, 1}]
        assert others == rest[: len(others)]


def test_a_pin_of_what_was_had_or_is_hidden_is_no_pin():
    steps = [{"step": "pin", "item": "i01"}]
    lists, ruled = lists_with(steps, exclude_seen=True)
    had = ruled.interactions.matrix[:, [1]].toarray().ravel() > 0
    assert had.any()
    np.testing.assert_array_equal(lists.items[:, 0] == 1, ~had)
    hidden, ruled = lists_with([{"step": "in_stock"}, *steps])
    assert not (hidden.items == 1).any()
    assert not (ruled.default(8) == 1).any()


@pytest.mark.parametrize("width", [3, 8])
def test_a_pin_leaves_no_gap_in_a_short_list(width):
    items = np.array([[4, 2, -1], [4, -1, -1], [-1, -1, -1]], dtype=np.int32)
    given = Lists(
        items=items,
        scores=np.where(items >= 0, 1.0, -np.inf).astype(np.float32),
        sources=np.zeros((3, 3), np.int8),
        labels=("",),
        propensities=np.ones((3, 3), np.float32),
    )
    pins = Pins(items=(9,), positions=(2,))
    made = pins.rerank(given, width, np.array([0, 1, 2]), None)
    assert made.items.tolist() == [[4, 9, 2], [4, 9, -1], [-1, -1, -1]]
    assert np.isneginf(made.scores[made.items < 0]).all()


# Variety


def random_lists(rng, n=40, width=12, items=20):
    made = np.stack([rng.permutation(items)[:width] for _ in range(n)])
    scores = -np.sort(-rng.normal(size=(n, width)), axis=1)
    short = rng.random(n) < 0.3
    made[short, 7:], scores[short, 7:] = -1, -np.inf
    return Lists(
        items=made.astype(np.int32),
        scores=scores.astype(np.float32),
        sources=np.zeros((n, width), np.int8),
        labels=("",),
        propensities=np.ones((n, width), np.float32),
    )


def relevance_of(scores):
    known = scores[np.isfinite(scores)].astype(float)
    return (known - known.min()) / (known.max() - known.min())


@pytest.mark.parametrize("balance", [0.0, 0.3, 0.7, 1.0])
def test_mmr_is_the_greedy_loop_of_the_paper(balance):
    rng = np.random.default_rng(1)
    categories = rng.integers(-1, 4, 20).astype(np.int32)
    departments = np.where(categories < 0, -1, categories // 2).astype(np.int32)
    lists = random_lists(rng)
    step = MaximalMarginalRelevance(
        categories=categories, departments=departments, balance=balance, candidates=2
    )
    made = step.rerank(lists, 6, np.zeros(40, int), None)

    def likeness(one, other):
        if categories[one] >= 0 and categories[one] == categories[other]:
            return 1.0
        same = departments[one] >= 0 and departments[one] == departments[other]
        return 0.5 if same else 0.0

    for items, scores, found in zip(lists.items, lists.scores, made.items, strict=True):
        left = items[items >= 0].tolist()
        worth = dict(zip(left, relevance_of(scores), strict=True))
        chosen = []
        while left and len(chosen) < 6:
            value = [
                balance * worth[item]
                - (1 - balance) * max((likeness(item, c) for c in chosen), default=0)
                for item in left
            ]
            chosen.append(left.pop(int(np.argmax(value))))
        assert found[:6].tolist()[: len(chosen)] == chosen
        kept = items[items >= 0]
        assert sorted(found[found >= 0]) == sorted(kept), "nothing is lost"


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.95])
def test_calibration_is_the_greedy_loop_of_the_paper(weight):
    rng = np.random.default_rng(2)
    interactions = shop()
    categories = interactions.catalogue.category_codes
    step = Calibration.of_history(
        interactions.matrix, categories, weight=weight, candidates=2
    )
    lists = random_lists(rng, n=30)
    made = step.rerank(lists, 5, np.arange(30), None)
    mixes = category_mixes(interactions.matrix, categories).toarray()

    def divergence(p, codes):
        q = np.array([np.sum(np.array(codes) == c) / len(codes) for c in range(2)])
        smoothed = (1 - SMOOTHING) * q + SMOOTHING * p
        return sum(p[c] * np.log(p[c] / smoothed[c]) for c in range(2) if p[c] > 0)

    for unit, (items, scores, found) in enumerate(
        zip(lists.items, lists.scores, made.items, strict=True)
    ):
        left = items[items >= 0].tolist()
        worth = dict(zip(left, relevance_of(scores), strict=True))
        chosen = []
        while left and len(chosen) < 5:
            value = [
                (1 - weight) * worth[item]
                - weight
                * divergence(mixes[unit], [categories[i] for i in [*chosen, item]])
                for item in left
            ]
            chosen.append(left.pop(int(np.argmax(np.round(value, 9)))))
        got = found[:5].tolist()[: len(chosen)]
        assert [categories[i] for i in got] == [categories[i] for i in chosen]
        assert got == chosen


def test_mixes_are_shares_of_weights_of_known_categories():
    interactions = Interactions.from_columns(
        ["u", "u", "v", "w"], ["x", "y", "y", "z"], [3, 1, 2, 5]
    )
    mixes = category_mixes(interactions.matrix, np.array([1, 0, -1], np.int32))
    np.testing.assert_allclose(
        mixes.toarray(), [[0.25, 0.75], [1, 0], [0, 0], [0.5, 0.5]]
    )


def test_scores_are_scaled_to_one():
    scores = np.array([[3, 2, 1], [5, 5, -np.inf], [-np.inf] * 3], np.float32)
    expected = [[1, 0.5, 0], [1, 1, 0], [0] * 3]
    np.testing.assert_allclose(scaled(scores), expected)


def test_calibrated_lists_are_nearer_to_the_units_mix():
    knn = build_recommender("item_knn", {})
    plain, trained = lists_with([], knn)
    steps = [{"step": "calibrate", "weight": 0.9}]
    calibrated, _ = lists_with(steps, knn)
    codes = np.append(trained.interactions.catalogue.category_codes, -1)
    mixes = category_mixes(trained.interactions.matrix, codes[:-1]).toarray()[:-1]

    def distance(lists):
        shown = codes[lists.items]
        share = np.stack([(shown == c).mean(axis=1) for c in range(2)], axis=1)
        return np.abs(share - mixes).sum(axis=1).mean()

    assert distance(calibrated) < distance(plain)


# Exploration


def test_explored_items_come_as_often_as_their_propensity_says():
    # One list for 40,000 units, so shares can be counted: four standard errors.
    n, k, m = 40_000, 6, 9
    items = np.tile(np.arange(k + m, dtype=np.int32), (n, 1))
    given = Lists(
        items=items,
        scores=-items.astype(np.float32),
        sources=np.zeros_like(items, dtype=np.int8),
        labels=("",),
        propensities=np.ones_like(items, dtype=np.float32),
    )
    step = Exploration(share=0.3, first=3, last=5, seed=1, candidates=3)
    made = step.rerank(given, k, np.arange(n), None)
    assert made.items.shape == (n, k)
    explored = made.items >= k
    assert not explored[:, [0, 1, 5]].any()
    np.testing.assert_array_equal(made.sources == 1, explored)
    assert made.labels == ("", "explored")
    expected = np.where(explored, 0.3 / m, 0.7)
    expected[:, [0, 1, 5]] = 1
    np.testing.assert_allclose(made.propensities, expected, rtol=1e-6)
    for place in (2, 3, 4):
        share = 0.3 / m
        tolerance = 4 * np.sqrt(share * (1 - share) / n)
        for item in range(k, k + m):
            assert (made.items[:, place] == item).mean() == pytest.approx(
                share, abs=tolerance
            )
    both = explored[:, 2] & explored[:, 3]
    assert both.mean() == pytest.approx(0.09, abs=4 * np.sqrt(0.09 * 0.91 / n))
    for row in made.items[:200]:
        assert np.unique(row).size == k


def test_an_importance_weighted_mean_of_explored_lists_is_unbiased():
    # What every place would earn with the item that was there before.
    interactions = shop(units=3000)
    steps = [{"step": "explore", "share": 0.4, "first": 1, "last": 8}]
    lists, _ = lists_with(steps, k=8, interactions=interactions)
    plain, _ = lists_with([], k=8, interactions=interactions)
    worth = np.linspace(0, 1, 20)
    kept = lists.items == plain.items
    estimate = (kept * worth[lists.items] / lists.propensities).mean(axis=1)
    truth = worth[plain.items].mean()
    error = estimate.std() / np.sqrt(len(estimate))
    assert estimate.mean() == pytest.approx(truth, abs=4 * error)


def test_what_is_drawn_depends_on_seed_and_unit_alone():
    steps = [{"step": "explore", "share": 0.5, "first": 1, "last": 8}]
    lists, ruled = lists_with(steps)
    alone = ruled.lists(np.array([7]), 8, exclude_seen=False)
    np.testing.assert_array_equal(alone.items[0], lists.items[7])
    other, _ = lists_with([{**steps[0], "seed": 1}])
    assert not np.array_equal(other.items, lists.items)
    plain, _ = lists_with([])
    np.testing.assert_array_equal(ruled.default(8), plain.items[0])


def test_a_pool_of_too_few_items_leaves_the_list():
    lists, _ = lists_with([{"step": "explore", "share": 1, "first": 1}], k=15)
    assert (lists.propensities == 1).all()
    plain, _ = lists_with([], k=15)
    np.testing.assert_array_equal(lists.items, plain.items)


def test_the_random_words_are_uniform():
    drawn = uniforms(3, np.arange(2000), 5, 50)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, bins=50, range=(0, 1))[0]
    expected = drawn.size / 50
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # Mean 49, variance 98: four standard errors.
    assert chi_square < 49 + 4 * np.sqrt(98)
    assert np.unique(drawn).size == drawn.size
    np.testing.assert_array_equal(uniforms(3, np.array([9]), 7, 2)[0], drawn[9, 2:4])


# All together


def test_steps_work_with_every_recommender_and_each_other():
    steps = [
        {"step": "in_stock"},
        {"step": "boost", "categories": ["b"], "by": 0.1},
        {"step": "mmr"},
        {"step": "explore", "share": 0.5, "first": 3, "last": 6},
        {"step": "pin", "item": "i12", "position": 2},
    ]
    for name in RECOMMENDERS:
        lists, _ = lists_with(steps, build_recommender(name, {}), k=6)
        padding = lists.items < 0
        assert not (padding[:, :-1] & ~padding[:, 1:]).any(), name
        assert (lists.items[:, 1][~padding[:, 0]] == 12).all(), name
        assert not np.isin(lists.items, [1, 5, 9, 13, 17]).any(), name
        for row in lists.items:
            kept = row[row >= 0]
            assert np.unique(kept).size == kept.size, name


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("mmr", "reranking.0 is 'mmr'; it must be a mapping"),
        ({"step": "shuffle"}, "reranking.0.step is 'shuffle'; known steps: in_stock"),
        ({"balance": 1}, "reranking.0.step is None"),
        ({"step": "mmr", "lambda": 1}, "step 'mmr' has no parameter 'lambda'"),
        ({"step": "pin"}, "step 'pin' lacks item"),
        ({"step": "mmr", "balance": 2}, "step 'mmr': balance is 2; it must be"),
        ({"step": "calibrate", "weight": "x"}, "weight is 'x'"),
        ({"step": "explore", "share": 1.5}, "share is 1.5"),
        ({"step": "explore", "first": 5, "last": 4}, "last is 4"),
        ({"step": "price_band", "low": -1}, "low is -1"),
        ({"step": "price_band", "low": 5, "high": 4}, "high is 4"),
        ({"step": "price_band", "unknown": 1}, "unknown is 1; it must be true or"),
        ({"step": "block"}, "items and categories are empty; name what to block"),
        ({"step": "block", "items": "i01"}, "items are 'i01'; they must be texts"),
        ({"step": "boost", "by": 0.1}, "name what to boost"),
        ({"step": "boost", "by": True, "items": ["a"]}, "by is True"),
        ({"step": "pin", "item": "a", "position": 0}, "position is 0"),
        (
            {"step": "pin", "item": "a", "since": "soon"},
            "since is 'soon'; it must be a",
        ),
        (
            {"step": "block", "items": ["a"], "since": datetime(2026, 1, 1)},  # noqa: DTZ001
            "since is .* it must be a time",
        ),
        (
            {"step": "pin", "item": "a", "since": "2026-02-01", "until": "2026-01-01"},
            "it must lie before",
        ),
        ({"step": "already_bought", "within_days": 0}, "within_days is 0"),
    ],
)
def test_a_bad_step_is_refused(declared, message):
    with pytest.raises(ValueError, match=message):
        build_steps([declared])


@pytest.mark.parametrize("step", ["block", "boost"])
def test_a_category_that_no_item_has_is_refused(step):
    declared = {"step": step, "categories": ["c"]}
    if step == "boost":
        declared["by"] = 0.5
    with pytest.raises(ValueError, match="names the category 'c', which no item has"):
        lists_with([declared])


def test_two_pins_at_one_place_are_refused():
    steps = [{"step": "pin", "item": item} for item in ("i01", "i02")]
    with pytest.raises(ValueError, match="each item and each position must come once"):
        lists_with(steps)
