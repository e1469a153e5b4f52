from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recommenders.tables import (
    drop_rare_items,
    read_catalogue,
    read_interactions,
    split_at,
)

HEADER = "unit_id,item_id,occurred_at\n"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
ID_RULE = "must be an integer or text of 1 to 128 characters"
TIME_RULE = "must be a time in ISO 8601"
WEIGHT_RULE = "must be a finite number greater than 0"


@pytest.fixture
def csv_file(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "data.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


@pytest.fixture
def parquet_file(tmp_path):
    def write(**columns):
        path = tmp_path / "data.parquet"
        pq.write_table(pa.table(columns), path)
        return path

    return write


def refusal(read, path):
    with pytest.raises(ValueError, match=str(path.name)) as caught:
        read(path)
    assert type(caught.value) is ValueError
    return str(caught.value)


# Interactions that are accepted


def test_a_csv_file_becomes_a_table(csv_file):
    table = read_interactions(
        csv_file(
            "weight,item_id,unit_id,occurred_at,store\n"
            '2,"a, ""b"" c",ünit,2026-01-31T12:00:00Z,1\n'
            "0.5,007,NA,2026-01-31 14:00:00+02:00,x\n"
            "1e3,x,null,2026-01-31T12:00:00.000,\n"
            "\n"
            "1,x,7,2026-01-31,2\n"
        )
    )
    assert table.columns.tolist() == ["unit_id", "item_id", "occurred_at", "weight"]
    assert table["unit_id"].tolist() == ["ünit", "NA", "null", "7"]
    assert table["item_id"].tolist() == ['a, "b" c', "007", "x", "x"]
    assert table["weight"].tolist() == [2.0, 0.5, 1000.0, 1.0]
    midnight = NOON.replace(hour=0)
    assert table["occurred_at"].tolist() == [NOON, NOON, NOON, midnight]
    assert str(table["occurred_at"].dtype) == "datetime64[us, UTC]"


def test_without_a_weight_column_each_row_weighs_one(csv_file):
    table = read_interactions(csv_file(HEADER + "u,x,2026-01-31\nu,x,2026-02-01\n"))
    assert table["weight"].tolist() == [1.0, 1.0]


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_data(csv_file):
    text = (HEADER + "u,x,2026-01-31\n").replace("\n", "\r\n")
    table = read_interactions(csv_file(text, encoding="utf-8-sig"))
    assert table["unit_id"].tolist() == ["u"]


def test_integers_that_were_saved_as_floats_are_integers_again(csv_file):
    table = read_interactions(
        csv_file(HEADER + "12.0,1.0,2026-01-31\n7.0,2.5,2026-01-31\n")
    )
    assert table["unit_id"].tolist() == ["12", "7"]
    assert table["item_id"].tolist() == ["1.0", "2.5"], "text, as not all are integers"


def test_a_parquet_file_becomes_the_same_table(parquet_file):
    table = read_interactions(
        parquet_file(
            unit_id=pa.array([12.0, -7.0]),
            item_id=pa.array([1, 2**62], pa.int64()),
            occurred_at=pa.array([NOON, NOON], pa.timestamp("ms", "Europe/Berlin")),
            weight=pa.array([Decimal("1.5"), Decimal("2.0")]),
            other=pa.array([[1], [2]]),
        )
    )
    assert table["unit_id"].tolist() == ["12", "-7"]
    assert table["item_id"].tolist() == ["1", str(2**62)]
    assert table["occurred_at"].tolist() == [NOON, NOON]
    assert table["weight"].tolist() == [1.5, 2.0]


@pytest.mark.parametrize(
    "times",
    [
        pa.array([NOON.replace(tzinfo=None)], pa.timestamp("ns")),
        pa.array([NOON.replace(tzinfo=None)], pa.timestamp("s")),
        pa.array(["2026-01-31T12:00:00"]),
        pa.array(["2026-01-31T12:00:00Z"]).dictionary_encode(),
        pa.array(["2026-01-31T13:00:00+0100"], pa.large_string()),
    ],
    ids=lambda times: str(times.type),
)
def test_times_without_an_offset_are_utc(parquet_file, times):
    path = parquet_file(unit_id=["u"], item_id=["x"], occurred_at=times)
    assert read_interactions(path)["occurred_at"].tolist() == [NOON]


def test_a_date_is_its_midnight(parquet_file):
    times = pa.array([date(2026, 1, 31)])
    path = parquet_file(unit_id=["u"], item_id=["x"], occurred_at=times)
    assert read_interactions(path)["occurred_at"].tolist() == [NOON.replace(hour=0)]


@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view()])
def test_ids_of_any_kind_of_text(parquet_file, text):
    path = parquet_file(
        unit_id=pa.array(["u"]).cast(text),
        item_id=pa.array(["x"]).dictionary_encode(),
        occurred_at=[NOON],
    )
    table = read_interactions(path)
    assert (table["unit_id"].tolist(), table["item_id"].tolist()) == (["u"], ["x"])


def test_folders_named_like_columns_are_no_columns(tmp_path):
    path = tmp_path / "unit_id=9" / "data.parquet"
    path.parent.mkdir()
    columns = {"unit_id": ["u"], "item_id": ["x"], "occurred_at": [NOON]}
    pq.write_table(pa.table(columns), path)
    assert read_interactions(path)["unit_id"].tolist() == ["u"]


# Interactions that are refused


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (",x,2026-01-31,1", f"row 2, column unit_id, no value: {ID_RULE}"),
        ("u, x,2026-01-31,1", f"row 2, column item_id, value ' x': {ID_RULE}"),
        ("u,a\x07b,2026-01-31,1", r"column item_id, value 'a\x07b'"),
        (f"u,{'x' * 129},2026-01-31,1", f"value '{'x' * 40}': {ID_RULE}"),
        (
            "u,x,yesterday,1",
            f"row 2, column occurred_at, value 'yesterday': {TIME_RULE}",
        ),
        ("u,x,,1", f"row 2, column occurred_at, no value: {TIME_RULE}"),
        ("u,x,1769860800,1", "column occurred_at, value '1769860800'"),
        ("u,x,31/01/2026,1", "column occurred_at, value '31/01/2026'"),
        ("u,x,2026-02-30,1", "column occurred_at, value '2026-02-30'"),
        ("u,x,2026-01-31,0", f"row 2, column weight, value '0': {WEIGHT_RULE}"),
        ("u,x,2026-01-31,-1", f"row 2, column weight, value '-1': {WEIGHT_RULE}"),
        ("u,x,2026-01-31,many", "column weight, value 'many'"),
        ("u,x,2026-01-31,nan", "column weight, value 'nan'"),
        ("u,x,2026-01-31,inf", "column weight, value 'inf'"),
        ("u,x,2026-01-31,", "row 2, column weight, no value"),
    ],
)
def test_a_bad_value_is_named_with_its_row_column_and_rule(csv_file, row, message):
    header = HEADER.replace("\n", ",weight\n")
    path = csv_file(f"{header}u,x,2026-01-31,1\n{row}\nu,x,2026-01-31,1\n")
    text = refusal(read_interactions, path)
    assert f"{path} has 1 bad values" in text
    assert message in text


def test_all_columns_are_checked_and_ten_values_listed_in_order(csv_file):
    rows = ["u,x,2026-01-31"] * 3 + [",,never"] * 20
    text = refusal(read_interactions, csv_file(HEADER + "\n".join(rows)))
    assert "has 60 bad values" in text
    assert text.endswith("; and 50 more")
    assert text.count(": must be") == 10
    assert "row 4, column unit_id" in text
    assert "row 4, column item_id" in text
    assert "row 4, column occurred_at" in text
    assert "row 7," in text
    assert "row 8," not in text


def test_rows_of_another_length_are_named(csv_file):
    path = csv_file(HEADER + "u,x,2026-01-31\nu,x\nu,x,2026-01-31,9\n")
    text = refusal(read_interactions, path)
    assert "2 rows that don't fit the header's 3 columns" in text
    assert "row 2 has 2 values; row 3 has 4 values" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column unit_id; it has: none"),
        ("unit_id,item_id\n", "has no column occurred_at; it has: unit_id, item_id"),
        ("Unit_ID,item_id,occurred_at\n", "has no column unit_id"),
        (HEADER, "has no rows; at least one is needed"),
        (HEADER.replace("\n", ",unit_id\nu,x,2026-01-31,u\n"), "unit_id twice"),
    ],
)
def test_a_file_without_the_columns_or_rows_is_refused(csv_file, text, message):
    assert message in refusal(read_interactions, csv_file(text))


@pytest.mark.parametrize("text", [HEADER + "ü,x,2026-01-31\n", "ü,x\n"])
def test_text_in_another_encoding_is_refused(csv_file, text):
    message = refusal(read_interactions, csv_file(text, encoding="latin-1"))
    assert "can't be read" in message


def test_files_of_other_kinds_are_refused(tmp_path):
    assert "must end in .csv or .parquet" in refusal(
        read_interactions, tmp_path / "data.xlsx"
    )
    for name in ("data.csv", "data.parquet"):
        assert "can't be read" in refusal(read_interactions, tmp_path / name)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"not Parquet")
    assert "can't be read" in refusal(read_interactions, broken)
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    assert "can't be read" in refusal(read_interactions, folder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"unit_id": [1.0, 2.5]}, "row 2, column unit_id, value '2.5'"),
        ({"unit_id": [1.0, None]}, "row 2, column unit_id, no value"),
        ({"unit_id": [1.0, 2.0**53]}, "row 2, column unit_id"),
        ({"unit_id": [1.0, float("inf")]}, "row 2, column unit_id, value 'inf'"),
        ({"item_id": ["x", None]}, "row 2, column item_id, no value"),
        ({"item_id": pa.array([1, None], pa.int32())}, "row 2, column item_id, no"),
        ({"item_id": [True, False]}, "column item_id is bool; ids must be"),
        ({"item_id": [["x"], ["y"]]}, "column item_id is list<"),
        ({"occurred_at": [NOON, None]}, "row 2, column occurred_at, no value"),
        ({"occurred_at": [1, 2]}, "column occurred_at is int64; it must be a time"),
        ({"weight": [1.0, None]}, "row 2, column weight, no value"),
        ({"weight": [3, -3]}, "row 2, column weight, value '-3'"),
        ({"weight": [True, True]}, "column weight is bool; it must be a finite"),
        ({"weight": [NOON, NOON]}, "column weight is timestamp"),
    ],
)
def test_bad_values_of_a_parquet_file_are_refused(parquet_file, changed, message):
    columns = {"unit_id": ["u", "v"], "item_id": ["x", "y"], "occurred_at": [NOON] * 2}
    path = parquet_file(**{**columns, **changed})
    assert message in refusal(read_interactions, path)


def test_a_market_is_read_where_the_file_has_one(csv_file):
    columns = "unit_id,item_id,occurred_at,market"
    table = read_interactions(
        csv_file(f"{columns}\nu,i,2026-01-01, de \nu,i,2026-01-02,\n")
    )
    assert table.columns.tolist()[-1] == "market"
    assert table["market"].tolist()[0] == "de"
    assert table["market"].isna().tolist() == [False, True]


# The catalogue


def test_a_catalogue_has_all_columns_and_gaps_where_nothing_is_known(csv_file):
    table = read_catalogue(
        csv_file("item_id,category,name,price\n1, Fruit ,Apple,2\n2,,Pear,\n")
    )
    assert table.columns.tolist() == [
        *("item_id", "name", "category", "type", "brand", "department"),
        *("price", "in_stock", "listed_at"),
    ]
    assert table["price"].tolist()[0] == 2
    assert table["price"].isna().tolist() == [False, True]
    assert table[["in_stock", "listed_at"]].isna().all(axis=None)
    assert table["item_id"].tolist() == ["1", "2"]
    assert table["name"].tolist() == ["Apple", "Pear"]
    assert table["category"].iloc[0] == "Fruit"
    assert table["category"].isna().tolist() == [False, True]
    assert table[["type", "brand", "department"]].isna().all(axis=None)


def test_prices_stock_and_days_may_have_gaps_but_no_nonsense(csv_file):
    table = read_catalogue(
        csv_file(
            "item_id,price,in_stock,listed_at\n"
            "a,0,true,2026-01-31\nb,1.5,No,2026-01-31T12:00:00+02:00\nc,,,\n"
        )
    )
    assert table["price"].tolist()[:2] == [0, 1.5]
    assert table["in_stock"].tolist()[:2] == [True, False]
    assert table["listed_at"].dt.hour.tolist()[:2] == [0, 10]
    assert table.iloc[2][["price", "in_stock", "listed_at"]].isna().all()
    text = refusal(
        read_catalogue,
        csv_file(
            "item_id,price,in_stock,listed_at\n"
            "a,-1,perhaps,soon\nb,cheap,1,\nc,inf,,\nd,nan,,\n"
        ),
    )
    assert "has 6 bad values" in text
    for value in ("-1", "cheap", "inf", "nan"):
        assert f"column price, value '{value}': must be a finite number, 0 or" in text
    assert "column in_stock, value 'perhaps': must be true or false" in text
    assert "column listed_at, value 'soon': must be a time in ISO 8601" in text


def test_values_of_a_catalogue_in_parquet(parquet_file):
    table = read_catalogue(
        parquet_file(
            item_id=["a", "b"],
            price=pa.array([1.25, None]),
            in_stock=pa.array([None, False]),
            listed_at=pa.array([NOON, None]),
        )
    )
    assert table["price"].tolist()[0] == 1.25
    assert table["in_stock"].isna().tolist() == [True, False]
    assert table["in_stock"].tolist()[1] is False
    assert table["listed_at"].tolist()[0] == NOON


def test_a_catalogue_from_parquet_has_the_ids_of_the_interactions(parquet_file):
    table = read_catalogue(
        parquet_file(
            item_id=[3.0, 1.0],
            category=pa.array(["a", None]).dictionary_encode(),
            type=pa.array([5, None]),
        )
    )
    assert table["item_id"].tolist() == ["3", "1"]
    assert table["category"].isna().tolist() == [False, True]
    assert table["type"].tolist()[0] == "5"


def test_an_item_listed_twice_is_refused(csv_file):
    text = refusal(read_catalogue, csv_file("item_id\na\nb\na\n"))
    assert "row 3, column item_id, value 'a': must occur only once" in text


def test_an_item_without_an_id_is_refused_once_a_row(csv_file):
    path = csv_file("item_id,name\n,x\n,y\n")
    assert "has 2 bad values" in refusal(read_catalogue, path)


def test_a_catalogue_without_items_is_refused(csv_file):
    assert "has no column item_id" in refusal(read_catalogue, csv_file("name\nx\n"))


# Splitting


def interactions(*days, units=None, items=None):
    start = NOON.replace(day=1)
    return pd.DataFrame(
        {
            "unit_id": units or ["u"] * len(days),
            "item_id": items or ["x"] * len(days),
            "occurred_at": [start + timedelta(days=day) for day in days],
            "weight": 1.0,
        }
    )


def test_a_split_puts_the_instant_itself_after():
    instant = NOON.replace(day=3)
    earlier, later = split_at(interactions(2, 0, 1, 3), instant)
    assert earlier["occurred_at"].dt.day.tolist() == [1, 2]
    assert later["occurred_at"].dt.day.tolist() == [3, 4]
    shifted = instant.astimezone(timezone(timedelta(hours=5)))
    assert split_at(interactions(2, 0, 1, 3), shifted)[0].equals(earlier)


@pytest.mark.parametrize("instant", [NOON.replace(day=1), NOON + timedelta(days=9)])
def test_a_split_with_an_empty_side_is_refused(instant):
    with pytest.raises(ValueError, match="leaves one side empty; it must lie within"):
        split_at(interactions(0, 1), instant)


def test_a_split_needs_a_time_zone():
    with pytest.raises(ValueError, match="has no time zone"):
        split_at(interactions(0, 1), datetime(2026, 1, 2))  # noqa: DTZ001


def test_rare_items_are_those_of_few_units():
    table = interactions(
        *(0, 1, 2, 3, 4, 5), units=list("aababc"), items=list("xxxyyz")
    )
    assert drop_rare_items(table, min_units=2)["item_id"].tolist() == list("xxxyy")
    assert drop_rare_items(table, min_units=1).equals(table)


def test_rare_items_are_counted_before_the_test_only():
    table = interactions(*(0, 1, 2, 3), units=list("abab"), items=list("xxyy"))
    kept = drop_rare_items(table, min_units=2, before=NOON.replace(day=3))
    assert kept["item_id"].tolist() == ["x", "x"]


def test_no_item_of_enough_units_is_refused():
    with pytest.raises(ValueError, match="min_units 3; the most common one has 2"):
        drop_rare_items(interactions(0, 1, units=["a", "b"]), min_units=3)
