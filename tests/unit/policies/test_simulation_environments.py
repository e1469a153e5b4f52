"""Simulated bandits against what their environments make certain."""

import numpy as np
import pytest

from policies import build_policy
from policies.simulation import Environment, Traffic, simulate, simulated_log

DAY = 86_400.0


def run(environment, name="uniform", parameters=None, *, looks=20, units=500, **more):
    return simulate(
        environment,
        build_policy(name, parameters or {}),
        Traffic(looks=looks, units=units, **more),
        seeds=range(8),
    )


def test_the_regret_of_equal_shares_is_the_closed_form():
    rates = np.array([0.1, 0.2, 0.4])
    result = run(Environment(rates=rates))
    units = 500 * np.arange(1, 21)
    expected = (0.4 - rates).mean() * units
    # The regret of one unit has this variance; looks and seeds are independent.
    error = np.sqrt((0.4 - rates).var() * units / 8)
    assert np.all(np.abs(result.mean_regret - expected) < 4 * error)
    error = np.sqrt(rates.mean() * units / 8)
    assert np.all(np.abs(result.reward.mean(axis=0) - rates.mean() * units) < 4 * error)
    assert result.regret.shape == result.reward.shape == (8, 20)


def test_a_learner_loses_less_than_equal_shares_and_stops_losing():
    environment = Environment(rates=[0.1, 0.2, 0.4])
    learned, equal = run(environment, "thompson"), run(environment)
    assert learned.mean_regret[-1] < equal.mean_regret[-1] / 5
    late = learned.mean_regret[-1] - learned.mean_regret[-5]
    assert late < learned.mean_regret[4] / 5


def test_lower_may_be_better():
    result = run(Environment(rates=[0.4, 0.1]), "thompson", lower_is_better=True)
    assert (result.weights[:, -1, 0, 1] > 0.99).all()
    assert (result.regret >= 0).all()


def test_a_delay_keeps_the_first_looks_equal():
    environment = Environment(rates=[0.1, 0.5], delay=3 * 3600.0)
    weights = run(environment, "thompson").weights
    np.testing.assert_allclose(weights[:, :4], 0.5, rtol=0, atol=1e-9)
    assert (weights[:, 4, 0, 1] > 0.99).all()


def test_an_arm_that_arrives_is_not_shown_before_and_found_after():
    environment = Environment(rates=[0.1, 0.2, 0.5], arrivals=[0, 0, 10 * 3600.0])
    result = run(environment, "thompson")
    assert (result.weights[:, :10, 0, 2] == 0).all()
    assert (result.weights[:, -1, 0, 2] > 0.9).all()
    # Before it comes the best arm is the second one.
    assert (np.diff(result.mean_regret)[5:9] < 0.02 * 500 * 0.3).all()


def test_drift_swaps_the_best_arm_and_a_forgetting_policy_follows():
    environment = Environment(
        rates=[0.3, 0.3], swing=[0.1, -0.1], period=4 * DAY, shares=[1.0]
    )
    np.testing.assert_allclose(environment.rates_at(DAY), [[0.4, 0.2]])
    np.testing.assert_allclose(environment.rates_at(3 * DAY), [[0.2, 0.4]])
    options = {"looks": 24 * 16, "units": 200}
    forgets = run(
        environment, "discounted_thompson", {"half_life": 6 * 3600.0}, **options
    )
    remembers = run(environment, "thompson", **options)
    assert forgets.mean_regret[-1] < 0.7 * remembers.mean_regret[-1]


def test_segments_that_differ_need_weights_of_their_own():
    environment = Environment(rates=[[0.1, 0.3], [0.3, 0.1]], shares=[0.5, 0.5])
    own = run(environment, "segmented_thompson")
    pooled = run(environment, "thompson")
    assert own.mean_regret[-1] < pooled.mean_regret[-1] / 5


def test_a_log_has_the_propensities_and_rates_of_its_environment():
    environment = Environment(rates=[[0.1, 0.3], [0.4, 0.2]], shares=[0.25, 0.75])
    traffic = Traffic(looks=10, units=4_000, floor=0.1)
    log = simulated_log(
        environment, build_policy("segmented_thompson", {}), traffic, seed=3
    )
    assert log.rounds == 40_000
    weights = 1 / log.propensity
    # The mean weight of each arm is 1 when propensities are right.
    for arm in range(2):
        terms = weights * (log.arm == arm)
        assert abs(terms.mean() - 1) < 4 * terms.std() / np.sqrt(log.rounds)
    for segment in range(2):
        here = log.segment == segment
        share = environment.shares[segment]
        assert abs(here.mean() - share) < 4 * np.sqrt(share * (1 - share) / log.rounds)
        for arm in range(2):
            cell = log.reward[here & (log.arm == arm)]
            rate = environment.rates[segment, arm]
            assert abs(cell.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / cell.size)


def test_a_seed_is_a_run_in_whatever_process():
    environment = Environment(rates=[0.1, 0.2])
    traffic = Traffic(looks=5, units=50)
    policy = build_policy("thompson", {})
    one, two = (
        simulate(environment, policy, traffic, seeds=[5, 9, 5], processes=processes)
        for processes in (1, 2)
    )
    np.testing.assert_array_equal(one.weights, two.weights)
    np.testing.assert_array_equal(one.regret[0], one.regret[2])
    assert not np.array_equal(one.reward[0], one.reward[1])


def test_one_seed_has_no_error():
    result = simulate(
        Environment(rates=[0.1, 0.2]),
        build_policy("uniform", {}),
        Traffic(looks=2, units=5),
        seeds=[1],
    )
    assert np.isnan(result.regret_error).all()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rates": [0.5]}, "of at least 2 arms"),
        ({"rates": [0.5, 1.2]}, "every rate must stay in 0 to 1"),
        ({"rates": [0.5, 0.9], "swing": [0, 0.2]}, "every rate must stay in 0 to 1"),
        ({"rates": [0.5, np.nan]}, "every rate must stay in 0 to 1"),
        ({"rates": [0.5, 0.5], "swing": [0.1]}, r"swing has shape \(1, 1\)"),
        ({"rates": [0.5, 0.5], "shares": [0.5, 0.5]}, r"shares has shape \(2,\)"),
        ({"rates": [[0.5, 0.5]] * 2, "shares": [0.5, 0.6]}, r"shares sums to 1\.1"),
        ({"rates": [0.5, 0.5], "arrivals": [0, 5]}, "at least 2 arms must be there"),
        ({"rates": [0.5, 0.5], "period": 0}, "period is 0"),
        ({"rates": [0.5, 0.5], "delay": -1}, "delay is -1"),
    ],
)
def test_impossible_environments_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Environment(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"looks": 0, "units": 5}, "looks is 0"),
        ({"looks": 5, "units": 2.5}, r"units is 2\.5"),
        ({"looks": 5, "units": 5, "seconds": 0}, "seconds is 0"),
    ],
)
def test_impossible_traffic_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Traffic(**fields)
