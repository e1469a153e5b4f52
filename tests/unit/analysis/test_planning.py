"""Planning against statsmodels, against itself backwards, and by simulation."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import samplesize_proportions_2indep_onetail

from experiment_service.analysis.moments import Moments
from experiment_service.analysis.planning import (
    Design,
    Spread,
    detectable_difference,
    needed_units,
)
from experiment_service.analysis.proportion import newcombe
from experiment_service.analysis.sequential import difference_sequence, half_width


@pytest.mark.parametrize("share", [0.5, 0.2])
@pytest.mark.parametrize("power", [0.8, 0.95])
@pytest.mark.parametrize("difference", [0.3, -0.05])
def test_units_of_means_are_those_of_statsmodels(difference, power, share):
    spread = Spread(value=4.0, deviation=2.0)
    design = Design(power=power, treatment_share=share)
    ratio = (1 - share) / share
    treated = NormalIndPower().solve_power(
        effect_size=abs(difference) / 2.0, alpha=0.05, power=power, ratio=ratio
    )
    units = needed_units(spread, difference, design)
    # statsmodels adds the other tail, which is below 1e-5 here.
    assert units == pytest.approx(treated * (1 + ratio), rel=1e-4, abs=1)


@pytest.mark.parametrize("rate", [0.02, 0.3])
@pytest.mark.parametrize("difference", [0.005, 0.1, -0.01])
def test_units_of_rates_are_those_of_statsmodels(rate, difference):
    each = samplesize_proportions_2indep_onetail(
        -difference if difference < 0 else difference,
        rate + min(difference, 0),
        power=0.8,
        alpha=0.025,
        alternative="larger",
    )
    # There the null has a pooled variance; differences between the two are of the
    # order of the difference of the rates.
    units = needed_units(Spread.of_rate(rate), difference, Design())
    assert units == pytest.approx(2 * each, rel=0.05)


@pytest.mark.parametrize(
    "design",
    [
        Design(),
        Design(any_time=True, comparisons=3, treatment_share=0.1),
        Design(variance_explained=0.4, level=0.99, power=0.9),
    ],
)
@pytest.mark.parametrize(
    "spread", [Spread.of_rate(0.05), Spread(value=1.0, deviation=3.0)]
)
def test_the_detectable_difference_is_the_one_that_needs_so_many_units(spread, design):
    units = 50_000.0
    difference = detectable_difference(spread, units, design)
    assert needed_units(spread, difference, design) == pytest.approx(units, abs=1.5)


def test_adjustment_saves_what_it_explains():
    plain = needed_units(Spread(value=1, deviation=1), 0.02, Design())
    adjusted = needed_units(
        Spread(value=1, deviation=1), 0.02, Design(variance_explained=0.36)
    )
    assert adjusted / plain == pytest.approx(0.64, abs=1e-4)


@pytest.mark.parametrize("explained", [0.0, 0.25, 0.64])
@pytest.mark.parametrize("kind", ["proportion", "mean", "ratio"])
def test_adjusted_units_are_those_of_statsmodels(kind, explained):
    """With the spread that is left, sqrt(1 - rho^2) of what it was, for every kind."""
    rng = np.random.default_rng(6)
    x = 1.0 + rng.poisson(4.0, 2000)
    moments = {
        "proportion": Moments.from_counts(200, 2000),
        "mean": Moments.from_arrays(rng.gamma(0.5, 2.0, 2000)),
        "ratio": Moments.from_arrays(rng.binomial(x.astype(int), 0.3), x),
    }[kind]
    control = Spread.of_moments(kind, moments)
    difference = 0.05 * control.value
    spreads = [control.deviation, control.shifted(difference).deviation]
    left = np.sqrt(np.mean(np.square(spreads)) * (1 - explained))
    each = NormalIndPower().solve_power(
        effect_size=difference / left, alpha=0.05, power=0.8
    )
    units = needed_units(control, difference, Design(variance_explained=explained))
    assert units == pytest.approx(2 * each, rel=1e-4, abs=1)


def test_watching_costs_the_width_of_the_sequence():
    once, watched = (
        detectable_difference(Spread(value=1, deviation=1), 10_000, Design(any_time=a))
        for a in (False, True)
    )
    error = 2 / np.sqrt(10_000)
    half = half_width(error, 10_000, planned_units=10_000, level=0.95)
    extra = stats.norm.ppf(0.8) * error
    assert once == pytest.approx(stats.norm.isf(0.025) * error + extra)
    assert watched == pytest.approx(half + extra)


def test_spreads_of_moments_are_those_of_their_units():
    rng = np.random.default_rng(4)
    y, x = rng.poisson(2.0, 500).astype(float), rng.poisson(5.0, 500) + 1.0
    mean = Spread.of_moments("mean", Moments.from_arrays(y))
    assert (mean.value, mean.deviation) == pytest.approx((y.mean(), y.std(ddof=1)))
    ratio = Spread.of_moments("ratio", Moments.from_arrays(y, x))
    r = y.sum() / x.sum()
    linear = (y - r * x) / x.mean()
    assert (ratio.value, ratio.deviation) == pytest.approx((r, linear.std(ddof=1)))
    rate = Spread.of_moments("proportion", Moments.from_counts(30, 100))
    assert rate == Spread.of_rate(0.3)


@pytest.mark.parametrize("any_time", [False, True])
def test_the_plan_has_its_power(any_time):
    """Simulated tests of the planned size see the planned difference as often."""
    rng = np.random.default_rng(12)
    trials, rate, difference = 4000, 0.10, 0.02
    design = Design(any_time=any_time, treatment_share=0.4)
    units = needed_units(Spread.of_rate(rate), difference, design)
    treated = round(0.4 * units)
    control = units - treated
    seen = 0
    for won, base in zip(
        rng.binomial(treated, rate + difference, trials),
        rng.binomial(control, rate, trials),
        strict=True,
    ):
        if any_time:
            interval = difference_sequence(
                "proportion",
                Moments.from_counts(int(won), treated),
                Moments.from_counts(int(base), control),
                planned_units=units,
            )
        else:
            interval = newcombe(int(won), treated, int(base), control)
        seen += interval.low > 0
    assert abs(seen / trials - 0.8) < 4 * np.sqrt(0.8 * 0.2 / trials) + 0.005


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Spread.of_rate(0.0), "rate is 0.0"),
        (lambda: Spread.of_rate(float("nan")), "rate is nan"),
        (lambda: Spread(value=1, deviation=0), "deviation is 0"),
        (lambda: Spread(value=float("inf"), deviation=1), "value is inf"),
        (lambda: Spread.of_moments("mean", Moments.zero()), "there are 0 units"),
        (
            lambda: Spread.of_moments("mean", Moments.from_arrays([1.0, 1.0])),
            "deviation is 0",
        ),
        (lambda: Design(power=1), "power is 1"),
        (lambda: Design(level=1.5), "level is 1.5"),
        (lambda: Design(treatment_share=0), "treatment_share is 0"),
        (lambda: Design(variance_explained=1), "variance_explained is 1"),
        (lambda: Design(comparisons=0), "comparisons is 0"),
        (
            lambda: needed_units(Spread.of_rate(0.1), 0, Design()),
            "difference is 0",
        ),
        (lambda: needed_units(Spread.of_rate(0.1), -0.2, Design()), "rate is -0.1"),
        (
            lambda: detectable_difference(Spread.of_rate(0.1), 1, Design()),
            "units is 1",
        ),
        (
            lambda: detectable_difference(Spread.of_rate(0.9), 20, Design()),
            "even a rate of 100%",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_in_words(make, words):
    with pytest.raises(ValueError, match=words):
        make()
