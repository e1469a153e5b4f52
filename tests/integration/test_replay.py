"""The command `replay` on an experiment's rows and on a file."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from experiment_service.domain.assignment import assign
from experiment_service.domain.declaration import parse_declaration
from experiment_service.domain.event import Interaction
from experiment_service.domain.experiment import Epoch, ExperimentState
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import transaction
from experiment_service.storage.events import store_events
from tests.integration.test_cli import refused, run  # noqa: F401 - a fixture
from tests.integration.test_reads import exposure, uuid_at

START = datetime(2026, 5, 4, 9, tzinfo=UTC)
RATES = {"a": 0.1, "b": 0.3, "c": 0.2}
EPOCHS = [
    {"a": 0.6, "b": 0.2, "c": 0.2},
    {"a": 0.2, "b": 0.5, "c": 0.3},
    {"a": 0.1, "b": 0.8, "c": 0.1},
]
UNITS = 900


@pytest.fixture
def bandit(engine):
    """A bandit of three epochs a day each; returns (variant, propensity, y) of units."""
    document = {
        "key": "offers",
        "kind": "bandit",
        "placement": "home",
        "attribution_window": "2h",
        "variants": [
            {"key": key, "recommender": "popularity", "control": key == "a"}
            for key in RATES
        ],
        "policy": {"name": "thompson", "interval": "1d", "floor": 0.05},
    }
    rng = np.random.default_rng(11)
    rows, shown, done = [], [], []
    with transaction(engine) as connection:
        experiment = storage.create_experiment(
            connection, parse_declaration(document), now=START
        )
        experiment = storage.set_state(
            connection, experiment, ExperimentState.RUNNING, now=START
        )
        for number, weights in enumerate(EPOCHS):
            opened = START + timedelta(days=number)
            epoch = Epoch(number=number, weights=weights, reason="x", started_at=opened)
            storage.insert_epoch(connection, experiment.id, epoch)
            for unit in range(UNITS):
                drawn = assign(experiment, epoch, f"u{unit}", {})
                at = opened + timedelta(seconds=int(rng.integers(70_000)))
                event = exposure(
                    experiment, f"u{unit}", drawn.variant, at, epoch=number
                )
                y = rng.random() < RATES[drawn.variant]
                object.__setattr__(event, "propensity", drawn.propensity)
                object.__setattr__(event, "context", {"device": f"d{unit % 2}"})
                shown.append(event)
                rows.append((drawn.variant, drawn.propensity, float(y)))
                if y:
                    done.append(clicked(event, at + timedelta(minutes=5)))
        store_events(connection, shown, done)
    return rows


def clicked(on, at):
    return Interaction(
        id=uuid_at(at),
        exposure_id=on.id,
        unit_id=on.unit_id,
        kind="click",
        item_id=None,
        position=None,
        value=None,
        occurred_at=at,
    )


def test_an_experiment_is_replayed_from_its_rows(run, bandit):  # noqa: F811
    status, out, _ = run(
        *("replay", "offers", "--policy", "thompson:floor=0.05", "--policy", "uniform"),
        *("--estimator", "ips", "--json"),
    )
    assert status == 0
    report = json.loads(out)
    assert report["rounds"] == 3 * UNITS
    assert report["units"] == UNITS
    assert report["proportion"] is True
    assert report["plan"]["update_seconds"] == 86_400
    assert report["plan"]["delay_seconds"] == 7200
    assert report["plan"]["minimum_units"] == 50
    y = np.array([row[2] for row in bandit])
    p = np.array([row[1] for row in bandit])
    assert report["log"]["estimate"] == pytest.approx(y.mean(), abs=1e-12)
    for arm in RATES:
        chosen = np.array([row[0] == arm for row in bandit])
        expected = np.mean(chosen * y / p)
        assert report["fixed"][arm]["estimate"] == pytest.approx(expected, abs=1e-12)
    uniform = report["outcomes"][1]["value"]
    assert uniform["estimate"] == pytest.approx(np.mean(y / p / 3), abs=1e-12)
    thompson = report["outcomes"][0]
    assert thompson["epochs"] == 3
    assert thompson["weights"][0]["weights"] == dict.fromkeys(
        RATES, pytest.approx(1 / 3)
    )
    assert thompson["weights"][-1]["weights"]["b"] > 0.8


@pytest.mark.usefixtures("bandit")
def test_the_table_reads_from_the_best_policy_down(run):  # noqa: F811
    status, out, err = run(
        *("replay", "offers", "--segment-by", "device"),
        *("--policy", "uniform", "--policy", "segmented_thompson:floor=0.05"),
    )
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(
        "experiment offers, reward visitor_interaction_rate: 2,700 rounds of 900 units"
    )
    names = [line.split("  ")[0] for line in lines[3:10]]
    assert names == [
        "POLICY",
        "the log itself",
        "segmented_thompson:floor=0.05",
        "uniform",
        "always a",
        "always b",
        "always c",
    ]
    assert "regret is against always b, the best on this log" in out


@pytest.mark.usefixtures("bandit")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "uniform"], "name an experiment or a --file"),
        (["ofers", "--policy", "uniform"], "'ofers' does not exist"),
        (["offers", "--policy", "magic"], "magic"),
        (
            ["offers", "--policy", "uniform", "--metric", "click_through_rate"],
            "is a ratio",
        ),
        (["offers", "--policy", "uniform", "--metric", "x"], "metric 'x' is not known"),
        (["offers", "--policy", "uniform", "--column", "arm=x"], "for a --file only"),
        (["offers", "--policy", "uniform", "--control", "a"], "for a --file only"),
        (["offers", "--policy", "uniform", "--interval", "x"], "--interval is 'x'"),
        (["offers", "--policy", "segmented_thompson"], "the log has no segments"),
        (["--file", "no.csv", "--policy", "uniform"], "there is no file 'no.csv'"),
    ],
)
def test_what_is_refused_is_named(run, arguments, words):  # noqa: F811
    assert refused(run("replay", *arguments), words)


def test_a_file_is_replayed_with_its_own_column_names(run, tmp_path):  # noqa: F811
    rng = np.random.default_rng(3)
    chosen = rng.integers(2, size=2000)
    clicks = rng.random(2000) < np.where(chosen, 0.2, 0.1)
    file = tmp_path / "log.csv"
    lines = [
        f"2026-05-04 {i // 100:02d}:{i % 60:02d}:00,{'xy'[chosen[i]]},0.5,{clicks[i]:d}"
        for i in sorted(range(2000), key=lambda i: (i // 100, i % 60))
    ]
    file.write_text("\n".join(["time,item,p,click", *lines]))
    columns = [f"--column={name}" for name in ("arm=item", "propensity=p")]
    policy = ("--policy", "thompson:control_share=0.1", "--json")
    common = ("replay", "--file", file, *columns, *policy, "--every", "100")
    assert refused(run(*common, "--control", "x"), "no column 'reward'")
    status, out, _ = run(*common, "--column=reward=click", "--control", "x")
    assert status == 0
    report = json.loads(out)
    assert report["arms"] == ["x", "y"]
    weights = report["outcomes"][0]["weights"]
    assert weights[0]["weights"]["x"] == pytest.approx(0.1)
    assert len(weights) == 20
    estimate = report["fixed"]["y"]["estimate"]
    assert estimate == pytest.approx(clicks[chosen == 1].mean(), abs=1e-12)
    assert refused(run(*common, "--column=price=click"), "--column names 'price'")
    assert refused(run(*common, "--metric", "x"), "for an experiment only")


def test_an_experiment_without_closed_windows_says_so(run, engine):  # noqa: F811
    document = {
        "key": "new",
        "kind": "ab",
        "placement": "home",
        "variants": [
            {"key": "a", "recommender": "popularity", "control": True},
            {"key": "b", "recommender": "popularity"},
        ],
    }
    with transaction(engine) as connection:
        storage.create_experiment(connection, parse_declaration(document), now=START)
    answer = run("replay", "new", "--policy", "uniform")
    assert refused(answer, "no unit whose attribution window closed by")


@pytest.mark.usefixtures("bandit")
@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet"])
def test_exported_rounds_replay_as_the_experiment_itself(run, tmp_path, ending):  # noqa: F811
    file = tmp_path / f"log.{ending}"
    common = ("--segment-by", "device", "--output", file)
    assert run("export", "offers", "rounds", *common)[:2] == (
        0,
        f"{file}: 2,700 rounds\n",
    )
    policies = ("--policy", "thompson:floor=0.05", "--policy", "segmented_thompson")
    own = run("replay", "offers", "--segment-by", "device", *policies, "--json")
    again = run(
        *("replay", "--file", file, "--column", "unit=unit", "--segment-by", "segment"),
        *("--interval", "1d", "--delay", "2h", "--minimum-units", "50"),
        *(*policies, "--json"),
    )
    for name in ("log", "fixed", "outcomes"):
        assert_close(json.loads(again[1])[name], json.loads(own[1])[name])


def assert_close(found, expected):
    """Sums in another order differ in their last digits."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = (
            [each[name] for name in expected] for each in (found, expected)
        )
    if isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    else:
        assert found == (
            pytest.approx(expected, rel=1e-9)
            if isinstance(expected, float)
            else expected
        )


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_exported_events_are_those_that_were_stored(run, tmp_path, bandit, ending):  # noqa: F811
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet}[ending]
    files = {
        name: tmp_path / f"{name}.{ending}" for name in ("exposures", "interactions")
    }
    for name, file in files.items():
        assert run("export", "offers", name, "--output", file)[0] == 0
    shown, done = (read(file) for file in files.values())
    assert len(shown) == len(bandit)
    assert shown["id"].is_monotonic_increasing
    assert sorted(zip(shown["variant"], shown["propensity"], strict=True)) == sorted(
        (variant, propensity) for variant, propensity, _ in bandit
    )
    items = shown["items"][0]
    assert (json.loads(items) if ending == "csv" else list(items)) == ["x"]
    assert json.loads(shown["context"][0])["device"] in ("d0", "d1")
    assert len(done) == sum(row[2] for row in bandit)
    assert set(done["exposure_id"]) <= set(shown["id"])
    assert set(done["kind"]) == {"click"}


@pytest.mark.usefixtures("bandit")
def test_an_export_is_refused_in_words_and_leaves_nothing(run, tmp_path):  # noqa: F811
    there = tmp_path / "there.csv"
    there.write_text("mine")
    for arguments, words in (
        (("offers", "rounds", "--output", there), "exists; choose another name"),
        (("offers", "rounds", "--output", tmp_path / "x.xls"), "known endings"),
        (("nope", "rounds", "--output", tmp_path / "x.csv"), "'nope' does not exist"),
        (
            ("offers", "rounds", "--output", tmp_path / "no" / "x.csv"),
            "can't be written",
        ),
        (
            ("offers", "exposures", "--metric", "m", "--output", tmp_path / "x.csv"),
            "for rounds only",
        ),
        (
            (
                *("offers", "rounds", "--metric", "click_through_rate"),
                *("--output", tmp_path / "x.csv"),
            ),
            "is a ratio",
        ),
    ):
        assert refused(run("export", *arguments), words)
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["there.csv"]
    assert there.read_text() == "mine"
