"""Stability index, its noise, groups of items and rarefaction against other sources."""

import math

import numpy as np
import pytest
from scipy import stats

from experiment_service.analysis.drift import (
    UNKNOWN_GROUP,
    distinct_items,
    grouped,
    popularity_groups,
    stability_index,
)
from recommenders.drift import stability_noise


def test_the_index_is_the_sum_of_both_relative_entropies():
    reference = {"shoes": 812, "shirts": 1500, "hats": 31}
    current = {"shoes": 90, "shirts": 44, "bags": 7}
    groups = ("shoes", "shirts", "hats", "bags")
    q = np.array([reference.get(each, 0) + 0.5 for each in groups])
    p = np.array([current.get(each, 0) + 0.5 for each in groups])
    expected = stats.entropy(p, q) + stats.entropy(q, p)
    assert stability_index(reference, current) == pytest.approx(expected, rel=1e-12)
    assert stability_index(current, reference) == pytest.approx(expected, rel=1e-12)


def test_the_index_of_a_shift_has_its_closed_form():
    # From halves to one fifth and four fifths: (0.3) ln(4), up to the added half counts.
    found = stability_index({1: 5e6, 2: 5e6}, {1: 2e6, 2: 8e6})
    assert found == pytest.approx(0.3 * math.log(4), rel=1e-6)
    assert stability_index({1: 3, 2: 9}, {1: 3, 2: 9}) == 0


def test_an_index_needs_both_sides():
    with pytest.raises(ValueError, match="both sides"):
        stability_index({}, {"a": 1})


def test_without_a_change_the_noise_is_exceeded_once_in_a_thousand():
    rng = np.random.default_rng(3)
    shares = np.array([0.3, 0.2, 0.2, 0.1, 0.1, 0.1])
    bound = stability_noise(6, 4000, 600)
    draws = 20_000
    then = rng.multinomial(4000, shares, size=draws)
    now = rng.multinomial(600, shares, size=draws)
    # The same formula on all draws at once.
    q, p = (
        (each + 0.5) / (each + 0.5).sum(axis=1, keepdims=True) for each in (then, now)
    )
    beyond = ((p - q) * np.log(p / q)).sum(axis=1) > bound
    first = stability_index(dict(enumerate(then[0])), dict(enumerate(now[0])))
    assert first == pytest.approx(((p - q) * np.log(p / q))[0].sum())
    # 20 expected, with a standard deviation of 4.5.
    assert 2 <= beyond.sum() <= 38


def test_groups_have_about_equal_counts_and_new_items_their_own():
    counts = {"top": 30, **{f"item-{number:02}": 7 for number in range(10)}}
    groups = popularity_groups(counts)
    assert groups["top"] == 0
    assert groups["item-00"] == 3
    assert groups["item-09"] == 9
    assert popularity_groups({}) == {}
    assert grouped({"top": 4, "item-00": 1, "new": 2}, groups) == {
        0: 4,
        3: 1,
        UNKNOWN_GROUP: 2,
    }


@pytest.mark.parametrize("of", [0, 1, 7, 20])
def test_distinct_items_are_those_of_the_hypergeometric_distribution(of):
    counts = {"a": 20, "b": 13, "c": 1, "d": 2}
    expected = sum(
        1 - stats.hypergeom(20, count, of).pmf(0) for count in counts.values()
    )
    assert distinct_items(counts, 20, of=of) == pytest.approx(expected, abs=1e-12)


def test_all_exposures_show_all_items_and_no_more_can_be_drawn():
    assert distinct_items({"a": 5, "b": 1}, 5, of=5) == pytest.approx(2)
    with pytest.raises(ValueError, match="6 of 5"):
        distinct_items({"a": 5}, 5, of=6)
