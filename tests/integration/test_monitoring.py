"""Alerts from real rows: raised once, told once, however often and from wherever."""

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import create_engine as plain_engine
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError

from experiment_service import experimentation
from experiment_service.domain.declaration import parse_declaration
from experiment_service.domain.event import Exposure, Interaction
from experiment_service.domain.monitor import thresholds
from experiment_service.monitoring import tell, watch
from experiment_service.storage import alerts, monitors
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import create_engine, transaction
from experiment_service.storage.events import store_events
from tests.integration.test_reallocation import make_live
from tests.webhook import receiving

START = datetime(2026, 11, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
#: Fallbacks of `knn` begin and end.
BROKEN, MENDED = START + 4 * DAY + 12 * HOUR, START + 4 * DAY + 18 * HOUR
DEFAULTS = thresholds({})


def uuid(rng, at):
    low, middle = int(rng.integers(1 << 62)), int(rng.integers(1 << 12))
    return UUID(
        int=(int(at.timestamp() * 1000) << 80)
        | (7 << 76)
        | middle << 64
        | 2 << 62
        | low
    )


def start(connection, key, **more):
    declaration = parse_declaration(
        {
            "key": key,
            "kind": "ab",
            "placement": key,
            "layer": key,
            "variants": [
                {"key": "control", "recommender": "popularity", "control": True},
                {"key": "knn", "recommender": "popularity"},
            ],
            "attribution_window": "1h",
            **more,
        }
    )
    experimentation.create(connection, declaration, actor="test", now=START)
    return experimentation.start(connection, key, actor="test", now=START)


def show(rng, experiment, variant, at, *, fallback=False, unit=None):
    identifier = uuid(rng, at)
    return Exposure(
        id=identifier,
        experiment_id=experiment.id,
        unit_id=unit or f"unit-{identifier}",
        variant=variant,
        epoch=0,
        propensity=0.5,
        model="popularity/1",
        items=("a", "b", "c"),
        sources=("popularity",) * 3,
        fallback=fallback,
        context={},
        exposed_at=at,
    )


def act(rng, exposure, kind):
    at = exposure.exposed_at + timedelta(minutes=1)
    return Interaction(
        id=uuid(rng, at),
        exposure_id=exposure.id,
        unit_id=None,
        kind=kind,
        item_id="a",
        position=1,
        value=None,
        occurred_at=at,
        category="shoes",
    )


def seed(connection):
    """Six days of `home`, 240 exposures each; and `search`, which is off at once."""
    rng = np.random.default_rng(8)
    home = start(connection, "home")
    exposures = []
    for number in range(6 * 240):
        at = START + number * timedelta(minutes=6) + timedelta(seconds=1)
        variant = ("control", "knn")[number % 2]
        fallback = variant == "knn" and BROKEN <= at < MENDED
        exposures.append(show(rng, home, variant, at, fallback=fallback))
    interactions = [
        act(rng, each, "click")
        for number, each in enumerate(exposures)
        if number % 4 < 2
    ]
    search = start(connection, "search", guardrails={"dismiss_rate": 0.1})
    for number in range(900):
        at = BROKEN - 3 * HOUR + number * timedelta(seconds=5)
        variant = "control" if number % 3 else "knn"
        exposures.append(show(rng, search, variant, at))
        if number % 6 == 0 or number % 20 == 1:
            interactions.append(act(rng, exposures[-1], "dismiss"))
    store_events(connection, exposures, interactions)
    set_state(connection, "search", "stopped", BROKEN)


def set_state(connection, key, state, stopped_at=None):
    """Stop an experiment, or let it go on as if it had never been stopped."""
    connection.execute(
        text("UPDATE experiment SET state = :s, stopped_at = :at WHERE key = :key"),
        {"s": state, "at": stopped_at, "key": key},
    )


@pytest.fixture(scope="module")
def seeded(server_url, template_database):
    name = "monitored"
    admin = plain_engine(server_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template_database}"))
    engine = create_engine(
        make_url(server_url).set(database=name).render_as_string(hide_password=False)
    )
    make_live(engine, "popularity")
    with transaction(engine) as connection:
        seed(connection)
    yield engine
    engine.dispose()
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture
def engine(seeded):
    """The seeded shop without an alert; what was measured of past days stays."""
    with transaction(seeded) as connection:
        connection.execute(text("TRUNCATE alert"))
    return seeded


@pytest.fixture
def webhook():
    with receiving() as server:
        yield server


def look(engine, now, webhook=None):
    watch(engine, now, thresholds=DEFAULTS)
    return 0 if webhook is None else tell(engine, now, urls=[webhook.url])


def stored(engine, experiment="home"):
    with transaction(engine) as connection:
        return [
            each
            for each in reversed(alerts.latest_alerts(connection, limit=99))
            if each.experiment == experiment
        ]


def titles(webhook, about="home"):
    return [
        document["title"]
        for _, document in webhook.received
        if about in document["title"]
    ]


def test_a_jump_of_fallbacks_is_one_alert_and_two_messages(engine, webhook):
    for hours in (-2, 4, 6, 6, 8, 24, 26, 28):
        look(engine, BROKEN + hours * HOUR, webhook)
    (alert,) = stored(engine)
    assert (alert.monitor, alert.subject) == ("fallback_share", "knn")
    # Of the 120 of 24 hours 5 more fall back in each: above 20% after five hours, and
    # at 18% or less when nine of the thirty are out again.
    assert alert.raised_at == BROKEN + 6 * HOUR
    assert alert.value == pytest.approx(30 / 120)
    assert alert.resolved_at == MENDED + 20 * HOUR
    assert titles(webhook) == [
        "Alert: Fallback share of home/knn",
        "Over: Fallback share of home/knn",
    ]
    raised, over = (
        document["message"]
        for _, document in webhook.received
        if "home" in document["title"]
    )
    assert raised == (
        "Alert: Fallback share of home/knn\n25.0% of exposures have an item from "
        "elsewhere than the variant's own lists, in the last 24 hours; an alert above "
        "20.0%. Usual causes: a model without a live version, or many shoppers or "
        "products that it does not know."
    )
    assert over.startswith("Over: Fallback share of home/knn\n16.7% of exposures")
    assert "It was raised 2026-11-05 18:00 UTC: 25.0% of" in over


def test_what_breaks_in_a_busy_hour_is_seen_within_it(engine):
    rng = np.random.default_rng(9)
    with transaction(engine) as connection:
        home = storage.get_experiment(connection, "home")
        now = START + 5.5 * DAY
        rows = [
            show(rng, home, "control", now - HOUR / 4, fallback=number % 2 == 0)
            for number in range(100)
        ]
        store_events(connection, rows, [])
        found = monitors.sample_exposures(
            connection, home.id, start=now - HOUR, end=now, slices=4, per_slice=7
        )
        # Ten in the hour: 3, 2, 3 and 2 by slice, one of which is filled up.
        assert len(found) == 3 + 2 + 3 + 7 or len(found) == 3 + 2 + 2 + 7
        connection.rollback()


def test_a_measured_day_is_exact_and_days_without_a_worker_are_made_up_for(engine):
    now = START + 5 * DAY + 12 * HOUR
    with transaction(engine) as connection:
        connection.execute(text("TRUNCATE monitored_day"))
    look(engine, now)
    with transaction(engine) as connection:
        home = storage.get_experiment(connection, "home")
        days = monitors.list_days(connection, home.id, since=START.date())
    assert [each.day.day for each in days if each.variant == "knn"] == [*range(1, 7)]
    by_day = {each.day.day: each for each in days if each.variant == "knn"}
    assert by_day[5].exposures == 120
    assert by_day[5].until == START + 5 * DAY
    assert by_day[5].measured["fallback_share"] == pytest.approx(30 / 120)
    assert by_day[6].until == now
    assert by_day[4].measured["fallback_share"] == 0
    assert by_day[4].measured["interaction_rate"] == pytest.approx(1, abs=0.05)
    assert by_day[4].measured["category_drift"] is None
    # Of a version trained at noon of the first day.
    assert by_day[4].measured["list_age"] == pytest.approx(3.5)
    assert by_day[1].measured["coverage"] is None
    assert by_day[4].measured["coverage"] == pytest.approx(1)
    first, *_ = by_day[4].positions
    # Half of the 120 were clicked; the newest hour of five is left out.
    assert (first.position, first.shown) == (1, 115)
    assert first.acted in (57, 58)
    look(engine, now)
    with transaction(engine) as connection:
        assert monitors.list_days(connection, home.id, since=START.date()) == days


def test_an_unequal_split_and_a_broken_guardrail_are_alerts(engine, webhook):
    now = BROKEN - HOUR
    with transaction(engine) as connection:
        set_state(connection, "search", "running")
    assert look(engine, now, webhook) == 1
    found = {each.monitor: each for each in stored(engine, "search")}
    assert set(found) == {"sample_ratio", "guardrail"}
    assert found["sample_ratio"].subject == ""
    assert found["sample_ratio"].value < 0.001
    assert found["sample_ratio"].threshold == 0.01
    assert found["guardrail"].subject == "knn/dismiss_rate"
    assert found["guardrail"].threshold == 0.1
    ((_, document),) = webhook.received
    assert (
        document["title"] == "2 alerts: Guardrail of search/knn/dismiss_rate and others"
    )
    assert "Alert: Sample ratio of search\nUnits against weights" in document["message"]
    # An experiment that no longer runs has no alerts.
    with transaction(engine) as connection:
        set_state(connection, "search", "stopped", now)
    assert look(engine, now + HOUR, webhook) == 1
    assert {each.resolution for each in stored(engine, "search")} == {
        "The experiment no longer runs."
    }
    assert webhook.received[1][1]["title"].startswith("2 over: ")


def test_two_workers_at_once_raise_and_tell_once(engine, webhook):
    now, barrier, failures = MENDED, threading.Barrier(2), []

    def work():
        try:
            barrier.wait(10)
            look(engine, now, webhook)
        except Exception as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for each in workers:
        each.start()
    for each in workers:
        each.join(60)
    assert not failures
    assert len(stored(engine)) == 1
    told = "\n".join(document["message"] for _, document in webhook.received)
    assert told.count("Alert: Fallback share of home/knn") == 1


def test_what_was_not_told_is_told_by_the_next_look(engine, webhook):
    look(engine, MENDED)  # died before it told anybody
    webhook.status = 500
    assert tell(engine, MENDED, urls=[webhook.url]) == 0
    assert all(each.raise_told_at is None for each in stored(engine))
    webhook.status = 204
    webhook.received.clear()
    assert tell(engine, MENDED + HOUR, urls=[webhook.url]) == 1
    assert tell(engine, MENDED + HOUR, urls=[webhook.url]) == 0
    (alert,) = stored(engine)
    assert alert.raise_told_at == MENDED + HOUR
    assert alert.resolve_told_at is None
    assert len(webhook.received) == 1


def test_an_alert_that_was_over_before_anybody_heard_is_told_as_over(engine, webhook):
    look(engine, MENDED)
    look(engine, MENDED + 22 * HOUR)
    tell(engine, MENDED + DAY, urls=[webhook.url])
    ((_, document),) = webhook.received
    assert document["message"].count("Fallback share of home/knn") == 1
    assert "Over: Fallback share of home/knn" in document["message"]
    assert tell(engine, MENDED + 2 * DAY, urls=[webhook.url]) == 0


def test_one_experiment_that_fails_hides_no_other(engine, monkeypatch):
    kept = storage.list_experiments

    def one_more(connection):
        found = kept(connection)
        home = next(each for each in found if each.key == "home")
        gone = replace(home.declaration, key="gone")
        return [replace(home, id=-1, declaration=gone), home]

    monkeypatch.setattr(storage, "list_experiments", one_more)
    with pytest.raises(IntegrityError, match="fk_monitored_day_experiment_id"):
        look(engine, MENDED)
    monkeypatch.undo()
    assert len(stored(engine)) == 1
