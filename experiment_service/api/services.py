"""What the API runs on: opened when a process starts, closed when it ends."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine

from experiment_service.api.writing import WriterReport
from experiment_service.config import Settings
from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.errors import Unavailable
from experiment_service.journal import Journal
from experiment_service.serving.keeper import SnapshotKeeper
from experiment_service.serving.shadow import ShadowRunner
from experiment_service.serving.sticky import StickyStore
from experiment_service.storage.database import (
    check_migrated,
    create_engine,
    running_database,
    transaction,
)

log = logging.getLogger(__name__)

#: The folder of the journals in the data directory.
JOURNALS = "journal"


def clock() -> datetime:
    """Return the present instant; the only clock of the API."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts that requests are answered with."""

    engine: Engine
    journal: Journal
    writer: WriterReport
    keeper: SnapshotKeeper
    sticky: StickyStore
    shadows: ShadowRunner
    pseudonyms: Pseudonyms
    data_dir: Path


@contextmanager
def open_services(settings: Settings) -> Iterator[Services]:
    """Open all parts, and close them in reverse.

    Raises
    ------
    Unavailable
        When there is neither a database nor a copy of its configuration, or the schema
        is not up to date.
    """
    with ExitStack() as stack:
        data_dir = settings.data_dir
        data_dir.mkdir(parents=True, exist_ok=True)
        url = stack.enter_context(running_database(settings.database_url, data_dir))
        engine = create_engine(url, name="api")
        stack.callback(engine.dispose)
        if _answers(engine):
            check_migrated(engine)
        sticky = StickyStore(data_dir / "sticky.sqlite")
        stack.callback(sticky.close)
        keeper = SnapshotKeeper(
            url,
            engine,
            data_dir,
            poll_seconds=settings.snapshot_poll_seconds,
            sticky=sticky,
            clock=clock,
        )
        keeper.start()
        stack.callback(keeper.stop)
        journal = Journal.open(
            data_dir / JOURNALS, max_bytes=settings.journal_max_bytes, shared=True
        )
        stack.callback(journal.close)
        shadows = ShadowRunner(engine, clock=clock)
        shadows.start()
        stack.callback(shadows.stop)
        yield Services(
            engine=engine,
            journal=journal,
            writer=WriterReport(data_dir / JOURNALS),
            keeper=keeper,
            sticky=sticky,
            shadows=shadows,
            pseudonyms=Pseudonyms(settings.unit_key),
            data_dir=data_dir,
        )


def _answers(engine: Engine) -> bool:
    try:
        with transaction(engine):
            return True
    except Unavailable as error:
        log.warning("starting without the database reason=%s", error.message)
        return False
