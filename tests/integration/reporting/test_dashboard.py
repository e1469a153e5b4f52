"""Every page on a seeded, an empty and a missing database; numbers from raw events."""

import re
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import dashboard
from dashboard import formats
from dashboard.reports import Fresh
from experiment_service.domain.declaration import parse_declaration
from experiment_service.domain.monitor import MONITORS
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import transaction
from tests.integration.reporting.conftest import keep_main

APP = Path(dashboard.__file__).parent / "app.py"
PAGES = ["overview", "experiment", "bandit", "planning", "replay", "models", "health"]
HOME, CART = "home-carousel", "cart-carousel"
HOUR = timedelta(hours=1)
SEARCH, EMAIL = "search-carousel", "email-carousel"
STOPPED = "product-carousel"


@pytest.fixture
def open_page(monkeypatch, tmp_path):
    """Open a page on a database, as a browser would."""
    keep_main(monkeypatch)

    def opened(page, url, experiment=None, **address):
        monkeypatch.setenv("DATABASE_URL", url)
        monkeypatch.setenv("EXPERIMENT_SERVICE_DATA_DIR", str(tmp_path))
        test = AppTest.from_file(str(APP), default_timeout=30)
        if experiment is not None:
            test.query_params["experiment"] = experiment
        for name, value in address.items():
            test.query_params[name] = value
        if page != "overview":
            test.switch_page(f"views/{page}.py")
        return test.run()

    yield opened
    st.cache_resource.clear()


def table(test, caption):
    """Rows of cells of the table with this caption."""
    for element in test.get("html"):
        body = element.proto.body
        if caption in body:
            rows = re.findall(r"<tr>(.*?)</tr>", body)
            return [
                [
                    re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", cell))).strip()
                    for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)
                ]
                for row in rows
            ]
    raise AssertionError(f"no table {caption!r}")


@pytest.mark.parametrize(
    ("page", "experiment"),
    [
        *(("experiment", key) for key in (HOME, CART, SEARCH, EMAIL, STOPPED)),
        *((page, key) for page in ("planning", "health") for key in (CART, EMAIL)),
        ("bandit", CART),
        ("replay", SEARCH),
    ],
)
def test_every_page_opens(shop, open_page, page, experiment):
    test = open_page(page, shop.url, experiment)
    assert not test.exception
    expected = ("Do not use", "is no base for a plan", "Sample ratio of search")
    unexpected = [
        error.value
        for error in test.error
        if not any(words in error.value for words in expected)
    ]
    assert unexpected == []
    assert test.title[0].value


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_database_is_explained(database_url, open_page, page):
    test = open_page(page, database_url)
    assert not test.exception
    assert [error.value for error in test.error] == []
    assert "There are no" in test.info[0].value


@pytest.mark.parametrize("page", PAGES)
def test_a_missing_database_is_told_in_words(open_page, page):
    test = open_page(page, "postgresql://nobody@127.0.0.1:1/none")
    assert not test.exception
    assert "The database does not answer" in test.error[0].value
    assert "start it or check DATABASE_URL" in test.error[0].value
    assert test.title[0].value


def test_a_schema_that_is_behind_names_the_command(empty_database_url, open_page):
    test = open_page("overview", empty_database_url)
    assert "experiment-service migrate" in test.error[0].value


def test_overview_shows_units_and_results(shop, open_page):
    rows = table(open_page("overview", shop.url), ">Experiments;")
    by_name = {row[0].split()[0]: row for row in rows[1:]}
    assert list(by_name)[-1] == STOPPED
    units = {each.unit_id for each in shop.exposures[HOME]}
    assert by_name[HOME][4] == f"{len(units):,}"
    assert by_name[HOME][5] == "OK"
    assert by_name[HOME][6].startswith("item-knn +")
    assert by_name[SEARCH][5:] == [
        "Failed",
        "\N{EN DASH}",
        "Unhealthy Do not use these numbers: sample ratio failed.",
    ]
    assert by_name[EMAIL][2] == "Draft"


@pytest.mark.parametrize("device", [None, "phone"])
def test_experiment_shows_the_rates_of_the_raw_events(shop, open_page, device):
    address = {} if device is None else {"group": f"device: {device}"}
    test = open_page("experiment", shop.url, HOME, **address)
    assert bool(test.warning) == (device is not None)
    rows = table(test, "Visitor interaction rate by variant")
    clicked = Counter()
    counted = Counter()
    rewarded = {
        event.exposure_id
        for event in shop.interactions[HOME]
        if event.kind in ("click", "add_to_cart", "purchase")
    }
    first = {}
    for exposure in sorted(shop.exposures[HOME], key=lambda each: each.exposed_at):
        if device in (None, exposure.context["device"]):
            first.setdefault(exposure.unit_id, exposure)
    at_hand = {
        unit: exposure
        for unit, exposure in first.items()
        if exposure.exposed_at + timedelta(hours=1) <= shop.now
    }
    in_window = {}
    for exposure in shop.exposures[HOME]:
        start = first.get(exposure.unit_id, exposure)
        # Clicks come 20 s after the exposure.
        near = exposure.exposed_at + timedelta(seconds=20) <= start.exposed_at + (
            timedelta(hours=1)
        )
        if exposure.id in rewarded and near:
            in_window[exposure.unit_id] = True
    for unit, exposure in at_hand.items():
        counted[exposure.variant] += 1
        clicked[exposure.variant] += in_window.get(unit, False)
    for row in rows[1:]:
        variant = row[0].split()[0]
        assert row[2].startswith(f"{counted[variant]:,} ")
        rate = clicked[variant] / counted[variant]
        assert row[3].startswith(formats.value(rate, "proportion"))


def test_another_metric_can_be_chosen(shop, open_page):
    test = open_page("experiment", shop.url, HOME)
    chooser = test.segmented_control[0]
    chooser.set_value("clicks_per_visitor").run()
    assert not test.exception
    assert table(test, "Clicks per visitor by variant")


@pytest.mark.parametrize("page", [HOME, CART])
def test_methods_say_what_they_cost_in_width(shop, open_page, page):
    test = open_page("experiment", shop.url, page)
    costs = {row[0]: row[2] for row in table(test, "Where they come from")[1:]}
    times = re.fullmatch(
        r"(\d\.\d)( to \d\.\d)? times that of one look.*",
        costs["Difference, any time"],
    )
    # A confidence sequence is wider than an interval for one look, but not by far.
    assert 1.2 < float(times[1]) < 4
    assert ("weighted alike" in costs["Difference, one look"]) == (page == CART)


def test_effects_are_shown_by_attribute_of_visitors(shop, open_page):
    test = open_page("experiment", shop.url, HOME)
    (row,) = table(test, "is the same at all levels")[1:]
    assert row[:2] == ["device", "2"]
    assert all(cell.startswith("No difference shown p ") for cell in row[2:])
    test.session_state["By device"] = True
    levels = table(test.run(), "corrected for all levels")
    units = {
        device: len(
            {
                exposure.unit_id
                for exposure in shop.exposures[HOME]
                if exposure.context["device"] == device
            }
        )
        for device in ("phone", "desktop")
    }
    for name, counted, *differences in levels[1:]:
        assert 0.98 * units[name] <= int(counted.replace(",", "")) <= units[name]
        assert all(" to " in each for each in differences)


def test_positions_are_shown_when_they_are_opened(shop, open_page):
    test = open_page("experiment", shop.url, HOME)
    closed = len(test.get("vega_lite_chart"))
    test.session_state["positions"] = True
    rows = table(test.run(), "clicked on the position")
    assert len(test.get("vega_lite_chart")) == closed + 1
    assert rows[0] == ["Position", "popular", "item-knn", "als"]
    clicked = {
        str(each.position) for each in shop.interactions[HOME] if each.kind == "click"
    }
    assert {row[0] for row in rows[1:]} == clicked


def test_an_unknown_group_in_the_address_shows_everybody(shop, open_page):
    test = open_page("experiment", shop.url, HOME, group="device: fridge")
    assert not test.exception
    assert not test.warning
    assert "is not in the experiment" in test.toast[0].value


@pytest.mark.parametrize(
    ("first", "last", "told"),
    [
        ("soon", "2026-01-01", "has no day in its part from"),
        ("1999-01-01", "1999-01-02", "are not in the experiment"),
    ],
)
def test_days_of_the_address_that_are_none_are_told_once(
    shop, open_page, first, last, told
):
    test = open_page("experiment", shop.url, HOME, **{"from": first, "to": last})
    assert not test.exception
    assert not test.warning
    assert told in test.toast[0].value
    assert not test.run().toast


def test_a_choice_of_days_and_visitors_goes_to_the_address(shop, open_page):
    test = open_page("experiment", shop.url, HOME)
    assert not test.date_input
    test.session_state["filter"] = True
    test.run()
    first, last = test.date_input[0].value
    test.date_input[0].set_value((first, first)).run()
    assert "".join(test.query_params["to"]) == first.isoformat()
    assert "from" not in test.query_params
    assert "exploratory" in test.warning[0].value
    test.date_input[0].set_value((first, last)).run()
    assert not test.warning
    visitors = next(each for each in test.selectbox if each.label == "Visitors")
    visitors.set_value("device: phone").run()
    assert "".join(test.query_params["group"]) == "device: phone"
    next(each for each in test.button if each.label == "All visitors").click().run()
    assert "group" not in test.query_params
    assert not test.warning


def test_failed_checks_stand_above_the_numbers(shop, open_page):
    test = open_page("experiment", shop.url, SEARCH)
    assert "Do not use these numbers." in test.error[0].value
    assert "Sample ratio" in test.error[0].value


def test_bandit_shows_weights_and_the_probability_of_being_best(shop, open_page):
    test = open_page("bandit", shop.url, CART)
    rows = table(test, "Beta posterior")
    shares = [float(row[-1].strip("<>% ")) for row in rows[1:]]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    epochs = table(test, "Epochs")
    weights = [float(cell.split("%")[0]) for cell in epochs[1][2:5]]
    assert sum(weights) == pytest.approx(100, abs=0.2)
    looks = table(test, "Looks of the policy")
    assert {row[1] for row in looks[1:]} == {"Moved", "Kept"}


def test_health_shows_units_beside_those_expected(shop, open_page):
    test = open_page("health", shop.url, CART)
    rows = table(test, "Units per variant")
    units = {(each.unit_id, each.epoch) for each in shop.exposures[CART]}
    shown = [int(row[1].replace(",", "")) for row in rows[1:]]
    expected = [int(row[2].replace(",", "")) for row in rows[1:]]
    assert sum(shown) == len(units)
    assert sum(expected) == pytest.approx(len(units), abs=2)


def test_health_shows_open_alerts_above_and_all_of_them_below(shop, open_page):
    test = open_page("health", shop.url, HOME)
    assert [error.value.split(", since")[0] for error in test.error] == [
        "**Sample ratio of search-carousel**"
    ]
    rows = table(test, "Alerts, the latest")
    assert [row[:2] for row in rows[1:]] == [
        ["Sample ratio search-carousel", "Open"],
        ["Fallback share home-carousel/als", "Over"],
    ]
    assert rows[2][3:] == ["3 h", "40.0% of exposures fell back <b> 2.0% again"]
    assert "What it serves" in [each.value for each in test.subheader]
    titles = [each.value.strip("*") for each in test.markdown]
    assert titles == [each.title for each in MONITORS.values()]


def test_the_choice_is_in_the_address_and_stays_between_pages(shop, open_page):
    test = open_page("experiment", shop.url, SEARCH)
    assert test.selectbox[0].value == SEARCH
    test.selectbox[0].set_value(HOME).run()
    assert test.query_params["experiment"] in (HOME, [HOME])
    assert [error.value for error in test.error] == []


def test_an_unknown_experiment_in_the_address_is_told(shop, open_page):
    test = open_page("experiment", shop.url, "nonsense")
    assert not test.exception
    assert "nonsense is not among" in test.toast[0].value
    assert test.selectbox[0].value != "nonsense"


def test_texts_of_users_are_escaped(shop, open_page, engine, database_url):
    hostile = "<script>alert(1)</script> $x$ [a](http://b)"
    variants = [
        {"key": "a", "recommender": "r", "control": True},
        {"key": "b", "recommender": "r"},
    ]
    declaration = parse_declaration(
        {
            "key": "hostile",
            "kind": "ab",
            "placement": "home",
            "description": hostile,
            "variants": variants,
        }
    )
    with transaction(engine) as connection:
        storage.create_experiment(connection, declaration, now=shop.now)
    test = open_page("experiment", database_url, "hostile")
    assert not test.exception
    bodies = [element.proto.body for element in test.get("html")]
    assert any("&lt;script&gt;" in body for body in bodies)
    assert not any("<script" in body for body in bodies)


class TestFresh:
    def test_keeps_a_value_for_its_time(self):
        now = [0.0]
        fresh = Fresh(clock=lambda: now[0], seconds=4)
        built = iter(range(9))
        assert fresh.get("a", lambda: next(built)) == 0
        now[0] = 3.9
        assert fresh.get("a", lambda: next(built)) == 0
        assert fresh.get("b", lambda: next(built)) == 1
        now[0] = 4.0
        assert fresh.get("a", lambda: next(built)) == 2

    def test_keeps_what_took_long_ten_times_as_long(self):
        now = [0.0]
        fresh = Fresh(clock=lambda: now[0], seconds=4)

        def slow():
            now[0] += 2
            return now[0]

        assert fresh.get("a", slow) == 2
        now[0] = 19
        assert fresh.get("a", slow) == 2
        now[0] = 20
        assert fresh.get("a", slow) == 22

    def test_keeps_no_failure(self):
        fresh = Fresh(clock=lambda: 0.0, seconds=4)
        with pytest.raises(ZeroDivisionError):
            fresh.get("a", lambda: 1 / 0)
        assert fresh.get("a", lambda: "well") == "well"

    def test_builds_once_for_many_viewers(self):
        fresh = Fresh(clock=lambda: 0.0, seconds=4)
        gate = threading.Event()
        built = []

        def build():
            gate.wait(5)
            built.append(1)
            return "value"

        viewers = [
            threading.Thread(target=fresh.get, args=("a", build)) for _ in range(8)
        ]
        for viewer in viewers:
            viewer.start()
        gate.set()
        for viewer in viewers:
            viewer.join()
        assert built == [1]


def replayed(test, policies, **more):
    test.text_area[0].set_value(policies)
    for label, chosen in more.items():
        next(e for e in test.selectbox if e.label == label).set_value(chosen)
    return test.button[0].click().run()


def test_replay_compares_policies_on_the_log(shop, open_page):
    test = replayed(
        open_page("replay", shop.url, CART),
        "thompson:floor=0.05\nuniform",
        Reward="clicks_per_visitor",
        Estimator="ips",
    )
    assert "'thompson:floor=0.05' learns from rewards of 0 or 1" in test.error[0].value
    test = replayed(test, "gaussian_thompson:floor=0.05\nuniform")
    assert [error.value for error in test.error] == []
    rows = table(test, "What each policy would have earned")
    names = [row[0] for row in rows[1:]]
    assert sorted(names[:2]) == ["gaussian_thompson:floor=0.05", "uniform"]
    assert names[2:] == ["always popular", "always item-knn", "always als"]
    first = {}
    for exposure in sorted(shop.exposures[CART], key=lambda each: each.exposed_at):
        first.setdefault((exposure.unit_id, exposure.epoch), exposure)
    # Windows go on closing while the test runs.
    earliest = sum(each.exposed_at + HOUR <= shop.now for each in first.values())
    latest = sum(each.exposed_at + HOUR <= datetime.now(UTC) for each in first.values())
    assert earliest <= int(facts(test)["Rounds"].replace(",", "")) <= latest
    assert "gaussian_thompson" in str(test.query_params["policies"])


def facts(test):
    body = next(e.proto.body for e in test.get("html") if "es-facts" in e.proto.body)
    pairs = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", body)
    return {unescape(label): unescape(value) for label, value in pairs}


def test_replay_of_an_experiment_without_units_says_so(shop, open_page):
    test = replayed(open_page("replay", shop.url, EMAIL), "uniform")
    assert "no unit whose attribution window closed" in test.error[0].value


def test_planning_shows_what_the_traffic_allows(shop, open_page):
    test = open_page("planning", shop.url, HOME)
    control = facts(test)["Control"]
    days = [float(each.value.split()[0].replace(",", "")) for each in test.metric]
    assert days[0] < days[1]
    rows = table(test, "What can be seen by when")
    assert [row[0] for row in rows[1:]] == ["7", "14", "21", "28", "42", "56"]
    lift = next(each for each in test.number_input if each.label.startswith("Lift"))
    lift.set_value(20.0).run()
    fewer = [float(each.value.split()[0].replace(",", "")) for each in test.metric]
    # Units go with the square of the difference, nearly.
    assert 3.5 < days[0] / fewer[0] < 4.5
    chooser = next(each for each in test.selectbox if each.label == "Metric")
    chooser.set_value("clicks_per_visitor").run()
    assert not test.exception
    assert facts(test)["Control"] != control
    assert "clicks_per_visitor" in str(test.query_params["metric"])


@pytest.mark.parametrize(
    "address", [{"lift": "x", "power": "1000"}, {"metric": "nope", "comparisons": "-4"}]
)
def test_planning_takes_any_address(shop, open_page, address):
    test = open_page("planning", shop.url, HOME, **address)
    assert not test.exception
    assert not test.error
