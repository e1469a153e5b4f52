"""What learning from the service's own lists finds of tastes that are known."""

import numpy as np
import pytest

from recommenders.feedback import PositionBias, estimate_position_bias
from recommenders.item_knn import ItemKNN
from recommenders.matrix_factorization import AlternatingLeastSquares
from tests.feedback import LENGTH, browsed, learned, ndcg, shoppers

pytestmark = pytest.mark.slow

SEEDS = 10
PLACES = np.arange(1, LENGTH + 1)
ALS = AlternatingLeastSquares(factors=8)


def looks(power):
    return PositionBias(power=power).examination(PLACES)


WAYS = {
    "als, interactions alone": (ALS, lambda _: {}),
    "als, weights per look": (ALS, lambda p: {"weights": np.minimum(1 / looks(p), 10)}),
    "als, all that was left": (ALS, lambda _: {"looks": looks(0)}),
    "als, what was left by looks": (ALS, lambda p: {"looks": looks(p)}),
    "als, by half the power": (ALS, lambda p: {"looks": looks(p / 2)}),
    "als, by twice the power": (ALS, lambda p: {"looks": looks(2 * p)}),
    "item_knn, interactions alone": (ItemKNN(), lambda _: {}),
    "item_knn, weights per look": (
        ItemKNN(),
        lambda p: {"weights": np.minimum(1 / looks(p), 10)},
    ),
}


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5])
def test_tastes_behind_a_list_that_shows_popular_items_first(power, report):
    found = {way: np.empty(SEEDS) for way in WAYS}
    for seed in range(SEEDS):
        taste, lists, taken = shoppers(np.random.default_rng(seed), power=power)
        for way, (recommender, how) in WAYS.items():
            data = learned(lists, taken, **how(power))
            found[way][seed] = ndcg(recommender, data, taste)
    for way, values in found.items():
        error = values.std(ddof=1) / SEEDS**0.5
        report(way, f"NDCG@10 by taste, power {power}", values.mean(), error=error)

    def better(one, other):
        gains = found[one] - found[other]
        return gains.mean() > 4 * gains.std(ddof=1) / SEEDS**0.5

    right = "als, what was left by looks"
    assert better(right, "als, interactions alone")
    assert better(right, "als, weights per look")
    assert better(right, "als, all that was left")
    # A power that is far off is still better than none.
    assert better("als, by half the power", "als, interactions alone")
    assert better("als, by twice the power", "als, interactions alone")
    assert better("item_knn, weights per look", "item_knn, interactions alone")


def test_the_interval_of_the_power_holds_it_as_often_as_it_says(report, tolerance):
    trials, held = 400, 0
    for seed in range(trials):
        _, rows = browsed(np.random.default_rng(seed), power=1.0)
        bias = estimate_position_bias(*rows)
        held += abs(bias.power - 1.0) < 1.96 * bias.standard_error
    share = held / trials
    report("Position bias", "power 1, 95 % interval holds it", share, trials=trials)
    assert abs(share - 0.95) < tolerance(0.95, trials)
