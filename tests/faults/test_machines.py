"""I3: several machines on one database, restarts, full disks, clocks that jump."""

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.conftest import EVENTS
from tests.faults.processes import wait_for

pytestmark = pytest.mark.faults


def test_two_services_and_two_workers(scenario):
    services = [scenario.service("api-1"), scenario.service("api-2")]
    for name in ("worker-1", "worker-2"):
        scenario.worker(name)
    with scenario.load(*services) as load:
        wait_for(lambda: load.accepted >= EVENTS, "load")
    scenario.reckon(load, happened="copies of events went to the other service")


def test_rolling_restart(scenario):
    services = [scenario.service("api-1"), scenario.service("api-2")]
    scenario.worker()
    restarts = 0
    with scenario.load(*services) as load:
        while restarts < 6 or load.accepted < EVENTS:
            service = services[restarts % 2]
            with service.fault():
                assert service.terminate() == 0
                service.start()
            restarts += 1
    scenario.reckon(load, happened=f"{restarts} restarts in turn, by SIGTERM")


@contextmanager
def small_disk(directory, mebibytes):
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    directory.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs"]
    subprocess.run(["mount", *options, str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def check_full(api):
    """It lives and answers, but must get no more events."""
    assert api.get("/health/live")[0] == 200
    status, document, _ = api.get("/health/ready")
    assert (status, document["status"]) == (503, "unavailable")


def fill(scenario, api, load):
    """Stop PostgreSQL until the journal takes no more; return the growth in MiB.

    It starts again after 200 refused requests.
    """
    wait_for(lambda: load.accepted > EVENTS / 10, "load")
    scenario.postgres.stop("fast")
    wait_for(lambda: load.refused > 10, "the journal is full")
    memory = api.resident_mib
    check_full(api)
    wait_for(lambda: load.refused > 200, "refusals")
    check_full(api)
    grown = api.resident_mib - memory
    scenario.postgres.start()
    return grown


def test_full_journal(scenario):
    bound = 16 << 20
    api = scenario.service(EXPERIMENT_SERVICE_JOURNAL_MAX_BYTES=str(bound))
    scenario.worker()
    with scenario.load(api) as load:
        grown = fill(scenario, api, load)
        wait_for(lambda: load.accepted >= EVENTS, "load")
    assert grown < 32
    scenario.reckon(
        load, happened=f"{bound >> 20} MiB of journal full, {grown:+.0f} MiB of memory"
    )


def test_full_disk(scenario):
    size = 80
    with small_disk(scenario.directory / "api", size):
        api = scenario.service()
        scenario.worker()
        with scenario.load(api) as load:
            grown = fill(scenario, api, load)
            accepted = load.accepted
            wait_for(lambda: load.accepted > accepted + EVENTS / 10, "load")
            filler = scenario.directory / "api" / "filler"
            with pytest.raises(OSError, match="No space left"):
                filler.write_bytes(bytes(size << 20))
            # The journal has room of its own by now, which it writes over.
            refused, accepted = load.refused, load.accepted
            wait_for(lambda: load.accepted > accepted + EVENTS / 10, "load")
            assert load.refused == refused
            filler.unlink()
            wait_for(lambda: load.accepted >= EVENTS, "load")
        assert grown < 32
        scenario.reckon(
            load,
            happened=f"disk of {size} MiB filled by the journal, then by another file, "
            f"{grown:+.0f} MiB of memory",
        )


def fake_clock(path):
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(path),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def test_clock_jumps(scenario):
    """The clock of one machine of two; the database keeps its own."""
    clock = scenario.directory / "clock"
    clock.write_text("+0")
    jumping = scenario.service("api-1", **fake_clock(clock))
    services = [jumping, scenario.service("api-2")]
    worker = scenario.worker("worker-1", **fake_clock(clock))
    scenario.worker("worker-2")
    jumps = ("+2h", "-3h", "+0", "+20d", "-1d", "+0")
    with scenario.load(*services) as load:
        for part, jump in enumerate(jumps, 1):
            wait_for(
                lambda: load.accepted > part * EVENTS / 8,  # noqa: B023
                "load",
            )
            clock.write_text(jump)
        wait_for(lambda: load.accepted >= EVENTS, "load")
    # Some waits fail under libfaketime at the end of a process, so these two end hard.
    for program in (jumping, worker):
        program.kill()
        for name in fake_clock(clock):
            del program.environment[name]
        program.start()
    scenario.reckon(load, happened=f"jumps of one machine to {', '.join(jumps)}")
