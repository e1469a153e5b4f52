"""Every page in a real browser, behind its login, in light and dark and two widths."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import httpx
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import TimeoutError as TooLate
from playwright.sync_api import expect, sync_playwright

from experiment_service.passwords import hash_password
from tests.conftest import free_port
from tests.integration.reporting.conftest import publish_shop_lists
from tests.integration.reporting.provider import Provider

HOME, CART = "home-carousel", "cart-carousel"
PASSWORD = "a password for tests"
#: Path of each page, and something that only a page with its numbers shows.
PAGES = {
    "": ("Experiments", HOME),
    f"experiment?experiment={HOME}": ("Experiment", "From exposure to purchase"),
    f"bandit?experiment={CART}": ("Bandit", "What the weights earned"),
    f"planning?experiment={HOME}": ("Planning", "What can be seen by when"),
    f"replay?experiment={CART}&policies=uniform": ("Replay", "always popular"),
    "models?model=als": ("Models", "1 of 2 passed"),
    "models?model=item-knn": ("Models", "Clicks that it keeps"),
    f"health?experiment={HOME}": ("Health", "Sample ratio by epoch"),
}
LOOKS = [("light", 1280), ("dark", 1280), ("dark", 1920), ("light", 1920)]
NOT_A_NUMBER = re.compile(r"\b(NaN|nan|inf|Infinity|None|null|undefined)\b")


@contextmanager
def dashboard(url, data_dir, port, **settings):
    """The dashboard as a process, ready to be looked at."""
    environment = {
        **os.environ,
        "DATABASE_URL": url,
        "EXPERIMENT_SERVICE_DATA_DIR": str(data_dir),
        "EXPERIMENT_SERVICE_DASHBOARD_PORT": str(port),
        **{f"EXPERIMENT_SERVICE_{name}": value for name, value in settings.items()},
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "experiment_service", "dashboard"],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                httpx.get(f"{address}/_stcore/health").raise_for_status()
                break
            except httpx.TransportError:
                assert process.poll() is None
                time.sleep(0.1)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.fixture(scope="module")
def address(shop, tmp_path_factory):
    """A dashboard that asks for a password."""
    data, hashed = tmp_path_factory.mktemp("data"), hash_password(PASSWORD)
    publish_shop_lists(data)
    with dashboard(
        shop.url, data, free_port(), DASHBOARD_PASSWORD_HASH=hashed
    ) as started:
        yield started


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--no-first-run"],
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def logged_in(browser, address):
    """A page of a browser that logged in."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    log_in(page, PASSWORD)
    heading(page, "Experiments")
    yield page
    context.close()


@pytest.fixture
def stranger(logged_in):
    """A page of the same browser that logged in nowhere; it has the scripts already."""
    context = logged_in.context
    cookies = context.cookies()
    context.clear_cookies()
    page = context.new_page()
    yield page
    page.close()
    context.clear_cookies()
    context.add_cookies(cookies)


def log_in(page, password):
    page.get_by_label("Password", exact=True).fill(password)
    page.get_by_role("button", name="Log in").click()


def heading(page, text):
    expect(page.get_by_role("heading", level=1, name=text, exact=True)).to_be_visible(
        timeout=20_000
    )


def settled(page):
    """Wait until the script has run and all charts are drawn."""
    expect(page.get_by_test_id("stStatusWidget")).to_have_count(0, timeout=20_000)
    expect(page.get_by_test_id("stSkeleton")).to_have_count(0, timeout=20_000)


def check_look(page, theme, width):
    text = page.inner_text("body")
    assert NOT_A_NUMBER.findall(text) == []
    assert page.get_by_test_id("stException").count() == 0
    assert "Traceback" not in text
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, f"{wide} px wide on {width}"
    painted = page.evaluate(
        "getComputedStyle(document.querySelector('.stApp')).backgroundColor"
    )
    brightness = sum(map(int, re.findall(r"\d+", painted)[:3])) / 3
    assert (brightness < 80) == (theme == "dark"), painted


@pytest.mark.parametrize("path", PAGES)
def test_every_page_in_every_look(address, logged_in, path):
    title, told = PAGES[path]
    logged_in.set_viewport_size({"width": 1280, "height": 900})
    logged_in.emulate_media(color_scheme="light")
    logged_in.goto(f"{address}/{path}")
    heading(logged_in, title)
    expect(logged_in.get_by_text(told).first).to_be_visible(timeout=20_000)
    settled(logged_in)
    for theme, width in LOOKS:
        logged_in.emulate_media(color_scheme=theme)
        logged_in.set_viewport_size({"width": width, "height": 900})
        logged_in.wait_for_timeout(150)
        check_look(logged_in, theme, width)


def test_numbers_are_those_of_the_events(address, logged_in, shop):
    logged_in.goto(address)
    units = {each.unit_id for each in shop.exposures[HOME]}
    row = logged_in.get_by_role("row").filter(has_text=HOME)
    expect(row).to_contain_text(f"{len(units):,}")
    row.get_by_role("link").click()
    heading(logged_in, "Experiment")
    assert f"experiment={HOME}" in logged_in.url


def test_filters_are_in_the_address_and_can_be_taken_back(address, logged_in, shop):
    day = shop.exposures[HOME][0].exposed_at.date().isoformat()
    logged_in.goto(f"{address}/experiment?experiment={HOME}&from={day}&to={day}")
    told = logged_in.get_by_text("chosen after looking is exploratory")
    expect(told).to_be_visible(timeout=20_000)
    logged_in.get_by_role("button", name="All days").click()
    expect(told).to_have_count(0, timeout=20_000)
    assert "from=" not in logged_in.url
    logged_in.get_by_role("button", name="Filter visitors").click()
    days = logged_in.get_by_text("First exposed between (days in UTC)", exact=True)
    expect(days).to_be_visible(timeout=20_000)
    choose(logged_in, "Visitors", "device: phone")
    only = logged_in.get_by_text("Only visitors with device: phone count below.")
    expect(only).to_be_visible(timeout=20_000)
    assert "group=device%3A+phone" in logged_in.url
    logged_in.keyboard.press("Escape")
    logged_in.get_by_role("button", name="All visitors").click()
    expect(only).to_have_count(0, timeout=20_000)
    assert "group=" not in logged_in.url
    logged_in.get_by_role("radio", name="Clicks per visitor").click()
    expect(logged_in.get_by_text("Clicks per visitor by variant")).to_be_visible(
        timeout=20_000
    )
    expect(logged_in).to_have_url(re.compile("metric=clicks_per_visitor"))
    assert "from=" not in logged_in.url
    logged_in.get_by_text("By device", exact=True).click()
    expect(logged_in.get_by_text("corrected for all levels")).to_be_visible(
        timeout=20_000
    )


def test_files_can_be_taken_away(address, logged_in, shop, tmp_path):
    logged_in.goto(f"{address}/experiment?experiment={HOME}")
    logged_in.get_by_text("Download", exact=True).click()
    with logged_in.expect_download() as table:
        logged_in.get_by_role("button", name="All metrics, CSV").click()
    table.value.save_as(tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["variant"] for row in rows} == {"popular", "item-knn", "als"}
    settled(logged_in)
    choose(logged_in, "What was recorded", "Exposures")
    choose(logged_in, "Format", "Parquet")
    with logged_in.expect_download() as raw:
        logged_in.get_by_role("button", name="Make exposures.parquet").click()
    raw.value.save_as(tmp_path / "exposures.parquet")
    assert raw.value.suggested_filename == f"{HOME}-exposures.parquet"
    stored = pq.read_table(tmp_path / "exposures.parquet").column("id").to_pylist()
    assert sorted(stored) == sorted(str(each.id) for each in shop.exposures[HOME])


def test_lists_of_two_versions_stand_side_by_side(address, logged_in):
    logged_in.goto(f"{address}/models?model=item-knn")
    unit = logged_in.get_by_label("Unit", exact=True)
    expect(unit).to_be_visible(timeout=20_000)
    table = logged_in.get_by_role("table").filter(has_text="As published")
    first = table.get_by_role("row").nth(1)
    # Version 2 begins at the second product of version 1, and knows its name.
    expect(first).to_contain_text("Product 1 there at 2")
    expect(first).to_contain_text("sku-0 only here")
    unit.fill("ana")
    unit.press("Enter")
    expect(first).to_contain_text("Product 12 only here", timeout=20_000)


def choose(page, field, option):
    listed = page.get_by_role("option", name=option)
    # A list that opens while the page still moves closes again.
    for _ in range(5):
        page.get_by_role("combobox", name=field).click()
        with suppress(TooLate):
            listed.click(timeout=3_000)
            return
    raise AssertionError(f"no {option!r} in {field!r}")


def test_a_wrong_password_stays_outside_and_the_right_one_comes_in(stranger, address):
    page = stranger
    page.goto(f"{address}/experiment?experiment={HOME}")
    log_in(page, "not the password")
    expect(page.get_by_text("That is not the password.")).to_be_visible(timeout=20_000)
    assert HOME not in page.inner_text("body")
    log_in(page, PASSWORD)
    heading(page, "Experiment")
    # A reload is a new session, so the cookie must do.
    page.reload()
    heading(page, "Experiment")
    page.get_by_role("link", name="Log out").click()
    expect(page.get_by_label("Password", exact=True)).to_be_visible(timeout=20_000)
    page.wait_for_timeout(300)
    page.reload()
    expect(page.get_by_label("Password", exact=True)).to_be_visible(timeout=20_000)


def test_people_of_a_provider_come_in_by_their_address(browser, shop, tmp_path):
    port = free_port()
    data = tmp_path / "data"
    with (
        Provider(client="dashboard", secret="of the client") as provider,
        dashboard(
            shop.url,
            data,
            port,
            OIDC_METADATA_URL=f"{provider.url}/.well-known/openid-configuration",
            OIDC_CLIENT_ID="dashboard",
            OIDC_CLIENT_SECRET="of the client",
            OIDC_REDIRECT_URL=f"http://127.0.0.1:{port}/oauth2callback",
            OIDC_ALLOWED="@shop.example",
        ) as address,
    ):
        assert [each.stat().st_mode & 0o777 for each in data.glob("*.toml")] == [0o600]
        context = browser.new_context()
        for email, enters in (("eve@evil.example", False), ("ana@shop.example", True)):
            provider.email = email
            context.clear_cookies()
            page = context.new_page()
            page.goto(address)
            page.get_by_role("button", name="Log in").click()
            if enters:
                heading(page, "Experiments")
                page.get_by_role("link", name="Log out").click()
                expect(page.get_by_role("button", name="Log in")).to_be_visible(
                    timeout=20_000
                )
            else:
                told = page.get_by_text(f"{email} may not look at this dashboard")
                expect(told).to_be_visible(timeout=20_000)
            assert (HOME in page.inner_text("body")) is False
            page.close()
        context.close()
    assert list(data.glob("*.toml")) == []
