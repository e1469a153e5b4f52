"""False alarms and power of the sample ratio check."""

import numpy as np
import pytest
from scipy import stats

from experiment_service.analysis.health import srm
from experiment_service.analysis.sample_ratio import sequential_srm

pytestmark = pytest.mark.slow


def rows(array):
    return [dict(enumerate(map(float, row))) for row in array]


def moving_weights(rng, epochs):
    """Weights of three variants that move as a bandit's do, floor 0.01."""
    return 0.01 + 0.97 * rng.dirichlet([0.5, 0.5, 0.5], epochs)


@pytest.mark.parametrize("units", [100, 1000])
def test_false_alarms_under_moving_weights(units, report, tolerance):
    rng = np.random.default_rng(401)
    trials, epochs = 4000, 10
    p_values, pooled = [], []
    for _ in range(trials):
        weights = moving_weights(rng, epochs)
        counts = rng.multinomial(units, weights)
        p_values.append(srm(rows(counts), rows(weights)).value)
        expected = units * weights.sum(axis=0)
        pooled.append(stats.chisquare(counts.sum(axis=0), expected).pvalue)
    for bound in (0.05, 0.01, 0.001):
        share = np.mean(np.array(p_values) < bound)
        setting = f"p < {bound}, 10 epochs of {units:,}, moving weights"
        report("SRM, chi-squares summed", setting, share, trials)
        # Cells near 5 make the chi-square tail a little heavier than stated.
        assert share < 1.3 * bound + tolerance(1.3 * bound, trials)
    share = np.mean(np.array(pooled) < 0.05)
    setting = f"p < 0.05, 10 epochs of {units:,}, moving weights"
    report("(SRM, one chi-square of sums, not used)", setting, share, trials)
    assert share < 0.05


def test_false_alarms_of_a_watched_split(report):
    rng = np.random.default_rng(402)
    trials, looks = 4000, 20
    counts = rng.multinomial(1000, [0.5, 0.5], (trials, looks)).cumsum(axis=1)
    bounds = {srm: (0.001, "SRM", 0.02), sequential_srm: (0.05, "SRM, any look", 0.05)}
    for check, (bound, name, limit) in bounds.items():
        failed = sum(
            any(
                check(rows(look[None]), rows([[0.5, 0.5]])).value < bound
                for look in run
            )
            for run in counts
        )
        setting = f"p < {bound} at any of 20 looks, 50/50"
        report(name, setting, failed / trials, trials)
        assert failed / trials < limit


def test_false_alarms_of_a_watched_bandit(report, tolerance):
    """Looked at after each of 20 epochs, whose weights follow what was counted."""
    rng = np.random.default_rng(404)
    trials, alarms = 2000, 0
    for _ in range(trials):
        weights, counts = [np.full(3, 1 / 3)], []
        lowest = 1.0
        for _ in range(20):
            counts.append(rng.multinomial(300, weights[-1]))
            found = sequential_srm(rows(counts), rows(weights))
            lowest = min(lowest, found.value)
            # As a bandit would that favours whoever had more units so far.
            share = np.sum(counts, axis=0) ** 3.0
            weights.append(0.02 + 0.94 * share / share.sum())
        alarms += lowest < 0.05
    setting = "p < 0.05 at any of 20 looks, weights that follow the counts"
    report("SRM, any look", setting, alarms / trials, trials)
    assert alarms / trials < 0.05 + tolerance(0.05, trials)


def test_power_against_lost_exposures(report):
    rng = np.random.default_rng(403)
    trials, epochs, units = 1000, 10, 5000
    found = {srm: 0, sequential_srm: 0}
    for _ in range(trials):
        weights = moving_weights(rng, epochs)
        counts = rng.multinomial(units, weights)
        counts[:, 0] = rng.binomial(counts[:, 0], 0.9)
        for check in found:
            found[check] += check(rows(counts), rows(weights)).status == "failed"
    setting = "failed when one variant loses 10 %, 10 epochs of 5,000"
    for name, check in (("SRM", srm), ("SRM, any look", sequential_srm)):
        report(f"{name}, power", setting, found[check] / trials, trials)
        assert found[check] / trials > 0.9
