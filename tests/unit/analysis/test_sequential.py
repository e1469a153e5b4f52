import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special

from experiment_service.analysis.estimate import difference, lift
from experiment_service.analysis.interval import Interval, Withheld
from experiment_service.analysis.moments import Moments
from experiment_service.analysis.sequential import (
    MINIMUM_EVENTS,
    MINIMUM_UNITS,
    arm_sequence,
    difference_sequence,
    half_width,
    lift_sequence,
    rate_sequence,
)

counts = st.integers(1, 5000).flatmap(
    lambda n: st.tuples(st.integers(0, n), st.just(n))
)
priors = st.tuples(st.floats(0.1, 50), st.floats(0.1, 50))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (3, 100, 0.001879, 0.122949),
        (0, 50, 0.0, 0.104642),
        (50, 1000, 0.028720, 0.079240),
    ],
)
def test_rate_sequence_values_of_another_implementation(successes, n, low, high):
    result = rate_sequence(successes, n)
    assert (result.low, result.high) == pytest.approx((low, high), abs=5e-7)


@given(counts, priors, st.floats(0.5, 0.999))
def test_rate_sequence_limits_solve_the_definition(count, prior, level):
    (successes, n), (a, b) = count, prior
    result = rate_sequence(successes, n, level=level, prior=prior)
    failures = n - successes
    mixture = special.betaln(successes + a, failures + b) - special.betaln(a, b)
    for p, at_edge in ((result.low, successes == 0), (result.high, failures == 0)):
        if at_edge:
            assert p in (0, 1)
        elif 0 < p < 1:  # a strong prior may take a limit beyond the last digit
            likelihood = special.xlogy(successes, p) + special.xlog1py(failures, -p)
            # Near 0 and 1 the last digit of p itself moves the likelihood.
            rounding = 1e-15 * (successes / p + failures / (1 - p))
            assert likelihood - math.log(1 - level) == pytest.approx(
                mixture, rel=1e-6, abs=1e-6 + rounding
            )


@pytest.mark.parametrize(("a", "b", "n"), [(0.5, 0.5, 1), (1, 1, 10), (2, 30, 10_000)])
def test_rate_sequence_without_success_in_closed_form(a, b, n):
    ratio = special.betaln(a, n + b) - special.betaln(a, b) + math.log(0.05)
    assert rate_sequence(0, n, prior=(a, b)).high == pytest.approx(
        -math.expm1(ratio / n)
    )


@given(counts, priors)
def test_rate_sequence_mirrors_when_successes_are_failures(count, prior):
    (successes, n), (a, b) = count, prior
    one = rate_sequence(successes, n, prior=(a, b))
    other = rate_sequence(n - successes, n, prior=(b, a))
    assert (one.low, one.high) == pytest.approx(
        (1 - other.high, 1 - other.low), rel=1e-6, abs=1e-9
    )


def test_rate_sequence_of_many_units():
    result = rate_sequence(500_000, 10_000_000)
    assert result.low < 0.05 < result.high
    assert result.high - result.low < 0.001


def test_a_prior_near_the_rate_narrows_the_sequence():
    def width(prior):
        result = rate_sequence(50, 1000, prior=prior)
        return result.high - result.low

    assert width((5, 95)) < width((0.5, 0.5)) < width((95, 5))


@pytest.mark.parametrize(
    ("standard_error", "n", "planned", "expected"),
    [
        # PostHog's golden fixtures of its sequential test (MIT).
        (0.33368, 6500, 1000, (1.59353 + 0.53230) / 2),
        (0.03354, 6550, 5000, (0.66448 - 0.46064) / 2),
    ],
)
def test_half_width_values_of_another_implementation(
    standard_error, n, planned, expected
):
    # They tune by the paper's approximation, -2 log a + log(1 - 2 log a), in the place
    # of ours; shifting the plan by the quotient gives their rho.
    log_term = -2 * math.log(0.05)
    approximate = log_term + math.log1p(log_term)
    exact = -special.lambertw(-(0.05**2) / math.e, k=-1).real - 1
    result = half_width(
        standard_error, n, planned_units=planned * exact / approximate, level=0.95
    )
    assert result == pytest.approx(expected, rel=3e-4)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_half_width_is_smallest_at_the_plan(level):
    best = optimize.minimize_scalar(
        lambda log_plan: half_width(
            1, 5000, planned_units=math.exp(log_plan), level=level
        ),
        bounds=(math.log(10), math.log(1e6)),
        options={"xatol": 1e-9},
    )
    assert math.exp(best.x) == pytest.approx(5000, rel=1e-3)


def test_half_width_falls_with_units_at_a_fixed_spread():
    widths = [
        half_width(1 / math.sqrt(n), n, planned_units=1000, level=0.95)
        for n in (10, 100, 1000, 10_000, 100_000)
    ]
    assert widths == sorted(widths, reverse=True)


RNG = np.random.default_rng(7)
Y1, Y0 = RNG.exponential(size=400), RNG.exponential(size=300)
X1, X0 = RNG.poisson(3, 400) + 1.0, RNG.poisson(3, 300) + 1.0


@pytest.mark.parametrize(
    ("kind", "treatment", "control"),
    [
        ("proportion", Moments.from_counts(30, 400), Moments.from_counts(20, 300)),
        ("mean", Moments.from_arrays(Y1), Moments.from_arrays(Y0)),
        ("ratio", Moments.from_arrays(Y1, X1), Moments.from_arrays(Y0, X0)),
    ],
)
def test_sequences_share_the_estimate_and_are_wider(kind, treatment, control):
    for fixed, watched in (
        (
            difference(kind, treatment, control),
            difference_sequence(kind, treatment, control, planned_units=700),
        ),
        (
            lift(kind, treatment, control),
            lift_sequence(kind, treatment, control, planned_units=700),
        ),
    ):
        assert watched.estimate == pytest.approx(fixed.estimate)
        ratio = (watched.high - watched.low) / (fixed.high - fixed.low)
        # 3.035 / 1.960 at the plan, and the lift is an exponential.
        assert 1.4 < ratio < 1.8


def test_difference_sequence_in_closed_form():
    treatment, control = Moments.from_counts(30, 400), Moments.from_counts(20, 300)
    result = difference_sequence("proportion", treatment, control, planned_units=700)
    p1, p0 = 30 / 400, 20 / 300
    error = math.sqrt(p1 * (1 - p1) / 399 + p0 * (1 - p0) / 299)
    u = -special.lambertw(-(0.05**2) / math.e, k=-1).real
    expected = error * math.sqrt(2 * u / (u - 1) * math.log(math.sqrt(u) / 0.05))
    assert result.high - result.estimate == pytest.approx(expected)


def test_arm_sequence_by_kind():
    proportion = Moments.from_counts(30, 400)
    assert arm_sequence("proportion", proportion, planned_units=1) == rate_sequence(
        30, 400
    )
    mean = arm_sequence("mean", Moments.from_arrays(Y1), planned_units=400)
    error = Y1.std(ddof=1) / 20
    assert mean.high - mean.estimate == pytest.approx(
        half_width(error, 400, planned_units=400, level=0.95)
    )
    ratio = arm_sequence("ratio", Moments.from_arrays(Y1, X1), planned_units=400)
    assert isinstance(ratio, Interval)
    assert ratio.estimate == pytest.approx(Y1.sum() / X1.sum())


FLAT = Moments.from_arrays([0.1] * MINIMUM_UNITS)
GOOD = Moments.from_arrays(Y1)
FEW = Moments.from_arrays(Y1[: MINIMUM_UNITS - 1])
ZERO = Moments.from_arrays([0.0] * MINIMUM_UNITS)
RARE = Moments.from_counts(MINIMUM_EVENTS - 1, 400)
COMMON = Moments.from_counts(400 - MINIMUM_EVENTS + 1, 400)
RATE = Moments.from_counts(40, 400)
NO_DENOMINATOR = Moments.from_arrays(Y1, np.zeros(400))


@pytest.mark.parametrize(
    ("kind", "treatment", "control", "words"),
    [
        ("mean", FEW, GOOD, "200 units"),
        ("mean", GOOD, FEW, "200 units"),
        ("mean", FLAT, FLAT, "same value"),
        ("proportion", RARE, RATE, "10 successes"),
        ("proportion", RATE, COMMON, "10 failures"),
        ("proportion", Moments.zero(), RATE, "200 units"),
        ("ratio", GOOD, NO_DENOMINATOR, "denominator"),
    ],
)
def test_too_few_data_are_withheld(kind, treatment, control, words):
    for function in (difference_sequence, lift_sequence):
        result = function(kind, treatment, control, planned_units=700)
        assert isinstance(result, Withheld)
        assert words in result.reason


def test_arms_and_lifts_are_withheld():
    for result in (
        rate_sequence(0, 0),
        arm_sequence("mean", FEW, planned_units=100),
        arm_sequence("mean", FLAT, planned_units=100),
        arm_sequence("ratio", NO_DENOMINATOR, planned_units=100),
        lift_sequence("mean", GOOD, ZERO, planned_units=100),
    ):
        assert isinstance(result, Withheld)


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="prior"):
        rate_sequence(1, 2, prior=(0, 1))
    with pytest.raises(ValueError, match="prior"):
        rate_sequence(1, 2, prior=(1, math.inf))
    with pytest.raises(ValueError, match="whole numbers"):
        rate_sequence(3, 2)
    with pytest.raises(ValueError, match="level"):
        rate_sequence(1, 2, level=1)
    with pytest.raises(ValueError, match="level"):
        difference_sequence("mean", GOOD, GOOD, level=0, planned_units=10)
    for planned in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="planned_units"):
            half_width(1, 10, planned_units=planned, level=0.95)
