"""Time from the address to the drawn page, for each page, beside an empty page.

    python tests/benchmarks/bench_pages.py [--size 2000]

Fills an embedded database with five experiments of about 10 `size` units, starts the
dashboard, and opens each page in a browser. `first` is a visit whose numbers nobody had
asked for yet; `again` the median of others, each of which builds them anew. The floor is
a Streamlit app that shows a title.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

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


def visit(browser, address, title, told):
    """Open an address in a fresh session; seconds until all of it is there."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    started = time.perf_counter()
    page.goto(address)
    found = page.get_by_role("heading", level=1, name=title, exact=True)
    expect(found).to_be_visible(timeout=60_000)
    expect(page.get_by_text(told).first).to_be_visible(timeout=60_000)
    settled(page)
    took = time.perf_counter() - started
    page.close()
    return took


def show(name, seconds, base):
    again = statistics.median(seconds[1:])
    print(f"| {name} | {seconds[0]:.2f} | {again:.2f} | {again / base:.1f} |")


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
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        time.sleep(PAUSE)
        base = [visit(browser, empty, "Floor", "Floor") for _ in range(1 + VISITS)]
        # The first page of a new process loads its libraries, once.
        visit(browser, address, *PAGES[""])
        print("| page | first, s | again, s | / floor |\n|---|---|---|---|")
        for path, (title, told) in PAGES.items():
            seconds = []
            for _ in range(1 + VISITS):
                time.sleep(PAUSE)
                seconds.append(visit(browser, f"{address}/{path}", title, told))
            show(title, seconds, statistics.median(base[1:]))
        show("floor", base, statistics.median(base[1:]))
        browser.close()


if __name__ == "__main__":
    main()
