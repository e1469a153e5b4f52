"""Training and top-10 lists: ours beside bare implicit at the same settings.

    python tests/benchmarks/bench_training.py [--units 20000] [--items 5000]

Ours checks ids, weighs, keeps what it learned in its own arrays and refuses numbers that
are not finite; implicit weighs and trains. Both get one matrix, in turns; medians. On a
machine that others share, read the ratio of CPU time.
"""

import argparse
import statistics
import time
import warnings

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from implicit.nearest_neighbours import BM25Recommender, TFIDFRecommender, bm25_weight
from threadpoolctl import threadpool_limits

from recommenders import build_recommender
from recommenders.interactions import Interactions


def shop(units, items, pairs, seed=1):
    """Make interactions with popular items and heavy units, as shops have them."""
    rng = np.random.default_rng(seed)
    rows = (units * rng.random(pairs) ** 1.5).astype(int)
    columns = (items * rng.random(pairs) ** 2.5).astype(int)
    return Interactions.from_columns(
        [f"u{row}" for row in rows], [f"i{column}" for column in columns]
    )


def bare_knn(kind):
    return lambda matrix: kind(K=50).fit(matrix, show_progress=False)


def bare_als(matrix):
    model = AlternatingLeastSquares(
        factors=64, regularization=0.01, alpha=2.0, iterations=15, random_state=1
    )
    model.fit(bm25_weight(matrix, K1=100, B=0.8).tocsr(), show_progress=False)


def bare_bpr(matrix):
    model = BayesianPersonalizedRanking(
        factors=64, learning_rate=0.05, iterations=20, num_threads=1, random_state=1
    )
    model.fit(matrix, show_progress=False)


CASES = {
    "item_knn tfidf": ("item_knn", {}, bare_knn(TFIDFRecommender)),
    "item_knn bm25": ("item_knn", {"similarity": "bm25"}, bare_knn(BM25Recommender)),
    "als": ("als", {}, bare_als),
    "bpr": ("bpr", {"iterations": 20}, bare_bpr),
}


def seconds(work):
    """Return the time that passed, and that of all cores."""
    passed, spent = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - passed, time.process_time() - spent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=5_000)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    interactions = shop(asked.units, asked.items, asked.pairs)
    matrix = interactions.matrix
    print(f"{matrix.shape[0]} units x {matrix.shape[1]} items, {matrix.nnz} pairs")
    print(
        f"{'recommender':<16}{'ours, s':>10}{'implicit, s':>13}{'ratio':>8}{'of CPU':>8}"
    )
    for label, (name, parameters, bare) in CASES.items():
        recommender = build_recommender(name, parameters)
        taken = {"ours": [], "bare": []}
        for _ in range(asked.repeats):
            taken["ours"].append(
                seconds(
                    lambda fit=recommender.fit: fit(
                        interactions, np.random.default_rng(1)
                    )
                )
            )
            # As many threads of BLAS as ours: implicit itself advises it.
            with threadpool_limits(limits=1, user_api="blas"):
                writable = matrix.copy()
                taken["bare"].append(seconds(lambda m=writable, b=bare: b(m)))
        ours, floor = (
            [statistics.median(each) for each in zip(*taken[who], strict=True)]
            for who in ("ours", "bare")
        )
        print(
            f"{label:<16}{ours[0]:>10.3f}{floor[0]:>13.3f}"
            f"{ours[0] / floor[0]:>8.2f}{ours[1] / floor[1]:>8.2f}"
        )


if __name__ == "__main__":
    main()
