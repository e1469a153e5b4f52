"""Time from the address to the drawn page, for each page, beside an empty page.

    python tests/benchmarks/bench_pages.py [--size 2000]

Fills an embedded database with five experiments of about 10 `size` units, starts the
dashboard, and opens each page in a browser that has been there before (a new session each
time, the scripts in its cache). `first` is the visit that fetches what only this page
needs; `again` the median of others, each of which builds its numbers anew; `CPU` what
dashboard and browser computed in such a visit, which a busy machine does not stretch. The
floor is a Streamlit app that shows a title.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil
from playwright.sync_api import expect, sync_playwright

from experiment_service.storage import database
from tests.conftest import free_port
from tests.integration.reporting.conftest import seed
from tests.integration.reporting.test_browser import PAGES, dashboard, settled

VISITS = 3
#: Longer than the dashboard keeps a report, so that each visit builds its own.
PAUSE = 6.0
FLOOR = 'import streamlit as st\nst.title("Floor")\n'


@contextmanager
def floor(folder):
    """An app that shows a title and asks no database."""
    script = folder / "floor.py"
    script.write_text(FLOOR)
    port = free_port()
    options = {"headless": "true", "port": str(port), "fileWatcherType": "none"}
    flags = [f"--server.{name}={value}" for name, value in options.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", str(script), *flags],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def computed():
    """CPU seconds of all processes that this program started and that still run."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def visit(browser, address, title, told):
    """Open an address in a fresh session; seconds until all is there, and CPU seconds."""
    page = browser.new_page()
    before = computed()
    started = time.perf_counter()
    page.goto(address)
    found = page.get_by_role("heading", level=1, name=title, exact=True)
    expect(found).to_be_visible(timeout=60_000)
    expect(page.get_by_text(told).first).to_be_visible(timeout=60_000)
    settled(page)
    took = time.perf_counter() - started
    used = computed() - before
    page.close()
    return took, used


def show(name, visits, base):
    again, used = (statistics.median(each) for each in zip(*visits[1:], strict=True))
    print(
        f"| {name} | {visits[0][0]:.2f} | {again:.2f} | {again / base:.1f} | {used:.2f} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=2000)
    size = parser.parse_args().size
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(database.running_database(None, folder / "data"))
        database.migrate(url)
        engine = database.create_engine(url)
        with database.transaction(engine) as connection:
            seed(connection, now=datetime.now(UTC), size=size)
        engine.dispose()
        empty = stack.enter_context(floor(folder))
        address = stack.enter_context(dashboard(url, folder / "data", free_port()))
        playwright = stack.enter_context(sync_playwright())
        launched = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        # One context for all, so that scripts are fetched once, as by a person's browser.
        browser = launched.new_context(viewport={"width": 1280, "height": 900})
        time.sleep(PAUSE)
        base = [visit(browser, empty, "Floor", "Floor") for _ in range(1 + VISITS)]
        # The first page of a new process loads its libraries, once.
        visit(browser, address, *PAGES[""])
        middle = statistics.median(seconds for seconds, _ in base[1:])
        print(
            "| page | first, s | again, s | / floor | CPU, s |\n|---|---|---|---|---|"
        )
        for path, (title, told) in PAGES.items():
            visits = []
            for _ in range(1 + VISITS):
                time.sleep(PAUSE)
                visits.append(visit(browser, f"{address}/{path}", title, told))
            show(title, visits, middle)
        show("floor", base, middle)
        launched.close()


if __name__ == "__main__":
    main()
