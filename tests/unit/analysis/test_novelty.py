"""The trend of daily effects against weighted least squares of statsmodels."""

import numpy as np
import pytest
import statsmodels.api as sm

from experiment_service.analysis.contrasts import Contrast
from experiment_service.analysis.interval import Withheld
from experiment_service.analysis.novelty import novelty, trend


def days(effects, variance=1e-4):
    return {
        day: Contrast(estimate=effect, variance=variance)
        for day, effect in enumerate(effects)
    }


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_the_line_is_that_of_weighted_least_squares(scale):
    rng = np.random.default_rng(4)
    at = np.array([0.0, 1, 2, 4, 5, 9, 14])
    effects = scale * (0.3 - 0.05 * at + rng.normal(0, 0.2, 7))
    variances = scale**2 * rng.gamma(2, 0.02, 7)
    design = sm.add_constant(at)
    fit = sm.WLS(effects, design, weights=1 / variances).fit(cov_type="fixed scale")
    found = trend(
        {
            day: Contrast(estimate=d, variance=v)
            for day, d, v in zip(at, effects, variances, strict=True)
        }
    )
    assert found.slope == pytest.approx(fit.params[1], rel=1e-9)
    assert found.standard_error == pytest.approx(fit.bse[1], rel=1e-9)
    assert found.p_value == pytest.approx(fit.pvalues[1], rel=1e-9)
    assert [found.first, found.last] == pytest.approx(
        fit.fittedvalues[[0, -1]], rel=1e-9
    )


@pytest.mark.parametrize(
    ("effects", "status", "words"),
    [
        ([0.1, 0.08, 0.06, 0.04, 0.02], "warning", "The effect fades"),
        ([-0.1, -0.08, -0.06, -0.04, -0.02], "warning", "The effect fades"),
        ([0.02, 0.04, 0.06, 0.08, 0.1], "warning", "The effect grows"),
        ([0.1, 0.05, 0.0, -0.05, -0.1], "warning", "The effect changes sign"),
        ([0.06, 0.03, 0.01, 0.0, 0.01], "warning", "The effect fades"),
        ([0.05, 0.06, 0.05, 0.06, 0.05], "ok", "No sign"),
    ],
)
def test_the_course_is_told_in_words(effects, status, words):
    check = novelty(days(effects))
    assert (check.status, check.name) == (status, "novelty")
    assert check.message.startswith(words)
    assert ("Usual causes" in check.message) is (status == "warning")


def test_days_with_too_few_units_are_left_out():
    known = days([0.1, 0.08, 0.06, 0.04, 0.02])
    with_gaps = known | {9: Withheld(reason="There are fewer than 100 units.")}
    assert novelty(with_gaps) == novelty(known)
    del with_gaps[4]
    check = novelty(with_gaps)
    assert (check.status, check.value) == ("not_enough_data", None)
    assert "4 days" in check.message


def test_a_line_needs_two_days():
    with pytest.raises(ValueError, match="there are 1 days"):
        trend(days([0.1]))
