import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiment_service.analysis import estimate, proportion
from experiment_service.analysis.interval import Interval, Withheld
from experiment_service.analysis.moments import Moments

# Sufficient statistics of tea-tasting's make_users_data(n_users=100, covariates=True,
# seed=42): y are orders, x are sessions. Its results are quoted in the tests.
CONTROL = Moments(n=53, sum_y=30, sum_yy=58, sum_x=105, sum_xx=259, sum_xy=80)
TREATMENT = Moments(n=47, sum_y=18, sum_yy=30, sum_x=89, sum_xx=205, sum_xy=41)

SAMPLES = st.lists(st.floats(-100, 100), min_size=3, max_size=20).filter(
    lambda sample: np.std(sample) > 0.01
)


def limits(result):
    return result.estimate, result.low, result.high


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (
            estimate.difference("mean", TREATMENT, CONTROL),
            (-0.183059, -0.500436, 0.134318),
        ),
        (
            estimate.log_scale_lift("mean", TREATMENT, CONTROL),
            (-0.323404, -0.659335, 0.343789),
        ),
        (
            estimate.difference("ratio", TREATMENT, CONTROL),
            (-0.083467, -0.235930, 0.068996),
        ),
    ],
)
def test_tea_tasting_values(result, expected):
    assert limits(result) == pytest.approx(expected, abs=5e-7)


def test_tea_tasting_relative_ratio():
    result = estimate.log_scale_lift("ratio", TREATMENT, CONTROL)
    assert (result.low, result.high) == pytest.approx((-0.630072, 0.354517), abs=5e-7)
    assert result.estimate == pytest.approx((18 / 89) / (30 / 105) - 1)


@given(SAMPLES, SAMPLES)
def test_welch_agrees_with_scipy(treatment, control):
    result = estimate.welch(
        Moments.from_arrays(treatment), Moments.from_arrays(control), level=0.9
    )
    oracle = stats.ttest_ind(treatment, control, equal_var=False).confidence_interval(
        0.9
    )
    assert (result.low, result.high) == pytest.approx(tuple(oracle), rel=1e-5, abs=1e-5)


@given(SAMPLES)
def test_student_agrees_with_scipy(sample):
    result = estimate.student(Moments.from_arrays(sample), level=0.8)
    oracle = stats.t.interval(
        0.8, len(sample) - 1, loc=np.mean(sample), scale=stats.sem(sample)
    )
    assert (result.low, result.high) == pytest.approx(oracle, rel=1e-5, abs=1e-5)


@given(SAMPLES, SAMPLES, st.floats(0.001, 1000), st.sampled_from(["mean", "ratio"]))
def test_intervals_are_equivariant_under_scale(treatment, control, scale, kind):
    plain = estimate.difference(
        kind, Moments.from_arrays(treatment), Moments.from_arrays(control)
    )
    scaled = estimate.difference(
        kind,
        Moments.from_arrays(np.multiply(treatment, scale)),
        Moments.from_arrays(np.multiply(control, scale)),
    )
    expected = np.multiply(limits(plain), scale)
    assert limits(scaled) == pytest.approx(expected, rel=1e-6, abs=1e-6 * scale)


@given(
    st.lists(st.floats(1, 100), min_size=3, max_size=20),
    st.lists(st.floats(1, 100), min_size=3, max_size=20),
    st.floats(0.001, 1000),
)
def test_lifts_do_not_change_with_the_scale(treatment, control, scale):
    # Fixed extremes keep the spread away from zero.
    y1, y0 = np.array([*treatment, 200.0]), np.array([*control, 200.0])
    plain = estimate.log_scale_lift(
        "mean", Moments.from_arrays(y1), Moments.from_arrays(y0)
    )
    scaled = estimate.log_scale_lift(
        "mean", Moments.from_arrays(y1 * scale), Moments.from_arrays(y0 * scale)
    )
    assert limits(scaled) == pytest.approx(limits(plain), rel=1e-6, abs=1e-9)


def test_scaling_the_denominator_divides_the_ratio():
    y, x = np.array([1.0, 0, 2, 1]), np.array([2.0, 1, 3, 4])
    plain = estimate.arm("ratio", Moments.from_arrays(y, x))
    halved = estimate.arm("ratio", Moments.from_arrays(y, 2 * x))
    assert np.divide(limits(plain), 2) == pytest.approx(limits(halved))


def test_a_ratio_over_ones_has_the_interval_of_the_mean():
    moments = Moments.from_arrays([1.0, 4, 2, 9])
    assert limits(estimate.delta(moments)) == pytest.approx(
        limits(estimate.student(moments))
    )


def test_the_kind_chooses_the_method():
    one, other = Moments.from_counts(5, 100), Moments.from_counts(3, 90)
    assert estimate.arm("proportion", one) == proportion.wilson(5, 100)
    assert estimate.arm("mean", one) == estimate.student(one)
    assert estimate.arm("ratio", one) == estimate.delta(one)
    assert estimate.difference("proportion", one, other) == proportion.newcombe(
        5, 100, 3, 90
    )
    assert estimate.lift("proportion", one, other) == proportion.proportion_lift(
        5, 100, 3, 90
    )


def test_one_variant_without_spread_still_has_an_interval():
    result = estimate.welch(
        Moments.from_arrays([1.0, 1.0, 1.0]), Moments.from_arrays([1.0, 2.0, 3.0])
    )
    oracle = stats.t.interval(0.95, 2, loc=-1, scale=np.sqrt(1 / 3))
    assert isinstance(result, Interval)
    assert (result.low, result.high) == pytest.approx(oracle)


ONE = Moments.from_arrays([1.0])
FLAT = Moments.from_arrays([0.1] * 50)
GOOD = Moments.from_arrays([1.0, 2.0, 4.0])
NEGATIVE = Moments.from_arrays([-1.0, -2.0, -4.0])
NO_DENOMINATOR = Moments.from_arrays([1.0, 2.0], [0.0, 0.0])


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (estimate.arm("proportion", Moments.zero()), "no units"),
        (estimate.arm("mean", Moments.zero()), "at least 2 units"),
        (estimate.arm("mean", FLAT), "same value"),
        (estimate.arm("ratio", ONE), "at least 2 units"),
        (estimate.arm("ratio", NO_DENOMINATOR), "denominator"),
        (estimate.difference("mean", ONE, GOOD), "at least 2 units"),
        (estimate.difference("mean", GOOD, ONE), "at least 2 units"),
        (estimate.difference("mean", FLAT, FLAT), "same value"),
        (estimate.difference("ratio", GOOD, NO_DENOMINATOR), "denominator"),
        (estimate.lift("mean", ONE, GOOD), "at least 2 units"),
        (estimate.lift("mean", GOOD, ONE), "at least 2 units"),
        (estimate.lift("mean", FLAT, FLAT), "same value"),
        (estimate.lift("mean", NEGATIVE, GOOD), "positive"),
        (estimate.lift("mean", GOOD, Moments.from_arrays([0.0, 0.0])), "positive"),
        (estimate.lift("ratio", NO_DENOMINATOR, GOOD), "denominator"),
    ],
)
def test_without_information_the_estimate_is_withheld(result, words):
    assert isinstance(result, Withheld)
    assert words in result.reason


@pytest.mark.parametrize("kind", ["proportion", "mean", "ratio"])
@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, float("nan")])
def test_the_level_is_checked(kind, level):
    moments = Moments.from_counts(5, 100)
    for call in (
        lambda: estimate.arm(kind, moments, level=level),
        lambda: estimate.difference(kind, moments, moments, level=level),
        lambda: estimate.lift(kind, moments, moments, level=level),
    ):
        with pytest.raises(ValueError, match="level"):
            call()
