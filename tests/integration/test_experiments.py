"""Experiments as stored: who may start beside whom, and what a refusal leaves behind."""

from contextlib import contextmanager

import pytest
from sqlalchemy import text

from experiment_service import experimentation
from experiment_service.domain.declaration import parse_declaration
from experiment_service.domain.experiment import ExperimentState, Outcome
from experiment_service.errors import (
    Conflict,
    ExperimentServiceError,
    InvalidRequest,
    InvalidState,
    NotFound,
)
from experiment_service.reporting import build_report
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import transaction
from tests.integration.test_reallocation import START, make_live

TABLES = ("experiment", "epoch", "audit", "layer", "placement")


def document(key="home", **changes):
    return {
        "key": key,
        "kind": "ab",
        "placement": "home",
        "layer": "home",
        "variants": [
            {"key": "old", "recommender": "popularity", "control": True},
            {"key": "new", "recommender": "popularity"},
        ],
        **changes,
    }


@pytest.fixture
def shop(engine):
    make_live(engine, "popularity")
    return engine


def create(engine, *, start=True, **changes):
    declaration = parse_declaration(document(**changes))
    with transaction(engine) as connection:
        made = experimentation.create(connection, declaration, actor="ann", now=START)
        if start:
            made = experimentation.start(connection, made.key, actor="ann", now=START)
        return made


def rows(engine):
    with transaction(engine) as connection:
        return {
            table: connection.execute(
                text(f"SELECT t::text FROM {table} t ORDER BY 1")
            ).all()
            for table in TABLES
        }


@contextmanager
def nothing_stored(engine):
    before = rows(engine)
    yield
    assert rows(engine) == before


def audit(engine, key="home"):
    with transaction(engine) as connection:
        return storage.list_audit(connection, f"experiment/{key}")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {
                "variants": [
                    {"key": "a", "recommender": "oracle", "control": True},
                    {"key": "b", "recommender": "popularity"},
                ]
            },
            InvalidRequest,
            "variants.0.recommender is 'oracle'; known recommenders: age_routed,",
        ),
        (
            {"kind": "bandit", "policy": {"name": "greedy"}},
            InvalidRequest,
            "policy.name is 'greedy'; known policies: ",
        ),
        (
            {
                "kind": "bandit",
                "policy": {"name": "thompson", "parameters": {"prior": 2}},
            },
            InvalidRequest,
            "policy.parameters: policy 'thompson' has no parameter 'prior'",
        ),
        (
            {
                "kind": "bandit",
                "policy": {"name": "thompson", "parameters": {"prior_failures": 0}},
            },
            InvalidRequest,
            "prior_failures is 0; it must be a number, 0.1 to",
        ),
    ],
)
def test_what_can_not_be_created_is_refused(shop, changes, error, words):
    with nothing_stored(shop), pytest.raises(error) as refusal:
        create(shop, start=False, **changes)
    assert words in refusal.value.message


def test_a_key_is_used_once(shop):
    create(shop)
    with nothing_stored(shop), pytest.raises(Conflict, match="'home'"):
        create(shop, start=False)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"segments": [4000, 10000]},
            (
                r"segments 4000 to 10000 of layer 'home' overlap those of running "
                "experiment 'home', 0 to 5000"
            ),
        ),
        (
            {"segments": [4999, 5000]},
            "segments 4999 to 5000 of layer 'home' overlap",
        ),
        (
            {"layer": "elsewhere"},
            "placement 'home' is used by running experiment 'home' of layer 'home'",
        ),
    ],
)
def test_running_experiments_never_meet_in_one_unit(shop, other, words):
    create(shop, segments=[0, 5000])
    create(shop, key="second", start=False, **other)
    with (
        nothing_stored(shop),
        pytest.raises(Conflict, match=words),
        transaction(shop) as connection,
    ):
        experimentation.start(connection, "second", actor="ann", now=START)
    with transaction(shop) as connection:
        second = storage.get_experiment(connection, "second")
    assert (second.state, second.started_at) == (ExperimentState.DRAFT, None)


def test_segments_side_by_side_other_placements_and_ended_tests_are_no_conflict(shop):
    create(shop, segments=[0, 5000])
    create(shop, key="beside", segments=[5000, 10000])
    create(shop, key="elsewhere", placement="cart", layer="cart")
    with transaction(shop) as connection:
        experimentation.stop(connection, "home", actor="ann", now=START)
    create(shop, key="after", segments=[0, 5000])
    with transaction(shop) as connection:
        running = storage.list_experiments(connection, state=ExperimentState.RUNNING)
    assert {each.key for each in running} == {"beside", "elsewhere", "after"}


def test_a_variant_without_a_live_model_does_not_start(shop):
    variants = [
        {"key": "old", "recommender": "popularity", "control": True},
        {"key": "new", "recommender": "als"},
    ]
    create(shop, start=False, variants=variants)
    words = "no live model of als; live models: popularity; run `experiment-service"
    with (
        nothing_stored(shop),
        pytest.raises(InvalidState, match=words),
        transaction(shop) as connection,
    ):
        experimentation.start(connection, "home", actor="ann", now=START)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda c: experimentation.start(c, "home", actor="a", now=START),
         InvalidState, "is running; only a draft can be started"),
        (lambda c: experimentation.set_weights(c, "home", {"old": 0.5, "new": 0.6},
                                               actor="a", now=START),
         InvalidRequest, "weights sum to 1.1; they must sum to 1"),
        (lambda c: experimentation.set_weights(c, "home", {"old": 1.0},
                                               actor="a", now=START),
         InvalidRequest, "weights name old; the variants are"),
        (lambda c: experimentation.set_overrides(c, "home", {"me": "newest"},
                                                 actor="a"),
         InvalidRequest, "newest"),
        (lambda c: experimentation.set_placement(c, "home", recommender="als",
                                                 settings={}, actor="a"),
         InvalidRequest, "recommender is 'als'; live models: popularity"),
        (lambda c: experimentation.stop(c, "hme", actor="a", now=START),
         NotFound, "home"),
    ],
)  # fmt: skip
def test_a_refused_change_leaves_no_trace(shop, change, error, words):
    create(shop)
    with (
        nothing_stored(shop),
        pytest.raises(error) as refusal,
        transaction(shop) as connection,
    ):
        change(connection)
    assert words in refusal.value.message


def test_nothing_changes_once_it_has_stopped(shop):
    create(shop)
    with transaction(shop) as connection:
        experimentation.stop(connection, "home", actor="ann", now=START)
    for change in (
        lambda c: experimentation.stop(c, "home", actor="ann", now=START),
        lambda c: experimentation.start(c, "home", actor="ann", now=START),
        lambda c: experimentation.set_overrides(c, "home", {}, actor="ann"),
        lambda c: experimentation.set_weights(
            c, "home", {"old": 1.0, "new": 0.0}, actor="ann", now=START
        ),
    ):
        with (
            nothing_stored(shop),
            pytest.raises(ExperimentServiceError, match="stopped"),
            transaction(shop) as connection,
        ):
            change(connection)


def test_every_change_is_an_audit_row_with_before_and_after(shop):
    create(shop)
    with transaction(shop) as connection:
        experimentation.set_weights(
            connection,
            "home",
            {"old": 0.2, "new": 0.8},
            actor="bob",
            now=START,
            reason="ramp up",
        )
        experimentation.set_overrides(connection, "home", {"me": "new"}, actor="bob")
        experimentation.stop(
            connection, "home", actor="cid", now=START, reason="enough"
        )
    entries = audit(shop)
    assert [(entry.actor, entry.action, entry.reason) for entry in entries] == [
        ("ann", "create", None),
        ("ann", "start", None),
        ("bob", "set_weights", "ramp up"),
        ("bob", "set_overrides", None),
        ("cid", "stop", "enough"),
    ]
    assert entries[0].after["variants"][0]["key"] == "old"
    assert entries[2].before["weights"] == {"old": 0.5, "new": 0.5}
    assert entries[2].after["weights"] == {"old": 0.2, "new": 0.8}
    assert "me" not in entries[3].before.get("overrides", {})
    assert entries[3].after["overrides"] == {"me": "new"}


def test_what_serving_reads_is_what_was_declared(shop):
    made = create(
        shop,
        kind="bandit",
        mode="sticky",
        traffic_share=0.4,
        segments=[100, 900],
        targeting=[{"attribute": "market", "operator": "in", "values": ["de", "at"]}],
        overrides={"me": "new"},
        attribution_window="12h",
        policy={"name": "thompson", "floor": 0.05, "interval": "30m"},
    )
    with transaction(shop) as connection:
        read = storage.load_configuration(connection, now=START)
    running = read.running["home"]
    assert running.experiment == made
    assert dict(running.epochs[0].weights) == {"old": 0.5, "new": 0.5}
    assert read.models["popularity"].artifact == "models/popularity/1"
    assert read.states == {"home": "running"}
    assert made.traffic_salt != made.variant_salt


def decide(engine, outcome, **changes):
    given = {"reason": "more clicks, no harm", "actor": "ana", **changes}
    with transaction(engine) as connection:
        experimentation.decide(connection, "home", Outcome(outcome), **given)


def decision(engine):
    with transaction(engine) as connection:
        return build_report(connection, "home", as_of=START).facts.decision


@pytest.fixture
def stopped(shop):
    create(shop)
    with transaction(shop) as connection:
        experimentation.stop(connection, "home", actor="ann", now=START)
    return shop


def test_the_last_decision_on_a_stopped_experiment_is_told(stopped):
    assert decision(stopped) is None
    decide(stopped, "inconclusive")
    decide(stopped, "ship", variant="new")
    told = decision(stopped)
    assert (told.outcome, told.variant) == (Outcome.SHIP, "new")
    assert (told.reason, told.actor) == ("more clicks, no harm", "ana")
    assert [entry.action for entry in audit(stopped)][-2:] == ["decide", "decide"]


@pytest.mark.parametrize(
    ("outcome", "changes", "words"),
    [
        ("ship", {}, "what ships must be one of new"),
        ("ship", {"variant": "old"}, "what ships must be one of new"),
        ("keep_control", {"variant": "new"}, "only if it ships"),
        ("inconclusive", {"reason": "  "}, "reason is empty"),
    ],
)
def test_a_decision_that_says_too_little_is_refused(stopped, outcome, changes, words):
    with nothing_stored(stopped), pytest.raises(InvalidRequest, match=words):
        decide(stopped, outcome, **changes)


def test_a_running_experiment_is_not_decided(shop):
    create(shop)
    with nothing_stored(shop), pytest.raises(InvalidState, match="stop it before"):
        decide(shop, "inconclusive")
