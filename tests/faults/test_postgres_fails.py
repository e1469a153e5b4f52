"""I3 and I11: PostgreSQL is away, crashes, is slow, or falls silent."""

import os
import signal
import time
from contextlib import suppress

import psutil
import pytest
from sqlalchemy import text

from tests.conftest import admin
from tests.faults.conftest import EVENTS
from tests.faults.network import LONELY_ADDRESS, SlowProxy, silence
from tests.faults.processes import wait_for

pytestmark = pytest.mark.faults

_OUTAGE_SECONDS = 60


def check_goes_on(api):
    """Without a database a machine lives, is ready in part, and changes nothing."""
    assert api.get("/health/live")[0] == 200
    status, document, _ = api.get("/health/ready")
    assert (status, document["status"]) == (200, "degraded")
    status, document, headers = api.get("/v1/experiments")
    assert status == 503
    assert int(headers["retry-after"]) > 0
    assert document["error"]["code"] == "unavailable"


def test_postgres_stopped_for_a_minute(scenario):
    api = scenario.service(workers=2)
    scenario.worker()
    with scenario.load(api, rate=1.4 * EVENTS / _OUTAGE_SECONDS) as load:
        wait_for(lambda: load.accepted > EVENTS / 10, "load")
        memory = api.resident_mib
        scenario.postgres.stop("fast")
        stopped_at = time.monotonic()
        wait_for(lambda: api.get("/health/ready")[1]["status"] == "degraded", "it")
        check_goes_on(api)
        before = load.accepted
        time.sleep(max(0.0, stopped_at + _OUTAGE_SECONDS - time.monotonic()))
        wait_for(lambda: load.accepted > before + EVENTS / 10, "load")
        check_goes_on(api)
        accepted = load.accepted - before
        waiting, grown = api.waiting, api.resident_mib - memory
        scenario.postgres.start()
        wait_for(lambda: load.accepted >= EVENTS, "load")
    assert grown < 64
    scenario.reckon(
        load,
        happened=f"{_OUTAGE_SECONDS} s without PostgreSQL, {accepted:,} events accepted "
        f"meanwhile, up to {waiting:,} waiting, {grown:+.0f} MiB of memory",
    )


def test_postgres_crashes(scenario):
    api = scenario.service()
    scenario.worker()
    postgres = scenario.postgres
    with scenario.load(api) as load:
        for part in range(2):
            base = part * EVENTS / 2
            wait_for(lambda: load.accepted > base + EVENTS / 10, "load")  # noqa: B023
            _kill_backend(scenario)
            wait_for(lambda: load.accepted > base + EVENTS / 5, "load")  # noqa: B023
            postgres.stop("immediate")
            postgres.start()
            wait_for(lambda: load.accepted > base + 3 * EVENTS / 10, "load")  # noqa: B023
            postgres.kill()
            postgres.start()
        wait_for(lambda: load.accepted >= EVENTS, "load")
    scenario.reckon(
        load,
        happened="2 times each: a session killed, an immediate shutdown, all its "
        "processes killed",
    )


def _kill_backend(scenario):
    """SIGKILL the session of the writer: PostgreSQL ends all others and recovers."""
    found = text(
        "SELECT pid FROM pg_stat_activity WHERE datname = :name"
        " AND application_name = 'experiment-service writer'"
    )
    with admin(scenario.postgres.url()) as connection:
        pid = connection.scalars(found, {"name": scenario.database}).first()
    victim = psutil.Process(pid)
    victim.kill()
    wait_for(lambda: not victim.is_running(), "the session ends")


def test_postgres_locked_and_frozen(scenario):
    """A lock that outlasts the lock timeout, then a server that does not move at all."""
    api = scenario.service()
    scenario.worker()
    with scenario.load(api) as load:
        wait_for(lambda: load.accepted > EVENTS / 10, "load")
        with admin(scenario.postgres.url(scenario.database)) as connection:
            connection.execute(text("BEGIN"))
            connection.execute(text("LOCK TABLE exposure, experiment"))
            time.sleep(15)
            check_lives(api)
            connection.execute(text("ROLLBACK"))
        wait_for(lambda: load.accepted > 7 * EVENTS / 10, "load")
        processes = scenario.postgres.processes
        signal_all(processes, signal.SIGSTOP)
        time.sleep(15)
        check_lives(api)
        signal_all(processes, signal.SIGCONT)
        wait_for(lambda: load.accepted >= EVENTS, "load")
    scenario.reckon(load, happened="tables locked for 15 s, the server frozen for 15 s")


def signal_all(processes, number):
    for each in processes:
        # One that was about to end, such as of autovacuum, may be gone.
        with suppress(psutil.NoSuchProcess):
            each.send_signal(number)


def check_lives(api):
    assert api.get("/health/live")[0] == 200
    assert api.get("/health/ready")[0] == 200


def test_postgres_behind_a_slow_network(scenario):
    with SlowProxy(scenario.postgres.port, seconds=0.05) as proxy:
        url = scenario.url.replace(f":{scenario.postgres.port}/", f":{proxy.port}/")
        api = scenario.service(url=url)
        scenario.worker()
        with scenario.load(api) as load:
            wait_for(lambda: load.accepted >= EVENTS, "load")
        scenario.reckon(load, happened="50 ms more for each message, both ways")


def test_postgres_restarted_behind_a_cut_network(scenario):
    """No connection is told that its other end is gone; each must find out itself."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to drop packets")
    url = scenario.url.replace("127.0.0.1", LONELY_ADDRESS)
    api = scenario.service(url=url)
    scenario.worker(url=url)
    with scenario.load(api) as load:
        wait_for(lambda: load.accepted > EVENTS / 10, "load")
        with silence(LONELY_ADDRESS):
            time.sleep(5)
            scenario.postgres.stop("immediate")
            scenario.postgres.start()
            time.sleep(10)
            check_lives(api)
        wait_for(lambda: load.accepted >= EVENTS, "load")
    scenario.reckon(
        load, happened="network cut for 15 s, an immediate shutdown meanwhile"
    )
