"""Fixed, Thompson and the registry: what is theirs alone."""

import numpy as np
import pytest
from scipy import stats

from policies import ArmStatistics, build_policy
from policies.fixed import Fixed
from policies.thompson import Thompson

RNG = np.random.default_rng(0)


def statistics(units, successes, **direction):
    return ArmStatistics(
        units=units, reward_sum=successes, reward_sum_squares=successes, **direction
    )


def test_unknown_policy_is_refused_with_those_known():
    with pytest.raises(
        ValueError, match="policy is 'greedy'; known policies: fixed, thompson"
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
