"""False alarms and power of the sample ratio check."""

import numpy as np
import pytest
from scipy import stats

from experiment_service.analysis.health import srm

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
    failed = sum(
        any(
            srm(rows(look[None]), rows([[0.5, 0.5]])).status == "failed" for look in run
        )
        for run in counts
    )
    report("SRM", "failed at any of 20 looks, 50/50", failed / trials, trials)
    assert failed / trials < 0.02


def test_power_against_lost_exposures(report):
    rng = np.random.default_rng(403)
    trials, epochs, units = 1000, 10, 5000
    found = 0
    for _ in range(trials):
        weights = moving_weights(rng, epochs)
        counts = rng.multinomial(units, weights)
        counts[:, 0] = rng.binomial(counts[:, 0], 0.9)
        found += srm(rows(counts), rows(weights)).status == "failed"
    setting = "failed when one variant loses 10 %, 10 epochs of 5,000"
    report("SRM, power", setting, found / trials, trials)
    assert found / trials > 0.9
