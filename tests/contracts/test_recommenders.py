"""What every entry of RECOMMENDERS must do, with its default parameters."""

import inspect
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recommenders import RECOMMENDERS, build_recommender, describe
from recommenders.base import BLOCK_SCORES, AdditiveSessionScorer, Rules
from recommenders.interactions import Interactions
from recommenders.lists import PublishedLists
from recommenders.neighbours import NeighbourScorer
from recommenders.publishing import publish_lists
from recommenders.saving import load_recommender, save_recommender
from recommenders.space import Choices, Integers, Numbers

SIZE = 50


@pytest.fixture(params=RECOMMENDERS)
def name(request):
    return request.param


def train(name, interactions, seed=7):
    return build_recommender(name, {}).fit(interactions, np.random.default_rng(seed))


def catalogue(items):
    """Even and odd items are of two categories; each has a name of its own."""
    numbers = [int(item.lstrip("i")) for item in items]
    return pd.DataFrame(
        {
            "item_id": items,
            "name": [f"thing{number}" for number in numbers],
            "category": ["even" if number % 2 == 0 else "odd" for number in numbers],
        }
    )


def times(units, items):
    """Every unit goes through its items in an order of its own, within two hours."""
    return (1_700_000_000 + (units * 31 + items * 17) % 97 * 60) * 1_000_000


def from_pairs(pairs, weights=None, extra=0):
    """Make interactions; with `extra` items in the catalogue that nobody had."""
    pairs = np.array(list(pairs), dtype=np.int64)
    units, items = pairs.T
    known = [*np.unique(items), *range(900, 900 + extra)]
    return Interactions.from_columns(
        [f"u{unit:03}" for unit in units],
        [f"i{item:03}" for item in items],
        weights,
        times=times(units, items),
        catalogue=catalogue([f"i{item:03}" for item in known]),
        cold_items=True,
    )


def checkerboard():
    """Even units have all even items, odd ones all odd; the diagonal is withheld."""
    return from_pairs(
        (unit, item)
        for unit in range(SIZE)
        for item in range(SIZE)
        if (unit - item) % 2 == 0 and unit != item
    )


def random_interactions(seed=3, units=40, items=25, share=0.2):
    rng = np.random.default_rng(seed)
    had = rng.random((units, items)) < share
    had[:, 0] |= ~had.any(axis=1)
    had[0] |= ~had.any(axis=0)
    rows, columns = np.nonzero(had)
    pairs = np.stack([rows, columns], axis=1)
    return from_pairs(pairs, rng.integers(1, 6, rows.size))


def assert_well_formed(lists, n, k, catalogue):
    items, scores = lists
    assert items.shape == scores.shape == (n, k)
    assert items.dtype == np.int32
    assert scores.dtype == np.float32
    assert items.min(initial=-1) >= -1
    assert items.max(initial=-1) < catalogue
    padding = items == -1
    assert not (padding[:, :-1] & ~padding[:, 1:]).any(), "padding inside a list"
    assert (np.isneginf(scores) == padding).all()
    assert not np.isnan(scores).any()
    with np.errstate(invalid="ignore"):  # -inf less -inf, in the padding
        assert not (np.diff(scores, axis=1) > 0).any(), "scores rise in a list"
    for row in items:
        kept = row[row >= 0]
        assert np.unique(kept).size == kept.size, "an item twice in a list"


def assert_unseen(items, interactions, rows):
    had = interactions.matrix.toarray() > 0
    for row, list_ in zip(rows, items, strict=True):
        assert not had[row, list_[list_ >= 0]].any()


@pytest.mark.parametrize("k", [1, 10, 60])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_lists_are_well_formed(name, k, exclude_seen):
    interactions = random_interactions()
    rows = np.array([5, 0, 39, 5])
    lists = train(name, interactions).recommend(rows, k, exclude_seen=exclude_seen)
    assert_well_formed(lists, 4, k, 25)
    assert (lists[0][0] == lists[0][3]).all(), "one unit, two lists"


def test_seen_items_are_left_out_only_when_asked(name):
    interactions = random_interactions()
    trained = train(name, interactions)
    rows = np.arange(len(interactions.units))
    new, _ = trained.recommend(rows, 25, exclude_seen=True)
    assert_unseen(new, interactions, rows)
    with_seen, _ = trained.recommend(rows, 25, exclude_seen=False)
    had = interactions.matrix.toarray() > 0
    seen = (with_seen >= 0) & had[rows[:, np.newaxis], with_seen]
    assert seen.any(axis=1).mean() > 0.9


def test_lists_of_new_items_are_lists_of_all_without_the_seen(name):
    interactions = random_interactions()
    trained = train(name, interactions)
    rows = np.arange(len(interactions.units))
    new, _ = trained.recommend(rows, 25, exclude_seen=True)
    everything, _ = trained.recommend(rows, 25, exclude_seen=False)
    had = interactions.matrix.toarray() > 0
    for row in rows:
        kept = [item for item in everything[row] if item >= 0 and not had[row, item]]
        assert kept == new[row][new[row] >= 0].tolist()


def test_a_list_does_not_depend_on_who_else_asks(name):
    interactions = random_interactions()
    trained = train(name, interactions)
    rows = np.arange(len(interactions.units))
    together, scores = trained.recommend(rows, 10, exclude_seen=True)
    for row in rows:
        alone, score = trained.recommend(rows[row : row + 1], 10, exclude_seen=True)
        assert alone[0].tolist() == together[row].tolist()
        np.testing.assert_allclose(score[0], scores[row], rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_lists(name):
    interactions = random_interactions(units=300, items=120)
    rows = np.arange(300)
    first, second = (
        train(name, interactions).recommend(rows, 20, exclude_seen=True)
        for _ in range(2)
    )
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_the_order_of_rows_in_the_data_is_irrelevant(name):
    pairs = [(unit, item) for unit in range(12) for item in range(9) if unit * item % 5]
    ahead, back = from_pairs(pairs), from_pairs(pairs[::-1])
    rows = np.arange(len(ahead.units))
    np.testing.assert_array_equal(
        train(name, ahead).recommend(rows, 9, exclude_seen=False)[0],
        train(name, back).recommend(rows, 9, exclude_seen=False)[0],
    )


def test_training_leaves_the_interactions_as_they_were(name):
    interactions = random_interactions()
    before = interactions.matrix.copy()
    trained = train(name, interactions)
    trained.recommend(np.arange(5), 5, exclude_seen=True)
    trained.default(5)
    assert (interactions.matrix != before).nnz == 0
    assert trained.interactions is interactions


def test_the_withheld_diagonal_of_a_checkerboard_comes_back(name):
    trained = train(name, checkerboard())
    rows = np.arange(SIZE)
    best, _ = trained.recommend(rows, 1, exclude_seen=True)
    if trained.capabilities.cold_units:
        pytest.skip("not personal: all units get one list")
    wanted = rows if trained.capabilities.new_items else np.full(SIZE, -1)
    np.testing.assert_array_equal(best[:, 0], wanted)


def test_related_items_of_a_checkerboard_have_its_colour(name):
    trained = train(name, checkerboard())
    rows = np.arange(SIZE)
    if not trained.capabilities.context_item:
        with pytest.raises(ValueError, match="has no related items"):
            trained.related(rows, 5)
        return
    lists = trained.related(rows, 5)
    assert_well_formed(lists, SIZE, 5, SIZE)
    assert ((lists[0] - rows[:, np.newaxis]) % 2 == 0).all()
    assert (lists[0] != rows[:, np.newaxis]).all()


def test_default_is_the_popularity_order(name):
    interactions = from_pairs([(0, 3), (1, 3), (2, 3), (0, 1), (1, 1), (0, 0), (0, 2)])
    trained = train(name, interactions)
    assert trained.default(3).tolist() == [3, 1, 0]
    assert trained.default(6).tolist() == [3, 1, 0, 2, -1, -1]
    assert trained.default(6).dtype == np.int32


@pytest.mark.parametrize(
    "pairs",
    [
        [(0, 0)],
        [(0, 0), (0, 1), (0, 2)],
        [(0, 0), (1, 0), (2, 0)],
        [(0, 0), (1, 1)],
        [(unit, item) for unit in range(3) for item in range(3)],
    ],
    ids=["one pair", "one unit", "one item", "two strangers", "everybody has all"],
)
def test_the_smallest_data(name, pairs):
    interactions = from_pairs(pairs)
    trained = train(name, interactions)
    units, items = interactions.matrix.shape
    rows = np.arange(units)
    for exclude_seen in (True, False):
        lists = trained.recommend(rows, 5, exclude_seen=exclude_seen)
        assert_well_formed(lists, units, 5, items)
    assert_unseen(trained.recommend(rows, 5, exclude_seen=True)[0], interactions, rows)
    if trained.capabilities.context_item:
        assert_well_formed(trained.related(np.arange(items), 5), items, 5, items)


def test_no_rows_give_no_lists(name):
    trained = train(name, random_interactions())
    empty = np.array([], dtype=np.int32)
    lists = trained.recommend(empty, 4, exclude_seen=True)
    assert_well_formed(lists, 0, 4, 25)


def test_lists_are_the_same_in_one_block_and_in_many(name, monkeypatch):
    interactions = random_interactions()
    trained = train(name, interactions)
    rows = np.arange(len(interactions.units))
    assert rows.size * len(interactions.items) < BLOCK_SCORES
    one, _ = trained.recommend(rows, 10, exclude_seen=True)
    monkeypatch.setattr("recommenders.base.BLOCK_SCORES", 60)
    many, _ = trained.recommend(rows, 10, exclude_seen=True)
    np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize("rows", [[-1], [40], [0, 99], [0.0], [[0]]])
def test_rows_not_in_training_are_refused(name, rows):
    trained = train(name, random_interactions())
    with pytest.raises(ValueError, match=r"unit row"):
        trained.recommend(np.array(rows), 3, exclude_seen=True)
    if trained.capabilities.context_item:
        with pytest.raises(ValueError, match=r"item row"):
            trained.related(np.array(rows), 3)


def test_a_list_without_items_is_refused(name):
    trained = train(name, random_interactions())
    with pytest.raises(ValueError, match="k is 0"):
        trained.recommend(np.array([0]), 0, exclude_seen=True)
    with pytest.raises(ValueError, match="k is 0"):
        trained.default(0)


def test_the_trained_one_says_what_the_recommender_can(name):
    recommender = build_recommender(name, {})
    trained = train(name, random_interactions())
    assert trained.recommender == recommender
    assert trained.capabilities is recommender.capabilities
    methods = {
        "context_item": hasattr(trained.scorer, "item_scores"),
        "session": hasattr(trained.scorer, "session_scores"),
    }
    for flag, has_method in methods.items():
        assert getattr(trained.capabilities, flag) is has_method, flag


def test_what_was_left_counts_where_the_recommender_says_so(name):
    data = random_interactions()
    unit, item = data.units.ids[0], data.items.ids[data.matrix[0].indices[0]]
    left = data.with_passed([unit], [item], np.array([50.0]))
    before, after = (
        train(name, each).scorer.unit_scores(np.zeros(1, dtype=np.int32))
        for each in (data, left)
    )
    assert np.array_equal(before, after) is not train(name, left).capabilities.dislikes


def test_sessions_get_lists_whoever_they_are_of(name):
    trained = train(name, checkerboard())
    # Of even items, of odd ones, of one item, and of a stranger who looked at nothing.
    sessions = np.array([[0, 2, 4], [7, 9, 11], [-1, -1, 30], [-1, -1, -1]])
    if not trained.capabilities.session:
        with pytest.raises(ValueError, match="has no lists for sessions"):
            trained.for_sessions(sessions, 5, exclude_seen=True)
        return
    lists = trained.for_sessions(sessions, 5, exclude_seen=True)
    assert_well_formed((lists.items, lists.scores), 4, 5, SIZE)
    assert (lists.items[:3] >= 0).all()
    assert (lists.items[:3] % 2 == np.array([[0], [1], [0]])).all()
    assert (lists.items[3] == -1).all()
    for items, session in zip(lists.items, sessions, strict=True):
        assert not set(items.tolist()) & set(session[session >= 0].tolist())
    with pytest.raises(ValueError, match=rf"session item row {SIZE} is not in"):
        trained.for_sessions(np.array([[SIZE]]), 5, exclude_seen=True)
    with pytest.raises(ValueError, match="1 dimensions; they must have two"):
        trained.for_sessions(np.array([3]), 5, exclude_seen=True)


@pytest.mark.parametrize("data", [checkerboard, random_interactions])
def test_published_scores_order_sessions_as_it_does_itself(name, data, tmp_path):
    """Where no list is cut; to the last tie if it sums up neighbours.

    A checkerboard has many ties. Others weigh the sums, which may round ties away.
    """
    trained = train(name, data())
    items = trained.interactions.items
    hidden = np.zeros(len(items), dtype=bool)
    hidden[[1, 4]] = True
    trained = replace(trained, rules=Rules(hidden=hidden))
    additive = isinstance(trained.scorer, AdditiveSessionScorer)
    assert additive is (trained.capabilities.session and name != "age_routed")
    if not additive:
        return
    related, scores = trained.related(np.arange(len(items)), len(items))
    publish_lists(
        tmp_path / "1",
        name=name,
        version=1,
        unit_ids=["u"],
        lists=related[:1],
        item_ids=items.ids,
        default=related[0],
        related=related,
        related_scores=scores,
        session_fade=trained.scorer.fade.tolist(),
    )
    lists = PublishedLists.open(tmp_path / "1")
    sessions = np.random.default_rng(1).integers(-1, len(items), (60, 20))
    sessions[::2, :15] = -1
    wanted = trained.for_sessions(sessions, len(items), exclude_seen=True)
    for session, best, scored in zip(
        sessions, wanted.items, wanted.scores, strict=True
    ):
        recent, own = items.ids_of(session), items.ids_of(best)
        served = lists.for_session(recent, len(items))
        assert lists.for_session(recent, 7) == served[:7]
        served = [item for item in served if item not in recent]
        if isinstance(trained.scorer, NeighbourScorer):
            assert served == own
        assert sorted(served) == sorted(own)
        scores = scored[[own.index(item) for item in served]]
        assert (np.diff(scores) <= 1e-6 * scores[:-1]).all()


def test_items_that_nobody_had_come_only_where_it_says_so(name):
    pairs = [(unit, item) for unit in range(12) for item in range(9) if unit * item % 5]
    trained = train(name, from_pairs(pairs, extra=4))
    assert len(trained.interactions.items) == 7 + 4
    rows = np.arange(len(trained.interactions.units))
    items, _ = trained.recommend(rows, 11, exclude_seen=False)
    assert (items >= 7).any() == trained.capabilities.cold_items
    assert (trained.default(11) < 7).all()
    if trained.capabilities.context_item:
        related, _ = trained.related(np.arange(11), 11)
        assert (related >= 7).any() == trained.capabilities.cold_items


def test_hidden_items_are_in_no_list(name):
    trained = train(name, random_interactions())
    hidden = np.zeros(25, dtype=bool)
    hidden[[0, 3, 24]] = True
    filtered = replace(trained, rules=Rules(hidden=hidden))
    rows = np.arange(len(trained.interactions.units))
    lists = [
        (trained.recommend, filtered.recommend, rows, {"exclude_seen": False}),
        (trained.recommend, filtered.recommend, rows, {"exclude_seen": True}),
    ]
    if trained.capabilities.context_item:
        lists.append((trained.related, filtered.related, np.arange(25), {}))
    for before, after, asked, options in lists:
        everything, _ = before(asked, 25, **options)
        shown, _ = after(asked, 25, **options)
        for all_items, kept in zip(everything, shown, strict=True):
            expected = [i for i in all_items if i >= 0 and not hidden[i]]
            assert kept[kept >= 0].tolist() == expected
    assert not np.isin(filtered.default(25), [0, 3, 24]).any()


def test_a_saved_one_makes_the_same_lists(name, tmp_path):
    trained = train(name, random_interactions())
    save_recommender(trained, tmp_path / "saved")
    loaded = load_recommender(tmp_path / "saved")
    assert loaded.recommender == trained.recommender
    assert loaded.interactions.units == trained.interactions.units
    rows = np.arange(len(trained.interactions.units))
    for exclude_seen in (True, False):
        for ours, theirs in zip(
            loaded.recommend(rows, 10, exclude_seen=exclude_seen),
            trained.recommend(rows, 10, exclude_seen=exclude_seen),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(loaded.default(10), trained.default(10))
    if trained.capabilities.context_item:
        np.testing.assert_array_equal(
            loaded.related(np.arange(25), 5)[0], trained.related(np.arange(25), 5)[0]
        )


def test_its_description_builds_it_again(name):
    recommender = build_recommender(name, {})
    assert build_recommender(name, json.loads(json.dumps(describe(recommender)))) == (
        recommender
    )


def test_the_ends_of_its_search_space_can_be_built(name):
    kind = RECOMMENDERS[name]
    assert set(kind.space) <= set(inspect.signature(kind).parameters)
    for parameter, space in kind.space.items():
        match space:
            case Choices(values):
                ends = values
            case Integers(low=low, high=high) | Numbers(low=low, high=high):
                ends = (low, high)
        for end in ends:
            build_recommender(name, {parameter: end})


def test_a_unit_with_nearly_everything_is_no_trouble(name):
    rng = np.random.default_rng(5)
    heavy = [(0, item) for item in rng.integers(0, 300, 100_000)]
    light = [(unit, item) for unit in range(1, 60) for item in (unit, unit + 6)]
    trained = train(name, from_pairs(heavy + light))
    items, _ = trained.recommend(np.arange(60), 10, exclude_seen=False)
    # A basket of one has nothing bought together with it.
    assert (items[:, 0] >= 0).mean() > 0.9


def test_ids_may_be_of_any_script(name):
    pairs = [(unit, item) for unit in range(12) for item in range(9) if unit * item % 5]
    plain = from_pairs(pairs)
    units = [f"Zoë-{unit:03}-購" for unit, _ in pairs]
    items = [f"i{item:03}-β🛒" for _, item in pairs]
    listed = catalogue([f"i{item:03}" for item in sorted({i for _, i in pairs})])
    listed["item_id"] += "-β🛒"
    rows = np.array(pairs)
    same = Interactions.from_columns(
        units, items, times=times(*rows.T), catalogue=listed, cold_items=True
    )
    asked = np.arange(len(plain.units))
    np.testing.assert_array_equal(
        train(name, same).recommend(asked, 8, exclude_seen=False)[0],
        train(name, plain).recommend(asked, 8, exclude_seen=False)[0],
    )


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_data_gives_well_formed_lists(data):
    name = data.draw(st.sampled_from(sorted(RECOMMENDERS)))
    places = st.tuples(st.integers(0, 7), st.integers(0, 7))
    pairs = data.draw(st.lists(places, min_size=1, max_size=40))
    k = data.draw(st.integers(1, 10))
    interactions = from_pairs(pairs)
    rows = np.arange(len(interactions.units))
    lists = train(name, interactions).recommend(rows, k, exclude_seen=True)
    assert_well_formed(lists, rows.size, k, len(interactions.items))
    assert_unseen(lists[0], interactions, rows)


def test_an_unknown_recommender_is_refused():
    with pytest.raises(ValueError, match=r"'svd'; known recommenders: popularity"):
        build_recommender("svd", {})


def test_an_unknown_parameter_is_refused(name):
    with pytest.raises(ValueError, match=rf"'{name}' has no parameter 'colour'"):
        build_recommender(name, {"colour": 1})


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("item_knn", "similarity", "jaccard"),
        ("item_knn", "similarity", ["cosine"]),
        ("item_knn", "neighbours", 0),
        ("item_knn", "neighbours", 2.0),
        ("item_knn", "neighbours", True),
        ("als", "factors", 0),
        ("als", "factors", "64"),
        ("als", "regularization", -0.1),
        ("als", "regularization", float("nan")),
        ("als", "alpha", 0),
        ("als", "alpha", None),
        ("als", "alpha", True),
        ("als", "iterations", 10_000),
        ("als", "weighting", "tfidf"),
        ("bpr", "learning_rate", 0),
        ("bpr", "factors", 2.5),
        ("popularity", "window_days", 0),
        ("popularity", "window_days", "7"),
        ("popularity", "order", "clicks"),
        ("own_frequent", "half_life_days", -1),
        ("content", "words", -1),
        ("content", "max_words", 0),
        ("content", "fade", 2),
        ("session", "reach", 0),
        ("session", "fade", 0),
        ("co_purchase", "max_basket", 1),
        ("co_purchase", "shrink", math.inf),
        ("age_routed", "new_days", -1),
        ("age_routed", "enough_units", 0),
        ("age_routed", "min_history", None),
        ("age_routed", "known", "als"),
        ("age_routed", "new", {"recommender": "als"}),
        ("age_routed", "light", {"recommender": "als", "seed": 1}),
    ],
)
def test_a_bad_parameter_is_refused(name, parameter, value):
    with pytest.raises(ValueError, match=rf"'{name}': {parameter} is .*; it must be"):
        build_recommender(name, {parameter: value})


def test_a_part_of_a_recommender_is_built_and_checked_as_any():
    routed = build_recommender(
        "age_routed",
        {"known": {"recommender": "als", "parameters": {"factors": 8}}},
    )
    assert routed.known == build_recommender("als", {"factors": 8})
    assert describe(routed)["known"]["parameters"]["factors"] == 8
    with pytest.raises(ValueError, match="'age_routed': recommender 'als': factors"):
        build_recommender(
            "age_routed",
            {"known": {"recommender": "als", "parameters": {"factors": 0}}},
        )


def test_a_trend_needs_a_window():
    with pytest.raises(ValueError, match="window_days is None; it must be a number"):
        build_recommender("popularity", {"order": "trend"})


def test_parameters_reach_the_recommender():
    als = build_recommender("als", {"factors": 8, "alpha": 1, "weighting": "counts"})
    assert (als.factors, als.alpha, als.weighting) == (8, 1, "counts")
