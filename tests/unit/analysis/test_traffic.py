import numpy as np
import pytest
from scipy import stats

from experiment_service.analysis import traffic


def test_the_bound_is_tukeys_outer_fence_of_logarithms():
    quartiles = (2.0, 9.0)
    logs = np.log(quartiles)
    assert traffic.absurd_above(*quartiles) == pytest.approx(
        np.exp(logs[1] + 3 * (logs[1] - logs[0]))
    )
    assert traffic.absurd_above(1.0, 4.0) == 256.0
    assert traffic.absurd_above(1.0, 1.0) == traffic.FEWEST_ABSURD


def test_the_bound_stays_while_a_fifth_are_bots_and_no_shopper_is_beyond():
    rng = np.random.default_rng(1)
    shoppers = rng.geometric(1 / rng.gamma(2.0, 3.0, 100_000).clip(1))
    bots = rng.integers(5_000, 50_000, 20_000)
    clean, mixed = (
        traffic.absurd_above(*np.percentile(counts, [25, 75]))
        for counts in (shoppers, np.concatenate([shoppers, bots]))
    )
    assert shoppers.max() < clean < mixed < bots.min()


@pytest.mark.parametrize("quartiles", [(0.0, 1.0), (4.0, 2.0), (1.0, float("inf"))])
def test_bad_quartiles_are_refused(quartiles):
    with pytest.raises(ValueError, match="quartiles are"):
        traffic.absurd_above(*quartiles)


@pytest.mark.parametrize(
    ("absurd", "status"), [(0, "ok"), (200, "ok"), (201, "warning"), (2001, "failed")]
)
def test_bots_are_graded_by_the_worst_variant(absurd, status):
    check = traffic.bots(
        {"a": 0, "b": min(absurd, 2)},
        {"a": 0, "b": absurd},
        {"a": 10_000, "b": 10_000},
        bound=256,
    )
    assert (check.status, check.value) == (status, absurd / 10_000)
    assert ("of those of 'b'" in check.message) is (absurd > 0)
    assert ("Usual causes" in check.message) is (status != "ok")


def test_bots_of_nothing():
    assert traffic.bots({}, {}, {}, bound=100).status == "not_enough_data"
    with pytest.raises(ValueError, match="3 units with 2 of 9 exposures in 'a'"):
        traffic.bots({"a": 3}, {"a": 2}, {"a": 9}, bound=100)
    with pytest.raises(ValueError, match=r"0.0 units with 2 of 0.0 clicks in 'b'"):
        traffic.bots({}, {"b": 2}, {"a": 9}, bound=100, what="clicks")


@pytest.mark.parametrize(("late", "status"), [(1, "ok"), (2, "warning"), (6, "failed")])
def test_late_events_are_graded(late, status):
    check = traffic.late_events(late, 100)
    assert (check.status, check.value) == (status, late / 100)
    assert traffic.late_events(0, 0).status == "not_enough_data"
    with pytest.raises(ValueError, match="0 <= part <= whole"):
        traffic.late_events(2, 1)


def test_views_are_compared_as_by_scipy():
    tables = [
        ({"a": 700, "b": 610, "c": 90}, {"a": 1000, "b": 900, "c": 130}),
        ({"a": 300, "b": 1500}, {"a": 400, "b": 2100}),
    ]
    parts = [
        stats.chi2_contingency(
            [[seen[name], units[name] - seen[name]] for name in units], correction=False
        )
        for seen, units in tables
    ]
    check = traffic.missing_views(*zip(*tables, strict=True))
    expected = stats.chi2.sf(
        sum(each.statistic for each in parts), sum(each.dof for each in parts)
    )
    assert check.value == pytest.approx(expected, rel=1e-9)
    assert check.status == "ok"


def test_moving_weights_with_a_season_are_no_missing_views():
    """Shares by variant differ over both epochs together, within neither."""
    viewed = [{"a": 8000, "b": 800}, {"a": 400, "b": 4000}]
    units = [{"a": 10_000, "b": 1000}, {"a": 1000, "b": 10_000}]
    assert traffic.missing_views(viewed, units).value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("gap", "n", "status"),
    [
        (0.0, 10_000, "ok"),
        (0.02, 20_000, "failed"),
        (0.016, 20_000, "warning"),
        (0.004, 10_000_000, "ok"),
    ],
)
def test_missing_views_are_graded(gap, n, status):
    """Between variants; each is half as far off the common share."""
    check = traffic.missing_views(
        [{"a": 0.7 * n, "b": (0.7 - gap) * n}], [{"a": n, "b": n}]
    )
    assert check.status == status
    if status != "ok":
        assert f"{gap / 2:.2%} off" in check.message


def test_missing_exposures_are_compared_as_by_scipy():
    missing, units = {"a": 30, "b": 12}, {"a": 1000, "b": 900}
    table = [[missing[name], units[name] - missing[name]] for name in units]
    check = traffic.missing_exposures([missing], [units])
    expected = stats.chi2_contingency(table, correction=False)
    assert check.value == pytest.approx(expected.pvalue, rel=1e-9)
    assert check.status == "ok"


@pytest.mark.parametrize(
    ("missing", "n", "status", "words"),
    [
        ({"a": 60, "b": 10}, 1000, "failed", "in 'a'"),
        ({"a": 42, "b": 15}, 1000, "warning", "never arrived"),
        ({"a": 400, "b": 20}, 100_000, "ok", "off the common one"),
        ({"a": 0, "b": 0}, 50, "ok", "100 units named have all arrived"),
        ({}, 49, "not_enough_data", "0 exposures of 98 units"),
        ({"a": 3}, 1000, "not_enough_data", "too few to compare"),
    ],
)
def test_missing_exposures_are_graded(missing, n, status, words):
    check = traffic.missing_exposures([missing], [{"a": n, "b": n}])
    assert check.status == status
    assert words in check.message


@pytest.mark.parametrize(
    ("viewed", "units"),
    [
        ([], []),
        ([{}], [{"a": 500, "b": 500}]),
        ([{"a": 500, "b": 500}], [{"a": 500, "b": 500}]),
        ([{"a": 5}], [{"a": 8}]),
        ([{"a": 50, "b": 2}], [{"a": 80, "b": 4}]),
    ],
)
def test_views_that_cannot_be_compared(viewed, units):
    assert traffic.missing_views(viewed, units).status == "not_enough_data"


def test_a_variant_too_small_to_compare_is_left_out():
    two = traffic.missing_views([{"a": 50, "b": 40}], [{"a": 80, "b": 80}])
    three = traffic.missing_views(
        [{"a": 50, "b": 40, "c": 0}], [{"a": 80, "b": 80, "c": 4}]
    )
    assert three == two


def test_more_views_than_units_are_refused():
    with pytest.raises(ValueError, match="9 units of 'a' viewed in epoch 0, of 8"):
        traffic.missing_views([{"a": 9}], [{"a": 8}])
