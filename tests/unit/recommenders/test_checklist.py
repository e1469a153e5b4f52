import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from recommenders import build_recommender, checklist
from recommenders.base import Rules
from recommenders.checklist import Check, Cost, Previous, check_lists
from recommenders.evaluation import Evaluation
from recommenders.interactions import Interactions

UNITS, ITEMS, DEPTH = 20, 40, 4

EVALUATION = Evaluation(
    protocol="a test",
    repeats="allowed",
    k=10,
    units=20,
    pairs=40,
    unknown_pairs=0,
    catalogue=ITEMS,
    precision=0.1,
    recall=0.2,
    ndcg=0.3,
    map=0.2,
    mrr=0.3,
    hit_rate=0.4,
    coverage=0.5,
    concentration=0.5,
    novelty=3.0,
    popularity=0.1,
    popularity_lift=0.2,
    diversity=math.nan,
    miscalibration=math.nan,
)


def trained(name="item_knn"):
    rows = [(u, (u + step) % ITEMS) for u in range(UNITS) for step in range(21)]
    data = Interactions.from_columns(
        [f"u{u:02}" for u, _ in rows], [f"i{i:02}" for _, i in rows]
    )
    return build_recommender(name, {}).fit(data, np.random.default_rng(0))


def good_lists():
    starts = np.arange(UNITS)[:, np.newaxis] * 2
    return ((starts + np.arange(DEPTH)) % ITEMS).astype(np.int32)


TOP_SHARE = "share of the first places for the 10 items shown most"

DEFAULT = np.array([5, 1, 7, 3], dtype=np.int32)


def failed(lists, default=DEFAULT, evaluations=(EVALUATION,), name="item_knn"):
    checks = check_lists(trained(name), lists, default, evaluations)
    return bad(checks)


def bad(checks):
    return {check.name: check.value for check in checks if not check.passed}


def test_good_lists_pass_every_check():
    checks = check_lists(trained(), good_lists(), DEFAULT, [EVALUATION])
    assert [check.passed for check in checks] == [True] * 9
    values = {check.name: check.value for check in checks}
    assert values["distinct items in all lists"] == ITEMS
    assert values["share of lists that are not the default list"] == 1.0
    assert values["share of sessions with an answer"] == 1.0
    # Each of the 40 items is shown in two of 80 places.
    assert values["share of the first places for the 10 items shown most"] == 20 / 80


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ([1, -1, 2, 3], "lists with gaps, repeated or unknown items"),
        ([1, 2, 2, 3], "lists with gaps, repeated or unknown items"),
        ([1, 2, 3, ITEMS], "lists with gaps, repeated or unknown items"),
        ([1, 2, 3, -2], "lists with gaps, repeated or unknown items"),
    ],
)
def test_one_bad_list_fails(row, name):
    lists = good_lists()
    lists[3] = row
    assert failed(lists) == {name: 1}


def test_a_short_list_is_no_bad_list():
    lists = good_lists()
    lists[3] = [1, 2, -1, -1]
    assert failed(lists) == {}


def test_lists_that_serving_would_have_to_fill_fail():
    lists = good_lists()
    lists[:, 2:] = -1
    lists[:10, 1] = -1
    name = "share of the first 10 places with items of its own"
    assert failed(lists) == {name: 30 / 80}


def test_only_the_first_places_need_own_items():
    lists = (np.arange(UNITS)[:, np.newaxis] + np.arange(12)) % ITEMS
    lists = lists.astype(np.int32)
    lists[:, 10:] = -1
    assert failed(lists, np.arange(12, dtype=np.int32)[::-1].copy()) == {}


@pytest.mark.parametrize(
    ("default", "items"), [([5, 1, 7, -1], 3), ([5, 5, 7, 3], 3), ([-1] * 4, 0)]
)
def test_the_default_list_must_be_full(default, items):
    default = np.array(default, dtype=np.int32)
    assert failed(good_lists(), default) == {"items in the default list": items}


def test_a_personal_recommender_must_be_personal():
    lists = np.tile(DEFAULT, (UNITS, 1))
    assert failed(lists) == {
        "distinct items in all lists": 4,
        "share of lists that are not the default list": 0,
        TOP_SHARE: 1,
    }
    assert failed(lists, name="popularity") == {}


@pytest.mark.parametrize(("shown", "passes"), [(4, False), (5, True)])
def test_lists_must_show_a_hundredth_of_the_other_items(shown, passes):
    # 4 of one list's length, and 1 % of the other 36, rounded up.
    lists = np.tile(DEFAULT, (UNITS, 1))
    lists[:, 3] = 0
    lists[0, 3] = 3 if shown == 5 else 0
    name = "distinct items in all lists"
    assert failed(lists) == {TOP_SHARE: 1} | ({} if passes else {name: 4})


def test_large_tables_are_checked_in_blocks(monkeypatch):
    lists = good_lists()
    lists[3] = [1, 2, 2, 3]
    lists[12, 2:] = -1
    whole = check_lists(trained(), lists, DEFAULT, [EVALUATION])
    monkeypatch.setattr(checklist, "_BLOCK_ROWS", 7)
    assert check_lists(trained(), lists, DEFAULT, [EVALUATION]) == whole


def test_half_of_the_lists_may_be_the_default_list():
    lists = good_lists()
    lists[:10] = DEFAULT
    assert failed(lists) == {}
    lists[10] = DEFAULT
    assert failed(lists) == {"share of lists that are not the default list": 9 / 20}


@pytest.mark.parametrize("figure", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["ndcg", "map", "mrr", "hit_rate"])
def test_figures_must_be_finite(field, figure):
    evaluations = [EVALUATION, replace(EVALUATION, **{field: figure})]
    name = "figures of the evaluation that are not finite"
    assert failed(good_lists(), evaluations=evaluations) == {name: 1}


def test_no_evaluation_is_no_pass():
    assert failed(good_lists(), evaluations=()) == {"figures of the evaluation": 0}


@pytest.mark.parametrize(
    ("rule", "value", "passed"),
    [
        ("at least", 1.0, True),
        ("at least", 0.9, False),
        ("at least", math.nan, False),
        ("at most", 1.0, True),
        ("at most", 1.1, False),
        ("at most", math.nan, False),
    ],
)
def test_a_verdict_compares_with_the_threshold(rule, value, passed):
    check = Check(name="share", value=value, threshold=1.0, rule=rule)
    assert check.passed is passed
    assert str(check) == f"share is {value:.4g}, must be {rule} 1"
    assert str(replace(check, slice="de")).startswith("share (de) is ")


# What shoppers would notice

CATALOGUE = pd.DataFrame(
    {
        "item_id": [f"i{n:02}" for n in range(ITEMS)],
        "category": ["a" if n < 20 else "b" for n in range(ITEMS)],
        "price": [1.0 if n < 20 else 100.0 for n in range(ITEMS)],
    }
)


def described(catalogue=CATALOGUE, hidden=(), light=0):
    """As `trained`, with a catalogue; units have the items of category a only."""
    rows = [(u, (u + step) % 20) for u in range(UNITS - light) for step in range(11)]
    rows += [(u, u % 20) for u in range(UNITS - light, UNITS)]
    rows += [(0, item) for item in range(20, 40)]
    data = Interactions.from_columns(
        [f"u{u:02}" for u, _ in rows],
        [f"i{i:02}" for _, i in rows],
        catalogue=catalogue,
    )
    made = build_recommender("item_knn", {}).fit(data, np.random.default_rng(0))
    mask = np.zeros(ITEMS, dtype=bool)
    mask[list(hidden)] = True
    return replace(made, rules=Rules(hidden=mask))


def lists_of(items):
    """Lists that go around among some items."""
    places = np.arange(UNITS)[:, np.newaxis] + np.arange(DEPTH)
    return np.array(items, dtype=np.int32)[places % len(items)]


def test_lists_of_what_units_buy_pass():
    checks = check_lists(described(), lists_of(range(20)), DEFAULT, [EVALUATION])
    assert bad(checks) == {}
    names = [check.name for check in checks]
    assert "times that median prices shown and had differ" in names
    assert "distance of the categories shown from those had" in names


@pytest.mark.parametrize("where", ["units", "default", "related"])
def test_a_blocked_item_fails_wherever_it_is(where):
    model = described(hidden=[39])
    parts = {
        "units": lists_of(range(20)),
        "default": DEFAULT.copy(),
        "related": lists_of(range(20)),
    }
    parts[where].flat[1] = 39
    checks = check_lists(
        model,
        parts["units"],
        parts["default"],
        [EVALUATION],
        related=parts["related"],
    )
    failing = [check for check in checks if not check.passed]
    assert [(check.name, check.value, check.slice) for check in failing] == [
        ("places with blocked items", 1, where)
    ]


def test_a_default_list_may_be_as_short_as_filters_make_it():
    model = described(hidden=range(3, 40))
    default = np.array([0, 1, 2, -1], dtype=np.int32)
    checks = check_lists(model, lists_of(range(3)), default, [EVALUATION])
    assert "items in the default list" not in bad(checks)


def test_other_prices_and_categories_than_units_buy_fail():
    checks = check_lists(described(), lists_of(range(20, 40)), DEFAULT, [EVALUATION])
    # 21 of 231 weights are of category b: 220 / 240 of a.
    had = 1 - 20 / 240
    assert bad(checks) == pytest.approx(
        {
            "times that median prices shown and had differ": 100,
            "distance of the categories shown from those had": had,
        }
    )


def test_one_list_for_all_has_no_room_for_every_category():
    model = described()
    popular = build_recommender("popularity", {}).fit(
        model.interactions, np.random.default_rng(0)
    )
    lists = np.tile(DEFAULT + 20, (UNITS, 1)).astype(np.int32)
    failing = bad(check_lists(popular, lists, DEFAULT, [EVALUATION]))
    assert list(failing) == ["times that median prices shown and had differ"]


def test_too_many_free_items_fail():
    free = CATALOGUE.assign(price=[0.0 if n < 2 else 5.0 for n in range(ITEMS)])
    checks = check_lists(described(free), lists_of(range(20)), DEFAULT, [EVALUATION])
    assert bad(checks) == {"share of the first places with items of price 0": 0.1}


def test_prices_that_are_mostly_missing_are_not_judged():
    sparse = CATALOGUE.assign(price=[1.0 if n < 2 else np.nan for n in range(ITEMS)])
    checks = check_lists(described(sparse), lists_of(range(20)), DEFAULT, [EVALUATION])
    assert not any("price" in check.name for check in checks)


def test_units_of_whom_little_is_known_need_items_too():
    model, lists = described(light=4), lists_of(range(20))
    lists[16:, 1:] = -1
    checks = check_lists(model, lists, DEFAULT, [EVALUATION])
    failing = {check.slice: check.value for check in checks if not check.passed}
    assert failing["units with fewer than 3 items"] == 0.25


def test_lists_like_none_of_the_version_that_serves_fail():
    model, lists = described(), lists_of(range(20))
    rows = np.array([2, 9])
    same = Previous(rows=rows, lists=lists[rows])
    assert bad(check_lists(model, lists, DEFAULT, [EVALUATION], previous=same)) == {}
    other = np.full((2, DEPTH), -1, dtype=np.int32)
    other[1] = [39, *lists[9, :1], 38, 37]
    checks = check_lists(
        model, lists, DEFAULT, [EVALUATION], previous=Previous(rows=rows, lists=other)
    )
    assert checks[-1].value == 1 / 8
    other[1, 1] = 36
    checks = check_lists(
        model, lists, DEFAULT, [EVALUATION], previous=Previous(rows=rows, lists=other)
    )
    name = "share of the first 4 places as in the version that serves"
    assert bad(checks) == {name: 0}


def test_time_and_memory_are_bounded():
    model, lists = described(), lists_of(range(20))
    cost = Cost(seconds=1.2, lists=20, memory=80, available=100)
    assert bad(check_lists(model, lists, DEFAULT, [EVALUATION], cost=cost)) == {}
    cost = Cost(seconds=1.3, lists=20, memory=81, available=100)
    assert bad(check_lists(model, lists, DEFAULT, [EVALUATION], cost=cost)) == {
        "seconds to make 1,000 lists": 65,
        "memory taken, as share of the machine's": 0.81,
    }
