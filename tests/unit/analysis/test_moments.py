import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiment_service.analysis.moments import EpochMoments, Moments

# Powers of ten far apart, but with squares that neither overflow nor vanish.
values = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False).map(
    lambda value: 0.0 if abs(value) < 1e-6 else value
)
samples = st.lists(st.tuples(values, values), max_size=30)


def build(pairs):
    y = np.array([pair[0] for pair in pairs])
    x = np.array([pair[1] for pair in pairs])
    return Moments.from_arrays(y, x)


def assert_close(one, other):
    for field in dataclasses.fields(Moments):
        left, right = getattr(one, field.name), getattr(other, field.name)
        # Sums of mixed signs cancel, so the scale is that of the terms.
        assert left == pytest.approx(right, rel=1e-9, abs=1e-3)


@given(samples, samples)
def test_addition_is_concatenation(first, second):
    assert_close(build(first) + build(second), build(first + second))


@given(samples)
def test_zero_is_neutral(pairs):
    moments = build(pairs)
    assert moments + Moments.zero() == moments


@given(st.lists(st.floats(min_value=0.01, max_value=100), min_size=2, max_size=30))
def test_mean_and_variance_are_those_of_numpy(y):
    moments = Moments.from_arrays(y)
    assert moments.mean == pytest.approx(np.mean(y))
    assert moments.variance == pytest.approx(
        np.var(y, ddof=1), rel=1e-6, abs=1e-11 * max(y) ** 2
    )


def test_ratio_variance_is_that_of_the_influence_function():
    y = np.array([1.0, 0, 2, 1, 5])
    x = np.array([2.0, 1, 3, 4, 5])
    moments = Moments.from_arrays(y, x)
    r = y.sum() / x.sum()
    influence = (y - r * x) / x.mean()
    assert moments.ratio == pytest.approx(r)
    assert moments.ratio_variance == pytest.approx(np.var(influence, ddof=1) / 5)


def test_a_ratio_over_ones_is_a_mean():
    moments = Moments.from_arrays([1.0, 4, 2, 9])
    assert moments.ratio == moments.mean
    assert moments.ratio_variance == pytest.approx(moments.variance / 4)


def test_counts_are_the_moments_of_zeros_and_ones():
    assert Moments.from_counts(2, 5) == Moments.from_arrays([1, 0, 0, 1, 0])


@pytest.mark.parametrize("value", [0.1, 1e6, 1e-6, -3.3])
def test_equal_values_have_no_variance(value):
    moments = Moments.from_arrays([value] * 1000)
    assert moments.variance == 0
    assert moments.ratio_variance == 0


def test_values_too_small_to_be_squared_are_accepted():
    assert Moments.from_arrays([1e-200, 1e-200]).variance == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sum_y": float("nan")}, "sum_y is nan, must be finite"),
        ({"sum_xx": float("inf")}, "sum_xx is inf"),
        ({"n": -1}, "whole number"),
        ({"n": 2.5}, "whole number"),
        ({"sum_yy": -1}, "must be >= 0"),
        ({"n": 0}, "every sum must be 0"),
        ({"sum_y": 10}, "sum_y is 10"),
        ({"sum_x": 10}, "sum_x is 10"),
        ({"sum_xy": -10}, "sum_xy is -10"),
    ],
)
def test_impossible_sums_are_refused(changes, message):
    good = {"n": 4, "sum_y": 2, "sum_yy": 2, "sum_x": 4, "sum_xx": 4, "sum_xy": 2}
    Moments(**good)
    with pytest.raises(ValueError, match=message):
        Moments(**(good | changes))


@pytest.mark.parametrize(("y", "x"), [([[1.0]], None), ([1.0, 2.0], [1.0])])
def test_arrays_must_be_of_one_shape(y, x):
    with pytest.raises(ValueError, match="must be equal"):
        Moments.from_arrays(y, x)


def test_what_is_undefined_raises():
    with pytest.raises(ValueError, match="at least 1 unit"):
        _ = Moments.zero().mean
    with pytest.raises(ValueError, match="at least 2 units"):
        _ = Moments.from_arrays([1.0]).variance
    with pytest.raises(ValueError, match="at least 2 units"):
        _ = Moments.from_arrays([1.0]).ratio_variance
    with pytest.raises(ValueError, match="needs a denominator"):
        _ = Moments.from_arrays([1.0, 2.0], [0.0, 0.0]).ratio


def test_epoch_counts_its_units():
    epoch = EpochMoments(
        weights={"a": 0.5, "b": 0.5, "c": 0.0},
        moments={"a": Moments.from_counts(1, 4), "b": Moments.from_counts(0, 3)},
    )
    assert epoch.units == 7


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 0.5, "b": 0.4}, "sum to 1"),
        ({"a": 1.5, "b": -0.5}, "must be >= 0"),
        ({"a": float("nan"), "b": 1.0}, "sum to 1"),
        ({}, "sum to 1"),
        ({"b": 1.0}, "no weight"),
    ],
)
def test_epoch_refuses_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        EpochMoments(weights=weights, moments={"a": Moments.from_counts(1, 4)})
