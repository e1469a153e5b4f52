"""A shop with five experiments in every state, as reports and the dashboard see it."""

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import numpy as np
import pytest
from sqlalchemy import create_engine as plain_engine
from sqlalchemy import text
from sqlalchemy.engine import make_url

from experiment_service.domain.assignment import assign
from experiment_service.domain.declaration import parse_declaration
from experiment_service.domain.event import Exposure, Interaction
from experiment_service.domain.experiment import Epoch, ExperimentState
from experiment_service.domain.monitor import thresholds
from experiment_service.domain.shadow import ShadowRule
from experiment_service.monitoring import watch
from experiment_service.storage import alerts, models
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import create_engine, transaction
from experiment_service.storage.events import store_events
from experiment_service.storage.shadows import ShadowAnswer, insert_answers
from policies.probability_best import probability_best
from recommenders.publishing import publish_lists

RATES = {"popular": 0.10, "item-knn": 0.12, "als": 0.15}
HEALTHY = "home-carousel"
BANDIT = "cart-carousel"
BROKEN = "search-carousel"
STOPPED = "product-carousel"
DRAFT = "email-carousel"


@dataclass
class Shop:
    """A seeded database: its URL, the time of its last event, and all its events."""

    url: str
    now: datetime
    exposures: dict
    interactions: dict


class Recorder:
    """Makes events whose ids carry their times, as the service and clients do."""

    def __init__(self, rng):
        self.rng = rng
        self.exposures = []
        self.interactions = []

    def uuid(self, at):
        low = int(self.rng.integers(1 << 62))
        middle = int(self.rng.integers(1 << 12))
        bits = (int(at.timestamp() * 1000) << 80) | (7 << 76) | (middle << 64)
        return UUID(int=bits | (2 << 62) | low)

    def expose(self, experiment, epoch, unit_id, at):
        drawn = assign(experiment, epoch, unit_id, {})
        return self.expose_as(
            experiment,
            (drawn.variant, drawn.epoch),
            unit_id,
            at,
            propensity=drawn.propensity,
        )

    def expose_as(self, experiment, cell, unit_id, at, *, propensity=0.5):
        variant, epoch = cell
        exposure = Exposure(
            id=self.uuid(at),
            experiment_id=experiment.id,
            unit_id=unit_id,
            variant=variant,
            epoch=epoch,
            propensity=propensity,
            model=f"{variant}/1",
            items=("a", "b"),
            sources=(variant, variant),
            fallback=bool(self.rng.random() < 0.02),
            context={"device": ("phone", "desktop")[sum(unit_id.encode()) % 3 == 0]},
            exposed_at=at,
        )
        self.exposures.append(exposure)
        return exposure

    def interact(self, exposure, kind, delay):
        at = exposure.exposed_at + timedelta(seconds=delay)
        # Two of three at the top, without a draw that would move all the others.
        position = 2 if exposure.id.int % 3 == 0 else 1
        self.interactions.append(
            Interaction(
                id=self.uuid(at),
                exposure_id=exposure.id,
                unit_id=exposure.unit_id,
                kind=kind,
                item_id="ab"[position - 1],
                position=position,
                value=None,
                occurred_at=at,
            )
        )

    def visit(self, experiment, epoch, unit_id, at):
        exposure = self.expose(experiment, epoch, unit_id, at)
        draw = self.rng.random(5)
        if draw[0] < 0.8:
            self.interact(exposure, "viewed", 2)
        if draw[1] < RATES[exposure.variant]:
            self.interact(exposure, "click", 20)
            if draw[2] < 0.4:
                self.interact(exposure, "add_to_cart", 60)
                if draw[3] < 0.5:
                    self.interact(exposure, "purchase", 300)
        if draw[4] < 0.02:
            self.interact(exposure, "dismiss", 10)


def declare(key, kind="ab", **more):
    placement = key.removesuffix("-carousel")
    variants = [
        {"key": variant, "recommender": variant, "control": variant == "popular"}
        for variant in RATES
    ]
    return parse_declaration(
        {
            "key": key,
            "kind": kind,
            "placement": placement,
            "layer": placement,
            "description": f"Which recommender fills the {placement} carousel?",
            "variants": variants,
            "attribution_window": "1h",
            **more,
        }
    )


def open_experiment(connection, declaration, started_at):
    """Start an experiment whose draws are the same in every run."""
    experiment = storage.create_experiment(connection, declaration, now=started_at)
    connection.execute(
        text("UPDATE experiment SET variant_salt = key WHERE id = :id"),
        {"id": experiment.id},
    )
    epoch = Epoch(
        number=0,
        weights=declaration.initial_weights,
        floor=declaration.policy.floor if declaration.policy else 0.0,
        reason="declared weights",
        started_at=started_at,
    )
    storage.insert_epoch(connection, experiment.id, epoch)
    state = ExperimentState.RUNNING
    return storage.set_state(connection, experiment, state, now=started_at), epoch


def seed_ab(connection, recorder, key, *, start, end, units, lost=0.0):
    """An A/B test; `lost` is the share of the first units of `als` never recorded."""
    experiment, epoch = open_experiment(connection, declare(key), start)
    span = (end - start).total_seconds()
    for number in range(units):
        unit_id = f"{key}-{number}"
        for second in recorder.rng.random(1 + recorder.rng.poisson(0.5)) * span:
            before = len(recorder.exposures), len(recorder.interactions)
            recorder.visit(
                experiment, epoch, unit_id, start + timedelta(seconds=second)
            )
            variant = recorder.exposures[-1].variant
            if variant == "als" and number % 100 < 100 * lost:
                del recorder.exposures[before[0] :]
                del recorder.interactions[before[1] :]
    return experiment


def seed_bandit(connection, recorder, key, *, start, end, units_per_epoch):
    """A bandit whose epochs follow P(best) of what was clicked, every four hours."""
    step, floor = timedelta(hours=4), 0.05
    policy = {"name": "thompson", "floor": floor, "interval": "4h"}
    declaration = declare(key, kind="bandit", policy=policy)
    experiment, epoch = open_experiment(connection, declaration, start)
    clicked = dict.fromkeys(RATES, 0)
    seen = dict.fromkeys(RATES, 0)
    opened = start
    step_number = 0
    while opened < end:
        first = len(recorder.exposures), len(recorder.interactions)
        for _ in range(units_per_epoch):
            unit_id = f"{key}-{recorder.rng.integers(5000)}"
            at = opened + timedelta(
                seconds=recorder.rng.random() * step.total_seconds()
            )
            recorder.visit(experiment, epoch, unit_id, at)
        for exposure in recorder.exposures[first[0] :]:
            seen[exposure.variant] += 1
        by_id = {each.id: each.variant for each in recorder.exposures[first[0] :]}
        for event in recorder.interactions[first[1] :]:
            clicked[by_id[event.exposure_id]] += event.kind == "click"
        opened += step
        step_number += 1
        if opened < end:
            moves = step_number % 5 != 0
            counted = seen, clicked
            epoch = look(
                connection, experiment, epoch, counted, now=opened, moves=moves
            )
    return experiment


def look(connection, experiment, epoch, counted, *, now, moves):
    """Record a look; open an epoch when it moves the weights."""
    seen, clicked = counted
    floor = experiment.declaration.policy.floor
    best = probability_best(
        [1 + clicked[variant] for variant in seen],
        [1 + seen[variant] - clicked[variant] for variant in seen],
    )
    statistics = {
        variant: {
            "units": seen[variant],
            "reward_sum": clicked[variant],
            "reward_sum_squares": clicked[variant],
        }
        for variant in seen
    }
    if moves:
        shares = floor + (1 - len(seen) * floor) * np.asarray(best)
        shares /= shares.sum()
        weights = dict(zip(seen, shares.tolist(), strict=True))
        epoch = Epoch(
            number=epoch.number + 1,
            weights=weights,
            floor=floor,
            statistics=statistics,
            cutoff=now,
            reason=f"thompson on rewards up to {now.isoformat()}",
            started_at=now,
        )
        storage.insert_epoch(connection, experiment.id, epoch)
    reason = epoch.reason if moves else "weights stay: the policy gives those in force"
    seen_by_policy = storage.Reallocation(
        cutoff=now,
        epoch=epoch.number,
        moved=moves,
        statistics=statistics,
        reason=reason,
    )
    storage.insert_reallocation(connection, experiment.id, seen_by_policy)
    return epoch


EVALUATION = {
    "protocol": "Lists of 10 against what units had in the last fifth of the time.",
    "k": 10,
    "units": 2469,
    "precision": 0.1234,
    "ndcg": {"estimate": 0.2345, "low": 0.21, "high": 0.26},
    "coverage": None,
}


def seed_model(connection, name, status, *, now, passed=True, **shadow):
    """A version of a model, decided upon; a rejected one failed its second check."""
    checks = [
        {"name": "items in the default list", "value": 50, "threshold": 50},
        {"name": "share of own lists", "value": 0.9 if passed else 0.02},
    ]
    defaults = {"threshold": 0.5, "rule": "at least"}
    checks = [{**defaults, **each} for each in checks]
    checks = [{**c, "passed": c["value"] >= c["threshold"]} for c in checks]
    version = models.insert_version(
        connection,
        name=name,
        recommender=name.replace("-", "_"),
        parameters={"depth": 50, "seed": 0},
        metrics={"trained_on": {"units": 2469}, "repeats allowed": EVALUATION},
        checklist=checks,
        data_from=now - timedelta(days=200),
        data_to=now - timedelta(days=10),
        data_digest="d1" * 32,
        code_version="0.1.0",
        artifact=f"models/{name}/{2 if shadow else 1}" if passed else "",
        sha256="a1" * 32 if passed else "",
        now=now,
    )
    reason = "every check passed" if passed else "share of own lists is 0.02"
    return models.decide(
        connection,
        version.id,
        status,
        decided_by="ana",
        reason=reason,
        now=now,
        **shadow,
    )


def seed_models(connection, *, now):
    """Two versions of `als`, the second of which failed its gate, and two others."""
    live, rejected = models.ModelStatus.LIVE, models.ModelStatus.REJECTED
    for name in RATES:
        seed_model(connection, name, live, now=now)
    seed_model(connection, "als", rejected, now=now, passed=False)


def seed_alert(connection, *, now):
    """An alert that lasted for three hours."""
    alerts.raise_alert(
        connection,
        storage.get_experiment(connection, HEALTHY).id,
        monitor="fallback_share",
        subject="als",
        value=0.4,
        threshold=0.2,
        reason="40.0% of exposures fell back <b>",
        now=now,
    )
    (alert,) = alerts.open_alerts(connection)
    alerts.resolve_alert(
        connection,
        alert.id,
        resolution="2.0% again",
        now=now + timedelta(hours=3),
    )


def seed_shadow(connection, exposures, *, now):
    """A shadow of `item-knn` that has the first item of every second exposure too."""
    shadow = models.ModelStatus.SHADOW
    rule = ShadowRule(answers=10_000, overlap=0.3, errors=0.01, milliseconds=5)
    version = seed_model(connection, "item-knn", shadow, now=now, share=0.5, rule=rule)
    shown = [each for each in exposures if each.variant == "item-knn"]
    answers = [
        ShadowAnswer(
            version_id=version.id,
            id=each.id,
            unit_id=each.unit_id,
            shown=2,
            made=2,
            common=1,
            same_places=[1] if number % 2 else [],
            shown_fallback=each.fallback,
            fallback=number % 50 == 0,
            seconds=0.0001 + 1e-7 * number,
            error=None,
            answered_at=each.exposed_at,
        )
        for number, each in enumerate(shown)
    ]
    insert_answers(connection, answers)


def publish_shop_lists(data_dir):
    """Publish both versions of `item-knn`, of which the second knows names."""
    items = [f"sku-{number}" for number in range(20)]
    for version, names in ((1, None), (2, [f"Product {each[4:]}" for each in items])):
        row = np.arange(version - 1, version + 11, dtype=np.int32)
        publish_lists(
            data_dir / f"models/item-knn/{version}",
            name="item-knn",
            version=version,
            unit_ids=["ana"],
            lists=row[None, ::-1],
            item_ids=items,
            default=row,
            item_names=names,
        )


def seed(connection, *, now, size):
    """Fill a database with five experiments and about 10 `size` units."""
    recorder = Recorder(np.random.default_rng(7))
    day = timedelta(days=1)
    experiments = {
        HEALTHY: seed_ab(
            connection, recorder, HEALTHY, start=now - 6 * day, end=now, units=6 * size
        ),
        BROKEN: seed_ab(
            connection,
            recorder,
            BROKEN,
            start=now - 2 * day,
            end=now,
            units=2 * size,
            lost=0.4,
        ),
        STOPPED: seed_ab(
            connection,
            recorder,
            STOPPED,
            start=now - 20 * day,
            end=now - 12 * day,
            units=size,
        ),
        BANDIT: seed_bandit(
            connection,
            recorder,
            BANDIT,
            start=now - 4 * day + timedelta(minutes=30),
            end=now,
            units_per_epoch=size // 3,
        ),
    }
    storage.create_experiment(connection, declare(DRAFT), now=now - day)
    seed_models(connection, now=now - day)
    storage.set_state(
        connection,
        experiments[STOPPED],
        ExperimentState.STOPPED,
        now=now - 12 * day,
    )
    exposures = [each for each in recorder.exposures if each.exposed_at <= now]
    interactions = [each for each in recorder.interactions if each.occurred_at <= now]
    store_events(connection, exposures, interactions)
    connection.execute(
        text("UPDATE exposure SET recorded_at = exposed_at + interval '0.8 seconds'")
    )
    connection.execute(
        text("UPDATE interaction SET recorded_at = occurred_at + interval '1 second'")
    )
    seed_shadow(
        connection,
        [e for e in exposures if e.experiment_id == experiments[HEALTHY].id],
        now=now - day,
    )
    names = {each.id: key for key, each in experiments.items()}
    by_key = {key: [] for key in experiments}
    for exposure in exposures:
        by_key[names[exposure.experiment_id]].append(exposure)
    owner = {each.id: names[each.experiment_id] for each in exposures}
    events = {key: [] for key in experiments}
    for event in interactions:
        events[owner[event.exposure_id]].append(event)
    return by_key, events


@contextmanager
def new_database(server_url, template):
    """A database that lives as long as a test module."""
    name = f"shop_{uuid4().hex[:12]}"
    admin = plain_engine(server_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    url = make_url(server_url).set(database=name)
    yield url.render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def keep_main(monkeypatch):
    """Take back, after the test, the main module that AppTest puts in place of ours.

    Processes that later tests start would run the dashboard first.
    """
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture
def recorder():
    return Recorder(np.random.default_rng(11))


@pytest.fixture(scope="session")
def shop(server_url, template_database):
    """The shop as of now; tests only read it."""
    now = datetime.now(UTC)
    with new_database(server_url, template_database) as url:
        engine = create_engine(url)
        with transaction(engine) as connection:
            exposures, interactions = seed(connection, now=now, size=400)
            seed_alert(connection, now=now - timedelta(days=2))
        watch(engine, now, thresholds=thresholds({}))
        engine.dispose()
        yield Shop(url=url, now=now, exposures=exposures, interactions=interactions)
