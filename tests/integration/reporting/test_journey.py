"""Funnel, positions, days, gain and models of reports, against the raw events."""

import json
from collections import defaultdict
from datetime import timedelta

import pytest

from experiment_service.analysis.gain import Gain
from experiment_service.analysis.interval import NO_SPREAD, Withheld
from experiment_service.errors import InvalidRequest, NotFound
from experiment_service.reporting import Days, Posterior, Reports
from experiment_service.reporting.stopping import THRESHOLD, advise

HOME, CART, EMAIL = "home-carousel", "cart-carousel", "email-carousel"
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def reports(shop, tmp_path_factory):
    opened = Reports(shop.url, tmp_path_factory.mktemp("data"))
    yield opened
    opened.close()


def did(shop, key, *, days=None):
    """Units of analysis that count, by variant, and what each did within its window."""
    sticky_to_epoch = key == CART
    first = {}
    for exposure in sorted(shop.exposures[key], key=lambda each: each.exposed_at):
        unit = exposure.unit_id, exposure.epoch if sticky_to_epoch else 0
        first.setdefault(unit, exposure)
    units, actions = defaultdict(set), defaultdict(set)
    by_id = {each.id: each for each in shop.exposures[key]}
    counted = {}
    for unit, exposure in first.items():
        day = exposure.exposed_at.date()
        if exposure.exposed_at + HOUR > shop.now:
            continue
        if days is not None and not days.first <= day <= days.last:
            continue
        units[exposure.variant].add(unit)
        counted[unit] = exposure
    for event in shop.interactions[key]:
        source = by_id[event.exposure_id]
        unit = source.unit_id, source.epoch if sticky_to_epoch else 0
        if unit in counted and event.occurred_at <= counted[unit].exposed_at + HOUR:
            variant = counted[unit].variant
            actions[variant, event.kind].add(unit)
            if event.kind == "click":
                actions[variant, event.position].add(unit)
    return units, actions


def two_days(shop):
    day = (shop.now - timedelta(days=4)).date()
    return Days(first=day, last=day + timedelta(days=1))


@pytest.mark.parametrize("key", [HOME, CART])
def test_funnel_and_positions_are_those_of_the_raw_events(shop, reports, key):
    journey = reports.journey(key, as_of=shop.now)
    units, actions = did(shop, key)
    for step in journey.steps:
        for each in step.reached:
            assert each.of == len(units[each.variant])
            assert each.units == len(actions[each.variant, step.kind]), step.kind
            assert each.share.estimate == pytest.approx(each.units / each.of)
            assert "every look" in each.share.validity
    assert [place.position for place in journey.places] == [1, 2]
    for place in journey.places:
        for each in place.clicked:
            assert each.units == len(actions[each.variant, place.position]) > 0
    clicked = journey.steps[1].reached
    top = [place.clicked for place in journey.places]
    for one, two, either in zip(*top, clicked, strict=True):
        assert max(one.units, two.units) <= either.units <= one.units + two.units


def test_days_keep_the_units_first_exposed_on_them(shop, reports):
    days = two_days(shop)
    units, actions = did(shop, HOME, days=days)
    journey = reports.journey(HOME, as_of=shop.now, days=days)
    report = reports.report(HOME, as_of=shop.now, days=days)
    for each in journey.steps[1].reached:
        assert (each.of, each.units) == (
            len(units[each.variant]),
            len(actions[each.variant, "click"]),
        )
    assert {r.variant: r.units for r in report.reward.variants} == {
        variant: len(members) for variant, members in units.items()
    }
    for series, result in zip(report.series, report.reward.variants, strict=True):
        assert len(series.points) == 2
        assert series.points[-1].units == result.units
        assert series.points[-1].interval == result.any_time
    whole = reports.report(HOME, as_of=shop.now)
    assert report.facts == whole.facts
    assert report.checks == whole.checks
    document = json.loads(json.dumps(report.to_document(), allow_nan=False))
    assert document["days"] == {"first": str(days.first), "last": str(days.last)}


def test_a_draft_and_days_without_units_are_told_in_words(shop, reports):
    journey = reports.journey(EMAIL, as_of=shop.now)
    assert journey.places == ()
    assert isinstance(journey.steps[0].reached[0].share, Withheld)
    late = (shop.now + timedelta(days=30)).date()
    report = reports.report(HOME, as_of=shop.now, days=Days(first=late, last=late))
    assert {result.units for result in report.reward.variants} == {0}
    assert all(isinstance(r.any_time, Withheld) for r in report.reward.variants)
    with pytest.raises(InvalidRequest, match="the first must not be after"):
        Days(first=late, last=late - timedelta(days=1))
    with pytest.raises(NotFound):
        reports.journey("nonsense", as_of=shop.now)


def test_a_bandit_says_what_it_gained_and_whether_it_may_stop(shop, reports):
    bandit = reports.report(CART, as_of=shop.now).bandit
    units, actions = did(shop, CART)
    total = sum(map(len, units.values()))
    rewarded = sum(
        len(set().union(*(actions[v, k] for k in ("click", "add_to_cart", "purchase"))))
        for v in units
    )
    assert isinstance(bandit.gain, Gain)
    assert bandit.gain.units == total
    assert bandit.gain.earned == pytest.approx(rewarded / total)
    # The shop's rates: 0.10 for control; weights moved to variants with more.
    interval = bandit.gain.difference
    assert interval.low < 0.0 + 0.05 < interval.high
    assert (
        bandit.advice.leader
        == max(bandit.posteriors, key=lambda each: each.probability_best).variant
    )
    assert (bandit.advice.action == "stop") == (
        bandit.advice.value_remaining < THRESHOLD
    )
    assert "1%" in bandit.advice.rule


def posterior(variant, alpha, beta, best):
    return Posterior(
        variant=variant,
        units=alpha + beta,
        rewards=alpha,
        alpha=alpha,
        beta=beta,
        mean=alpha / (alpha + beta),
        low=0.0,
        high=1.0,
        probability_best=best,
    )


def test_advice_follows_its_rule():
    clear = [posterior("a", 100.0, 900.0, 0.0), posterior("b", 200.0, 800.0, 1.0)]
    close = [posterior("a", 100.0, 900.0, 0.4), posterior("b", 102.0, 898.0, 0.6)]
    usual = {
        "state": "running",
        "healthy": True,
        "forgets": False,
        "lower_is_better": False,
    }
    stop = advise(clear, **usual)
    assert (stop.action, stop.leader) == ("stop", "b")
    assert stop.value_remaining < THRESHOLD
    assert stop.sentence.startswith("It may stop")
    # Two rates of 0.1 with standard errors of 0.0095: the 95 % quantile of the
    # difference over 0.1 is about 0.13 * 1.645 less the lead of 0.02.
    stay = advise(close, **usual)
    assert stay.action == "go on"
    assert stay.value_remaining == pytest.approx(0.2, abs=0.03)
    assert stay.sentence.startswith("Keep it running")
    assert advise(clear, **{**usual, "forgets": True}).action == "go on"
    assert advise(clear, **{**usual, "state": "stopped"}).action == "go on"
    for changes in ({"healthy": False}, {"state": "draft"}):
        silent = advise(clear, **{**usual, **changes})
        assert (silent.action, silent.leader) == ("none", None)
    unseen = [*clear, posterior("c", 0.5, 0.4, 0.0)]
    assert "no units" in advise(unseen, **usual).sentence


def test_models_say_how_they_were_judged_and_what_they_serve(reports):
    models = {each.name: each for each in reports.models()}
    assert set(models) == {"popular", "item-knn", "als"}
    als = models["als"]
    assert (als.live, [v.version for v in als.versions]) == (1, [2, 1])
    rejected, live = als.versions
    assert (rejected.status, live.status) == ("rejected", "live")
    assert [check.passed for check in rejected.checks] == [True, False]
    assert (rejected.checks[1].value, rejected.checks[1].threshold) == (0.02, 0.5)
    assert "share of own lists is 0.02" in rejected.reason
    judged = {each.title: each for each in live.judgements}["repeats allowed"]
    figures = {each.name: each for each in judged.figures}
    assert (figures["ndcg"].value, figures["ndcg"].low) == (0.2345, 0.21)
    assert figures["coverage"].value is None
    assert "protocol" not in figures
    assert {use.experiment for use in als.uses} == {HOME, CART, "search-carousel"}
    assert als.placements == ()
    assert "home" in models["popular"].placements


def test_a_shadow_is_compared_with_what_was_shown_and_clicked(shop, reports):
    (model,) = (each for each in reports.models() if each.name == "item-knn")
    version = model.versions[0]
    assert (model.live, version.version, version.status) == (1, 2, "shadow")
    found = version.shadow
    assert (found.share, found.rule.answers, found.checks) == (0.5, 10_000, ())
    shown = [e for e in shop.exposures[HOME] if e.variant == "item-knn"]
    kept = {each.id for number, each in enumerate(shown) if number % 2}
    compared = found.comparison
    assert (compared.answers, compared.errors) == (len(shown), 0)
    # One of two items is in both lists, so there is no spread.
    assert compared.overlap.reason == NO_SPREAD
    ids = {each.id for each in shown}
    clicked = {
        (each.exposure_id, each.position)
        for each in shop.interactions[HOME]
        if each.kind == "click" and each.exposure_id in ids
    }
    same = [place for place in clicked if place[0] in kept and place[1] == 1]
    clicks = compared.clicks
    assert (clicks.exposures, clicks.clicks) == (len(shown), len(clicked))
    assert clicks.kept.estimate == pytest.approx(len(same) / len(clicked))
    lost = len(clicked) - len(same)
    assert clicks.least_gain == pytest.approx(-lost / len(shown))
    other = 2 * len(shown) - len(kept)
    assert clicks.changed == pytest.approx(other / (2 * len(shown)))
    assert clicks.break_even == pytest.approx(lost / other)
