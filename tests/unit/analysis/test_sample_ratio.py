"""The watched sample ratio test against its definition, unit by unit."""

import math

import numpy as np
import pytest

from experiment_service.analysis.sample_ratio import (
    CONCENTRATIONS,
    FACTORS,
    sequential_srm,
)

NAMES = ("a", "b", "c")


def rows(array):
    return [dict(zip(NAMES, map(float, row), strict=False)) for row in array]


def p_by_hand(counts, weights):
    """Multiply the likelihood ratio of each alternative up, one unit at a time."""

    def ratio(chances):
        product = 1.0
        for epoch, (seen, w) in enumerate(zip(counts, weights, strict=True)):
            past = dict.fromkeys(range(len(w)), 0)
            for variant, n in enumerate(seen):
                for _ in range(n):
                    product *= chances(epoch, past)[variant] / w[variant]
                    past[variant] += 1
        return product

    def tilt(off, factor):
        def chances(epoch, _):
            tilted = np.array(weights[epoch], dtype=float)
            tilted[off] *= factor
            return tilted / tilted.sum()

        return chances

    def learned(concentration):
        def chances(epoch, past):
            guess = concentration * np.array(weights[epoch], dtype=float)
            guess += list(past.values())
            return guess / guess.sum()

        return chances

    variants = range(len(weights[0]))
    tilts = [ratio(tilt(off, c)) for off in variants for c in FACTORS]
    mixtures = [ratio(learned(k)) for k in CONCENTRATIONS]
    return min(1.0, 1 / ((np.mean(tilts) + np.mean(mixtures)) / 2))


@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ([[30, 10]], [[0.5, 0.5]]),
        ([[30, 10], [5, 40]], [[0.5, 0.5], [0.3, 0.7]]),
        ([[10, 60, 20], [3, 30, 40]], [[0.3, 0.3, 0.4], [0.1, 0.2, 0.7]]),
    ],
)
def test_the_p_value_is_the_definition(counts, weights):
    found = sequential_srm(rows(counts), rows(weights))
    assert found.value == pytest.approx(p_by_hand(counts, weights), rel=1e-9)


def test_each_unit_leaves_the_mean_of_the_evidence_as_it_was():
    """Of a martingale: the mean over the next unit's variant is the present value."""
    weights = [[0.5, 0.3, 0.2], [0.2, 0.1, 0.7]]
    counts = np.array([[9, 30, 2], [1, 14, 20]])
    now = 1 / p_by_hand(counts, weights)
    assert now > 1
    after = 0.0
    for variant, weight in enumerate(weights[1]):
        more = counts.copy()
        more[1, variant] += 1
        after += weight / sequential_srm(rows(more), rows(weights)).value
    assert after == pytest.approx(now, rel=1e-9)


def test_a_loss_fails_and_is_named():
    found = sequential_srm(rows([[5000, 4500]]), rows([[0.5, 0.5]]))
    assert found.status == "failed"
    assert "'a' has 5.3% more units" in found.message
    assert "Usual causes" in found.message
    fine = sequential_srm(rows([[5000, 5010]]), rows([[0.5, 0.5]]))
    assert (fine.status, fine.value) == ("ok", 1.0)


def test_it_stays_a_number_with_many_units():
    found = sequential_srm(rows([[9e8, 1e8]]), rows([[0.5, 0.5]]))
    assert found.value == 0.0
    assert found.status == "failed"
    assert math.isfinite(sequential_srm(rows([[5e8, 5e8]]), rows([[0.5, 0.5]])).value)


def test_units_at_weight_zero_are_left_to_the_leak_check():
    with_leak = sequential_srm(rows([[50, 40, 7]]), rows([[0.5, 0.5, 0.0]]))
    without = sequential_srm(rows([[50, 40]]), rows([[0.5, 0.5]]))
    assert with_leak.value == without.value


@pytest.mark.parametrize(
    ("counts", "weights"), [([], []), ([[0, 0]], [[0.5, 0.5]]), ([[5]], [[1.0]])]
)
def test_nothing_to_compare_is_not_enough_data(counts, weights):
    assert sequential_srm(rows(counts), rows(weights)).status == "not_enough_data"


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="count of 'a' in epoch 0 is -1"):
        sequential_srm([{"a": -1.0}], [{"a": 1.0}])
    with pytest.raises(ValueError, match="2 epochs of counts, 1 of weights"):
        sequential_srm(rows([[1, 1], [1, 1]]), rows([[0.5, 0.5]]))
