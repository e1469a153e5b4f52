"""The command line: what it prints, and one sentence for what it refuses."""

import json
from datetime import UTC, datetime

import pytest
import yaml

from experiment_service import worker
from experiment_service.cli import main
from experiment_service.config import Settings
from experiment_service.storage import alerts
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import transaction
from tests.integration.serving.conftest import insert_version, publish
from tests.integration.test_reallocation import make_live

HOME = """
key: home
kind: ab
placement: home
variants:
  - {key: control, recommender: popularity, control: true, weight: 0.5}
  - {key: other, recommender: popularity, weight: 0.5}
"""


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, database_url):
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("EXPERIMENT_SERVICE_DATA_DIR", str(tmp_path / "data"))

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def live_model(engine):
    make_live(engine, "popularity")


@pytest.fixture
def home(run, live_model, tmp_path):  # noqa: ARG001 - a live model must be there
    file = tmp_path / "home.yaml"
    file.write_text(HOME)
    assert run("create", file, "--start")[:2] == (0, "home: running\n")


def refused(answer, words):
    status, out, err = answer
    sentences = [line for line in err.splitlines() if "experiment-service:" in line]
    return (
        status == 2
        and out == ""
        and len(sentences) == 1
        and words in sentences[0]
        and "Traceback" not in err
    )


@pytest.mark.usefixtures("home")
def test_the_life_of_an_experiment(run):
    assert "home  ab    running  home       control, other" in run("list")[1]
    status, out, _ = run("set-weights", "home", "control=0.2", "other=0.8")
    assert (status, out) == (0, "home: epoch 1 with {'control': 0.2, 'other': 0.8}\n")
    assert run("set-overrides", "home", "tester=other")[1] == "home: 1 overrides\n"
    explained = run("explain", "home", "tester")[1]
    assert "variant     other" in explained
    assert "decided by  override" in explained
    shown = json.loads(run("show", "home")[1])
    assert [each["action"] for each in shown["history"]] == [
        "create",
        "start",
        "set_weights",
        "set_overrides",
    ]
    assert "Visitor interaction rate" in run("report", "home")[1]
    assert "carry no attributes" in run("report", "home", "--segments")[1]
    assert json.loads(run("report", "home", "--json")[1])["facts"]["key"] == "home"
    assert run("rebuild-outcomes", "home")[0] == 0
    assert run("set-placement", "cart", "popularity")[0] == 0
    assert "popularity/1  live" in run("models")[1]
    assert run("stop", "home", "--reason", "done")[1] == "home: stopped\n"
    assert refused(run("start", "home"), "is stopped; only a draft can be started")


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "nobody"], "experiments: home"),
        (["set-weights", "home", "control=0.5", "other=0.6"], "sum to 1.1"),
        (["set-weights", "home", "control=half"], "must be a number"),
        (["set-weights", "home", "control"], "write NAME=VALUE"),
        (["set-overrides", "home", "tester=nobody"], "variants are control, other"),
        (["reallocate", "home"], "only a running bandit"),
        (["set-placement", "cart", "magic"], "live models: popularity"),
        (["rollback", "popularity"], "popularity"),
        (["create", "absent.yaml"], "absent.yaml can't be read"),
        (["explain", "home", ""], "unit_id has 0 characters"),
        (["train", "magic", "--interactions", "absent.csv"], "absent.csv"),
    ],
)
def test_refusals_are_one_sentence(run, arguments, words):
    assert refused(run(*arguments), words)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("key: [", "neither YAML nor JSON"),
        ("- a\n- b", "must be a mapping"),
        (HOME.replace("0.5}", "0.6}"), "sum to 1.2"),
        (HOME.replace("popularity", "magic"), "known recommenders"),
    ],
)
def test_a_bad_declaration_stores_nothing(run, tmp_path, written, words):
    file = tmp_path / "bad.yaml"
    file.write_text(written)
    assert refused(run("create", file), words)
    assert "no experiments yet" in run("list")[1]


def test_settings_are_checked_together(run, monkeypatch):
    monkeypatch.setenv("EXPERIMENT_SERVICE_PORT", "http")
    monkeypatch.setenv("EXPERIMENT_SERVICE_COLOUR", "blue")
    answer = run("list")
    assert refused(answer, "EXPERIMENT_SERVICE_PORT is 'http'")
    assert "EXPERIMENT_SERVICE_COLOUR is not a setting" in answer[2]


def test_a_database_that_is_down_is_told_in_a_sentence(run, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert refused(run("list"), "the database does not answer")
    monkeypatch.setenv("DATABASE_URL", "mysql://nobody@127.0.0.1/none")
    assert refused(run("list"), "only postgresql is supported")


@pytest.mark.usefixtures("home")
def test_a_decision_is_stored_after_the_stop(run):
    given = ("--variant", "other", "--reason", "it won")
    assert refused(run("decide", "home", "ship", *given), "stop it before a decision")
    assert run("stop", "home")[0] == 0
    assert refused(run("decide", "home", "sail", *given), "one of inconclusive, keep")
    assert run("decide", "home", "ship", *given)[1] == "home: ship other\n"
    report = json.loads(run("report", "home", "--json")[1])
    assert report["facts"]["decision"]["reason"] == "it won"


def test_keys_are_shown_once_listed_rotated_and_revoked(run):
    assert "no keys yet" in run("keys", "list")[1]
    page = ("--scope", "storefront", "--origin", "https://shop.example")
    written = run("keys", "create", "shop page", *page, "--per-second", "50")[1].strip()
    key_id, secret = written.split("_", 2)[1:]
    listed = run("keys", "list")[1]
    assert secret not in listed
    assert f"{key_id}  shop page  storefront  https://shop.example  50" in listed
    successor = run("keys", "rotate", key_id, "--overlap-hours", "0")[1].strip()
    assert successor.startswith("es_")
    assert "has expired" in run("keys", "list")[1]
    assert refused(run("keys", "rotate", key_id), "has expired")
    next_id = successor.split("_")[1]
    assert run("keys", "revoke", next_id, "--reason", "lost")[1] == (
        f"{next_id}: revoked\n"
    )
    assert refused(run("keys", "revoke", next_id), "was revoked")
    assert refused(run("keys", "revoke", "nope"), "key 'nope' does not exist")
    assert refused(run("keys", "create", "x", "--scope", "root"), "one of admin")
    assert refused(
        run("keys", "create", "x", "--scope", "admin", "--days", "1e300"),
        "--days is 1e+300; it is out of range",
    )
    audited = json.loads(run("audit", "--subject", f"key/{key_id}", "--json")[1])
    assert [entry["action"] for entry in audited] == ["rotate", "create"]
    assert audited[0]["before"]["expires_at"] is None
    assert audited[0]["after"]["expires_at"] is not None
    assert secret not in json.dumps(audited)
    assert f"key/{next_id}" in run("audit", "--limit", "1")[1]
    assert refused(run("audit", "--limit", "0"), "--limit is 0")


@pytest.mark.usefixtures("home")
def test_a_unit_is_erased_and_testers_are_pseudonyms(run, monkeypatch):
    run("set-overrides", "home", "tester=other")
    out = run("erase", "tester", "--reason", "request 17")[1]
    assert "unit_of_analysis  0" in out
    assert "home has it among its overrides still" in out
    assert "erase" in run("audit", "--subject", "unit")[1]
    monkeypatch.setenv("EXPERIMENT_SERVICE_UNIT_KEY", "k" * 32)
    run("set-overrides", "home", "tester=other")
    shown = json.loads(run("show", "home")[1])["declaration"]["overrides"]
    assert list(shown.values()) == ["other"]
    assert "tester" not in shown
    assert "decided by  override" in run("explain", "home", "tester")[1]
    assert refused(run("erase", ""), "unit_id has 0 characters")


@pytest.mark.usefixtures("live_model")
def test_versions_are_decided_on_by_command(run, engine, tmp_path):
    data_dir = tmp_path / "data"
    for number in (2, 3):
        insert_version(engine, "popularity", *publish(data_dir, "popularity", number))
    rule = json.dumps({"answers": 100, "overlap": 0.2})
    shadow = ("models", "shadow", "popularity", "2", "--share")
    assert run(*shadow, "0.1")[1] == "popularity/2: shadow of 0.1 of units\n"
    assert run(*shadow, "0.2", "--rule", rule)[0] == 0
    assert "popularity/2  shadow" in run("models", "list")[1]
    assert refused(run(*shadow, "2"), "share is 2.0; it must be a number above 0")
    assert refused(run(*shadow, "1", "--rule", "{}"), "answers is missing")
    promoted = run("models", "promote", "popularity", "2", "--reason", "seen")
    assert promoted[1] == "popularity/2: live\n"
    assert run("models", "reject", "popularity", "3")[1] == "popularity/3: rejected\n"
    assert refused(run("models", "promote", "popularity", "3"), "is rejected and can't")
    assert refused(run("models", "reject", "popularity", "9"), "has no version 9")
    audited = json.loads(run("audit", "--subject", "model/popularity", "--json")[1])
    assert [(each["action"], each["reason"]) for each in audited[:2]] == [
        ("set_rejected", "decided by hand"),
        ("set_live", "seen"),
    ]


METRIC = {"name": "shoes", "title": "Shoes", "kind": "mean", "event_kinds": ["click"]}


@pytest.mark.usefixtures("live_model")
def test_metrics_of_a_shared_file_come_before_the_experiment_s_own(run, tmp_path):
    file, shared = tmp_path / "home.json", tmp_path / "metrics.yaml"
    own = {**METRIC, "name": "hats", "categories": ["hats"]}
    file.write_text(json.dumps({**yaml.safe_load(HOME), "metrics": [own]}))
    shared.write_text(json.dumps([{**METRIC, "categories": ["shoes", "boots"]}]))
    assert run("create", file, "--metrics", shared)[0] == 0
    metrics = json.loads(run("show", "home")[1])["declaration"]["metrics"]
    assert [each["name"] for each in metrics] == ["shoes", "hats"]
    assert metrics[0]["categories"] == ["shoes", "boots"]


def test_a_shared_file_that_is_no_list_is_refused(run, tmp_path):
    file, shared = tmp_path / "home.json", tmp_path / "metrics.yaml"
    file.write_text(HOME)
    shared.write_text("metrics: {}")
    assert refused(
        run("create", file, "--metrics", shared), "must be a list of metrics"
    )


@pytest.mark.usefixtures("home")
def test_monitors_are_printed_with_the_open_alerts(run, engine):
    assert run("monitors")[1].splitlines() == [
        "No alert is open.",
        "Nothing was measured yet; a worker looks every ten minutes.",
    ]
    worker.watch_serving(engine, datetime.now(UTC), Settings())
    with transaction(engine) as connection:
        alerts.raise_alert(
            connection,
            storage.get_experiment(connection, "home").id,
            monitor="coverage",
            subject="other",
            value=0.1,
            threshold=0.5,
            reason="10.0% of the variety.",
            now=datetime(2026, 11, 1, tzinfo=UTC),
        )
    printed = run("monitors", "home")[1].splitlines()
    assert printed[0] == (
        "ALERT Coverage of home/other, since 2026-11-01 00:00 UTC: 10.0% of the variety."
    )
    assert printed[2].split()[:2] == ["EXPERIMENT", "VARIANT"]
    assert [line.split()[:2] for line in printed[3:]] == [
        ["home", "control"],
        ["home", "other"],
    ]
    document = json.loads(run("monitors", "--json")[1])
    assert document["alerts"][0]["monitor"] == "coverage"
    assert document["days"]["home"][0]["measured"]["fallback_share"] is None
    assert refused(run("monitors", "nonsense"), "'nonsense' does not exist")
