"""I3: kill -9 of what serves, of what writes, of what reallocates."""

import time

import psutil
import pytest
from sqlalchemy import text

from tests.conftest import admin
from tests.faults.conftest import EVENTS
from tests.faults.processes import kill_one, wait_for

pytestmark = pytest.mark.faults


def test_kill_of_serving_and_writer_processes(scenario):
    api = scenario.service(workers=2)
    scenario.worker()
    with scenario.load(api) as load:
        for part in range(1, 4):
            wait_for(lambda: load.accepted > part * EVENTS / 8, "load")  # noqa: B023
            with api.fault():
                kill_one(lambda: api.serving)
            kill_one(lambda: api.writers)
        for part in range(1, 3):
            wait_for(lambda: load.accepted > (3 + part) * EVENTS / 8, "load")  # noqa: B023
            with api.fault():
                api.kill()
                time.sleep(1)
                api.start()
        wait_for(lambda: load.accepted >= EVENTS, "load")
    scenario.reckon(
        load,
        happened="3 serving processes, 3 writers and 2 times all processes killed",
    )


_WAITING = text(
    "SELECT client_port FROM pg_stat_activity WHERE datname = :name"
    " AND application_name = 'experiment-service worker'"
    " AND wait_event_type = 'Lock' AND query LIKE :query"
)


@pytest.mark.parametrize("table", ["epoch", "reallocation"])
def test_kill_of_the_worker_in_mid_reallocation(scenario, table):
    """The lock stops a worker just before it writes a table; with it held, it dies."""
    api = scenario.service()
    workers = [scenario.worker("worker-1"), scenario.worker("worker-2")]
    kills = 0
    with scenario.load(api, rate=2000) as load:
        while kills < 3 or load.accepted < EVENTS:
            with admin(scenario.postgres.url(scenario.database)) as connection:
                connection.execute(text("BEGIN"))
                connection.execute(text(f"LOCK TABLE {table} IN SHARE MODE"))
                victim = _waiting_worker(scenario, workers, f"INSERT INTO {table} %")
                looks = _looks(scenario)
                victim.kill()
                kills += 1
                connection.execute(text("ROLLBACK"))
            # The other one does what the killed one could not, before it is back.
            wait_for(lambda: _looks(scenario) > looks, "the other worker")  # noqa: B023
            victim.start()
    scenario.reckon(
        load, happened=f"a worker of two killed {kills} times before it wrote `{table}`"
    )


def _looks(scenario):
    with scenario.engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM reallocation"))


def _waiting_worker(scenario, workers, query):
    ports = set()

    def found():
        with scenario.engine.connect() as connection:
            ports.update(
                connection.scalars(
                    _WAITING, {"name": scenario.database, "query": query}
                )
            )
        return ports

    wait_for(found, f"a worker that waits with {query}")
    return next(
        worker
        for worker in workers
        for each in psutil.Process(worker.process.pid).net_connections()
        if each.laddr.port in ports
    )
