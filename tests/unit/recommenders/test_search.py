"""The search: bounded, resumed, and never worse than where it starts."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from recommenders import RECOMMENDERS, build_recommender, search
from recommenders.base import Capabilities
from recommenders.evaluation import hold_out, judge
from recommenders.interactions import Interactions
from recommenders.popularity import Popularity
from recommenders.search import Bounds, Goal, conclusions
from recommenders.space import Choices, Integers, Numbers, read_space

SINCE = datetime(2026, 3, 1, tzinfo=UTC)
GOAL = Goal(repeats="allowed")


def shop(seed=0, units=60, items=40):
    """Units of two tastes come back for items of theirs."""
    rng = np.random.default_rng(seed)

    def drawn(count):
        rows = rng.integers(0, units, count)
        columns = 2 * rng.integers(0, items // 2, count) + rows % 2
        return [f"u{row:02}" for row in rows], [f"i{item:02}" for item in columns]

    before, after = drawn(900), drawn(300)
    interactions = Interactions.from_columns(*before, times=np.arange(900))
    later = pd.DataFrame(
        {"unit_id": after[0], "item_id": after[1], "occurred_at": pd.Timestamp(SINCE)}
    )
    return interactions, hold_out(interactions, later, since=SINCE)


def run(recommender="item_knn", trials=6, **changes):
    told = []
    values = {"goal": GOAL, "bounds": Bounds(trials=trials), "progress": told.append}
    found = search.search(recommender, *shop(), **{**values, **changes})
    return found, told


def test_the_best_is_never_worse_than_the_start_and_is_what_it_says():
    found, told = run(trials=8)
    assert found.trials == len(told) == 8
    assert found.value >= found.given
    interactions, held_out = shop()
    for parameters, value in ((found.parameters, found.value), ({}, found.given)):
        trained = build_recommender("item_knn", parameters).fit(
            interactions, np.random.default_rng(0)
        )
        judged = judge(trained, held_out, repeats="allowed")
        assert judged.values["ndcg"].mean() == pytest.approx(value)
    assert told[0].startswith(
        f"trial 1: ndcg {found.given:.4f}, best {found.given:.4f}"
    )
    assert "similarity tfidf, neighbours 50" in told[0], "where it starts comes first"


def test_a_known_optimum_is_found(monkeypatch):
    # The fewer neighbours the worse here, by construction of the values.
    monkeypatch.setattr(
        search._Trials, "_value", lambda _, chosen: -abs(np.log(chosen["factor"] / 40))
    )
    monkeypatch.setattr(
        search, "describe", lambda _: {"factor": 1.0, "other": "as it was"}
    )
    found, _ = run(space={"factor": Numbers(low=1.0, high=1000.0, log=True)}, trials=40)
    assert found.parameters["factor"] == pytest.approx(40, rel=0.3)
    assert found.parameters["other"] == "as it was"
    assert found.given == -np.log(40)
    assert found.is_better


def test_few_choices_are_tried_once_each():
    space = {"similarity": Choices(("cosine", "bm25")), "neighbours": Choices((3, 50))}
    found, told = run(space=space, trials=50)
    assert found.trials == len(told) == 4
    assert not any("tried before" in text for text in told)
    shown = {text.split(" s, ")[1] for text in told}
    assert len(shown) == 4


def test_a_search_goes_on_where_it_ended(tmp_path):
    storage = tmp_path / "new" / "trials"
    first, told = run(trials=3, storage=storage)
    again, more = run(trials=5, storage=storage)
    assert (len(told), len(more)) == (3, 2)
    assert more[0].startswith("trial 4: ")
    assert (first.trials, again.trials) == (3, 5)
    assert again.value >= first.value
    done, nothing = run(trials=5, storage=storage)
    assert nothing == []
    assert (done.parameters, done.value) == (again.parameters, again.value)


@pytest.mark.parametrize(
    "change",
    [
        {"goal": Goal(measure="recall", repeats="allowed")},
        {"goal": Goal(repeats="allowed", k=5)},
        {"parameters": {"neighbours": 10}},
        {"seed": 1},
        {"space": {"neighbours": Integers(low=2, high=9)}},
    ],
)
def test_another_search_in_the_same_file_begins_anew(tmp_path, change):
    run(trials=2, storage=tmp_path / "trials")
    _, told = run(trials=2, storage=tmp_path / "trials", **change)
    assert len(told) == 2


def test_a_search_that_died_in_a_trial_goes_on(tmp_path, monkeypatch):
    storage = tmp_path / "trials"

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(search._Trials, "_value", die)
        with pytest.raises(Killed):
            run(trials=4, storage=storage)
    found, told = run(trials=4, storage=storage)
    assert (found.trials, found.failed, len(told)) == (4, 1, 3)


def test_time_is_a_bound_too():
    ticks = iter(range(100))
    found, told = run(
        trials=50, bounds=Bounds(trials=50, seconds=3.0), clock=lambda: next(ticks)
    )
    assert found.trials == len(told) == 2


class Fragile(Popularity):
    """Learns nothing from a window above 20 days."""

    capabilities = Capabilities(cold_units=True)

    def fit(self, interactions, rng):
        if (self.window_days or 0) > 20:
            raise ValueError("nothing to learn")
        return Popularity().fit(interactions, rng)


def test_a_trial_that_learns_nothing_fails_alone(monkeypatch):
    monkeypatch.setitem(RECOMMENDERS, "fragile", Fragile)
    found, told = run("fragile", space={"window_days": Choices((7.0, 28.0, 14.0))})
    assert (found.trials, found.failed) == (3, 1)
    assert sum("failed, nothing to learn" in text for text in told) == 1
    # All windows are worth the same, so nothing is better than the start.
    assert not found.is_better
    assert found.parameters == {"window_days": None, "order": "units"}
    with pytest.raises(ValueError, match="none of 1 trials of fragile could be judged"):
        run("fragile", space={"window_days": Choices((28.0,))})


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "trials"
    path.write_text("not a journal\n")
    with pytest.raises(ValueError, match=r"trials can't be read as trials .* another"):
        run(storage=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recommender": "svd"}, "known recommenders"),
        ({"recommender": "category_popularity"}, "has no parameters to search"),
        ({"space": {"colour": Choices((1,))}}, "space has 'colour', which is no"),
        ({"parameters": {"neighbours": 0}}, "neighbours is 0"),
    ],
)
def test_a_bad_search_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        run(**change)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Goal(measure="auc"), "measure is 'auc'; it must be one of ndcg"),
        (lambda: Bounds(trials=0), "trials is 0"),
        (lambda: Bounds(seconds=float("nan")), "seconds is nan"),
        (lambda: Choices(()), "choices are empty"),
        (
            lambda: Integers(low=3, high=2),
            "range is 3 to 2; it must be finite and rise",
        ),
        (lambda: Numbers(low=0, high=1, log=True), "a log scale must start above 0"),
        (lambda: read_space("x", 3), "space of x is 3; it must be a list of values"),
        (lambda: read_space("x", {"low": 1}), "space of x is"),
        (lambda: read_space("x", {"low": 1, "high": True}), "space of x is"),
        (lambda: read_space("x", {"low": 1, "high": 2, "step": 1}), "space of x is"),
        (lambda: read_space("x", []), "choices are empty"),
    ],
)
def test_bad_bounds_and_spaces_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_space_is_read_as_it_is_written():
    assert read_space("x", [1, "a", None]) == Choices((1, "a", None))
    assert read_space("x", {"low": 1, "high": 9}) == Integers(low=1, high=9)
    wide = read_space("x", {"low": 0.1, "high": 9, "log": True})
    assert wide == Numbers(low=0.1, high=9.0, log=True)


def test_the_conclusion_says_what_is_better_and_what_is_not():
    interactions, held_out = shop()
    rng = np.random.default_rng(0)

    def judged(name):
        trained = build_recommender(name, {}).fit(interactions, rng)
        return judge(trained, held_out, repeats="allowed")

    knn, popular = judged("item_knn"), judged("popularity")
    said = conclusions(knn, knn, popular, goal=GOAL, rng=rng)
    assert said["figure"].startswith("ndcg@10, repeats: allowed is ")
    assert said["over the start"].startswith("NO BETTER than the parameters it started")
    assert said["over popularity"].startswith("better than popularity, by ")
    lost = conclusions(popular, knn, popular, goal=GOAL, rng=rng)
    assert lost["over the start"].startswith("WORSE than the parameters it started")
    assert lost["over popularity"].startswith("NO BETTER than popularity, by 0.0000")
