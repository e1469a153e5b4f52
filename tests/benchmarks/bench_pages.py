"""Time from the address to the drawn page, for each page, beside an empty page.

    python tests/benchmarks/bench_pages.py [--size 2000] [--demo]

Fills an embedded database with five experiments of about 10 `size` units, or runs the demo
with all its parts, starts the dashboard, and opens each page in a browser that has been
there before (a new session each time, the scripts kept by its profile). `first` is the
visit that fetches what only this page needs; `again` the median of others, each of which
builds its numbers anew; `CPU` what dashboard, browser and database computed in such a
visit, which a busy machine does not stretch; with the demo also its shoppers, API and
worker. The floor is a Streamlit app that shows a title.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
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
#: Seconds for which the demo's shoppers come before the first visit.
WARM = 90.0
DEMO = {
    "": ("Experiments", "home-carousel"),
    "experiment?experiment=home-carousel": ("Experiment", "From exposure to purchase"),
    "experiment?experiment=offers-carousel": (
        "Experiment",
        "From exposure to purchase",
    ),
    "bandit?experiment=offers-carousel": ("Bandit", "What the weights earned"),
    "planning?experiment=home-carousel": ("Planning", "How long the next test"),
    "replay?experiment=offers-carousel&policies=uniform": ("Replay", "always als"),
    "models?model=als": ("Models", "als"),
    "health?experiment=home-carousel": ("Health", "Sample ratio by epoch"),
}
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


@contextmanager
def seeded(folder, size):
    """A dashboard of five experiments that nobody visits."""
    with database.running_database(None, folder) as url:
        database.migrate(url)
        engine = database.create_engine(url)
        with database.transaction(engine) as connection:
            seed(connection, now=datetime.now(UTC), size=size)
        engine.dispose()
        with dashboard(url, folder, free_port()) as address:
            yield address


@contextmanager
def demo(folder):
    """The dashboard of a running demo."""
    ports = {"PORT": free_port(), "DASHBOARD_PORT": free_port(), "DATA_DIR": folder}
    process = subprocess.Popen(
        [sys.executable, "-m", "experiment_service", "demo"],
        env=os.environ
        | {f"EXPERIMENT_SERVICE_{name}": str(value) for name, value in ports.items()}
        | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        # It tells how many came once shoppers come.
        next(line for line in process.stdout if " visits, " in line)
        threading.Thread(target=process.stdout.read, daemon=True).start()
        time.sleep(WARM)
        yield f"http://127.0.0.1:{ports['DASHBOARD_PORT']}"
    finally:
        process.terminate()
        process.wait(60)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=2000)
    parser.add_argument("--demo", action="store_true", help="while the demo runs")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        empty = stack.enter_context(floor(folder))
        data = folder / "data"
        address = stack.enter_context(
            demo(data) if options.demo else seeded(data, options.size)
        )
        pages = DEMO if options.demo else PAGES
        playwright = stack.enter_context(sync_playwright())
        # With a profile, as a person's: a private window compiles all scripts each time.
        browser = playwright.chromium.launch_persistent_context(
            folder / "profile",
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu"],
            viewport={"width": 1280, "height": 900},
        )
        time.sleep(PAUSE)
        base = [visit(browser, empty, "Floor", "Floor") for _ in range(1 + VISITS)]
        middle = statistics.median(seconds for seconds, _ in base[1:])
        # Of a process that has shown nothing yet.
        start, _ = visit(browser, address, *pages[""])
        print(f"first page of the process: {start:.2f} s\n")
        print(
            "| page | first, s | again, s | / floor | CPU, s |\n|---|---|---|---|---|"
        )
        for path, (title, told) in pages.items():
            visits = []
            for _ in range(1 + VISITS):
                time.sleep(PAUSE)
                visits.append(visit(browser, f"{address}/{path}", title, told))
            show(path or "overview", visits, middle)
        show("floor", base, middle)
        browser.close()


if __name__ == "__main__":
    main()
