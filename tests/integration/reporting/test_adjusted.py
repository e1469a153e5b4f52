"""Comparisons adjusted by earlier behaviour, effects by segment, checks of the traffic."""

import json
from datetime import timedelta
from decimal import Decimal

import pandas as pd
import pytest
import statsmodels.formula.api as smf

from experiment_service.analysis.heterogeneity import Heterogeneity
from experiment_service.analysis.interval import Withheld
from experiment_service.domain.event import Interaction
from experiment_service.reporting import build_report, build_segments, operations
from experiment_service.storage.events import store_events
from tests.integration.reporting.conftest import RATES, declare, open_experiment

DAY = timedelta(days=1)
UNITS = 900
EFFECT = {"phone": 0.0, "desktop": 2.0, None: 0.0}


def visit(recorder, connection, *, now, busy=0, **more):
    """Shoppers with habits of their own, of whom those at a desktop like `als`."""
    rng = recorder.rng
    declaration = declare(
        "home-carousel",
        reward_metric="clicks_per_visitor",
        metrics=[],
        **more,
    )
    experiment, epoch = open_experiment(connection, declaration, now - 10 * DAY)
    rows = []
    for number in range(UNITS):
        unit_id, habit = f"unit-{number}", rng.gamma(2.0, 1.5)
        at = now - 9 * DAY + 8 * DAY * float(rng.random())
        device = ("phone", "desktop", None)[rng.choice(3, p=[0.6, 0.39, 0.01])]
        before = int(rng.poisson(habit))
        for _ in range(before):
            recorder.interactions.append(act(recorder, unit_id, at - 2 * DAY))
        exposure = recorder.expose(experiment, epoch, unit_id, at)
        object.__setattr__(exposure, "context", {"device": device} if device else {})
        effect = EFFECT[device] if exposure.variant == "als" else 0.0
        clicks = int(rng.poisson(habit + effect))
        if number < busy:
            clicks += 500
        for _ in range(clicks):
            recorder.interact(exposure, "click", 20)
        rows.append((exposure.variant, device, before, clicks))
    store_events(connection, recorder.exposures, recorder.interactions)
    return pd.DataFrame(rows, columns=["variant", "device", "z", "y"])


def act(recorder, unit_id, at):
    return Interaction(
        id=recorder.uuid(at),
        exposure_id=None,
        unit_id=unit_id,
        kind="click",
        item_id=None,
        position=None,
        value=None,
        occurred_at=at,
    )


def pair(table, variant):
    chosen = table[table.variant.isin(["popular", variant])]
    return chosen.assign(treated=(chosen.variant == variant).astype(float))


def test_cuped_is_the_coefficient_of_a_regression_on_earlier_clicks(
    connection, recorder, shop
):
    table = visit(recorder, connection, now=shop.now, cuped=True)
    report = build_report(connection, "home-carousel", as_of=shop.now)
    slope = smf.ols("y ~ C(variant) + z", table).fit().params["z"]
    means = table.groupby("variant").mean(numeric_only=True)
    for each in report.reward.comparisons:
        apart = means.loc[each.variant] - means.loc["popular"]
        assert each.planned.estimate == pytest.approx(apart.y - slope * apart.z, 1e-9)
        robust = smf.ols("y ~ treated + z", pair(table, each.variant)).fit(
            cov_type="HC2"
        )
        low, high = robust.conf_int().loc["treated"]
        assert each.planned.high - each.planned.low == pytest.approx(high - low, 0.02)
        plain = smf.ols("y ~ treated", pair(table, each.variant)).fit()
        share = 1 - robust.resid.var() / plain.resid.var()
        assert each.variance_removed == pytest.approx(share, abs=0.03)
        assert each.variance_removed > 0.3
        assert each.planned.method.startswith("CUPED, ")
        assert each.lift_planned.method.startswith("CUPED, ")
        assert each.any_time.low < each.planned.low < each.planned.high
    # The rates themselves stay as they are.
    for result in report.reward.variants:
        assert result.planned.estimate == pytest.approx(means.loc[result.variant].y)
    assert report.to_document()["metrics"][0]["comparisons"][0]["variance_removed"]


def test_without_enough_earlier_behaviour_the_plain_difference_is_given(
    connection, recorder, shop
):
    visit(recorder, connection, now=shop.now, cuped=True)
    report = build_report(connection, "home-carousel", as_of=shop.now)
    (rate,) = (each for each in report.metrics if each.name == "conversion_rate")
    for each in rate.comparisons:
        assert isinstance(each.variance_removed, Withheld)
        assert "CUPED" not in each.planned.method


def test_segments_find_the_attribute_by_which_the_effect_differs(
    connection, recorder, shop
):
    table = visit(recorder, connection, now=shop.now)
    report = build_segments(connection, "home-carousel", as_of=shop.now)
    (attribute,) = report.attributes
    assert attribute.attribute == "device"
    assert [each.level for each in attribute.levels] == ["phone", "desktop", "-"]
    for part in attribute.levels:
        level = None if part.level == "-" else part.level
        here = table[table.device.isna() if level is None else table.device == level]
        for result in part.report.variants:
            clicks = here[here.variant == result.variant].y
            assert result.units == len(clicks)
            if len(clicks) > 1:
                assert result.planned.estimate == pytest.approx(clicks.mean())
    differ = {each.variant: each for each in attribute.differ}
    assert isinstance(differ["als"].test, Heterogeneity)
    assert differ["als"].corrected < 1e-4
    assert differ["item-knn"].corrected > 0.01
    assert differ["als"].test.left_out == ("-",)
    assert "nan" not in str(report.to_document())


def test_segments_of_an_experiment_without_attributes_are_none(shop, connection):
    open_experiment(connection, declare("home-carousel"), shop.now - DAY)
    report = build_segments(connection, "home-carousel", as_of=shop.now)
    assert (report.attributes, report.left_out) == ((), ())


def checks_of(report):
    return {check.title: check.result for check in report.checks}


def test_units_with_absurdly_many_clicks_are_told(connection, recorder, shop):
    visit(recorder, connection, now=shop.now, busy=5)
    checks = checks_of(build_report(connection, "home-carousel", as_of=shop.now))
    assert checks["Units with too many interactions"].status == "failed"
    assert (
        "5 units have more than" in checks["Units with too many interactions"].message
    )
    assert checks["Units with too many exposures"].status == "ok"


def test_an_effect_that_fades_is_told(connection, recorder, shop):
    experiment, epoch = open_experiment(
        connection, declare("home-carousel"), shop.now - 10 * DAY
    )
    for number in range(4000):
        day = number % 8
        at = shop.now - 9 * DAY + day * DAY
        exposure = recorder.expose(experiment, epoch, f"unit-{number}", at)
        new = exposure.variant == "als"
        rate = RATES["popular"] + (0.5 - 0.07 * day if new else 0.0)
        if recorder.rng.random() < rate:
            recorder.interact(exposure, "click", 20)
    store_events(connection, recorder.exposures, recorder.interactions)
    report = build_report(connection, "home-carousel", as_of=shop.now)
    novelty = {
        check.subject: check.result.status
        for check in report.checks
        if check.title == "Novelty"
    }
    assert novelty == {"als": "warning", "item-knn": "ok"}


def test_views_that_are_missing_in_a_variant_are_told(connection, recorder, shop):
    experiment, epoch = open_experiment(
        connection, declare("home-carousel"), shop.now - 2 * DAY
    )
    for number in range(1500):
        exposure = recorder.expose(experiment, epoch, f"unit-{number}", shop.now - DAY)
        seen = 0.6 if exposure.variant == "als" else 0.8
        if recorder.rng.random() < seen:
            recorder.interact(exposure, "viewed", 5)
    store_events(connection, recorder.exposures, recorder.interactions)
    report = build_report(connection, "home-carousel", as_of=shop.now)
    assert checks_of(report)["Views by variant"].status == "failed"
    assert "'als'" in checks_of(report)["Views by variant"].message


def test_exposures_that_are_missing_in_a_variant_are_told(connection, recorder, shop):
    experiment, epoch = open_experiment(
        connection, declare("home-carousel"), shop.now - 2 * DAY
    )
    ago = timedelta(minutes=20)
    lost = []
    for number in range(1500):
        unit = f"unit-{number}"
        recorder.expose(experiment, epoch, unit, shop.now - DAY)
        again = recorder.expose(experiment, epoch, unit, shop.now - ago)
        recorder.interact(again, "click", 5)
        if again.variant == "als" and recorder.rng.random() < 0.1:
            lost.append(again)
    arrived = [each for each in recorder.exposures if each not in lost]
    store_events(connection, arrived, recorder.interactions)
    check = checks_of(build_report(connection, "home-carousel", as_of=shop.now))[
        "Exposures by variant"
    ]
    assert check.status == "failed"
    assert "'als'" in check.message


def test_repeated_events_are_told_of_the_service(connection, recorder, shop):
    experiment, epoch = open_experiment(
        connection, declare("home-carousel"), shop.now - 2 * DAY
    )
    for number in range(200):
        recorder.expose(experiment, epoch, f"unit-{number}", shop.now - DAY)
    for _ in range(3):
        store_events(connection, recorder.exposures, [])
    result = checks_of(operations(connection, as_of=shop.now))["Repeated events"]
    assert (result.status, result.value) == ("failed", pytest.approx(2 / 3))


@pytest.mark.parametrize("window", ["1h", "30d"])
def test_returns_and_open_windows_are_told_in_words(connection, recorder, shop, window):
    """More was given back than bought; or no window can close before the end."""
    declaration = declare(
        "home-carousel", reward_metric="revenue_per_visitor", attribution_window=window
    )
    experiment, epoch = open_experiment(connection, declaration, shop.now - 2 * DAY)
    for number in range(900):
        exposure = recorder.expose(experiment, epoch, f"unit-{number}", shop.now - DAY)
        recorder.interact(exposure, "purchase", 5)
        value = Decimal(number % 7 - 20)
        object.__setattr__(recorder.interactions[-1], "value", value)
    store_events(connection, recorder.exposures, recorder.interactions)
    report = build_report(connection, "home-carousel", as_of=shop.now)
    json.dumps(report.to_document(), allow_nan=False)
    for each in report.reward.comparisons:
        assert isinstance(each.lift_planned, Withheld)
        assert isinstance(each.lift_any_time, Withheld)
        assert isinstance(each.planned, Withheld) == (window == "30d")
    if window == "30d":
        assert "has 0 of the 200 units" in report.summary.sentence
    else:
        assert all(each.planned.high < 0 for each in report.reward.variants)
