"""Posteriors of two variants against draws, with the error of the draws."""

import numpy as np
import pytest
from scipy import stats

from experiment_service.analysis.beliefs import belief
from experiment_service.analysis.moments import Moments

DRAWS = 400_000


def by_draws(treatment, control, *, lower):
    worse = (treatment - control) if lower else (control - treatment)
    loss = np.maximum(worse, 0)
    return np.mean(worse < 0), loss.mean(), loss.std() / np.sqrt(DRAWS)


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("counts", [(55, 500, 40, 480), (0, 3, 2, 2)])
def test_of_rates_it_is_that_of_the_beta_posteriors(counts, lower):
    s1, n1, s0, n0 = counts
    rng = np.random.default_rng(1)
    draws = [rng.beta(1 + s, 1 + n - s, DRAWS) for s, n in ((s1, n1), (s0, n0))]
    share, loss, error = by_draws(*draws, lower=lower)
    found = belief(
        "proportion",
        Moments.from_counts(s1, n1),
        Moments.from_counts(s0, n0),
        lower_is_better=lower,
    )
    assert abs(found.probability_better - share) < 4 * 0.5 / np.sqrt(DRAWS)
    assert abs(found.expected_loss - loss) < 4 * error


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_of_numbers_it_is_nearly_that_of_the_central_limit_theorem(kind):
    rng = np.random.default_rng(2)
    x1, x0 = rng.poisson(3, 2000) + 1.0, rng.poisson(3, 1500) + 1.0
    y1, y0 = rng.poisson(0.21 * x1), rng.poisson(0.2 * x0)
    pair = [
        Moments.from_arrays(y, x if kind == "ratio" else None)
        for y, x in ((y1, x1), (y0, x0))
    ]
    found = belief(kind, *pair, lower_is_better=False)
    values = [m.ratio if kind == "ratio" else m.mean for m in pair]
    variances = [
        m.ratio_variance if kind == "ratio" else m.variance / m.n for m in pair
    ]
    law = stats.norm(values[0] - values[1], np.sqrt(sum(variances)))
    # The prior is worth one of thousands of units.
    assert found.probability_better == pytest.approx(law.sf(0), abs=2e-3)
    assert found.expected_loss == pytest.approx(
        law.expect(lambda d: max(-d, 0)), rel=0.02
    )


@pytest.mark.parametrize(
    ("kind", "pair"),
    [
        ("mean", (Moments.zero(), Moments.from_arrays([1.0, 2.0]))),
        ("mean", (Moments.from_arrays([2.0, 2.0]), Moments.from_arrays([2.0, 2.0]))),
        (
            "ratio",
            (Moments.from_arrays([0.0], [0.0]), Moments.from_arrays([1.0], [2.0])),
        ),
    ],
)
def test_nothing_is_believed_of_nothing(kind, pair):
    assert belief(kind, *pair, lower_is_better=False) is None
