"""What was shown and left: how looks fall along a list, and what is learned from it."""

import numpy as np
import pytest
import statsmodels.api as sm

from recommenders.feedback import PositionBias, estimate_position_bias
from recommenders.interactions import Interactions
from recommenders.item_knn import ItemKNN
from recommenders.matrix_factorization import AlternatingLeastSquares
from tests.feedback import LENGTH, browsed, learned, ndcg, shoppers


def estimate(rows):
    """From (group, position, shown, taken)."""
    group, position, taken = [], [], []
    for each, place, shown, some in rows:
        group += [each] * shown
        position += [place] * shown
        taken += [True] * some + [False] * (shown - some)
    units = np.arange(len(group))
    return estimate_position_bias(
        np.array(group), units, np.array(position), np.array(taken)
    )


def test_two_positions_of_one_thing_tell_the_power_by_themselves():
    # 300 and 120 of 1000: looks at 2 are 0.4 of those at 1, and 2**-power is that.
    bias = estimate([(0, 1, 1000, 300), (0, 2, 1000, 120)])
    assert bias.power == pytest.approx(-np.log2(0.4))
    # Delta method: var(log c1 - log c2), where counts have their residual variance.
    variance = (1 / 300 - 1 / 1000) + (1 / 120 - 1 / 1000)
    assert bias.standard_error == pytest.approx(variance**0.5 / np.log(2), rel=1e-6)
    assert bias.interactions == 420
    assert bias.examination(np.array([1, 2, 4])) == pytest.approx([1, 0.4, 0.16])


def test_the_power_is_that_of_a_poisson_regression_with_an_effect_for_each_group():
    rng = np.random.default_rng(3)
    rows = [
        (group, place, 400, int(rng.binomial(400, liked * place**-0.8)))
        for group, liked in enumerate([0.05, 0.2, 0.6])
        for place in (1, 2, 5)
    ]
    group, place, shown, taken = np.array(rows).T
    x = np.column_stack([-np.log(place), np.eye(3)[group]])
    family = sm.families.Poisson()
    fitted = sm.GLM(taken, x, family=family, offset=np.log(shown)).fit()
    assert estimate(rows).power == pytest.approx(fitted.params[0], abs=1e-6)


def test_a_power_is_kept_within_its_bounds():
    assert estimate([(0, 1, 500, 100), (0, 2, 500, 180)]).power == 0
    assert estimate([(0, 1, 5000, 800), (0, 2, 5000, 40)]).power == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "^0 interactions are with what was shown at several positions; 100 or"),
        # Neither has two positions, so what is liked and what is looked at are one.
        ([(0, 1, 500, 200), (1, 2, 500, 100)], "^0 interactions"),
        ([(0, 1, 500, 60), (0, 2, 500, 39)], "^99 interactions"),
        ([(0, 1, 500, 60), (0, 2, 500, 50)], r"standard error 0\.2\d+; it must not be"),
    ],
)
def test_an_estimate_from_too_little_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        estimate(rows)


def test_what_was_left_is_summed_by_pair():
    data = Interactions.from_columns(["u", "v"], ["i", "j"]).with_passed(
        ["u", "u", "u", "v", "stranger", "v"],
        ["j", "j", "i", "i", "i", "unknown"],
        np.array([0.5, 0.25, -0.5, 1.0, 1.0, 1.0]),
    )
    assert data.passed.toarray().tolist() == [[0, 0.75], [1, 0]]
    with pytest.raises(ValueError, match=r"passed hold nan.*must be finite"):
        data.with_passed(["u"], ["i"], np.array([np.nan]))


# Known tastes, and a service that shows what is popular first


def test_als_finds_tastes_by_what_was_left_as_it_was_looked_at():
    als = AlternatingLeastSquares(factors=8, weighting="counts")
    looks = PositionBias(power=1.0).examination(np.arange(1, LENGTH + 1))
    gains = []
    for seed in range(3):
        taste, lists, taken = shoppers(np.random.default_rng(seed), power=1.0)
        naive = learned(lists, taken)
        flat = learned(lists, taken, looks=np.ones(LENGTH))
        right = learned(lists, taken, looks=looks)
        found = [ndcg(als, data, taste) for data in (naive, flat, right)]
        gains.append([found[2] - found[0], found[2] - found[1]])
    mean, error = np.mean(gains, axis=0), np.std(gains, axis=0, ddof=1) / 3**0.5
    assert (mean > 4 * error).all()


def test_neighbours_find_tastes_by_weights_per_look():
    looks = PositionBias(power=1.0).examination(np.arange(1, LENGTH + 1))
    gains = []
    for seed in range(4):
        taste, lists, taken = shoppers(np.random.default_rng(seed), power=1.0)
        weighed = learned(lists, taken, weights=np.minimum(1 / looks, 10))
        gains.append(
            ndcg(ItemKNN(), weighed, taste)
            - ndcg(ItemKNN(), learned(lists, taken), taste)
        )
    assert np.mean(gains) > 4 * np.std(gains, ddof=1) / 2


def test_the_power_behind_the_tastes_is_found():
    estimates = []
    for seed in range(4):
        *_, rows = browsed(np.random.default_rng(seed), power=0.8)
        bias = estimate_position_bias(*rows)
        estimates.append((bias.power - 0.8) / bias.standard_error)
    assert np.abs(estimates).max() < 4
