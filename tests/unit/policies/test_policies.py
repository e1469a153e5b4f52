"""Fixed, Thompson and the registry: what is theirs alone."""

import numpy as np
import pytest
from scipy import stats

from policies import ArmStatistics, build_policy
from policies.epsilon_greedy import EpsilonGreedy
from policies.fixed import Fixed
from policies.gaussian_thompson import GaussianThompson
from policies.probability_best import probability_best
from policies.segmented_thompson import SegmentedThompson, agreement
from policies.thompson import Thompson
from policies.top_two_thompson import TopTwoThompson, top_two

RNG = np.random.default_rng(0)


def statistics(units, successes, **direction):
    return ArmStatistics(
        units=units, reward_sum=successes, reward_sum_squares=successes, **direction
    )


def test_unknown_policy_is_refused_with_those_known():
    with pytest.raises(
        ValueError,
        match="policy is 'greedy'; known policies: fixed, uniform, epsilon_greedy, thompson",
    ):
        build_policy("greedy", {})


def test_a_long_name_is_not_echoed():
    with pytest.raises(ValueError, match="known policies") as refusal:
        build_policy("x" * 10_000, {})
    assert len(str(refusal.value)) < 200


def test_parameters_are_used():
    assert build_policy("thompson", {"prior_failures": 9}) == Thompson(prior_failures=9)
    assert build_policy("fixed", {"weights": [0.25, 0.75]}) == Fixed(
        weights=(0.25, 0.75)
    )


def test_fixed_gives_its_weights_whatever_the_rewards():
    policy = Fixed(weights=(0.2, 0.3, 0.5))
    for successes in ([0, 0, 0], [90, 1, 1]):
        weights = policy.allocate(statistics([100, 100, 100], successes), RNG)
        assert weights.tolist() == [0.2, 0.3, 0.5]


def test_fixed_weights_for_other_arms_are_refused():
    with pytest.raises(ValueError, match="weights has 2 entries for 3 arms"):
        Fixed(weights=(0.5, 0.5)).allocate(statistics([1] * 3, [0] * 3), RNG)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], r"weights has shape \(0,\)"),
        ([0.5, 0.4], r"weights sums to 0\.9; it must sum to 1"),
        ([1.5, -0.5], r"weights\[0\] is 1\.5; it must be a number, 0 to 1"),
        ([True, 0], r"weights\[0\] is True; it must be a number"),
        ([0.5, "0.5"], r"weights\[1\] is '0\.5'; it must be a number"),
        ("equal", "weights is 'equal'; it must be a list of numbers"),
    ],
)
def test_fixed_refuses_weights_that_are_no_shares(weights, message):
    with pytest.raises(ValueError, match=message):
        Fixed(weights=weights)


def test_thompson_adds_counts_to_its_prior():
    """Beta(3, 2), Beta(1, 3), Beta(4, 3): the posterior of MABWiser's tests."""
    weights = Thompson().allocate(statistics([3, 2, 5], [2, 0, 3]), RNG)
    draws = np.random.default_rng(1).beta([3, 1, 4], [2, 3, 3], size=(200_000, 3))
    share = np.bincount(draws.argmax(axis=1), minlength=3) / len(draws)
    error = np.sqrt(weights * (1 - weights) / len(draws))
    assert (np.abs(share - weights) < 4 * error).all()


def test_thompson_prior_moves_the_weights():
    """One arm without data against one with 1 of 1, by Beta(2, 8): P = ∫ f1 (1 - F2)."""
    policy = Thompson(prior_successes=2, prior_failures=8)
    weights = policy.allocate(statistics([0, 1], [0, 1]), RNG)
    expected = stats.beta(3, 8).expect(lambda x: stats.beta(2, 8).cdf(x))
    assert weights[1] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("successes", "arm"), [([3, 11], 1), ([-1, 0], 0), ([0.5, 10.5], 1)]
)
def test_thompson_refuses_what_is_no_proportion(successes, arm):
    with pytest.raises(ValueError, match=f"reward_sum of arm {arm} is .* of a propor"):
        Thompson().allocate(
            ArmStatistics(
                units=[10, 10], reward_sum=successes, reward_sum_squares=[1, 1]
            ),
            RNG,
        )


@pytest.mark.parametrize("name", ["prior_successes", "prior_failures"])
@pytest.mark.parametrize("value", [0, 0.09, 2e9, "1", None, float("inf"), 10**400])
def test_thompson_refuses_a_prior_by_name(name, value):
    with pytest.raises(ValueError, match=rf"{name} is .*a number, 0\.1 to 1e\+09"):
        Thompson(**{name: value})


RNG = np.random.default_rng(0)


def test_epsilon_greedy_shares_among_equal_arms_and_tries_fresh_ones():
    policy = EpsilonGreedy(epsilon=0.3)
    weights = policy.allocate(statistics([10, 20, 5], [2, 4, 0]), RNG)
    np.testing.assert_allclose(weights, [0.1 + 0.35, 0.1 + 0.35, 0.1])
    weights = policy.allocate(statistics([10, 0, 5], [9, 0, 0]), RNG)
    np.testing.assert_allclose(weights, [0.1, 0.8, 0.1])
    weights = policy.allocate(
        statistics([10, 20, 5], [2, 1, 1], lower_is_better=True), RNG
    )
    np.testing.assert_allclose(weights, [0.1, 0.8, 0.1])


def test_top_two_is_what_redrawing_until_the_leader_changes_gives():
    alpha, beta = np.array([21.0, 26.0, 15.0]), np.array([81.0, 76.0, 87.0])
    weights = TopTwoThompson(leader_share=0.6).allocate(
        statistics(alpha + beta - 2, alpha - 1), RNG
    )
    rng = np.random.default_rng(5)
    draws = 200_000
    leaders = rng.beta(alpha, beta, (draws, 3)).argmax(axis=1)
    shown = leaders.copy()
    open_ = np.flatnonzero(rng.random(draws) >= 0.6)
    while open_.size:
        challengers = rng.beta(alpha, beta, (open_.size, 3)).argmax(axis=1)
        other = challengers != leaders[open_]
        shown[open_[other]] = challengers[other]
        open_ = open_[~other]
    seen = np.bincount(shown, minlength=3) / draws
    assert np.all(np.abs(seen - weights) < 4 * np.sqrt(weights * (1 - weights) / draws))


def test_top_two_of_two_arms_is_an_even_split():
    np.testing.assert_allclose(top_two(np.array([0.9, 0.1]), 0.5), [0.5, 0.5])


@pytest.mark.parametrize("small", [1e-3, 1e-9, 1e-15, 1e-40, 1e-300])
def test_top_two_stays_exact_when_one_arm_is_nearly_certain(small):
    best = np.array([1 - 3 * small, 2 * small, small])
    # As the others vanish the challenger is theirs by their own shares.
    limit = [0.5, 0.5 * 2 / 3, 0.5 / 3]
    np.testing.assert_allclose(
        top_two(best, 0.5), limit, rtol=0, atol=3 * small + 1e-15
    )


def test_top_two_of_a_certain_leader_shares_among_the_others():
    np.testing.assert_allclose(top_two(np.array([0, 1.0, 0]), 0.5), [0.25, 0.5, 0.25])


def test_gaussian_posterior_is_the_conjugate_one():
    rng = np.random.default_rng(6)
    rewards = [rng.normal(3, 2, 50), rng.normal(4, 1, 80)]
    seen = ArmStatistics(
        units=[y.size for y in rewards],
        reward_sum=[y.sum() for y in rewards],
        reward_sum_squares=[(y**2).sum() for y in rewards],
    )
    mean, deviation = GaussianThompson(prior_units=2.0).posterior(seen)
    pooled = np.concatenate(rewards)
    for arm, y in enumerate(rewards):
        worth = y.size + 2.0
        expected = (y.sum() + 2.0 * pooled.mean()) / worth
        variance = (y.size * y.var(ddof=1) + 2.0 * pooled.var(ddof=1)) / worth
        assert mean[arm] == pytest.approx(expected, rel=1e-12)
        assert deviation[arm] == pytest.approx(np.sqrt(variance / worth), rel=1e-9)


def test_gaussian_ratio_has_the_spread_that_resampling_units_gives():
    rng = np.random.default_rng(7)
    x = rng.poisson(4, 3_000) + 1.0
    y = rng.binomial(x.astype(int), 0.2).astype(float)
    seen = ArmStatistics(
        units=[x.size],
        reward_sum=[y.sum()],
        reward_sum_squares=[(y**2).sum()],
        base_sum=[x.sum()],
        base_sum_squares=[(x**2).sum()],
        reward_base_sum=[(x * y).sum()],
    )
    mean, deviation = GaussianThompson(prior_units=0.01).posterior(seen)
    assert mean[0] == pytest.approx(y.sum() / x.sum(), rel=1e-12)
    resampled = [
        y[rows].sum() / x[rows].sum()
        for rows in rng.integers(0, x.size, (4_000, x.size))
    ]
    # The standard error of a standard deviation is about itself / sqrt(2 n).
    assert deviation[0] == pytest.approx(np.std(resampled), rel=4 / np.sqrt(2 * 4_000))


def test_gaussian_rewards_that_are_all_alike_share_equally():
    weights = GaussianThompson().allocate(statistics([5, 9, 0], [5, 9, 0]), RNG)
    np.testing.assert_allclose(weights, 1 / 3)


def test_a_ratio_without_a_base_is_refused():
    seen = ArmStatistics(
        units=[3, 3],
        reward_sum=[1, 1],
        reward_sum_squares=[1, 1],
        base_sum=[3, 0],
        base_sum_squares=[3, 0],
        reward_base_sum=[1, 0],
    )
    with pytest.raises(ValueError, match=r"base_sum of arm 1 is 0\.0 beside a reward"):
        GaussianThompson().allocate(seen, RNG)


def test_segments_that_agree_are_pooled():
    # Equal rates in equal segments: no spread at all, so each gets what all say.
    units = np.array([[1000, 1000], [1000, 1000], [1000, 1000]])
    successes = np.array([[40, 56], [40, 56], [40, 56]])
    weights = SegmentedThompson().allocate(statistics(units, successes), RNG)
    pooled = probability_best([1 + 120, 1 + 168], [1 + 2880, 1 + 2832])
    np.testing.assert_allclose(weights, np.tile(pooled, (3, 1)), rtol=0, atol=1e-9)


def test_segments_that_differ_learn_for_themselves():
    units = np.full((2, 2), 5_000)
    successes = np.array([[500, 250], [250, 500]])
    weights = SegmentedThompson().allocate(statistics(units, successes), RNG)
    assert weights[0, 0] > 0.999
    assert weights[1, 1] > 0.999


def test_a_fresh_segment_begins_with_what_the_others_say():
    units = np.array([[5_000, 5_000], [5_000, 5_000], [0, 0]])
    successes = np.array([[500, 250], [510, 255], [0, 0]])
    weights = SegmentedThompson().allocate(statistics(units, successes), RNG)
    assert weights[2, 0] > 0.999


def test_agreement_estimates_the_spread_of_beta_rates():
    rng = np.random.default_rng(8)
    alpha, beta, segments, simulations = 8.0, 72.0, 40, 2_000
    units = rng.integers(200, 400, (segments, simulations)).astype(float)
    rates = rng.beta(alpha, beta, (segments, simulations))
    successes = rng.binomial(units.astype(int), rates).astype(float)
    correlation = 1 / (1 + agreement(units, successes))
    error = correlation.std() / np.sqrt(simulations)
    # The moment estimate is unbiased up to terms of order 1 / segments.
    assert abs(correlation.mean() - 1 / 81) < 4 * error + 1 / 81 / segments


def test_agreement_is_complete_where_nothing_tells_segments_apart():
    one = agreement(np.array([[100.0]]), np.array([[10.0]]))
    same = agreement(np.full((3, 1), 100.0), np.full((3, 1), 10.0))
    nothing = agreement(np.zeros((3, 1)), np.zeros((3, 1)))
    assert np.isinf([one, same, nothing]).all()


@pytest.mark.parametrize("small", [5e-324, 1e-310])
def test_top_two_of_a_chance_that_is_nearly_nil(small):
    weights = top_two(np.array([1.0, small, 0.0]), 0.5)
    np.testing.assert_allclose(weights, [0.5, 0.5, 0.0], rtol=0, atol=1e-12)


def test_gaussian_spread_does_not_burst_when_weighted_units_are_worth_barely_one():
    """Ten units worth a tenth each, of rewards 0 and 1 in equal parts."""
    seen = ArmStatistics(
        units=[1.0 + 1e-9, 50],
        reward_sum=[0.5, 25],
        reward_sum_squares=[0.5, 25],
    )
    deviation = GaussianThompson().posterior(seen)[1]
    # A fresh arm would have one unit's pooled spread, about 0.5.
    assert 0.1 < deviation[0] < 0.75
