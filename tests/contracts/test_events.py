"""What every kind of interaction owes: a new line in `EVENT_KINDS` is tested unasked."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import text

from experiment_service.domain.event import EVENT_KINDS
from experiment_service.ingestion import accept_interactions, decode, encode
from experiment_service.storage.database import transaction
from experiment_service.storage.events import rebuild_outcomes, store_events
from tests.integration.test_events import Maker, make_experiment

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture(params=sorted(EVENT_KINDS))
def kind(request):
    return request.param


def documents(kind, exposure):
    """One interaction on an exposure, one by the unit alone."""
    common = {"kind": kind, "value": 2.5, "occurred_at": NOW.isoformat()}
    return [
        {"id": f"{kind}-1", "exposure_id": str(exposure.id), "position": 1, **common},
        {"id": f"{kind}-2", "unit_id": exposure.unit_id, "item_id": "i", **common},
    ]


def test_kind_has_a_name_and_a_meaning(kind):
    assert re.fullmatch(r"[a-z][a-z_]{0,29}", kind)
    assert len(EVENT_KINDS[kind]) > 10


def test_kind_is_taken_stored_and_counted_apart_from_others(kind, engine):
    make = Maker()
    with transaction(engine) as connection:
        experiment_id = make_experiment(connection, "e")
    exposure = make.exposure(experiment_id, at=NOW - timedelta(minutes=1))
    kinds = [kind, *sorted(EVENT_KINDS)]
    sent = [each for name in kinds for each in documents(name, exposure)]
    interactions, refusals = accept_interactions(sent, now=NOW)
    assert refusals == []
    stored = [decode(encode(each)) for each in interactions]
    with transaction(engine) as connection:
        counts = store_events(connection, [exposure], stored)
    assert counts.interactions == 2 * len(EVENT_KINDS)
    for _ in range(2):
        with transaction(engine) as connection:
            row = connection.execute(
                text(
                    "SELECT sum(count) AS count, sum(value_sum) AS value_sum,"
                    " min(first_at) AS first_at FROM unit_outcome WHERE kind = :kind"
                ),
                {"kind": kind},
            ).one()
            rebuild_outcomes(connection)
        assert (row.count, row.value_sum, row.first_at) == (2, Decimal(5), NOW)
