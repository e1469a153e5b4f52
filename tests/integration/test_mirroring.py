"""The mirror and imports against a real tracking server of MLflow, over HTTP."""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from experiment_service import promotion, scheduled_mirror
from experiment_service.cli import main
from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.errors import (
    Conflict,
    InvalidRequest,
    InvalidState,
    NotFound,
    Unavailable,
)
from experiment_service.mirroring import tracking
from experiment_service.mirroring.document import digest
from experiment_service.mirroring.importing import import_version
from experiment_service.mirroring.mirror import mirror
from experiment_service.storage import models
from experiment_service.storage.database import held_alone, transaction
from experiment_service.storage.experiments import list_audit
from experiment_service.storage.models import ModelStatus
from recommenders import build_recommender, describe
from recommenders.lists import PublishedLists
from recommenders.publishing import publish_lists
from tests.conftest import free_port
from tests.integration.test_release import PIPELINE, shop
from tests.integration.test_training import file_size_limit

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ITEMS = ["a", "bé", "c", "d"]
NO_KEY = Pseudonyms(None)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """MLflow's server with a database and artifacts of its own."""
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    environment = os.environ | {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "flask", "--app", "mlflow.server:app", "run"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        uri = f"http://127.0.0.1:{port}"
        for _ in range(1200):
            try:
                httpx.get(f"{uri}/health")
                break
            except httpx.TransportError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
        yield uri, folder / "artifacts"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def client(server):
    return tracking.connect(server[0])


@pytest.fixture
def registry(engine, tmp_path, server, request):
    """A registry of one model, named as the test, and its mirror."""
    name = re.sub("[^a-z]+", "-", request.node.name.removeprefix("test_"))
    return Registry(engine, tmp_path / "data", server, name[:60])


class Registry:
    def __init__(self, engine, data_dir, server, name):
        self.engine, self.data_dir, self.name = engine, data_dir, name
        self.uri, self.artifacts = server

    def store(self, status=ModelStatus.CANDIDATE, **changes):
        """Store a version with lists; its items are those of its number."""
        with transaction(self.engine) as connection:
            number = models.next_version(connection, self.name)
            artifact = f"models/{self.name}/{number}"
            sha256 = publish_lists(
                self.data_dir / artifact,
                name=self.name,
                version=number,
                unit_ids=["ana", "bea"],
                lists=np.array([[0, 1], [number % 4, -1]], dtype=np.int32),
                item_ids=ITEMS,
                default=np.array([2, 3], dtype=np.int32),
                item_names=["Ä", "", "C", ""],
            )
            facts = {
                "name": self.name,
                "recommender": "popularity",
                "parameters": {
                    "recommender": describe(build_recommender("popularity", {})),
                    "reranking": [{"step": "block", "items": ["x" * 6000]}],
                },
                "metrics": {
                    "repeats allowed": {
                        "protocol": "ranked all",
                        "ndcg": 0.25,
                        "map": None,
                        "intervals": {"ndcg": {"value": 0.25, "low": 0.2, "high": 0.3}},
                    }
                },
                "checklist": [{"name": "depth", "value": 2, "passed": True}],
                "data_from": NOW - timedelta(days=9),
                "data_to": NOW,
                "data_digest": "d" * 64,
                "code_version": "1.2.3",
                "artifact": artifact,
                "sha256": sha256,
                "now": NOW,
            }
            version = models.insert_version(connection, **{**facts, **changes})
        if status is not ModelStatus.CANDIDATE:
            share = {"share": 0.1} if status is ModelStatus.SHADOW else {}
            self.decide(version, status, **share)
        return version

    def decide(self, version, status, **shadow):
        with transaction(self.engine) as connection:
            models.decide(
                connection,
                version.id,
                status,
                decided_by="ana",
                reason=f"became {status}",
                now=NOW,
                **shadow,
            )

    def mirror(self, **changes):
        given = {"uri": self.uri, "data_dir": self.data_dir, "pseudonyms": NO_KEY}
        (made,) = mirror(self.engine, **{**given, **changes})
        assert made.name == self.name
        return made.runs, made.versions, made.changes

    def take(self, source=None, **changes):
        given = {"uri": self.uri, "data_dir": self.data_dir, "pseudonyms": NO_KEY}
        given |= {"actor": "ana", "now": NOW}
        source = source or f"models:/{self.name}@live"
        return import_version(self.engine, source, **{**given, **changes})

    def versions(self):
        with transaction(self.engine) as connection:
            return models.list_versions(connection)


def runs(client, name):
    experiment = client.get_experiment_by_name(f"experiment-service/{name}")
    return client.search_runs([experiment.experiment_id])


def aliases(client, name):
    """Which of our versions each alias points at."""
    pointed = client.get_registered_model(name).aliases
    return {
        alias: client.get_model_version(name, number).tags["experiment_service.version"]
        for alias, number in pointed.items()
    }


def statuses(client, name):
    found = {}
    for each in client.search_model_versions(f"name = '{name}'"):
        label = each.tags["experiment_service.version"]
        assert label not in found
        found[label] = each.tags["experiment_service.status"]
    return found


def settings(monkeypatch, registry, uri):
    database_url = registry.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("EXPERIMENT_SERVICE_DATA_DIR", str(registry.data_dir))
    monkeypatch.setenv("EXPERIMENT_SERVICE_MLFLOW_TRACKING_URI", uri)


def test_a_release_is_mirrored_and_again_when_the_server_is_back(
    registry, client, monkeypatch, capsys, caplog
):
    tmp_path = registry.data_dir.parent
    shop().to_csv(tmp_path / "purchases.csv", index=False)
    pipeline = {**PIPELINE, "name": "released", "checks": {"max_age_days": None}}
    (tmp_path / "home.yaml").write_text(yaml.safe_dump(pipeline))
    nobody = f"http://127.0.0.1:{free_port()}"
    settings(monkeypatch, registry, nobody)
    assert main(["release", str(tmp_path / "home.yaml")]) == 0
    assert "released/1: live" in capsys.readouterr().out
    warning = f"not mirrored model=released reason=tracking server {nobody} does not"
    assert warning in caplog.text
    assert main(["mirror"]) == 2
    caplog.clear()

    settings(monkeypatch, registry, f"{registry.uri}/")
    assert main(["release", str(tmp_path / "home.yaml")]) == 0
    assert "mirrored" not in caplog.text
    assert aliases(client, "released") == {"live": "released/2"}
    assert statuses(client, "released") == {
        "released/1": "retired",
        "released/2": "live",
    }
    assert main(["mirror", "released"]) == 0
    assert "released: runs made 0, versions registered 0, changes followed 0" in (
        capsys.readouterr().out
    )

    with transaction(registry.engine) as connection:
        version = models.get_version(connection, "released", 2)
    made = {run.info.run_name: run for run in runs(client, "released")}
    assert set(made) == {"released/1", "released/2"}
    run = made["released/2"]
    assert run.info.status == "FINISHED"
    figures = version.metrics["repeats allowed"]
    assert run.data.metrics["repeats_allowed/ndcg"] == figures["ndcg"]
    low = run.data.metrics["repeats_allowed/intervals/ndcg/low"]
    assert low == figures["intervals"]["ndcg"]["low"]
    assert run.data.tags["protocol/repeats_allowed"] == figures["protocol"]
    assert run.data.params["model"] == "item_knn"
    assert run.data.params["depth"] == "10"
    assert "recommender.neighbours" in run.data.params
    folder = next(registry.artifacts.glob(f"*/{run.info.run_id}/artifacts/model"))
    ours = tmp_path / "data" / version.artifact
    for path in ours.iterdir():
        assert (folder / "lists" / path.name).read_bytes() == path.read_bytes()
    document = (folder / "version.json").read_bytes()
    assert json.loads(document)["metrics"] == version.metrics
    registered = client.get_model_version_by_alias("released", "live")
    assert registered.tags["experiment_service.sha256"] == digest(document)


def test_aliases_and_status_follow_what_is_decided(registry, client):
    first = registry.store(ModelStatus.LIVE)
    second = registry.store()
    name = registry.name
    assert registry.mirror() == (2, 2, 2)
    assert aliases(client, name) == {"live": f"{name}/1", "candidate": f"{name}/2"}

    registry.decide(second, ModelStatus.LIVE)
    assert registry.mirror() == (0, 0, 4)
    assert aliases(client, name) == {"live": f"{name}/2"}
    assert statuses(client, name) == {f"{name}/1": "retired", f"{name}/2": "live"}

    registry.decide(first, ModelStatus.LIVE)
    third = registry.store(ModelStatus.SHADOW)
    registry.mirror()
    assert aliases(client, name) == {"live": f"{name}/1", "shadow": f"{name}/3"}

    registry.decide(third, ModelStatus.REJECTED)
    assert registry.mirror() == (0, 0, 2)
    assert aliases(client, name) == {"live": f"{name}/1"}
    assert statuses(client, name)[f"{name}/3"] == "rejected"
    (run,) = [r for r in runs(client, name) if r.info.run_name == f"{name}/3"]
    assert run.data.tags["experiment_service.reason"] == "became rejected"
    assert registry.mirror() == (0, 0, 0)


def test_what_has_no_lists_here_is_a_run_until_they_are_found(registry, client, caplog):
    stored = registry.store(ModelStatus.LIVE)
    registry.store(ModelStatus.REJECTED, artifact="", sha256="")
    lists = registry.data_dir / stored.artifact
    lists.rename(lists.with_name("elsewhere"))
    assert registry.mirror() == (2, 0, 0)
    assert len(runs(client, registry.name)) == 2
    with pytest.raises(MlflowException):
        client.get_registered_model(registry.name)

    lists.with_name("elsewhere").rename(lists)
    content = (lists / "lists.npy").read_bytes()
    (lists / "lists.npy").write_bytes(content[:-1] + b"\1")
    assert registry.mirror() == (0, 0, 0)
    assert f"not mirrored model={stored.label} reason=" in caplog.text
    (lists / "lists.npy").write_bytes(content)
    assert registry.mirror() == (0, 1, 1)
    assert statuses(client, registry.name) == {stored.label: "live"}


def test_a_mirror_that_dies_is_made_whole_by_the_next(registry, client, monkeypatch):
    def die(*_, **__):
        raise MlflowException("the line was cut")

    steps = ["log_batch", "log_text", "log_artifacts", "create_model_version"]
    for step in steps:
        registry.store()
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, step, die)
            with pytest.raises(Unavailable, match="the line was cut"):
                registry.mirror()
    registry.mirror()
    assert registry.mirror() == (0, 0, 0)
    labels = {f"{registry.name}/{number}" for number in range(1, len(steps) + 1)}
    found = runs(client, registry.name)
    assert sorted(run.info.run_name for run in found) == sorted(labels)
    for run in found:
        assert run.info.status == "FINISHED"
        assert run.data.metrics["repeats_allowed/intervals/ndcg/high"] == 0.3
        assert len(run.data.params["reranking"]) == 5000
    assert statuses(client, registry.name) == dict.fromkeys(labels, "candidate")
    # Parameters are cut short to be looked at, not in what comes back.
    taken = registry.take(f"models:/{registry.name}@candidate", name="taken")
    assert taken.parameters["reranking"][0]["items"] == ["x" * 6000]


def test_one_mirror_runs_at_a_time(registry):
    registry.store()
    with held_alone(registry.engine, "mirror"), pytest.raises(Conflict):
        registry.mirror(patience=0.1)


def test_a_deleted_experiment_is_named(registry, client):
    registry.store()
    experiment = client.create_experiment(f"experiment-service/{registry.name}")
    client.delete_experiment(experiment)
    with pytest.raises(InvalidState, match="was deleted on the tracking server"):
        registry.mirror()


@pytest.fixture
def broken():
    """A server that answers, but is none of MLflow."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(502)
            self.send_header("Content-Length", "9")
            self.end_headers()
            self.wfile.write(b"<html>\n x")

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_is_broken_or_silent_is_told_soon(registry, broken, monkeypatch):
    registry.store()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Unavailable, match="502"):
        registry.mirror(uri=broken)
    monkeypatch.setattr(tracking, "_KNOCK_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Unavailable, match=r"does not answer \(timed out\)"):
            registry.mirror(uri=uri)


def test_without_mlflow_it_is_said_what_to_install(registry, monkeypatch):
    monkeypatch.setattr("experiment_service.lazy.find_spec", lambda _: None)
    with pytest.raises(
        InvalidRequest, match=r"pip install 'experiment-service\[mlflow"
    ):
        registry.mirror()


def test_the_worker_mirrors_what_changed_and_tries_again(registry, monkeypatch):
    monkeypatch.setattr(scheduled_mirror, "PAUSE_SECONDS", 0.01)
    version = registry.store()
    mirrored = []

    async def watch():
        ended = asyncio.Event()

        async def run(arguments, *, environment, limit_seconds):
            assert (arguments, environment) == (["mirror"], {"A": "b"})
            assert limit_seconds > 0
            mirrored.append([each.status for each in registry.versions()])
            if len(mirrored) == 1:
                return 2, "out\nno answer"
            if len(mirrored) == 2:
                registry.decide(version, ModelStatus.LIVE)
                return 0, ""
            ended.set()
            return 0, ""

        monkeypatch.setattr(scheduled_mirror, "run_command", run)
        following = asyncio.create_task(
            scheduled_mirror.follow(registry.engine, environment={"A": "b"})
        )
        await ended.wait()
        await asyncio.sleep(0.1)
        following.cancel()

    asyncio.run(watch())
    # Failed, done, done after the decision, and then nothing more.
    assert mirrored == [["candidate"], ["candidate"], ["live"]]


def test_a_version_comes_back_as_a_candidate_that_can_serve(
    registry, monkeypatch, capsys
):
    registry.store()
    original = registry.store(ModelStatus.LIVE)
    registry.mirror()
    settings(monkeypatch, registry, "http://nobody")
    source = f"models:/{registry.name}@live"
    command = ["import-model", source, "--name", "home", "--tracking-uri"]
    assert main([*command, registry.uri]) == 0
    assert capsys.readouterr().out == "home/1: candidate\n"
    assert main([*command, "http://ana:s3cret@host"]) == 2
    assert "s3cret" not in capsys.readouterr().err

    (taken,) = [each for each in registry.versions() if each.name == "home"]
    for fact in ("recommender", "parameters", "metrics", "checklist", "data_to"):
        assert getattr(taken, fact) == getattr(original, fact)
    assert (taken.data_digest, taken.code_version) == ("d" * 64, "1.2.3")
    assert not (registry.data_dir / "models" / ".imports").exists()
    with transaction(registry.engine) as connection:
        (entry,) = list_audit(connection, "model/home")
        assert entry.after["of"] == original.label
        assert entry.after["source"] == source
        promotion.promote(
            connection,
            data_dir=registry.data_dir,
            name="home",
            version=1,
            actor="ana",
            reason="good",
            now=NOW,
        )
    lists = PublishedLists.open_verified(
        registry.data_dir / taken.artifact, taken.sha256
    )
    assert (lists.name, lists.version) == ("home", 1)
    assert lists.for_unit("bea") == ["c"]
    assert lists.name_of("a") == "Ä"
    # By its number, and under its own name: the next one.
    assert registry.take(f"models:/{registry.name}/1").label == f"{registry.name}/3"


def rewritten(folder, **changes):
    """Change the document, and return its new digest."""
    path = folder / "version.json"
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(document))
    return digest(path.read_bytes())


def republished(folder, ids):
    """Change lists with all digests in order, as a bad writer would."""
    shutil.rmtree(folder / "lists")
    manifest = publish_lists(
        folder / "lists",
        name="x",
        version=1,
        unit_ids=["ana", "bea"],
        lists=np.array([[0, 1], [3, -1]], dtype=np.int32),
        item_ids=ids,
        default=np.array([0, 1], dtype=np.int32),
    )
    return rewritten(folder, sha256=manifest)


def out_of_range(folder):
    lists, path = folder / "lists", folder / "lists" / "manifest.json"
    rows = np.load(lists / "lists.npy")
    np.save(lists / "lists.npy", rows + 90)
    manifest = json.loads(path.read_text())
    manifest["files"]["lists.npy"]["sha256"] = digest(
        (lists / "lists.npy").read_bytes()
    )
    path.write_text(json.dumps(manifest))
    return rewritten(folder, sha256=digest(path.read_bytes()))


def foreign_file(folder):
    path = folder / "lists" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../../x"] = {"bytes": 1, "sha256": "0"}
    path.write_text(json.dumps(manifest))


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-4])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


SPOILT = [
    (lambda f: flipped(f / "lists/lists.npy"), r"lists\.npy has SHA-256"),
    (lambda f: cut_off(f / "lists/item_ids.bin"), r"item_ids\.bin has \d+ bytes"),
    (lambda f: flipped(f / "lists/manifest.json"), "is not a manifest"),
    (lambda f: cut_off(f / "version.json"), "its document has SHA-256"),
    (
        lambda f: rewritten(f, format_version=2),
        "has format 2; this program reads 1",
    ),
    (lambda f: rewritten(f, recommender="oracle"), "'oracle'"),
    (lambda f: rewritten(f, parameters={}), "parameters of its recommender"),
    (lambda f: rewritten(f, data_to="2026-01-01"), "data_to '2026-01-01'; it must"),
    (lambda f: rewritten(f, data_profile={"units": 1}), "missing"),
    (
        lambda f: rewritten(f, checklist=[{"name": "depth", "passed": False}]),
        "must be a list of checks that all passed",
    ),
    (lambda f: rewritten(f, metrics={"a": "\0"}), "holds a NUL character"),
    (lambda f: rewritten(f, metrics={"a": float("nan")}), "NaN is no number"),
    (lambda f: rewritten(f, units="h_0"), "under another EXPERIMENT_SERVICE_UNIT"),
    (out_of_range, r"lists\.npy names an item that is not there"),
    (foreign_file, r"names the file '\.\./\.\./x'"),
    (lambda f: republished(f, ids=["a", "b\n", "c", "d"]), "control character"),
]


def test_what_is_damaged_or_does_not_fit_is_refused(registry, client):
    stored = registry.store(ModelStatus.LIVE)
    registry.mirror()
    found = client.get_model_version_by_alias(registry.name, "live")
    folder = next(registry.artifacts.glob(f"*/{found.run_id}/artifacts/model"))
    whole = shutil.copytree(folder, registry.data_dir / "whole")
    tag = "experiment_service.sha256"
    for spoil, message in SPOILT:
        given = spoil(folder) or found.tags[tag]
        client.set_model_version_tag(registry.name, found.version, tag, given)
        with pytest.raises(InvalidRequest, match=message) as refusal:
            registry.take()
        start = f"models:/{registry.name}@live can't be imported: "
        assert refusal.value.message.startswith(start)
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
    with file_size_limit(300), pytest.raises(Unavailable, match="File too large"):
        registry.take()
    (folder / "lists" / "units.npy").unlink()
    client.set_model_version_tag(registry.name, found.version, tag, found.tags[tag])
    with pytest.raises(NotFound, match=r"units\.npy"):
        registry.take()
    client.delete_model_version_tag(registry.name, found.version, tag)
    with pytest.raises(InvalidRequest, match="no mirror of this service registered it"):
        registry.take()
    for source in (f"models:/{registry.name}@gone", "models:/nothing/7"):
        with pytest.raises(NotFound):
            registry.take(source)
    for source in ("s3://home", "models:/home", "models:/home@live/x", "models:/a/0"):
        with pytest.raises(InvalidRequest, match="must be models:/NAME@ALIAS or"):
            registry.take(source)
    assert [version.label for version in registry.versions()] == [stored.label]
    assert not (registry.data_dir / "models" / ".imports").exists()
    folders = list((registry.data_dir / "models").glob("*/*"))
    assert folders == [registry.data_dir / stored.artifact]


def test_errors_of_an_artifact_stores_library_are_told_and_ours_are_not():
    # As of boto3, which is not installed here.
    other = type("ClientError", (Exception,), {"__module__": "botocore.exceptions"})
    with (
        pytest.raises(Unavailable, match="http://mlflow: no such bucket"),
        tracking.known_failures("http://mlflow"),
    ):
        raise other("no such bucket")
    for ours in (KeyError("x"), Conflict("another mirror")):
        with (
            pytest.raises(type(ours)),
            tracking.known_failures("http://mlflow"),
        ):
            raise ours
