"""Alembic environment: one migration at a time, with bounded lock waits."""

from alembic import context
from sqlalchemy import create_engine, pool, text

from experiment_service.storage.schema import metadata

_ADVISORY_LOCK = 7_206_114_015


def include_name(name, type_, parent_names):  # noqa: ANN001, ANN201, ARG001
    """Leave our partitions out of `alembic check`; the tables stand for them."""
    if type_ != "table" or name is None:
        return True
    return not name.startswith(("exposure_", "interaction_"))


def run_migrations() -> None:
    engine = create_engine(context.config.attributes["url"], poolclass=pool.NullPool)
    with engine.connect() as connection:
        connection.execute(text("SET lock_timeout = '10s'"))
        connection.execute(text("SET timezone = 'UTC'"))
        # Session lock: two deploys wait for each other, through every transaction.
        connection.execute(text("SET statement_timeout = '120s'"))
        connection.execute(
            text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK}
        )
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=metadata,
            compare_server_default=True,
            transaction_per_migration=True,
            include_name=include_name,
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run_migrations()
