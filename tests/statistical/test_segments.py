"""Contrasts of a bandit with weights per segment, where effects differ by segment."""

import numpy as np
import pytest

from experiment_service.analysis import adaptive
from experiment_service.analysis.moments import EpochMoments, Moments
from policies import ArmStatistics, allocate_with_floor, build_policy

pytestmark = pytest.mark.slow

VARIANTS = ("control", "knn", "als")
#: Rewards by segment and variant: the best one is another in each segment.
RATES = np.array([[0.10, 0.14, 0.08], [0.12, 0.06, 0.10]])
SHARES = np.array([0.6, 0.4])
TRUTH = SHARES @ (RATES - RATES[:, :1])
LOOKS, UNITS, FLOOR = 12, 1000, 0.05
TRIALS = 1000


def epochs_of_a_bandit(rng):
    policy = build_policy("segmented_thompson", {})
    units, rewards = np.zeros((2, 3)), np.zeros((2, 3))
    for _ in range(LOOKS):
        statistics = ArmStatistics(
            units=units, reward_sum=rewards, reward_sum_squares=rewards
        )
        asked = policy.allocate(statistics, rng)
        sizes = rng.multinomial(UNITS, SHARES)
        for segment, row in enumerate(asked):
            weights = allocate_with_floor(row, floor=FLOOR)
            seen = rng.multinomial(sizes[segment], weights)
            won = rng.binomial(seen, RATES[segment])
            units[segment] += seen
            rewards[segment] += won
            yield EpochMoments(
                weights=dict(zip(VARIANTS, weights, strict=True)),
                moments={
                    variant: Moments.from_counts(int(s), int(n))
                    for variant, s, n in zip(VARIANTS, won, seen, strict=True)
                },
                segment=str(segment),
            )


def covers(interval, truth):
    return interval.low <= truth <= interval.high


def test_contrasts_cover_the_mean_effect_over_all_units(report, tolerance):
    rng = np.random.default_rng(41)
    covered, watched, bias = np.zeros(2), np.zeros(2), []
    for _ in range(TRIALS):
        epochs = list(epochs_of_a_bandit(rng))
        for arm, variant in enumerate(VARIANTS[1:]):
            given = {
                "kind": "proportion",
                "treatment": variant,
                "control": "control",
                "minimum_effective_sample_size": 0,
            }
            truth = TRUTH[arm + 1]
            interval = adaptive.contrast(epochs, **given)
            covered[arm] += covers(interval, truth)
            if arm == 0:
                bias.append(interval.estimate - truth)
            watched[arm] += all(
                covers(
                    adaptive.contrast_sequence(
                        epochs[: 2 * looks], planned_units=20_000, **given
                    ),
                    truth,
                )
                for looks in range(2, LOOKS + 1, 2)
            )
    for arm, variant in enumerate(VARIANTS[1:]):
        setting = f"{variant} - control, weights per segment"
        report(
            "AIPW over segments, planned end", setting, covered[arm] / TRIALS, TRIALS
        )
        report("AIPW over segments, any time", setting, watched[arm] / TRIALS, TRIALS)
        assert covered[arm] / TRIALS > 0.95 - tolerance(0.95, TRIALS)
        assert watched[arm] / TRIALS > 0.95 - tolerance(0.95, TRIALS)
    error = np.std(bias, ddof=1) / np.sqrt(TRIALS)
    report("AIPW over segments, bias", "knn - control", np.mean(bias), error=error)
    assert abs(np.mean(bias)) < 4 * error
