"""Files for people who analyse elsewhere: raw events, or rounds that replay reads."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from sqlalchemy import Connection

from experiment_service.domain.experiment import Experiment
from experiment_service.errors import InvalidRequest
from experiment_service.replay.experiment import simple_metric
from experiment_service.storage import experiments as storage
from experiment_service.storage.export import stream_events
from experiment_service.storage.partitions import check_whole
from experiment_service.storage.rounds import stream_rounds

#: What can be exported.
Content = Literal["rounds", "exposures", "interactions"]
CONTENTS: tuple[Content, ...] = ("rounds", "exposures", "interactions")

_ENDINGS = (".csv", ".csv.gz", ".parquet")
_TIME = pa.timestamp("us", tz="UTC")
_TEXTS = pa.list_(pa.string())
_SCHEMAS = {
    "rounds": pa.schema(
        {
            "arm": pa.string(),
            "propensity": pa.float64(),
            "reward": pa.float64(),
            "time": pa.float64(),
            "unit": pa.int64(),
            "segment": pa.string(),
        }
    ),
    "exposures": pa.schema(
        {
            "id": pa.string(),
            "epoch": pa.int32(),
            "unit_id": pa.string(),
            "variant": pa.string(),
            "propensity": pa.float64(),
            "model": pa.string(),
            "items": _TEXTS,
            "sources": _TEXTS,
            "fallback": pa.bool_(),
            "context": pa.string(),
            "exposed_at": _TIME,
            "segment": pa.string(),
            "recorded_at": _TIME,
        }
    ),
    "interactions": pa.schema(
        {
            "id": pa.string(),
            "exposure_id": pa.string(),
            "unit_id": pa.string(),
            "kind": pa.string(),
            "item_id": pa.string(),
            "position": pa.int16(),
            "value": pa.float64(),
            "occurred_at": _TIME,
            "recorded_at": _TIME,
            "category": pa.string(),
            "placement": pa.string(),
        }
    ),
}


class _Writer(Protocol):
    def write_batch(self, batch: pa.RecordBatch) -> None: ...


def export(
    connection: Connection,
    key: str,
    content: Content,
    path: Path,
    *,
    cutoff: datetime,
    metric: str | None = None,
    segment_by: Sequence[str] = (),
) -> int:
    """Write what an experiment recorded to a file; return the number of rows.

    The file is there whole or not at all.

    Parameters
    ----------
    content : {"rounds", "exposures", "interactions"}
        Rounds are the units whose window has closed, with the columns that replay
        takes from a file; interactions those that count for the experiment.
    path : Path
        New file that ends in .csv, .csv.gz or .parquet.
    cutoff : datetime
        Rounds count when their window has closed by then.
    metric : str, optional
        The reward of rounds; the experiment's when left out.
    segment_by : sequence of str
        Attributes that make the segment of rounds.

    Raises
    ------
    NotFound
        When there is no such experiment or metric.
    InvalidRequest
        When the file exists, can't be written or is of another kind, or the metric is a
        ratio.
    InvalidState
        When raw events of the experiment have been retired.
    """
    experiment = storage.get_experiment(connection, key)
    if not path.name.endswith(_ENDINGS):
        raise InvalidRequest(
            f"file {path.name!r} is of no known kind; known endings: "
            f"{', '.join(_ENDINGS)}"
        )
    if path.exists():
        raise InvalidRequest(f"file {str(path)!r} exists; choose another name")
    if content == "rounds":
        batches = _rounds(connection, experiment, cutoff, metric, segment_by)
    else:
        check_whole(connection, experiment.id)
        batches = stream_events(connection, experiment, content)
    partial = path.with_name(f".{path.name}.partial")
    try:
        rows = _write(partial, path.name, content, batches)
        partial.rename(path)
    except OSError as error:
        raise InvalidRequest(f"file {str(path)!r} can't be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return rows


def _rounds(
    connection: Connection,
    experiment: Experiment,
    cutoff: datetime,
    metric: str | None,
    segment_by: Sequence[str],
) -> Iterator[list[dict[str, Any]]]:
    chosen = simple_metric(experiment.declaration, metric)
    names = [variant.key for variant in experiment.declaration.variants]
    for batch in stream_rounds(
        connection, experiment, chosen, cutoff=cutoff, segment_by=segment_by
    ):
        segments: Sequence[str | None] = batch.segment or [None] * len(batch.arm)
        yield [
            {
                "arm": names[arm],
                "propensity": propensity,
                "reward": reward,
                "time": time,
                "unit": unit,
                "segment": segment,
            }
            for arm, propensity, reward, time, unit, segment in zip(
                batch.arm.tolist(),
                batch.propensity.tolist(),
                batch.reward.tolist(),
                batch.time.tolist(),
                batch.unit.tolist(),
                segments,
                strict=True,
            )
        ]


def _write(
    partial: Path, name: str, content: Content, batches: Iterator[list[dict[str, Any]]]
) -> int:
    schema = _SCHEMAS[content]
    lists = [each.name for each in schema if each.type == _TEXTS]
    flat = not name.endswith(".parquet")
    if flat:
        # A field of CSV holds no list: it is JSON there.
        kinds = {each.name: each.type for each in schema}
        schema = pa.schema({**kinds, **dict.fromkeys(lists, pa.string())})
    rows = 0
    with _open(partial, name, schema) as writer:
        for batch in batches:
            if flat:
                for row in batch:
                    row.update({each: json.dumps(row[each]) for each in lists})
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
            rows += len(batch)
    return rows


@contextmanager
def _open(partial: Path, name: str, schema: pa.Schema) -> Iterator[_Writer]:
    if name.endswith(".parquet"):
        with pq.ParquetWriter(partial, schema) as writer:
            yield writer
        return
    compression = "gzip" if name.endswith(".gz") else None
    with (
        pa.output_stream(str(partial), compression=compression) as stream,
        pa_csv.CSVWriter(stream, schema) as writer,
    ):
        yield writer
