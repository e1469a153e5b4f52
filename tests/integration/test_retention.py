"""Retention: a month goes when that is safe, whole, and no number changes by it."""

import json
import os
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sqlalchemy import text

from experiment_service import erasure, retention
from experiment_service.cli import main
from experiment_service.config import Settings
from experiment_service.domain.configuration import (
    configuration_document,
    parse_configuration,
)
from experiment_service.errors import (
    Conflict,
    InvalidState,
    Unavailable,
)
from experiment_service.ingestion import Writer, accept_interactions, encode
from experiment_service.journal import Journal
from experiment_service.replay.export import export
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import transaction
from experiment_service.storage.events import rebuild_outcomes
from experiment_service.worker import retire_events
from tests.integration.test_events import (
    START,
    TABLES,
    Maker,
    ab,
    all_rows,
    bandit,
    default_rows,
    make,
    make_experiment,
    partition,
    random_events,
    store,
    table_rows,
)

__all__ = ["ab", "bandit", "make"]

DAYS = 400
# October and November 2026 are old enough, December is not.
LATER = datetime(2028, 1, 5, tzinfo=UTC)
# October is, November is not.
NEARLY = datetime(2027, 12, 31, tzinfo=UTC)
NOVEMBER = date(2026, 11, 1)


def retire(engine, archive_dir=None, *, days=DAYS, now=LATER):
    return [
        each.name
        for each in retention.retire_months(
            engine, days=days, archive_dir=archive_dir, actor="test", now=now
        )
    ]


def judge(engine, *, days=DAYS, now=LATER):
    with transaction(engine) as connection:
        found = retention.judge_months(connection, days=days, now=now)
        return {each.name: (each.goes, each.reason) for each in found}


def raw_rows(engine, table):
    with transaction(engine) as connection:
        return connection.execute(text(f"SELECT * FROM {table} ORDER BY id")).all()


def scalar(engine, question):
    with transaction(engine) as connection:
        return connection.scalar(text(question))


def counted(engine):
    """What reports are made of; `attribution` only serves to count."""
    return {
        table: table_rows(engine, table) for table in TABLES.keys() - {"attribution"}
    }


def archived(row):
    """A row as an archive has it: identifiers, amounts and attributes as texts."""
    written = {
        "id": str,
        "exposure_id": str,
        "value": "{:f}".format,
        "context": json.dumps,
    }
    return {
        name: written[name](value) if name in written and value is not None else value
        for name, value in row._mapping.items()
    }


def test_a_month_is_archived_and_dropped_and_no_number_changes(
    engine, ab, bandit, make, tmp_path
):
    shown, done = random_events(make, ab, bandit)
    tiny = Decimal("1E-40")
    done.append(make.interaction(unit_id="unit-1", value=tiny, category='a"\\\n'[:3]))
    partition(engine)
    store(engine, *shown, *done)
    before = counted(engine)
    raw = {table: raw_rows(engine, table) for table in ("exposure", "interaction")}
    directory = tmp_path / "archive"
    assert retire(engine, directory) == ["2026-10", "2026-11"]
    assert judge(engine)["2026-12"] == (False, "it is old enough on 2028-02-05")
    assert counted(engine) == before
    # Ids of a client's own making tell no time: what bears them stays.
    foreign = [row for row in raw["interaction"] if row.id.version == 8]
    assert raw_rows(engine, "exposure") == []
    assert raw_rows(engine, "interaction") == foreign
    assert len(foreign) > 20
    assert scalar(engine, "SELECT count(*) FROM attribution") < len(done)
    for table, rows in raw.items():
        files = sorted(directory.glob(f"{table}_2026_1?.parquet"))
        kept = [row for path in files for row in pq.read_table(path).to_pylist()]
        went = [row for row in rows if row not in foreign]
        assert kept == [archived(row) for row in went]
        assert [path.stat().st_mode & 0o077 for path in files] == [0, 0]
    assert len(list(directory.iterdir())) == 4
    assert directory.stat().st_mode & 0o077 == 0
    with transaction(engine) as connection:
        rows = connection.execute(text("SELECT * FROM retired_month ORDER BY month"))
        october, november = rows.all()
        (entry,) = storage.list_audit(connection, "events of 2026-11")
    assert november.month == NOVEMBER
    assert october.exposures + november.exposures == len(shown)
    assert november.experiment_ids == [ab, bandit]
    assert entry.after["archive"] == november.archive
    assert november.archive["exposure"]["rows"] == november.exposures


def test_later_events_count_and_those_of_a_retired_month_are_set_aside(
    engine, ab, make, tmp_path
):
    old = make.exposure(ab)
    known = make.interaction(old)
    store(engine, old, known)
    partition(engine)
    assert retire(engine) == ["2026-10", "2026-11"]
    at = LATER - timedelta(days=1)
    late = make.exposure(ab, unit_id="late", at=at, exposed_at=START)
    new = make.exposure(ab, unit_id="new", at=at)
    refused = [
        old,
        replace(known, occurred_at=at),
        late,
        make.interaction(unit_id="u", at=START, id=make.uuid7(at)),
    ]
    journal = Journal.open(tmp_path / "journal", max_bytes=1 << 30)
    with closing(journal):
        events = [new, *refused, make.interaction(new, at=at)]
        journal.append([encode(each) for each in events]).result()
        writer = Writer(journal, engine)
        writer.start()
        while journal.depth:
            journal.arrived.wait(0.01)
        writer.stop(10)
        assert journal.set_aside_count == len(refused)
    assert scalar(engine, "SELECT count(*) FROM exposure") == 1
    assert (
        scalar(engine, "SELECT sum(count) FROM unit_outcome WHERE unit_id = 'u'") == 1
    )
    assert scalar(engine, "SELECT count FROM unit_outcome WHERE unit_id = 'new'") == 1
    assert default_rows(engine) == {"exposure": 1, "interaction": 1}
    made = partition(engine, now=LATER)
    assert "exposure_2028_01" in made
    assert "exposure_2026_11" not in made


def test_the_door_refuses_an_id_of_a_retired_month_alone(engine, ab, make):
    store(engine, make.exposure(ab))
    partition(engine)
    retire(engine)
    with transaction(engine) as connection:
        configuration = storage.load_configuration(connection, now=LATER)
    document = json.loads(json.dumps(configuration_document(configuration)))
    oldest_id = parse_configuration(document).oldest_id
    ids = [make.uuid7(START), make.uuid7(datetime(2026, 12, 1, tzinfo=UTC)), "order-1"]
    documents = [{"id": str(each), "kind": "click", "unit_id": "u"} for each in ids]
    taken, refused = accept_interactions(documents, now=LATER, oldest_id=oldest_id)
    assert len(taken) == 2
    assert [(each.index, each.field) for each in refused] == [(0, "id")]
    assert "a UUIDv7 of a month whose events have been retired" in refused[0].reason


SOON = LATER - timedelta(days=20)


def test_a_month_stays_while_an_event_could_count_with_its_events(engine, ab, make):
    # An id of November with a later time: its exposure may still come, 30 days late and
    # 7 in a journal.
    store(engine, make.interaction(unit_id="v", occurred_at=SOON))
    partition(engine)
    assert retire(engine) == ["2026-10"]
    reason = "late events can count with its events until 2028-01-"
    assert judge(engine)["2026-11"] == (False, f"{reason}22")
    # A carousel fetched in November and shown long after: its window is 6 hours.
    evening = SOON + timedelta(hours=20)
    store(engine, make.exposure(ab, exposed_at=evening))
    verdicts = judge(engine)
    assert verdicts["2026-11"] == (False, f"{reason}23")
    assert verdicts["2026-12"] == (False, "2026-11 comes before it")
    assert retire(engine, now=datetime(2028, 1, 24, tzinfo=UTC)) == ["2026-11"]


DAMAGES = [
    "DELETE FROM unit_outcome WHERE unit_id = 'u'",
    "UPDATE unit_outcome SET count = count - 1 WHERE unit_id = 'u'",
    "UPDATE unit_exposure SET exposures = 1",
    "UPDATE unit_exposure SET first_at = last_at",
]


def test_a_month_whose_outcomes_do_not_hold_it_stays(engine, ab, make):
    exposure = make.exposure(ab)
    again = make.exposure(ab, at=START + timedelta(hours=1))
    clicks = [make.interaction(exposure), make.interaction(again, at=again.exposed_at)]
    store(engine, exposure, again, *clicks)
    partition(engine)
    assert retire(engine, now=NEARLY) == ["2026-10"]
    for damage in DAMAGES:
        with transaction(engine) as connection:
            connection.execute(text(damage))
        assert retire(engine) == []
        goes, reason = judge(engine)["2026-11"]
        told = "1 rows of outcomes hold less than its events say; run `experiment-serv"
        assert (goes, reason[: len(told)]) == (False, told)
        with transaction(engine) as connection:
            rebuild_outcomes(connection, ab)
    assert retire(engine) == ["2026-11"]


def test_what_needs_raw_events_says_that_they_are_gone(engine, ab, make, tmp_path):
    with transaction(engine) as connection:
        other = make_experiment(connection, "other")
        odd = make_experiment(connection, "odd")
    at = START + timedelta(days=40)
    shown = make.exposure(odd, at=at)
    # By an id of November: outcomes of December rest on that month too.
    click = make.interaction(shown, occurred_at=at)
    store(engine, make.exposure(ab), make.exposure(other, at=at), shown, click)
    partition(engine)
    retire(engine, tmp_path)
    for experiment_id in (None, ab, odd):
        before = all_rows(engine)
        with (
            pytest.raises(
                InvalidState, match=r"raw events of 2026-11.*exposure_2026_11"
            ),
            transaction(engine) as connection,
        ):
            rebuild_outcomes(connection, experiment_id)
        assert all_rows(engine) == before
    path = tmp_path / "rows.csv"
    with transaction(engine) as connection:
        rebuild_outcomes(connection, other)
        assert export(connection, "other", "exposures", path, cutoff=LATER) == 1
        with pytest.raises(
            InvalidState, match="have been retired, and this needs them"
        ):
            export(connection, "ab", "exposures", tmp_path / "none.csv", cutoff=LATER)
        assert not (tmp_path / "none.csv").exists()


def test_a_unit_erased_meanwhile_is_in_no_archive(
    engine, ab, make, tmp_path, monkeypatch
):
    store(engine, make.exposure(ab), make.exposure(ab, unit_id="gone"))
    partition(engine)
    retire(engine, now=NEARLY)
    lock = retention.lock_events

    def erase():
        with transaction(engine) as connection:
            return erasure.erase(connection, ["gone"], actor="test", now=LATER)

    def erase_first(connection):
        erase()
        lock(connection)

    with monkeypatch.context() as patch:
        patch.setattr(retention, "lock_events", erase_first)
        with pytest.raises(Conflict, match="came, or were erased, while"):
            retire(engine, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert scalar(engine, "SELECT count(*) FROM exposure") == 1
    assert retire(engine, tmp_path) == ["2026-11"]
    path = tmp_path / "exposure_2026_11.parquet"
    assert pq.read_table(path).column("unit_id").to_pylist() == ["u"]
    # Of archives that are written, erasure tells.
    assert erase().archives == [str(path)]


def spoil(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def test_no_row_is_dropped_before_its_archive_is_good(
    engine, ab, make, tmp_path, monkeypatch
):
    shown = [make.exposure(ab, unit_id=f"u{n}") for n in range(50)]
    store(engine, *shown, make.interaction(shown[0]))
    partition(engine)
    retire(engine, now=NEARLY)
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.raises(Unavailable, match="can't be written"):
        retire(engine, taken)
    directory = tmp_path / "archive"

    def lie(descriptor):
        spoil(Path(f"/proc/self/fd/{descriptor}").resolve())

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lie)
        with pytest.raises(Unavailable, match="can't be written"):
            retire(engine, directory)
    assert list(directory.iterdir()) == []
    assert scalar(engine, "SELECT count(*) FROM exposure") == 50
    # Lost after its files had their names, before the commit: the same files are taken.
    with monkeypatch.context() as patch:

        def lose(*_, **__):
            raise SystemExit

        patch.setattr(retention.storage, "retire_month", lose)
        with pytest.raises(SystemExit):
            retire(engine, directory)
    assert len(list(directory.iterdir())) == 2
    other = directory / "interaction_2026_11.parquet"
    right = other.read_bytes()
    other.write_text("of another shop")
    with pytest.raises(Conflict, match="exists and has other rows; move it away"):
        retire(engine, directory)
    assert scalar(engine, "SELECT count(*) FROM exposure") == 50
    assert other.read_text() == "of another shop"
    other.write_bytes(right)
    assert retire(engine, directory) == ["2026-11"]


def test_the_command_looks_or_acts_and_the_job_does_the_same(
    engine, ab, tmp_path, monkeypatch, capsys
):
    store(engine, Maker().exposure(ab))
    partition(engine)
    url = engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("EXPERIMENT_SERVICE_DATA_DIR", str(tmp_path / "data"))

    def run(*arguments):
        assert main(["retention", *arguments]) == 0
        return [line.split() for line in capsys.readouterr().out.splitlines()[1:]]

    assert {tuple(line[2:5]) for line in run("--apply")} == {
        ("stays", "EXPERIMENT_SERVICE_RETENTION_DAYS", "is"),
        ("stays", "2026-10", "comes"),
    }
    monkeypatch.setenv("EXPERIMENT_SERVICE_RETENTION_DAYS", "30")
    monkeypatch.setattr("experiment_service.cli.services.clock", lambda: LATER)
    assert [line[2:4] for line in run()] == [["may", "go"]] * 5
    assert scalar(engine, "SELECT count(*) FROM exposure") == 1
    retire_events(engine, LATER, Settings(retention_days=None))
    assert scalar(engine, "SELECT count(*) FROM exposure") == 1
    retire_events(engine, LATER, Settings(retention_days=DAYS, archive_dir=tmp_path))
    assert scalar(engine, "SELECT count(*) FROM exposure") == 0
    assert [(line[0], line[2]) for line in run("--apply")] == [
        ("2026-12", "retired"),
        ("2027-01", "retired"),
        ("2027-02", "retired"),
    ]
    assert run() == []
