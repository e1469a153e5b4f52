"""Answers of shadows in the database, and what decides on a shadow."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import text

from experiment_service.analysis.shadow import ShadowSums
from experiment_service.domain.shadow import ShadowRule
from experiment_service.errors import InvalidState
from experiment_service.promotion import judge_shadows, promote, reject
from experiment_service.storage.database import transaction
from experiment_service.storage.experiments import list_audit
from experiment_service.storage.models import ModelStatus, get_version
from experiment_service.storage.shadow_sums import sum_answers
from experiment_service.storage.shadows import ShadowAnswer, insert_answers
from tests.integration.test_models import insert, make

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def answer(number, version, **changes):
    """Four items shown and four made, two of both, one at its place."""
    values = {
        "version_id": version.id,
        "id": UUID(int=number),
        "unit_id": f"u{number % 3}",
        "shown": 4,
        "made": 4,
        "common": 2,
        "same_places": [1],
        "shown_fallback": False,
        "fallback": False,
        "seconds": 0.001 * number,
        "error": None,
        "answered_at": NOW + timedelta(seconds=number),
    }
    return ShadowAnswer(**{**values, **changes})


def store_shadow_answers(engine, *units, at=NOW):
    """Store an answer of a shadow for each unit."""
    with transaction(engine) as connection:
        version = make(connection, insert(connection), ModelStatus.SHADOW)
        insert_answers(
            connection,
            [
                answer(number, version, unit_id=unit, answered_at=at)
                for number, unit in enumerate(units)
            ],
        )


@pytest.fixture
def live(engine):
    with transaction(engine) as connection:
        return make(connection, insert(connection), ModelStatus.LIVE)


@pytest.fixture
def shadow(engine, live):
    def shadow(**given):
        rule = ShadowRule(answers=3, **given) if given else None
        with transaction(engine) as connection:
            version = insert(connection, live.name)
            return make(connection, version, ModelStatus.SHADOW, rule=rule)

    return shadow


def store(engine, *answers):
    with transaction(engine) as connection:
        insert_answers(connection, answers)


def status(engine, version):
    with transaction(engine) as connection:
        return get_version(connection, version.name, version.version).status


def stored(engine):
    with transaction(engine) as connection:
        return connection.scalar(text("SELECT count(*) FROM shadow_answer"))


def test_an_answer_counts_once_and_sums_are_those_of_the_rows(engine, shadow):
    version, other = shadow(), shadow()
    batch = [answer(number, version) for number in range(1, 7)]
    store(engine, *batch)
    store(engine, *batch, answer(1, other))
    store(
        engine,
        answer(7, version, made=0, common=0, same_places=[], error="KeyError: 'x'"),
        answer(8, version, made=2, common=1, same_places=[], fallback=True),
        answer(9, version, shown=0, made=0, common=0, same_places=[]),
    )
    with transaction(engine) as connection:
        sums = sum_answers(connection, version.id)
    assert (sums.answers, sums.units, sums.failed) == (9, 3, 1)
    assert (sums.covered, sums.shown_covered) == (7, 9)
    # By unit: u0 has 3, 6 (and 9, without items), u1 has 1, 4 (and 7, which failed),
    # u2 has 2, 5 and 8; each a half, but a quarter for 8.
    assert (sums.overlap.n, sums.overlap.sum_x) == (3, 7)
    assert sums.overlap.sum_y == pytest.approx(1 + 1 + 1.25)
    assert sums.overlap.sum_xy == pytest.approx(2 * 1 + 2 * 1 + 3 * 1.25)
    # Of 1, 2, 3, 4, 5, 6, 8 and 9 milliseconds.
    assert sums.milliseconds == pytest.approx((4.5, 8.65, 8.93))
    assert sums.error == "KeyError: 'x'"
    assert sums.first_at == NOW + timedelta(seconds=1)
    assert (sums.exposures, sums.clicked.n) == (0, 0)
    assert ShadowSums.parse(sums.document()) == sums


def test_without_answers_there_are_no_sums(engine, shadow):
    version = shadow(overlap=0.1)
    with transaction(engine) as connection:
        sums = sum_answers(connection, version.id)
    assert (sums.answers, sums.milliseconds, sums.first_at) == (0, (), None)
    judge_shadows(engine, NOW)
    assert status(engine, version) is ModelStatus.SHADOW


def test_a_shadow_that_keeps_its_rule_serves_and_its_answers_go(engine, shadow, live):
    version = shadow(overlap=0.5, coverage=1.0, milliseconds=3.0)
    unruled = shadow()
    store(engine, *(answer(number, version) for number in range(2)))
    judge_shadows(engine, NOW)
    assert status(engine, version) is ModelStatus.SHADOW
    store(engine, answer(2, version), answer(3, unruled))
    later = NOW + timedelta(minutes=1)
    with ThreadPoolExecutor(2) as workers:
        list(workers.map(lambda _: judge_shadows(engine, later), range(2)))
    assert status(engine, version) is ModelStatus.LIVE
    assert status(engine, live) is ModelStatus.RETIRED
    assert status(engine, unruled) is ModelStatus.SHADOW
    assert stored(engine) == 1
    with transaction(engine) as connection:
        decided = get_version(connection, version.name, version.version)
        audited = [
            each
            for each in list_audit(connection, f"model/{version.name}")
            if each.actor == "rule"
        ]
    assert decided.reason == "kept every threshold of its rule in 3 answers or more"
    assert decided.decided_at == later
    assert ShadowSums.parse(decided.shadow_result).answers == 3
    assert [each.action for each in audited] == ["set_live"]


@pytest.mark.parametrize(
    ("rule", "changes", "reason"),
    [
        ({"overlap": 0.51}, {}, "overlap is 0.5; it must be at least 0.51"),
        (
            {"errors": 0.3},
            {"error": "x", "made": 0, "common": 0},
            "share of errors is 0.3333; it must be at most 0.3",
        ),
        ({"coverage": 0.7}, {"fallback": True}, "coverage is 0.6667; it must be at"),
        (
            {"milliseconds": 2.0},
            {"seconds": 9.0},
            "95th percentile of milliseconds is",
        ),
    ],
)
def test_a_shadow_that_breaks_its_rule_is_rejected_and_nothing_else_changes(
    engine, shadow, rule, changes, reason
):
    version = shadow(**rule)
    store(engine, *(answer(n, version, seconds=0.001) for n in (1, 2)))
    store(engine, answer(3, version, **{"seconds": 0.001, **changes}))
    judge_shadows(engine, NOW)
    with transaction(engine) as connection:
        decided = get_version(connection, version.name, version.version)
        live = get_version(connection, version.name, 1)
    assert decided.status is ModelStatus.REJECTED
    assert decided.reason.startswith(reason)
    assert live.status is ModelStatus.LIVE


def test_a_decision_by_hand_keeps_how_the_shadow_compared(engine, shadow):
    version = shadow(overlap=1.0)
    store(engine, answer(1, version))
    given = {"name": version.name, "version": version.version}
    given |= {"actor": "ana", "reason": "too few new items", "now": NOW}
    with transaction(engine) as connection:
        decided = reject(connection, **given)
    assert decided.status is ModelStatus.REJECTED
    with transaction(engine) as connection:
        found = get_version(connection, version.name, version.version)
        assert ShadowSums.parse(found.shadow_result).answers == 1
    with (
        transaction(engine) as connection,
        pytest.raises(InvalidState, match="als/2 is rejected and can't become"),
    ):
        reject(connection, **given)
    judge_shadows(engine, NOW)
    assert stored(engine) == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"artifact": ""}, "als/2 can't serve: it was never published"),
        ({}, "als/2 can't serve: its lists are not in "),
        (
            {"checklist": [{"name": "depth", "passed": False}]},
            "als/2 can't serve: it failed depth",
        ),
    ],
)
def test_what_can_t_serve_is_not_promoted(engine, live, tmp_path, changes, reason):
    with transaction(engine) as connection:
        version = insert(connection, live.name, **changes)
    with (
        transaction(engine) as connection,
        pytest.raises(InvalidState, match=reason),
    ):
        promote(
            connection,
            data_dir=tmp_path,
            name=version.name,
            version=version.version,
            actor="ana",
            reason="-",
            now=NOW,
        )
    assert status(engine, live) is ModelStatus.LIVE
