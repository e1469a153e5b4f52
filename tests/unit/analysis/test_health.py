import numpy as np
import pytest
from scipy import stats

from experiment_service.analysis import health
from experiment_service.analysis.interval import Overlap


def named(values):
    return {f"v{k}": value for k, value in enumerate(values)}


@pytest.mark.parametrize(
    ("counts", "weights", "p_value"),
    [
        # growthbook/growthbook packages/back-end/test/stats.test.ts (MIT).
        ([1000, 1200], [0.5, 0.5], 0.000020079),
        ([135, 115], [0.5, 0.5], 0.205903211),
        ([310, 98], [0.75, 0.25], 0.647434186),
        ([0, 10, 10], [0.34, 0.33, 0.33], 0.005790624),
        ([500, 500, 600], [0.34, 0.33, 0.33], 0.000592638),
        ([1000, 1200, 900], [0.5, 0.5, 0], 0.000020079),
        ([500, 500], [0.5, 0.5], 1.0),
    ],
)
def test_growthbook_p_values(counts, weights, p_value):
    check = health.srm([named(counts)], [named(weights)])
    assert check.value == pytest.approx(p_value, abs=5e-10)


def test_epochs_add_their_chi_squares():
    counts = [[120, 80, 100], [400, 300, 310]]
    weights = [[1 / 3, 1 / 3, 1 / 3], [0.4, 0.3, 0.3]]
    check = health.srm([named(row) for row in counts], [named(row) for row in weights])
    parts = [
        stats.chisquare(row, np.multiply(share, sum(row)))
        for row, share in zip(counts, weights, strict=True)
    ]
    total = sum(part.statistic for part in parts)
    assert check.value == pytest.approx(stats.chi2.sf(total, 4))


def test_opposite_shifts_do_not_cancel_over_epochs():
    counts = [named([600, 400]), named([400, 600])]
    weights = [named([0.5, 0.5])] * 2
    assert health.srm(counts, weights).status == "failed"


def test_small_cells_are_put_together():
    # 1000 units: a and b expect 2 each and join c, which expects 6.
    weights = {"a": 0.002, "b": 0.002, "c": 0.006, "d": 0.99}
    counts = {"a": 4, "b": 0, "c": 10, "d": 986}
    oracle = stats.chisquare([14, 986], [10, 990])
    assert health.srm([counts], [weights]).value == pytest.approx(oracle.pvalue)


def test_a_small_rest_joins_the_cell_before_it():
    # Each of five expects 3: a and b are a cell, c and d are, and e joins the second.
    counts = named([5, 4, 1, 2, 3])
    check = health.srm([counts], [named([0.2] * 5)])
    assert check.value == pytest.approx(stats.chisquare([9, 6], [6, 9]).pvalue)


def test_an_epoch_too_small_for_two_cells_is_left_out():
    large = ({"a": 60, "b": 40}, {"a": 0.5, "b": 0.5})
    small = ({"a": 3, "b": 0}, {"a": 0.5, "b": 0.5})
    with_small = health.srm([large[0], small[0]], [large[1], small[1]])
    assert with_small.value == health.srm([large[0]], [large[1]]).value


@pytest.mark.parametrize(
    ("counts", "status"),
    [([500, 500], "ok"), ([455, 545], "warning"), ([400, 600], "failed")],
)
def test_srm_is_graded(counts, status):
    check = health.srm([named(counts)], [named([0.5, 0.5])])
    assert check.status == status
    assert ("Usual causes" in check.message) is (status != "ok")


@pytest.mark.parametrize(
    ("counts", "weights"),
    [([], []), ([{}], [{"a": 1.0}]), ([{"a": 0.0}], [{"a": 0.0, "b": 0.0}])],
)
def test_srm_without_units_has_nothing_to_say(counts, weights):
    assert health.srm(counts, weights).status == "not_enough_data"


@pytest.mark.parametrize(
    ("counts", "weights", "message"),
    [
        ([{}], [], "1 epochs of counts, 0 of weights"),
        ([{"a": -1}], [{"a": 1}], "count of 'a' in epoch 0 is -1"),
        ([{"a": 1}], [{"a": float("nan")}], "weight of 'a' in epoch 0 is nan"),
    ],
)
def test_srm_refuses_bad_epochs(counts, weights, message):
    for check in (health.srm, health.zero_weight_leak):
        with pytest.raises(ValueError, match=message):
            check(counts, weights)


def test_leaks_are_counted_over_epochs():
    check = health.zero_weight_leak(
        [{"a": 10, "b": 3}, {"a": 10, "b": 5, "c": 2}, {"a": 1, "b": 9}],
        [{"a": 1, "b": 0}, {"a": 1, "b": 0}, {"a": 0.5, "b": 0.5}],
    )
    assert check.status == "failed"
    assert check.value == 10
    assert "b (8), c (2)" in check.message
    assert "Usual causes" in check.message


def test_no_leak():
    check = health.zero_weight_leak([{"a": 10, "b": 0}], [{"a": 1, "b": 0}])
    assert (check.status, check.value) == ("ok", 0)


@pytest.mark.parametrize(
    ("size", "status"), [(1000.0, "ok"), (299.0, "warning"), (99.0, "failed")]
)
def test_effective_sample_is_graded(size, status):
    overlap = Overlap(effective_sample_size=size, smallest_propensity=0.01)
    check = health.effective_sample(overlap)
    assert (check.status, check.value) == (status, size)
    assert "0.01" in check.message


def test_effective_sample_without_traffic():
    check = health.effective_sample(None, minimum_effective_sample_size=50)
    assert (check.status, check.value, check.threshold) == ("not_enough_data", None, 50)


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (health.crossovers, (1, 2, 6)),
        (health.fallbacks, (5, 6, 21)),
        (health.orphans, (1, 2, 6)),
        (health.duplicates, (5, 6, 51)),
    ],
)
def test_shares_are_graded(function, parts):
    checks = [function(part, 100) for part in parts]
    assert [check.status for check in checks] == ["ok", "warning", "failed"]
    assert [check.value for check in checks] == [part / 100 for part in parts]
    assert all(check.name == function.__name__ for check in checks)
    assert "Usual causes" not in checks[0].message
    assert "Usual causes" in checks[2].message


@pytest.mark.parametrize(
    "function",
    [health.crossovers, health.fallbacks, health.orphans, health.duplicates],
)
def test_shares_of_nothing(function):
    assert function(0, 0).status == "not_enough_data"
    with pytest.raises(ValueError, match="0 <= part <= whole"):
        function(2, 1)


@pytest.mark.parametrize(
    ("seconds", "status"),
    [(0.0, "ok"), (61.0, "warning"), (901.0, "failed"), (None, "not_enough_data")],
)
def test_ingestion_lag_is_graded(seconds, status):
    check = health.ingestion_lag(seconds)
    assert (check.status, check.value) == (status, seconds)


def test_a_check_is_finite():
    with pytest.raises(ValueError, match="must be finite"):
        health.ingestion_lag(float("inf"))
