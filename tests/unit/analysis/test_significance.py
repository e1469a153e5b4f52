"""p-values against scipy and statsmodels, corrections against published examples."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from experiment_service.analysis.estimate import difference
from experiment_service.analysis.interval import Withheld
from experiment_service.analysis.moments import Moments
from experiment_service.analysis.sequential import difference_sequence
from experiment_service.analysis.significance import SMALLEST, corrected, p_value

RNG = np.random.default_rng(3)
A, B = RNG.normal(1.0, 2.0, 300), RNG.normal(1.3, 1.0, 200)


def welch_at(a, b):
    one, other = Moments.from_arrays(a), Moments.from_arrays(b)
    return lambda level: difference("mean", one, other, level=level)


@pytest.mark.parametrize("shift", [0.0, 0.1, -0.29, 0.6])
def test_of_welch_it_is_the_p_value_of_scipy(shift):
    expected = stats.ttest_ind(A + shift, B, equal_var=False).pvalue
    assert p_value(welch_at(A + shift, B)) == pytest.approx(expected, rel=1e-7)


def test_of_a_sequence_it_excludes_zero_exactly_when_its_interval_does():
    one, other = Moments.from_counts(330, 3000), Moments.from_counts(250, 3000)

    def at(level):
        return difference_sequence(
            "proportion", one, other, level=level, planned_units=5000
        )

    p = p_value(at)
    assert 1e-6 < p < 0.05
    assert at(1 - p * 1.001).excludes_zero
    assert not at(1 - p * 0.999).excludes_zero


def test_the_extremes():
    assert p_value(welch_at(A + 1000, B)) == SMALLEST
    same = np.array([0.0, 1.0, 2.0])
    assert p_value(welch_at(same, same)) == 1.0


def test_what_is_withheld_stays_withheld():
    found = p_value(welch_at(np.array([1.0, 1.0]), np.array([1.0, 1.0])))
    assert isinstance(found, Withheld)


def test_corrections_are_those_of_the_papers():
    """Benjamini and Hochberg (1995), their example of 15 tests."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    named = {f"h{i}": value for i, value in enumerate(p)}
    found = corrected(named, "benjamini_hochberg")
    # Four are rejected at 0.05 there, three by Hochberg's and Holm's procedures.
    assert sum(value <= 0.05 for value in found.values()) == 4
    assert sum(value <= 0.05 for value in corrected(named, "holm").values()) == 3
    assert corrected(named, "holm")["h0"] == pytest.approx(15 * 0.0001)
    assert found["h3"] == pytest.approx(0.0095 * 15 / 4)
    assert corrected({}, "holm") == {}


@pytest.mark.parametrize(
    ("correction", "theirs"), [("holm", "holm"), ("benjamini_hochberg", "fdr_bh")]
)
@pytest.mark.parametrize("count", [1, 2, 17])
def test_corrections_are_those_of_statsmodels(correction, theirs, count):
    p = np.round(np.random.default_rng(count).random(count) ** 3, 2)
    named = {f"h{i}": float(value) for i, value in enumerate(p)}
    expected = multipletests(p, method=theirs)[1]
    assert list(corrected(named, correction).values()) == pytest.approx(list(expected))


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value_is_refused(bad):
    with pytest.raises(ValueError, match="p-value of 'x'"):
        corrected({"x": bad}, "holm")
