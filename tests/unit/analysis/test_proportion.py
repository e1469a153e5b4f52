import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import confint_proportions_2indep

from experiment_service.analysis.interval import Interval, Withheld
from experiment_service.analysis.moments import Moments, successes_of
from experiment_service.analysis.proportion import (
    combine_limits,
    newcombe,
    proportion_lift,
    wilson,
    wilson_limits,
)


@pytest.mark.parametrize(
    ("successes", "n", "level", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3.
        (81, 263, 0.95, 0.2553, 0.3662),
        (15, 148, 0.95, 0.0624, 0.1605),
        (0, 20, 0.95, 0.0000, 0.1611),
        (1, 29, 0.95, 0.0061, 0.1718),
    ],
)
def test_wilson_published_values(successes, n, level, low, high):
    result = wilson(successes, n, level=level)
    assert (result.low, result.high) == pytest.approx((low, high), abs=5e-5)
    assert result.estimate == successes / n


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_limits_solve_the_score_equation(counts):
    successes, n = counts
    result = wilson(successes, n, level=0.9)
    z2 = 1.6448536269514722**2
    for p, inside in ((result.low, successes > 0), (result.high, successes < n)):
        if inside:
            assert (successes / n - p) ** 2 == pytest.approx(z2 * p * (1 - p) / n)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17:873, table II, method 10.
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((0, 10, 0, 10), -0.2775, 0.2775),
        ((10, 10, 0, 20), 0.6791, 1.0000),
        ((10, 10, 0, 10), 0.6075, 1.0000),
    ],
)
def test_newcombe_published_values(counts, low, high):
    result = newcombe(*counts)
    assert (result.low, result.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("counts", [(5, 100, 3, 90), (0, 50, 7, 40), (40, 40, 39, 40)])
def test_newcombe_agrees_with_statsmodels(counts):
    result = newcombe(*counts, level=0.9)
    oracle = confint_proportions_2indep(
        *counts, method="newcomb", compare="diff", alpha=0.1
    )
    assert (result.low, result.high) == pytest.approx(oracle)


@pytest.mark.parametrize("counts", [(5, 100, 3, 90), (1, 50, 7, 40), (39, 40, 40, 40)])
def test_lift_agrees_with_statsmodels(counts):
    result = proportion_lift(*counts, level=0.9)
    low, high = confint_proportions_2indep(
        *counts, method="log", compare="ratio", alpha=0.1
    )
    assert (result.low + 1, result.high + 1) == pytest.approx((low, high))
    s1, n1, s0, n0 = counts
    assert result.estimate + 1 == pytest.approx(s1 / n1 / (s0 / n0))


@given(
    st.tuples(st.integers(0, 60), st.integers(1, 60)),
    st.tuples(st.integers(0, 60), st.integers(1, 60)),
)
def test_swapping_the_variants_mirrors_the_difference(first, second):
    (s1, f1), (s0, f0) = first, second
    one = newcombe(s1, s1 + f1, s0, s0 + f0)
    other = newcombe(s0, s0 + f0, s1, s1 + f1)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_limits_combine_as_pythagoras():
    low, high = combine_limits((0.5, 0.2, 0.9), (0.1, 0.0, 0.5))
    assert low == pytest.approx(0.4 - 0.5)
    assert high == pytest.approx(0.4 + math.hypot(0.4, 0.1))


def test_wilson_limits_take_broken_sizes():
    low, high = wilson_limits(0.04, 812.5, level=0.95)
    assert (0.04 - low) ** 2 == pytest.approx(3.841458821 * low * (1 - low) / 812.5)
    assert (0.04 - high) ** 2 == pytest.approx(3.841458821 * high * (1 - high) / 812.5)


@pytest.mark.parametrize(
    "result",
    [
        wilson(0, 0),
        newcombe(0, 0, 3, 10),
        newcombe(3, 10, 0, 0),
        proportion_lift(0, 10, 3, 10),
        proportion_lift(3, 10, 0, 10),
        proportion_lift(0, 0, 3, 10),
        proportion_lift(10, 10, 20, 20),
    ],
)
def test_without_information_the_estimate_is_withheld(result):
    assert isinstance(result, Withheld)
    assert result.reason.endswith(".")


@pytest.mark.parametrize(("successes", "n"), [(0, 30), (30, 30), (1, 1)])
def test_extreme_counts_have_limits(successes, n):
    result = wilson(successes, n)
    assert isinstance(result, Interval)
    assert 0 <= result.low <= successes / n <= result.high <= 1


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="whole numbers"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="whole numbers"):
        newcombe(1, 2, 3, 2)
    with pytest.raises(ValueError, match="whole numbers"):
        proportion_lift(1.5, 2, 1, 2)
    with pytest.raises(ValueError, match="level"):
        wilson(1, 2, level=95)
    with pytest.raises(ValueError, match="y = 0 or 1"):
        successes_of(Moments.from_arrays([2.0, 0.0]))
