"""Erasure: nothing of a unit is left or comes back, and nobody else's numbers move."""

from datetime import timedelta

import pytest
from sqlalchemy import text

from experiment_service import erasure
from experiment_service.domain.event import MAX_AHEAD
from experiment_service.storage import experiments as storage
from experiment_service.storage import schema
from experiment_service.storage.database import transaction
from experiment_service.storage.erasure import (
    TOMBSTONE_LIFE,
    UNIT_TABLES,
    list_erased,
    unit_digest,
)
from experiment_service.storage.events import rebuild_outcomes
from tests.integration.test_events import (
    START,
    Maker,
    ab,
    all_rows,
    bandit,
    check_against_definition,
    random_events,
    store,
)
from tests.integration.test_shadow_answers import store_shadow_answers

__all__ = ["ab", "bandit"]

GONE = "unit-3"
LATER = START + timedelta(days=2)


def erase(engine, *units, now=LATER):
    with transaction(engine) as connection:
        return erasure.erase(
            connection, units or [GONE], actor="key:1", now=now, reason="request 17"
        )


def count(engine, table, where="true"):
    with transaction(engine) as connection:
        return connection.scalar(text(f"SELECT count(*) FROM {table} WHERE {where}"))


def split(shown, done):
    """What belongs to the unit: its exposures, and interactions on them or by it."""
    exposures = {each.id for each in shown if each.unit_id == GONE}
    own = [
        each
        for each in done
        if each.unit_id == GONE
        or (each.unit_id is None and each.exposure_id in exposures)
    ]
    return exposures, own


def test_every_table_with_a_unit_is_erased():
    with_unit = {t.name for t in schema.metadata.tables.values() if "unit_id" in t.c}
    assert with_unit == {table.name for table in UNIT_TABLES} | {"interaction"}


@pytest.mark.parametrize("seed", range(2))
def test_erasure_removes_the_unit_and_leaves_all_others(engine, ab, bandit, seed):
    make = Maker(500 + seed)
    shown, done = random_events(make, ab, bandit)
    store(engine, *shown, *done)
    store_shadow_answers(engine, GONE, "unit-4")
    exposures, own = split(shown, done)
    assert len(exposures) > 5
    assert len(own) > 5
    rows = erase(engine).rows
    assert (rows["exposure"], rows["interaction"]) == (len(exposures), len(own))
    assert min(rows.values()) > 0
    for table in (each.name for each in UNIT_TABLES):
        assert count(engine, table, f"unit_id = '{GONE}'") == 0
    assert count(engine, "shadow_answer") == 1
    before = all_rows(engine)
    with transaction(engine) as connection:
        rebuild_outcomes(connection)
    assert all_rows(engine) == before
    # As if the unit had never been, to the last digit.
    check_against_definition(
        engine,
        ab,
        bandit,
        [each for each in shown if each.id not in exposures],
        [each for each in done if each not in own],
    )


def test_what_was_on_its_way_is_dropped_and_the_unit_may_come_back(engine, ab):
    make = Maker()
    erase(engine)
    late = make.exposure(ab, unit_id=GONE, at=LATER)
    ahead = make.interaction(None, unit_id=GONE, at=LATER + MAX_AHEAD)
    other = make.exposure(ab, unit_id="other", at=LATER)
    store(engine, late, ahead, make.interaction(late, unit_id=GONE, at=LATER), other)
    assert count(engine, "exposure") == 1
    assert count(engine, "interaction") == 0
    again = LATER + MAX_AHEAD + timedelta(seconds=1)
    back = make.exposure(ab, unit_id=GONE, at=again)
    store(engine, back, make.interaction(back, unit_id=GONE, at=again))
    store_shadow_answers(engine, GONE, "other", at=LATER + MAX_AHEAD)
    assert count(engine, "shadow_answer", f"unit_id = '{GONE}'") == 0
    assert count(engine, "shadow_answer") == 1
    assert count(engine, "unit_exposure", f"unit_id = '{GONE}'") == 1
    assert count(engine, "unit_outcome", f"unit_id = '{GONE}'") == 1
    # A second erasure moves the tombstone on.
    erase(engine, now=again + timedelta(days=1))
    store(engine, make.exposure(ab, unit_id=GONE, at=again))
    assert count(engine, "exposure", f"unit_id = '{GONE}'") == 0


def test_an_erasure_is_audited_without_the_unit(engine, ab):
    store(engine, Maker().exposure(ab, unit_id=GONE))
    erase(engine)
    with transaction(engine) as connection:
        (entry,) = storage.list_audit(connection, "unit")
    assert (entry.actor, entry.action, entry.reason) == (
        "key:1",
        "erase",
        "request 17",
    )
    assert entry.after["rows"]["exposure"] == 1
    dump = str(entry)
    assert GONE not in dump
    assert unit_digest(GONE).hex() not in dump


@pytest.mark.usefixtures("ab")
def test_overrides_that_name_the_unit_are_told(engine):
    with transaction(engine) as connection:
        connection.execute(
            text(
                "UPDATE experiment SET declaration = jsonb_set(declaration,"
                " '{overrides}', '{\"unit-3\": \"a\"}')"
            )
        )
    assert erase(engine).overrides == ["ab"]
    assert erase(engine, "nobody").overrides == []


def test_tombstones_end(engine):
    erase(engine)
    with transaction(engine) as connection:
        assert list_erased(connection) == {unit_digest(GONE).hex()}
    erase(engine, "other", now=LATER + TOMBSTONE_LIFE + timedelta(days=1))
    with transaction(engine) as connection:
        assert list_erased(connection) == {unit_digest("other").hex()}
