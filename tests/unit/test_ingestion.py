"""Interactions at the door, and the journal's format."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiment_service.domain.event import (
    EVENT_KINDS,
    MAX_AGE,
    MAX_POSITION,
    MAX_VALUE,
    Exposure,
    Interaction,
    event_uuid,
)
from experiment_service.errors import InvalidRequest
from experiment_service.ingestion import accept_interactions, decode, encode

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
EXPOSURE_ID = "019a3f2e-5b10-7abc-8def-0123456789ab"
CLICK = {"id": "c-1", "unit_id": "u", "kind": "click"}


def accept(**changes):
    """Return the one interaction of a click with changes, which must be good."""
    interactions, refusals = accept_interactions([CLICK | changes], now=NOW)
    assert refusals == []
    return interactions[0]


def refuse(document):
    """Return the refusal of a document, which must be bad."""
    interactions, refusals = accept_interactions([document], now=NOW)
    assert interactions == []
    return refusals[0]


def test_every_field_is_read():
    full = {
        "id": EXPOSURE_ID,
        "exposure_id": EXPOSURE_ID.upper(),
        "unit_id": "shopper",
        "kind": "purchase",
        "item_id": "sku-1",
        "position": 3,
        "value": 19.99,
        "occurred_at": "2026-11-20T13:30:00.123456+02:00",
    }
    interactions, refusals = accept_interactions([full], now=NOW)
    assert refusals == []
    assert interactions == [
        Interaction(
            id=UUID(EXPOSURE_ID),
            exposure_id=UUID(EXPOSURE_ID),
            unit_id="shopper",
            kind="purchase",
            item_id="sku-1",
            position=3,
            value=Decimal("19.99"),
            occurred_at=datetime(2026, 11, 20, 11, 30, 0, 123456, tzinfo=UTC),
        )
    ]


def test_optional_fields_may_be_absent_or_null():
    absent = accept()
    assert absent == accept(
        exposure_id=None, item_id=None, position=None, value=None, occurred_at=None
    )
    assert absent.occurred_at == NOW
    assert absent.id == event_uuid("c-1")


@pytest.mark.parametrize(
    "event_id",
    [
        EXPOSURE_ID,
        EXPOSURE_ID.upper(),
        EXPOSURE_ID.replace("-", ""),
        EXPOSURE_ID.replace("0", "\u0660"),
        "0-" + EXPOSURE_ID.replace("-", "", 1),
        "{" + EXPOSURE_ID + "}",
        "urn:uuid:" + EXPOSURE_ID,
        EXPOSURE_ID.replace("-7abc", "-4abc"),
        EXPOSURE_ID.replace("-8def", "-cdef"),
        "ffff" + EXPOSURE_ID[4:],
        "order-17",
    ],
)
def test_ids_in_any_form_are_stored_as_the_domain_says(event_id):
    assert accept(id=event_id).id == event_uuid(event_id)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (0.1, "0.1"),
        (12, "12"),
        (-3.5, "-3.5"),
        (1e-7, "1E-7"),
        (10**12, "1000000000000"),
        (5e-324, "5E-324"),
    ],
)
def test_values_keep_their_decimal_digits(value, stored):
    assert accept(value=value).value == Decimal(stored)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-11-20T11:00:00Z", NOW - timedelta(hours=1)),
        ("2026-11-20T13:00:00+02:00", NOW - timedelta(hours=1)),
        ("2026-11-20 11:00:00.5-00:00", NOW - timedelta(hours=1, microseconds=-500000)),
        ((NOW - MAX_AGE).isoformat(), NOW - MAX_AGE),
    ],
)
def test_instants_with_a_zone_are_turned_to_utc(text, instant):
    occurred_at = accept(occurred_at=text).occurred_at
    assert occurred_at == instant
    assert occurred_at.tzinfo is UTC


HUGE = 10**5000
BAD = {
    "id missing": ({"unit_id": "u", "kind": "click"}, "id", "missing"),
    "id null": (CLICK | {"id": None}, "id", "missing"),
    "id a number": (CLICK | {"id": 7}, "id", "id is 7; it must be a text"),
    "id empty": (CLICK | {"id": ""}, "id", "0 characters"),
    "id long": (CLICK | {"id": "x" * 129}, "id", "129 characters"),
    "id a surrogate": (CLICK | {"id": "\ud800"}, "id", "control character"),
    "kind missing": ({"id": "1", "unit_id": "u"}, "kind", "missing"),
    "kind unknown": (CLICK | {"kind": "stare"}, "kind", "known kinds: add_to_cart"),
    "kind a list": (CLICK | {"kind": ["click"]}, "kind", "kind is a list"),
    "kind a surrogate": (CLICK | {"kind": "\udfff"}, "kind", "not known"),
    "neither unit nor exposure": ({"id": "1", "kind": "click"}, "exposure_id", "both"),
    "unit a truth value": (CLICK | {"unit_id": True}, "unit_id", "unit_id is true;"),
    "unit with NUL": (CLICK | {"unit_id": "a\x00b"}, "unit_id", "control character"),
    "unit long": (CLICK | {"unit_id": "x" * 129}, "unit_id", "1 to 128"),
    "item an object": (CLICK | {"item_id": {"a": 1}}, "item_id", "an object"),
    "item empty": (CLICK | {"item_id": ""}, "item_id", "0 characters"),
    "exposure no UUID": (CLICK | {"exposure_id": "x"}, "exposure_id", "'x'"),
    "exposure in braces": (
        CLICK | {"exposure_id": "{" + EXPOSURE_ID + "}"},
        "exposure_id",
        "a UUID",
    ),
    "exposure in other digits": (
        CLICK | {"exposure_id": EXPOSURE_ID.replace("0", "\u0660")},
        "exposure_id",
        "a UUID",
    ),
    "exposure with moved hyphens": (
        CLICK | {"exposure_id": "0-" + EXPOSURE_ID.replace("-", "", 1)},
        "exposure_id",
        "a UUID",
    ),
    "exposure of 32 digits": (
        CLICK | {"exposure_id": EXPOSURE_ID.replace("-", "")},
        "exposure_id",
        "a UUID",
    ),
    "exposure of surrogates": (
        CLICK | {"exposure_id": "\ud800" * 36},
        "exposure_id",
        "a UUID",
    ),
    "position a truth value": (CLICK | {"position": True}, "position", "true"),
    "position a float": (CLICK | {"position": 1.0}, "position", "whole number"),
    "position 0": (CLICK | {"position": 0}, "position", "1 to 1000"),
    "position beyond": (CLICK | {"position": MAX_POSITION + 1}, "position", "1001"),
    "position huge": (CLICK | {"position": HUGE}, "position", "60 digits"),
    "value a text": (CLICK | {"value": "12.50"}, "value", "'12.50'; it must be a num"),
    "value a truth value": (CLICK | {"value": False}, "value", "false"),
    "value NaN": (CLICK | {"value": math.nan}, "value", "finite"),
    "value infinite": (CLICK | {"value": -math.inf}, "value", "finite"),
    "value beyond": (CLICK | {"value": 1.1e12}, "value", f"{MAX_VALUE:.0e}"),
    "value huge": (CLICK | {"value": -HUGE}, "value", "60 digits"),
    "time a number": (CLICK | {"occurred_at": 1700000000}, "occurred_at", "1700000000"),
    "time no time": (
        CLICK | {"occurred_at": "yesterday"},
        "occurred_at",
        "'yesterday'",
    ),
    "time without zone": (
        CLICK | {"occurred_at": "2026-11-20T11:00:00"},
        "occurred_at",
        "no time zone",
    ),
    "time without clock": (
        CLICK | {"occurred_at": "2026-11-20"},
        "occurred_at",
        "zone",
    ),
    "time too early": (
        CLICK | {"occurred_at": "2026-10-01T00:00:00Z"},
        "occurred_at",
        "last 30 days",
    ),
    "time ahead": (
        CLICK | {"occurred_at": "2026-11-20T12:06:00Z"},
        "occurred_at",
        "5 minutes ahead",
    ),
    "first instant": (
        CLICK | {"occurred_at": "0001-01-01T00:00:00+23:59"},
        "occurred_at",
        "out of range",
    ),
    "last instant": (
        CLICK | {"occurred_at": "9999-12-31T23:59:59-23:59"},
        "occurred_at",
        "out of range",
    ),
    "unknown field": (CLICK | {"price": 3}, "price", "price is not a field"),
    "unknown field, a surrogate": (CLICK | {"\ud800": 3}, "\\ud800", "not a field"),
    "unknown field, long": (CLICK | {"x" * 999: 3}, "x" * 59 + "...", "not a field"),
    "a text": ("click", None, "'click'; it must be an object"),
    "a number": (7, None, "the event is 7"),
    "huge": (HUGE, None, "60 digits"),
    "null": (None, None, "null"),
    "a list": ([CLICK], None, "a list"),
}


@pytest.mark.parametrize(("document", "field", "reason"), BAD.values(), ids=BAD)
def test_bad_interactions_are_refused_with_field_and_reason(document, field, reason):
    refusal = refuse(document)
    assert refusal.field == field
    assert reason in refusal.reason
    assert len(refusal.reason) < 300
    f"{refusal.reason}{refusal.field}{refusal.id}".encode()


def test_refusals_tell_the_place_and_the_id():
    documents = [CLICK, CLICK | {"id": "c-2", "kind": "x"}, 5, CLICK | {"id": "c-3"}]
    interactions, refusals = accept_interactions(documents, now=NOW)
    assert [each.id for each in interactions] == [event_uuid("c-1"), event_uuid("c-3")]
    assert [(each.index, each.id) for each in refusals] == [(1, "c-2"), (2, None)]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([*CLICK, "position", "value", "occurred_at", "other"])
            | st.text(st.characters(), max_size=4),
            json_values,
        )
        | json_values,
        max_size=4,
    )
)
def test_no_document_raises(documents):
    interactions, refusals = accept_interactions(documents, now=NOW)
    assert len(interactions) + len(refusals) == len(documents)
    json.dumps([(each.id, each.field, each.reason) for each in refusals]).encode()


texts = st.text(max_size=20)
ids = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=128)
instants = st.integers(0, 10**16).map(
    lambda microseconds: (
        datetime(2020, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    )
)
exposures = st.integers(0, 5).flatmap(
    lambda size: st.builds(
        Exposure,
        id=st.uuids(),
        experiment_id=st.integers(1, 2**31 - 1),
        unit_id=ids,
        variant=texts,
        epoch=st.integers(0, 2**31 - 1),
        propensity=st.floats(0, 1, exclude_min=True),
        model=texts,
        items=st.lists(texts, min_size=size, max_size=size).map(tuple),
        sources=st.lists(texts, min_size=size, max_size=size).map(tuple),
        fallback=st.booleans(),
        context=st.dictionaries(
            texts,
            texts
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.booleans(),
        ),
        exposed_at=instants,
    )
)
interactions = st.builds(
    Interaction,
    id=st.uuids(),
    exposure_id=st.uuids(),
    unit_id=st.none() | ids,
    kind=st.sampled_from(sorted(EVENT_KINDS)),
    item_id=st.none() | ids,
    position=st.none() | st.integers(1, MAX_POSITION),
    value=st.none() | st.decimals(-MAX_VALUE, MAX_VALUE),
    occurred_at=instants,
)


@given(exposures | interactions)
def test_decode_undoes_encode_exactly(event):
    again = decode(encode(event))
    assert again == event
    # Equal numbers may still differ in type and in trailing zeros.
    assert repr(again) == repr(event)


def test_zones_survive_the_journal():
    zone = timezone(timedelta(hours=5, minutes=30))
    exposure = Exposure(
        id=UUID(EXPOSURE_ID),
        experiment_id=1,
        unit_id="u",
        variant="v",
        epoch=0,
        propensity=1,
        model="m",
        items=(),
        sources=(),
        fallback=False,
        context={},
        exposed_at=datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=zone),
    )
    assert decode(encode(exposure)) == exposure


GOOD = encode(accept(value=1.5, exposure_id=EXPOSURE_ID))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b"7",
        b"{}",
        b'{"event": "exposure"}',
        b'{"event": "refund", "id": "019a3f2e-5b10-7abc-8def-0123456789ab"}',
        GOOD[:-1],
        GOOD.replace(b'"click"', b'"stare"'),
        GOOD.replace(b'"value":"1.5"', b'"value":"1,5"'),
        GOOD.replace(b'"value"', b'"amount"'),
        GOOD.replace(b'"kind"', b'"new_field":1,"kind"'),
        GOOD.replace(b"2026-11-20", b"2026-13-20"),
        GOOD.replace(EXPOSURE_ID.encode(), b"019a"),
    ],
)
def test_payloads_that_no_version_wrote_are_refused(payload):
    with pytest.raises(InvalidRequest):
        decode(payload)
