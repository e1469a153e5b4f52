"""Fieller's limits against an inverted t test, closed forms and regression."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize, stats

from experiment_service.analysis import estimate
from experiment_service.analysis.fieller import WEAK, fieller_limits
from experiment_service.analysis.interval import Interval, Withheld
from experiment_service.analysis.moments import Moments
from experiment_service.analysis.significance import p_value

POSITIVE = st.floats(0.01, 100)


def distance(value, top, bottom, covariance, quantile):
    """Squared test statistic of numerator = value x denominator, less its bound."""
    error = top[1] - 2 * value * covariance + value**2 * bottom[1]
    return (top[0] - value * bottom[0]) ** 2 - quantile**2 * error


@given(
    st.floats(0.1, 10), POSITIVE, st.floats(0.1, 10), POSITIVE, st.floats(-0.99, 0.99)
)
def test_limits_are_where_the_test_changes_its_mind(top, error1, bottom, error0, rho):
    covariance = rho * math.sqrt(error1 * error0)
    arguments = ((top, error1), (bottom, error0), covariance, 1.96)
    low, high = fieller_limits(*arguments[:2], covariance=covariance, quantile=1.96)
    scale = max(abs(top / bottom), math.sqrt(error1 / error0), 1)
    for limit in (low, high):
        if limit is not None:
            inside, outside = (
                distance(limit + step * scale * (1 + abs(limit)), *arguments)
                for step in (1e-6, -1e-6)
            )
            assert inside * outside <= 0
    strength = bottom / math.sqrt(error0)
    assume(abs(strength - 1.96) > 1e-9)
    assert (low is not None and high is not None) is (strength > 1.96)


def test_a_known_denominator_gives_the_limits_of_the_numerator():
    low, high = fieller_limits((6.0, 0.25), (2.0, 0.0), quantile=2.0)
    assert (low, high) == pytest.approx((2.5, 3.5))


def test_limits_by_hand():
    """Of 3 +- 1 over 5 +- 1 at t = 2: 21 v^2 - 30 v + 5 = 0."""
    limits = fieller_limits((3.0, 1.0), (5.0, 1.0), quantile=2.0)
    expected = [(15 + sign * math.sqrt(120)) / 21 for sign in (-1, 1)]
    assert limits == pytest.approx(expected, rel=1e-14)
    # 1 over 1 +- 1: t^2 > 1, and the numerator is known, so 1 / v lies in -1 to 3.
    assert fieller_limits((1.0, 0.0), (1.0, 1.0), quantile=2.0) == pytest.approx(
        (1 / 3, None)
    )
    # The denominator is just at its bound: 6 v > 5.
    assert fieller_limits((3.0, 1.0), (2.0, 1.0), quantile=2.0) == pytest.approx(
        (5 / 12, None)
    )
    assert fieller_limits((1.0, 1.0), (1.0, 1.0), quantile=2.0) == (None, None)


def test_a_weak_lift_inverts_the_test_of_scipy():
    """Where Welch's test of y1 = (1 + lift) y0 has p = 0.05, by root finding."""
    rng = np.random.default_rng(1)
    treatment, control = rng.normal(2.0, 3.0, 60), rng.normal(1.5, 3.0, 60)
    shown = estimate.lift(
        "mean", Moments.from_arrays(treatment), Moments.from_arrays(control)
    )
    assert shown.method == "Fieller"
    ratio = treatment.mean() / control.mean()
    # Satterthwaite's degrees of freedom are those at the estimate.
    df = stats.ttest_ind(treatment, ratio * control, equal_var=False).df

    def excess(value):
        test = stats.ttest_ind(treatment, value * control, equal_var=False)
        return 2 * stats.t.sf(abs(test.statistic), df) - 0.05

    limits = [
        optimize.brentq(excess, *bracket, xtol=1e-13)
        for bracket in ((0.0, ratio), (ratio, 50.0))
    ]
    assert [shown.low + 1, shown.high + 1] == pytest.approx(limits, rel=1e-9)
    assert shown.estimate + 1 == pytest.approx(ratio)


def test_a_weak_ratio_inverts_the_test_of_scipy():
    rng = np.random.default_rng(2)
    x = (rng.random(300) < 0.08).astype(float)
    y = x * rng.lognormal(0, 1, 300)
    shown = estimate.delta(Moments.from_arrays(y, x))
    assert shown.method == "Fieller"

    def excess(value):
        return stats.ttest_1samp(y - value * x, 0.0).pvalue - 0.05

    limits = [
        optimize.brentq(excess, *bracket, xtol=1e-13)
        for bracket in ((0.0, shown.estimate), (shown.estimate, 50.0))
    ]
    assert [shown.low, shown.high] == pytest.approx(limits, rel=1e-9)


def orders(rng, rate, price):
    """Revenue and number of orders of 500 units, few of which order."""
    x = (rng.random(500) < rate) * rng.geometric(0.6, 500).astype(float)
    return x * rng.normal(price, 0.5, 500), x


def test_a_difference_of_weak_ratios_combines_their_limits():
    """By Zou and Donner: the roots of the sum of squares of each side's distance."""
    rng = np.random.default_rng(6)
    sides = [Moments.from_arrays(*orders(rng, 0.04, price)) for price in (5.0, 4.0)]
    shown = estimate.difference("ratio", *sides)
    one, other = map(estimate.delta, sides)
    assert {each.method for each in (one, other)} == {"Fieller"}
    assert shown.estimate == pytest.approx(one.estimate - other.estimate)
    below = math.hypot(one.estimate - one.low, other.high - other.estimate)
    above = math.hypot(one.high - one.estimate, other.estimate - other.low)
    assert shown.low == pytest.approx(shown.estimate - below)
    assert shown.high == pytest.approx(shown.estimate + above)
    strong = Moments.from_arrays(np.ones(500), np.ones(500) + rng.random(500))
    assert estimate.difference("ratio", strong, strong).method == "Delta method"
    assert estimate.difference("ratio", strong, sides[0]).method != "Delta method"


def test_a_p_value_is_that_of_the_interval_although_it_ends_at_high_levels():
    rng = np.random.default_rng(6)
    sides = [
        Moments.from_arrays(*orders(rng, rate, price))
        for rate, price in ((0.1, 5.0), (0.04, 4.2))
    ]

    def interval_at(level):
        return estimate.difference("ratio", *sides, level=level)

    assert isinstance(interval_at(1 - 1e-10), Withheld)
    found = p_value(interval_at)
    assert 1e-9 < found < 0.05
    inside, outside = (interval_at(1 - factor * found) for factor in (0.999, 1.001))
    assert inside.low < 0 < outside.low


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_the_strength_of_the_control_decides(kind):
    rng = np.random.default_rng(3)
    spread = rng.normal(0, 1, 400)
    spread = (spread - spread.mean()) / spread.std(ddof=1)
    treatment = Moments.from_arrays(spread + 2.0)
    for strength, method in (
        (WEAK + 0.01, "Delta method, log scale"),
        (8.99, "Fieller"),
    ):
        control = Moments.from_arrays(spread + strength / 20)
        assert estimate.lift(kind, treatment, control).method == method
    # Where both serve, they agree.
    log_scale, fieller = (
        estimate.lift(kind, treatment, Moments.from_arrays(spread + strength / 20))
        for strength in (9.0001, 8.9999)
    )
    assert 1 + fieller.low == pytest.approx(1 + log_scale.low, rel=0.03)
    assert 1 + fieller.high == pytest.approx(1 + log_scale.high, rel=0.03)


def test_half_lines_and_whole_lines_are_withheld_with_what_is_known():
    rng = np.random.default_rng(4)
    spread = rng.normal(0, 1, 400)
    spread = (spread - spread.mean()) / spread.std(ddof=1)
    weak = Moments.from_arrays(spread + 0.05)
    high = estimate.lift("mean", Moments.from_arrays(spread + 2.0), weak)
    assert isinstance(high, Withheld)
    # At most (1 + 1.966) / 20 against at least 1.9: by root finding.
    bound = optimize.brentq(
        lambda v: (2.0 - 0.05 * v) ** 2 - 1.966**2 * (1 + v * v) / 400, 1, 30
    )
    assert f"at least {bound - 1:+.0%}"[:-3] in high.reason
    anything = estimate.lift("mean", weak, weak)
    assert anything.reason.endswith("could be anything.")
    ratio = Moments.from_arrays(spread, np.arange(400) == 7)
    assert "denominator can't be told from 0" in estimate.delta(ratio).reason
    strong = Moments.from_arrays(spread + 0.3)
    assert isinstance(estimate.lift("mean", weak, strong), Interval)
    shown = estimate.difference("ratio", ratio, strong)
    assert isinstance(shown, Withheld)
