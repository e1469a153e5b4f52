"""Reallocation on stored rewards: exact weights, idempotence, immutable history (I6)."""

import hashlib
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import numpy as np
import pytest
import uuid_utils.compat as uuids
from scipy import integrate, stats
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from experiment_service import experimentation
from experiment_service.domain.declaration import parse_declaration
from experiment_service.domain.event import Exposure, Interaction, event_uuid
from experiment_service.errors import InvalidRequest, InvalidState
from experiment_service.reallocation import (
    compute_weights,
    due_cutoff,
    due_experiments,
    reallocate,
)
from experiment_service.storage import experiments as storage
from experiment_service.storage import models
from experiment_service.storage.database import transaction
from experiment_service.storage.events import store_events
from policies import POLICIES, ArmStatistics, build_policy

START = datetime(2026, 11, 1, 12, tzinfo=UTC)
WINDOW = timedelta(minutes=10)
CUTOFF = START + timedelta(hours=1)
COUNTS = {"control": (400, 40), "knn": (300, 45), "als": (350, 28)}


def declare(reward_metric, **policy):
    return parse_declaration(
        {
            "key": "offers",
            "kind": "bandit",
            "placement": "offers",
            "variants": [
                {"key": "control", "recommender": "popularity", "control": True},
                {"key": "knn", "recommender": "popularity"},
                {"key": "als", "recommender": "popularity"},
            ],
            "attribution_window": "10m",
            "reward_metric": reward_metric,
            "policy": {
                "name": "thompson",
                "interval": "1h",
                "minimum_units": 100,
                **policy,
            },
        }
    )


def make_live(engine, name):
    """Register a version of a model and let it serve."""
    with transaction(engine) as connection:
        version = models.insert_version(
            connection,
            name=name,
            recommender=name,
            parameters={},
            metrics={},
            checklist=[],
            data_from=START,
            data_to=START,
            data_digest="0",
            code_version="test",
            artifact=f"models/{name}/1",
            sha256="0",
            now=START,
        )
        models.set_live(
            connection, version.id, decided_by="test", reason="test", now=START
        )


def start_bandit(engine, *, reward_metric="visitor_interaction_rate", **policy):
    make_live(engine, "popularity")
    with transaction(engine) as connection:
        declaration = declare(reward_metric, **policy)
        experimentation.create(connection, declaration, actor="test", now=START)
        return experimentation.start(connection, "offers", actor="test", now=START)


def store_rewards(
    engine,
    experiment,
    counts,
    *,
    at=START,
    epoch=0,
    prefix="u",
    kind="click",
    segment=None,
):
    with transaction(engine) as connection:
        weights = storage.list_epochs(connection, experiment.id)[epoch].weights
        exposures, interactions = [], []
        for variant, (units, rewarded) in counts.items():
            for i in range(units):
                exposure = Exposure(
                    id=UUID(str(uuids.uuid7())),
                    experiment_id=experiment.id,
                    unit_id=f"{prefix}-{variant}-{i}",
                    variant=variant,
                    epoch=epoch,
                    propensity=weights[variant],
                    model="popularity/1",
                    items=("a",),
                    sources=("popularity",),
                    fallback=False,
                    context={},
                    exposed_at=at,
                    segment=segment,
                )
                exposures.append(exposure)
                if i < rewarded:
                    interactions.append(
                        Interaction(
                            id=event_uuid(f"{exposure.id}:{kind}"),
                            exposure_id=exposure.id,
                            unit_id=exposure.unit_id,
                            kind=kind,
                            item_id="a",
                            position=1,
                            value=None,
                            occurred_at=at + timedelta(minutes=1),
                        )
                    )
        store_events(connection, exposures, interactions)


def look(engine, cutoff=CUTOFF):
    with transaction(engine) as connection:
        return reallocate(connection, "offers", cutoff=cutoff, now=cutoff)


def epochs(engine, experiment):
    with transaction(engine) as connection:
        return storage.list_epochs(connection, experiment.id)


def probability_best(counts):
    """P(best) by SciPy's adaptive quadrature, an implementation of its own."""
    posteriors = {v: stats.beta(1 + s, 1 + n - s) for v, (n, s) in counts.items()}

    def chance(best):
        others = [p for v, p in posteriors.items() if v != best]
        return integrate.quad(
            lambda x: posteriors[best].pdf(x) * np.prod([p.cdf(x) for p in others]),
            0,
            1,
            points=[p.mean() for p in posteriors.values()],
            epsabs=1e-12,
            limit=500,
        )[0]

    return {variant: chance(variant) for variant in counts}


def test_weights_are_floor_plus_the_rest_by_the_chance_to_be_best(engine):
    experiment = start_bandit(engine, floor=0.05)
    store_rewards(engine, experiment, COUNTS)
    moved = look(engine)
    assert (moved.moved, moved.epoch) == (True, 1)
    stored = epochs(engine, experiment)[1]
    for variant, chance in probability_best(COUNTS).items():
        assert stored.weights[variant] == pytest.approx(0.05 + 0.85 * chance, abs=1e-9)
        assert stored.statistics[variant]["units"] == COUNTS[variant][0]
        assert stored.statistics[variant]["reward_sum"] == COUNTS[variant][1]
    assert sum(stored.weights.values()) == pytest.approx(1, abs=1e-9)
    assert stored.cutoff == CUTOFF


def test_a_control_share_is_outside_the_policy(engine):
    experiment = start_bandit(engine, floor=0.1, control_share=0.2)
    store_rewards(engine, experiment, COUNTS)
    look(engine)
    weights = epochs(engine, experiment)[1].weights
    ruled = {variant: COUNTS[variant] for variant in ("knn", "als")}
    assert weights["control"] == 0.2
    for variant, chance in probability_best(ruled).items():
        assert weights[variant] == pytest.approx(0.1 + 0.6 * chance, abs=1e-9)


def test_the_row_alone_gives_the_weights_again(engine):
    experiment = start_bandit(engine)
    store_rewards(engine, experiment, COUNTS)
    look(engine)
    stored = epochs(engine, experiment)[1]
    again = replace(stored, weights=dict.fromkeys(stored.weights, 1 / 3))
    assert compute_weights(again).weights == pytest.approx(
        dict(stored.weights), abs=1e-12
    )
    with pytest.raises(ValueError, match="epoch 0 was not computed"):
        compute_weights(epochs(engine, experiment)[0])


def test_of_a_metric_that_should_be_low_the_lowest_is_best(engine):
    experiment = start_bandit(engine, reward_metric="dismiss_rate", floor=0.0)
    store_rewards(engine, experiment, COUNTS, kind="dismiss")
    look(engine)
    stored = epochs(engine, experiment)[1]
    # 1 - Beta(a, b) is Beta(b, a): the lowest rate of rewards is the highest of none.
    turned = {v: (n, n - rewarded) for v, (n, rewarded) in COUNTS.items()}
    for variant, chance in probability_best(turned).items():
        assert stored.weights[variant] == pytest.approx(chance, abs=1e-9)
    assert max(stored.weights, key=stored.weights.get) == "als"


@pytest.mark.parametrize("rewarded", [0, 1])
def test_weights_keep_their_rules_on_extreme_rewards(engine, rewarded):
    experiment = start_bandit(engine, floor=0.02, control_share=0.1)
    counts = {"control": (200, 100), "knn": (2000, 2000 * rewarded), "als": (200, 100)}
    store_rewards(engine, experiment, counts)
    look(engine)
    weights = epochs(engine, experiment)[1].weights
    assert sum(weights.values()) == pytest.approx(1, abs=1e-9)
    assert weights["control"] == 0.1
    best, worst = ("knn", "als") if rewarded else ("als", "knn")
    assert weights[worst] == pytest.approx(0.02, abs=1e-12)
    assert weights[best] == pytest.approx(0.88, abs=1e-12)


def test_the_seed_of_an_epoch_is_the_hash_of_salt_and_number(engine):
    experiment = start_bandit(engine)
    store_rewards(engine, experiment, COUNTS)
    look(engine)
    text_hashed = f"{experiment.variant_salt}:1".encode()
    expected = int(hashlib.sha256(text_hashed).hexdigest()[:16], 16) // 2
    assert epochs(engine, experiment)[1].seed == expected


def test_a_unit_counts_once_its_window_has_closed(engine):
    experiment = start_bandit(engine)
    store_rewards(engine, experiment, COUNTS, at=CUTOFF - WINDOW)
    late = {"control": (1000, 900), "knn": (1000, 0), "als": (1000, 0)}
    store_rewards(
        engine,
        experiment,
        late,
        at=CUTOFF - WINDOW + timedelta(seconds=1),
        prefix="late",
    )
    seen = look(engine).statistics
    assert {v: (s["units"], s["reward_sum"]) for v, s in seen.items()} == COUNTS


def test_weights_stay_until_every_variant_has_enough_units(engine):
    experiment = start_bandit(engine, minimum_units=301)
    store_rewards(engine, experiment, COUNTS)
    kept = look(engine)
    assert (kept.moved, kept.epoch) == (False, 0)
    assert "'knn' has 300 units" in kept.reason
    assert len(epochs(engine, experiment)) == 1


def test_the_same_cutoff_again_and_an_earlier_one_change_nothing(engine):
    experiment = start_bandit(engine)
    store_rewards(engine, experiment, COUNTS)
    first = look(engine)
    store_rewards(engine, experiment, {"als": (500, 400)}, prefix="more")
    assert look(engine) == first
    assert look(engine, CUTOFF - timedelta(minutes=20)) == first
    assert len(epochs(engine, experiment)) == 2


def test_two_workers_make_one_epoch(engine):
    experiment = start_bandit(engine)
    store_rewards(engine, experiment, COUNTS)
    barrier, looks = threading.Barrier(4), []

    def work():
        barrier.wait()
        looks.append(look(engine))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [each.epoch for each in looks] == [1, 1, 1, 1]
    assert len(epochs(engine, experiment)) == 2


def test_a_late_reward_moves_the_next_epoch_and_no_past_one(engine):
    experiment = start_bandit(engine)
    store_rewards(engine, experiment, COUNTS)
    look(engine)
    before = epochs(engine, experiment)
    store_rewards(engine, experiment, {"als": (300, 200)}, prefix="late")
    look(engine, CUTOFF + timedelta(hours=1))
    after = epochs(engine, experiment)
    assert after[:2] == before
    assert after[2].weights["als"] > before[1].weights["als"]


@pytest.mark.parametrize("table", ["epoch", "reallocation", "audit"])
@pytest.mark.parametrize("change", ["UPDATE {} SET reason = 'x'", "DELETE FROM {}"])
def test_history_can_not_be_changed(engine, table, change):
    experiment = start_bandit(engine)
    store_rewards(engine, experiment, COUNTS)
    look(engine)
    with pytest.raises(DBAPIError, match="never change"), engine.begin() as connection:
        connection.execute(text(change.format(table)))


def test_cutoffs_are_whole_intervals_after_the_start(engine):
    experiment = start_bandit(engine)
    hour = timedelta(hours=1)

    def due(last, now):
        return due_cutoff(experiment, last=last, now=now)

    assert due(None, START + 0.99 * hour) is None
    assert due(None, START + 1.5 * hour) == START + hour
    assert due(START + hour, START + 1.9 * hour) is None
    assert due(START + hour, START + 5.2 * hour) == START + 5 * hour
    with transaction(engine) as connection:
        assert due_experiments(connection, now=CUTOFF) == {"offers": CUTOFF}
    look(engine)
    with transaction(engine) as connection:
        assert due_experiments(connection, now=CUTOFF) == {}


def test_a_stopped_bandit_is_refused(engine):
    start_bandit(engine)
    with transaction(engine) as connection:
        experimentation.stop(connection, "offers", actor="test", now=CUTOFF)
    with pytest.raises(InvalidState, match="is a stopped bandit"):
        look(engine)


SEGMENTED = {
    "name": "segmented_thompson",
    "floor": 0.02,
    "segment_by": {"device": ["phone", "desk"]},
}
IN_SEGMENTS = {
    "phone": {"control": (300, 20), "knn": (200, 40), "als": (250, 30)},
    "desk": {"control": (100, 20), "knn": (100, 5), "als": (100, 8)},
    "other": {"control": (50, 4), "knn": (50, 4), "als": (50, 4)},
}


def store_in_segments(engine, experiment, at=START):
    for segment, counts in IN_SEGMENTS.items():
        store_rewards(
            engine, experiment, counts, at=at, prefix=f"{segment}", segment=segment
        )


def test_each_segment_gets_the_weights_that_its_policy_gives_it(engine):
    experiment = start_bandit(engine, **SEGMENTED)
    store_in_segments(engine, experiment)
    reallocation = look(engine)
    assert reallocation.moved
    stored = epochs(engine, experiment)[1]
    names = sorted(IN_SEGMENTS)
    assert sorted(stored.segments) == names
    units, successes = (
        np.array([[IN_SEGMENTS[s][v][i] for v in COUNTS] for s in names], dtype=float)
        for i in (0, 1)
    )
    asked = build_policy("segmented_thompson", {}).allocate(
        ArmStatistics(units=units, reward_sum=successes, reward_sum_squares=successes),
        np.random.default_rng(0),
    )
    for name, row in zip(names, asked, strict=True):
        expected = 0.02 + (1 - 3 * 0.02) * row
        found = [stored.segments[name].weights[variant] for variant in COUNTS]
        assert found == pytest.approx(list(expected), abs=1e-12)
    by_units = units.sum(axis=1) / units.sum() @ (0.02 + (1 - 0.06) * asked)
    found = [stored.weights[variant] for variant in COUNTS]
    assert found == pytest.approx(list(by_units), abs=1e-12)
    assert stored.segments["desk"].weights["control"] > 0.8
    assert stored.segments["phone"].weights["knn"] > 0.8
    assert stored.statistics["knn"]["units"] == 350
    assert reallocation.statistics == stored.statistics


def test_the_row_alone_gives_the_weights_of_segments_again(engine):
    experiment = start_bandit(engine, **SEGMENTED)
    store_in_segments(engine, experiment)
    look(engine)
    stored = epochs(engine, experiment)[1]
    equal = dict.fromkeys(COUNTS, 1 / 3)
    blank = replace(
        stored,
        weights=equal,
        segments={k: replace(s, weights=equal) for k, s in stored.segments.items()},
    )
    again = compute_weights(blank)
    for name, segment in stored.segments.items():
        assert again.segments[name].weights == pytest.approx(
            dict(segment.weights), abs=1e-12
        )
    assert not look(engine, CUTOFF + timedelta(hours=1)).moved


def test_a_policy_that_discounts_gives_the_same_weights_however_late_the_job(engine):
    half_life = 1800.0
    experiment = start_bandit(
        engine,
        name="discounted_thompson",
        parameters={"half_life": half_life},
        floor=0.0,
        minimum_units=0,
    )
    store_rewards(engine, experiment, {"control": (100, 50), "knn": (100, 10)})
    later = START + timedelta(minutes=40)
    store_rewards(
        engine, experiment, {"knn": (200, 120), "als": (200, 60)}, at=later, prefix="v"
    )
    with transaction(engine) as connection:
        # The job runs two hours late; what it looks at ends at its cutoff.
        late = reallocate(
            connection, "offers", cutoff=CUTOFF, now=CUTOFF + timedelta(hours=2)
        )
    old, new = 0.5 ** (3600 / half_life), 0.5 ** (1200 / half_life)
    expected = {
        "control": (100 * old, 50 * old),
        "knn": (100 * old + 200 * new, 10 * old + 120 * new),
        "als": (200 * new, 60 * new),
    }
    for variant, (units, rewards) in expected.items():
        assert late.statistics[variant]["units"] == pytest.approx(units, rel=1e-12)
        assert late.statistics[variant]["reward_sum"] == pytest.approx(
            rewards, rel=1e-12
        )
    weights = epochs(engine, experiment)[1].weights
    assert weights == pytest.approx(probability_best(expected), abs=1e-9)


def test_a_ratio_is_learned_from_with_its_base(engine):
    experiment = start_bandit(
        engine,
        reward_metric="click_through_rate",
        name="gaussian_thompson",
        floor=0.0,
        minimum_units=0,
    )
    store_rewards(engine, experiment, COUNTS)
    # Seen again at once: two exposures of each unit of knn, and no second click.
    again = {"knn": (300, 0)}
    store_rewards(engine, experiment, again, at=START + timedelta(minutes=2))
    statistics = look(engine).statistics
    assert statistics["knn"] == {
        "units": 300,
        "reward_sum": 45,
        "reward_sum_squares": 45,
        "base_sum": 600,
        "base_sum_squares": 1200,
        "reward_base_sum": 90,
    }
    weights = epochs(engine, experiment)[1].weights
    # 0.100, 0.075 and 0.080 clicks for each exposure.
    assert weights["control"] == max(weights.values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward_metric": "clicks_per_visitor"}, "learns from proportion"),
        ({"name": "segmented_thompson"}, "policy.segment_by is missing"),
        (
            {"segment_by": {"device": ["phone"]}},
            "segmented_thompson has one per segment",
        ),
        (
            {"name": "fixed", "parameters": {"weights": [0.5, 0.5]}},
            "policy 'fixed'",
        ),
        ({"parameters": {"half_life": 5}}, "has no parameter 'half_life'"),
        (
            {"name": "discounted_thompson", "parameters": {"half_life": 0}},
            "half_life is 0",
        ),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_when_the_bandit_is_made(
    engine, changes, words
):
    with pytest.raises(InvalidRequest) as refused:
        start_bandit(engine, **changes)
    assert words in refused.value.message


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_runs_from_rows_to_weights(engine, policy):
    more = (
        {"segment_by": {"device": ["phone"]}} if policy == "segmented_thompson" else {}
    )
    experiment = start_bandit(engine, name=policy, **more)
    segment = "phone" if more else None
    store_rewards(engine, experiment, COUNTS, segment=segment)
    reallocation = look(engine)
    weights = epochs(engine, experiment)[-1].weights
    assert sum(weights.values()) == pytest.approx(1, abs=1e-9)
    assert min(weights.values()) >= 0.05 - 1e-12
    assert reallocation.moved == (policy not in ("fixed", "uniform"))


def test_fixed_weights_are_those_of_the_variants_in_their_declared_order(engine):
    weights = [0.2, 0.3, 0.5]
    experiment = start_bandit(
        engine, name="fixed", parameters={"weights": weights}, floor=0.0
    )
    store_rewards(engine, experiment, COUNTS)
    assert look(engine).moved
    stored = epochs(engine, experiment)[1].weights
    assert [stored[variant] for variant in COUNTS] == pytest.approx(weights)
