"""Top-50 lists of many units among 100,000 items, and publishing them.

    python tests/benchmarks/bench_lists.py [--units 1000000] [--items 100000]

Factors are synthetic, as of ALS with 64 of them. Ours leaves out what a unit had, finds
the best with ties by row, and hands over lists to be published; `implicit` is its own
`recommend`, in batches. With few units ours hides the items that nobody had. Both make
lists of the same units in turns; then ours makes all of them, on all cores. Publishing
writes, flushes, verifies and opens them, as a release does.
"""

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from recommenders.base import TrainedRecommender
from recommenders.interactions import IdMap, Interactions
from recommenders.lists import PublishedLists
from recommenders.matrix_factorization import (
    AlternatingLeastSquares as OurAlternatingLeastSquares,
)
from recommenders.matrix_factorization import _FactorScorer
from recommenders.publishing import publish_lists

DEPTH = 50
FACTORS = 64
HAD = 10
COMPARED = 4_000
REPEATS = 3
BATCH = 1_000


def synthetic(units, items):
    rng = np.random.default_rng(5)
    had = np.sort(rng.integers(0, items, (units, HAD)), axis=1).astype(np.int32)
    had += np.arange(HAD, dtype=np.int32)  # distinct within a row
    matrix = csr_matrix(
        (
            np.ones(units * HAD, np.float32),
            had.ravel() % np.int32(items),
            np.arange(0, units * HAD + 1, HAD),
        ),
        shape=(units, items),
    )
    matrix.sum_duplicates()
    interactions = Interactions(
        units=IdMap(ids=tuple(f"u{row:08d}" for row in range(units))),
        items=IdMap(ids=tuple(f"i{row:08d}" for row in range(items))),
        matrix=matrix,
    )
    scale = np.float32(0.1)
    return (
        interactions,
        rng.normal(size=(units, FACTORS)).astype(np.float32) * scale,
        rng.normal(size=(items, FACTORS)).astype(np.float32) * scale,
    )


def timed(action):
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def most_memory():
    """Bytes of memory that the process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    options = parser.parse_args()
    interactions, of_units, of_items = synthetic(options.units, options.items)
    ours = TrainedRecommender(
        recommender=OurAlternatingLeastSquares(factors=FACTORS),
        interactions=interactions,
        scorer=_FactorScorer(units=of_units, items=of_items),
    )
    # As implicit advises: its threads are its own, those of BLAS in the way.
    with threadpool_limits(1, "blas"):
        theirs = AlternatingLeastSquares(factors=FACTORS)
    theirs.user_factors, theirs.item_factors = of_units, of_items
    some = np.arange(min(COMPARED, options.units), dtype=np.int32)

    def by_ours():
        return ours.recommend(some, DEPTH, exclude_seen=True)[0]

    def by_theirs():
        batches = [some[start : start + BATCH] for start in range(0, len(some), BATCH)]
        with threadpool_limits(1, "blas"):
            made = [
                theirs.recommend(rows, interactions.matrix[rows], N=DEPTH)[0]
                for rows in batches
            ]
        return np.concatenate(made)

    same = (by_ours() == by_theirs()).mean()
    times = [(timed(by_ours), timed(by_theirs)) for _ in range(REPEATS)]
    us, them = (statistics.median(each) for each in zip(*times, strict=True))
    print(
        f"{options.items:,} items, {FACTORS} factors, lists of {DEPTH}, "
        f"{len(some):,} units in turns\n"
        f"  ours     {len(some) / us:9,.0f} lists/s\n"
        f"  implicit {len(some) / them:9,.0f} lists/s   ours / implicit in time "
        f"{us / them:.2f} (places alike {same:.4f})"
    )
    before = most_memory()
    lists = np.empty((options.units, DEPTH), dtype=np.int32)

    def all_of_them():
        for start in range(0, options.units, 16_384):
            rows = np.arange(start, min(start + 16_384, options.units), dtype=np.int32)
            lists[rows] = ours.recommend(rows, DEPTH, exclude_seen=True)[0]

    took = timed(all_of_them)
    print(
        f"all {options.units:,} units: {took:.0f} s, {options.units / took:,.0f} lists/s, "
        f"the process at most {most_memory() >> 20:,} MiB ({lists.nbytes >> 20:,} of it "
        f"the lists; {before >> 20:,} before, to make the data)"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "als" / "1"
        digest = []
        written = timed(
            lambda: digest.append(
                publish_lists(
                    folder,
                    name="als",
                    version=1,
                    unit_ids=interactions.units.ids,
                    lists=lists,
                    item_ids=interactions.items.ids,
                    default=lists[0],
                )
            )
        )
        verified = timed(lambda: PublishedLists.open_verified(folder, digest[0]))
        size = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f"published: {written:.1f} s, verified and open: {verified:.1f} s, "
        f"{size >> 20:,} MiB"
    )


if __name__ == "__main__":
    main()
