import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from experiment_service.errors import (
    InvalidRequest,
    InvalidState,
    NotFound,
    Unavailable,
)
from experiment_service.promotion import roll_back
from experiment_service.storage.database import create_engine, transaction
from experiment_service.storage.experiments import list_audit
from experiment_service.storage.models import (
    ModelStatus,
    decide,
    list_versions,
    live_models,
)
from experiment_service.training import load_interactions, train
from experiment_service.training.data import digest
from recommenders import RECOMMENDERS
from recommenders.base import Capabilities
from recommenders.lists import PublishedLists
from recommenders.popularity import Popularity

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
START = datetime(2026, 1, 1, tzinfo=UTC)
UNITS, ITEMS, DEPTH = 40, 24, 10


def shop(seed=0, rows=3000):
    """Two tastes: odd units nearly always have odd items, even units even ones."""
    rng = np.random.default_rng(seed)
    units = rng.integers(UNITS, size=rows)
    items = 2 * np.minimum(rng.geometric(0.15, size=rows) - 1, ITEMS // 2 - 1)
    items += np.where(rng.random(rows) < 0.9, units % 2, 1 - units % 2)
    seconds = rng.integers(50 * 86_400, size=rows)
    return pd.DataFrame(
        {
            "unit_id": [f"unit-{unit}" for unit in units],
            "item_id": [f"item-{item}" for item in items],
            "occurred_at": pd.Timestamp(START) + pd.to_timedelta(seconds, "s"),
            "weight": 1.0,
        }
    )


def catalogue():
    items = range(ITEMS)
    return pd.DataFrame(
        {
            "item_id": [f"item-{item}" for item in items],
            "name": [f"thing {item}" for item in items],
            "category": ["odd" if item % 2 else "even" for item in items],
        }
    )


@pytest.fixture
def run(engine, tmp_path):
    def run(recommender="item_knn", **changes):
        values = {
            "data_dir": tmp_path,
            "interactions": shop(),
            "recommender": recommender,
            "catalogue": catalogue(),
            "depth": DEPTH,
            "now": NOW,
            "code_version": "1.2.3",
            "actor": "ana",
        }
        return train(engine, **{**values, **changes})

    return run


def test_reranking_is_judged_published_and_stored(run, tmp_path):
    steps = [
        {"step": "block", "items": ["item-0"], "since": START},
        {"step": "pin", "item": "item-5", "position": 2},
    ]
    version = run(reranking=steps)
    assert version.parameters["reranking"][0]["since"] == "2026-01-01 00:00:00+00:00"
    lists = PublishedLists.open(tmp_path / version.artifact)
    shown = [lists.for_unit(f"unit-{number}") for number in range(UNITS)]
    assert not any("item-0" in items for items in [*shown, lists.default])
    assert all(items[1] == "item-5" for items in [*shown, lists.default])
    plain = run()
    judged = [each.metrics["repeats allowed"]["ndcg"] for each in (version, plain)]
    assert judged[0] < judged[1], "the most popular item can't be found"
    with pytest.raises(InvalidRequest, match=r"reranking\.0\.step is 'shuffle'"):
        run(reranking=[{"step": "shuffle"}])


def live(engine):
    with transaction(engine) as connection:
        return live_models(connection)


def versions(engine, name="item_knn"):
    with transaction(engine) as connection:
        return list_versions(connection, name)


def folders(tmp_path, name="item_knn"):
    return sorted(path.name for path in (tmp_path / "models" / name).iterdir())


@pytest.mark.parametrize("recommender", sorted(RECOMMENDERS))
def test_a_training_that_passes_serves(run, engine, tmp_path, recommender):
    version = run(recommender)
    assert version.status is ModelStatus.LIVE
    assert version.label == f"{recommender}/1"
    assert version.artifact == f"models/{recommender}/1"
    assert version.reason == "every check passed"
    assert (version.decided_by, version.decided_at) == ("ana", NOW)
    model = live(engine)[recommender]
    lists = PublishedLists.open(tmp_path / model.artifact)
    assert lists.sha256 == model.sha256
    assert (lists.name, lists.version) == (recommender, 1)
    assert (lists.units, lists.items, lists.depth) == (UNITS, ITEMS, DEPTH)
    popular = shop().groupby("item_id")["unit_id"].nunique()
    assert popular[lists.default].is_monotonic_decreasing
    assert lists.for_unit("stranger") is None
    for number in range(UNITS):
        items = lists.for_unit(f"unit-{number}")
        assert len(set(items)) == len(items) == DEPTH
    related = lists.related("item-3")
    if recommender in {"popularity", "own_frequent"}:
        assert related is None
    else:
        assert related
        assert "item-3" not in related
    if recommender in {"als", "bpr", "age_routed"} or related is None:
        assert lists.session_fade == ()
    else:
        assert lists.for_session(["item-3"], DEPTH) == related


def test_what_explored_is_published(run, tmp_path):
    step = {"step": "explore", "share": 0.5, "first": 2, "last": 4, "depth": 2}
    run(reranking=[step])
    run(name="plain")
    folders = (tmp_path / "models" / name / "1" for name in ("item_knn", "plain"))
    explores, plain = map(PublishedLists.open, folders)
    assert (explores.labels, plain.labels) == (("", "explored"), ())
    drawn = 0
    for number in range(UNITS):
        items, labels = explores.for_unit_labelled(f"unit-{number}")
        before = plain.for_unit(f"unit-{number}")
        for item, label, instead_of in zip(items, labels, before, strict=True):
            assert (item not in before) is (label == "explored")
            assert label or item == instead_of
        drawn += labels.count("explored")
    # Half of three places each, within four standard errors.
    assert abs(drawn / (3 * UNITS) - 0.5) < 4 * 0.5 / (3 * UNITS) ** 0.5


def test_lists_follow_the_tastes_of_the_units(run, tmp_path):
    run()
    lists = PublishedLists.open(tmp_path / "models" / "item_knn" / "1")
    for number in range(UNITS):
        first = lists.for_unit(f"unit-{number}")[:5]
        assert {int(item.removeprefix("item-")) % 2 for item in first} == {number % 2}


def test_all_facts_are_stored(run):
    data = shop()
    version = run("als", interactions=data, parameters={"factors": 4}, seed=7)
    recommender = version.parameters.pop("recommender")
    assert recommender["factors"] == 4
    assert set(recommender) == {
        "factors",
        "regularization",
        "alpha",
        "iterations",
        "weighting",
    }
    since = data["occurred_at"].sort_values().iloc[2400].isoformat()
    assert version.parameters == {
        "reranking": [],
        "depth": DEPTH,
        "exclude_seen": False,
        "with_related": True,
        "seed": 7,
        "test_since": since,
    }
    assert version.metrics["trained_on"] == {
        "interactions": 3000,
        "units": UNITS,
        "items": ITEMS,
    }
    for repeats in ("allowed", "new only"):
        figures = version.metrics[f"repeats {repeats}"]
        assert f"temporal split at {since}" in figures["protocol"]
        assert f"repeats: {repeats}" in figures["protocol"]
        assert 0 < figures["ndcg"] < 1
        assert {"recall", "hit_rate", "coverage", "k", "units"} <= set(figures)
    assert version.data_from == data["occurred_at"].min().to_pydatetime()
    assert version.data_to == data["occurred_at"].max().to_pydatetime()
    assert version.data_digest == digest(data)
    assert version.code_version == "1.2.3"
    assert len(version.checklist) == 11
    for check in version.checklist:
        assert set(check) == {"name", "value", "threshold", "rule", "slice", "passed"}
        assert check["passed"] is True


def test_the_same_seed_gives_the_same_lists(run, tmp_path):
    for seed in (1, 1, 2):
        run("als", seed=seed, interactions=shop().sample(frac=1, random_state=seed))
    one, same, other = (
        (tmp_path / "models" / "als" / str(number) / "lists.npy").read_bytes()
        for number in (1, 2, 3)
    )
    assert one == same
    assert one != other


def test_lists_may_repeat_unless_seen_items_are_excluded(run, tmp_path):
    data = shop(rows=400)
    run("als", interactions=data)
    version = run("als", interactions=data, exclude_seen=True)
    assert version.parameters["exclude_seen"] is True
    repeating, fresh = (
        PublishedLists.open(tmp_path / "models" / "als" / number)
        for number in ("1", "2")
    )
    repeated = 0
    for unit_id, seen in data.groupby("unit_id")["item_id"]:
        assert not set(fresh.for_unit(unit_id)) & set(seen)
        repeated += len(set(repeating.for_unit(unit_id)) & set(seen))
    assert repeated > 0


def test_names_let_one_recommender_have_many_models(run, engine):
    run(name="knn-cosine", parameters={"similarity": "cosine"})
    run(name="knn-bm25", parameters={"similarity": "bm25"})
    assert set(live(engine)) == {"knn-cosine", "knn-bm25"}


def test_the_next_version_retires_the_former(run, engine, tmp_path):
    run()
    run()
    assert [v.status for v in versions(engine)] == ["live", "retired"]
    assert folders(tmp_path) == ["1", "2"]
    with transaction(engine) as connection:
        audit = list_audit(connection, "model/item_knn")
    assert [row.action for row in audit] == ["set_live", "set_live"]
    assert audit[1].before["live"] == 1
    assert audit[1].after["live"] == 2
    assert audit[1].actor == "ana"


def test_steps_are_told(run):
    told = []
    run(progress=told.append)
    assert [step.split()[0] for step in told] == [
        "judging",
        "training",
        "making",
        "publishing",
    ]


# The gate


def test_a_failed_gate_changes_nothing_that_serves(run, engine, tmp_path):
    run()
    before, artifact = live(engine), tmp_path / "models" / "item_knn" / "1"
    files = {path.name: path.read_bytes() for path in artifact.iterdir()}
    # Each item is its own only neighbour, so a list holds what the unit had already.
    version = run(parameters={"neighbours": 1}, exclude_seen=True)
    assert version.status is ModelStatus.REJECTED
    assert "share of the first 10 places with items of its own is 0" in version.reason
    assert (version.artifact, version.sha256) == ("", "")
    assert live(engine) == before
    assert {path.name: path.read_bytes() for path in artifact.iterdir()} == files
    assert folders(tmp_path) == ["1"]
    failed = [check["name"] for check in version.checklist if not check["passed"]]
    assert "share of the first 10 places with items of its own" in failed
    with transaction(engine) as connection:
        audit = list_audit(connection, "model/item_knn")
    assert [row.action for row in audit] == ["set_live", "set_rejected"]
    assert audit[1].reason == version.reason


def test_after_a_rejection_training_goes_on(run, engine, tmp_path):
    run(parameters={"neighbours": 1}, exclude_seen=True)
    assert live(engine) == {}
    assert run().label == "item_knn/2"
    assert folders(tmp_path) == ["2"]


class Impersonal(Popularity):
    """Says that it is personal, and is not."""

    capabilities: ClassVar[Capabilities] = Capabilities()


def test_a_personal_recommender_that_says_the_same_to_all_is_rejected(run, monkeypatch):
    monkeypatch.setitem(RECOMMENDERS, "impersonal", Impersonal)
    version = run("impersonal")
    assert version.status is ModelStatus.REJECTED
    assert version.reason == (
        "distinct items in all lists is 10, must be at least 11; "
        "share of lists that are not the default list is 0, must be at least 0.5; "
        "share of the first places for the 10 items shown most is 1, must be at most 0.9"
    )


def test_lists_unlike_those_that_serve_are_rejected(run, engine):
    """The same recommender with the same parameters, on data of other tastes."""
    first = run()
    swapped = shop().assign(
        item_id=lambda d: d["item_id"].map(
            {f"item-{n}": f"item-{n ^ 1}" for n in range(ITEMS)}
        )
    )
    version = run(interactions=swapped)
    assert version.status is ModelStatus.REJECTED
    assert "places as in the version that serves (40 units) is 0" in version.reason
    assert live(engine)["item_knn"].version == first.version
    assert run(interactions=swapped, parameters={"neighbours": 20}).status == "live", (
        "with other parameters it may differ"
    )


def test_a_version_tells_its_figures_by_market_and_what_its_lists_cost(run):
    shares = shop().assign(market=lambda d: np.where(d.index % 2, "de", None))
    version = run(interactions=shares)
    slices = version.metrics["repeats allowed"]["slices"]
    assert {each["name"] for each in slices if each["kind"] == "market"} == {"de"}
    assert {each["kind"] for each in slices} >= {"history", "product", "category"}
    interval = version.metrics["repeats allowed"]["intervals"]["ndcg"]
    assert interval["low"] < interval["value"] < interval["high"]
    checks = {check["name"]: check for check in version.checklist}
    assert 0 < checks["seconds to make 1,000 lists"]["value"] < 60
    assert checks["share of sessions with an answer"]["passed"]


# Data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.iloc[:0], "interactions are empty"),
        (lambda d: d.drop(columns=["weight"]), "lack the columns weight"),
        (lambda d: d[d["unit_id"].isin(["unit-1", "unit-2"])], "are of 2 units"),
        (lambda d: d[d["item_id"].isin(["item-1", "item-2"])], "with 2 items"),
        (
            lambda d: d.assign(occurred_at=d["occurred_at"].dt.tz_localize(None)),
            "with a time zone",
        ),
        (lambda d: d.assign(occurred_at=pd.NaT), "with a time zone"),
        (
            lambda d: d.assign(occurred_at=d["occurred_at"].where(d.index > 0)),
            "in every row",
        ),
        (
            lambda d: d.assign(occurred_at=d["occurred_at"] + timedelta(days=30)),
            "after now",
        ),
        (lambda d: d.assign(weight=np.nan), "must be finite and greater than 0"),
        (lambda d: d.assign(weight=-1.0), "must be finite and greater than 0"),
        (lambda d: d.assign(item_id=d.index), "ids must be text"),
        (lambda d: d.assign(unit_id=""), "must have 1 to 128"),
        (lambda d: d.assign(item_id="a\x00" + d["item_id"]), "control character"),
        (
            lambda d: d.assign(occurred_at=pd.Timestamp(START)),
            "leaves one side empty",
        ),
        (
            lambda d: pd.concat(
                [d, d.assign(unit_id="x" + d["unit_id"], occurred_at=NOW)]
            ),
            "none of .* test pairs has its unit and item in training",
        ),
    ],
)
def test_data_that_can_not_be_trained_on_is_refused(run, engine, change, message):
    with pytest.raises(InvalidRequest, match=message):
        run(interactions=change(shop()))
    with transaction(engine) as connection:
        assert list_versions(connection) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recommender": "svd"}, "known recommenders: popularity, category_pop"),
        ({"parameters": {"factors": 3}}, "has no parameter 'factors'"),
        ({"parameters": {"neighbours": 0}}, "neighbours is 0"),
        ({"name": "../als"}, "model name is"),
        ({"depth": 0}, "depth is 0; it must be 1 to 1000"),
        ({"depth": 1001}, "depth is 1001; it must be 1 to 1000"),
        ({"depth": 25}, "depth is 25, but interactions are with 24 items"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"test_since": START}, "leaves one side empty"),
        ({"test_since": datetime(2026, 2, 1)}, "has no time zone"),  # noqa: DTZ001
    ],
)
def test_bad_requests_are_refused(run, engine, change, message):
    with pytest.raises(InvalidRequest, match=message):
        run(**change)
    with transaction(engine) as connection:
        assert list_versions(connection) == []


def test_the_test_period_may_be_chosen(run):
    since = START + timedelta(days=30)
    version = run(test_since=since)
    assert version.parameters["test_since"] == since.isoformat()
    assert since.isoformat() in version.metrics["repeats allowed"]["protocol"]


def test_the_digest_is_of_the_content_only():
    data = shop(rows=200)
    shuffled = data.sample(frac=1, random_state=1)
    elsewhere = data.assign(occurred_at=data["occurred_at"].dt.tz_convert("Asia/Tokyo"))
    assert digest(data) == digest(shuffled) == digest(elsewhere)
    assert digest(data) == digest(data.assign(more=1))
    assert digest(
        data.assign(occurred_at=data["occurred_at"].astype("datetime64[ns, UTC]"))
    ) == digest(data)
    others = [
        data.iloc[1:],
        pd.concat([data, data.iloc[:1]]),
        data.assign(weight=2.0),
        data.assign(unit_id=data["unit_id"] + "x"),
        data.assign(item_id=data["item_id"].iloc[::-1].to_numpy()),
        data.assign(occurred_at=data["occurred_at"] + timedelta(microseconds=1)),
    ]
    assert len({digest(other) for other in [data, *others]}) == 7


# Users' files


@pytest.fixture
def files(tmp_path):
    shop().to_csv(tmp_path / "interactions.csv", index=False)
    items = pd.DataFrame({"item_id": [f"item-{n}" for n in range(12)]})
    items.to_parquet(tmp_path / "catalogue.parquet")
    return tmp_path


def test_files_are_read(files):
    loaded = load_interactions(files / "interactions.csv")
    assert digest(loaded) == digest(shop())


def test_a_cut_keeps_what_lies_before(files):
    cut = START + timedelta(days=20)
    loaded = load_interactions(files / "interactions.csv", cut=cut)
    data = shop()
    assert digest(loaded) == digest(data[data["occurred_at"] < cut])


def test_items_not_in_the_catalogue_are_left_out(files):
    loaded = load_interactions(
        files / "interactions.csv", catalogue=files / "catalogue.parquet"
    )
    assert set(loaded["item_id"]) == {f"item-{n}" for n in range(12)}


def test_what_is_wrong_with_a_file_is_said(files):
    (files / "bad.csv").write_text("unit_id,item_id,occurred_at\nu,i,yesterday\n")
    (files / "other.csv").write_text("item_id\nsomething\n")
    for path, options, message in (
        (files / "none.csv", {}, "none.csv can't be read"),
        (files / "bad.csv", {}, "row 1, column occurred_at, value 'yesterday'"),
        (
            files / "interactions.csv",
            {"catalogue": files / "other.csv"},
            "no interaction is with an item of",
        ),
        (files / "interactions.csv", {"cut": START}, "leaves one side empty"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            load_interactions(path, **options)


# Faults


# The threads of one process share the setting that each training lowers for itself.
@pytest.mark.filterwarnings("ignore:OpenBLAS is configured:RuntimeWarning")
def test_two_trainings_at_once_are_both_stored(run, engine, tmp_path):
    with ThreadPoolExecutor(4) as threads:
        trained = list(threads.map(lambda seed: run("als", seed=seed), range(4)))
    assert sorted(version.version for version in trained) == [1, 2, 3, 4]
    assert (
        sorted(v.status for v in versions(engine, "als")) == ["live"] + ["retired"] * 3
    )
    for version in versions(engine, "als"):
        lists = PublishedLists.open(tmp_path / version.artifact)
        lists.verify()
        assert (lists.sha256, lists.version) == (version.sha256, version.version)
    assert live(engine)["als"].version == 4


def test_a_database_that_does_not_answer_publishes_nothing(run, engine, tmp_path):
    run()
    away = create_engine("postgresql+psycopg://127.0.0.1:1/none", name="test")
    with pytest.raises(Unavailable, match="the database does not answer"):
        train(
            away,
            data_dir=tmp_path,
            interactions=shop(),
            recommender="item_knn",
            depth=DEPTH,
            now=NOW,
            code_version="1.2.3",
            actor="ana",
        )
    away.dispose()
    assert folders(tmp_path) == ["1"]
    assert live(engine)["item_knn"].version == 1


@contextmanager
def file_size_limit(size):
    """Let writes beyond `size` bytes of a file fail, as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_live_one(run, engine, tmp_path):
    run()
    before = live(engine)
    with (
        file_size_limit(500),
        pytest.raises(Unavailable, match=r"item_knn/2 could not be .* make room"),
    ):
        run()
    assert live(engine) == before
    assert folders(tmp_path) == ["1"]
    assert len(versions(engine)) == 1
    assert run().version == 2


CRASH = """
    import os, sys
    from datetime import datetime
    from pathlib import Path
    import pandas as pd
    from experiment_service import training
    from experiment_service.storage import models
    from experiment_service.storage.database import create_engine
    from recommenders import folders

    url, data_dir, where = sys.argv[1:]

    def die(*_, **__):
        os._exit(9)

    if where == "published":
        models.insert_version = die
    else:
        folders.flush_folder = die
    training.train(
        create_engine(url),
        data_dir=Path(data_dir),
        interactions=pd.read_parquet(Path(data_dir) / "shop.parquet"),
        recommender="item_knn",
        depth=10,
        now=datetime.fromisoformat("2026-03-01T12:00:00+00:00"),
        code_version="1.2.3",
        actor="ana",
    )
"""


@pytest.mark.parametrize("where", ["publishing", "published"])
def test_a_crash_is_cleaned_up_by_the_next_training(
    run, engine, database_url, tmp_path, where
):
    run()
    before = live(engine)
    # Another seed: these lists must not survive under the number of the next version.
    shop(seed=1).to_parquet(tmp_path / "shop.parquet")
    died = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(CRASH),
            database_url,
            str(tmp_path),
            where,
        ],
        check=False,
    )
    assert died.returncode == 9
    left = [name for name in folders(tmp_path) if name != "1"]
    assert len(left) == 1
    assert (left == ["2"]) is (where == "published")
    assert live(engine) == before
    assert run().label == "item_knn/2"
    assert folders(tmp_path) == ["1", "2"]
    model = live(engine)["item_knn"]
    lists = PublishedLists.open(tmp_path / model.artifact)
    lists.verify()
    assert lists.sha256 == model.sha256


def test_only_left_over_folders_are_removed(run, tmp_path):
    run()
    models = tmp_path / "models"
    run(name="other")
    (models / "item_knn" / "notes").mkdir()
    (models / "item_knn" / "7").mkdir()
    run()
    assert folders(tmp_path) == ["1", "2", "notes"]
    assert folders(tmp_path, "other") == ["1"]


def test_lists_of_the_last_versions_stay_and_what_a_roll_back_leads_to(
    run, back, engine, tmp_path
):
    for _ in range(3):
        run(keep=1)
    # The second was live when the third was published, the first was the last before.
    assert folders(tmp_path) == ["1", "2", "3"]
    assert back(1).version == 1
    run(keep=1)
    # 3 served last before 1; nothing but 4 and what it replaced is newer than that.
    assert folders(tmp_path) == ["1", "3", "4"]
    with pytest.raises(InvalidState, match="item_knn/2 can't serve again: its lists"):
        back(2)
    assert live(engine)["item_knn"].version == 4
    with pytest.raises(InvalidRequest, match="keep is 0; it must be 1 or more"):
        run(keep=0)


def test_lists_that_a_process_has_open_stay(run, tmp_path):
    run()
    held = PublishedLists.open(tmp_path / "models" / "item_knn" / "1")
    for _ in range(3):
        run(keep=1)
    assert folders(tmp_path) == ["1", "2", "3", "4"]
    held.verify()
    del held
    run(keep=1)
    assert folders(tmp_path) == ["3", "4", "5"]


# Rolling back


@pytest.fixture
def back(engine, tmp_path):
    def back(version=None, **changes):
        values = {
            "data_dir": tmp_path,
            "name": "item_knn",
            "actor": "bea",
            "reason": "clicks fell",
            "now": NOW + timedelta(hours=1),
        }
        with transaction(engine) as connection:
            return roll_back(connection, version=version, **{**values, **changes})

    return back


def test_rolling_back_goes_from_version_to_version(run, back, engine):
    for _ in range(3):
        run()
    run(parameters={"neighbours": 1}, exclude_seen=True)
    assert [back().version, back().version] == [2, 1]
    assert live(engine)["item_knn"].version == 1
    assert [v.status for v in versions(engine)] == [
        "rejected",
        "retired",
        "retired",
        "live",
    ]
    with pytest.raises(InvalidState, match="no retired version before item_knn/1"):
        back()
    assert back(3).version == 3
    with transaction(engine) as connection:
        last = list_audit(connection, "model/item_knn")[-1]
    assert (last.actor, last.reason, last.action) == ("bea", "clicks fell", "set_live")
    assert (last.before["live"], last.after["live"]) == (1, 3)


def test_rolling_back_without_a_live_version(run, back, engine):
    run()
    (only,) = versions(engine)
    with transaction(engine) as connection:
        decide(
            connection,
            only.id,
            ModelStatus.RETIRED,
            decided_by="ana",
            reason="recalled",
            now=NOW,
        )
    assert live(engine) == {}
    assert back().label == "item_knn/1"


@pytest.mark.parametrize("fault", ["missing", "cut off", "changed", "replaced"])
def test_damaged_lists_never_serve_again(run, back, engine, tmp_path, fault):
    run()
    run()
    run(name="other")
    artifact = tmp_path / "models" / "item_knn" / "1"
    path = artifact / "lists.npy"
    content = path.read_bytes()
    if fault == "missing":
        shutil.rmtree(artifact)
    elif fault == "cut off":
        path.write_bytes(content[:-4])
    elif fault == "changed":
        path.write_bytes(content[:-4] + bytes(4))
    else:
        shutil.rmtree(artifact)
        shutil.copytree(tmp_path / "models" / "other" / "1", artifact)
    with pytest.raises(InvalidState, match=r"item_knn/1 can't serve again: .*item_knn"):
        back()
    assert live(engine)["item_knn"].version == 2


def test_only_a_retired_version_can_serve_again(run, back):
    run()
    run(parameters={"neighbours": 1}, exclude_seen=True)
    with pytest.raises(InvalidState, match="item_knn/1 is live; only a retired"):
        back(1)
    with pytest.raises(InvalidState, match="item_knn/2 is rejected; only a retired"):
        back(2)
    with pytest.raises(NotFound, match="has no version 3; versions: 2, 1"):
        back(3)
    with pytest.raises(NotFound, match="model 'als' does not exist"):
        back(name="als")
