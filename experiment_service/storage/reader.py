"""A database role that can only read, for the dashboard and for reports."""

import secrets

from psycopg import sql
from sqlalchemy import Engine

from experiment_service.domain.experiment import check_key
from experiment_service.errors import Conflict
from experiment_service.storage.database import transaction

_SCHEMAS = ("public", "procrastinate")


def create_reader(engine: Engine, role: str) -> str:
    """Make a role that may read every table, now and later; return its URL.

    Its password is new and shown by the URL only.

    Raises
    ------
    InvalidRequest
        When the name is not small letters, digits, - and _.
    Conflict
        When the role exists.
    """
    check_key("role", role)
    password = secrets.token_urlsafe(24)
    name = sql.Identifier(role)
    statements = [
        sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(password)),
        sql.SQL("ALTER ROLE {} SET default_transaction_read_only = on").format(name),
    ]
    for schema in map(sql.Identifier, _SCHEMAS):
        statements += [
            sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, name),
            sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}").format(
                schema, name
            ),
            # Partitions and tables to come, as the role that makes them makes these.
            sql.SQL(
                "ALTER DEFAULT PRIVILEGES IN SCHEMA {} GRANT SELECT ON TABLES TO {}"
            ).format(schema, name),
        ]
    with transaction(engine) as connection:
        driver = connection.connection.driver_connection
        if driver is None:
            raise AssertionError("a connection in use has a driver")
        found = driver.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])
        if found.fetchone():
            raise Conflict(
                f"role {role!r} exists already; drop it (DROP OWNED BY, DROP ROLE) or "
                "choose another name"
            )
        for statement in statements:
            driver.execute(statement)
    url = engine.url.set(drivername="postgresql", username=role, password=password)
    return url.render_as_string(hide_password=False)
