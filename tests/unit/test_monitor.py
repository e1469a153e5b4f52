"""Measures of what is shown, and when they call for an alert."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import numpy as np
import pytest

from experiment_service.domain.monitor import (
    MONITORS,
    parse_thresholds,
    thresholds,
    title_of,
)
from experiment_service.monitoring import measures
from experiment_service.monitoring.measures import Served
from experiment_service.storage.monitors import ServedExposure

NOW = datetime(2026, 11, 20, tzinfo=UTC)
DAY = timedelta(days=1)
CATEGORIES = {f"item-{number}": "ab"[number % 2] for number in range(100)}


def exposure(unit, items, **more):
    return ServedExposure(
        **{
            "id": uuid4(),
            "unit_id": unit,
            "variant": "als",
            "model": "als/1",
            "items": items,
            "fallback": False,
            "exposed_at": NOW - DAY / 2,
            **more,
        }
    )


def served(rng, units, *, weights, acts=0):
    """Exposures of 5 items drawn by weight; the first `acts` were clicked at place 1."""
    shares = np.asarray(weights) / np.sum(weights)
    exposures = [
        exposure(
            f"{rng.integers(1 << 60)}",
            [f"item-{each}" for each in rng.choice(len(shares), 5, False, shares)],
        )
        for _ in range(units)
    ]
    return Served(
        exposures=exposures, acted={(each.id, 1) for each in exposures[:acts]}
    )


ZIPF = 1 / np.arange(1, 101)
EVEN = np.ones(100)


def measure(current, before):
    return measures.measure(
        current,
        before,
        categories=CATEGORIES,
        trained_at={"als/1": NOW - 3 * DAY},
        until=NOW,
    )


def test_a_day_like_those_before_is_no_drift():
    rng = np.random.default_rng(1)
    before = served(rng, 2000, weights=ZIPF, acts=400)
    current = served(rng, 1000, weights=ZIPF, acts=200)
    measured, places = measure(current, before)
    assert measured["item_drift"] < 0.1
    assert measured["category_drift"] < 0.1
    assert measured["coverage"] == pytest.approx(1, abs=0.1)
    assert measured["interaction_rate"] == pytest.approx(1)
    assert measured["fallback_share"] == 0
    assert measured["list_age"] == pytest.approx(3)
    assert len(places) == 5
    first = places[0]
    assert (first.shown, first.acted) == (1000, 200)
    assert (first.shown_before, first.acted_before) == (2000, 400)


def test_noise_alone_is_no_drift_of_items_that_are_many():
    """Popular by chance before, shown less now: the groups come from other units."""
    rng = np.random.default_rng(2)
    many = np.ones(5000)
    before = served(rng, 600, weights=many)
    current = served(rng, 600, weights=many)
    assert measure(current, before)[0]["item_drift"] < 0.1


def test_other_items_are_drift_and_fewer_items_are_less_coverage():
    rng = np.random.default_rng(3)
    before = served(rng, 2000, weights=EVEN, acts=200)
    current = served(rng, 1000, weights=[*EVEN[:20], *(0.01 * EVEN[20:])], acts=40)
    measured, _ = measure(current, before)
    assert measured["item_drift"] > 0.25
    assert measured["category_drift"] < 0.1
    assert measured["interaction_rate"] == pytest.approx(0.4)
    odd = served(rng, 1000, weights=[0.01 + number % 2 for number in range(100)])
    assert measure(odd, before)[0]["category_drift"] > 0.25
    few = served(rng, 1000, weights=EVEN[:6])
    assert measure(few, before)[0]["coverage"] == pytest.approx(0.06)


def test_too_little_is_not_measured():
    rng = np.random.default_rng(4)
    before, few = served(rng, 2000, weights=EVEN), served(rng, 20, weights=EVEN)
    measured, _ = measure(few, before)
    assert {name for name, value in measured.items() if value is not None} == {
        "list_age"
    }
    nothing = Served(exposures=[], acted=())
    assert set(measure(nothing, nothing)[0].values()) == {None}
    # A variant without lists of its own: nothing of items, all else.
    bare = Served(exposures=[exposure(f"{n}", []) for n in range(200)], acted=())
    measured, places = measure(bare, bare)
    assert measured["fallback_share"] == 0
    assert measured["item_drift"] is None
    assert places == []


def test_a_category_that_is_seldom_known_is_not_compared():
    rng = np.random.default_rng(5)
    sample = served(rng, 1000, weights=EVEN)
    known = {item: CATEGORIES[item] for item in list(CATEGORIES)[:40]}
    assert measures.category_drift(sample, sample, known) is None
    assert measures.category_drift(sample, sample, CATEGORIES) == 0


def test_the_newest_exposures_have_no_interactions_yet():
    new = exposure("a", ["x"], exposed_at=NOW - timedelta(minutes=59))
    old = exposure("b", ["x"], exposed_at=NOW - timedelta(minutes=60))
    current = Served(exposures=[new, old], acted={(old.id, 1), (old.id, 7)})
    (place,) = measures.count_places(current, current, until=NOW)
    assert (place.shown, place.acted) == (1, 1)


def test_an_open_alert_ends_a_tenth_on_the_good_side():
    above, below = MONITORS["fallback_share"], MONITORS["coverage"]
    assert not above.is_beyond(0.19, 0.2, alerting=False)
    assert above.is_beyond(0.19, 0.2, alerting=True)
    assert not above.is_beyond(0.17, 0.2, alerting=True)
    assert not below.is_beyond(0.51, 0.5, alerting=False)
    assert below.is_beyond(0.51, 0.5, alerting=True)
    assert not below.is_beyond(0.56, 0.5, alerting=True)


def test_thresholds_are_read_and_checked():
    assert parse_thresholds("fallback_share=0.3, list_age=30\n") == {
        "fallback_share": 0.3,
        "list_age": 30,
    }
    assert thresholds({"list_age": 30})["list_age"] == 30
    assert thresholds({})["item_drift"] == 0.25
    for wrong, rule in (
        (
            "fallback=0.3",
            "'fallback' is no monitor; monitors: category_drift, coverage",
        ),
        ("list_age", "'list_age' must be list_age=NUMBER"),
        ("list_age=0", "a number above 0"),
        ("list_age=nan", "a number above 0"),
    ):
        with pytest.raises(ValueError, match=rule):
            parse_thresholds(wrong)
    assert title_of("guardrail") == "Guardrail"
    assert title_of("coverage") == "Coverage"
