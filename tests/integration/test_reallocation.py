"""Reallocation on stored rewards: exact weights, idempotence, immutable history (I6)."""

import hashlib
import threading
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
from experiment_service.errors import InvalidState
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
    engine, experiment, counts, *, at=START, epoch=0, prefix="u", kind="click"
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
    assert compute_weights(stored) == pytest.approx(dict(stored.weights), abs=1e-12)
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
