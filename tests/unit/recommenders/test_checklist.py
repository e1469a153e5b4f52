import math
from dataclasses import replace

import numpy as np
import pytest

from recommenders import build_recommender, checklist
from recommenders.checklist import Check, check_lists
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
    hit_rate=0.4,
    coverage=0.5,
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


DEFAULT = np.array([5, 1, 7, 3], dtype=np.int32)


def failed(lists, default=DEFAULT, evaluations=(EVALUATION,), name="item_knn"):
    checks = check_lists(trained(name), lists, default, evaluations)
    return {check.name: check.value for check in checks if not check.passed}


def test_good_lists_pass_every_check():
    checks = check_lists(trained(), good_lists(), DEFAULT, [EVALUATION])
    assert [check.passed for check in checks] == [True] * 7
    values = {check.name: check.value for check in checks}
    assert values["distinct items in all lists"] == ITEMS
    assert values["share of lists that are not the default list"] == 1.0


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
    }
    assert failed(lists, name="popularity") == {}


@pytest.mark.parametrize(("shown", "passes"), [(4, False), (5, True)])
def test_lists_must_show_a_hundredth_of_the_other_items(shown, passes):
    # 4 of one list's length, and 1 % of the other 36, rounded up.
    lists = np.tile(DEFAULT, (UNITS, 1))
    lists[:, 3] = 0
    lists[0, 3] = 3 if shown == 5 else 0
    name = "distinct items in all lists"
    assert failed(lists) == ({} if passes else {name: 4})


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
@pytest.mark.parametrize("field", ["precision", "recall", "ndcg", "hit_rate"])
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
