"""What every entry of POLICIES must do, with its default parameters."""

import json
from dataclasses import asdict, fields, is_dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import POLICIES, ArmStatistics, allocate_with_floor, build_policy

#: Policies that look at no reward, on purpose.
DO_NOT_LEARN = {"fixed", "uniform"}

#: Least share of the best arm on an easy problem, where it is not 0.7: top-two gives
#: the challenger the other half on purpose.
LEAST_OF_BEST = {"top_two_thompson": 0.4}

CASES = {
    "two arms": ([1000, 1000], [40, 56]),
    "five arms": ([900, 1200, 5, 100, 40_000], [30, 60, 1, 0, 2_100]),
    "a fresh arm": ([0, 80_000, 2_000], [0, 4_000, 110]),
    "all succeeded": ([3, 3], [3, 3]),
}


@pytest.fixture(params=POLICIES)
def name(request):
    return request.param


def statistics(units, successes, *, lower_is_better=False):
    return ArmStatistics(
        units=units,
        reward_sum=successes,
        reward_sum_squares=successes,
        lower_is_better=lower_is_better,
    )


def allocate(name, units, successes, seed=7, **direction):
    policy = build_policy(name, {})
    return policy.allocate(
        statistics(units, successes, **direction), np.random.default_rng(seed)
    )


def assert_shares(weights, arms):
    assert weights.shape == (arms,)
    assert weights.dtype == np.float64
    assert (weights >= 0).all()
    assert (weights <= 1).all()
    assert weights.sum() == pytest.approx(1, abs=1e-9)


def test_is_a_frozen_dataclass_of_parameters_that_survive_json(name):
    policy = build_policy(name, {})
    assert is_dataclass(policy)
    assert policy.__dataclass_params__.frozen
    stored = json.loads(json.dumps(asdict(policy)))
    assert build_policy(name, stored) == policy


def test_unknown_parameter_is_refused_by_name(name):
    known = [field.name for field in fields(POLICIES[name])]
    with pytest.raises(ValueError, match="no parameter 'colour'") as refusal:
        build_policy(name, {"colour": 1})
    assert all(parameter in str(refusal.value) for parameter in [name, *known])


@pytest.mark.parametrize("value", ["much", [["a"]], {}, True, float("nan"), -1])
def test_ill_typed_parameter_is_refused_by_name(name, value):
    for field in fields(POLICIES[name]):
        with pytest.raises(ValueError, match=rf"policy '{name}': {field.name}\b.* is "):
            build_policy(name, {field.name: value})


@pytest.mark.parametrize("lower_is_better", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gives_shares_of_traffic(name, case, lower_is_better):
    units, successes = CASES[case]
    weights = allocate(name, units, successes, lower_is_better=lower_is_better)
    assert_shares(weights, len(units))


@pytest.mark.parametrize("case", CASES)
def test_same_seed_same_weights(name, case):
    first, second = (allocate(name, *CASES[case], seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("lower_is_better", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_order_of_arms_is_irrelevant(name, case, lower_is_better):
    units, successes = (np.array(column) for column in CASES[case])
    weights = allocate(name, units, successes, lower_is_better=lower_is_better)
    order = np.random.default_rng(5).permutation(units.size)[::-1]
    moved = allocate(
        name, units[order], successes[order], lower_is_better=lower_is_better
    )
    np.testing.assert_allclose(moved, weights[order], rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_fewest_failures_is_the_mirror_of_most_successes(name, case):
    units, successes = (np.array(column) for column in CASES[case])
    higher = allocate(name, units, successes)
    lower = allocate(name, units, units - successes, lower_is_better=True)
    np.testing.assert_allclose(lower, higher, rtol=0, atol=1e-9)


@pytest.mark.parametrize("arms", [1, 2, 5])
@pytest.mark.parametrize("lower_is_better", [False, True])
def test_no_data_gives_equal_shares(name, arms, lower_is_better):
    nothing = np.zeros(arms)
    weights = allocate(name, nothing, nothing, lower_is_better=lower_is_better)
    np.testing.assert_allclose(weights, 1 / arms, rtol=0, atol=1e-9)


def test_leaves_the_statistics_as_they_are(name):
    seen = statistics(*CASES["five arms"])
    build_policy(name, {}).allocate(seen, np.random.default_rng(0))
    np.testing.assert_array_equal(seen.units, CASES["five arms"][0])
    np.testing.assert_array_equal(seen.reward_sum, CASES["five arms"][1])


@settings(max_examples=40, deadline=None)
@given(
    arms=st.lists(
        st.integers(0, 10**9).flatmap(
            lambda units: st.tuples(st.just(units), st.integers(0, units))
        ),
        min_size=1,
        max_size=12,
    ),
    lower_is_better=st.booleans(),
    share=st.floats(0, 1),
)
@pytest.mark.parametrize("each", POLICIES)
def test_floor_holds_for_any_counts(each, arms, lower_is_better, share):
    units, successes = zip(*arms, strict=True)
    weights = allocate(each, units, successes, lower_is_better=lower_is_better)
    floor = share / len(arms)
    final = allocate_with_floor(weights, floor=floor)
    assert_shares(final, len(arms))
    assert (final >= floor).all()


@pytest.mark.parametrize("lower_is_better", [False, True])
@pytest.mark.parametrize("rates", [(0.1, 0.3), (0.1, 0.15, 0.4, 0.2, 0.1)])
def test_learns_an_easy_problem(name, rates, lower_is_better):
    if name in DO_NOT_LEARN:
        pytest.skip(f"{name} looks at no reward")
    rates = np.array(rates)
    best = rates.argmax()
    if lower_is_better:
        rates = 1 - rates
    for seed in range(5):
        rng = np.random.default_rng(seed)
        policy = build_policy(name, {})
        seen = statistics(
            np.zeros(rates.size), np.zeros(rates.size), lower_is_better=lower_is_better
        )
        for _ in range(20):
            weights = policy.allocate(seen, rng)
            units = rng.multinomial(200, allocate_with_floor(weights, floor=0.02))
            seen += statistics(
                units, rng.binomial(units, rates), lower_is_better=lower_is_better
            )
        weights = policy.allocate(seen, rng)
        assert weights[best] > weights.max() - 1e-9
        # Were traffic shared equally, it would be half or a fifth.
        assert seen.units[best] / seen.units.sum() > LEAST_OF_BEST.get(name, 0.7)


def test_says_what_it_can_learn_from(name):
    kind = POLICIES[name]
    assert set(kind.reward_kinds) <= {"proportion", "mean", "ratio"}
    assert "proportion" in kind.reward_kinds
    assert isinstance(kind.segmented, bool)
    half_life = build_policy(name, {}).half_life
    assert half_life is None or half_life > 0


def random_rewards(kind, arms, seed):
    """Units of K arms with rewards of a kind: rewards and bases per arm."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 400, arms)
    bases = [rng.poisson(3, n) + 1.0 if kind == "ratio" else np.ones(n) for n in sizes]
    return [rng.gamma(1 + arm / 10, 2, n) for arm, n in enumerate(sizes)], bases


def sums_of(rewards, bases, kind, **direction):
    base = {
        "base_sum": [x.sum() for x in bases],
        "base_sum_squares": [(x**2).sum() for x in bases],
        "reward_base_sum": [(x * y).sum() for x, y in zip(bases, rewards, strict=True)],
    }
    return ArmStatistics(
        units=[y.size for y in rewards],
        reward_sum=[y.sum() for y in rewards],
        reward_sum_squares=[(y**2).sum() for y in rewards],
        **(base if kind == "ratio" else {}),
        **direction,
    )


@pytest.mark.parametrize("kind", ["mean", "ratio"])
@pytest.mark.parametrize("lower_is_better", [False, True])
def test_rewards_of_other_kinds_give_shares_or_are_refused(name, kind, lower_is_better):
    policy = build_policy(name, {})
    rewards, bases = random_rewards(kind, 5, seed=3)
    seen = sums_of(rewards, bases, kind, lower_is_better=lower_is_better)
    if kind not in policy.reward_kinds:
        with pytest.raises(ValueError, match="proportion"):
            policy.allocate(seen, np.random.default_rng(0))
        return
    weights = policy.allocate(seen, np.random.default_rng(0))
    assert_shares(weights, 5)
    # The unit of the reward, such as cents for euros, changes nothing.
    scaled = sums_of(
        [100 * y for y in rewards], bases, kind, lower_is_better=lower_is_better
    )
    np.testing.assert_allclose(
        policy.allocate(scaled, np.random.default_rng(0)), weights, rtol=0, atol=1e-9
    )


def test_segments_are_refused_or_get_weights_of_their_own(name):
    policy = build_policy(name, {})
    units = np.array([[900, 1200, 5], [40, 30, 90]])
    seen = statistics(units, units // 3)
    if not policy.segmented:
        with pytest.raises(ValueError, match=r"units has shape \(2, 3\)"):
            policy.allocate(seen, np.random.default_rng(0))
        return
    weights = policy.allocate(seen, np.random.default_rng(0))
    assert weights.shape == (2, 3)
    for row in weights:
        assert_shares(row, 3)


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_gives_shares_to_hundreds_of_arms(name, lower_is_better):
    rng = np.random.default_rng(9)
    units = rng.integers(0, 10_000, 300)
    seen = rng.binomial(units, rng.beta(2, 40, 300))
    weights = allocate(name, units, seen, lower_is_better=lower_is_better)
    assert_shares(weights, 300)


def test_fractional_units_are_taken(name):
    units = np.array([10.25, 800.5, 0.0])
    weights = allocate(name, units, units * 0.3)
    assert_shares(weights, 3)
