"""Reports against statsmodels, SciPy and sums made by hand from the raw events."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy import special, stats
from sqlalchemy import text
from sqlalchemy.exc import InternalError
from statsmodels.stats.proportion import (
    confint_proportions_2indep,
    proportion_confint,
)
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from experiment_service.analysis import adaptive
from experiment_service.analysis.interval import Interval, Withheld
from experiment_service.analysis.moments import EpochMoments, Moments
from experiment_service.domain.declaration import parse_declaration
from experiment_service.domain.experiment import Epoch, ExperimentState
from experiment_service.domain.metric import METRICS
from experiment_service.errors import InvalidRequest, NotFound, Unavailable
from experiment_service.reporting import Reports, build_report, operations, overview
from experiment_service.reporting.metrics import PLANNED_UNITS
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import create_engine, transaction
from experiment_service.storage.events import store_events

HOME, CART = "home-carousel", "cart-carousel"
SEARCH, PRODUCT, EMAIL = "search-carousel", "product-carousel", "email-carousel"
CONTROL = "popular"
WINDOW = timedelta(hours=1)


@pytest.fixture(scope="module")
def reports(shop):
    """The report of each experiment of the shop."""
    engine = create_engine(shop.url)
    with transaction(engine) as connection:
        built = {
            key: build_report(connection, key, as_of=shop.now)
            for key in (HOME, CART, SEARCH, PRODUCT, EMAIL)
        }
    engine.dispose()
    return built


def units_of(shop, key, *, by_epoch=False):
    """Unit -> (variant, epoch, first exposure, its exposures)."""
    units = {}
    for exposure in sorted(shop.exposures[key], key=lambda each: each.exposed_at):
        name = (exposure.unit_id, exposure.epoch) if by_epoch else exposure.unit_id
        units.setdefault(name, []).append(exposure)
    return units


def clicks_of(shop, key):
    events = {}
    for event in shop.interactions[key]:
        events.setdefault(event.exposure_id, []).append(event)
    return events


def rewards_by_hand(shop, key, *, by_epoch=False):
    """(variant, epoch) -> [0 or 1 per unit whose window has closed]."""
    events = clicks_of(shop, key)
    rewards = {}
    for shown in units_of(shop, key, by_epoch=by_epoch).values():
        first = shown[0]
        if first.exposed_at + WINDOW > shop.now:
            continue
        times = [
            event.occurred_at
            for exposure in shown
            for event in events.get(exposure.id, [])
            if event.kind in ("click", "add_to_cart", "purchase")
        ]
        rewarded = any(at <= first.exposed_at + WINDOW for at in times)
        rewards.setdefault((first.variant, first.epoch), []).append(int(rewarded))
    return rewards


def pooled(rewards):
    totals = {}
    for (variant, _), values in rewards.items():
        s, n = totals.get(variant, (0, 0))
        totals[variant] = s + sum(values), n + len(values)
    return totals


def limits(interval):
    return interval.low, interval.high


@pytest.mark.parametrize("key", [HOME, PRODUCT])
def test_rates_equal_statsmodels(shop, reports, key):
    metric = reports[key].reward
    counted = pooled(rewards_by_hand(shop, key))
    for result in metric.variants:
        s, n = counted[result.variant]
        assert result.units == n
        assert result.planned.estimate == pytest.approx(s / n)
        expected = proportion_confint(s, n, method="wilson")
        assert limits(result.planned) == pytest.approx(expected)
    s0, n0 = counted[CONTROL]
    for comparison in metric.comparisons:
        s1, n1 = counted[comparison.variant]
        difference = confint_proportions_2indep(s1, n1, s0, n0, method="newcomb")
        assert limits(comparison.planned) == pytest.approx(difference)
        ratio = confint_proportions_2indep(
            s1, n1, s0, n0, method="log", compare="ratio"
        )
        assert limits(comparison.lift_planned) == pytest.approx(np.array(ratio) - 1)


def test_confidence_sequence_of_a_rate_solves_its_equation(shop, reports):
    for key in (HOME, CART):
        counted = pooled(rewards_by_hand(shop, key, by_epoch=key == CART))
        for result in reports[key].reward.variants:
            s, n = counted[result.variant]
            for p in limits(result.any_time):
                log_ratio = special.betaln(s + 0.5, n - s + 0.5)
                log_ratio -= special.betaln(0.5, 0.5)
                log_ratio -= s * np.log(p) + (n - s) * np.log1p(-p)
                assert log_ratio == pytest.approx(np.log(20), abs=1e-6)


def test_means_equal_statsmodels(shop, reports):
    events = clicks_of(shop, HOME)
    values = {}
    for shown in units_of(shop, HOME).values():
        if shown[0].exposed_at + WINDOW <= shop.now:
            clicks = sum(
                event.kind == "click"
                for exposure in shown
                for event in events.get(exposure.id, [])
            )
            values.setdefault(shown[0].variant, []).append(clicks)
    metric = next(m for m in reports[HOME].metrics if m.name == "clicks_per_visitor")
    described = {key: DescrStatsW(np.array(each)) for key, each in values.items()}
    for result in metric.variants:
        expected = described[result.variant].tconfint_mean()
        assert limits(result.planned) == pytest.approx(expected)
    for comparison in metric.comparisons:
        pair = CompareMeans(described[comparison.variant], described[CONTROL])
        expected = pair.tconfint_diff(usevar="unequal")
        assert limits(comparison.planned) == pytest.approx(expected)


def test_click_through_rate_is_clustered_by_unit(shop, reports):
    events = clicks_of(shop, HOME)
    rows = {}
    for shown in units_of(shop, HOME).values():
        if shown[-1].exposed_at + WINDOW <= shop.now:
            clicks = sum(
                event.kind == "click"
                for exposure in shown
                for event in events.get(exposure.id, [])
            )
            rows.setdefault(shown[0].variant, []).append((clicks, len(shown)))
    metric = next(m for m in reports[HOME].metrics if m.name == "click_through_rate")
    for result in metric.variants:
        y, x = np.array(rows[result.variant], dtype=float).T
        ratio = y.sum() / x.sum()
        error = np.std(y - ratio * x, ddof=1) / x.mean() / np.sqrt(len(y))
        half = stats.t.isf(0.025, len(y) - 1) * error
        assert result.units == len(y)
        assert result.planned.estimate == pytest.approx(ratio)
        assert limits(result.planned) == pytest.approx((ratio - half, ratio + half))


def test_units_with_an_open_window_are_said_and_not_counted(shop, reports):
    for key in (HOME, CART):
        units = units_of(shop, key, by_epoch=key == CART).values()
        still_open = sum(shown[0].exposed_at + WINDOW > shop.now for shown in units)
        variants = reports[key].reward.variants
        assert still_open > 0
        assert sum(each.open_units for each in variants) == still_open
        assert sum(each.units for each in variants) == len(units) - still_open
        assert reports[key].facts.units == len(units)


def test_sample_ratio_equals_scipy_summed_over_epochs(shop, reports):
    for key in (HOME, SEARCH, CART):
        statistic, degrees = 0.0, 0
        units = units_of(shop, key, by_epoch=key == CART).values()
        for epoch in reports[key].epochs:
            found = [
                sum(
                    shown[0].variant == variant and shown[0].epoch == epoch.number
                    for shown in units
                )
                for variant in epoch.weights
            ]
            assert found == [epoch.units[variant] for variant in epoch.weights]
            expected = np.array(list(epoch.weights.values())) * sum(found)
            assert expected.min() >= 5, "cells would be merged"
            statistic += stats.chisquare(found, expected).statistic
            degrees += len(found) - 1
        check = next(c for c in reports[key].checks if c.result.name == "srm").result
        assert check.value == pytest.approx(stats.chi2.sf(statistic, degrees))
        assert (check.status == "warning") == (key == SEARCH)


def test_bandit_compares_by_epochs_with_logged_weights(shop, reports):
    report = reports[CART]
    rewards = rewards_by_hand(shop, CART, by_epoch=True)
    epochs = [
        EpochMoments(
            weights=epoch.weights,
            moments={
                variant: Moments.from_arrays(values)
                for (variant, number), values in rewards.items()
                if number == epoch.number
            },
        )
        for epoch in report.epochs
    ]
    for comparison in report.reward.comparisons:
        arguments = {
            "kind": "proportion",
            "treatment": comparison.variant,
            "control": CONTROL,
        }
        assert comparison.planned == adaptive.contrast(epochs, **arguments)
        assert comparison.any_time == adaptive.contrast_sequence(
            epochs, planned_units=PLANNED_UNITS, **arguments
        )
        assert comparison.lift_planned == adaptive.contrast_lift(epochs, **arguments)
    for result in report.reward.variants:
        assert isinstance(result.planned, Withheld)
        assert "weights moved" in result.planned.reason


def test_posteriors_are_beta_and_the_best_is_named(shop, reports):
    counted = pooled(rewards_by_hand(shop, CART, by_epoch=True))
    posteriors = reports[CART].bandit.posteriors
    for each in posteriors:
        s, n = counted[each.variant]
        assert (each.rewards, each.units) == (s, n)
        assert (each.alpha, each.beta) == (1 + s, 1 + n - s)
        expected = stats.beta.interval(0.95, 1 + s, 1 + n - s)
        assert (each.low, each.high) == pytest.approx(expected)
    rng = np.random.default_rng(3)
    draws = np.column_stack(
        [rng.beta(each.alpha, each.beta, 100_000) for each in posteriors]
    )
    shares = np.bincount(draws.argmax(axis=1), minlength=len(posteriors)) / 100_000
    for each, share in zip(posteriors, shares, strict=True):
        tolerance = 4 * np.sqrt(max(share * (1 - share), 1e-5) / 100_000)
        assert each.probability_best == pytest.approx(share, abs=tolerance)
    assert sum(each.probability_best for each in posteriors) == pytest.approx(1)


def test_bandit_shows_its_epochs_and_the_looks_that_kept(reports):
    report = reports[CART]
    assert [epoch.number for epoch in report.epochs] == list(range(len(report.epochs)))
    assert report.facts.epoch == report.epochs[-1].number
    moved = sum(look.moved for look in report.bandit.looks)
    assert moved == len(report.epochs) - 1
    assert len(report.bandit.looks) > moved
    last = report.bandit.looks[-1].cutoff
    assert report.bandit.next_look_at == last + timedelta(hours=4)
    weights = {variant.key: variant.weight for variant in report.facts.variants}
    assert weights == report.epochs[-1].weights


def test_series_ends_at_the_number_of_the_report(reports):
    for key in (HOME, CART, PRODUCT):
        report = reports[key]
        now = {result.variant: result for result in report.reward.variants}
        assert [each.variant for each in report.series] == list(now)
        for series in report.series:
            units = [point.units for point in series.points]
            assert units == sorted(units)
            assert units[-1] == now[series.variant].units
            assert series.points[-1].interval == now[series.variant].any_time
            assert len(series.points) > 40


def test_facts(shop, reports):
    facts = reports[HOME].facts
    assert (facts.kind, facts.state, facts.placement) == ("ab", "running", "home")
    assert facts.control == CONTROL
    assert facts.running_for == timedelta(days=6)
    exposures = shop.exposures[HOME]
    assert sum(variant.exposures for variant in facts.variants) == len(exposures)
    assert facts.last_exposure_at == max(each.exposed_at for each in exposures)
    kinds = [event.kind for event in shop.interactions[HOME]]
    assert facts.interactions == {kind: kinds.count(kind) for kind in set(kinds)}
    assert reports[PRODUCT].facts.running_for == timedelta(days=8)


def test_a_failed_check_silences_the_summary(reports):
    report = reports[SEARCH]
    assert [check.title for check in report.failed_checks] == ["Sample ratio"]
    assert report.summary.verdict == "unhealthy"
    assert report.summary.sentence == "Do not use these numbers: sample ratio failed."


def test_a_draft_says_so_and_gives_no_number(reports):
    report = reports[EMAIL]
    assert report.summary.verdict == "draft"
    assert report.checks == () == report.epochs == report.series
    for metric in report.metrics:
        for result in metric.variants:
            assert isinstance(result.planned, Withheld)
            assert isinstance(result.any_time, Withheld)


def test_every_number_is_finite_json_and_every_refusal_has_a_reason(reports):
    def walk(value):
        if isinstance(value, dict):
            if "withheld" in value:
                assert value["withheld"].endswith(".")
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    for report in reports.values():
        document = report.to_document()
        assert json.loads(json.dumps(document, allow_nan=False)) == document
        walk(document)
    document = reports[CART].to_document()
    assert document["facts"]["attribution_window"] == 3600
    assert datetime.fromisoformat(document["as_of"]) == reports[CART].as_of


def test_the_reward_metric_comes_first_and_none_is_missing(reports):
    for report in reports.values():
        assert report.reward.name == report.facts.reward_metric
        assert {metric.name for metric in report.metrics} == set(METRICS)
        assert [metric.reward for metric in report.metrics].count(True) == 1


def test_overview_has_a_line_for_each_experiment_running_ones_first(shop, reports):
    door = Reports(shop.url, None)
    rows = door.overview(as_of=shop.now)
    listed = door.experiments()
    door.close()
    states = [row.facts.state for row in rows]
    assert states == ["running"] * 3 + ["draft", "stopped"]
    assert [each.key for each in listed] == [row.facts.key for row in rows]
    for row in rows:
        report = reports[row.facts.key]
        assert row.facts == report.facts
        assert row.summary == report.summary
    health = {row.facts.key: row.health for row in rows}
    assert health[SEARCH] == "failed"
    assert health[HOME] == "ok"


def test_operations(shop):
    door = Reports(shop.url, None)
    found = door.operations(as_of=shop.now)
    door.close()
    since = shop.now - timedelta(hours=1)
    exposures = [e for each in shop.exposures.values() for e in each]
    assert sum(each.exposures for each in found.minutes) == sum(
        exposure.exposed_at >= since for exposure in exposures
    )
    assert found.lag.median == pytest.approx(0.8)
    statuses = {check.result.name: check.result.status for check in found.checks}
    assert statuses["ingestion_lag"] == statuses["orphans"] == "ok"


def test_reports_say_what_is_wrong(shop, empty_database_url, tmp_path):
    door = Reports(shop.url, tmp_path)
    with pytest.raises(NotFound, match="home-carousel"):
        door.report("nothing", as_of=shop.now)
    door.close()
    with pytest.raises(Unavailable, match="experiment-service migrate"):
        Reports(empty_database_url, tmp_path)
    with pytest.raises(Unavailable, match="does not answer"):
        Reports("postgresql://nobody@127.0.0.1:1/none", tmp_path)
    with pytest.raises(InvalidRequest, match="only postgresql"):
        Reports("mysql://nobody@127.0.0.1:1/none", tmp_path)


def test_reports_may_not_write(shop):
    door = Reports(shop.url, None)
    with (
        pytest.raises(InternalError, match="read-only"),
        transaction(door._engine) as connection,
    ):
        connection.exec_driver_sql("DELETE FROM audit")
    door.close()


# Small experiments of their own: what the big ones do not show.

T0 = datetime(2026, 5, 4, 9, tzinfo=UTC)


def small_experiment(connection, *, weights=({"a": 0.5, "b": 0.5},), **more):
    document = {
        "key": "small",
        "kind": "ab",
        "placement": "home",
        "attribution_window": "1h",
        "variants": [
            {"key": "a", "recommender": "popularity", "control": True},
            {"key": "b", "recommender": "popularity"},
        ],
        **more,
    }
    experiment = storage.create_experiment(
        connection, parse_declaration(document), now=T0
    )
    for number, allocation in enumerate(weights):
        epoch = Epoch(
            number=number,
            weights=allocation,
            reason="test",
            started_at=T0 + number * timedelta(days=1),
        )
        storage.insert_epoch(connection, experiment.id, epoch)
    return storage.set_state(connection, experiment, ExperimentState.RUNNING, now=T0)


def fill(connection, recorder, experiment, plan):
    """Store units: (variant, epoch) -> (units, of which click)."""
    number = 0
    for (variant, epoch), (units, clicks) in plan.items():
        for i in range(units):
            number += 1
            at = T0 + timedelta(days=epoch, seconds=number)
            recorder.expose_as(experiment, (variant, epoch), f"unit-{number}", at)
            if i < clicks:
                recorder.interact(recorder.exposures[-1], "click", 20)
    store_events(connection, recorder.exposures, recorder.interactions)
    recorded_at(connection, timedelta(seconds=1))


def recorded_at(connection, delay):
    connection.execute(
        text("UPDATE exposure SET recorded_at = exposed_at + :delay"), {"delay": delay}
    )


def report_of(connection, days=9):
    return build_report(connection, "small", as_of=T0 + timedelta(days=days))


def test_an_experiment_without_a_unit_has_a_report(connection):
    small_experiment(connection)
    report = report_of(connection)
    assert report.summary.verdict == "too_early"
    assert "has 0 of the 200 units" in report.summary.sentence
    json.dumps(report.to_document(), allow_nan=False)


@pytest.mark.parametrize("clicks", [0, 1, 300])
@pytest.mark.parametrize("units", [1, 300])
def test_extreme_rates_have_a_report(connection, recorder, units, clicks):
    experiment = small_experiment(connection)
    plan = {("a", 0): (units, min(clicks, units)), ("b", 0): (units, 0)}
    fill(connection, recorder, experiment, plan)
    json.dumps(report_of(connection).to_document(), allow_nan=False)


@pytest.mark.parametrize(
    ("clicks", "verdict", "words"),
    [
        ((300, 480), "ahead", "b is ahead of a in visitor interaction rate by 6.0"),
        ((480, 300), "behind", "b is behind a in visitor interaction rate by 6.0"),
        ((300, 303), "no_difference", "No difference from a"),
    ],
)
def test_the_summary_follows_its_rules(connection, recorder, clicks, verdict, words):
    experiment = small_experiment(connection)
    plan = {("a", 0): (3000, clicks[0]), ("b", 0): (3000, clicks[1])}
    fill(connection, recorder, experiment, plan)
    report = report_of(connection)
    assert report.summary.verdict == verdict
    assert report.summary.sentence.startswith(words)
    (comparison,) = report.reward.comparisons
    assert comparison.any_time.excludes_zero == (verdict != "no_difference")
    most = 100 * comparison.any_time.high
    assert report.summary.advice == {
        "ahead": "Ship b: the chance that it is better is over 99.99%, and choosing it "
        "when it is not costs less than 0.001 points on average.",
        "behind": "Keep a, and send no more traffic to b.",
        "no_difference": f"Keep running, or stop if no more than {most:.2g} points "
        "matters: that is the most that keeping a may give up.",
    }.get(verdict)


def test_of_a_metric_to_lower_the_lower_one_is_ahead(connection, recorder):
    experiment = small_experiment(connection, reward_metric="dismiss_rate")
    fill(connection, recorder, experiment, {("a", 0): (3000, 0), ("b", 0): (3000, 0)})
    for i, exposure in enumerate(list(recorder.exposures)):
        if i < 500 or 3000 <= i < 3200:
            recorder.interact(exposure, "dismiss", 30)
    store_events(connection, [], recorder.interactions)
    report = report_of(connection)
    assert report.summary.verdict == "ahead"
    assert report.summary.sentence.startswith("b is ahead of a in dismiss rate by 10.0")


def test_weights_that_moved_in_an_ab_test_are_stratified(connection, recorder):
    weights = ({"a": 0.9, "b": 0.1}, {"a": 0.5, "b": 0.5})
    experiment = small_experiment(connection, weights=weights)
    # Simpson: b is better on both days, yet pooled it looks worse.
    plan = {
        ("a", 0): (1800, 540),
        ("b", 0): (200, 64),
        ("a", 1): (1000, 100),
        ("b", 1): (1000, 120),
    }
    fill(connection, recorder, experiment, plan)
    report = report_of(connection)
    (comparison,) = report.reward.comparisons
    assert comparison.planned.method.startswith("AIPW")
    assert 0.01 < comparison.planned.estimate < 0.03
    assert isinstance(report.reward.variants[0].planned, Withheld)
    assert isinstance(report.reward.variants[0].any_time, Interval)
    assert comparison.lift_any_time == Withheld(
        reason="Once weights have moved, the any-time interval is given for the "
        "difference."
    )


def test_traffic_in_a_variant_of_weight_zero_fails(connection, recorder):
    experiment = small_experiment(connection, weights=({"a": 1.0, "b": 0.0},))
    fill(connection, recorder, experiment, {("a", 0): (300, 30), ("b", 0): (2, 0)})
    report = report_of(connection)
    assert report.summary.sentence == (
        "Do not use these numbers: traffic at weight 0 failed."
    )


def test_a_bandit_that_nobody_looks_at_is_reported(connection, recorder):
    policy = {"name": "thompson", "interval": "1h"}
    experiment = small_experiment(connection, kind="bandit", policy=policy)
    fill(connection, recorder, experiment, {("a", 0): (300, 30), ("b", 0): (300, 30)})
    on_time = build_report(connection, "small", as_of=T0 + timedelta(minutes=110))
    late = build_report(connection, "small", as_of=T0 + timedelta(minutes=130))
    found = [
        next(c.result for c in report.checks if c.result.name == "schedule").status
        for report in (on_time, late)
    ]
    assert found == ["ok", "warning"]
    effective = [c.result for c in late.checks if c.result.name == "effective_sample"]
    assert [check.status for check in effective] == ["ok"]


@pytest.mark.parametrize(
    ("policy", "prior"),
    [
        ({"name": "fixed"}, (1, 1)),
        (
            {
                "name": "thompson",
                "parameters": {"prior_successes": 3, "prior_failures": 40},
            },
            (3, 40),
        ),
    ],
)
def test_posteriors_start_from_the_prior_of_the_policy(
    connection, recorder, policy, prior
):
    experiment = small_experiment(connection, kind="bandit", policy=policy)
    fill(connection, recorder, experiment, {("a", 0): (30, 3), ("b", 0): (30, 6)})
    posteriors = report_of(connection).bandit.posteriors
    assert [(each.alpha, each.beta) for each in posteriors] == [
        (prior[0] + 3, prior[1] + 27),
        (prior[0] + 6, prior[1] + 24),
    ]


def test_few_cases_alarm_nobody(connection, recorder):
    experiment = small_experiment(connection)
    recorder.expose_as(experiment, ("a", 0), "u", T0)
    recorder.exposures[0] = replace(recorder.exposures[0], fallback=True)
    store_events(connection, recorder.exposures, [])
    report = report_of(connection)
    fallback = next(c for c in report.checks if c.result.name == "fallbacks")
    assert fallback.subject == "a"
    assert fallback.result.status == "not_enough_data"
    assert fallback.result.message == "Only 1 cases, 100 are needed to judge."


@pytest.mark.parametrize(
    ("minutes", "status"), [(0.1, "ok"), (40, "warning"), (70, "failed")]
)
def test_recording_later_than_the_window_fails(connection, recorder, minutes, status):
    experiment = small_experiment(connection)
    fill(connection, recorder, experiment, {("a", 0): (5, 0), ("b", 0): (5, 0)})
    recorded_at(connection, timedelta(minutes=minutes))
    report = report_of(connection)
    lag = next(c.result for c in report.checks if c.result.name == "ingestion_lag")
    assert lag.status == status


def test_functions_take_a_connection(connection):
    assert overview(connection, as_of=T0) == ()
    assert operations(connection, as_of=T0).minutes == ()


@pytest.mark.parametrize("key", [HOME, CART])
def test_p_values_agree_with_their_intervals_and_holm_covers_all(reports, key):
    report = reports[key]
    told = {"p_planned": [], "p_any_time": []}
    for metric in report.metrics:
        for each in metric.comparisons:
            for name, interval, fixed in (
                ("p_planned", each.planned, each.corrected_planned),
                ("p_any_time", each.any_time, each.corrected_any_time),
            ):
                p = getattr(each, name)
                assert (p is None) == isinstance(interval, Withheld)
                if p is not None:
                    assert (p < 0.05) == interval.excludes_zero
                    told[name].append((p, fixed))
    assert len(told["p_any_time"]) >= 8
    for pairs in told.values():
        count, highest = len(pairs), 0.0
        for rank, (p, fixed) in enumerate(sorted(pairs)):
            highest = max(highest, min(1.0, (count - rank) * p))
            assert fixed == pytest.approx(highest)


@pytest.mark.parametrize(
    ("carts", "verdict", "words"),
    [
        (300, "ahead", "b is ahead of a"),
        (100, "guardrail", "But it is worse in add-to-cart rate, a guardrail."),
    ],
)
def test_a_breached_guardrail_takes_the_lead_away(
    connection, recorder, carts, verdict, words
):
    experiment = small_experiment(
        connection,
        reward_metric="visitor_click_rate",
        guardrails={"add_to_cart_rate": 0.4},
    )
    for variant, clicks, added in (("a", 400, 300), ("b", 700, carts)):
        for number in range(3000):
            at = T0 + timedelta(seconds=number)
            shown = recorder.expose_as(
                experiment, (variant, 0), f"{variant}{number}", at
            )
            if number < clicks:
                recorder.interact(shown, "click", 20)
            if number < added:
                recorder.interact(shown, "add_to_cart", 30)
    store_events(connection, recorder.exposures, recorder.interactions)
    recorded_at(connection, timedelta(seconds=1))
    report = report_of(connection)
    metric = next(m for m in report.metrics if m.name == "add_to_cart_rate")
    assert metric.margin == 0.4
    assert metric.comparisons[0].guardrail == (
        "held" if verdict == "ahead" else "breached"
    )
    assert (report.summary.verdict, words in report.summary.sentence) == (verdict, True)
    line = next(
        row
        for row in overview(connection, as_of=report.as_of)
        if row.facts.key == "small"
    )
    assert line.summary.verdict == verdict
    json.dumps(report.to_document(), allow_nan=False)
