"""Cochran's Q against the meta-analysis of statsmodels."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from experiment_service.analysis.contrasts import Contrast, plain_contrast
from experiment_service.analysis.heterogeneity import heterogeneity
from experiment_service.analysis.interval import Withheld
from experiment_service.analysis.moments import Moments
from experiment_service.analysis.significance import corrected


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("segments", [2, 7])
def test_the_test_is_that_of_statsmodels(segments, scale):
    rng = np.random.default_rng(segments)
    effects = scale * rng.normal(0.1, 1.2, segments)
    variances = scale**2 * rng.gamma(2, 0.3, segments)
    oracle = combine_effects(effects, variances)
    found = heterogeneity(
        {
            f"s{k}": Contrast(estimate=d, variance=v)
            for k, (d, v) in enumerate(zip(effects, variances, strict=True))
        }
    )
    homogeneity = oracle.test_homogeneity()
    assert found.statistic == pytest.approx(homogeneity.statistic, rel=1e-9)
    assert found.p_value == pytest.approx(homogeneity.pvalue, rel=1e-9)
    assert found.degrees == segments - 1
    assert found.inconsistency == pytest.approx(max(oracle.i2, 0), rel=1e-9)
    assert found.effect == pytest.approx(oracle.mean_effect_fe, rel=1e-9)


def test_two_segments_are_a_z_test_of_their_difference():
    found = heterogeneity(
        {
            "new": Contrast(estimate=0.3, variance=0.01),
            "old": Contrast(estimate=-0.1, variance=0.02),
        }
    )
    z = 0.4 / np.sqrt(0.03)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(z), rel=1e-12)


def test_equal_effects_have_no_inconsistency():
    same = Contrast(estimate=0.25, variance=0.5)
    found = heterogeneity({"a": same, "b": same, "c": same})
    assert (found.statistic, found.p_value, found.inconsistency) == (0.0, 1.0, 0.0)


def test_segments_with_too_few_data_are_named():
    contrasts = {
        "phone": plain_contrast(
            "proportion", Moments.from_counts(90, 500), Moments.from_counts(50, 500)
        ),
        "desk": plain_contrast(
            "proportion", Moments.from_counts(50, 500), Moments.from_counts(90, 500)
        ),
        "watch": plain_contrast(
            "proportion", Moments.from_counts(1, 9), Moments.from_counts(0, 9)
        ),
    }
    found = heterogeneity(contrasts)
    assert (found.segments, found.left_out) == (("phone", "desk"), ("watch",))
    assert found.p_value < 1e-6
    del contrasts["desk"]
    assert isinstance(heterogeneity(contrasts), Withheld)
    assert isinstance(heterogeneity({}), Withheld)


def test_attributes_times_metrics_are_corrected_as_one_family():
    p_values = {
        ("device", "ctr"): 0.01,
        ("device", "orders"): 0.2,
        ("age", "ctr"): 0.03,
    }
    holm = corrected(p_values, "holm")
    assert holm["device", "ctr"] == pytest.approx(0.03)
    assert corrected(p_values, "benjamini_hochberg")["age", "ctr"] == pytest.approx(
        0.045
    )
