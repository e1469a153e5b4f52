"""The database as a place: which server, engine, transactions, locks, migrations.

Knows no table. `running_database` gives a URL (an embedded PostgreSQL when none is
set), `transaction` turns the driver's errors into ours.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psycopg
import sqlalchemy
from psycopg.conninfo import make_conninfo
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError

from experiment_service.errors import Conflict, InvalidRequest, Unavailable
from experiment_service.lazy import LazyModule
from experiment_service.storage.embedded import embedded_server

if TYPE_CHECKING:
    from alembic import command, config
else:
    # Only a migration needs it, and it takes a third of a second to load.
    command = LazyModule("alembic.command")
    config = LazyModule("alembic.config")

_Item = TypeVar("_Item")

CHANNEL = "experiment_service"

#: Whoever adds or erases events, or adds partitions, holds this advisory lock.
EVENTS_LOCK = "events"

MINIMUM_SERVER_VERSION = 14

_MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
_STATEMENT_TIMEOUT_MS = 60_000
_LOCK_TIMEOUT_MS = 10_000

#: Options of libpq that give up a connection whose other end is gone without a word,
#: such as a machine that lost its power, after some 25 seconds; by default it takes
#: hours. A server that is only slow keeps its connections.
PATIENCE = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}


@contextmanager
def running_database(database_url: str | None, data_dir: Path) -> Iterator[str]:
    """Yield the URL of a running PostgreSQL.

    Without a `database_url` an embedded server runs under ``data_dir/postgres``. Any
    number of processes share it; the last one to leave stops it, and a process that
    was killed is not waited for.

    Raises
    ------
    InvalidRequest
        When the URL is not one of PostgreSQL.
    Unavailable
        When the embedded server can't start; the message says why.
    """
    if database_url is not None:
        yield normalise_url(database_url).render_as_string(hide_password=False)
        return
    with embedded_server(data_dir) as uri:
        url = make_url(uri).set(drivername="postgresql+psycopg")
        yield url.render_as_string(hide_password=False)


def normalise_url(database_url: str) -> URL:
    """Return a SQLAlchemy URL for psycopg 3.

    Raises
    ------
    InvalidRequest
        When it can't be read or names another database.
    """
    try:
        url = make_url(database_url)
    except ArgumentError:
        raise InvalidRequest(
            "DATABASE_URL can't be read; write postgresql://user:password@host/database"
        ) from None
    if url.drivername not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise InvalidRequest(
            f"DATABASE_URL names {url.drivername!r}; only postgresql is supported"
        )
    return url.set(drivername="postgresql+psycopg")


def create_engine(
    url: str, *, pool_size: int = 5, name: str = "service", read_only: bool = False
) -> Engine:
    """Return an engine with UTC sessions and bounded statements and lock waits.

    Parameters
    ----------
    pool_size : int
        Connections kept; none is opened beyond them.
    name : str
        Shown as ``application_name`` in ``pg_stat_activity``.
    read_only : bool
        Let the server refuse to write, and plan each query for its own parameters: an
        experiment may have a million units or none.
    """
    options = (
        f"-c timezone=UTC -c statement_timeout={_STATEMENT_TIMEOUT_MS} "
        f"-c lock_timeout={_LOCK_TIMEOUT_MS} "
        f"-c default_transaction_read_only={'on' if read_only else 'off'} "
        f"-c plan_cache_mode={'force_custom_plan' if read_only else 'auto'}"
    )
    return sqlalchemy.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=10,
        pool_pre_ping=True,
        connect_args={
            "options": options,
            "application_name": f"experiment-service {name}",
            **PATIENCE,
        },
    )


@contextmanager
def reading_engine(
    database_url: str | None, data_dir: Path, *, name: str
) -> Iterator[Engine]:
    """Open a database for programs that only read; a transaction is one snapshot.

    Raises
    ------
    InvalidRequest
        When the URL is not one of PostgreSQL.
    Unavailable
        When the server does not answer or start, or its schema is not up to date.
    """
    with running_database(database_url, data_dir) as url:
        engine = create_engine(url, pool_size=4, name=name, read_only=True)
        try:
            check_migrated(engine)
            yield engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        finally:
            engine.dispose()


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that commits at the end, for entry points.

    Raises
    ------
    Unavailable
        When the server does not answer, or a lock or statement takes too long.
    """
    with _known_failures(), engine.begin() as connection:
        yield connection


def each_alone(
    engine: Engine,
    items: Mapping[str, _Item],
    act: Callable[[Connection, str, _Item], object],
    *,
    failed: Callable[[str], object],
) -> None:
    """Act on each item in a transaction of its own: one must not hold up the others.

    Parameters
    ----------
    items : mapping of str to anything
        By their names.
    act : callable
        Takes the connection, a name and its item.
    failed : callable
        Told the name of an item while its failure is handled.

    Raises
    ------
    Exception
        The last failure, after all others were tried.
    """
    failure: Exception | None = None
    for name, item in items.items():
        try:
            with transaction(engine) as connection:
                act(connection, name, item)
        except Exception as error:  # whatever it is, the others have their turn
            failed(name)
            failure = error
    if failure is not None:
        raise failure


@contextmanager
def held_alone(engine: Engine, name: str) -> Iterator[None]:
    """Hold the lock of that name for as long as it takes, in no transaction.

    It ends with its connection, so whoever dies holds nothing.

    Raises
    ------
    Conflict
        When another one holds it; nobody waits.
    Unavailable
        When the server does not answer.
    """
    with ExitStack() as stack:
        with _known_failures():
            connection = stack.enter_context(engine.connect())
            # Its own from here on, so that closing it frees the lock.
            connection.detach()
            is_ours = connection.scalar(
                text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))"),
                {"name": f"experiment_service:{name}"},
            )
            connection.commit()
        if not is_ours:
            raise Conflict(f"another {name} is running; wait until it has ended")
        try:
            yield
        finally:
            # The server sees the end of a connection a moment after we do.
            with suppress(DBAPIError):
                connection.execute(text("SELECT pg_advisory_unlock_all()"))


@contextmanager
def _known_failures() -> Iterator[None]:
    """Turn what a retry may help into an error of the service."""
    try:
        yield
    except sqlalchemy.exc.TimeoutError as error:
        raise Unavailable("all database connections are in use; try again") from error
    except DBAPIError as error:
        if is_unavailable(error):
            raise Unavailable(
                f"the database does not answer ({_first_line(error)}); start it or "
                "check DATABASE_URL"
            ) from error
        raise


def is_unavailable(error: DBAPIError) -> bool:
    """Whether a retry may help: no connection, a timeout, a deadlock, a shutdown."""
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    return isinstance(error, OperationalError)


def violated_constraint(error: DBAPIError) -> str | None:
    """Return the name of the constraint that the server says was violated."""
    diagnostics = getattr(error.orig, "diag", None)
    name = getattr(diagnostics, "constraint_name", None)
    return None if name is None else str(name)


def _first_line(error: DBAPIError) -> str:
    lines = str(error.orig).strip().splitlines()
    return lines[0] if lines else type(error.orig).__name__


def lock_for_transaction(connection: Connection, name: str) -> None:
    """Wait for the advisory lock of that name; the transaction's end frees it."""
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"),
        {"name": f"experiment_service:{name}"},
    )


def allow_time(connection: Connection) -> None:
    """Let statements take as long as they need until the transaction ends."""
    connection.execute(text("SET LOCAL statement_timeout = 0"))


def present_instant(connection: Connection) -> datetime:
    """Return the present instant by the database's clock, which its rows carry."""
    instant: datetime = connection.execute(select(func.now())).scalar_one()
    return instant


def notify_change(connection: Connection) -> None:
    """Tell every serving process, at commit, to read the configuration again."""
    connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": CHANNEL})


def libpq_url(url: str) -> str:
    """Return the URL in the form that libpq and psycopg read."""
    return (
        make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    )


class ChangeListener:
    """A connection that waits for `notify_change`; one per serving process."""

    def __init__(self, url: str) -> None:
        conninfo = make_conninfo(
            libpq_url(url), application_name="experiment-service listener", **PATIENCE
        )
        self._connection = psycopg.connect(conninfo, autocommit=True)
        self._connection.execute(f"LISTEN {CHANNEL}")

    def wait(self, timeout: float) -> bool:
        """Return whether a change was told within `timeout` seconds.

        Raises
        ------
        psycopg.OperationalError
            When the connection is lost; make a new listener.
        """
        return any(
            True for _ in self._connection.notifies(timeout=timeout, stop_after=1)
        )

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()


def _alembic_config(url: str) -> "config.Config":
    settings = config.Config()
    settings.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    settings.attributes["url"] = url
    return settings


def migrate(url: str, revision: str = "head") -> None:
    """Bring the schema to a revision, up or down; safe to call from many processes.

    Raises
    ------
    Unavailable
        When the server does not answer.
    InvalidRequest
        When the server is too old.
    """
    engine = create_engine(url, pool_size=1, name="migrate")
    try:
        with transaction(engine) as connection:
            version = int(connection.scalar(text("SHOW server_version_num")) or 0)
        if version < MINIMUM_SERVER_VERSION * 10_000:
            raise InvalidRequest(
                f"the server is PostgreSQL {version // 10_000}; "
                f"{MINIMUM_SERVER_VERSION} or newer is needed"
            )
        if revision == "base" or revision.startswith("-"):
            command.downgrade(_alembic_config(url), revision)
        else:
            command.upgrade(_alembic_config(url), revision)
    finally:
        engine.dispose()


def head_revision() -> str:
    """Return the revision that this program needs; migrations are named in order."""
    names = (path.name for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))
    return max(names).partition("_")[0]


def check_migrated(engine: Engine) -> None:
    """Refuse to work on a schema of another revision.

    Raises
    ------
    Unavailable
        Says which command brings the schema up to date.
    """
    with transaction(engine) as connection:
        found = connection.scalar(text("SELECT to_regclass('alembic_version')"))
        current = None
        if found is not None:
            current = connection.scalar(text("SELECT version_num FROM alembic_version"))
    head = head_revision()
    if current != head:
        raise Unavailable(
            f"the database schema is at revision {current or 'none'}, this program "
            f"needs {head}; run `experiment-service migrate`"
        )
