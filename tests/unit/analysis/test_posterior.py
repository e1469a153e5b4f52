import numpy as np
import pytest
from scipy import stats

from experiment_service.analysis.posterior import beta_density


def test_densities_are_those_of_scipy_on_one_grid():
    result = beta_density([3, 40], [97, 960], points=501)
    assert result.density.shape == (2, 501)
    assert result.density[1] == pytest.approx(stats.beta(40, 960).pdf(result.rate))
    assert np.trapezoid(result.density, result.rate) == pytest.approx(1, abs=2e-3)


def test_unbounded_densities_stay_finite():
    result = beta_density([0.5, 1], [0.5, 1])
    assert np.all(np.isfinite(result.density))
    assert 0 < result.rate[0] < result.rate[-1] < 1


@pytest.mark.parametrize(
    ("alpha", "beta", "points", "message"),
    [
        ([1], [1, 2], 10, "must be"),
        ([], [], 10, "must be"),
        ([0], [1], 10, "finite and > 0"),
        ([1], [np.inf], 10, "finite and > 0"),
        ([1], [1], 1, "points"),
    ],
)
def test_bad_arguments_raise(alpha, beta, points, message):
    with pytest.raises(ValueError, match=message):
        beta_density(alpha, beta, points=points)
