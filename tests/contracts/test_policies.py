"""What every entry of POLICIES must do, with its default parameters."""

import json
from dataclasses import asdict, fields, is_dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import POLICIES, ArmStatistics, allocate_with_floor, build_policy

#: Policies that look at no reward, on purpose.
DO_NOT_LEARN = {"fixed"}

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
        assert weights.argmax() == best
        # Were traffic shared equally, it would be half or a fifth.
        assert seen.units[best] / seen.units.sum() > 0.7
