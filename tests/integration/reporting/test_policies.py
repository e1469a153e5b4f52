"""Reports and the page of bandits whose policies are not plain Thompson sampling."""

import json
from collections import Counter
from datetime import timedelta

import numpy as np
import pytest
from scipy import stats
from sqlalchemy import text

from experiment_service.domain.assignment import assign
from experiment_service.domain.experiment import Epoch, EpochSegment, ExperimentState
from experiment_service.reallocation import reallocate
from experiment_service.reporting import build_report
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import transaction
from experiment_service.storage.events import store_events
from tests.integration.reporting.conftest import declare
from tests.integration.reporting.test_dashboard import (
    open_page,  # noqa: F401 - a fixture
    table,
)
from tests.integration.reporting.test_reporting import T0

DAY = timedelta(days=1)
KEY = "offers-carousel"
RATES = {
    "phone": {"popular": 0.1, "item-knn": 0.3, "als": 0.2},
    "other": {"popular": 0.3, "item-knn": 0.1, "als": 0.2},
}
WEIGHTS = {
    "phone": {"popular": 0.1, "item-knn": 0.7, "als": 0.2},
    "other": {"popular": 0.6, "item-knn": 0.2, "als": 0.2},
}


def running(connection, policy, **more):
    declaration = declare(KEY, kind="bandit", policy=policy, **more)
    experiment = storage.create_experiment(connection, declaration, now=T0)
    connection.execute(text("UPDATE experiment SET variant_salt = 'fixed'"))
    epoch = Epoch(
        number=0, weights=declaration.initial_weights, reason="start", started_at=T0
    )
    storage.insert_epoch(connection, experiment.id, epoch)
    storage.set_state(connection, experiment, ExperimentState.RUNNING, now=T0)
    return storage.get_experiment(connection, KEY), epoch


def visit(recorder, experiment, epoch, rng, *, units, clicks_of):
    for number in range(units):
        attributes = {"device": "phone"} if rng.random() < 0.7 else {}
        unit = f"u{number}"
        drawn = assign(experiment, epoch, unit, attributes)
        at = epoch.started_at + timedelta(seconds=float(rng.random() * 80_000))
        exposure = recorder.expose_as(
            experiment,
            (drawn.variant, epoch.number),
            unit,
            at,
            propensity=drawn.propensity,
        )
        object.__setattr__(exposure, "segment", drawn.segment)
        for click in range(clicks_of(drawn)):
            recorder.interact(exposure, "click", 20 + click)


@pytest.fixture
def segmented(engine, recorder):
    """Two epochs, in the second one of which each segment has its own weights."""
    rng = np.random.default_rng(5)
    policy = {"name": "segmented_thompson", "segment_by": {"device": ["phone"]}}

    def clicks(drawn):
        return int(rng.random() < RATES[drawn.segment][drawn.variant])

    with transaction(engine) as connection:
        experiment, epoch = running(connection, policy)
        visit(recorder, experiment, epoch, rng, units=1000, clicks_of=clicks)
        second = Epoch(
            number=1,
            # Not what anybody was drawn with, so a report that used it would fail.
            weights={"popular": 0.2, "item-knn": 0.2, "als": 0.6},
            segments={
                name: EpochSegment(weights=weights, statistics={})
                for name, weights in WEIGHTS.items()
            },
            reason="test",
            started_at=T0 + DAY,
        )
        storage.insert_epoch(connection, experiment.id, second)
        visit(recorder, experiment, second, rng, units=3000, clicks_of=clicks)
        store_events(connection, recorder.exposures, recorder.interactions)
        return build_report(connection, KEY, as_of=T0 + 3 * DAY)


def scores_by_hand(recorder, treatment, control):
    """Score of each unit by AIPW, entry by entry; knows only raw events and weights."""
    clicked = {event.exposure_id for event in recorder.interactions}
    entries = {}
    for each in recorder.exposures:
        y = float(each.id in clicked)
        entries.setdefault((each.epoch, each.segment), []).append(
            (each.variant, each.propensity, y)
        )
    past = {treatment: [], control: []}
    scores = []
    for (epoch, _), rows in sorted(entries.items()):
        guess = {
            arm: np.mean(past[arm] or [y for v, _, y in rows if v == arm])
            for arm in past
        }
        for variant, propensity, y in rows:
            score = guess[treatment] - guess[control]
            if variant in past:
                sign = 1 if variant == treatment else -1
                score += sign * (y - guess[variant]) / propensity
            scores.append(score)
        for variant, _, y in rows:
            if variant in past:
                past[variant].append(y)
        assert epoch in (0, 1)
    return scores


def test_a_contrast_is_the_mean_over_all_units_whatever_their_segment(
    segmented, recorder
):
    for comparison in segmented.reward.comparisons:
        scores = scores_by_hand(recorder, comparison.variant, "popular")
        assert comparison.planned.estimate == pytest.approx(np.mean(scores), abs=1e-12)
        truth = 0.7 * RATES["phone"][comparison.variant] + (
            0.3 * RATES["other"][comparison.variant] - 0.7 * 0.1 - 0.3 * 0.3
        )
        assert comparison.planned.low < truth < comparison.planned.high
        assert comparison.any_time.low < truth < comparison.any_time.high


def test_sample_ratio_is_checked_within_segments(segmented):
    (check,) = [c.result for c in segmented.checks if c.result.name == "srm"]
    assert check.status == "ok"


def test_epochs_tell_weights_and_units_of_segments(segmented, recorder):
    units = Counter(each.segment for each in recorder.exposures if each.epoch == 1)
    first, second = segmented.epochs
    assert first.segments == {}
    for name, weights in WEIGHTS.items():
        assert dict(second.segments[name].weights) == weights
        assert second.segments[name].units == units[name]
    assert "the segments together" in segmented.bandit.prior
    json.dumps(segmented.to_document(), allow_nan=False)


@pytest.mark.usefixtures("segmented")
def test_the_page_shows_weights_by_segment(database_url, open_page):  # noqa: F811
    rows = table(open_page("bandit", database_url, KEY), "Weights by segment")
    assert rows[0] == ["Segment", "Units of the epoch", "popular", "item-knn", "als"]
    assert [row[0] for row in rows[1:]] == ["phone", "other"]
    assert rows[1][2:] == ["10.0%", "70.0%", "20.0%"]


@pytest.mark.parametrize(
    ("metric", "parameters"),
    [("clicks_per_visitor", {}), ("click_through_rate", {"prior_units": 5})],
)
def test_numbers_have_normal_posteriors(  # noqa: PLR0917 - fixtures
    engine,
    recorder,
    database_url,
    open_page,  # noqa: F811
    metric,
    parameters,
):
    rng = np.random.default_rng(8)
    policy = {"name": "gaussian_thompson", "parameters": parameters}
    with transaction(engine) as connection:
        experiment, epoch = running(connection, policy, reward_metric=metric)
        visit(
            recorder,
            experiment,
            epoch,
            rng,
            units=900,
            clicks_of=lambda drawn: rng.poisson(0.5 + 0.5 * (drawn.variant == "als")),
        )
        store_events(connection, recorder.exposures, recorder.interactions)
        report = build_report(connection, KEY, as_of=T0 + 3 * DAY)
    clicks = Counter(event.exposure_id for event in recorder.interactions)
    everyone = [clicks[each.id] for each in recorder.exposures]
    prior = parameters.get("prior_units", 1)
    for each in report.bandit.posteriors:
        own = [clicks[e.id] for e in recorder.exposures if e.variant == each.variant]
        n, worth = len(own), len(own) + prior
        mean = (sum(own) + prior * np.mean(everyone)) / worth
        variance = n * np.var(own, ddof=1) + prior * np.var(everyone, ddof=1)
        deviation = np.sqrt(variance / worth / worth)
        law = stats.norm(mean, deviation)
        assert (each.units, each.rewards) == (n, sum(own))
        assert each.alpha is None
        assert [each.mean, each.deviation] == pytest.approx([mean, deviation])
        assert [each.low, each.high] == pytest.approx(law.interval(0.95))
    assert sum(each.probability_best for each in report.bandit.posteriors) == (
        pytest.approx(1)
    )
    assert report.bandit.posteriors[2].probability_best > 0.99
    assert f"{prior} unit" in report.bandit.prior
    page = open_page("bandit", database_url, KEY)
    assert not page.exception
    assert table(page, "Normal posterior")[3][4] == "> 99.9%"


def test_a_discounting_bandit_shows_what_its_policy_saw(engine, recorder):
    rng = np.random.default_rng(9)
    policy = {
        "name": "discounted_thompson",
        "parameters": {"half_life": 43_200.0},
        "interval": "1d",
        "minimum_units": 0,
    }
    with transaction(engine) as connection:
        experiment, epoch = running(connection, policy)
        visit(
            recorder,
            experiment,
            epoch,
            rng,
            units=900,
            clicks_of=lambda _: int(rng.random() < 0.2),
        )
        store_events(connection, recorder.exposures, recorder.interactions)
        cutoff = T0 + 2 * DAY
        reallocate(connection, KEY, cutoff=cutoff, now=cutoff)
        report = build_report(connection, KEY, as_of=T0 + 3 * DAY)
    clicked = {event.exposure_id for event in recorder.interactions}
    for each in report.bandit.posteriors:
        own = [e for e in recorder.exposures if e.variant == each.variant]
        worth = [0.5 ** ((cutoff - e.exposed_at) / timedelta(days=0.5)) for e in own]
        units = sum(worth)
        rewards = sum(w for w, e in zip(worth, own, strict=True) if e.id in clicked)
        assert (each.units, each.rewards) == pytest.approx((units, rewards))
        assert (each.alpha, each.beta) == pytest.approx(
            (1 + rewards, 1 + units - rewards)
        )
    assert "counting half after 12:00:00" in report.bandit.prior
