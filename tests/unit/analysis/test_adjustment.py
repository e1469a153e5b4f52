"""CUPED against tea-tasting, statsmodels, published numbers, and the units themselves."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import tea_tasting as tea
from hypothesis import given
from hypothesis import strategies as st

from experiment_service.analysis import adaptive, estimate, sequential
from experiment_service.analysis.adjustment import (
    CovariateEpoch,
    CovariateMoments,
    adjust,
    adjusted_epochs,
)
from experiment_service.analysis.interval import Withheld
from experiment_service.analysis.moments import Moments

PAIR = {"treatment": "b", "control": "a"}


def epoch_of(control, treatment, **options):
    return CovariateEpoch(
        weights={"a": 0.5, "b": 0.5},
        cells={"a": control, "b": treatment},
        **options,
    )


def total_slope(*arms):
    """Slope of y on z over all units at once, which is tea-tasting's theta."""
    every = sum(arms, CovariateMoments.zero())
    n, sum_y = every.moments.n, every.moments.sum_y
    return (every.sum_yz - sum_y * every.sum_z / n) / (
        every.sum_zz - every.sum_z**2 / n
    )


def limits(result):
    return [result.estimate, result.low, result.high]


def draw(rng, n, effect=0.0):
    """Return (y, z) of n units, with a correlation of about 0.8."""
    z = rng.gamma(2.0, 3.0, n)
    return 2 + effect + 0.9 * z + rng.normal(0, 3, n), z


def tea_limits(metric, arms, names):
    rows = pd.concat(
        pd.DataFrame(dict(zip(names, arm, strict=True))).assign(variant=variant)
        for variant, arm in enumerate(arms)
    )
    found = tea.Experiment(metric=metric).analyze(rows)["metric"]
    return [
        [found.effect_size, found.effect_size_ci_lower, found.effect_size_ci_upper],
        [
            found.rel_effect_size,
            found.rel_effect_size_ci_lower,
            found.rel_effect_size_ci_upper,
        ],
    ]


def test_published_values():
    """tea-tasting 1.14.0, make_users_data(n_users=100, covariates=True, seed=42)."""
    control = CovariateMoments(
        moments=Moments(n=53, sum_y=30, sum_yy=58, sum_x=53, sum_xx=53, sum_xy=30),
        sum_z=28,
        sum_zz=90,
        sum_yz=56,
        sum_xz=28,
    )
    treatment = CovariateMoments(
        moments=Moments(n=47, sum_y=18, sum_yy=30, sum_x=47, sum_xx=47, sum_xy=18),
        sum_z=15,
        sum_zz=31,
        sum_yz=23,
        sum_xz=15,
    )
    theta = total_slope(control, treatment)
    (epoch,) = adjusted_epochs([epoch_of(control, treatment)], {"a": theta, "b": theta})
    after = epoch.moments
    assert after["a"].mean == pytest.approx(0.510073, abs=5e-7)
    assert after["b"].mean == pytest.approx(0.446087, abs=5e-7)
    result = estimate.difference("mean", after["b"], after["a"])
    assert limits(result) == pytest.approx([-0.063986, -0.287369, 0.159397], abs=5e-7)


@pytest.mark.parametrize(("n1", "n0", "effect"), [(400, 600, 0.5), (40, 31, -1.0)])
def test_means_are_those_of_tea_tasting(n1, n0, effect):
    rng = np.random.default_rng(n1)
    arms = [draw(rng, n0), draw(rng, n1, effect)]
    control, treatment = (CovariateMoments.from_arrays(*arm) for arm in arms)
    theta = total_slope(control, treatment)
    (epoch,) = adjusted_epochs([epoch_of(control, treatment)], {"a": theta, "b": theta})
    pair = epoch.moments["b"], epoch.moments["a"]
    metric = tea.Mean("y", "z", use_t=True, equal_var=False)
    difference, lift = tea_limits(metric, arms, ["y", "z"])
    assert limits(estimate.difference("mean", *pair)) == pytest.approx(difference, 1e-9)
    assert limits(estimate.log_scale_lift("mean", *pair)) == pytest.approx(lift, 1e-9)


def test_ratios_are_those_of_tea_tasting():
    """To the last digit where variants share x and z: elsewhere to second order."""
    rng = np.random.default_rng(7)
    x = 1.0 + rng.poisson(4.0, 800)
    z = 0.4 * x + rng.gamma(2.0, 1.0, 800)
    arms = [(rng.poisson(rate * z).astype(float), x, z) for rate in (0.5, 0.55)]
    cells = [CovariateMoments.from_arrays(y, z, x) for y, x, z in arms]
    result = adjust([epoch_of(*cells)], kind="ratio", **PAIR)
    expected, _ = tea_limits(
        tea.RatioOfMeans("y", "x", "z", use_t=True, equal_var=False),
        arms,
        ["y", "x", "z"],
    )
    shown = estimate.difference("ratio", result.pooled("b"), result.pooled("a"))
    assert limits(shown) == pytest.approx(expected, rel=1e-9)
    assert result.variance_reduction > 0.05


@pytest.mark.parametrize("moved", [False, True])
def test_theta_and_difference_are_those_of_least_squares(moved):
    """Ordinary least squares of y on variant and z; its robust error in the limit."""
    rng = np.random.default_rng(11)
    arms = [draw(rng, 3000), draw(rng, 9000 if moved else 3000, 0.5)]
    cells = [CovariateMoments.from_arrays(*arm) for arm in arms]
    result = adjust([epoch_of(*cells)], kind="mean", **PAIR)
    rows = pd.concat(
        pd.DataFrame({"y": y, "z": z, "t": float(t)}) for t, (y, z) in enumerate(arms)
    )
    fit = smf.ols("y ~ t + z", rows).fit(cov_type="HC1")
    shown = estimate.difference("mean", result.pooled("b"), result.pooled("a"))
    assert result.coefficients["a"] == pytest.approx(fit.params["z"], rel=1e-10)
    assert shown.estimate == pytest.approx(fit.params["t"], rel=1e-10)
    half = (shown.high - shown.low) / 2
    assert half == pytest.approx(1.96 * fit.bse["t"], rel=2e-3)
    correlation = np.corrcoef(*arms[0])[0, 1]
    assert result.variance_reduction == pytest.approx(correlation**2, abs=0.03)


def test_theta_is_taken_within_epochs_and_segments():
    """As by least squares with a dummy for each epoch, segment and variant."""
    rng = np.random.default_rng(12)
    epochs, rows = [], []
    for number, (shift, segment) in enumerate([(0, "new"), (30, "old"), (60, "new")]):
        arms = [draw(rng, 200), draw(rng, 300, 0.5)]
        arms = [(y - shift, z + shift) for y, z in arms]
        cells = [CovariateMoments.from_arrays(*arm) for arm in arms]
        epochs.append(epoch_of(*cells, segment=segment))
        for t, (y, z) in enumerate(arms):
            rows.append(pd.DataFrame({"y": y, "z": z, "cell": f"{number} {t}"}))
    fit = smf.ols("y ~ C(cell) + z", pd.concat(rows)).fit()
    result = adjust(epochs, kind="mean", **PAIR)
    assert result.coefficients["b"] == pytest.approx(fit.params["z"], rel=1e-9)
    assert [each.segment for each in result.epochs] == ["new", "old", "new"]


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_adjusted_moments_are_those_of_adjusted_units(shift):
    rng = np.random.default_rng(3)
    x = 1.0 + rng.poisson(4.0, (2, 500))
    z = x + rng.gamma(2.0, 1.0, (2, 500)) + shift
    y = rng.poisson(0.5 * (z - shift)) + 0.01 * shift
    cells = [CovariateMoments.from_arrays(*arm) for arm in zip(y, z, x, strict=True)]
    (epoch,) = adjusted_epochs([epoch_of(*cells)], {"a": 0.4, "b": 0.6})
    for name, theta, arm in (("a", 0.4, 0), ("b", 0.6, 1)):
        units = Moments.from_arrays(y[arm] - theta * (z[arm] - z.mean()), x[arm])
        own = epoch.moments[name]
        assert own.mean == pytest.approx(units.mean, rel=1e-9)
        assert own.variance == pytest.approx(units.variance, rel=1e-3)
        assert own.ratio_variance == pytest.approx(units.ratio_variance, rel=1e-3)


def test_a_lift_has_a_theta_in_proportion_to_the_value():
    rng = np.random.default_rng(5)
    z = rng.gamma(2.0, 3.0, 1000)
    arms = [(c * (1 + 0.9 * z) + rng.normal(0, 1, 1000), z) for c in (1.0, 1.5)]
    cells = [CovariateMoments.from_arrays(*arm) for arm in arms]
    epochs = [epoch_of(*cells)]
    result = adjust(epochs, kind="mean", for_lift=True, **PAIR)
    values = {"a": arms[0][0].mean(), "b": arms[1][0].mean()}
    shares = [result.coefficients[name] / values[name] for name in "ab"]
    assert shares[0] == pytest.approx(shares[1], rel=1e-12)
    plain = adjust(epochs, kind="mean", **PAIR)
    widths = [
        np.diff(limits(estimate.lift("mean", each.pooled("b"), each.pooled("a")))[1:])
        for each in (result, plain)
    ]
    # With effects in proportion, only a theta in proportion explains all.
    assert widths[0] < 0.8 * widths[1]


def test_every_interval_takes_an_adjusted_rate():
    rng = np.random.default_rng(8)
    z = rng.beta(1, 4, (2, 4000))
    y = (rng.random((2, 4000)) < z).astype(float)
    cells = [CovariateMoments.from_arrays(*arm) for arm in zip(y, z, strict=True)]
    result = adjust([epoch_of(*cells)] * 2, kind="proportion", **PAIR)
    assert result.kind == "mean"
    pair = result.pooled("b"), result.pooled("a")
    shown = [
        estimate.difference("mean", *pair),
        estimate.lift("mean", *pair),
        sequential.difference_sequence("mean", *pair, planned_units=20_000),
        adaptive.contrast(result.epochs, kind="mean", **PAIR),
    ]
    assert all(each.low < each.estimate < each.high for each in shown)
    assert shown[0].estimate == pytest.approx(shown[3].estimate, abs=1e-12)


@given(
    st.lists(
        st.tuples(
            st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.integers(0, 5)
        ),
        min_size=3,
        max_size=30,
    ),
    st.floats(-1e3, 1e3),
)  # fmt: skip
def test_no_units_give_a_negative_variance(units, theta):
    y, z, x = np.array(units, dtype=float).T
    cell = CovariateMoments.from_arrays(y, z, x)
    assert cell + CovariateMoments.zero() == cell
    exact = CovariateMoments.from_arrays(theta * z, z, x)
    for each in (cell, exact):
        (epoch,) = adjusted_epochs([epoch_of(each, each)], {"a": theta, "b": theta})
        assert epoch.moments["a"].variance >= 0


@pytest.mark.parametrize(
    ("kind", "y", "z", "words"),
    [
        ("mean", [1.0, 2.0] * 20, [1.0, 3.0] * 20, "needs 100 units"),
        ("mean", [1.0, 2.0] * 100, [1e6] * 200, "behaved the same before"),
        ("mean", [3.0] * 200, [1.0, 2.0] * 100, "same value"),
        ("proportion", [1.0] * 5 + [0.0] * 200, [1.0] * 205, "10 successes"),
        ("ratio", [1.0, 2.0] * 100, [1.0, 3.0] * 100, "denominator"),
    ],
)
def test_without_enough_to_go_by_there_is_no_adjustment(kind, y, z, words):
    x = np.zeros(len(y)) if kind == "ratio" else None
    cell = CovariateMoments.from_arrays(y, z, x)
    result = adjust([epoch_of(cell, cell)], kind=kind, **PAIR)
    assert isinstance(result, Withheld)
    assert words in result.reason


def test_a_variant_without_units_has_no_adjustment_and_stops_no_other():
    rng = np.random.default_rng(2)
    cell = CovariateMoments.from_arrays(*draw(rng, 200))
    epoch = CovariateEpoch(
        weights={"a": 0.5, "b": 0.5, "c": 0.0},
        cells={"a": cell, "b": cell, "c": CovariateMoments.zero()},
    )
    assert adjust([epoch], kind="mean", **PAIR).pooled("c") == Moments.zero()
    assert isinstance(
        adjust([epoch], kind="mean", treatment="c", control="a"), Withheld
    )
    assert isinstance(adjust([], kind="mean", **PAIR), Withheld)
    negative = CovariateMoments.from_arrays(*(-each for each in draw(rng, 200)))
    lifted = adjust([epoch_of(cell, negative)], kind="mean", for_lift=True, **PAIR)
    assert isinstance(lifted, Withheld)


@pytest.mark.parametrize(
    ("sums", "words"),
    [
        ({"sum_zz": -1}, "sum_zz is -1"),
        ({"sum_z": 30}, "sum_z is 30"),
        ({"sum_yz": float("nan")}, "sum_yz is nan"),
        ({"sum_yz": 99}, "sum_yz is 99"),
    ],
)
def test_impossible_sums_are_refused(sums, words):
    good = {"sum_z": 10, "sum_zz": 20, "sum_yz": 10, "sum_xz": 10}
    with pytest.raises(ValueError, match=words):
        CovariateMoments(moments=Moments.from_counts(10, 10), **(good | sums))
