"""Assignment: the vectors, and the properties of design section 4 (I1, I2)."""

import json
import math
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiment_service.domain.assignment import (
    Step,
    assign,
    choose_variant,
    epoch_salt,
    layer_segment,
    uniform,
)
from experiment_service.domain.declaration import parse_declaration
from experiment_service.domain.experiment import (
    SEGMENTS,
    Epoch,
    Experiment,
    ExperimentKind,
    ExperimentState,
)

NOW = datetime(2026, 11, 1, tzinfo=UTC)
VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "assignment.json").read_text()
)
UNITS = [f"unit-{i}" for i in range(20_000)]


def make_experiment(*, salt="one", epoch=0, weights=None, **fields):
    document = {
        "key": "home",
        "kind": "ab",
        "placement": "home",
        "variants": [
            {"key": "control", "recommender": "popularity", "control": True},
            {"key": "treatment", "recommender": "als"},
        ],
        **fields,
    }
    experiment = Experiment(
        id=1,
        declaration=parse_declaration(document),
        state=ExperimentState.RUNNING,
        layer_salt="layer:shared",
        traffic_salt=f"traffic:{salt}",
        variant_salt=f"variant:{salt}",
        created_at=NOW,
        started_at=NOW,
    )
    return experiment, make_epoch(epoch, weights)


def make_epoch(number=0, weights=None):
    weights = weights or {"control": 0.5, "treatment": 0.5}
    return Epoch(number=number, weights=weights, reason="test", started_at=NOW)


def within_4_se(count, n, p):
    return abs(count - n * p) <= 4 * math.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("vector", VECTORS["uniform"])
def test_uniform_matches_the_vectors_of_another_language(vector):
    assert uniform(*vector["parts"]) == vector["expected"]


@pytest.mark.parametrize("vector", VECTORS["segment"])
def test_segment_matches_the_vectors_of_another_language(vector):
    assert layer_segment(vector["salt"], vector["unit"]) == vector["expected"]


@pytest.mark.parametrize("vector", VECTORS["choose"])
def test_variant_matches_the_vectors_of_another_language(vector):
    chosen = choose_variant(vector["weights"], vector["salt"], vector["unit"])
    assert chosen == vector["expected"]


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 0.5, "b": 0.5},
        {"a": 0.9, "b": 0.07, "c": 0.03},
        {"a": 0.01, "b": 0.99, "c": 0.0},
    ],
)
def test_shares_match_weights(weights):
    counts = Counter(choose_variant(weights, "salt", unit) for unit in UNITS)
    for variant, weight in weights.items():
        assert within_4_se(counts[variant], len(UNITS), weight)


def test_a_weight_of_zero_never_wins():
    weights = {"a": 0.0, "b": 1.0, "c": 0.0}
    assert {choose_variant(weights, "salt", unit) for unit in UNITS} == {"b"}


def test_growing_one_weight_moves_no_unit_between_two_others():
    before = {"a": 0.2, "b": 0.3, "c": 0.5}
    after = {"a": 0.2 * 0.7 / 0.8, "b": 0.3 * 0.7 / 0.8, "c": 1 - 0.5 * 0.7 / 0.8}
    after["c"] = 1 - after["a"] - after["b"]
    moves = Counter(
        (choose_variant(before, "salt", unit), choose_variant(after, "salt", unit))
        for unit in UNITS
    )
    assert {move for move in moves if move[0] != move[1]} <= {("a", "c"), ("b", "c")}
    moved = sum(count for move, count in moves.items() if move[0] != move[1])
    assert within_4_se(moved, len(UNITS), after["c"] - before["c"])


@given(unit=st.text(min_size=1, max_size=50), salt=st.text(max_size=20))
def test_assignment_depends_on_salt_and_unit_only(unit, salt):
    weights = {"b": 0.4, "a": 0.6}
    turned = dict(reversed(list(weights.items())))
    first = choose_variant(weights, salt, unit)
    assert first == choose_variant(turned, salt, unit)
    assert 0 <= uniform(salt, unit) < 1
    assert 0 <= layer_segment(salt, unit) < SEGMENTS


def test_gate_and_variant_are_independent():
    experiment, epoch = make_experiment(traffic_share=0.1)
    inside = [assign(experiment, epoch, unit, {}) for unit in UNITS]
    admitted = [a for a in inside if a.variant is not None]
    assert within_4_se(len(admitted), len(UNITS), 0.1)
    treated = sum(a.variant == "treatment" for a in admitted)
    assert within_4_se(treated, len(admitted), 0.5)


def test_raising_the_traffic_share_keeps_everyone_where_they_are():
    small, epoch = make_experiment(traffic_share=0.2)
    large, _ = make_experiment(traffic_share=0.6)
    for unit in UNITS[:5000]:
        before = assign(small, epoch, unit, {}).variant
        if before is not None:
            assert assign(large, epoch, unit, {}).variant == before


def test_experiments_of_one_layer_exclude_each_other():
    first, epoch = make_experiment(salt="one", segments=[0, 3000])
    second, _ = make_experiment(salt="two", segments=[3000, 10_000])
    both = [
        (
            assign(first, epoch, unit, {}).variant,
            assign(second, epoch, unit, {}).variant,
        )
        for unit in UNITS
    ]
    assert all((a is None) != (b is None) for a, b in both)
    assert within_4_se(sum(a is not None for a, _ in both), len(UNITS), 0.3)


def test_layers_are_independent_of_each_other():
    first, epoch = make_experiment(salt="one")
    second, _ = make_experiment(salt="two")
    together = sum(
        assign(first, epoch, unit, {}).variant == "treatment"
        and assign(second, epoch, unit, {}).variant == "treatment"
        for unit in UNITS
    )
    assert within_4_se(together, len(UNITS), 0.25)


def test_a_bandit_redraws_independently_in_each_epoch():
    salts = [epoch_salt("variant:x", ExperimentKind.BANDIT, n) for n in (0, 1)]
    weights = {"a": 0.5, "b": 0.5}
    same = sum(
        choose_variant(weights, salts[0], unit)
        == choose_variant(weights, salts[1], unit)
        for unit in UNITS
    )
    assert within_4_se(same, len(UNITS), 0.5)


def test_an_ab_test_keeps_one_salt_for_life():
    salts = {epoch_salt("variant:x", ExperimentKind.AB, n) for n in range(5)}
    assert salts == {"variant:x"}


def test_propensity_is_the_weight_in_force():
    weights = {"control": 0.3, "treatment": 0.7}
    experiment, epoch = make_experiment(weights=weights)
    for unit in UNITS[:100]:
        assignment = assign(experiment, epoch, unit, {})
        assert assignment.propensity == weights[assignment.variant]
        assert assignment.step is Step.VARIANT


@pytest.mark.parametrize("weight", [1, 1.0])
def test_a_weight_is_told_as_it_is_written(weight):
    experiment, epoch = make_experiment(weights={"control": weight, "treatment": 0})
    assert repr(assign(experiment, epoch, "u", {}).propensity) == repr(weight)


def test_override_comes_first_and_is_not_counted():
    experiment, epoch = make_experiment(
        overrides={"tester": "treatment"}, traffic_share=0, segments=[0, 1]
    )
    assignment = assign(experiment, epoch, "tester", {})
    assert assignment.variant == "treatment"
    assert assignment.step is Step.OVERRIDE
    assert not assignment.counted
    assert assignment.propensity is None


@pytest.mark.parametrize(
    ("operator", "values", "attribute", "accepted"),
    [
        ("in", ["de", "at"], "de", True),
        ("in", ["de", "at"], "fr", False),
        ("in", ["de"], None, False),
        ("not_in", ["de"], "fr", True),
        ("not_in", ["de"], None, False),
        ("at_least", [18], 18, True),
        ("at_least", [18], 17.5, False),
        ("at_most", [3], 3.0, True),
        ("at_most", [3], "3", False),
        ("in", [True], True, True),
        ("in", [1], True, False),
        ("in", ["1"], 1, False),
    ],
)
def test_targeting(operator, values, attribute, accepted):
    rule = {"attribute": "x", "operator": operator, "values": values}
    experiment, epoch = make_experiment(targeting=[rule])
    attributes = {} if attribute is None else {"x": attribute}
    assignment = assign(experiment, epoch, "unit", attributes)
    assert (assignment.variant is not None) == accepted
    assert assignment.step is (Step.VARIANT if accepted else Step.TARGETING)


def test_a_sticky_unit_keeps_the_draw_and_propensity_of_its_first_epoch():
    experiment, _ = make_experiment(
        kind="bandit", mode="sticky", policy={"name": "thompson"}
    )
    first = make_epoch(0, {"control": 0.5, "treatment": 0.5})
    later = make_epoch(4, {"control": 0.05, "treatment": 0.95})
    for unit in UNITS[:200]:
        at_first = assign(experiment, first, unit, {})
        kept = assign(experiment, later, unit, {}, first_epoch=first)
        assert (kept.variant, kept.epoch, kept.propensity) == (
            at_first.variant,
            0,
            0.5,
        )
        assert kept.step is Step.STICKY
