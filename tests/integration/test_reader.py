"""The reading role and the dashboard's engine: they read everything and write nothing."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from experiment_service.cli import main
from experiment_service.reporting import Reports
from experiment_service.storage import database
from experiment_service.storage.partitions import ensure_partitions
from experiment_service.storage.reader import create_reader

WRITES = [
    "INSERT INTO layer VALUES ('x', 'y')",
    "UPDATE experiment SET state = 'stopped'",
    "DELETE FROM exposure",
    "TRUNCATE interaction",
    "CREATE TABLE mine (a int)",
    "DROP TABLE audit",
    "UPDATE api_key SET revoked_at = NULL",
]


@pytest.fixture
def reader_url(engine):
    role = f"reader_{engine.url.database}"
    yield create_reader(engine, role)
    with engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {role}"))


@pytest.mark.parametrize("statement", WRITES)
def test_the_dashboards_engine_can_not_write(database_url, tmp_path, statement):
    with (
        database.reading_engine(database_url, tmp_path, name="test") as engine,
        engine.connect() as connection,
        pytest.raises(DBAPIError, match="read-only transaction"),
    ):
        connection.execute(text(statement))


@pytest.mark.parametrize("statement", WRITES)
def test_the_role_can_not_write_even_if_it_asks_to(reader_url, statement):
    engine = database.create_engine(
        reader_url.replace("postgresql:", "postgresql+psycopg:")
    )
    with engine.connect() as connection:
        connection.execute(text("SET TRANSACTION READ WRITE"))
        with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
            connection.execute(text(statement))
    engine.dispose()


def test_the_role_reads_reports_and_tables_to_come(engine, reader_url, tmp_path):
    with database.transaction(engine) as connection:
        ensure_partitions(connection, now=datetime.now(UTC))
    reports = Reports(reader_url, tmp_path)
    try:
        assert reports.experiments() == ()
        assert reports.operations(as_of=datetime.now(UTC)) is not None
        with reports._engine.connect() as connection:
            partition = f"exposure_{datetime.now(UTC):%Y_%m}"
            assert connection.scalar(text(f"SELECT count(*) FROM {partition}")) == 0
    finally:
        reports.close()


def test_the_command_makes_a_role_once(monkeypatch, capsys, tmp_path, engine):
    role = f"cli_{engine.url.database}"
    url = engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("EXPERIMENT_SERVICE_DATA_DIR", str(tmp_path))
    assert main(["create-reader", role]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed.startswith(f"postgresql://{role}:")
    monkeypatch.setenv("EXPERIMENT_SERVICE_READER_URL", printed)
    assert main(["list"]) == 0
    assert main(["create-reader", role]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["create-reader", 'x"; DROP TABLE audit; --']) == 2
    with engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {role}"))
