"""Event ids, times and attributes at the door."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiment_service.domain.event import (
    Interaction,
    check_attributes,
    check_id,
    check_instant,
    event_uuid,
)
from experiment_service.errors import InvalidRequest

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
FOREIGN = UUID("ffff0000-0000-0000-0000-000000000000")


def test_a_uuid7_is_kept():
    given_id = "019a3f2e-5b10-7abc-8def-0123456789ab"
    assert event_uuid(given_id) == UUID(given_id)
    assert event_uuid(given_id.upper()) == UUID(given_id)


@given(st.text(min_size=1, max_size=128).filter(lambda t: t.isprintable()))
def test_any_other_id_is_mapped_above_every_time(text):
    mapped = event_uuid(text)
    assert mapped == event_uuid(text)
    if mapped != _as_uuid7(text):
        assert mapped >= FOREIGN
        assert (mapped.version, mapped.variant) == (8, "specified in RFC 4122")


def _as_uuid7(text):
    try:
        parsed = UUID(text)
    except ValueError:
        return None
    return parsed if parsed.version == 7 else None


def test_different_ids_map_apart():
    assert len({event_uuid(f"order-{i}") for i in range(10_000)}) == 10_000


@pytest.mark.parametrize(
    "text",
    [
        "019a3f2e5b107abc8def0123456789ab",
        "{019a3f2e-5b10-7abc-8def-0123456789ab}",
        "urn:uuid:019a3f2e-5b10-7abc-8def-0123456789ab",
        "0-1-9a3f2e5b107abc8def0123456789ab",
    ],
)
def test_a_uuid7_is_known_in_every_form(text):
    assert event_uuid(text) == UUID(text)


@pytest.mark.parametrize(
    "text",
    ["019a3f2e-5b10-4abc-8def-0123456789ab", "019a3f2e-5b10-7abc-cdef-0123456789ab"],
)
def test_a_uuid_of_another_version_or_variant_is_mapped(text):
    assert event_uuid(text) >= FOREIGN


def test_a_uuid7_in_the_foreign_range_is_mapped_like_any_text():
    disguised = "ffff0000-0000-7000-8000-000000000000"
    assert event_uuid(disguised) != UUID(disguised)


@pytest.mark.parametrize(
    "bad", ["", "x" * 129, "a\x00b", "a\nb", "\x1f", "\ud800", "\x85"]
)
def test_ids_that_break_logs_or_hashes_are_refused(bad):
    with pytest.raises(InvalidRequest, match="unit_id"):
        check_id("unit_id", bad)


@pytest.mark.parametrize(
    ("instant", "words"),
    [
        (NOW + timedelta(minutes=6), "out of range"),
        (NOW - timedelta(days=31), "out of range"),
        (NOW.replace(tzinfo=None), "no time zone"),
        (datetime(9999, 12, 31, tzinfo=UTC), "out of range"),
    ],
)
def test_instants_out_of_range_are_refused(instant, words):
    with pytest.raises(InvalidRequest, match=words):
        check_instant("occurred_at", instant, now=NOW)


@pytest.mark.parametrize(
    "attributes",
    [
        {"a": [1]},
        {"a": None},
        {"a": {"b": 1}},
        {"": 1},
        {"a": float("inf")},
        {"a": "x" * 257},
        {"a": "\x00"},
        {str(i): i for i in range(51)},
    ],
)
def test_attributes_out_of_bounds_are_refused(attributes):
    with pytest.raises(InvalidRequest, match="attributes"):
        check_attributes("attributes", attributes)


def test_attributes_may_be_text_number_or_truth():
    attributes = {"market": "de", "age": 3, "score": 0.5, "new": True, "note": ""}
    assert check_attributes("attributes", attributes) == attributes


def interaction(**changes):
    values = {
        "id": event_uuid("e1"),
        "exposure_id": None,
        "unit_id": "u1",
        "kind": "click",
        "item_id": None,
        "position": None,
        "value": None,
        "occurred_at": NOW,
    }
    return Interaction(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "hover"}, "known kinds: add_to_cart, click"),
        ({"unit_id": None}, "at least one"),
        ({"position": 0}, "1 to 1000"),
        ({"position": 1001}, "1 to 1000"),
        ({"value": Decimal("NaN")}, "finite"),
        ({"value": Decimal("1e13")}, "at most"),
        ({"item_id": ""}, "item_id has 0"),
        ({"unit_id": "u" * 129}, "unit_id has 129"),
    ],
)
def test_interactions_obey_their_rules(changes, words):
    with pytest.raises(InvalidRequest, match=words):
        interaction(**changes)
