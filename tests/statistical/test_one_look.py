"""Coverage of the intervals for fixed weights and one look, stated level 0.95."""

import math

import numpy as np
import pytest
from scipy import stats

from experiment_service.analysis import estimate
from experiment_service.analysis.interval import Withheld
from experiment_service.analysis.moments import Moments
from experiment_service.analysis.proportion import newcombe, proportion_lift, wilson

pytestmark = pytest.mark.slow


def likely(n, p):
    """Counts that hold all but 1e-9 of the binomial, with their probabilities."""
    low, high = stats.binom.ppf([5e-10, 1 - 5e-10], n, p)
    counts = np.arange(int(low), int(high) + 1)
    return counts, stats.binom.pmf(counts, n, p)


def holds(result, truth):
    return result.low <= truth <= result.high


@pytest.mark.parametrize(
    ("p", "n"), [(0.01, 1000), (0.05, 200), (0.05, 1000), (0.05, 10_000), (0.3, 200)]
)
def test_wilson(p, n, report):
    counts, mass = likely(n, p)
    covered = np.array([holds(wilson(s, n), p) for s in counts])
    rate = counts / n
    wald = np.abs(rate - p) <= 1.959964 * np.sqrt(rate * (1 - rate) / n)
    report("Wilson", f"rate {p}, n {n:,}", (mass * covered).sum())
    report("(Wald, not used)", f"rate {p}, n {n:,}", (mass * wald).sum())
    # It swings around the level with n p; Brown, Cai and DasGupta (2001).
    assert 0.935 < (mass * covered).sum() < 0.975


@pytest.mark.parametrize(
    ("p1", "n1", "p0", "n0"),
    [
        (0.05, 1000, 0.05, 1000),
        (0.06, 1000, 0.05, 1000),
        (0.05, 200, 0.05, 1800),
        (0.012, 1000, 0.01, 1000),
    ],
)
def test_newcombe(p1, n1, p0, n0, report):
    counts1, mass1 = likely(n1, p1)
    counts0, mass0 = likely(n0, p0)
    keep1, keep0 = mass1 > 1e-7, mass0 > 1e-7
    covered = sum(
        m1 * m0 * holds(newcombe(s1, n1, s0, n0), p1 - p0)
        for s1, m1 in zip(counts1[keep1], mass1[keep1], strict=True)
        for s0, m0 in zip(counts0[keep0], mass0[keep0], strict=True)
    )
    report("Newcombe", f"{p1} of {n1:,} against {p0} of {n0:,}", covered)
    assert 0.94 < covered < 0.97


def test_proportion_lift(report, tolerance):
    rng = np.random.default_rng(101)
    trials, n, p1, p0 = 10_000, 1000, 0.06, 0.05
    results = [
        proportion_lift(s1, n, s0, n)
        for s1, s0 in rng.binomial(n, [p1, p0], (trials, 2))
    ]
    share = np.mean([holds(result, p1 / p0 - 1) for result in results])
    report("Lift of proportions (Katz)", "0.06 against 0.05, 1,000 each", share, trials)
    assert share > 0.95 - tolerance(0.95, trials)


def spending(rng, shape):
    """Nine in ten units spend nothing, the others a lognormal amount."""
    return (rng.random(shape) < 0.1) * rng.lognormal(0, 1, shape)


@pytest.mark.parametrize(("n1", "n0"), [(2000, 2000), (500, 500), (400, 3600)])
def test_welch(n1, n0, report, tolerance):
    rng = np.random.default_rng(102)
    trials, covered, lifted = 4000, 0, 0
    for _ in range(trials):
        treatment = Moments.from_arrays(1.1 * spending(rng, n1))
        control = Moments.from_arrays(spending(rng, n0))
        truth = 0.1 * math.exp(0.5)
        covered += holds(estimate.difference("mean", treatment, control), 0.1 * truth)
        lift = estimate.lift("mean", treatment, control)
        # A control that can't be told from 0 happens once in thousands.
        lifted += isinstance(lift, Withheld) or holds(lift, 0.1)
    setting = f"skewed spending, {n1:,} against {n0:,}"
    report("Welch", setting, covered / trials, trials)
    report("Lift of means", setting, lifted / trials, trials)
    # Skewness that does not cancel between unequal sizes costs about a point.
    floor = 0.95 if n1 == n0 else 0.93
    assert covered / trials > floor - tolerance(floor, trials)
    assert lifted / trials > floor - tolerance(floor, trials)


def test_ratio(report, tolerance):
    rng = np.random.default_rng(103)
    trials, n = 4000, 500
    covered = lifted = naive = 0
    for _ in range(trials):
        exposures = rng.geometric(0.2, (2, n))
        clicks = rng.binomial(exposures, rng.beta(0.5, 4.5, (2, n)))
        one, other = (
            Moments.from_arrays(y, x) for y, x in zip(clicks, exposures, strict=True)
        )
        covered += holds(estimate.difference("ratio", one, other), 0)
        lifted += holds(estimate.lift("ratio", one, other), 0)
        naive += holds(newcombe(one.sum_y, one.sum_x, other.sum_y, other.sum_x), 0)
    setting = "5 exposures per unit, click rate Beta(0.5, 4.5) by unit, 500 units each"
    report("Delta method, difference of ratios", setting, covered / trials, trials)
    report("Lift of ratios", setting, lifted / trials, trials)
    report("(exposures as units, not used)", setting, naive / trials, trials)
    assert covered / trials > 0.95 - tolerance(0.95, trials)
    assert lifted / trials > 0.95 - tolerance(0.95, trials)
    assert naive / trials < 0.85


def test_looking_twenty_times_breaks_intervals_for_one_look(report):
    rng = np.random.default_rng(104)
    trials, looks, step, p = 2000, 20, 500, 0.05
    successes = rng.binomial(step, p, (trials, looks, 2)).cumsum(axis=1)
    alarms = 0
    for path in successes:
        alarms += any(
            newcombe(s1, n, s0, n).excludes_zero
            for (s1, s0), n in zip(path, step * np.arange(1, looks + 1), strict=True)
        )
    share = alarms / trials
    report(
        "(Newcombe, watched, not used)", "A/A, false alarms, 20 looks", share, trials
    )
    assert share > 0.15
