"""Gain over control: against the same scores unit by unit, and its coverage."""

import numpy as np
import pytest

from experiment_service.analysis.gain import Gain, gain_over_control
from experiment_service.analysis.interval import Withheld
from experiment_service.analysis.moments import EpochMoments, Moments
from experiment_service.analysis.sequential import half_width

VARIANTS = ("control", "knn", "als")
WEIGHTS = [(1 / 3, 1 / 3, 1 / 3), (0.2, 0.2, 0.6), (0.05, 0.15, 0.8)]


def units(rng, kind, count=400):
    """Rows (epoch, variant, y, x) of three epochs."""
    rows = []
    for epoch, weights in enumerate(WEIGHTS):
        for variant in rng.choice(3, size=count, p=weights):
            x = 1 + rng.poisson(1.0) if kind == "ratio" else 1
            rate = (0.1, 0.12, 0.2)[variant]
            if kind == "proportion":
                y = float(rng.random() < rate)
            elif kind == "mean":
                y = rng.exponential(10 * rate)
            else:
                y = float(rng.binomial(x, rate))
            rows.append((epoch, variant, y, x))
    return np.array(rows)


def epochs_of(rows, kind):
    epochs = []
    for epoch, weights in enumerate(WEIGHTS):
        moments = {}
        for variant, name in enumerate(VARIANTS):
            own = rows[(rows[:, 0] == epoch) & (rows[:, 1] == variant)]
            x = own[:, 3] if kind == "ratio" else None
            moments[name] = Moments.from_arrays(own[:, 2], x)
        epochs.append(
            EpochMoments(
                weights=dict(zip(VARIANTS, weights, strict=True)), moments=moments
            )
        )
    return epochs


def gain_of(epochs, kind, **changes):
    options = {
        "control": "control",
        "planned_units": 1000.0,
        "minimum_effective_sample_size": 1.0,
    }
    return gain_over_control(epochs, kind=kind, **{**options, **changes})


def unit_by_unit(rows):
    """Value of the log and of the control, and the variance, from rows alone."""
    epoch, variant, y, x = rows.T
    e = np.array([weights[0] for weights in WEIGHTS])[epoch.astype(int)]
    is_control = variant == 0
    guess_y, guess_x = np.zeros(len(rows)), np.zeros(len(rows))
    for number in range(len(WEIGHTS)):
        past = is_control & ((epoch < number) | (number == 0) & (epoch == 0))
        guess_y[epoch == number] = y[past].mean()
        guess_x[epoch == number] = x[past].mean()
    score_y = guess_y + is_control * (y - guess_y) / e
    score_x = guess_x + is_control * (x - guess_x) / e
    earned, control = y.sum() / x.sum(), score_y.sum() / score_x.sum()
    influence = (y - earned * x) / x.sum()
    influence -= (score_y - control * score_x) / score_x.sum()
    squares = freedom = 0.0
    for number in range(3):
        own_y, own_x = y[variant == number], x[variant == number]
        z = (own_y - own_y.sum() / own_x.sum() * own_x) / own_x.mean()
        squares, freedom = squares + (z**2).sum(), freedom + len(z) - 1
    least = squares / freedom * ((1 - e) / e).sum() / len(rows) ** 2
    return earned, control, max((influence**2).sum(), least)


@pytest.mark.parametrize("kind", ["proportion", "mean", "ratio"])
def test_moments_give_what_the_units_give(kind):
    rows = units(np.random.default_rng(3), kind)
    found = gain_of(epochs_of(rows, kind), kind)
    earned, control, variance = unit_by_unit(rows)
    assert found.earned == pytest.approx(earned, rel=1e-12)
    assert found.control == pytest.approx(control, rel=1e-12)
    assert found.difference.estimate == pytest.approx(earned - control, rel=1e-9)
    assert found.units == len(rows)
    half = half_width(np.sqrt(variance), len(rows), planned_units=1000.0, level=0.95)
    assert found.difference.high - (earned - control) == pytest.approx(half, rel=1e-9)
    assert (earned - control) - found.difference.low == pytest.approx(half, rel=1e-9)


def test_without_a_bandit_it_is_the_difference_of_means():
    counts = {"control": (30, 500), "als": (60, 500)}
    moments = {name: Moments.from_counts(*each) for name, each in counts.items()}
    weights = {"control": 0.5, "als": 0.5}
    found = gain_of([EpochMoments(weights=weights, moments=moments)], "proportion")
    assert found.earned == pytest.approx(90 / 1000)
    assert found.control == pytest.approx(30 / 500)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({}, "control has no units"),
        ({"als": (5, 50)}, "control has no units"),
        ({"control": (0, 50), "als": (0, 50)}, "same value"),
    ],
)
def test_what_cannot_be_said_is_withheld(counts, words):
    moments = {name: Moments.from_counts(*each) for name, each in counts.items()}
    weights = {"control": 0.5, "als": 0.5}
    found = gain_of([EpochMoments(weights=weights, moments=moments)], "proportion")
    assert isinstance(found, Withheld)
    assert words in found.reason


def test_a_ratio_without_denominator_is_withheld():
    none = Moments(n=50, sum_y=0, sum_yy=0, sum_x=0, sum_xx=0, sum_xy=0)
    weights = {"control": 0.5, "als": 0.5}
    epoch = EpochMoments(weights=weights, moments={"control": none, "als": none})
    assert "denominator" in gain_of([epoch], "ratio").reason


def test_too_little_of_the_control_is_withheld():
    rows = units(np.random.default_rng(4), "proportion", count=100)
    found = gain_of(
        epochs_of(rows, "proportion"),
        "proportion",
        minimum_effective_sample_size=100.0,
    )
    assert "effective sample size" in found.reason


def test_it_covers_the_gain_of_a_bandit_that_adapts():
    """At 8 looks of 300 bandits, values drifting; stated level 0.9 over all looks."""
    rng = np.random.default_rng(20)
    arms, floor, looks, size = 3, 0.1, 8, 500
    missed = runs = 0
    for _ in range(300):
        won, n = np.zeros(arms), np.zeros(arms)
        weights = np.full(arms, 1 / arms)
        history, truth, outside = [], 0.0, False
        for look in range(looks):
            rates = np.array([0.1, 0.1, 0.14]) + 0.04 * np.sin(look)
            counts = rng.multinomial(size, weights)
            successes = rng.binomial(counts, rates)
            truth += float(weights @ rates - rates[0])
            history.append(
                EpochMoments(
                    weights=dict(zip(VARIANTS, weights.tolist(), strict=True)),
                    moments={
                        name: Moments.from_counts(s, m)
                        for name, s, m in zip(VARIANTS, successes, counts, strict=True)
                    },
                )
            )
            found = gain_of(history, "proportion", level=0.9, planned_units=2000.0)
            assert isinstance(found, Gain)
            interval, gain = found.difference, truth / (look + 1)
            outside = outside or not interval.low <= gain <= interval.high
            won, n = won + successes, n + counts
            draws = rng.beta(1 + won, 1 + n - won, (100, arms))
            best = np.bincount(draws.argmax(axis=1), minlength=arms) / 100
            weights = floor + (1 - arms * floor) * best
            weights = weights / weights.sum()
        missed += outside
        runs += 1
    error = np.sqrt(0.1 * 0.9 / runs)
    assert missed / runs <= 0.1 + 4 * error
