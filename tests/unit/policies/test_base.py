import numpy as np
import pytest

from policies import ArmStatistics


def statistics(units=(3, 5), reward_sum=(1, 2), squares=(1, 2), **direction):
    return ArmStatistics(
        units=units, reward_sum=reward_sum, reward_sum_squares=squares, **direction
    )


def test_keeps_read_only_copies():
    units = np.array([3.0, 5.0])
    kept = statistics(units)
    units[0] = 99
    assert kept.units.tolist() == [3, 5]
    assert kept.units.dtype == np.float64
    assert kept.arms == 2
    with pytest.raises(ValueError, match="read-only"):
        kept.reward_sum[0] = 1


def test_adds_arm_by_arm():
    total = statistics(lower_is_better=True) + statistics(
        (10, 0), (-4, 0), (8, 0), lower_is_better=True
    )
    assert total.units.tolist() == [13, 5]
    assert total.reward_sum.tolist() == [-3, 2]
    assert total.reward_sum_squares.tolist() == [9, 2]
    assert total.lower_is_better


@pytest.mark.parametrize(
    "other",
    [statistics([1], [1], [1]), statistics(lower_is_better=True)],
    ids=["arms", "direction"],
)
def test_statistics_of_other_arms_do_not_add(other):
    with pytest.raises(ValueError, match="do not add; both must be the same"):
        _ = statistics() + other


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"units": []}, r"units has shape \(0,\)"),
        ({"units": 3}, r"units has shape \(\)"),
        ({"units": [[[3, 5]]]}, r"units has shape \(1, 1, 2\)"),
        ({"units": [[3, 5]]}, r"reward_sum has shape \(2,\) beside units .*\(1, 2\)"),
        ({"base_sum": [3, 5]}, "only base_sum is given; a ratio needs base_sum, "),
        ({"reward_sum": [1]}, r"reward_sum has shape \(1,\) beside units .*\(2,\)"),
        ({"squares": [1, 2, 3]}, r"reward_sum_squares has shape \(3,\)"),
        ({"units": [3, np.inf]}, "units of arm 1 is inf; it must be finite"),
        ({"reward_sum": [np.nan, 0]}, "reward_sum of arm 0 is nan; it must be finite"),
        ({"units": [3, -1]}, r"units of arm 1 is -1\.0; it must be >= 0"),
        ({"squares": [-2, 1]}, r"reward_sum_squares of arm 0 is -2\.0; it must be"),
    ],
)
def test_refuses_impossible_statistics(fields, message):
    with pytest.raises(ValueError, match=message):
        statistics(**fields)


def test_segments_pool_by_their_sums():
    seen = statistics([[3, 5], [1, 0]], [[1, 2], [1, 0]], [[1, 2], [1, 0]])
    assert (seen.segments, seen.arms) == (2, 2)
    pooled = seen.pooled()
    assert pooled.segments is None
    assert pooled.units.tolist() == [4, 5]
    assert pooled.reward_sum.tolist() == [2, 2]
    assert pooled.pooled() is pooled


def test_sums_of_a_ratio_add_and_only_to_their_like():
    base = {
        "base_sum": [6, 9],
        "base_sum_squares": [14, 19],
        "reward_base_sum": [2, 4],
    }
    total = statistics(**base) + statistics(**base)
    assert total.base_sum.tolist() == [12, 18]
    assert total.reward_base_sum.tolist() == [4, 8]
    with pytest.raises(ValueError, match="both of a ratio or neither"):
        _ = statistics(**base) + statistics()


def test_a_segment_is_named_in_an_error():
    with pytest.raises(ValueError, match=r"units of arm 1 in segment 1 is -1\.0"):
        statistics([[3, 5], [1, -1]], [[1, 2], [1, 0]], [[1, 2], [1, 0]])
