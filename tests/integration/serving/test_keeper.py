"""The keeper: told of a change long before it asks, and never without an answer."""

import logging
import time
from datetime import timedelta

import pytest
from sqlalchemy import text

from experiment_service import experimentation
from experiment_service.errors import Unavailable
from experiment_service.serving.keeper import SnapshotKeeper
from experiment_service.serving.snapshot import read_copy
from experiment_service.serving.sticky import StickyStore
from experiment_service.storage import database
from tests.integration.serving.conftest import (
    bandit,
    declaration,
    make_live,
    now,
    own_postgres,
    publish,
    run_experiment,
)

DEAD_URL = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"


@pytest.fixture
def sticky(data_dir):
    store = StickyStore(data_dir / "sticky.sqlite")
    yield store
    store.close()


@pytest.fixture
def start_keeper(data_dir, sticky):
    """Start keepers; they and their engines end with the test."""
    started = []

    def start(url, *, poll_seconds=30.0, clock=now):
        engine = database.create_engine(url, name="test keeper")
        keeper = SnapshotKeeper(
            url, engine, data_dir, poll_seconds=poll_seconds, sticky=sticky, clock=clock
        )
        started.append((keeper, engine))
        keeper.start()
        return keeper

    yield start
    for keeper, engine in started:
        keeper.stop()
        engine.dispose()


def wait_for(condition, seconds=40.0):
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds
        time.sleep(0.005)


def weights(keeper, key):
    return dict(keeper.snapshot.experiments[key].current.weights)


def set_weights(engine, key, new):
    with database.transaction(engine) as connection:
        experimentation.set_weights(
            connection, key, {"old": 1 - new, "new": new}, actor="test", now=now()
        )


def test_change_is_seen_by_notification_long_before_the_poll(
    shop, start_keeper, database_url
):
    run_experiment(shop, declaration("t"))
    keeper = start_keeper(database_url)
    wait_for(lambda: listens(shop))
    for new in (0.6, 0.7, 0.8):
        set_weights(shop, "t", new)
        wait_for(lambda new=new: weights(keeper, "t")["new"] == new, seconds=15)


def listens(engine):
    with engine.connect() as connection:
        question = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'experiment-service listener'"
            " AND query LIKE 'LISTEN%'"
        )
        return connection.scalar(question) == 1


def test_change_whose_notification_was_lost_is_seen_by_the_poll(
    shop, start_keeper, database_url
):
    keeper = start_keeper(database_url, poll_seconds=0.5)
    with database.transaction(shop) as connection:
        connection.execute(
            text("INSERT INTO placement VALUES ('silent', 'als', '{}'::jsonb)")
        )
    wait_for(lambda: "silent" in keeper.configuration.placements)


def test_epochs_stay_until_a_unit_comes_back(shop, start_keeper, database_url):
    run_experiment(shop, declaration("t"))
    set_weights(shop, "t", 0.9)
    served = start_keeper(database_url).snapshot.experiments["t"]
    assert sorted(served.epochs) == [0, 1]
    assert served.current.number == 1


def test_copy_on_disk_follows_each_change(shop, start_keeper, database_url, data_dir):
    keeper = start_keeper(database_url)
    assert read_copy(data_dir).running == {}
    run_experiment(shop, declaration("t"))
    wait_for(lambda: "t" in keeper.configuration.running)
    wait_for(lambda: "t" in read_copy(data_dir).running)


def test_start_from_the_copy_without_a_database(
    shop, start_keeper, database_url, caplog
):
    run_experiment(shop, declaration("t"))
    first = start_keeper(database_url)
    first.stop()
    with caplog.at_level(logging.WARNING):
        keeper = start_keeper(DEAD_URL)
    assert keeper.snapshot.experiments["t"].current.number == 0
    assert keeper.snapshot.lists["als"].version == 1
    assert "serving from the copy on disk" in caplog.text
    assert keeper.problem.count("\n") == 0
    assert timedelta(0) < keeper.age() < timedelta(minutes=1)


def test_start_without_database_and_copy_says_what_is_missing(start_keeper, data_dir):
    with pytest.raises(Unavailable) as failure:
        start_keeper(DEAD_URL)
    assert "there is nothing to serve from: the database does not answer" in str(
        failure.value
    )
    assert str(data_dir) in str(failure.value)


def test_new_version_is_served_and_a_damaged_one_is_told(
    shop, start_keeper, database_url, data_dir
):
    keeper = start_keeper(database_url, poll_seconds=0.5)
    make_live(shop, "als", *publish(data_dir, "als", 2))
    wait_for(lambda: keeper.snapshot.lists["als"].version == 2)
    artifact, digest = publish(data_dir, "als", 3)
    lists = data_dir / artifact / "lists.npy"
    good = lists.read_bytes()
    lists.write_bytes(good[:-1])
    make_live(shop, "als", artifact, digest)
    wait_for(lambda: keeper.snapshot.problems)
    assert keeper.snapshot.lists["als"].version == 2
    # Repaired on disk: the next poll takes it, without any change in the database.
    lists.write_bytes(good)
    wait_for(lambda: keeper.snapshot.lists["als"].version == 3)
    assert keeper.snapshot.problems == {}


def test_lost_database_is_asked_again_until_it_is_back(
    tmp_path, start_keeper, data_dir
):
    home = tmp_path / "postgres-home"
    with own_postgres(home) as url:
        engine = database.create_engine(url, name="test")
        for name in ("als", "popularity"):
            make_live(engine, name, *publish(data_dir, name, 1))
        run_experiment(engine, declaration("t"))
        keeper = start_keeper(url, poll_seconds=0.5)
        engine.dispose()
    wait_for(lambda: keeper.problem is not None)
    assert keeper.snapshot.experiments["t"].current.number == 0
    with database.running_database(None, home) as again:
        assert again == url
        engine = database.create_engine(url, name="test")
        set_weights(engine, "t", 0.9)
        engine.dispose()
        wait_for(lambda: weights(keeper, "t")["new"] == 0.9)
        wait_for(lambda: keeper.problem is None)
        keeper.stop()


def test_sticky_exposures_of_other_machines_are_filled_in(
    shop, start_keeper, database_url, sticky
):
    experiment = run_experiment(shop, bandit("s", mode="sticky"))
    add_unit_exposure(shop, experiment.id, "far", epoch=4)
    start_keeper(database_url, poll_seconds=0.5)
    assert sticky.first_epoch(experiment.id, "far") == 4
    add_unit_exposure(shop, experiment.id, "later", epoch=6)
    add_unit_exposure(shop, experiment.id, "far", epoch=2)
    wait_for(lambda: sticky.first_epoch(experiment.id, "later") == 6)
    assert sticky.first_epoch(experiment.id, "far") == 2


@pytest.mark.parametrize("days", [-1, 1])
def test_sticky_exposures_are_filled_in_whatever_the_clock_says(
    shop, start_keeper, database_url, sticky, days
):
    experiment = run_experiment(shop, bandit("s", mode="sticky"))
    sticky.fill(experiment.id, [], until=now() + timedelta(days=days))
    start_keeper(
        database_url, poll_seconds=0.5, clock=lambda: now() + timedelta(days=days)
    )
    for unit in ("one", "two"):
        add_unit_exposure(shop, experiment.id, unit, epoch=3)
        wait_for(lambda unit=unit: sticky.first_epoch(experiment.id, unit) == 3)


def add_unit_exposure(engine, experiment_id, unit_id, *, epoch):
    with database.transaction(engine) as connection:
        connection.execute(
            text(
                "INSERT INTO unit_exposure (experiment_id, unit_id, epoch, variant,"
                " propensity, exposures, fallback_exposures, context, first_at,"
                " last_at)"
                " VALUES (:experiment, :unit, :epoch, 'old', 0.5, 1, 0, '{}', now(),"
                " now())"
            ),
            {"experiment": experiment_id, "unit": unit_id, "epoch": epoch},
        )
