"""The whole line on real parts: files, processes, HTTP, PostgreSQL and a browser."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import httpx
import numpy as np
import pytest
from playwright.sync_api import sync_playwright
from sqlalchemy import text

from tests.conftest import free_port

VARIANTS = [
    {"key": "popularity", "recommender": "popularity", "control": True},
    {"key": "item_knn", "recommender": "item_knn"},
    {"key": "als", "recommender": "als"},
]
EXPERIMENTS = [
    {
        "key": "home-test",
        "kind": "ab",
        "placement": "home",
        "layer": "home",
        "variants": VARIANTS,
        "attribution_window": "2s",
    },
    {
        "key": "offers-bandit",
        "kind": "bandit",
        "placement": "offers",
        "layer": "offers",
        "variants": VARIANTS,
        "attribution_window": "1s",
        "policy": {"name": "thompson", "interval": "5s", "minimum_units": 20},
    },
]
APPEAL = {"popularity": 0.2, "item_knn": 0.6, "als": 0.3}
UNITS = 240
BROWSER = {
    "executable_path": "/usr/bin/chromium",
    "args": [
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ],
}


class Shop:
    """Our command line and processes on one database and data directory."""

    def __init__(self, database_url, directory):
        self.directory = directory
        self.ports = {"serve": free_port(), "dashboard": free_port()}
        self.environment = {
            **os.environ,
            "DATABASE_URL": database_url,
            "EXPERIMENT_SERVICE_DATA_DIR": str(directory / "data"),
            "EXPERIMENT_SERVICE_PORT": str(self.ports["serve"]),
            "EXPERIMENT_SERVICE_DASHBOARD_PORT": str(self.ports["dashboard"]),
        }

    def run(self, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", "experiment_service", *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def address(self, part):
        return f"http://127.0.0.1:{self.ports[part]}"

    @contextmanager
    def running(self, part):
        """Run a part; it must end with status 0 when asked to."""
        log = self.directory / f"{part}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "experiment_service", part],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                yield
                process.send_signal(signal.SIGTERM)
                assert process.wait(40) == 0, log.read_text()
            finally:
                process.kill()
                process.wait()


def wait_for(question, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)
    return answer


def answers(address):
    try:
        return httpx.get(address, timeout=2).is_success
    except httpx.HTTPError:
        return False


def write_purchases(directory, rng):
    rows = ["unit_id,item_id,occurred_at"]
    for unit in range(UNITS):
        for item in rng.choice(60, size=12, replace=False):
            taste = (item + 20 * (unit % 3)) % 60
            rows.append(
                f"unit-{unit},item-{taste if rng.random() < 0.7 else item},"
                f"2026-0{1 + rng.integers(6)}-{1 + rng.integers(28):02d}T12:00:00Z"
            )
    file = directory / "purchases.csv"
    file.write_text("\n".join(rows) + "\n")
    return file


def shop(address, rng, rounds):
    """Visit like a storefront; return ids of exposures and interactions by answers."""
    exposures, interactions = set(), set()
    with httpx.Client(base_url=address, timeout=10) as client:
        for _ in range(rounds):
            for unit in range(UNITS):
                placement = "home" if unit % 2 else "offers"
                body = {"unit_id": f"unit-{unit}", "placement": placement, "k": 5}
                answer = client.post("/v1/recommendations", json=body).json()
                assert len(answer["items"]) == 5
                exposures.add(answer["exposure_id"])
                if rng.random() < APPEAL[answer["variant"]]:
                    click = {
                        "id": f"{answer['exposure_id']}:click",
                        "exposure_id": answer["exposure_id"],
                        "kind": "click",
                        "position": 1,
                    }
                    for _ in range(2):  # a retry must not count twice
                        sent = client.post(
                            "/v1/interactions", json={"interactions": [click]}
                        )
                        assert sent.json()["accepted"] == 1
                    interactions.add(click["id"])
    return exposures, interactions


def rows(engine, question, **values):
    with engine.connect() as connection:
        return connection.execute(text(question), values).all()


def expected_rates(engine, key):
    """Units and rate of each variant, from raw rows alone."""
    events = rows(
        engine,
        """SELECT x.unit_id, x.variant, x.exposed_at,
                  EXISTS (SELECT 1 FROM interaction i WHERE i.exposure_id = x.id
                          AND i.kind = 'click') AS clicked
           FROM exposure x JOIN experiment e ON e.id = x.experiment_id
           WHERE e.key = :key ORDER BY x.exposed_at""",
        key=key,
    )
    first = {}
    for unit, variant, at, clicked in events:
        variant_of, since, reward = first.get(unit, (variant, at, False))
        in_window = (at - since).total_seconds() < 2
        first[unit] = (variant_of, since, reward or (clicked and in_window))
    rates = {}
    for variant in APPEAL:
        rewards = [reward for v, _, reward in first.values() if v == variant]
        rates[variant] = (len(rewards), sum(rewards) / len(rewards))
    return rates


@pytest.fixture
def started(database_url, tmp_path):
    shop_ = Shop(database_url, tmp_path)
    purchases = write_purchases(tmp_path, np.random.default_rng(7))
    shop_.run("migrate")
    shop_.run(
        "train", "popularity", "item_knn", "als", "--interactions", purchases,
        "--depth", 10,
    )  # fmt: skip
    for experiment in EXPERIMENTS:
        file = tmp_path / "experiment.json"
        file.write_text(json.dumps(experiment))
        assert "running" in shop_.run("create", file, "--start")
    with ExitStack() as stack:
        for part in ("serve", "worker", "dashboard"):
            stack.enter_context(shop_.running(part))
        ready = shop_.address("serve") + "/health/ready"
        wait_for(lambda: answers(ready), "the API")
        page = shop_.address("dashboard") + "/_stcore/health"
        wait_for(lambda: answers(page), "the dashboard")
        yield shop_


def test_from_purchases_to_numbers_on_the_page(started, engine):
    exposures, interactions = shop(
        started.address("serve"), np.random.default_rng(8), rounds=3
    )
    count = "SELECT count(*), count(DISTINCT id) FROM "
    expected = [(len(exposures),) * 2], [(len(interactions),) * 2]
    wait_for(
        lambda: (
            (rows(engine, count + "exposure"), rows(engine, count + "interaction"))
            == expected
        ),
        "every event in PostgreSQL exactly once",
    )
    stored = {str(row.id) for row in rows(engine, "SELECT id FROM exposure")}
    assert stored == exposures
    wait_for(
        lambda: rows(engine, "SELECT 1 FROM epoch WHERE number = 1"),
        "the worker to open an epoch",
    )
    shop(started.address("serve"), np.random.default_rng(9), rounds=1)
    wrong = """SELECT x.id FROM exposure x
               JOIN epoch e ON e.experiment_id = x.experiment_id AND e.number = x.epoch
               WHERE (e.weights ->> x.variant)::float8 <> x.propensity"""
    assert rows(engine, wrong) == []
    time.sleep(3)  # the last windows close
    check_pages(started.address("dashboard"), expected_rates(engine, "home-test"))


def check_pages(address, rates):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**BROWSER)
        page = browser.new_page(viewport={"width": 1280, "height": 1600})

        def text_of(path, heading):
            page.goto(address + path)
            page.get_by_role("heading", name=heading, exact=True).wait_for(
                timeout=60_000
            )
            page.get_by_role("table").first.wait_for(timeout=60_000)
            assert page.get_by_test_id("stException").count() == 0
            return re.sub(r"\s+", " ", page.locator("body").inner_text())

        overview = text_of("/", "Experiments")
        assert "home-test" in overview
        assert "offers-bandit" in overview
        text_of("/experiment?experiment=home-test", "Experiment")
        table = page.get_by_role("table").first
        for variant, (units, rate) in rates.items():
            row = table.get_by_role("row").filter(has_text=variant).first.inner_text()
            assert re.search(rf"\b{units}\b", row), (row, units)
            assert f"{rate:.1%}" in row, (row, rate)
        bandit = text_of("/bandit?experiment=offers-bandit", "Bandit")
        assert "thompson" in bandit
        assert "Probability of being best" in bandit
        assert "Ingestion lag" in text_of("/health", "Health")
        browser.close()
