"""Logs from CSV and Parquet files, with a mapping of their columns.

Files are streamed in batches of rows. With a spool directory the columns go to disk and
come back memory-mapped, so a log may be larger than memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray

from experiment_service.errors import InvalidRequest, NotFound
from policies.logged import LoggedRounds

#: Rows of a Parquet file, and bytes of a CSV file, that are read together.
_BATCH_ROWS, _BATCH_BYTES = 1 << 17, 1 << 24
_CSV = (".csv", ".csv.gz")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnMapping:
    """Names of the columns of a file that hold a log.

    Attributes
    ----------
    arm : str
        The chosen arm, as text or number.
    propensity, reward : str
        Numbers; true and false of Parquet count as 1 and 0.
    time : str
        Timestamps (without a zone: UTC), or numbers of seconds since 1970.
    unit : str or None
        Who or what was randomised, as text or number.
    position : str or None
        Place in the carousel, from 1.
    segment : tuple of str
        Columns whose values, joined by " / ", name the segment.

    Raises
    ------
    InvalidRequest
        If a name is empty.
    """

    arm: str = "arm"
    propensity: str = "propensity"
    reward: str = "reward"
    time: str = "time"
    unit: str | None = None
    position: str | None = None
    segment: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.columns:
            if not name:
                raise InvalidRequest("a column name is empty; it must be a text")

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns that are read, each once."""
        optional = (name for name in (self.unit, self.position) if name is not None)
        names = (self.arm, self.propensity, self.reward, self.time)
        return tuple(dict.fromkeys((*names, *optional, *self.segment)))


def read_rounds(
    path: Path,
    columns: ColumnMapping,
    *,
    arms: Sequence[str] | None = None,
    spool: Path | None = None,
) -> LoggedRounds:
    """Read a log from a file; rows must be sorted by time.

    Parameters
    ----------
    path : Path
        A .csv, .csv.gz or .parquet file.
    columns : ColumnMapping
    arms : sequence of str, or None
        Names of all arms. None: those of the file, sorted (numbers by size).
    spool : Path, or None
        An empty directory for the columns; it must outlive the rounds. None: they stay
        in memory, 28 to 42 bytes a row.

    Raises
    ------
    NotFound
        If there is no such file.
    InvalidRequest
        If the file can't be read, lacks a column, or a row breaks a rule of
        LoggedRounds; names the file, the column or row (from 0) and the rule.
    """
    if not path.is_file():
        raise NotFound(f"there is no file {str(path)!r}")
    try:
        if path.name.endswith(".parquet"):
            return gather(_parquet(path, columns), columns, arms=arms, spool=spool)
        if not path.name.endswith(_CSV):
            raise InvalidRequest(
                f"file {path.name!r} is of no known kind; known endings: "
                f"{', '.join((*_CSV, '.parquet'))}"
            )
        with path.open("rb") as raw, pa.input_stream(raw, _compression(path)) as file:
            return gather(csv_batches(file, columns), columns, arms=arms, spool=spool)
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise InvalidRequest(f"file {path.name!r}: {error}") from error


def csv_batches(file: IO[bytes], columns: ColumnMapping) -> Iterator[pa.RecordBatch]:
    """Yield batches of a CSV file's mapped columns; identifiers stay text.

    Raises
    ------
    ValueError
        If a column is missing or a field is not of its kind (pyarrow.ArrowInvalid is
        one).
    """
    numbers = dict.fromkeys((columns.propensity, columns.reward), pa.float64())
    # A time may look like a number in one batch and like a date in the next.
    names = (columns.arm, columns.time, columns.unit, *columns.segment)
    texts = {name: pa.string() for name in names if name is not None}
    places = {columns.position: pa.int64()} if columns.position is not None else {}
    options = pa_csv.ConvertOptions(
        include_columns=list(columns.columns),
        column_types={**numbers, **texts, **places},
        null_values=[""],
        strings_can_be_null=True,
    )
    reading = pa_csv.ReadOptions(block_size=_BATCH_BYTES)
    try:
        yield from pa_csv.open_csv(file, read_options=reading, convert_options=options)
    except KeyError as error:
        # pyarrow: "Column 'x' in include_columns does not exist in CSV file".
        missing = next(name for name in columns.columns if f"'{name}'" in str(error))
        raise ValueError(f"there is no column {missing!r}") from error


def gather(
    batches: Iterator[pa.RecordBatch],
    columns: ColumnMapping,
    *,
    arms: Sequence[str] | None = None,
    spool: Path | None = None,
) -> LoggedRounds:
    """Put batches of rows together to one log.

    Raises
    ------
    ValueError
        If a row breaks a rule of LoggedRounds, or a value is missing.
    """
    log = _Log(columns=columns, spool=spool)
    for batch in batches:
        log.add(batch)
    if log.rows == 0:
        raise ValueError("the log is empty; it must have at least one round")
    return log.finish(arms)


@dataclass(slots=True, kw_only=True)
class _Codes:
    """Numbers for names, by their first appearance."""

    what: str
    known: dict[object, int] = field(default_factory=dict)

    def encode(self, values: pa.Array, first_row: int) -> NDArray[np.int64]:
        """Return the number of each value; a missing one is an error."""
        if values.null_count:
            row = first_row + int(np.argmax(values.is_null().to_numpy(False)))
            raise ValueError(f"{self.what} of row {row} is missing")
        encoded = values.dictionary_encode()
        names = encoded.dictionary.to_pylist()
        numbers = [self.known.setdefault(name, len(self.known)) for name in names]
        codes = np.array(numbers, dtype=np.int64)
        return np.asarray(codes[encoded.indices.to_numpy()])


class _Log:
    """Columns of a log while its batches come in."""

    def __init__(self, *, columns: ColumnMapping, spool: Path | None) -> None:
        self.columns, self.spool = columns, spool
        self.rows = 0
        self.arms, self.units = _Codes(what="arm"), _Codes(what="unit")
        self.segments = _Codes(what="segment")
        self.parts: dict[str, list[NDArray[Any]]] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Take in one batch of rows."""
        names, row = self.columns, self.rows
        self._put("arm", self.arms.encode(_text(batch[names.arm]), row), np.int32)
        for name in ("propensity", "reward"):
            column = batch[getattr(names, name)].cast(pa.float64())
            self._put(name, column.to_numpy(zero_copy_only=False), np.float64)
        self._put("time", self._times(batch[names.time]), np.float64)
        if names.unit is not None:
            self._put("unit", self.units.encode(batch[names.unit], row), np.int64)
        if names.position is not None:
            column = batch[names.position].cast(pa.int64())
            filled = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
            # A position that does not fit is as wrong as 0, and then says so.
            fits = (filled >= 0) & (filled <= np.iinfo(np.int16).max)
            self._put("position", np.where(fits, filled, 0), np.int16)
        if names.segment:
            parts = [_text(batch[name]) for name in names.segment]
            joined = pc.binary_join_element_wise(*parts, " / ")
            self._put("segment", self.segments.encode(joined, row), np.int32)
        self.rows += batch.num_rows

    def _times(self, values: pa.Array) -> NDArray[np.float64]:
        """Return times of the next rows as seconds since 1970."""
        try:
            return _seconds(values)
        except pa.ArrowInvalid as error:
            last = self.rows + len(values) - 1
            raise ValueError(
                f"time of one of rows {self.rows} to {last} can't be read: {error}"
            ) from error

    def finish(self, arms: Sequence[str] | None) -> LoggedRounds:
        """Return the log with arms and segments in their final order."""
        known = [str(name) for name in self.arms.known]
        names = sorted(known, key=_by_size) if arms is None else list(arms)
        missing = [name for name in known if name not in set(names)]
        if missing:
            code = self.arms.known[missing[0]]
            row = int(np.argmax(self._column("arm", np.int32) == code))
            raise ValueError(
                f"arm of row {row} is {missing[0]!r}; it must be one of: "
                f"{', '.join(names)}"
            )
        segments = sorted(str(name) for name in self.segments.known)
        mapped = self.columns
        return LoggedRounds(
            arms=tuple(names),
            arm=self._renumbered("arm", known, names),
            propensity=self._column("propensity", np.float64),
            reward=self._column("reward", np.float64),
            time=self._column("time", np.float64),
            unit=self._column("unit", np.int64) if mapped.unit is not None else None,
            position=None
            if mapped.position is None
            else self._column("position", np.int16),
            segment=self._renumbered(
                "segment", [str(name) for name in self.segments.known], segments
            )
            if mapped.segment
            else None,
            segments=tuple(segments),
        )

    def _put(self, name: str, values: NDArray[Any], kind: DTypeLike) -> None:
        """Append values to a column, on disk when there is a spool."""
        typed = np.ascontiguousarray(values, dtype=kind)
        if self.spool is None:
            self.parts.setdefault(name, []).append(typed)
        else:
            with (self.spool / name).open("ab") as file:
                file.write(typed.data)

    def _column(self, name: str, kind: DTypeLike) -> NDArray[Any]:
        """Return a whole column, memory-mapped when there is a spool."""
        if self.spool is not None:
            return np.memmap(self.spool / name, dtype=kind, mode="r+")
        parts = self.parts[name]
        if len(parts) > 1:
            self.parts[name] = parts = [np.concatenate(parts)]
        return parts[0]

    def _renumbered(
        self, name: str, known: Sequence[str], final: Sequence[str]
    ) -> NDArray[Any]:
        """Return a column of codes by first appearance, changed in place to final."""
        codes = self._column(name, np.int32)
        place = {text: number for number, text in enumerate(final)}
        table = np.array([place[text] for text in known], dtype=np.int32)
        if codes.size:
            for start in range(0, len(codes), _BATCH_ROWS):
                part = slice(start, start + _BATCH_ROWS)
                codes[part] = table[codes[part]]
        return codes


def _parquet(path: Path, columns: ColumnMapping) -> Iterator[pa.RecordBatch]:
    """Yield batches of a Parquet file's mapped columns."""
    with pq.ParquetFile(path) as file:
        missing = [name for name in columns.columns if name not in file.schema.names]
        if missing:
            raise ValueError(
                f"there is no column {missing[0]!r}; columns: "
                f"{', '.join(file.schema.names)}"
            )
        yield from file.iter_batches(_BATCH_ROWS, columns=list(columns.columns))


def _compression(path: Path) -> str | None:
    """Return pyarrow's name of a file's compression."""
    return "gzip" if path.name.endswith(".gz") else None


def _text(values: pa.Array) -> pa.Array:
    """Return identifiers as text, whatever they were."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.cast(pa.string())


def _seconds(values: pa.Array) -> NDArray[np.float64]:
    """Return times as seconds since 1970; a missing one is nan."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        numbers = pc.match_substring_regex(values, r"^-?[0-9]+(\.[0-9]*)?$")
        if pc.all(numbers).as_py():
            return _seconds(values.cast(pa.float64()))
        zoned = pc.match_substring_regex(values, r"(Z|[+-]\d\d(:?\d\d)?)$")
        dates = pc.match_substring_regex(values, r"^\d{4}-\d\d-\d\d$")
        ending = pc.if_else(dates, " 00:00Z", pc.if_else(zoned, "", "Z"))
        full = pc.binary_join_element_wise(values, ending, "")
        return _seconds(full.cast(pa.timestamp("ns", tz="UTC")))
    if pa.types.is_date(kind):
        values = values.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(values.type):
        parts = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[values.type.unit]
        missing = values.is_null().to_numpy(zero_copy_only=False)
        counts = values.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        # Whole seconds apart, so that a quarter of a second stays one.
        whole, rest = np.divmod(counts, parts)
        return np.where(missing, np.nan, whole + rest / parts)
    return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False))


def _by_size(name: str) -> tuple[int, float, str]:
    """Order names that are numbers by size, before all others."""
    digits = name.isdecimal()
    return (0, float(name), name) if digits else (1, 0.0, name)
