"""Logs from CSV and Parquet: mapping, order of names, batches, and what is refused."""

import gzip
import mmap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiment_service.errors import InvalidRequest, NotFound
from experiment_service.replay import files
from experiment_service.replay.files import ColumnMapping, read_rounds

MAPPING = ColumnMapping(
    arm="item",
    propensity="p",
    reward="click",
    time="at",
    unit="user",
    position="place",
    segment=("device", "market"),
)
HEADER = "extra,item,p,click,at,user,place,device,market\n"
ROWS = [
    "x,10,0.5,1,2026-01-01 00:00:00,u2,1,phone,se\n",
    "y,9,0.25,0,2026-01-01 00:00:00.25,u1,2,desk,se\n",
    "z,10,1,0,2026-01-02 00:00:00+00:00,u2,1,phone,no\n",
]
GOOD = "".join([HEADER, *ROWS])
START = 1767225600.0


@pytest.fixture
def csv(tmp_path):
    def write(text=GOOD, name="log.csv"):
        path = tmp_path / name
        data = text.encode()
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        return path

    return write


def check(rounds):
    assert rounds.arms == ("9", "10")
    assert rounds.arm.tolist() == [1, 0, 1]
    assert rounds.propensity.tolist() == [0.5, 0.25, 1.0]
    assert rounds.reward.tolist() == [1, 0, 0]
    assert rounds.time.tolist() == [START, START + 0.25, START + 86400]
    assert rounds.unit.tolist() == [0, 1, 0]
    assert rounds.position.tolist() == [1, 2, 1]
    assert rounds.segments == ("desk / se", "phone / no", "phone / se")
    assert rounds.segment.tolist() == [2, 0, 1]


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_csv(csv, name):
    check(read_rounds(csv(name=name), MAPPING))


def test_columns_on_disk(csv, tmp_path):
    spool = tmp_path / "spool"
    spool.mkdir()
    rounds = read_rounds(csv(), MAPPING, spool=spool)
    check(rounds)
    base = rounds.reward
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)


@pytest.mark.parametrize("spooled", [False, True])
def test_parquet_in_several_batches(tmp_path, monkeypatch, spooled):
    monkeypatch.setattr(files, "_BATCH_ROWS", 7)
    rng = np.random.default_rng(0)
    n = 100
    arm, unit = rng.integers(0, 30, n), rng.integers(0, 9, n)
    table = pa.table(
        {
            "arm": pa.array(arm).cast(pa.string()).dictionary_encode(),
            "propensity": rng.uniform(0.1, 1, n),
            "reward": rng.random(n) < 0.5,
            "time": np.arange(n, dtype=float),
            "unit": unit,
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    spool = tmp_path / "spool" if spooled else None
    if spool:
        spool.mkdir()
    mapping = ColumnMapping(unit="unit")
    rounds = read_rounds(tmp_path / "log.parquet", mapping, spool=spool)
    assert [int(rounds.arms[k]) for k in rounds.arm] == arm.tolist()
    assert list(rounds.arms) == sorted(rounds.arms, key=int)
    assert rounds.reward.tolist() == table["reward"].cast(pa.int8()).to_pylist()
    _, first = np.unique(unit, return_index=True)
    codes = {int(unit[i]): code for code, i in enumerate(sorted(first))}
    assert rounds.unit.tolist() == [codes[int(u)] for u in unit]
    assert rounds.position is None
    assert rounds.segment is None


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        (["1767225600", "1767225600.5"], [START, START + 0.5]),
        (["2026-01-01", "2026-01-02"], [START, START + 86400]),
        (["2026-01-01T00:00Z", "2026-01-01T02:00:01.5+02:00"], [START, START + 1.5]),
        (
            ["2026-01-01 00:00:00.123456789", "2026-01-01 01:00"],
            [START + 0.123456789, START + 3600],
        ),
    ],
)
def test_times_as_text(csv, times, seconds):
    rows = [f"{arm},1,0,{time}\n" for arm, time in zip("ab", times, strict=True)]
    rounds = read_rounds(
        csv("".join(["arm,propensity,reward,time\n", *rows])), ColumnMapping()
    )
    assert rounds.time == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    "kind", [pa.timestamp("s"), pa.timestamp("ns", tz="Europe/Stockholm"), pa.date32()]
)
def test_times_of_parquet(tmp_path, kind):
    days = pa.array([20454, 20455], pa.int32()).cast(pa.date32())
    table = {"arm": ["a", "b"], "propensity": [1, 1], "reward": [True, False]}
    times = days if kind == pa.date32() else days.cast(pa.timestamp("s")).cast(kind)
    pq.write_table(pa.table(table | {"time": times}), tmp_path / "log.parquet")
    rounds = read_rounds(tmp_path / "log.parquet", ColumnMapping())
    assert rounds.time.tolist() == [START, START + 86400]
    assert rounds.reward.tolist() == [1, 0]


def test_arms_given_keep_their_order_and_may_be_more(csv):
    rounds = read_rounds(csv(), MAPPING, arms=["10", "11", "9"])
    assert rounds.arms == ("10", "11", "9")
    assert rounds.arm.tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,10,0,1,2026-01-03,u,1,a,b\n", "propensity of row 3 is 0.0; it must be"),
        ("x,10,,1,2026-01-03,u,1,a,b\n", "propensity of row 3 is nan; .*missing"),
        ("x,10,0.5,,2026-01-03,u,1,a,b\n", "reward of row 3 is nan; it must be fin"),
        ("x,10,0.5,1,2025-01-03,u,1,a,b\n", "time of row 3 is .*must be sorted"),
        ("x,10,0.5,1,2026-01-03,u,,a,b\n", "position of row 3 is 0; positions count"),
        ("x,10,0.5,1,2026-01-03,u,70000,a,b\n", "position of row 3 is 0"),
        ("x,10,0.5,1,,u,1,a,b\n", "time of row 3 is nan; it must be finite"),
        ("x,10,0.5,1,soon,u,1,a,b\n", "time of one of rows 0 to 3 .*'soonZ'"),
        ("x,,0.5,1,2026-01-03,u,1,a,b\n", "arm of row 3 is missing"),
        ("x,10,0.5,1,2026-01-03,,1,a,b\n", "unit of row 3 is missing"),
        ("x,10,0.5,1,2026-01-03,u,1,,b\n", "segment of row 3 is missing"),
        ("x,10,half,1,2026-01-03,u,1,a,b\n", "'half'"),
        ("x,10,0.5\n", "Expected 9 columns, got 3"),
    ],
)
def test_bad_rows_are_named_with_the_file(csv, row, message):
    with pytest.raises(InvalidRequest, match=rf"^file 'log\.csv': .*{message}"):
        read_rounds(csv("".join([HEADER, *ROWS, row])), MAPPING)


def test_missing_names_are_refused(tmp_path):
    columns = {"propensity": [1.0, 1.0], "reward": [0.0, 1.0], "time": [1, 2]}
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(columns | {"arm": ["a", None]}), path)
    with pytest.raises(InvalidRequest, match="arm of row 1 is missing"):
        read_rounds(path, ColumnMapping())
    pq.write_table(pa.table(columns | {"arm": ["a", "c"]}), path)
    with pytest.raises(
        InvalidRequest, match="arm of row 1 is 'c'; it must be one of: a"
    ):
        read_rounds(path, ColumnMapping(), arms=["a", "b"])


def test_files_that_hold_no_log_are_refused(csv, tmp_path):
    with pytest.raises(NotFound, match="there is no file"):
        read_rounds(tmp_path / "none.csv", MAPPING)
    with pytest.raises(InvalidRequest, match="of no known kind; known endings"):
        read_rounds(csv(name="log.xlsx"), MAPPING)
    with pytest.raises(InvalidRequest, match="the log is empty"):
        read_rounds(csv(HEADER), MAPPING)
    with pytest.raises(InvalidRequest, match="the log is empty"):
        read_rounds(csv(HEADER), MAPPING, arms=["a", "b"])
    with pytest.raises(InvalidRequest, match="arms has 1 entries"):
        read_rounds(csv(HEADER + ROWS[0]), MAPPING)
    with pytest.raises(InvalidRequest, match="'item'"):
        read_rounds(csv("a,b\n1,2\n"), MAPPING)
    with pytest.raises(InvalidRequest, match=r"file 'log\.csv'"):
        read_rounds(csv(""), MAPPING)
    (tmp_path / "log.parquet").write_text("no parquet")
    with pytest.raises(InvalidRequest, match=r"file 'log\.parquet'"):
        read_rounds(tmp_path / "log.parquet", MAPPING)
    pq.write_table(pa.table({"arm": ["a"]}), tmp_path / "log.parquet")
    with pytest.raises(InvalidRequest, match="no column 'propensity'; columns: arm"):
        read_rounds(tmp_path / "log.parquet", ColumnMapping())
    with pytest.raises(InvalidRequest, match="a column name is empty"):
        ColumnMapping(arm="")
