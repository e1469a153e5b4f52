import sys
from fractions import Fraction
from math import factorial

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.probability_best import probability_best

MODULE = sys.modules["policies.quadrature"]


def integer_beta(a, b):
    return Fraction(factorial(a - 1) * factorial(b - 1), factorial(a + b - 1))


def second_beats_first(first, second):
    """Exact for whole parameters, by Miller's closed form in rational arithmetic.

    P = sum_i B(a1 + i, b1 + b2) / ((b2 + i) B(1 + i, b2) B(a1, b1)), i < a2.
    """
    (a1, b1), (a2, b2) = first, second
    total = sum(
        integer_beta(a1 + i, b1 + b2) / ((b2 + i) * integer_beta(1 + i, b2))
        for i in range(a2)
    )
    return float(total / integer_beta(a1, b1))


def log_density(a, b):
    """Log density of logit(Beta(a, b)) to 50 digits, in plain textbook form."""
    a, b = mpmath.mpf(a), mpmath.mpf(b)
    constant = mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(a + b)
    return lambda z: (
        -a * mpmath.log1p(mpmath.exp(-z)) - b * mpmath.log1p(mpmath.exp(z)) - constant
    )


def small_reference(arms, i):
    """P(arm i is best) by adaptive quadrature, F by hypergeometric series."""
    density = log_density(*arms[i])

    def integrand(z):
        product = mpmath.exp(density(z))
        for a, b in arms[:i] + arms[i + 1 :]:
            if z < 0:
                below = mpmath.betainc(a, b, 0, expit(z), regularized=True)
            else:
                below = 1 - mpmath.betainc(b, a, 0, expit(-z), regularized=True)
            product *= below
        return product

    return float(mpmath.quad(integrand, [-300, -60, -10, -3, 0, 3, 10, 60, 300]))


def large_reference(first, second, wide=lambda _: 1):
    """P(first > second and first > wide arms) for two arms with many trials.

    Trapezoid rule over first's hump (exact to all digits for an analytic integrand),
    second's F by cubature from cell to cell, the wide arms' F in closed form.
    """
    density = [log_density(*arm) for arm in (first, second)]
    centre = [mpmath.log(mpmath.mpf(a) / b) for a, b in (first, second)]
    deviation = [
        mpmath.sqrt(mpmath.mpf(1) / a + mpmath.mpf(1) / b) for a, b in (first, second)
    ]
    step = min(deviation) / 4
    low = min(c - 11 * s for c, s in zip(centre, deviation, strict=True))
    high = centre[0] + 11 * deviation[0]
    nodes, weights = np.polynomial.legendre.leggauss(8)
    cumulative = total = mpmath.mpf(0)
    z = low
    while z < high:
        for node, weight in zip(nodes, weights, strict=True):
            at = z + step * (1 + float(node)) / 2
            cumulative += step / 2 * float(weight) * mpmath.exp(density[1](at))
        z += step
        total += step * mpmath.exp(density[0](z)) * cumulative * wide(expit(z))
    return float(total)


def expit(z):
    return 1 / (1 + mpmath.exp(-z))


@pytest.fixture(autouse=True)
def fifty_digits():
    with mpmath.workdps(50):
        yield


def test_known_digits():
    """Rational arithmetic and 30-digit integration agree on them.

    The same sum in floating point, 0.9418873441780, is off by 1.1e-12.
    """
    best = probability_best([41, 56], [961, 946])
    assert best[1] == pytest.approx(0.941887344179111290589718, abs=1e-14)
    assert best[1] == pytest.approx(0.9418873441780, abs=2e-12)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1, 1), (1, 1)),
        ((1, 1), (2, 1)),
        ((1, 30), (3, 4)),
        ((41, 961), (56, 946)),
        ((1, 1), (51, 951)),
        ((1, 5001), (4, 5001)),
        ((501, 1), (501, 3)),
        ((300, 700), (100, 900)),
    ],
)
def test_two_arms_against_exact_sums(first, second):
    alpha, beta = zip(first, second, strict=True)
    expected = second_beats_first(first, second)
    best = probability_best(alpha, beta)
    np.testing.assert_allclose(best, [1 - expected, expected], rtol=0, atol=1e-12)
    worst = probability_best(alpha, beta, lower_is_better=True)
    np.testing.assert_allclose(worst, [expected, 1 - expected], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "arms",
    [
        [(0.5, 0.5), (1.5, 0.5), (0.5, 2.5)],
        [(0.5, 0.5), (0.5, 0.5)],
        [(90, 10), (10, 100), (2, 3)],
        [(1, 1), (40, 10), (41, 10)],
        [(0.1, 0.1), (3, 0.2)],
    ],
    ids=["Jeffreys", "no data", "near certain", "alike", "smallest prior"],
)
def test_small_arms_against_mpmath(arms):
    alpha, beta = zip(*arms, strict=True)
    with mpmath.workdps(20):
        expected = [small_reference(arms, i) for i in range(len(arms) - 1)]
    expected.append(1 - sum(expected))
    np.testing.assert_allclose(
        probability_best(alpha, beta), expected, rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("trials", [10**6, 10**9, 10**12])
@pytest.mark.parametrize("rate", [0.05, 0.5, 0.999])
def test_large_arms_against_mpmath(trials, rate):
    shift = round((trials * rate * (1 - rate)) ** 0.5)
    successes = round(trials * rate)
    arms = [(s, trials - s) for s in (successes, successes + shift)]
    alpha, beta = zip(*arms, strict=True)
    expected = large_reference(*arms)
    np.testing.assert_allclose(
        probability_best(alpha, beta), [expected, 1 - expected], rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("trials", [10**6, 10**9])
@pytest.mark.parametrize(
    ("prior", "distribution"),
    [(1, lambda x: x), (0.5, lambda x: 2 / mpmath.pi * mpmath.asin(mpmath.sqrt(x)))],
    ids=["uniform", "Jeffreys"],
)
def test_fresh_arm_beside_large_ones(trials, prior, distribution):
    """Scales 1e4 times apart; the fresh arm's F is known in closed form."""
    successes = trials // 2
    arms = [(s, trials - s) for s in (successes, successes + round(trials**0.5 / 3))]
    large = [large_reference(*pair, distribution) for pair in (arms, arms[::-1])]
    alpha, beta = zip((prior, prior), *arms, strict=True)
    np.testing.assert_allclose(
        probability_best(alpha, beta), [1 - sum(large), *large], rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("size", [1, 1e3, 1e6, 1e9])
def test_fresh_arm_wins_by_the_mean_of_what_it_does_not_know(size):
    """P(Beta(a, b) > Uniform) is the mean a / (a + b)."""
    best = probability_best([1, 0.3 * size + 1], [1, 0.7 * size + 1])
    assert best[1] == pytest.approx((0.3 * size + 1) / (size + 2), abs=1e-12)


@pytest.mark.parametrize("arms", [1, 2, 3, 20, 100, 200])
@pytest.mark.parametrize("lower_is_better", [False, True])
@pytest.mark.parametrize(
    ("a", "b"), [(1, 1), (0.5, 0.5), (0.1, 1e9), (51, 951), (5e7, 9.5e8), (1e12, 0.1)]
)
def test_identical_arms_share_equally(arms, a, b, lower_is_better):
    best = probability_best([a] * arms, [b] * arms, lower_is_better=lower_is_better)
    np.testing.assert_allclose(best, 1 / arms, rtol=0, atol=1e-11)


def test_certain_winner_has_all_and_no_more():
    best = probability_best([9e8, 1e8, 1e3], [1e8, 9e8, 1e6])
    assert best.max() <= 1
    np.testing.assert_allclose(best, [1, 0, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("lower_is_better", [False, True])
@pytest.mark.parametrize("arms", [5, 100])
def test_agrees_with_draws(arms, lower_is_better):
    rng = np.random.default_rng(arms)
    units = 10 ** rng.uniform(0, 4, arms)
    rates = rng.beta(4, 60, arms)
    alpha, beta = 1 + units * rates, 1 + units * (1 - rates)
    best = probability_best(alpha, beta, lower_is_better=lower_is_better)
    draws = rng.beta(alpha, beta, size=(1_000_000 // arms, arms))
    winners = draws.argmin(axis=1) if lower_is_better else draws.argmax(axis=1)
    share = np.bincount(winners, minlength=arms) / len(draws)
    # One draw more or less is allowed where an arm expects less than one.
    error = np.sqrt(best * (1 - best) / len(draws)) + 1 / len(draws)
    assert (np.abs(share - best) < 4 * error).all()


parameters = st.floats(-1, 12).map(lambda exponent: 10.0**exponent)
posteriors = st.lists(st.tuples(parameters, parameters), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(posteriors, st.booleans(), st.randoms(use_true_random=False))
def test_any_posteriors_give_probabilities_in_any_order(arms, lower_is_better, random):
    best = probability_best(*zip(*arms, strict=True), lower_is_better=lower_is_better)
    assert (best >= 0).all()
    assert (best <= 1).all()
    assert abs(best.sum() - 1) < 1e-9
    order = random.sample(range(len(arms)), len(arms))
    moved = probability_best(
        *zip(*(arms[i] for i in order), strict=True), lower_is_better=lower_is_better
    )
    np.testing.assert_allclose(moved, best[order], rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(posteriors, st.floats(1, 100))
def test_more_successes_never_hurt(arms, factor):
    alpha, beta = (np.array(column) for column in zip(*arms, strict=True))
    before = probability_best(alpha, beta)
    alpha[0] = min(alpha[0] * factor, 1e12)
    after = probability_best(alpha, beta)
    assert after[0] >= before[0] - 1e-9
    assert (after[1:] <= before[1:] + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(posteriors)
def test_lowest_is_the_highest_of_the_mirror(arms):
    alpha, beta = zip(*arms, strict=True)
    np.testing.assert_array_equal(
        probability_best(alpha, beta, lower_is_better=True),
        probability_best(beta, alpha),
    )


def test_a_failed_quadrature_is_refused_with_its_sum(monkeypatch):
    monkeypatch.setattr(MODULE, "_PANEL_WIDTH", 12.0)
    with pytest.raises(RuntimeError, match=r"of 2 arms to be the best sum to \d\.\d+"):
        probability_best([41, 56], [961, 946])


@pytest.mark.parametrize(
    ("alpha", "beta", "message"),
    [
        ([], [], r"alpha has shape \(0,\)"),
        ([1, 2], [1], r"alpha has shape \(2,\) and beta \(1,\)"),
        ([[1, 2]], [[1, 2]], r"alpha has shape \(1, 2\)"),
        (1, 1, r"alpha has shape \(\)"),
        ([1, 0], [1, 1], r"alpha of arm 1 is 0\.0; it must lie in 0\.1 to 1e\+12"),
        ([1, 1], [2e12, 1], r"beta of arm 0 is 2000000000000\.0; it must lie in"),
        ([1, np.nan], [1, 1], "alpha of arm 1 is nan"),
        ([1, 1], [1, np.inf], "beta of arm 1 is inf"),
    ],
)
def test_refuses_parameters_by_name(alpha, beta, message):
    with pytest.raises(ValueError, match=message):
        probability_best(alpha, beta)
