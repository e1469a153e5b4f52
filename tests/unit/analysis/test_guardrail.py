"""Guardrails: the scaled contrast against SciPy-free arithmetic, and the verdicts."""

import math

import numpy as np
import pytest

from experiment_service.analysis import sequential
from experiment_service.analysis.guardrail import excess, judge
from experiment_service.analysis.interval import Interval, Withheld
from experiment_service.analysis.moments import EpochMoments, Moments

HALF = {"a": 0.5, "b": 0.5}


def entry(a, b, weights=None):
    return EpochMoments(weights=weights or HALF, moments={"a": a, "b": b})


def ask(epochs, kind="mean", factor=0.9, *, moved=False):
    return excess(
        epochs,
        kind=kind,
        treatment="b",
        control="a",
        factor=factor,
        moved=moved,
        level=0.95,
        planned_units=20_000,
    )


def test_of_means_it_is_the_contrast_with_the_scaled_control():
    rng = np.random.default_rng(2)
    a, b = rng.gamma(2, 3, 900), rng.gamma(2, 2.9, 1100)
    found = ask([entry(Moments.from_arrays(a), Moments.from_arrays(b))])
    estimate = b.mean() - 0.9 * a.mean()
    error = math.sqrt(b.var(ddof=1) / 1100 + 0.81 * a.var(ddof=1) / 900)
    half = sequential.half_width(error, 2000, planned_units=20_000, level=0.95)
    assert found.estimate == pytest.approx(estimate)
    assert (found.low, found.high) == pytest.approx((estimate - half, estimate + half))


def test_of_rates_and_ratios_too():
    rng = np.random.default_rng(3)
    rates = ask(
        [entry(Moments.from_counts(300, 3000), Moments.from_counts(320, 3000))],
        kind="proportion",
        factor=1.1,
    )
    assert rates.estimate == pytest.approx(320 / 3000 - 1.1 * 0.1)
    x = rng.poisson(3, 2000) + 1
    y = rng.binomial(x, 0.2)
    moments = Moments.from_arrays(y, x)
    ratios = ask([entry(moments, moments)], kind="ratio", factor=0.8)
    assert ratios.estimate == pytest.approx(0.2 * y.sum() / x.sum())


def test_moved_weights_are_weighed():
    epochs = [
        entry(Moments.from_counts(100, 1000), Moments.from_counts(120, 1000)),
        entry(
            Moments.from_counts(180, 1800),
            Moments.from_counts(25, 200),
            {"a": 0.9, "b": 0.1},
        ),
    ]
    found = ask(epochs, kind="proportion", moved=True)
    assert found.method.startswith("AIPW")
    assert found.estimate == pytest.approx(0.12 - 0.9 * 0.1, abs=0.01)


def test_too_few_units_or_clicks_are_withheld():
    few = [entry(Moments.from_counts(10, 100), Moments.from_counts(10, 100))]
    assert isinstance(ask(few, kind="proportion"), Withheld)
    rare = [entry(Moments.from_counts(5, 3000), Moments.from_counts(50, 3000))]
    assert "10 successes" in ask(rare, kind="proportion").reason


def interval(low, high):
    return Interval(
        estimate=(low + high) / 2,
        low=low,
        high=high,
        level=0.95,
        method="m",
        validity="v",
    )


@pytest.mark.parametrize(
    ("difference", "beyond", "verdict"),
    [
        ((-1, 1), (0.1, 2), "held"),
        ((-1, -0.1), (0.1, 1), "held"),
        ((-2, -0.5), (-1, 0.5), "breached"),
        ((-2, 1), (-1, 2), "open"),
        ((0.1, 2), (-0.5, 3), "open"),
    ],
)
def test_verdicts_mirror_when_lower_is_better(difference, beyond, verdict):
    higher = judge(interval(*difference), interval(*beyond), lower_is_better=False)
    mirrored = [interval(-high, -low) for low, high in (difference, beyond)]
    assert higher == judge(*mirrored, lower_is_better=True) == verdict


def test_what_is_withheld_leaves_it_open():
    nothing = Withheld(reason="too few")
    assert judge(nothing, nothing, lower_is_better=False) == "open"
