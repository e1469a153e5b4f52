"""A release from files to a version that serves, and every way in which it stops."""

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from experiment_service.cli import main
from experiment_service.errors import (
    Conflict,
    InvalidRequest,
    InvalidState,
    Unavailable,
)
from experiment_service.storage.database import held_alone, transaction
from experiment_service.storage.experiments import list_audit
from experiment_service.storage.models import ModelStatus, list_versions, live_models
from experiment_service.training import Surroundings, read_pipeline, release
from recommenders.lists import PublishedLists
from tests.integration.test_training import file_size_limit

DOCS = Path(__file__).parents[2] / "docs" / "pipelines"
START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = START + timedelta(days=51)
UNITS, ITEMS = 60, 30


def shop(seed=0, rows=2400):
    """Two tastes: odd units nearly always have odd items, even units even ones."""
    rng = np.random.default_rng(seed)
    units = rng.integers(UNITS, size=rows)
    items = 2 * np.minimum(rng.geometric(0.12, size=rows) - 1, ITEMS // 2 - 1)
    items += np.where(rng.random(rows) < 0.9, units % 2, 1 - units % 2)
    return pd.DataFrame(
        {
            "unit_id": [f"ünit-{unit}" for unit in units],
            "item_id": [f"帽子-{item}" for item in items],
            "occurred_at": pd.Timestamp(START)
            + pd.to_timedelta(rng.integers(50 * 86_400, size=rows), "s"),
        }
    )


def products():
    return pd.DataFrame(
        {
            "item_id": [f"帽子-{item}" for item in range(ITEMS)],
            "category": ["odd" if item % 2 else "even" for item in range(ITEMS)],
            "price": [float(10 + item) for item in range(ITEMS - 2)] + [None] * 2,
            "in_stock": [item != 7 for item in range(ITEMS)],
        }
    )


PIPELINE = {
    "name": "home",
    "recommender": "item_knn",
    "data": {"interactions": "purchases.csv"},
    "depth": 10,
    "gates": [{"repeats": "allowed", "worse_than_live_by_at_most": 0.01}],
}


@pytest.fixture
def folder(tmp_path):
    shop().to_csv(tmp_path / "purchases.csv", index=False)
    products().to_csv(tmp_path / "products.csv", index=False)
    return tmp_path


@pytest.fixture
def run(engine, folder):
    def run(
        *, market=None, now=NOW, file=None, dry_run=False, progress=print, **changes
    ):
        path = folder / "home.yaml" if file is None else file
        if file is None:
            path.write_text(yaml.safe_dump({**PIPELINE, **changes}))
        around = Surroundings(
            engine=engine,
            folder=folder,
            data_dir=folder / "data",
            pseudonyms=None,
            now=now,
            code_version="1.2.3+g0",
            actor="ana",
            progress=progress,
        )
        return release(read_pipeline(path), market, around, dry_run=dry_run)

    return run


def live(engine):
    with transaction(engine) as connection:
        return live_models(connection)


def versions(engine, name="home"):
    with transaction(engine) as connection:
        return list_versions(connection, name)


def verdicts(made):
    return {step.name: step.verdict for step in made.steps}


@contextmanager
def nothing_changes(engine, folder):
    """What serves is as before, in the database and on disk."""

    def all_there_is():
        models = folder / "data" / "models"
        files = {
            path: path.read_bytes() for path in models.rglob("*") if path.is_file()
        }
        return live(engine), files

    before = all_there_is()
    yield
    assert all_there_is() == before


def test_a_pipeline_of_the_docs_goes_from_files_to_what_serves(run, folder):
    """The file as it is; only the day is another one."""
    shop().to_csv(folder / "purchases-de.csv", index=False)
    first = run(file=DOCS / "shop.yaml", market="de")
    assert set(verdicts(first).values()) == {"passed"}, first.steps
    assert first.serving == "home-de/1"
    assert list(verdicts(first)) == [
        "data",
        "search",
        "judge",
        "train",
        "checklist",
        "gate",
        "publish",
    ]
    version = first.version
    assert (version.status, version.parent) == (ModelStatus.LIVE, None)
    assert version.code_version == "1.2.3+g0"
    lists = PublishedLists.open(folder / "data" / version.artifact)
    shown = lists.for_unit("ünit-3")
    assert len(shown) >= 10
    assert "帽子-7" not in shown, "out of stock"
    names = [check["name"] for check in version.checklist]
    assert sum(name.startswith("data: ") for name in names) == 9
    assert sum(name.startswith("gate: ") for name in names) == 2
    assert not list((folder / "data" / "searches").iterdir())
    again = run(file=DOCS / "shop.yaml", market="de")
    assert (again.serving, again.version.parent) == ("home-de/2", 1)
    assert {check["passed"] for check in again.version.checklist} == {True}
    assert len(again.version.checklist) > len(version.checklist) + 6
    apart = again.version.metrics["repeats allowed, less home-de/1"]["ndcg"]
    assert apart == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_data_that_is_not_sound_is_refused(run, engine, folder):
    assert run().serving == "home/1"
    with nothing_changes(engine, folder):
        late = run(now=NOW + timedelta(days=30))
        shop().assign(item_id=lambda d: d["item_id"] + "/x").to_csv(
            folder / "purchases.csv", index=False
        )
        anew = run()
    assert verdicts(late)["data"] == "failed"
    assert set(list(verdicts(late).values())[1:]) == {"not reached"}
    assert "days since the last interaction is 31" in late.error.message
    assert isinstance(late.error, InvalidState)
    assert late.version is None
    assert "share of the items served now that the data has is 0" in anew.error.message
    assert len(versions(engine)) == 1
    with transaction(engine) as connection:
        refusals = list_audit(connection, "model/home")[1:]
    assert [each.action for each in refusals] == ["refuse_data"] * 2
    assert refusals[0].reason == late.error.message


def test_drift_is_told_against_what_serves(run, engine, folder):
    run()
    shop().iloc[:1100].assign(weight=[7.0, 9.0] * 550).to_csv(
        folder / "purchases.csv", index=False
    )
    with nothing_changes(engine, folder):
        made = run()
    message = made.error.message
    assert (
        "times those of the version that serves is 0.4583, must be at leas" in message
    )
    assert "data: drift of weights is" in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.iloc[:0], "has no rows"),
        (lambda d: d.iloc[:20], "units is"),
        (lambda d: d.drop(columns=["item_id"]), "has no column item_id"),
        (lambda d: d.assign(unit_id=""), "row 1, column unit_id, no value"),
        (lambda d: pd.concat([d, d]), "share of repeated interactions is 0.5"),
        (
            lambda d: pd.concat(
                [
                    d,
                    d.assign(
                        unit_id="robot",
                        item_id="帽子-" + pd.Series(range(len(d))).astype(str),
                    ),
                ]
            ),
            "share of the interactions of the busiest unit is 0.5",
        ),
    ],
)
def test_bad_input_is_a_reason_and_nothing_is_stored(run, engine, folder, change, said):
    change(shop()).to_csv(folder / "purchases.csv", index=False)
    made = run()
    assert said in made.error.message
    assert (made.version, made.serving) == (None, None)
    with transaction(engine) as connection:
        assert list_versions(connection) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda d: d.assign(price=-1.0),
            "row 1, column price, value '-1.0': must be a finite number, 0 or more",
        ),
        (lambda d: pd.concat([d, d.iloc[:1]]), "must occur only once"),
        (lambda d: d.iloc[:4], "share of interactions with items not in the catalogue"),
        (lambda d: d.assign(item_id="x" + d["item_id"]), "no interaction is with an"),
        (
            lambda d: d.drop(columns="price"),
            "share of interactions with items without price is 1",
        ),
    ],
)
def test_a_bad_catalogue_is_a_reason(run, folder, change, said):
    change(products()).to_csv(folder / "products.csv", index=False)
    made = run(
        data={"interactions": "purchases.csv", "catalogue": "products.csv"},
        checks={"max_without_price": 0.5},
    )
    assert said in made.error.message
    assert verdicts(made)["data"] == "failed"


def test_items_without_metadata_are_no_error(run, folder):
    products()[["item_id"]].assign(category=None, price=None).to_csv(
        folder / "products.csv", index=False
    )
    data = {"interactions": "purchases.csv", "catalogue": "products.csv"}
    assert run(data=data).serving == "home/1"


def test_a_unit_with_many_events_is_trained_on_where_it_may_be(run, folder):
    robot = pd.DataFrame(
        {
            "unit_id": "robot",
            "item_id": [f"帽子-{n % ITEMS}" for n in range(100_000)],
            "occurred_at": pd.Timestamp(START)
            + pd.to_timedelta(np.arange(100_000) * 40, "s"),
        }
    )
    pd.concat([shop(), robot]).to_csv(folder / "purchases.csv", index=False)
    made = run(with_related=False)
    assert "busiest unit is 0.9766, must be at most 0.1" in made.error.message
    made = run(with_related=False, checks={"max_unit_share": None})
    assert made.serving == "home/1"
    lists = PublishedLists.open(folder / "data" / made.version.artifact)
    assert len(lists.for_unit("robot")) == 10


# The gate


def test_a_worse_one_is_rejected_and_what_serves_goes_on(run, engine, folder):
    run()
    with nothing_changes(engine, folder):
        made = run(recommender="popularity")
    assert verdicts(made)["gate"] == "failed"
    assert verdicts(made)["publish"] == "not reached"
    assert made.serving == "home/1"
    version = made.version
    assert (version.status, version.parent, version.artifact) == ("rejected", 1, "")
    assert "less that of home/1, at worst" in version.reason
    assert made.error.message == version.reason
    apart = version.metrics["repeats allowed, less home/1"]["ndcg"]
    failed = [check for check in version.checklist if not check["passed"]]
    assert [check["value"] for check in failed] == [apart["low"]]
    assert apart["low"] < apart["value"] < apart["high"] < -0.01
    better = run(recommender="item_knn", parameters={"similarity": "bm25"}, gates=[])
    assert (better.serving, better.version.parent) == ("home/3", 1)


def test_what_served_is_judged_on_what_the_new_one_learned_from(run, engine):
    """Trained on the test period, as it was, it would have foretold it."""
    run(recommender="own_frequent")
    made = run(recommender="popularity", depth=5)
    apart = made.version.metrics["repeats allowed, less home/1"]["ndcg"]
    mine, its = (
        version.metrics["repeats allowed"]["ndcg"] for version in versions(engine)
    )
    # The same seed, data and start of the test, so its figure is that of its own release.
    assert apart["value"] == pytest.approx(mine - its)


def test_what_can_not_be_trained_again_lets_nobody_pass(run):
    data = {"interactions": "purchases.csv", "catalogue": "products.csv"}
    assert run(data=data, recommender="content").serving == "home/1"
    made = run(checks={"max_psi": None})
    assert verdicts(made)["gate"] == "failed"
    assert "home/1 can't be trained again: content needs a catalogue" in str(made.error)


def test_a_failed_checklist_comes_before_the_gate(run, engine, folder):
    run()
    with nothing_changes(engine, folder):
        made = run(parameters={"neighbours": 1}, exclude_seen=True)
    assert verdicts(made)["checklist"] == "failed"
    assert verdicts(made)["gate"] == "not reached"
    assert made.version.status is ModelStatus.REJECTED
    assert "share of the first 10 places" in made.error.message


def test_a_search_that_finds_nothing_better_keeps_the_start(run):
    space = {"similarity": ["cosine"], "neighbours": [50]}
    parameters = {"similarity": "cosine", "neighbours": 50}
    search = {"space": space, "trials": 2, "repeats": "allowed"}
    made = run(search=search, parameters=parameters)
    said = {step.name: step.said for step in made.steps}
    assert (
        "nothing better was found than the parameters it started from" in said["search"]
    )
    found = made.version.parameters["recommender"]
    assert {name: found[name] for name in parameters} == parameters


def test_a_shadow_does_not_serve(run):
    run()
    made = run(shadow={"share": 0.2, "rule": {"answers": 50}})
    assert (made.version.status, made.serving) == (ModelStatus.SHADOW, "home/1")
    assert list(verdicts(made))[-1] == "shadow"
    assert made.error is None


# Markets, dry runs, locks, faults


def test_markets_are_chosen_by_file_or_by_column(run, engine, folder):
    shop(1).assign(market="de").to_csv(folder / "all.csv", index=False)
    data = {"interactions": "all.csv"}
    assert run(data=data, markets=["de", "at"], market="de").serving == "home-de/1"
    none = run(data=data, markets=["de", "at"], market="at")
    assert none.error.message == "no interaction is of market 'at'; markets: de"
    shop(2).to_csv(folder / "all.csv", index=False)
    none = run(data=data, markets=["de", "at"], market="at")
    assert "all.csv has no column market" in none.error.message
    shop(2).to_csv(folder / "p-at.csv", index=False)
    data = {"interactions": "p-{market}.csv", "days": 40}
    made = run(data=data, markets=["de", "at"], market="at")
    assert made.serving == "home-at/1"
    last = shop(2)["occurred_at"].max()
    assert made.version.data_from > last - timedelta(days=40)
    none = run(data=data, markets=["de", "at"], market="de")
    assert "p-de.csv can't be read" in none.error.message
    assert set(live(engine)) == {"home-de", "home-at"}


def test_a_dry_run_looks_at_the_data_and_changes_nothing(run, engine, folder):
    made = run(dry_run=True, search={"trials": 3})
    assert list(verdicts(made).values()) == ["passed", *["would follow"] * 6]
    said = {step.name: step.said for step in made.steps}
    assert "at most 3 trials and 10 minutes" in said["search"]
    assert "worse than live by at most 0.01" in said["gate"]
    with transaction(engine) as connection:
        assert list_versions(connection) == []
    assert not (folder / "data").exists()
    shop().iloc[:20].to_csv(folder / "purchases.csv", index=False)
    assert verdicts(run(dry_run=True))["judge"] == "not reached"
    with transaction(engine) as connection:
        assert list_audit(connection, "model/home") == []


def test_one_release_of_a_model_at_a_time(run, engine):
    with held_alone(engine, "release of home"):
        made = run()
        assert run(name="other").serving == "other/1"
    assert isinstance(made.error, Conflict)
    assert made.error.message == (
        "another release of home is running; wait until it has ended"
    )
    assert run().serving == "home/1"


def test_a_full_disk_is_said_and_what_serves_goes_on(run, engine, folder):
    run()
    with nothing_changes(engine, folder), file_size_limit(500):
        # What pytest catches of the output is a file too.
        made = run(progress=lambda _: None)
    assert isinstance(made.error, Unavailable)
    assert verdicts(made)["publish"] == "failed"
    assert "make room" in made.error.message
    assert len(versions(engine)) == 1


def test_an_unforeseen_failure_is_raised_and_changes_nothing(
    run, engine, folder, monkeypatch
):
    run()
    monkeypatch.setattr(
        "experiment_service.training.releasing.make", lambda *_, **__: 1 / 0
    )
    with nothing_changes(engine, folder), pytest.raises(ZeroDivisionError):
        run()


def test_the_command_prints_a_summary_and_tells_by_its_status(
    monkeypatch, capsys, folder, database_url
):
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("EXPERIMENT_SERVICE_DATA_DIR", str(folder / "data"))
    monkeypatch.setenv("EXPERIMENT_SERVICE_PIPELINES", str(folder))
    document = {**PIPELINE, "checks": {"max_age_days": None}}
    (folder / "home.yaml").write_text(yaml.safe_dump(document))
    assert main(["release", "home"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "release of home"
    assert [line.split()[1] for line in lines[2:8]] == ["passed"] * 6
    assert lines[-2:] == ["home/1: live", "serving: home/1"]
    assert "making lists of home for 60 units" in err
    assert main(["release", str(folder / "home.yaml"), "--market", "de"]) == 2
    assert "market is 'de'" in capsys.readouterr().err
    assert main(["release", "nothing"]) == 2
    assert "there is none of that name" in capsys.readouterr().err
    document["checks"] = {}
    (folder / "home.yaml").write_text(yaml.safe_dump(document))
    assert main(["release", "home"]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "serving: home/1"
    assert "not released: home; what served before still serves" in err
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(SystemExit) as ended:
        main(["release", "home"])
    assert ended.value.code == 75
    with pytest.raises(InvalidRequest):
        read_pipeline(folder / "products.csv")
