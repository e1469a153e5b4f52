"""Segments: which one a request belongs to, and that its weights are the propensity."""

from collections import Counter

import numpy as np
import pytest

from experiment_service.domain.assignment import Step, assign
from experiment_service.domain.configuration import epoch_document, parse_epoch
from experiment_service.domain.declaration import (
    declaration_document,
    parse_declaration,
)
from experiment_service.domain.experiment import Epoch, EpochSegment
from experiment_service.domain.segment import Segmentation
from experiment_service.errors import InvalidRequest
from tests.unit.test_assignment import NOW, UNITS, make_experiment, within_4_se

DEVICES = Segmentation(by={"device": ("phone", "desk"), "app": (True,)})
POLICY = {"name": "segmented_thompson", "segment_by": {"device": ["phone", "desk"]}}
WEIGHTS = {"phone": 0.8, "desk": 0.3, "other": 0.5}


@pytest.mark.parametrize(
    ("attributes", "segment"),
    [
        ({"device": "phone", "app": True}, "true / phone"),
        ({"device": "phone", "app": False}, "other / phone"),
        ({"device": "tv", "app": True}, "true / other"),
        ({"device": 1, "app": 1}, "other / other"),
        ({}, "other / other"),
    ],
)
def test_a_request_is_in_one_segment(attributes, segment):
    assert DEVICES.of(attributes) == segment
    assert segment in DEVICES.names


def test_names_are_those_of_all_combinations_whatever_the_order_of_attributes():
    turned = Segmentation(by={"app": (True,), "device": ("phone", "desk")})
    assert turned == DEVICES
    assert len(set(DEVICES.names)) == len(DEVICES.names) == 6


@pytest.mark.parametrize(
    ("declared", "given", "same"),
    [(1, 1.0, True), (1, True, False), (1.5, 1.5, True), ("1", 1, False)],
)
def test_values_are_compared_as_what_they_are(declared, given, same):
    of = Segmentation(by={"n": (declared,)}).of({"n": given})
    assert (of != "other") == same


def segmented():
    experiment, _ = make_experiment(kind="bandit", policy=POLICY)
    segments = {
        name: EpochSegment(
            weights={"control": weight, "treatment": 1 - weight}, statistics={}
        )
        for name, weight in WEIGHTS.items()
    }
    epoch = Epoch(
        number=3,
        weights={"control": 0.6, "treatment": 0.4},
        segments=segments,
        reason="test",
        started_at=NOW,
    )
    return experiment, epoch


@pytest.mark.parametrize("segment", WEIGHTS)
def test_the_propensity_is_the_weight_of_the_segment(segment):
    experiment, epoch = segmented()
    attributes = {} if segment == "other" else {"device": segment}
    drawn = [assign(experiment, epoch, unit, attributes) for unit in UNITS]
    counts = Counter(each.variant for each in drawn)
    assert within_4_se(counts["control"], len(UNITS), WEIGHTS[segment])
    for each in drawn:
        expected = epoch.segments[segment].weights[each.variant]
        assert (each.propensity, each.segment) == (expected, segment)
        assert each.step is Step.VARIANT


def test_before_a_look_all_segments_have_the_same_weights():
    experiment, _ = make_experiment(kind="bandit", policy=POLICY)
    epoch = Epoch(
        number=0,
        weights={"control": 0.7, "treatment": 0.3},
        reason="test",
        started_at=NOW,
    )
    drawn = assign(experiment, epoch, "u", {"device": "desk"})
    assert drawn.propensity == epoch.weights[drawn.variant]
    assert drawn.segment == "desk"
    assert "segment 'desk'" in drawn.reason


def test_a_unit_that_changes_its_segment_moves_only_if_it_must():
    """The draw is the same, so as many move as weights differ."""
    experiment, epoch = segmented()
    moved = Counter(
        tuple(
            assign(experiment, epoch, unit, {"device": device}).variant
            for device in ("phone", "desk")
        )
        for unit in UNITS
    )
    assert moved["treatment", "control"] == 0
    assert within_4_se(moved["control", "treatment"], len(UNITS), 0.5)


def test_declarations_and_epochs_survive_as_documents():
    experiment, epoch = segmented()
    document = declaration_document(experiment.declaration)
    assert document["policy"]["segment_by"] == {"device": ["phone", "desk"]}
    assert parse_declaration(document) == experiment.declaration
    assert parse_epoch(epoch_document(epoch)) == epoch
    old = epoch_document(epoch)
    del old["segments"]
    assert parse_epoch(old).segments is None


def test_no_segment_falls_below_the_floor():
    low = EpochSegment(weights={"a": 0.01, "b": 0.99}, statistics={})
    with pytest.raises(InvalidRequest, match=r"reach down to 0\.01"):
        Epoch(
            number=1,
            weights={"a": 0.5, "b": 0.5},
            segments={"x": low},
            floor=0.05,
            reason="test",
            started_at=NOW,
        )


def test_too_many_segments_are_refused():
    values = tuple(str(number) for number in np.arange(200))
    with pytest.raises(InvalidRequest, match="201 segments"):
        Segmentation(by={"city": values})
