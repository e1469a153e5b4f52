"""The server process: its failures in a sentence, its workers, its end."""

import os
import signal
import socket

import pytest

from experiment_service.storage import database
from tests.integration.serving.conftest import (
    UNITS,
    bandit,
    declaration,
    open_shop,
    own_postgres,
    run_experiment,
)


@pytest.mark.usefixtures("shop")
def test_taken_port_is_told_in_a_sentence(start_server, database_url):
    first = start_server(database_url)
    port = first.address.rsplit(":", 1)[1]
    second = start_server(database_url, wait=False, EXPERIMENT_SERVICE_PORT=port)
    assert second.process.wait(30) != 0
    log = second.log.read_text()
    assert f"the API can't listen on 127.0.0.1 port {port}" in log
    assert "set EXPERIMENT_SERVICE_PORT" in log


def test_nothing_to_serve_from_is_told_in_a_sentence(start_server):
    server = start_server("postgresql://nobody@127.0.0.1:1/nothing", wait=False)
    assert server.process.wait(30) != 0
    log = server.log.read_text()
    assert "there is nothing to serve from: the database does not answer" in log
    assert "holds no copy of an earlier configuration" in log


def test_schema_of_another_revision_is_told_in_a_sentence(
    start_server, empty_database_url
):
    server = start_server(empty_database_url, wait=False)
    assert server.process.wait(30) != 0
    assert "run `experiment-service migrate`" in server.log.read_text()


def test_workers_share_a_port_and_are_replaced(shop, start_server, database_url):
    run_experiment(shop, bandit("s", mode="sticky"))
    server = start_server(database_url, workers=2)

    def processes(count):
        found = set()
        for _ in range(200):
            with socket.create_connection(("127.0.0.1", port)):
                pass
            server.client.close()
            server.client = type(server.client)(base_url=server.address, timeout=20)
            found.add(server.get("/v1/status").json()["process"])
            if len(found) == count:
                break
        return found

    port = int(server.address.rsplit(":", 1)[1])
    server.wait_for(lambda: len(processes(2)) == 2, seconds=60)
    victim = server.get("/v1/status").json()["process"]
    os.kill(victim, signal.SIGKILL)
    server.wait_for(lambda: len(processes(2) - {victim}) == 2, seconds=60)
    for unit in UNITS[:20]:
        assert server.post(
            "/v1/recommendations", {"unit_id": unit, "placement": "home"}
        ).is_success


def test_workers_that_cannot_start_end_the_server(start_server):
    server = start_server(
        "postgresql://nobody@127.0.0.1:1/nothing", wait=False, workers=2
    )
    server.process.wait(60)
    assert "there is nothing to serve from" in server.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_server_has_stored_everything(shop, start_server, database_url, number):
    run_experiment(shop, declaration("t"))
    server = start_server(database_url)
    for unit in UNITS[:50]:
        server.post("/v1/recommendations", {"unit_id": unit, "placement": "home"})
    server.stop(number)
    with shop.connect() as connection:
        stored = connection.exec_driver_sql("SELECT count(*) FROM exposure").scalar()
    assert stored == 50


@pytest.mark.parametrize("workers", [1, 2])
def test_embedded_server_ends_with_the_last_process(start_server, data_dir, workers):
    with own_postgres(data_dir) as url:
        engine = database.create_engine(url, name="test")
        open_shop(engine, data_dir)
        engine.dispose()
    lock = data_dir / "postgres" / "postmaster.pid"
    assert not lock.exists()
    server = start_server(None, workers=workers)
    assert lock.exists()
    assert server.get("/health/ready").json()["status"] == "ready"
    server.stop()
    assert not lock.exists()
