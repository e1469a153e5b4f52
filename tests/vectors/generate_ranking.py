"""Write ranking.json: measures of lists by RecTools, an implementation not our own.

RecTools needs NumPy 1 where Python is 3.12, so it can't be among our development
dependencies. In an environment of its own: pip install rectools==0.19.0, then
python tests/vectors/generate_ranking.py > tests/vectors/ranking.json
"""

import json

import numpy as np
import pandas as pd
import rectools
from rectools import Columns
from rectools.metrics import (
    MAP,
    MRR,
    NDCG,
    AvgRecPopularity,
    CatalogCoverage,
    HitRate,
    IntraListDiversity,
    MeanInvUserFreq,
    PairwiseHammingDistanceCalculator,
    Precision,
    Recall,
)

UNITS, ITEMS, K, CATEGORIES = 40, 60, 10, 5


def table(pairs):
    frame = pd.DataFrame(pairs, columns=[Columns.User, Columns.Item])
    return frame.assign(**{Columns.Weight: 1, Columns.Datetime: "2026-01-01"})


def main():
    rng = np.random.default_rng(20260301)
    lists = np.stack([rng.permutation(ITEMS)[:K] for _ in range(UNITS)])
    # No more to be found than places: there the two common forms of MAP agree.
    test = [
        (unit, int(item))
        for unit in range(UNITS)
        for item in rng.choice(ITEMS, rng.integers(1, K + 1), replace=False)
    ]
    history = [
        (unit, int(item))
        for unit in range(UNITS)
        for item in rng.choice(ITEMS, rng.integers(5, 30), replace=False)
    ]
    categories = rng.integers(0, CATEGORIES, ITEMS)
    reco = pd.DataFrame(
        [
            (unit, int(item), rank)
            for unit, items in enumerate(lists)
            for rank, item in enumerate(items, 1)
        ],
        columns=[Columns.User, Columns.Item, Columns.Rank],
    )
    interactions, previous = table(test), table(history)
    kinds = pd.DataFrame({"category": categories.astype(float)}, index=range(ITEMS))
    distance = PairwiseHammingDistanceCalculator(kinds)
    ranking = {
        "precision": Precision(K),
        "recall": Recall(K),
        "ndcg": NDCG(K, divide_by_achievable=True),
        "map": MAP(K),
        "mrr": MRR(K),
        "hit_rate": HitRate(K),
    }
    per_unit = {
        name: metric.calc_per_user(reco, interactions).tolist()
        for name, metric in ranking.items()
    }
    per_unit["novelty"] = MeanInvUserFreq(K).calc_per_user(reco, previous).tolist()
    per_unit["popularity"] = AvgRecPopularity(K).calc_per_user(reco, previous).tolist()
    per_unit["diversity"] = (
        IntraListDiversity(K, distance_calculator=distance).calc_per_user(reco).tolist()
    )
    document = {
        "explanation": (
            "lists of item rows for units 0, 1, ...; pairs of the test and of the "
            "history; category of each item; what RecTools makes of them. Its "
            "popularity is the number of units, not their share."
        ),
        "made by": f"rectools {rectools.__version__}",
        "lists": lists.tolist(),
        "test": test,
        "history": history,
        "categories": categories.tolist(),
        "per unit": per_unit,
        "coverage": CatalogCoverage(K, normalize=True).calc(reco, list(range(ITEMS))),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
