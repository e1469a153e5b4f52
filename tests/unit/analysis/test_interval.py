import math

import pytest

from experiment_service.analysis.interval import (
    Interval,
    Withheld,
    check_counts,
    lift_interval,
)

GOOD = {
    "estimate": 0.5,
    "low": 0.4,
    "high": 0.6,
    "level": 0.95,
    "method": "m",
    "validity": "v",
}


@pytest.mark.parametrize(
    "changes",
    [
        {"estimate": 0.7},
        {"low": 0.55},
        {"high": math.inf},
        {"estimate": math.nan},
        {"level": 1.0},
        {"level": 0.0},
    ],
)
def test_an_interval_holds_its_estimate_and_is_finite(changes):
    with pytest.raises(ValueError, match="must"):
        Interval(**(GOOD | changes))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.9, True), (-0.1, 0.9, False), (0.0, 0.9, False)],
)
def test_excludes_zero(low, high, expected):
    assert Interval(**(GOOD | {"low": low, "high": high})).excludes_zero is expected


def test_excludes_zero_from_below():
    negative = {"estimate": -0.5, "low": -0.6, "high": -0.4}
    assert Interval(**(GOOD | negative)).excludes_zero


@pytest.mark.parametrize(
    ("successes", "n"),
    [(3, 2), (-1, 2), (0.5, 2), (1, 2.5), (math.nan, 2), (1, math.inf), (1, math.nan)],
)
def test_counts_are_whole_and_ordered(successes, n):
    with pytest.raises(ValueError, match="whole numbers"):
        check_counts(successes, n)


def test_a_lift_is_the_exponential_of_the_log_ratio():
    result = lift_interval(
        (math.log(1.1), 0.0, math.log(1.21)), level=0.9, method="m", validity="v"
    )
    assert (result.estimate, result.low, result.high) == pytest.approx((0.1, 0, 0.21))


def test_a_boundless_lift_is_withheld():
    result = lift_interval((0.0, -1.0, 600.0), level=0.9, method="m", validity="v")
    assert isinstance(result, Withheld)
