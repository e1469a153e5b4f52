"""Ranks, normal posteriors and stopping advice against SciPy's quadrature."""

import itertools

import numpy as np
import pytest
from scipy import integrate, stats

from policies.probability_best import (
    probability_best,
    probability_best_normal,
    rank_probabilities,
    rank_probabilities_normal,
)
from policies.stopping import (
    expected_loss,
    expected_loss_normal,
    value_remaining,
    value_remaining_normal,
)

BETAS = {
    "comparable": ([41, 56, 50, 30], [961, 946, 950, 970]),
    "a fresh arm": ([1, 50_001, 49_801], [1, 950_001, 950_201]),
    "nearly no data": ([0.5, 0.5, 1.5, 0.5], [0.5, 1.5, 0.5, 2.5]),
}
NORMALS = {
    "comparable": ([0.0, 0.3, -0.2, 0.1], [0.2, 0.3, 0.1, 0.4]),
    "wide beside narrow": ([0.0, 0.001, 0.002], [10.0, 0.0005, 0.0007]),
    "far from 0": ([1e6, 1e6 + 1, 1e6 - 1], [1.0, 2.0, 0.5]),
}


def families(distribution, first, second):
    """Densities and distribution functions by SciPy, which shares none of our code."""
    pairs = zip(first, second, strict=True)
    frozen = [distribution(*pair) for pair in pairs]
    return [each.pdf for each in frozen], [each.cdf for each in frozen]


def integral(function, places):
    """Sum adaptive integrals between places that cut the range at every hump."""
    return sum(
        integrate.quad(function, low, high, epsabs=1e-13, epsrel=1e-11, limit=200)[0]
        for low, high in itertools.pairwise(places)
    )


def breaks(centres, deviations, low, high):
    """Places that cut the range at every hump."""
    places = {low, high}
    for centre, deviation in zip(centres, deviations, strict=True):
        for steps in (-12, -8, -5, -3, -1.5, 0, 1.5, 3, 5, 8, 12):
            place = centre + steps * deviation
            if low < place < high:
                places.add(place)
    return sorted(places)


def rank_by_scipy(densities, belows, places, arm, rank):
    others = [j for j in range(len(belows)) if j != arm]

    def integrand(x):
        below = {j: belows[j](x) for j in others}
        return densities[arm](x) * sum(
            np.prod([1 - below[j] if j in above else below[j] for j in others])
            for above in itertools.combinations(others, rank - 1)
        )

    return integral(integrand, places)


@pytest.mark.parametrize("lower_is_better", [False, True])
@pytest.mark.parametrize("case", BETAS)
def test_ranks_of_rates_agree_with_scipy(case, lower_is_better):
    alpha, beta = BETAS[case]
    ranks = rank_probabilities(alpha, beta, ranks=3, lower_is_better=lower_is_better)
    np.testing.assert_allclose(ranks.sum(axis=1), 1, rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        ranks[0],
        probability_best(alpha, beta, lower_is_better=lower_is_better),
        rtol=0,
        atol=1e-12,
    )
    # The lowest of Beta(a, b) is the highest of Beta(b, a).
    a, b = (beta, alpha) if lower_is_better else (alpha, beta)
    a, b = np.array(a, dtype=float), np.array(b, dtype=float)
    places = breaks(a / (a + b), np.sqrt(a * b / (a + b + 1)) / (a + b), 0.0, 1.0)
    functions = families(stats.beta, a, b)
    for rank, arm in ((1, 0), (2, 0), (2, 1), (3, len(a) - 1)):
        expected = rank_by_scipy(*functions, places, arm, rank)
        assert ranks[rank - 1, arm] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("case", NORMALS)
def test_ranks_of_means_agree_with_scipy(case):
    mean, deviation = NORMALS[case]
    best = probability_best_normal(mean, deviation)
    ranks = rank_probabilities_normal(mean, deviation, ranks=2)
    np.testing.assert_allclose(ranks[0], best, rtol=0, atol=1e-12)
    low = min(m - 12 * s for m, s in zip(mean, deviation, strict=True))
    high = max(m + 12 * s for m, s in zip(mean, deviation, strict=True))
    places = breaks(mean, deviation, low, high)
    functions = families(stats.norm, mean, deviation)
    for rank, arm in ((1, 0), (1, 1), (2, 0), (2, 1)):
        expected = rank_by_scipy(*functions, places, arm, rank)
        assert ranks[rank - 1, arm] == pytest.approx(expected, abs=1e-9)
    lowest = probability_best_normal(
        [-m for m in mean], deviation, lower_is_better=True
    )
    np.testing.assert_allclose(lowest, best, rtol=0, atol=1e-12)


def test_two_means_have_the_closed_form():
    mean, deviation = [0.1, 0.4], [0.3, 0.4]
    expected = stats.norm.cdf((0.1 - 0.4) / 0.5)
    best = probability_best_normal(mean, deviation)
    assert best[0] == pytest.approx(expected, abs=1e-12)
    # E max(X, Y) of independent normals: Clark (1961), eq. 2.
    step, theta = -0.3 / 0.5, 0.5
    highest = (
        0.1 * stats.norm.cdf(step)
        + 0.4 * stats.norm.cdf(-step)
        + theta * stats.norm.pdf(step)
    )
    np.testing.assert_allclose(
        expected_loss_normal(mean, deviation),
        [highest - 0.1, highest - 0.4],
        rtol=0,
        atol=1e-12,
    )


def test_all_ranks_of_all_arms_fill_a_doubly_stochastic_matrix():
    rng = np.random.default_rng(4)
    alpha, beta = rng.uniform(0.5, 2000, (2, 12))
    ranks = rank_probabilities(alpha, beta, ranks=12)
    np.testing.assert_allclose(ranks.sum(axis=0), 1, rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        rank_probabilities(alpha, beta, ranks=12, lower_is_better=True)[::-1],
        ranks,
        rtol=0,
        atol=1e-9,
    )


@pytest.mark.parametrize("ranks", [0, 4])
def test_there_are_as_many_ranks_as_arms(ranks):
    with pytest.raises(ValueError, match="of 3 arms it must lie in 1 to 3"):
        rank_probabilities([1, 2, 3], [3, 2, 1], ranks=ranks)


@pytest.mark.parametrize("lower_is_better", [False, True])
@pytest.mark.parametrize("case", BETAS)
def test_expected_loss_agrees_with_scipy(case, lower_is_better):
    alpha, beta = (np.array(each, dtype=float) for each in BETAS[case])
    loss = expected_loss(alpha, beta, lower_is_better=lower_is_better)
    a, b = (beta, alpha) if lower_is_better else (alpha, beta)
    means = a / (a + b)
    places = breaks(means, np.sqrt(a * b / (a + b + 1)) / (a + b), 0.0, 1.0)
    _, belows = families(stats.beta, a, b)
    # E max = integral of 1 - product of F over 0 to 1.
    highest = 1 - integral(lambda x: np.prod([below(x) for below in belows]), places)
    np.testing.assert_allclose(loss, highest - means, rtol=0, atol=1e-9)


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_value_remaining_is_the_quantile_of_simulated_gains(lower_is_better):
    alpha, beta = np.array([31.0, 36.0, 20.0]), np.array([570.0, 565.0, 400.0])
    remaining = value_remaining(alpha, beta, lower_is_better=lower_is_better)
    rates = np.random.default_rng(2).beta(alpha, beta, (400_000, 3))
    best = probability_best(alpha, beta, lower_is_better=lower_is_better).argmax()
    found = rates.min(axis=1) if lower_is_better else rates.max(axis=1)
    gains = np.abs(found - rates[:, best]) / rates[:, best]
    # The share of gains below a quantile is binomial.
    below = (gains <= remaining).mean()
    assert abs(below - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 400_000)


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_value_remaining_of_means(lower_is_better):
    mean, deviation = np.array([5.0, 5.3, 4.0]), np.array([0.4, 0.3, 0.9])
    if lower_is_better:
        mean = -mean
    remaining = value_remaining_normal(
        mean, deviation, lower_is_better=lower_is_better, quantile=0.9
    )
    draws = np.random.default_rng(2).normal(mean, deviation, (400_000, 3))
    found = draws.min(axis=1) if lower_is_better else draws.max(axis=1)
    below = (np.abs(found - draws[:, 1]) <= remaining).mean()
    assert abs(below - 0.9) < 4 * np.sqrt(0.9 * 0.1 / 400_000)


def test_nothing_remains_once_the_leader_is_certain():
    assert value_remaining([500, 100], [9_500, 9_900]) == 0
    assert value_remaining_normal([5, 1], [0.1, 0.1]) == 0


@pytest.mark.parametrize(
    ("mean", "deviation", "words"),
    [
        ([1, 2], [1], r"deviation \(1,\); both must be \(K,\)"),
        ([], [], "with K >= 1 arms"),
        ([1, np.nan], [1, 1], "mean of arm 1 is nan; it must be finite"),
        ([1, 2], [1, 0], r"deviation of arm 1 is 0\.0; it must be above 0"),
        ([1, 2], [1, 1e9], "it must be at most 1e\\+08 times the smallest"),
    ],
)
def test_impossible_posteriors_are_refused(mean, deviation, words):
    with pytest.raises(ValueError, match=words):
        probability_best_normal(mean, deviation)


@pytest.mark.parametrize("quantile", [0.4, 1.0, float("nan")])
def test_a_quantile_is_a_high_one(quantile):
    with pytest.raises(ValueError, match=r"quantile is .*; it must be a number, 0\.5"):
        value_remaining([1, 2], [3, 4], quantile=quantile)


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [
        ([30, 5.5e5], [20, 4.5e5]),
        ([30, 5.5e5, 5.6e5], [20, 4.5e5, 4.4e5]),
        ([6, 1e6], [4, 1.2e6]),
    ],
)
@pytest.mark.parametrize("lower_is_better", [False, True])
def test_value_remaining_of_a_wide_leader_beside_narrow_arms(
    alpha, beta, lower_is_better
):
    """Against sums over 200,000 points, an integration of its own."""
    found = value_remaining(alpha, beta, lower_is_better=lower_is_better)
    a, b = np.array(alpha, dtype=float), np.array(beta, dtype=float)
    leader = probability_best(a, b, lower_is_better=lower_is_better).argmax()
    rate = (np.arange(200_000) + 0.5) / 200_000
    weight = stats.beta.pdf(rate, a[leader], b[leader])
    factor = 1 - found if lower_is_better else 1 + found
    for other in set(range(len(a))) - {leader}:
        law = stats.beta(a[other], b[other])
        at = np.minimum(rate * factor, 1)
        weight = weight * (law.sf(at) if lower_is_better else law.cdf(at))
    assert weight.mean() == pytest.approx(0.95, abs=1e-7)
