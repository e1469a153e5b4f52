"""Migrations from empty to head and back, and refusals in words."""

import os
import subprocess
import sys

import alembic.command
import pytest
from sqlalchemy import inspect, text

from experiment_service.errors import InvalidRequest, Unavailable
from experiment_service.storage import database


def tables(url):
    engine = database.create_engine(url)
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def test_from_empty_to_head_down_and_up_again(empty_database_url):
    database.migrate(empty_database_url)
    at_head = tables(empty_database_url)
    assert {"experiment", "epoch", "exposure", "interaction", "audit"} <= at_head
    alembic.command.check(database._alembic_config(empty_database_url))
    database.migrate(empty_database_url, "base")
    assert tables(empty_database_url) == {"alembic_version"}
    database.migrate(empty_database_url)
    assert tables(empty_database_url) == at_head


def test_many_processes_may_migrate_at_once(empty_database_url, tmp_path):
    command = [sys.executable, "-m", "experiment_service", "migrate"]
    environment = {
        **os.environ,
        "DATABASE_URL": empty_database_url,
        "EXPERIMENT_SERVICE_DATA_DIR": str(tmp_path),
    }
    started = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert "experiment" in tables(empty_database_url)


def test_an_unmigrated_schema_is_told_with_its_remedy(empty_database_url):
    engine = database.create_engine(empty_database_url)
    with pytest.raises(Unavailable, match="run `experiment-service migrate`"):
        database.check_migrated(engine)
    engine.dispose()


@pytest.mark.parametrize(
    ("state", "times"),
    [("paused", "NULL, NULL"), ("running", "NULL, NULL"), ("draft", "now(), NULL")],
)
def test_the_database_refuses_a_state_that_can_not_be(connection, state, times):
    connection.execute(text("INSERT INTO layer VALUES ('l', 's')"))
    connection.execute(text("INSERT INTO placement VALUES ('p', 'als', '{}')"))
    statement = text(
        "INSERT INTO experiment (key, placement, layer, state, declaration,"
        " traffic_salt, variant_salt, created_at, started_at, stopped_at)"
        f" VALUES ('e', 'p', 'l', :state, '{{}}', 't', 'v', now(), {times})"
    )
    with (
        pytest.raises(Exception, match="ck_experiment_state"),
        connection.begin_nested(),
    ):
        connection.execute(statement, {"state": state})


@pytest.mark.parametrize(
    ("url", "words"),
    [("mysql://host/db", "only postgresql"), ("no url", "can't be read")],
)
def test_a_url_of_something_else_is_refused(url, words, tmp_path):
    with (
        pytest.raises(InvalidRequest, match=words),
        database.running_database(url, tmp_path),
    ):
        pass
