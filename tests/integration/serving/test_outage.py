"""I3 and I11: without Postgres serving goes on, and no accepted event is lost."""

import signal
import threading
import time
from contextlib import ExitStack

import httpx
import pytest
from sqlalchemy import text

from experiment_service.errors import Unavailable
from experiment_service.storage import database
from tests.integration.serving.conftest import (
    UNITS,
    declaration,
    open_shop,
    own_postgres,
    run_experiment,
)


@pytest.fixture
def postgres(tmp_path, data_dir):
    """A Postgres that the test stops and starts, with a running A/B test in it."""
    server = RestartablePostgres(tmp_path / "postgres-home")
    server.start()
    open_shop(server.engine, data_dir)
    run_experiment(server.engine, declaration("t"))
    yield server
    server.stop()


class RestartablePostgres:
    def __init__(self, home):
        self.home = home
        self.stack = ExitStack()

    def start(self):
        # On a busy machine the stopped server may still be letting go of its files.
        for attempts_left in (2, 1, 0):
            try:
                self.url = self.stack.enter_context(own_postgres(self.home))
                break
            except Unavailable:
                if not attempts_left:
                    raise
                time.sleep(1)
        self.engine = database.create_engine(self.url, name="test")
        self.stack.callback(self.engine.dispose)

    def stop(self):
        self.stack.close()

    def ids(self, table):
        with self.engine.connect() as connection:
            rows = connection.execute(text(f"SELECT id FROM {table}"))
            return sorted(str(row.id) for row in rows)


def serve_some(server, units, tag):
    """Recommend and click; return the ids of the exposures, one click each."""
    exposures = []
    for unit in units:
        answer = server.post(
            "/v1/recommendations", {"unit_id": unit, "placement": "home", "k": 3}
        )
        assert answer.status_code == 200, answer.text
        exposures.append(answer.json()["exposure_id"])
        click = {
            "id": f"{tag}:{unit}",
            "exposure_id": exposures[-1],
            "kind": "click",
            "position": 1,
        }
        sent = server.post("/v1/interactions", {"interactions": [click]})
        assert sent.json() == {"accepted": 1, "refused": []}
    return exposures


def waiting(server):
    return server.get("/v1/status").json()["journal"]["events"]


def test_outage_of_postgres_goes_unnoticed_by_shoppers(postgres, start_server):
    server = start_server(postgres.url)
    exposures = serve_some(server, UNITS[:20], "before")
    server.wait_for(lambda: waiting(server) == 0)
    postgres.stop()
    exposures += serve_some(server, UNITS[:40], "during")
    assert waiting(server) == 80
    server.wait_for(lambda: server.get("/health/ready").json()["status"] == "degraded")
    assert server.get("/health/ready").status_code == 200
    managed = server.get("/v1/experiments")
    assert managed.status_code == 503
    assert int(managed.headers["retry-after"]) > 0
    assert "database does not answer" in managed.json()["error"]["message"]
    postgres.start()
    server.wait_for(lambda: waiting(server) == 0, seconds=30)
    assert postgres.ids("exposure") == sorted(exposures)
    assert len(postgres.ids("interaction")) == 60
    server.wait_for(
        lambda: server.get("/health/ready").json()["status"] == "ready", seconds=30
    )


def test_start_without_postgres_serves_from_the_copy(postgres, start_server):
    first = start_server(postgres.url)
    variants = {unit: variant(first, unit) for unit in UNITS[:20]}
    postgres.stop()
    exposures = serve_some(first, UNITS[:10], "first")
    first.stop(signal.SIGKILL)
    second = start_server(postgres.url)
    assert {unit: variant(second, unit) for unit in UNITS[:20]} == variants
    exposures += serve_some(second, UNITS[:10], "second")
    assert second.get("/health/ready").json()["status"] == "degraded"
    postgres.start()
    # The journal of the killed process is taken over as well.
    second.wait_for(lambda: postgres.ids("exposure") == sorted(exposures), seconds=30)
    second.wait_for(lambda: len(postgres.ids("interaction")) == 20)


def variant(server, unit):
    answer = server.post(
        "/v1/assignments",
        {"unit_id": unit, "experiment": "t", "log_exposure": False},
    )
    return answer.json()["variant"]


def test_kill_under_load_loses_no_accepted_event(postgres, start_server):
    server = start_server(postgres.url)
    accepted, lock = [], threading.Lock()

    def shop(shopper):
        with httpx.Client(base_url=server.address, timeout=10) as client:
            for number in range(10_000):
                document = {"unit_id": f"{shopper}-{number}", "placement": "home"}
                try:
                    answer = client.post("/v1/recommendations", json=document)
                except httpx.TransportError:
                    return
                assert answer.status_code == 200
                with lock:
                    accepted.append(answer.json()["exposure_id"])

    threads = [threading.Thread(target=shop, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    server.wait_for(lambda: len(accepted) > 500, seconds=30)
    server.process.send_signal(signal.SIGKILL)
    for thread in threads:
        thread.join(30)
    again = start_server(postgres.url)
    again.wait_for(lambda: set(accepted) <= set(postgres.ids("exposure")), seconds=30)
    stored = postgres.ids("exposure")
    assert len(stored) == len(set(stored))
    # What was stored but not answered: at most one request of each shopper.
    assert len(stored) - len(accepted) <= 8


def test_full_journal_refuses_until_the_database_is_back(postgres, start_server):
    server = start_server(
        postgres.url, EXPERIMENT_SERVICE_JOURNAL_MAX_BYTES=str(1 << 20)
    )
    postgres.stop()
    accepted = 0
    for batch in range(100):
        clicks = [
            {"id": f"{batch}:{number}", "unit_id": "u", "kind": "click"}
            for number in range(1000)
        ]
        answer = server.post("/v1/interactions", {"interactions": clicks})
        if answer.status_code != 200:
            break
        accepted += 1000
    assert answer.status_code == 503
    assert accepted > 0
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] == "unavailable"
    ready = server.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
    postgres.start()
    server.wait_for(lambda: waiting(server) == 0, seconds=30)
    again = server.post("/v1/interactions", {"interactions": clicks})
    assert again.json() == {"accepted": 1000, "refused": []}
    server.wait_for(lambda: waiting(server) == 0, seconds=30)
    assert len(postgres.ids("interaction")) == accepted + 1000
