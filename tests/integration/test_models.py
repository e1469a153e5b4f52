import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from experiment_service.domain.configuration import LiveModel
from experiment_service.domain.shadow import ShadowRule
from experiment_service.errors import Conflict, InvalidRequest, InvalidState, NotFound
from experiment_service.storage.database import ChangeListener, transaction
from experiment_service.storage.experiments import list_audit, load_configuration
from experiment_service.storage.models import (
    ModelStatus,
    decide,
    get_version,
    insert_version,
    list_versions,
    live_models,
    next_version,
    set_live,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DATA = {"data_to": NOW - timedelta(days=1), "data_digest": "d" * 64}
CHECK = {"name": "depth", "value": 1.0, "threshold": 1.0, "passed": True}


def insert(connection, name="als", **changes):
    values = {
        "name": name,
        "recommender": "als",
        "parameters": {"factors": 8},
        "metrics": {"ndcg_at_10": 0.25, "worst": None},
        "checklist": [CHECK],
        "data_from": NOW - timedelta(days=30),
        **DATA,
        "code_version": "0.1.0",
        "artifact": f"models/{name}/1",
        "sha256": "a" * 64,
        "now": NOW,
    }
    return insert_version(connection, **{**values, **changes})


def make(connection, version, status, now=NOW, **shadow):
    if status is ModelStatus.SHADOW:
        shadow.setdefault("share", 0.25)
    return decide(
        connection,
        version.id,
        status,
        decided_by="ana",
        reason="because",
        now=now,
        **shadow,
    )


def test_a_new_version_is_a_candidate_with_all_its_facts(connection):
    version = insert(connection)
    assert version.version == 1
    assert version.label == "als/1"
    assert version.status is ModelStatus.CANDIDATE
    assert version.parameters == {"factors": 8}
    assert version.metrics == {"ndcg_at_10": 0.25, "worst": None}
    assert version.checklist == [CHECK]
    assert version.created_at == NOW
    assert (version.decided_by, version.decided_at, version.reason) == (None,) * 3
    assert get_version(connection, "als", 1) == version
    assert live_models(connection) == {}


def test_versions_count_per_name(connection):
    assert [insert(connection).version for _ in range(3)] == [1, 2, 3]
    assert insert(connection, "popularity").version == 1
    assert next_version(connection, "als") == 4
    assert [v.label for v in list_versions(connection)] == [
        "als/3",
        "als/2",
        "als/1",
        "popularity/1",
    ]
    assert [v.version for v in list_versions(connection, "als")] == [3, 2, 1]


def test_concurrent_inserts_get_distinct_numbers(engine):
    def one(_):
        with transaction(engine) as connection:
            return insert(connection).version

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(one, range(12))) == list(range(1, 13))


def test_the_next_number_is_kept_until_the_transaction_ends(engine):
    with transaction(engine) as connection:
        assert next_version(connection, "als") == 1
        with ThreadPoolExecutor(1) as threads:

            def other():
                with transaction(engine) as second:
                    return insert(second).version

            waiting = threads.submit(other)
            assert insert(connection).version == 1
            assert not waiting.done()
            connection.commit()
            assert waiting.result(10) == 2


def test_a_name_must_be_a_key(connection):
    with pytest.raises(InvalidRequest, match="model name is "):
        insert(connection, "../etc")


ALLOWED = {
    ("candidate", "rejected"),
    ("candidate", "shadow"),
    ("candidate", "live"),
    ("shadow", "shadow"),
    ("shadow", "live"),
    ("shadow", "rejected"),
    ("live", "retired"),
    ("retired", "live"),
}
PATHS = {
    "candidate": [],
    "rejected": ["rejected"],
    "shadow": ["shadow"],
    "live": ["live"],
    "retired": ["live", "retired"],
}


@pytest.mark.parametrize("before", [status.value for status in ModelStatus])
@pytest.mark.parametrize("after", [status.value for status in ModelStatus])
def test_only_these_transitions_are_allowed(connection, before, after):
    version = insert(connection)
    for status in PATHS[before]:
        version = make(connection, version, ModelStatus(status))
    if (before, after) in ALLOWED:
        later = NOW + timedelta(hours=1)
        decided = make(connection, version, ModelStatus(after), later)
        assert decided.status == after
        assert (decided.decided_by, decided.decided_at) == ("ana", later)
        assert decided.reason == "because"
        assert decided.shadow_share == (0.25 if after == "shadow" else None)
        return
    with pytest.raises(InvalidState, match=f"als/1 is {before} and can't become"):
        make(connection, version, ModelStatus(after))
    assert get_version(connection, "als", 1) == version


@pytest.mark.parametrize("share", [None, 0, -0.1, 1.01, float("nan"), "1", True])
def test_a_shadow_needs_a_share(connection, share):
    version = insert(connection)
    with pytest.raises(InvalidRequest, match="above 0 and at most 1"):
        make(connection, version, ModelStatus.SHADOW, share=share)
    assert get_version(connection, "als", 1) == version


def test_only_a_shadow_has_a_share(connection):
    with pytest.raises(InvalidRequest, match="als/1 is to become live"):
        make(connection, insert(connection), ModelStatus.LIVE, share=0.5)


def test_a_shadow_keeps_its_rule_and_serving_is_told(connection):
    rule = ShadowRule(answers=500, overlap=0.3, errors=0.01, milliseconds=5.0)
    version = insert(connection)
    make(connection, version, ModelStatus.SHADOW, share=0.2, rule=rule)
    (shadow,) = load_configuration(connection, now=NOW).shadows
    assert (shadow.version_id, shadow.share) == (version.id, 0.2)
    assert shadow.model == LiveModel(
        name="als", version=1, artifact="models/als/1", sha256="a" * 64, **DATA
    )
    make(connection, version, ModelStatus.LIVE)
    assert load_configuration(connection, now=NOW).shadows == ()
    decided = get_version(connection, "als", 1)
    assert (decided.shadow_share, decided.shadow_rule) == (None, rule)
    assert list_audit(connection, "model/als")[0].after == {
        "version": 1,
        "status": "shadow",
        "live": None,
        "share": 0.2,
        "rule": rule.document(),
    }


def by_hand(connection, version, change):
    question = text(f"UPDATE model_version SET {change} WHERE id = :id")
    with connection.begin_nested():
        connection.execute(question, {"id": version.id})


@pytest.mark.parametrize("before", [status.value for status in ModelStatus])
def test_the_database_allows_no_other_transition_to_anybody(connection, before):
    version = insert(connection)
    for status in PATHS[before]:
        version = make(connection, version, ModelStatus(status))
    for after in ModelStatus:
        if after != before and (before, after) not in ALLOWED:
            with pytest.raises(IntegrityError, match=f"is {before} and can't become"):
                by_hand(connection, version, f"status = '{after}'")
    with pytest.raises(IntegrityError, match="what it is never changes"):
        by_hand(connection, version, "metrics = '{}'")


def test_a_version_begins_as_a_candidate_also_by_hand(connection):
    version = insert(connection)
    columns = (
        "name, recommender, parameters, metrics, checklist, data_from, data_to,"
        " data_digest, code_version, artifact, sha256, created_at"
    )
    copy = text(
        f"INSERT INTO model_version (version, status, {columns})"
        f" SELECT 2, 'live', {columns} FROM model_version WHERE id = :id"
    )
    with pytest.raises(IntegrityError, match="it must begin as candidate"):
        connection.execute(copy, {"id": version.id})


@pytest.mark.parametrize(
    "changes", [{"checklist": [CHECK, {**CHECK, "passed": False}]}, {"sha256": ""}]
)
@pytest.mark.parametrize("status", [ModelStatus.LIVE, ModelStatus.SHADOW])
def test_what_failed_or_has_no_lists_never_serves(connection, changes, status):
    version = insert(connection, **changes)
    with pytest.raises(IntegrityError, match="ck_model_version_passed"):
        by_hand(connection, version, f"status = '{status}'")


def test_lineage_is_of_earlier_versions_of_the_model(connection):
    assert insert(connection).parent is None
    child = insert(connection, parent=1, data_profile={"units": 3})
    assert (child.parent, child.data_profile) == (1, {"units": 3})
    assert get_version(connection, "als", 2) == child
    for name, parent in (("als", 3), ("knn", 1)):
        with pytest.raises(IntegrityError), connection.begin_nested():
            insert(connection, name, parent=parent)


def test_a_live_version_retires_its_predecessor(connection):
    first, second, other = (insert(connection, n) for n in ("als", "als", "knn"))
    for version in (first, other):
        make(connection, version, ModelStatus.LIVE)
    set_live(connection, second.id, decided_by="bea", reason="better", now=NOW)
    assert live_models(connection) == {
        "als": LiveModel(
            name="als", version=2, artifact="models/als/1", sha256="a" * 64, **DATA
        ),
        "knn": LiveModel(
            name="knn", version=1, artifact="models/knn/1", sha256="a" * 64, **DATA
        ),
    }
    assert load_configuration(connection, now=NOW).models == live_models(connection)
    retired = get_version(connection, "als", 1)
    assert retired.status is ModelStatus.RETIRED
    assert retired.reason == "replaced by als/2"
    assert retired.decided_by == "bea"


def test_every_decision_leaves_an_audit_row(connection):
    first, second = insert(connection), insert(connection)
    make(connection, first, ModelStatus.LIVE)
    make(connection, second, ModelStatus.SHADOW)
    make(connection, second, ModelStatus.LIVE)
    make(connection, second, ModelStatus.RETIRED)
    rows = list_audit(connection, "model/als")
    assert [row.action for row in rows] == [
        "set_live",
        "set_shadow",
        "set_live",
        "set_retired",
    ]
    assert {(row.actor, row.reason) for row in rows} == {("ana", "because")}
    assert rows[2].before == {
        "version": 2,
        "status": "shadow",
        "live": 1,
        "share": 0.25,
        "rule": None,
    }
    assert rows[2].after == {"version": 2, "status": "live", "live": 2}
    assert rows[3].after == {"version": 2, "status": "retired", "live": None}


def test_serving_is_told_at_commit_when_live_version_or_shadow_changes(
    engine, database_url
):
    listener = ChangeListener(database_url)
    try:
        with transaction(engine) as connection:
            version = insert(connection)
        assert not listener.wait(0.2)
        with transaction(engine) as connection:
            make(connection, version, ModelStatus.SHADOW)
            assert not listener.wait(0.2)
        assert listener.wait(5)
        with transaction(engine) as connection:
            make(connection, version, ModelStatus.LIVE)
        assert listener.wait(5)
        with transaction(engine) as connection:
            make(connection, version, ModelStatus.RETIRED)
        assert listener.wait(5)
    finally:
        listener.close()


def test_a_switch_is_whole_or_not_at_all(engine):
    with transaction(engine) as connection:
        first, second = insert(connection), insert(connection)
        make(connection, first, ModelStatus.LIVE)

    def switch_and_fail():
        with transaction(engine) as connection:
            make(connection, second, ModelStatus.LIVE)
            assert live_models(connection)["als"].version == 2
            raise RuntimeError

    with pytest.raises(RuntimeError):
        switch_and_fail()
    with transaction(engine) as connection:
        assert live_models(connection)["als"].version == 1
        assert len(list_audit(connection, "model/als")) == 1


def test_two_live_versions_are_impossible_also_without_our_locks(engine):
    with transaction(engine) as connection:
        first, second = insert(connection), insert(connection)
    by_hand = text("UPDATE model_version SET status = 'live' WHERE id = :id")
    with (
        engine.connect() as stranger,
        ThreadPoolExecutor(1) as threads,
    ):
        stranger.execute(by_hand, {"id": first.id})

        def ours():
            with transaction(engine) as connection:
                make(connection, second, ModelStatus.LIVE)

        waiting = threads.submit(ours)
        until_blocked(engine)
        stranger.commit()
        with pytest.raises(Conflict, match="became live meanwhile"):
            waiting.result(10)
    with transaction(engine) as connection:
        assert live_models(connection)["als"].version == 1
        assert get_version(connection, "als", 2).status is ModelStatus.CANDIDATE
        assert list_audit(connection, "model/als") == []


def until_blocked(engine):
    question = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    tick = threading.Event()
    for _ in range(500):
        with transaction(engine) as connection:
            if connection.scalar(question):
                return
        tick.wait(0.02)
    pytest.fail("nobody waits for a lock")


def test_concurrent_switches_leave_one_live(engine):
    with transaction(engine) as connection:
        versions = [insert(connection) for _ in range(8)]

    def one(version):
        with transaction(engine) as connection:
            make(connection, version, ModelStatus.LIVE)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(one, versions))
    with transaction(engine) as connection:
        statuses = [v.status for v in list_versions(connection, "als")]
        assert sorted(statuses) == ["live"] + ["retired"] * 7
        assert len(list_audit(connection, "model/als")) == 8


def test_what_is_not_there_is_named(connection):
    insert(connection)
    insert(connection)
    with pytest.raises(NotFound, match="model 'als' has no version 3; versions: 2, 1"):
        get_version(connection, "als", 3)
    with pytest.raises(NotFound, match="model 'svd' does not exist; models: als"):
        get_version(connection, "svd", 1)
    with pytest.raises(NotFound, match="id 99 does not exist"):
        decide(connection, 99, ModelStatus.LIVE, decided_by="ana", reason="-", now=NOW)


def test_no_models_is_no_error(connection):
    assert list_versions(connection) == []
    with pytest.raises(NotFound, match="models: none yet"):
        list_versions(connection, "als")
