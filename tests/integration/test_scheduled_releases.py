"""Releases by the worker: in a process, tried again, told over a real webhook."""

import asyncio
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import yaml
from sqlalchemy import text

from experiment_service import scheduled_releases, worker
from experiment_service.config import Settings
from experiment_service.errors import InvalidRequest
from experiment_service.scheduled_releases import RETRIES, find_jobs
from experiment_service.storage.database import transaction
from experiment_service.storage.models import list_versions
from tests.integration.test_release import PIPELINE, shop

SCHEDULED = {**PIPELINE, "schedule": "0 4 * * 1", "checks": {"max_age_days": None}}


@pytest.fixture
def folder(tmp_path):
    shop().to_csv(tmp_path / "purchases.csv", index=False)
    (tmp_path / "home.yaml").write_text(yaml.safe_dump(SCHEDULED))
    (tmp_path / "by-hand.yaml").write_text(
        yaml.safe_dump({**PIPELINE, "name": "other"})
    )
    return tmp_path


@pytest.fixture
def told():
    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            length = int(self.headers["Content-Length"])
            server.received.append(json.loads(self.rfile.read(length)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        server.received = []
        server.url = f"json://127.0.0.1:{server.server_port}/"
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def work(engine, database_url, folder, told, monkeypatch):
    """Let a worker do one release that is due, with a database for it or another."""
    monkeypatch.setenv("EXPERIMENT_SERVICE_DATA_DIR", str(folder / "data"))
    monkeypatch.setenv("EXPERIMENT_SERVICE_NOTIFY_URLS", told.url)

    def work(attempts=0):
        async def once():
            app = worker.create_app(
                engine, database_url, Settings.from_environment(), find_jobs(folder)
            )
            async with app.open_async():
                (key,) = [k for k in app.periodic_registry.periodic_tasks if k[1]]
                periodic = app.periodic_registry.periodic_tasks[key]
                due = dict(periodic.configure_kwargs)
                # As on the next day: what waits to be tried again keeps others out.
                del due["queueing_lock"]
                arguments = {**due.pop("task_kwargs"), "timestamp": 0}
                number = await periodic.task.configure(**due).defer_async(**arguments)
                with transaction(engine) as connection:
                    connection.execute(
                        text(
                            "UPDATE procrastinate.procrastinate_jobs"
                            " SET attempts = :attempts WHERE id = :id"
                        ),
                        {"attempts": attempts, "id": number},
                    )
                await app.run_worker_async(
                    queues=["releases"], wait=False, install_signal_handlers=False
                )
            with transaction(engine) as connection:
                return connection.execute(
                    text(
                        "SELECT status::text, attempts, scheduled_at > now() AS later"
                        " FROM procrastinate.procrastinate_jobs WHERE id = :id"
                    ),
                    {"id": number},
                ).one()

        return asyncio.run(once())

    return work


def versions(engine):
    with transaction(engine) as connection:
        return list_versions(connection)


def test_only_what_has_a_schedule_is_released(folder):
    (job,) = find_jobs(folder)
    assert (job.model, job.path, job.market) == ("home", folder / "home.yaml", None)
    assert job.cron == "0 4 * * 1"
    document = {**SCHEDULED, "markets": ["de", "at"]}
    (folder / "home.yaml").write_text(yaml.safe_dump(document))
    assert [job.model for job in find_jobs(folder)] == ["home-de", "home-at"]
    (folder / "home.yaml").write_text("name: x")
    with pytest.raises(InvalidRequest, match=r"home\.yaml: data is missing"):
        find_jobs(folder)


def test_what_is_released_is_told_to_nobody_and_what_is_refused_at_once(
    work, engine, folder, told
):
    assert work().status == "succeeded"
    (version,) = versions(engine)
    assert (version.label, version.status) == ("home/1", "live")
    assert version.decided_by == "worker"
    assert told.received == []
    shop().iloc[:20].to_csv(folder / "purchases.csv", index=False)
    assert work().status == "succeeded", "a refusal is not tried again"
    (message,) = told.received
    assert message["title"] == "Model home was not released"
    assert "data: interactions is 20, must be at least 1000" in message["message"]
    assert "serving: home/1" in message["message"]
    assert len(versions(engine)) == 1


def test_a_failure_is_tried_again_and_told_at_the_end(work, told, monkeypatch):
    """That the command ends so is a test of its own, without a worker."""

    async def failing(*_):
        return 75, "make room"

    monkeypatch.setattr(scheduled_releases, "_run", failing)
    first = work()
    assert (first.status, first.attempts, first.later) == ("todo", 1, True)
    assert told.received == []
    last = work(attempts=RETRIES)
    assert last.status == "failed"
    (message,) = told.received
    assert message["title"] == f"Model home failed {RETRIES + 1} times"
    assert message["message"] == "make room"
