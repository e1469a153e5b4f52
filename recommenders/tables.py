"""Interactions and catalogues as tables: read from files, checked, split, thinned.

A file is CSV (comma, UTF-8, a header line) or Parquet, told by its ending. Other columns
than those named here are left out. A file with a bad value is refused as a whole, and
the error names the rows, so that nothing is dropped unseen.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from recommenders.interactions import MAX_ID_LENGTH

CATALOGUE_TEXTS = ("name", "category", "type", "brand", "department")

#: Bad values that an error lists; of the others it gives the number.
MAX_LISTED = 10

_ID_RULE = (
    f"must be an integer or text of 1 to {MAX_ID_LENGTH} characters, without control "
    "characters and without white space at its ends"
)
_TIME_RULE = "must be a time in ISO 8601, such as 2026-01-31T12:00:00Z"
_WEIGHT_RULE = "must be a finite number greater than 0"
_PRICE_RULE = "must be a finite number, 0 or more, or nothing"
_STOCK_RULE = "must be true or false, or nothing"

_TIME_TYPE = "datetime64[us, UTC]"

_BOOLEANS = {"true": True, "yes": True, "1": True}
_BOOLEANS |= {"false": False, "no": False, "0": False}

_Mask = NDArray[np.bool_]


def read_interactions(path: Path) -> pd.DataFrame:
    """Read who had to do with what, one row per interaction.

    Parameters
    ----------
    path : Path
        With the columns ``unit_id``, ``item_id`` (text or integers), ``occurred_at``
        (ISO 8601 or a timestamp; UTC where no offset is given), and optionally
        ``weight`` (a number > 0 such as a quantity; 1 when there is no such column) and
        ``market`` (text).

    Returns
    -------
    DataFrame
        Columns ``unit_id`` and ``item_id`` as text, ``occurred_at`` in UTC, ``weight``
        as float64, and ``market`` as text where the file has it; rows as in the file.

    Raises
    ------
    ValueError
        When the file is missing, unreadable or empty, lacks a column, or holds bad
        values; it names up to 10 of them with row (the first after the header is 1),
        column, value and rule.
    """
    table = _read(path, ("unit_id", "item_id", "occurred_at"), ("weight", "market"))
    problems = _Problems(path=path)
    columns = {
        "unit_id": _ids(table["unit_id"], "unit_id", problems),
        "item_id": _ids(table["item_id"], "item_id", problems),
        "occurred_at": _times(table["occurred_at"], "occurred_at", problems),
        "weight": _weights(table["weight"], "weight", problems)
        if "weight" in table.column_names
        else np.ones(table.num_rows),
    }
    if "market" in table.column_names:
        columns["market"] = _texts(table["market"])
    problems.raise_any()
    return pd.DataFrame(columns)


def read_catalogue(path: Path) -> pd.DataFrame:
    """Read what is known of the items, one row per item.

    Parameters
    ----------
    path : Path
        With the column ``item_id`` (text or integers, no one twice), and optionally
        ``name``, ``category``, ``type``, ``brand``, ``department`` (text), ``price``
        (a number >= 0), ``in_stock`` (true or false) and ``listed_at`` (as
        ``occurred_at``).

    Returns
    -------
    DataFrame
        All nine columns, missing where the file has nothing: six as text, ``price`` as
        float64, ``in_stock`` as boolean, ``listed_at`` in UTC.

    Raises
    ------
    ValueError
        As `read_interactions`; also when an item is listed twice.
    """
    table = _read(path, ("item_id",), (*CATALOGUE_TEXTS, *_CATALOGUE_VALUES))
    problems = _Problems(path=path)
    ids = _ids(table["item_id"], "item_id", problems)
    problems.add("item_id", ids.duplicated() & ids.ne(""), ids, "must occur only once")
    values = {
        name: read(table[name], name, problems)
        if name in table.column_names
        else pd.Series([None] * len(ids)).astype(kind)
        for name, (read, kind) in _CATALOGUE_VALUES.items()
    }
    problems.raise_any()
    texts = {
        name: _texts(table[name]) if name in table.column_names else None
        for name in CATALOGUE_TEXTS
    }
    return pd.DataFrame({"item_id": ids, **texts, **values})


def split_at(
    interactions: pd.DataFrame, instant: datetime
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the interactions before an instant, and those at or after it.

    Raises
    ------
    ValueError
        When the instant has no time zone, or leaves one of the two without rows.
    """
    if instant.tzinfo is None:
        raise ValueError(f"instant {instant} has no time zone; give one, such as UTC")
    earlier = interactions["occurred_at"] < instant
    if earlier.all() or not earlier.any():
        raise ValueError(
            f"instant {instant.isoformat()} leaves one side empty; it must lie within "
            f"{interactions['occurred_at'].min()} and "
            f"{interactions['occurred_at'].max()}"
        )
    return interactions[earlier], interactions[~earlier]


def drop_rare_items(
    interactions: pd.DataFrame, *, min_units: int, before: datetime | None = None
) -> pd.DataFrame:
    """Return the interactions with items that enough distinct units had.

    Parameters
    ----------
    min_units : int
        An item of fewer units is dropped; 1 keeps all.
    before : datetime, optional
        Count only what lies before this instant. Give the start of the test period:
        items chosen by what happened in it would make the test too easy.

    Raises
    ------
    ValueError
        When no item has so many units.
    """
    counted = interactions if before is None else split_at(interactions, before)[0]
    pairs = counted[["unit_id", "item_id"]].drop_duplicates()
    units = pairs["item_id"].value_counts()
    kept = interactions["item_id"].isin(units.index[units >= min_units])
    if not kept.any():
        raise ValueError(
            f"no item has min_units {min_units}; the most common one has {units.max()}"
        )
    return interactions[kept]


@dataclass(slots=True, kw_only=True)
class _Problems:
    """Bad values of a file, gathered so that one error can list them."""

    path: Path
    listed: list[tuple[int, str]] = field(default_factory=list)
    count: int = 0

    def add(self, column: str, bad: _Mask, values: pd.Series, rule: str) -> None:
        rows = np.flatnonzero(bad)
        self.count += rows.size
        self.listed.extend(
            (row, f"row {row + 1}, column {column}, {_shown(values.iloc[row])}: {rule}")
            for row in rows[:MAX_LISTED].tolist()
        )

    def raise_any(self) -> None:
        if not self.listed:
            return
        listed = [text for _, text in sorted(self.listed)[:MAX_LISTED]]
        more = self.count - len(listed)
        raise ValueError(
            f"{self.path} has {self.count} bad values; "
            + "; ".join(listed)
            + (f"; and {more} more" if more else "")
        )


def _shown(value: object) -> str:
    text = "" if pd.isna(value) else str(value)
    return f"value {text[:40]!r}" if text else "no value"


# Files


def _read(path: Path, required: tuple[str, ...], optional: tuple[str, ...]) -> pa.Table:
    readers: dict[str, tuple[_Header, _Reader]] = {
        ".csv": (_csv_header, _read_csv),
        ".parquet": (_parquet_header, _read_parquet),
    }
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path} must end in {' or '.join(readers)}")
    read_header, read_columns = readers[path.suffix.lower()]
    try:
        present = read_header(path)
        columns = [name for name in (*required, *optional) if name in present]
        for name in required:
            if name not in present:
                raise ValueError(
                    f"{path} has no column {name}; it has: "
                    f"{', '.join(present) or 'none'}"
                )
        for name in columns:
            if present.count(name) > 1:
                raise ValueError(f"{path} has the column {name} twice; give it once")
        table = read_columns(path, columns)
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    if not table.num_rows:
        raise ValueError(f"{path} has no rows; at least one is needed")
    return table


_Header = Callable[[Path], list[str]]
_Reader = Callable[[Path, list[str]], pa.Table]


def _csv_header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return next(csv.reader(file), [])


def _read_csv(path: Path, columns: list[str]) -> pa.Table:
    ragged: list[pa.csv.InvalidRow] = []

    def note(row: pa.csv.InvalidRow) -> str:
        ragged.append(row)
        return "skip"

    table = pa.csv.read_csv(
        path,
        # One thread, as rows have no numbers otherwise.
        read_options=pa.csv.ReadOptions(use_threads=False),
        parse_options=pa.csv.ParseOptions(
            newlines_in_values=True, invalid_row_handler=note
        ),
        # All as text: a type guessed from the first rows would turn id 007 into 7.
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()),
            include_columns=columns,
            strings_can_be_null=False,
        ),
    )
    if ragged:
        rows = "; ".join(
            f"row {row.number - 1} has {row.actual_columns} values"
            for row in ragged[:MAX_LISTED]
        )
        raise ValueError(
            f"{path} has {len(ragged)} rows that don't fit the header's "
            f"{ragged[0].expected_columns} columns; {rows}"
        )
    return table


def _parquet_header(path: Path) -> list[str]:
    return list(pa.parquet.read_schema(path).names)


def _read_parquet(path: Path, columns: list[str]) -> pa.Table:
    # Not `read_table`: it takes folders named like `day=1` above the file for columns.
    with pa.parquet.ParquetFile(path) as file:
        return file.read(columns=columns)


# Columns


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    )


def _ids(column: pa.ChunkedArray, name: str, problems: _Problems) -> pd.Series:
    column = _plain(column)
    if pa.types.is_floating(column.type):
        # Integers become floats where a column once had gaps.
        return _float_ids(column.to_pandas(), name, problems)
    if not (_is_text(column.type) or pa.types.is_integer(column.type)):
        raise ValueError(
            f"{problems.path}: column {name} is {column.type}; ids {_ID_RULE}"
        )
    text = column.cast(pa.string()).to_pandas().fillna("")
    bad = (
        ~text.str.len().between(1, MAX_ID_LENGTH)
        | text.str.contains(r"[\x00-\x1f\x7f-\x9f]", regex=True)
        | text.ne(text.str.strip())
    )
    problems.add(name, bad.to_numpy(bool), text, _ID_RULE)
    given = text[text.ne("")]
    if given.str.fullmatch(r"-?[0-9]+\.0").all():
        return text.str.removesuffix(".0")
    return text


def _float_ids(values: pd.Series, name: str, problems: _Problems) -> pd.Series:
    # From 2**53 on a float may be another integer than the one that was written.
    bad = ~(values.abs().lt(2.0**53) & values.eq(values.round()))
    problems.add(name, bad.to_numpy(bool), values, _ID_RULE)
    return values.mask(bad, 0.0).astype("int64").astype(str)


def _times(
    column: pa.ChunkedArray, name: str, problems: _Problems, *, gaps: bool = False
) -> pd.Series:
    column = _plain(column)
    if _is_text(column.type) or (gaps and pa.types.is_null(column.type)):
        given = column.cast(pa.string()).to_pandas().fillna("")
        times = _parsed(given.where(given.str.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")))
        missing = given.str.strip().eq("")
    elif pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        given = column.to_pandas()
        times = pd.to_datetime(given, utc=True, errors="coerce")
        missing = given.isna()
    else:
        raise ValueError(
            f"{problems.path}: column {name} is {column.type}; it {_TIME_RULE}"
        )
    bad = times.isna() & ~missing if gaps else times.isna()
    problems.add(name, bad.to_numpy(bool), given, _TIME_RULE)
    return times.astype(_TIME_TYPE)


def _parsed(text: pd.Series) -> pd.Series:
    # Apart, as pandas 2 reads a time without an offset with the offset of the row above.
    has_offset = text.str.contains(
        r"[T ].*(?:[Zz]|[+-][0-9]{2}(?::?[0-9]{2})?)$", na=False
    )
    with_offset, without = (
        pd.to_datetime(part, format="ISO8601", utc=True, errors="coerce")
        for part in (text[has_offset], text[~has_offset])
    )
    return pd.concat([with_offset, without]).reindex(text.index)


def _weights(column: pa.ChunkedArray, name: str, problems: _Problems) -> pd.Series:
    column = _plain(column)
    kind = column.type
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif not (
        _is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
    ):
        raise ValueError(f"{problems.path}: column {name} is {kind}; it {_WEIGHT_RULE}")
    given = column.to_pandas()
    weights = pd.to_numeric(given, errors="coerce").astype("float64")
    bad = ~(np.isfinite(weights) & weights.gt(0))
    problems.add(name, bad.to_numpy(bool), given, _WEIGHT_RULE)
    return weights


def _prices(column: pa.ChunkedArray, name: str, problems: _Problems) -> pd.Series:
    given = _plain(column).cast(pa.string()).to_pandas().str.strip().fillna("")
    prices = pd.to_numeric(given.where(given.ne("")), errors="coerce").astype("float64")
    bad = given.ne("") & ~(np.isfinite(prices) & prices.ge(0))
    problems.add(name, bad.to_numpy(bool), given, _PRICE_RULE)
    return prices


def _stock(column: pa.ChunkedArray, name: str, problems: _Problems) -> pd.Series:
    given = _plain(column).cast(pa.string()).to_pandas().str.strip().fillna("")
    known = given.str.lower().map(_BOOLEANS)
    bad = given.ne("") & known.isna()
    problems.add(name, bad.to_numpy(bool), given, _STOCK_RULE)
    return known.astype("boolean")


def _texts(column: pa.ChunkedArray) -> pd.Series:
    text = _plain(column).cast(pa.string()).to_pandas().str.strip()
    return text.where(text.ne(""))


_CATALOGUE_VALUES: dict[str, tuple[Callable[..., pd.Series], str]] = {
    "price": (_prices, "float64"),
    "in_stock": (_stock, "boolean"),
    "listed_at": (partial(_times, gaps=True), _TIME_TYPE),
}
