"""Recommenders that read times or texts: numbers by hand and from scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from recommenders.age_routed import AgeRouted, map_quantiles
from recommenders.catalogue import Catalogue
from recommenders.co_purchase import CoPurchase
from recommenders.content import Content
from recommenders.instants import DAY
from recommenders.interactions import Interactions
from recommenders.item_knn import ItemKNN
from recommenders.neighbours import session_weights
from recommenders.own_frequent import OwnFrequent
from recommenders.popularity import CategoryPopularity, Popularity
from recommenders.session import SessionRules

MINUTE = DAY // 1440


def data(rows, catalogue=None, cold_items=False):
    """Build from (unit, item, time) and optionally a weight."""
    units, items, times, *weights = zip(*rows, strict=True)
    return Interactions.from_columns(
        units,
        items,
        *weights,
        times=np.array(times, dtype=np.int64),
        catalogue=catalogue,
        cold_items=cold_items,
    )


def fit(recommender, interactions):
    return recommender.fit(interactions, np.random.default_rng(0))


def scores_of(trained, row=0):
    """Return the finite scores of a unit by item id."""
    scores = trained.scorer.unit_scores(np.array([row]))[0]
    ids = trained.interactions.items.ids
    return {ids[i]: float(scores[i]) for i in np.flatnonzero(np.isfinite(scores))}


# Popularity

DAYS = [
    *[(f"u{n}", "old", n * DAY) for n in range(5)],
    *[(f"u{n}", "both", (8 + n) * DAY) for n in range(4)],
    *[(f"u{n}", "both", (15 + n) * DAY) for n in range(2)],
    *[(f"u{n}", "rising", (15 + n) * DAY) for n in range(6)],
    ("u0", "rising", 20 * DAY),
]


def test_a_window_counts_units_of_the_last_days_only():
    # The last interaction is of day 20, so the window is (13, 20].
    trained = fit(Popularity(window_days=7), data(DAYS))
    assert scores_of(trained) == {"both": 2, "rising": 6}
    assert trained.interactions.items.ids_of(trained.default(3)) == ["rising", "both"]
    every = scores_of(fit(Popularity(), data(DAYS)))
    assert every == {"old": 5, "both": 4, "rising": 6}


def test_a_trend_is_a_difference_in_standard_errors():
    # In (6, 13] "both" had 4 units and "rising" none.
    trained = fit(Popularity(window_days=7, order="trend"), data(DAYS))
    both = 2 * (np.sqrt(2.375) - np.sqrt(4.375)) / np.sqrt(2)
    rising = 2 * (np.sqrt(6.375) - np.sqrt(0.375)) / np.sqrt(2)
    assert scores_of(trained) == pytest.approx({"both": both, "rising": rising})


def test_a_trend_of_nothing_has_the_variance_it_claims():
    rng = np.random.default_rng(1)
    before, now = rng.poisson(50, (2, 20_000))
    trend = 2 * (np.sqrt(now + 3 / 8) - np.sqrt(before + 3 / 8)) / np.sqrt(2)
    assert trend.var() == pytest.approx(1, abs=4 * np.sqrt(2 / 20_000))


TEXTS = pd.DataFrame(
    {
        "item_id": ["apple", "pear", "milk", "cheese", "bare"],
        "name": ["Red apple", "Green pear", "Whole milk", "Blue cheese", None],
        "category": ["fruit", "fruit", "dairy", "dairy", None],
    }
)
SHOP = [
    ("a", "apple", 0, 3),
    ("a", "milk", 1, 1),
    ("b", "apple", 2, 1),
    ("b", "cheese", 3, 1),
    ("c", "pear", 4, 1),
    ("c", "bare", 5, 1),
    ("d", "cheese", 6, 1),
]


def test_category_popularity_is_taste_times_share():
    # Of a: 3/4 fruit and 1/4 dairy; apple has 2 of 3 fruit pairs, cheese 2 of 3 dairy.
    trained = fit(CategoryPopularity(), data(SHOP, TEXTS))
    expected = {
        "apple": 3 / 4 * 2 / 3,
        "pear": 3 / 4 / 3,
        "cheese": 1 / 4 * 2 / 3,
        "milk": 1 / 4 / 3,
    }
    assert scores_of(trained) == pytest.approx(expected)
    related, _ = trained.related(trained.interactions.items.rows(["apple", "bare"]), 2)
    assert trained.interactions.items.ids_of(related[0]) == ["pear"]
    assert (related[1] == -1).all(), "nothing is known of it"


def test_without_categories_there_is_no_popularity_by_category():
    bare = TEXTS.assign(category=None)
    with pytest.raises(ValueError, match="no item has a category in the catalogue"):
        fit(CategoryPopularity(), data(SHOP, bare))
    with pytest.raises(ValueError, match="needs a catalogue of the items"):
        fit(CategoryPopularity(), data(SHOP))


# Own items


def test_own_items_fade_by_half_lives():
    rows = [("a", "x", 0, 2), ("a", "y", 10 * DAY, 1), ("b", "z", 20 * DAY, 1)]
    trained = fit(OwnFrequent(half_life_days=10), data(rows))
    assert scores_of(trained) == pytest.approx({"x": 2 / 4, "y": 1 / 2})
    assert scores_of(fit(OwnFrequent(), data(rows))) == {"x": 2, "y": 1}


def test_a_very_old_item_is_still_an_own_item():
    rows = [("a", "x", 0), ("b", "z", 20_000 * DAY)]
    trained = fit(OwnFrequent(half_life_days=0.5), data(rows))
    assert list(scores_of(trained)) == ["x"]


# Baskets and sessions

BASKETS = [
    ("a", "x", 0),
    ("a", "y", MINUTE),
    ("a", "z", 60 * MINUTE),
    ("b", "x", 0),
    ("b", "y", 29 * MINUTE),
    ("b", "z", 58 * MINUTE),
    ("c", "z", 0),
]


def test_co_purchase_is_shared_baskets_over_the_norms():
    # Baskets: {x, y}, {z} of a; {x, y, z} of b; {z} of c.
    trained = fit(CoPurchase(shrink=1), data(BASKETS))
    likeness = trained.scorer.likeness.toarray()
    xy, xz = 2 / (2 + 1), 1 / (np.sqrt(2 * 3) + 1)
    expected = [[0, xy, xz], [xy, 0, xz], [xz, xz, 0]]
    np.testing.assert_allclose(likeness, expected, rtol=1e-6)
    together = fit(CoPurchase(shrink=1, min_together=2), data(BASKETS)).scorer.likeness
    np.testing.assert_allclose(
        together.toarray(), [[0, xy, 0], [xy, 0, 0], [0, 0, 0]], rtol=1e-6
    )


def test_baskets_of_too_many_items_are_left_out():
    trained = fit(CoPurchase(shrink=0, max_basket=2), data(BASKETS))
    likeness = trained.scorer.likeness.toarray()
    np.testing.assert_allclose(likeness, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])


def test_co_purchase_keeps_the_best_neighbours_across_blocks(monkeypatch):
    rng = np.random.default_rng(3)
    rows = [
        (f"u{unit}", f"i{item:02}", basket * DAY)
        for unit in range(30)
        for basket in range(4)
        for item in rng.choice(20, 5, replace=False)
    ]
    whole = fit(CoPurchase(neighbours=4), data(rows)).scorer.likeness
    monkeypatch.setattr("recommenders.co_purchase._BLOCK_ITEMS", 7)
    cut = fit(CoPurchase(neighbours=4), data(rows)).scorer.likeness
    assert (whole != cut).nnz == 0
    full = fit(CoPurchase(neighbours=1000), data(rows)).scorer.likeness.toarray()
    for row, kept in zip(full, whole.toarray(), strict=True):
        best = sorted(range(20), key=lambda item: (-row[item], item))[:4]
        assert np.flatnonzero(kept).tolist() == sorted(best)


def test_session_rules_are_one_over_distance():
    rows = [("a", item, n * MINUTE) for n, item in enumerate("xyz")]
    rules = fit(SessionRules(backward=0), data([*rows, ("b", "w", 0)])).scorer.likeness
    # w, x, y, z; from x: y at 1, z at 2; from y: z; scaled to 1.
    expected = np.zeros((4, 4))
    expected[1, 2:] = [1 / 1.5, 0.5 / 1.5]
    expected[2, 3] = 1
    np.testing.assert_allclose(rules.toarray(), expected, rtol=1e-6)
    both = fit(SessionRules(), data([*rows, ("b", "w", 0)])).scorer.likeness
    np.testing.assert_allclose(both.toarray()[3], [0, 0.5 / 1.5, 1 / 1.5, 0], rtol=1e-6)


def test_the_last_items_of_a_unit_count_by_recency():
    rows = [("a", item, n * MINUTE) for n, item in enumerate("wxyz")]
    scorer = fit(SessionRules(last=3, fade=0.5), data([*rows, ("b", "w", 0)])).scorer
    np.testing.assert_allclose(scorer.weights.toarray()[0], [0, 0.25, 0.5, 1])
    np.testing.assert_allclose(scorer.weights.toarray()[1], [1, 0, 0, 0])


def test_weights_of_a_session_start_at_its_end():
    fade = np.array([1, 0.5], dtype=np.float32)
    sessions = np.array([[3, 0, 1], [2, -1, -1], [-1, 1, 1], [-1, -1, -1]])
    np.testing.assert_allclose(
        session_weights(sessions, 4, fade).toarray(),
        [[0.5, 1, 0, 0], [0, 0, 1, 0], [0, 1.5, 0, 0], [0, 0, 0, 0]],
    )


def test_a_session_recommender_without_times_says_so():
    interactions = Interactions.from_columns(["a"], ["x"])
    for recommender in (SessionRules(), CoPurchase(), Popularity(window_days=1)):
        with pytest.raises(ValueError, match="these have no times"):
            fit(recommender, interactions)


# Content


def test_likeness_of_texts_is_that_of_scikit_learn():
    trained = fit(Content(groups=0), data(SHOP, TEXTS))
    texts = TEXTS.set_index("item_id").loc[list(trained.interactions.items)].fillna("")
    documents = texts["name"] + " " + texts["category"]
    expected = cosine_similarity(
        TfidfVectorizer(sublinear_tf=True).fit_transform(documents)
    )
    found = trained.scorer.item_scores(np.arange(5))
    np.testing.assert_allclose(np.maximum(found, 0), expected, atol=1e-6)


def test_an_item_without_texts_is_never_shown_and_not_fatal():
    trained = fit(Content(), data(SHOP, TEXTS))
    everybody = np.arange(len(trained.interactions.units))
    items, _ = trained.recommend(everybody, 5, exclude_seen=False)
    bare = trained.interactions.items.rows(["bare"])[0]
    assert not (items == bare).any()
    assert (items[:, 0] >= 0).all()


def test_words_of_any_script_count():
    catalogue = pd.DataFrame(
        {"item_id": ["a", "b", "c"], "name": ["Grüner TEE", "grüner Kaffee", "緑茶"]}
    )
    trained = fit(
        Content(groups=0), data([("u", item, 0) for item in "abc"], catalogue)
    )
    likeness = trained.scorer.item_scores(np.array([0]))[0]
    assert likeness[1] > 0
    assert np.isneginf(likeness[2])


def test_a_catalogue_that_says_nothing_is_refused():
    empty = pd.DataFrame({"item_id": TEXTS["item_id"], "price": 1.0})
    with pytest.raises(ValueError, match="says nothing of any item"):
        fit(Content(), data(SHOP, empty))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"price": [1, -2, 3, 4, 5]}, "has the price -2.0 at row"),
        ({"price": [1, np.inf, 3, 4, 5]}, "has the price inf"),
        ({"item_id": ["apple", "apple", "b", "c", "d"]}, "lists item 'apple' twice"),
    ],
)
def test_a_bad_catalogue_is_refused(change, message):
    frame = TEXTS.assign(**change)
    with pytest.raises(ValueError, match=message):
        Catalogue.from_frame(frame, TEXTS["item_id"].tolist())


def test_a_catalogue_of_other_items_is_refused():
    whole = data(SHOP, TEXTS)
    part = Catalogue.from_frame(TEXTS, ["apple", "milk"])
    with pytest.raises(ValueError, match="catalogue has 2 items and interactions 5"):
        Interactions(
            units=whole.units, items=whole.items, matrix=whole.matrix, catalogue=part
        )


# Routing by age


def shop(cold=3, units=60, known=30):
    """Two tastes over 100 days; new products come on the last, cold ones never."""
    rng = np.random.default_rng(8)
    rows = []
    for unit in range(units):
        for item in rng.choice(known // 2, 8, replace=False):
            number = 2 * item + unit % 2
            rows.append((f"u{unit:02}", f"i{number:02}", int(rng.integers(90 * DAY))))
    rows += [(f"u{unit:02}", f"i{40 + unit % 2}", 99 * DAY) for unit in range(8)]
    rows.append(("u99", "i00", 100 * DAY))
    items = [*range(known), 40, 41, *range(50, 50 + cold)]
    catalogue = pd.DataFrame(
        {
            "item_id": [f"i{item:02}" for item in items],
            "name": [f"thing {item % 7} of {item % 3}" for item in items],
            "category": ["odd" if item % 2 else "even" for item in items],
        }
    )
    return data(rows, catalogue, cold_items=True)


def test_products_are_new_by_age_and_units_light_by_history():
    interactions = shop()
    scorer = fit(AgeRouted(), interactions).scorer
    ids = np.array(interactions.items.ids)
    assert ids[scorer.is_new].tolist() == ["i40", "i41", "i50", "i51", "i52"]
    assert np.array(interactions.units.ids)[scorer.is_light].tolist() == ["u99"]
    old = fit(AgeRouted(new_days=0), interactions).scorer
    assert ids[old.is_new].tolist() == ["i50", "i51", "i52"], "nobody had them"
    enough = fit(AgeRouted(enough_units=4), interactions).scorer
    assert ids[enough.is_new].tolist() == ["i50", "i51", "i52"]


def test_a_product_listed_long_ago_is_not_new_once_somebody_had_it():
    interactions = shop()
    frame = pd.DataFrame({"item_id": interactions.items.ids})
    frame["listed_at"] = pd.Timestamp("1970-01-10", tz="UTC")
    frame["category"] = frame["name"] = "c"
    listed = Interactions(
        units=interactions.units,
        items=interactions.items,
        matrix=interactions.matrix,
        events=interactions.events,
        catalogue=Catalogue.from_frame(frame, interactions.items.ids),
    )
    scorer = fit(AgeRouted(), listed).scorer
    ids = np.array(interactions.items.ids)
    assert ids[scorer.is_new].tolist() == ["i50", "i51", "i52"]


def test_routes_of_one_scale_are_compared_exactly():
    # With one recommender on both routes nothing may change, for any item or unit.
    interactions = shop()
    routed = fit(AgeRouted(known=Content(), min_history=0), interactions)
    plain = fit(Content(), interactions)
    rows = np.arange(len(interactions.units))
    np.testing.assert_allclose(
        routed.scorer.unit_scores(rows), plain.scorer.unit_scores(rows), rtol=1e-4
    )
    np.testing.assert_allclose(
        routed.scorer.item_scores(np.arange(30)),
        plain.scorer.item_scores(np.arange(30)),
        rtol=1e-4,
    )


def test_known_products_keep_the_order_of_their_route_and_sources_tell_it():
    interactions = shop()
    routed, plain = fit(AgeRouted(), interactions), fit(ItemKNN(), interactions)
    light = np.flatnonzero(routed.scorer.is_light)
    rows = np.setdiff1d(np.arange(len(interactions.units)), light)
    lists = routed.lists(rows, 40, exclude_seen=False)
    is_new = np.append(routed.scorer.is_new, False)
    expected, _ = plain.recommend(rows, 40, exclude_seen=False)
    for mine, theirs, sources in zip(lists.items, expected, lists.sources, strict=True):
        kept = [item for item in mine if item >= 0 and not is_new[item]]
        assert kept == [item for item in theirs if item >= 0 and not is_new[item]]
        labels = [lists.labels[source] for source in sources[mine >= 0]]
        assert labels == [
            "new" if is_new[item] else "known" for item in mine[mine >= 0]
        ]
    assert lists.labels == ("known", "new", "light")
    third = routed.lists(light, 20, exclude_seen=False)
    named = {third.labels[s] for s in third.sources[third.items >= 0]}
    assert named == {"light", "new"}


def test_new_products_reach_lists_about_as_often_as_their_texts_deserve():
    # Texts carry no more of new products than of known ones here, so their share of
    # the lists is near their share of what the texts rank as high.
    interactions = shop(cold=10)
    routed, plain = fit(AgeRouted(), interactions), fit(Content(), interactions)
    rows = np.arange(40)
    is_new = np.append(routed.scorer.is_new, False)
    mine = is_new[routed.recommend(rows, 10, exclude_seen=False)[0]].mean()
    theirs = is_new[plain.recommend(rows, 10, exclude_seen=False)[0]].mean()
    assert 0 < mine == pytest.approx(theirs, abs=0.15)


def test_quantiles_are_mapped_piecewise_linearly():
    of = np.array([4.0, 2.0, 1.0, -np.inf])
    onto = np.array([100.0, 50.0, 10.0, 5.0])
    values = np.array([4.0, 3.0, 1.5, 5.0, 0.5, -np.inf])
    slope = (100 - 10) / (4 - 1)
    expected = [100, 75, 30, 100 + slope, 10 - slope / 2, -np.inf]
    np.testing.assert_allclose(map_quantiles(values, of, onto), expected)
    nothing = np.full(3, -np.inf)
    np.testing.assert_array_equal(map_quantiles(values, of, nothing), values)
    flat = map_quantiles(np.array([7.0, 8.0]), np.array([7.0]), np.array([2.0]))
    assert flat.tolist() == [2.0, 3.0]


def test_what_goes_with_a_new_product_only_texts_can_tell():
    interactions = shop()
    routed, plain = fit(AgeRouted(), interactions), fit(Content(), interactions)
    new = np.flatnonzero(routed.scorer.is_new)
    np.testing.assert_array_equal(routed.related(new, 9)[0], plain.related(new, 9)[0])
