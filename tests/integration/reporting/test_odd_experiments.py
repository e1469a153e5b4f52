"""Pages of experiments with odd or missing data: sentences, never nan or a stack trace."""

import re
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from sqlalchemy import text
from streamlit.testing.v1 import AppTest

import dashboard
from experiment_service.passwords import hash_password
from experiment_service.storage.database import create_engine, transaction
from experiment_service.storage.events import store_events
from tests.integration.reporting.conftest import (
    Recorder,
    declare,
    keep_main,
    new_database,
    open_experiment,
)

APP = Path(dashboard.__file__).parent / "app.py"
PASSWORD = "a password for tests"
POLICY = {"name": "thompson", "floor": 0.05, "interval": "4h"}
GAUSSIAN = {"name": "gaussian_thompson", "floor": 0.05, "interval": "4h"}


def seed(connection, recorder, key, start, *, units, variants, clicks, **declared):
    """Units in some variants only, of whom nobody, or everybody, clicks."""
    experiment, _ = open_experiment(connection, declare(key, **declared), start)
    for number in range(units):
        at = start + timedelta(minutes=number % 60)
        for variant in variants:
            exposure = recorder.expose_as(
                experiment, (variant, 0), f"{key}-{variant}-{number}", at
            )
            if clicks:
                recorder.interact(exposure, "click", 20)


@pytest.fixture(scope="module")
def odd_url(server_url, template_database):
    """A shop in which every experiment lacks something."""
    start = datetime.now(UTC) - timedelta(days=1)
    recorder = Recorder(np.random.default_rng(5))
    everywhere = ("popular", "item-knn", "als")
    kinds = {
        "unseen": {"units": 0, "variants": (), "clicks": False},
        "one-sided": {"units": 300, "variants": ("popular",), "clicks": True},
        "clickless": {"units": 300, "variants": everywhere, "clicks": False},
        "all-click": {"units": 300, "variants": everywhere, "clicks": True},
        "few": {"units": 2, "variants": everywhere, "clicks": True},
        "per-view": {
            "units": 300,
            "variants": everywhere,
            "clicks": False,
            "reward_metric": "click_through_rate",
        },
        "new-bandit": {
            "units": 0,
            "variants": (),
            "clicks": False,
            "kind": "bandit",
            "policy": POLICY,
        },
        "flat-bandit": {
            "units": 150,
            "variants": everywhere,
            "clicks": False,
            "kind": "bandit",
            "policy": GAUSSIAN,
            "reward_metric": "clicks_per_visitor",
        },
        "no-control-bandit": {
            "units": 150,
            "variants": ("als",),
            "clicks": True,
            "kind": "bandit",
            "policy": POLICY,
        },
    }
    with new_database(server_url, template_database) as url:
        engine = create_engine(url)
        with transaction(engine) as connection:
            for key, kind in kinds.items():
                seed(connection, recorder, key, start, **kind)
            store_events(connection, recorder.exposures, recorder.interactions)
            # As if they had been recorded when they happened.
            connection.execute(text("UPDATE exposure SET recorded_at = exposed_at"))
        engine.dispose()
        yield url


@pytest.fixture
def open_page(monkeypatch, tmp_path, odd_url):
    keep_main(monkeypatch)
    monkeypatch.setenv("DATABASE_URL", odd_url)
    monkeypatch.setenv("EXPERIMENT_SERVICE_DATA_DIR", str(tmp_path))

    def opened(page, **address):
        test = AppTest.from_file(str(APP), default_timeout=30)
        for name, value in address.items():
            test.query_params[name] = value
        if page != "overview":
            test.switch_page(f"views/{page}.py")
        for section in ("filter", "positions", "download"):
            test.session_state[section] = True
        return test.run()

    yield opened
    st.cache_resource.clear()


def text_of(test):
    """All that a page says, tables and banners too."""
    parts = [unescape(re.sub(r"<[^>]+>", " ", e.proto.body)) for e in test.get("html")]
    for kind in ("caption", "error", "warning", "info", "success", "markdown"):
        parts += [each.value for each in getattr(test, kind)]
    return "\n".join(parts)


@pytest.mark.parametrize(
    ("page", "key", "words"),
    [
        ("experiment", "unseen", "There are no units yet"),
        ("experiment", "one-sided", "Do not use these numbers"),
        ("experiment", "clickless", "Nobody has clicked on a position yet"),
        ("experiment", "all-click", "300 of 300"),
        ("experiment", "few", "Too early to tell"),
        ("experiment", "per-view", "Rounds have one reward for each unit"),
        ("bandit", "new-bandit", "No advice yet: a variant has no units"),
        ("bandit", "flat-bandit", "All units have the same value"),
        ("bandit", "no-control-bandit", "The control has no units yet"),
        ("health", "one-sided", "Usual causes"),
        ("planning", "clickless", ""),
        ("overview", "", "one-sided"),
    ],
)
def test_what_is_missing_is_told_in_words(open_page, page, key, words):
    test = open_page(page, **({"experiment": key} if key else {}))
    assert not test.exception
    said = text_of(test)
    assert words in said
    assert re.findall(r"\b(nan|NaN|inf|Infinity|None)\b", said) == []


@pytest.mark.parametrize(
    "address",
    [
        {"from": "yesterday"},
        {"metric": "nonsense"},
        {"from": "2030-01-01", "to": "1999-12-31", "metric": ""},
    ],
)
def test_any_address_shows_all_days(open_page, address):
    test = open_page("experiment", experiment="all-click", **address)
    assert not test.exception
    assert "exploratory" not in text_of(test)
    assert "300 of 300" in text_of(test)


@pytest.mark.parametrize("address", [{"model": "nonsense"}, {"version": "nonsense"}])
def test_models_of_any_address_and_of_none(open_page, address):
    test = open_page("models", **address)
    assert not test.exception
    assert "There are no models yet" in test.info[0].value


def test_a_login_is_asked_for_before_anything_is_shown(open_page, monkeypatch):
    hashed = hash_password(PASSWORD)
    monkeypatch.setenv("EXPERIMENT_SERVICE_DASHBOARD_PASSWORD_HASH", hashed)
    monkeypatch.setattr("dashboard.login._FAILURE_SECONDS", 0.0)
    # AppTest has no browser, and so neither cookies nor address.
    monkeypatch.setattr("dashboard.login._cookie", lambda: None)
    monkeypatch.setattr("dashboard.login._address", lambda: "10.0.0.7")
    test = open_page("overview")
    assert "all-click" not in text_of(test)
    for _ in range(5):
        enter(test, "wrong")
        assert test.error[0].value == "That is not the password."
    enter(test, PASSWORD)
    assert "Too many wrong passwords from here. Try again in" in test.error[0].value
    assert "all-click" not in text_of(test)
    st.cache_resource.clear()
    enter(test, PASSWORD)
    assert not test.error
    assert "all-click" in text_of(test)


def enter(test, password):
    test.text_input[0].set_value(password)
    test.button[0].click().run()


def test_settings_that_are_wrong_are_told_on_the_page(open_page, monkeypatch):
    monkeypatch.setenv("EXPERIMENT_SERVICE_DASHBOARD_PASSWORD_HASH", "plain text")
    test = open_page("overview")
    assert not test.exception
    assert "hash-password" in test.error[0].value
    assert "plain text" not in text_of(test)
