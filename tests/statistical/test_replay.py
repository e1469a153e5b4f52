"""Replay, importance weighting and simulation tell the same story; policies do too."""

import numpy as np
import pytest

from policies import build_policy
from policies.logged import LoggedRounds
from policies.off_policy import ips, snips
from policies.replay import ReplayRun, replay
from policies.simulation import Environment, Traffic, simulate
from policies.target import Target

pytestmark = pytest.mark.slow

RATES = np.array([0.10, 0.13, 0.16])
LOOKS, UNITS, ARMS = 20, 600, 3
LOGS = 1000


def uniform_log(rng, rounds=LOOKS * UNITS):
    arm = rng.integers(ARMS, size=rounds)
    return LoggedRounds(
        arms=("a", "b", "c"),
        arm=arm,
        propensity=np.full(rounds, 1 / ARMS),
        reward=(rng.random(rounds) < RATES[arm]).astype(float),
        time=np.arange(rounds, dtype=float),
    )


def run_of(method, seed=0, name="thompson"):
    return ReplayRun(
        label=method,
        policy=build_policy(name, {}),
        method=method,
        update_every=UNITS,
        floor=0.05,
        seed=seed,
    )


def agrees(found, expected, error):
    return abs(found - expected) < 4 * error


def mean_and_error(values):
    return np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))


def noted(report, what, setting, values):
    mean, error = mean_and_error(values)
    report(what, setting, mean, error=error)


def test_rejection_earns_what_the_simulator_says(report):
    rng = np.random.default_rng(31)
    found = [
        replay(uniform_log(rng), run_of("rejection", seed)).accepted_reward
        for seed in range(LOGS)
    ]
    # Of a uniform log one round in three is kept, whatever the policy does.
    traffic = Traffic(looks=LOOKS, units=UNITS // ARMS, floor=0.05)
    told = simulate(
        Environment(rates=RATES),
        build_policy("thompson", {}),
        traffic,
        seeds=range(LOGS),
    )
    replayed, replayed_error = mean_and_error(found)
    simulated, simulated_error = mean_and_error(
        told.reward[:, -1] / (LOOKS * UNITS / ARMS)
    )
    report(
        "rejection replay, mean reward",
        "uniform log, Thompson",
        replayed,
        error=replayed_error,
    )
    report(
        "simulator, mean reward",
        "as many rounds as kept",
        simulated,
        error=simulated_error,
    )
    assert agrees(replayed, simulated, np.hypot(replayed_error, simulated_error))
    # As a policy that learns nothing would earn 0.13, agreement says something.
    assert simulated - 0.13 > 20 * simulated_error


@pytest.mark.parametrize("method", ["expected", "rejection"])
def test_ips_is_unbiased_for_the_weights_that_a_replay_set(report, method):
    rng = np.random.default_rng(32)
    gaps = []
    for seed in range(LOGS):
        log = uniform_log(rng)
        result = replay(log, run_of(method, seed))
        target = Target.from_epochs(result.starts, result.weights, log)
        truth = np.mean(result.weights[:, 0] @ RATES)
        gaps.append(ips(log, target).estimate - truth)
    gap, error = mean_and_error(gaps)
    report(
        f"IPS of a {method} replay, bias", "20 looks of 600 rounds", gap, error=error
    )
    assert agrees(gap, 0, error)


def test_intervals_of_a_replayed_policy_cover(report, tolerance):
    rng = np.random.default_rng(33)
    covered = 0
    for _ in range(LOGS):
        log = uniform_log(rng)
        result = replay(log, run_of("expected"))
        truth = np.mean(result.weights[:, 0] @ RATES)
        scores = snips(log, Target.from_epochs(result.starts, result.weights, log))
        covered += abs(scores.estimate - truth) < 1.959964 * scores.standard_error
    share = covered / LOGS
    report("SNIPS of a replayed policy, coverage", "level 0.95", share, LOGS)
    assert share > 0.95 - tolerance(0.95, LOGS)


def test_a_fixed_policy_is_worth_the_same_by_every_road(report):
    weights = [0.2, 0.3, 0.5]
    truth = float(np.dot(weights, RATES))
    policy = build_policy("fixed", {"weights": weights})
    rng = np.random.default_rng(34)
    roads = {"rejection": [], "ips": []}
    for seed in range(300):
        log = uniform_log(rng)
        run = ReplayRun(
            label="fixed",
            policy=policy,
            method="rejection",
            update_every=UNITS,
            seed=seed,
        )
        result = replay(log, run)
        roads["rejection"].append(result.accepted_reward)
        target = Target.from_epochs(result.starts, result.weights, log)
        roads["ips"].append(ips(log, target).estimate)
    traffic = Traffic(looks=LOOKS, units=UNITS)
    told = simulate(Environment(rates=RATES), policy, traffic, seeds=range(300))
    roads["simulator"] = told.reward[:, -1] / (LOOKS * UNITS)
    for name, values in roads.items():
        found, error = mean_and_error(values)
        report(f"fixed weights worth {truth:.4f}", name, found, error=error)
        assert agrees(found, truth, error), name


def regret(environment, name, parameters, traffic, seeds=400):
    run = simulate(
        environment, build_policy(name, parameters), traffic, seeds=range(seeds)
    )
    return run.regret[:, -1] / (traffic.looks * traffic.units)


def test_discounting_pays_when_rates_drift_and_costs_when_they_do_not(report):
    day = 86_400.0
    swing = np.array([0.04, -0.04, 0.0])
    traffic = Traffic(looks=400, units=500, seconds=day / 4, floor=0.02)
    drifting = Environment(
        rates=np.array([0.10, 0.10, 0.08]), swing=swing, period=40 * day
    )
    still = Environment(rates=np.array([0.12, 0.10, 0.08]))
    rows = {}
    for setting, environment in (("drifting", drifting), ("still", still)):
        for name, parameters in (
            ("thompson", {}),
            ("discounted_thompson", {"half_life": 5 * day}),
        ):
            lost = regret(environment, name, parameters, traffic, seeds=200)
            rows[setting, name] = lost
            noted(report, f"regret per unit, {name}", f"{setting} rates", lost)
    gain = rows["drifting", "thompson"] - rows["drifting", "discounted_thompson"]
    assert gain.mean() > 4 * mean_and_error(gain)[1]
    cost = rows["still", "discounted_thompson"] - rows["still", "thompson"]
    assert cost.mean() > 0


def test_segments_pay_when_they_differ_and_cost_little_when_not(report):
    traffic = Traffic(looks=100, units=500, floor=0.02)
    apart = Environment(rates=np.array([[0.05, 0.10], [0.10, 0.05], [0.08, 0.08]]))
    alike = Environment(rates=np.array([[0.05, 0.07]] * 3))
    rows = {}
    for setting, environment in (("segments differ", apart), ("all alike", alike)):
        for name in ("thompson", "segmented_thompson"):
            lost = regret(environment, name, {}, traffic)
            rows[setting, name] = lost
            noted(report, f"regret per unit, {name}", setting, lost)
    gain = (
        rows["segments differ", "thompson"]
        - rows["segments differ", "segmented_thompson"]
    )
    assert gain.mean() > 4 * mean_and_error(gain)[1]
    cost = rows["all alike", "segmented_thompson"].mean()
    # Learning each of three segments alone would cost three times as much.
    assert cost < 2 * rows["all alike", "thompson"].mean()


def test_regret_grows_as_the_lower_bound_of_lai_and_robbins(report):
    """Thompson sampling reaches it in the limit (Kaufmann, Korda and Munos 2012)."""
    best, other = 0.5, 0.3
    divergence = other * np.log(other / best)
    divergence += (1 - other) * np.log((1 - other) / (1 - best))
    bound = (best - other) / divergence
    # Looks at every fifth unit: as good as at each, and five times as fast.
    traffic = Traffic(looks=4_000, units=5)
    run = simulate(
        Environment(rates=np.array([best, other])),
        build_policy("thompson", {}),
        traffic,
        seeds=range(200),
    )
    at = np.array([400, 4_000]) - 1
    slopes = np.diff(run.regret[:, at], axis=1)[:, 0] / np.log(10)
    slope, error = mean_and_error(slopes)
    noted(
        report,
        "growth of regret by ln T over the bound",
        "T 2,000 to 20,000",
        slopes / bound,
    )
    assert 0.5 * bound < slope - 4 * error
    assert slope + 4 * error < 2 * bound


def test_a_new_arm_that_is_best_is_found_soon(report):
    """An arm that arrives beside arms with 50,000 units is neither starved nor blind."""
    late = 100 * 3600.0
    environment = Environment(
        rates=np.array([0.10, 0.09, 0.13]), arrivals=np.array([0.0, 0.0, late])
    )
    traffic = Traffic(looks=200, units=500, seconds=3600.0, floor=0.02)
    run = simulate(environment, build_policy("thompson", {}), traffic, seeds=range(200))
    before, after = run.weights[:, 99, 0, 2], run.weights[:, 160, 0, 2]
    noted(report, "weight of a new best arm", "60 looks after it came", after)
    assert not before.any()
    assert (after > 0.5).mean() > 0.95
