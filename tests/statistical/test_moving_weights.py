"""Coverage of contrasts under Thompson reallocation, stated level 0.95."""

import math

import numpy as np
import pytest

from experiment_service.analysis.adaptive import (
    MINIMUM_EFFECTIVE_SAMPLE_SIZE,
    contrast,
    contrast_lift,
    contrast_sequence,
)
from experiment_service.analysis.interval import Withheld
from experiment_service.analysis.moments import EpochMoments, Moments
from experiment_service.analysis.proportion import newcombe
from experiment_service.analysis.scores import weigh

pytestmark = pytest.mark.slow


def name(arm):
    return f"v{arm}"


def best_shares(rng, mean, error):
    """Share of 200 posterior draws in which each arm is best."""
    draws = rng.normal(mean, error, (200, len(mean)))
    return np.bincount(draws.argmax(axis=1), minlength=len(mean)) / 200


def run_rates(rng, rates, *, epochs, units, floor, season=0.0, trend=0.0):
    """One Beta-Bernoulli bandit; the weights used are exactly those in its epochs."""
    arms = len(rates)
    successes, n = np.zeros(arms), np.zeros(arms)
    weights = np.full(arms, 1 / arms)
    history = []
    for epoch in range(epochs):
        counts = rng.multinomial(units, weights)
        drift = season * math.sin(2 * math.pi * epoch / 7) + trend * epoch / epochs
        won = rng.binomial(counts, np.asarray(rates) + drift)
        history.append(
            EpochMoments(
                weights={name(k): float(w) for k, w in enumerate(weights)},
                moments={
                    name(k): Moments.from_counts(s, m)
                    for k, (s, m) in enumerate(zip(won, counts, strict=True))
                },
            )
        )
        successes, n = successes + won, n + counts
        draws = rng.beta(1 + successes, 1 + n - successes, (200, arms))
        best = np.bincount(draws.argmax(axis=1), minlength=arms) / 200
        weights = floor + (1 - arms * floor) * best
    return history


def run_values(rng, kind, effects, *, epochs, units, floor):
    """One Gaussian bandit on skewed means, or on clicks per exposure."""
    arms = len(effects)
    totals = [Moments.zero()] * arms
    weights = np.full(arms, 1 / arms)
    history = []
    for _ in range(epochs):
        counts = rng.multinomial(units, weights)
        moments = {}
        for k, (m, effect) in enumerate(zip(counts, effects, strict=True)):
            if kind == "mean":
                y = effect * (rng.random(m) < 0.1) * rng.lognormal(0, 1, m)
                x = np.ones(m)
            else:
                x = rng.geometric(0.2, m)
                y = rng.binomial(x, rng.beta(0.5 * effect, 5 - 0.5 * effect, m))
            moments[name(k)] = Moments.from_arrays(y, x)
            totals[k] += moments[name(k)]
        history.append(
            EpochMoments(
                weights={name(k): float(w) for k, w in enumerate(weights)},
                moments=moments,
            )
        )
        mean = np.array([total.ratio for total in totals])
        error = np.sqrt([total.ratio_variance for total in totals])
        weights = floor + (1 - arms * floor) * best_shares(rng, mean, error + 1e-9)
    return history


def holds(result, truth):
    return result.low <= truth <= result.high


def raw_difference(run, treatment):
    """Newcombe's interval as if the weights had not moved."""
    one = sum((epoch.moments[treatment] for epoch in run), Moments.zero())
    other = sum((epoch.moments[name(0)] for epoch in run), Moments.zero())
    return newcombe(one.sum_y, one.n, other.sum_y, other.n)


def studentised(runs, kind, treatment, truth):
    """Coverage of estimate +- 1.96 roots of the sum of squared scores, as published."""
    held = 0
    for run in runs:
        pair = weigh(
            run,
            kind=kind,
            treatment=treatment,
            control=name(0),
            minimum_effective_sample_size=0,
        )
        error = pair.treatment.value - pair.control.value - truth
        held += abs(error) <= 1.959964 * math.sqrt(pair.realised_variance())
    return held / len(runs)


def tally(runs, kind, treatment, truth, lift):
    """Shares of the shown intervals that hold the truth, and how many are shown."""
    options = {"kind": kind, "treatment": treatment, "control": name(0)}
    shown = held = lifted = 0
    for epochs in runs:
        result = contrast(epochs, **options)
        if isinstance(result, Withheld):
            continue
        shown += 1
        held += holds(result, truth)
        relative = contrast_lift(epochs, **options)
        # A variant without any success has no lift, and its interval no upper end.
        lifted += isinstance(relative, Withheld) or holds(relative, lift)
    return held / shown, lifted / shown, shown


@pytest.mark.parametrize(
    ("rates", "design"),
    [
        ((0.05, 0.05, 0.05), {"epochs": 20, "units": 1000, "floor": 0.01}),
        ((0.04, 0.05, 0.06), {"epochs": 20, "units": 1000, "floor": 0.01}),
        ((0.06, 0.05, 0.04), {"epochs": 20, "units": 1000, "floor": 0.01}),
        ((0.04, 0.05, 0.06), {"epochs": 20, "units": 1000, "floor": 0.05}),
        ((0.05, 0.05, 0.05), {"epochs": 5, "units": 400, "floor": 0.01}),
        ((0.05,) * 10, {"epochs": 20, "units": 1000, "floor": 0.01}),
        (
            (0.05, 0.05, 0.05),
            {"epochs": 20, "units": 1000, "floor": 0.01, "season": 0.02},
        ),
        (
            (0.05, 0.05, 0.08),
            {"epochs": 20, "units": 1000, "floor": 0.05, "trend": 0.1},
        ),
    ],
)
def test_rates(rates, design, report, tolerance):
    rng = np.random.default_rng(301)
    trials = 1500
    runs = [run_rates(rng, rates, **design) for _ in range(trials)]
    last = len(rates) - 1
    truth = rates[last] - rates[0]
    share, lifted, shown = tally(
        runs, "proportion", name(last), truth, rates[last] / rates[0] - 1
    )
    setting = "ten arms at 0.05" if last == 9 else ", ".join(map(str, rates))
    setting += f"; {design['epochs']} epochs of {design['units']:,}"
    extras = {key: design[key] for key in design if key not in ("epochs", "units")}
    setting += "".join(f", {key} {value}" for key, value in extras.items())
    report("AIPW, Wilson limits", setting, share, shown)
    raw = np.mean([holds(raw_difference(run, name(last)), truth) for run in runs])
    report("(Newcombe on raw counts, not used)", setting, raw, trials)
    plain = studentised(runs, "proportion", name(last), truth)
    report("(AIPW, studentised, not used)", setting, plain, trials)
    assert share > 0.95 - tolerance(0.95, shown)
    if not {"season", "trend"} & design.keys():
        report("AIPW, Wilson limits, lift", setting, lifted, shown)
        assert lifted > 0.95 - tolerance(0.95, shown)


def test_thin_traffic(report):
    rng = np.random.default_rng(305)
    held = {"proportion": [], "mean": []}
    trials = 4000
    for _ in range(trials):
        run = run_rates(rng, (0.05, 0.05, 0.05), epochs=5, units=400, floor=0.01)
        for kind, seen in held.items():
            result = contrast(
                run,
                kind=kind,
                treatment=name(2),
                control=name(0),
                minimum_effective_sample_size=2,
            )
            if result.overlap.effective_sample_size < MINIMUM_EFFECTIVE_SAMPLE_SIZE:
                seen.append(isinstance(result, Withheld) or holds(result, 0))
    for kind, seen in held.items():
        setting = "the runs with an effective size below 100, which are withheld"
        report(f"(AIPW, {kind}, if it were shown)", setting, np.mean(seen), len(seen))
        assert np.mean(seen) < 0.95


@pytest.mark.parametrize("kind", ["mean", "ratio"])
@pytest.mark.parametrize("effects", [(1.0, 1.0, 1.0), (1.0, 1.1, 1.3)])
def test_means_and_ratios(kind, effects, report, tolerance):
    rng = np.random.default_rng(302)
    trials = 1000
    runs = [
        run_values(rng, kind, effects, epochs=15, units=1000, floor=0.05)
        for _ in range(trials)
    ]
    base = 0.1 * math.exp(0.5) if kind == "mean" else 0.1
    gap = effects[2] - effects[0]
    share, lifted, shown = tally(runs, kind, name(2), base * gap, gap)
    setting = f"values x {effects}; 15 epochs of 1,000, floor 0.05"
    report(f"AIPW, {kind}", setting, share, shown)
    report(f"AIPW, lift of {kind}s", setting, lifted, shown)
    plain = studentised(runs, kind, name(2), base * gap)
    report(f"(AIPW, {kind}, studentised, not used)", setting, plain, trials)
    assert share > 0.94 - tolerance(0.94, shown)
    assert lifted > 0.93 - tolerance(0.93, shown)


def test_watched(report):
    rng = np.random.default_rng(303)
    trials, alarms = 600, 0
    for _ in range(trials):
        run = run_rates(rng, (0.05, 0.05, 0.05), epochs=20, units=1000, floor=0.01)
        alarms += any(
            not isinstance(result, Withheld) and result.excludes_zero
            for result in (
                contrast_sequence(
                    run[:look],
                    kind="proportion",
                    treatment=name(2),
                    control=name(0),
                    planned_units=20_000,
                )
                for look in range(1, 21)
            )
        )
    share = alarms / trials
    report("AIPW sequence", "A/A/A at 0.05, floor 0.01, 20 looks", share, trials)
    assert share < 0.05


def test_the_weighted_estimate_has_less_bias_than_the_raw_one():
    rng = np.random.default_rng(304)
    rates, trials = (0.06, 0.05, 0.04), 1500
    weighted, raw = [], []
    for _ in range(trials):
        run = run_rates(rng, rates, epochs=20, units=1000, floor=0.01)
        result = contrast(run, kind="proportion", treatment=name(2), control=name(0))
        weighted.append(result.estimate + 0.02)
        raw.append(raw_difference(run, name(2)).estimate + 0.02)
    error = np.std(weighted) / math.sqrt(trials)
    assert np.mean(raw) < np.mean(weighted) - 4 * error
    assert abs(np.mean(weighted)) < 0.0015
