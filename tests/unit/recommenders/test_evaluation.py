from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from recommenders.evaluation import evaluate, hold_out
from recommenders.interactions import Interactions
from recommenders.item_knn import ItemKNN
from recommenders.popularity import Popularity

SINCE = datetime(2026, 3, 1, tzinfo=UTC)


def later(pairs, at=SINCE):
    units, items = zip(*pairs, strict=True)
    return pd.DataFrame(
        {"unit_id": units, "item_id": items, "occurred_at": pd.Timestamp(at)}
    )


def trained_on(pairs, recommender=None):
    units, items = zip(*pairs, strict=True)
    interactions = Interactions.from_columns(units, items)
    return (recommender or Popularity()).fit(interactions, np.random.default_rng(0))


# Units had: w 3, x 2, y 1, z 1; so the popularity order is w, x, y, z.
PAIRS = [("a", "w"), ("a", "x"), ("b", "w"), ("b", "y"), ("c", "w"), ("c", "x")]
PAIRS.append(("d", "z"))
TEST = [("a", "w"), ("a", "y"), ("b", "z"), ("c", "x"), ("c", "new"), ("new", "w")]


def test_all_figures_by_hand_repeats_allowed():
    trained = trained_on(PAIRS)
    held_out = hold_out(trained.interactions, later(TEST), since=SINCE)
    figures = evaluate(trained, held_out, k=2, repeats="allowed")
    # Lists: w, x for all. a: w of {w, y}; b: none of {z}; c: x of {x}, at place 2.
    assert (figures.units, figures.pairs, figures.unknown_pairs) == (3, 4, 2)
    assert figures.precision == pytest.approx((1 + 0 + 1) / 2 / 3)
    assert figures.recall == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert figures.hit_rate == pytest.approx(2 / 3)
    second = 1 / np.log2(3)
    assert figures.ndcg == pytest.approx((1 / (1 + second) + 0 + second) / 3)
    assert figures.coverage == pytest.approx(2 / 4)
    assert (figures.k, figures.catalogue) == (2, 4)


def test_all_figures_by_hand_new_only():
    trained = trained_on(PAIRS)
    held_out = hold_out(trained.interactions, later(TEST), since=SINCE)
    figures = evaluate(trained, held_out, k=2, repeats="new only")
    # To be found: a: y; b: z. Lists: a: y, z; b: x, z.
    assert (figures.units, figures.pairs) == (2, 2)
    assert figures.precision == pytest.approx(1 / 2)
    assert figures.recall == pytest.approx(1)
    assert figures.hit_rate == pytest.approx(1)
    assert figures.ndcg == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert figures.coverage == pytest.approx(3 / 4)


def test_the_protocol_says_what_the_figures_are_of():
    trained = trained_on(PAIRS)
    held_out = hold_out(trained.interactions, later(TEST), since=SINCE)
    assert evaluate(trained, held_out, k=2, repeats="new only").protocol == (
        "temporal split at 2026-03-01T00:00:00+00:00, full ranking of 4 items, lists "
        "of 2, repeats: new only, mean over 2 units with items to find, 2 pairs with a "
        "unit or item not in training left out"
    )


def naive(trained, pairs, k, new_only):
    """Compute the five figures with loops over ids and sets."""
    units, items = trained.interactions.units, trained.interactions.items
    dense = trained.interactions.matrix.toarray()
    had = {
        unit: {item for column, item in enumerate(items) if dense[row, column]}
        for row, unit in enumerate(units)
    }
    wanted = {}
    for unit, item in pairs:
        if unit in units and item in items and not (new_only and item in had[unit]):
            wanted.setdefault(unit, set()).add(item)
    sums, shown = np.zeros(4), set()
    for unit, relevant in wanted.items():
        rows = units.rows([unit])
        list_ = items.ids_of(trained.recommend(rows, k, exclude_seen=new_only)[0][0])
        shown.update(list_)
        places = [place for place, item in enumerate(list_, 1) if item in relevant]
        dcg = sum(1 / np.log2(place + 1) for place in places)
        top = range(1, min(k, len(relevant)) + 1)
        best = sum(1 / np.log2(place + 1) for place in top)
        hits = len(places)
        sums += [hits / k, hits / len(relevant), dcg / best, hits > 0]
    return [*(sums / len(wanted)), len(shown) / len(items)]


@pytest.mark.parametrize("repeats", ["allowed", "new only"])
@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("recommender", [Popularity(), ItemKNN(neighbours=3)])
def test_figures_equal_those_of_a_naive_loop(recommender, k, repeats):
    rng = np.random.default_rng(2)

    def pairs(count, units, items):
        rows = rng.integers(0, units, count), rng.integers(0, items, count)
        return [(f"u{unit}", f"i{item}") for unit, item in zip(*rows, strict=True)]

    trained = trained_on(pairs(400, 60, 30), recommender)
    test = pairs(300, 65, 33)
    held_out = hold_out(trained.interactions, later(test), since=SINCE)
    figures = evaluate(trained, held_out, k=k, repeats=repeats)
    np.testing.assert_allclose(
        [
            figures.precision,
            figures.recall,
            figures.ndcg,
            figures.hit_rate,
            figures.coverage,
        ],
        naive(trained, test, k, repeats == "new only"),
        rtol=1e-12,
    )


def test_a_short_list_does_not_find_the_last_item_by_its_padding():
    # -1 of one row would be the key of the last item of the row before.
    pairs = [("a", "x"), ("b", "x"), ("b", "y")]
    trained = trained_on(pairs)
    test = later([("a", "y"), ("b", "y")])
    held_out = hold_out(trained.interactions, test, since=SINCE)
    figures = evaluate(trained, held_out, k=9, repeats="allowed")
    assert figures.precision == pytest.approx(1 / 9)


def test_a_test_interaction_before_the_split_is_refused():
    trained = trained_on(PAIRS)
    early = later(TEST, at=SINCE - timedelta(seconds=1))
    with pytest.raises(ValueError, match="must be at or after since 2026-03-01"):
        hold_out(trained.interactions, early, since=SINCE)


def test_a_test_of_strangers_is_refused():
    trained = trained_on(PAIRS)
    with pytest.raises(ValueError, match="none of 2 test pairs"):
        hold_out(trained.interactions, later([("new", "w"), ("a", "new")]), since=SINCE)


def test_a_test_with_nothing_new_is_refused():
    trained = trained_on(PAIRS)
    held_out = hold_out(trained.interactions, later(PAIRS), since=SINCE)
    with pytest.raises(ValueError, match="no test pair is new"):
        evaluate(trained, held_out, repeats="new only")


def test_bad_arguments_are_refused():
    trained = trained_on(PAIRS)
    held_out = hold_out(trained.interactions, later(TEST), since=SINCE)
    with pytest.raises(ValueError, match="repeats is 'all'; it must be one of allowed"):
        evaluate(trained, held_out, repeats="all")
    with pytest.raises(ValueError, match="k is 0"):
        evaluate(trained, held_out, k=0)
