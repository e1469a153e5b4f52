import numpy as np
import pytest
from scipy import stats

from experiment_service.analysis.contrasts import plain_contrast, weighted_contrast
from experiment_service.analysis.interval import Withheld
from experiment_service.analysis.moments import EpochMoments, Moments


def test_the_variance_of_a_mean_is_that_of_scipy():
    rng = np.random.default_rng(1)
    treatment, control = rng.gamma(1, 2, 190), rng.gamma(1, 1, 170)
    found = plain_contrast(
        "mean", Moments.from_arrays(treatment), Moments.from_arrays(control)
    )
    oracle = stats.ttest_ind(treatment, control, equal_var=False)
    assert found.estimate / found.variance**0.5 == pytest.approx(oracle.statistic)


def test_a_rate_is_compared_with_the_pooled_variance():
    """So its square is the chi-squared of the fourfold table."""
    found = plain_contrast(
        "proportion", Moments.from_counts(30, 200), Moments.from_counts(12, 150)
    )
    table = [[30, 170], [12, 138]]
    oracle = stats.chi2_contingency(table, correction=False)
    assert found.estimate**2 / found.variance == pytest.approx(oracle.statistic)


def test_a_ratio_has_its_delta_variance():
    rng = np.random.default_rng(2)
    x = 1.0 + rng.poisson(3, (2, 400))
    y = rng.binomial(x.astype(int), 0.2)
    sides = [Moments.from_arrays(*arm) for arm in zip(y, x, strict=True)]
    r = y.sum(axis=1) / x.sum(axis=1)
    linear = (y - r[:, None] * x) / x.mean(axis=1)[:, None]
    found = plain_contrast("ratio", *sides)
    assert found.estimate == pytest.approx(r[0] - r[1])
    assert found.variance == pytest.approx((linear.var(axis=1, ddof=1) / 400).sum())


def test_without_moving_weights_both_agree():
    rng = np.random.default_rng(3)
    sides = {name: Moments.from_arrays(rng.gamma(1, 2, 5000)) for name in "ab"}
    epoch = EpochMoments(weights={"a": 0.5, "b": 0.5}, moments=sides)
    plain = plain_contrast("mean", sides["b"], sides["a"])
    moving = weighted_contrast([epoch], kind="mean", treatment="b", control="a")
    assert moving.estimate == pytest.approx(plain.estimate)
    assert moving.variance == pytest.approx(plain.variance, rel=1e-3)
    nobody = EpochMoments(weights={"a": 0.5, "b": 0.5}, moments={})
    assert isinstance(
        weighted_contrast([nobody], kind="mean", treatment="b", control="a"), Withheld
    )


@pytest.mark.parametrize(
    ("kind", "one", "other", "words"),
    [
        (
            "mean",
            Moments.from_counts(20, 99),
            Moments.from_counts(20, 190),
            "100 units",
        ),
        (
            "proportion",
            Moments.from_counts(4, 190),
            Moments.from_counts(5, 190),
            "10 successes",
        ),
        (
            "mean",
            Moments.from_counts(190, 190),
            Moments.from_counts(190, 190),
            "same value",
        ),
        (
            "ratio",
            Moments.from_arrays(np.ones(190), np.zeros(190)),
            Moments.from_counts(9, 190),
            "denominator",
        ),
    ],
)
def test_too_few_data_are_withheld(kind, one, other, words):
    assert words in plain_contrast(kind, one, other).reason
