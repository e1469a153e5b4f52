"""Every recommender judged on The Complete Journey: the table of docs/recommenders.md.

    python tests/benchmarks/judge_recommenders.py [--new-products | --sessions]

Training before December 2017, test in December, lists of 10, weight = baskets, products
of 10 households or more before December. ``--new-products`` keeps every product of five
households or more in all, and judges those of the last 30 days by themselves.
``--sessions`` compares sessions scored from published lists with the recommender's own, for
the last items of every fifth household before December.
"""

import argparse
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from recommenders import build_recommender
from recommenders.complete_journey import load_catalogue, load_interactions
from recommenders.evaluation import difference, hold_out, judge, summarise
from recommenders.instants import microseconds
from recommenders.interactions import Interactions
from recommenders.lists import PublishedLists
from recommenders.publishing import publish_lists
from recommenders.tables import split_at

SINCE = datetime(2017, 12, 1, tzinfo=UTC)

CASES = {
    "popularity": ("popularity", {}),
    "popularity, 28 days": ("popularity", {"window_days": 28}),
    "popularity, trend": ("popularity", {"window_days": 28, "order": "trend"}),
    "category_popularity": ("category_popularity", {}),
    "own_frequent": ("own_frequent", {}),
    "own_frequent, 56 days": ("own_frequent", {"half_life_days": 56}),
    "item_knn tfidf": ("item_knn", {}),
    "item_knn bm25": ("item_knn", {"similarity": "bm25"}),
    "item_knn cosine": ("item_knn", {"similarity": "cosine"}),
    "als": ("als", {}),
    "bpr": ("bpr", {}),
    "content": ("content", {}),
    "session": ("session", {}),
    "co_purchase": ("co_purchase", {}),
    "age_routed": ("age_routed", {}),
}
ADDITIVE = (
    "item_knn tfidf",
    "co_purchase",
    "session",
    "content",
    "category_popularity",
)
NEW = ("popularity", "item_knn tfidf", "content", "age_routed")


def prepared(*, new_products):
    if new_products:
        loaded = load_interactions(min_households=5)
    else:
        loaded = load_interactions(counted_before=SINCE)
    earlier, later = split_at(loaded, SINCE)
    interactions = Interactions.from_columns(
        earlier["unit_id"].tolist(),
        earlier["item_id"].tolist(),
        earlier["weight"].to_numpy(),
        times=microseconds(earlier["occurred_at"]),
        catalogue=load_catalogue().loc[
            lambda d: d["item_id"].isin(set(loaded["item_id"]))
        ],
        cold_items=new_products,
    )
    return interactions, hold_out(interactions, later, since=SINCE)


def last_items(interactions, length):
    """Return the last items of every fifth unit, padded with -1 in front."""
    events = interactions.timed("a session")
    order = events.by_unit()
    units, items = events.units[order], events.items[order]
    sessions = []
    for unit in range(0, len(interactions.units), 5):
        first, end = np.searchsorted(units, [unit, unit + 1])
        last = items[max(first, end - length) : end]
        sessions.append(np.pad(last, (length - last.size, 0), constant_values=-1))
    return np.stack(sessions)


def compare_sessions(trained, sessions, depth, directory):
    """Return the mean share of the first ten in common, and CPU seconds per session."""
    items = trained.interactions.items
    related, scores = trained.related(np.arange(len(items)), depth)
    publish_lists(
        directory,
        name="compared",
        version=1,
        unit_ids=["nobody"],
        lists=related[:1],
        item_ids=items.ids,
        default=related[0],
        related=related,
        related_scores=scores,
        session_fade=trained.scorer.fade.tolist(),
    )
    lists = PublishedLists.open(directory)
    recent = [items.ids_of(session) for session in sessions]
    began = time.process_time()
    served = [lists.for_session(each, 10 + len(each)) for each in recent]
    seconds = (time.process_time() - began) / len(recent)
    common = []
    own = trained.for_sessions(sessions, 10, exclude_seen=True).items
    for given, found, best in zip(recent, served, own, strict=True):
        shown = [item for item in found if item not in given][:10]
        wanted = items.ids_of(best)
        if wanted:
            common.append(len(set(shown) & set(wanted)) / len(wanted))
    return np.mean(common), seconds


def judge_sessions(interactions):
    for name in ADDITIVE:
        recommender = build_recommender(*CASES[name])
        trained = recommender.fit(interactions, np.random.default_rng(1))
        for length in (1, 5, 20):
            sessions = last_items(interactions, length)
            for depth in (20, 50, 100):
                with tempfile.TemporaryDirectory() as directory:
                    common, seconds = compare_sessions(
                        trained, sessions, depth, Path(directory) / "1"
                    )
                print(
                    f"| {name} | {length} of {len(sessions)} | depth {depth} "
                    f"| {common:.3f} | {1e6 * seconds:.0f} us |"
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--new-products", action="store_true")
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--sessions", action="store_true")
    asked = parser.parse_args()
    interactions, held_out = prepared(new_products=asked.new_products)
    if asked.sessions:
        judge_sessions(interactions)
        return
    names = asked.only or (NEW if asked.new_products else tuple(CASES))
    for repeats in ("allowed", "new only"):
        popular = None
        print(f"\nrepeats: {repeats}")
        for name in names:
            recommender = build_recommender(*CASES[name])
            if repeats == "new only" and not recommender.capabilities.new_items:
                continue
            began = time.perf_counter()
            trained = recommender.fit(interactions, np.random.default_rng(1))
            fitted = time.perf_counter() - began
            judged = judge(trained, held_out, repeats=repeats)
            popular = popular or judged
            rng = np.random.default_rng(0)
            figures = summarise(judged, rng=rng)
            print(
                f"| {name} | {figures.intervals['ndcg']} "
                f"| {difference(judged, popular, 'ndcg', rng)} "
                f"| {figures.precision:.4f} | {figures.recall:.4f} "
                f"| {figures.hit_rate:.3f} | {figures.coverage:.3f} "
                f"| {figures.novelty:.1f} | {figures.diversity:.2f} "
                f"| {figures.miscalibration:.2f} | {fitted:.1f} s |"
            )
            if asked.new_products:
                for part in figures.slices:
                    if part.kind == "product":
                        print(
                            f"    {part.name}: {part.pairs} pairs, recall "
                            f"{part.recall:.4f}, ndcg {part.ndcg:.4f} "
                            f"[{part.low:.4f}, {part.high:.4f}]"
                        )
        print(f"  {figures.protocol}")


if __name__ == "__main__":
    main()
