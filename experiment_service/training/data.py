"""What to train on: loaded, checked, cut in time, and known again by its digest."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from experiment_service.domain.event import check_id
from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.errors import InvalidRequest
from recommenders import complete_journey
from recommenders.instants import microseconds
from recommenders.interactions import IdMap, Interactions
from recommenders.tables import read_catalogue, read_interactions, split_at

log = logging.getLogger(__name__)

#: With fewer units, what is learned is an accident of a few.
MIN_UNITS = 10

#: Share of the interactions, the first in time, that judging learns from.
LEARNED_SHARE = 0.8

_COLUMNS = ("unit_id", "item_id", "occurred_at", "weight")


@contextmanager
def as_invalid_request() -> Iterator[None]:
    """Turn what the recommenders refuse into an error of the service."""
    try:
        yield
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def load_interactions(
    path: Path | None,
    *,
    catalogue: Path | None = None,
    cut: datetime | None = None,
    counted_before: datetime | None = None,
) -> pd.DataFrame:
    """Load what to train on.

    Parameters
    ----------
    path : Path or None
        CSV or Parquet as of `recommenders.tables.read_interactions`; None loads the
        Complete Journey.
    catalogue : Path, optional
        CSV or Parquet as of `recommenders.tables.read_catalogue`: interactions with
        items that are not listed, such as those no longer sold, are left out.
    cut : datetime, optional
        Only what lies before it is kept.
    counted_before : datetime, optional
        Start of a test period: of the Complete Journey, products count as rare by what
        lies before; at `cut` when left out.

    Raises
    ------
    InvalidRequest
        When a file can't be read or holds bad values, or nothing is left.
    """
    with as_invalid_request():
        if path is None:
            loaded = complete_journey.load_interactions(
                counted_before=counted_before or cut
            )
        else:
            loaded = read_interactions(path)
        if cut is not None:
            loaded, _ = split_at(loaded, cut)
        if catalogue is None:
            return loaded
        return listed_only(loaded, read_catalogue(catalogue), of=catalogue)


def listed_only(
    interactions: pd.DataFrame, catalogue: pd.DataFrame, *, of: Path
) -> pd.DataFrame:
    """Leave out interactions with items that a catalogue does not list.

    Parameters
    ----------
    of : Path
        File of the catalogue, for messages.

    Raises
    ------
    InvalidRequest
        When nothing is left.
    """
    listed = interactions["item_id"].isin(catalogue["item_id"])
    if not listed.any():
        raise InvalidRequest(
            f"no interaction is with an item of {of}; item_id must be the same text in "
            "both files"
        )
    if not listed.all():
        log.info("left out interactions=%d not_in=%s", (~listed).sum(), of)
    return interactions[listed]


def pseudonymised(interactions: pd.DataFrame, pseudonyms: Pseudonyms) -> pd.DataFrame:
    """Return interactions with what stands for their units, as requests will."""
    units = interactions["unit_id"]
    by_unit = {unit: pseudonyms.of(str(unit)) for unit in units.unique()}
    return interactions.assign(unit_id=units.astype(object).map(by_unit))


def check_interactions(interactions: pd.DataFrame, *, now: datetime) -> None:
    """Refuse interactions that can't be trained on.

    Raises
    ------
    InvalidRequest
        When a column is missing, a time has no zone or lies after `now`, there are
        fewer than `MIN_UNITS` units, or an id could not be served.
    """
    missing = [name for name in _COLUMNS if name not in interactions.columns]
    if missing:
        raise InvalidRequest(f"interactions lack the columns {', '.join(missing)}")
    if interactions.empty:
        raise InvalidRequest("interactions are empty; there is nothing to learn from")
    instants = interactions["occurred_at"]
    if not isinstance(instants.dtype, pd.DatetimeTZDtype) or instants.isna().any():
        raise InvalidRequest("occurred_at must be a time with a time zone in every row")
    if instants.max() > now:
        raise InvalidRequest(
            f"the last interaction is of {instants.max()}, after now, {now}; check the "
            "times and their zone"
        )
    for name in ("unit_id", "item_id"):
        with as_invalid_request():
            ids = IdMap.from_ids(interactions[name])
        for each in ids:
            check_id(name, each)
        if name == "unit_id" and len(ids) < MIN_UNITS:
            raise InvalidRequest(
                f"interactions are of {len(ids)} units; at least {MIN_UNITS} are needed"
            )


def load_catalogue(path: Path | None, *, interactions: pd.DataFrame) -> pd.DataFrame:
    """Load what is known of the items.

    Parameters
    ----------
    path : Path or None
        CSV or Parquet as of `recommenders.tables.read_catalogue`; None loads that of
        the Complete Journey.
    interactions : DataFrame
        Of the Complete Journey, only its products: the others are those left out as
        rare, and no new ones.

    Raises
    ------
    InvalidRequest
        When the file can't be read or holds bad values.
    """
    with as_invalid_request():
        if path is not None:
            return read_catalogue(path)
        listed = complete_journey.load_catalogue()
    return listed[listed["item_id"].isin(interactions["item_id"].unique())]


def to_matrix(
    interactions: pd.DataFrame,
    catalogue: pd.DataFrame | None = None,
    *,
    shown: pd.DataFrame | None = None,
    cold_items: bool = False,
) -> Interactions:
    """Sum up the weights of each pair of unit and item.

    Parameters
    ----------
    shown : DataFrame, optional
        What units were shown, as of `Feedback.shown`.
    cold_items : bool
        Number the items of the catalogue that nobody had too.
    """
    summed = Interactions.from_columns(
        interactions["unit_id"].tolist(),
        interactions["item_id"].tolist(),
        interactions["weight"].to_numpy(np.float64),
        times=microseconds(interactions["occurred_at"]),
        catalogue=catalogue,
        cold_items=cold_items,
    )
    if shown is None:
        return summed
    return summed.with_passed(
        shown["unit_id"].tolist(),
        shown["item_id"].tolist(),
        shown["evidence"].to_numpy(np.float64),
    )


def shown_before(shown: pd.DataFrame | None, instant: datetime) -> pd.DataFrame | None:
    """Return what was shown before an instant, where it is known what was shown."""
    return None if shown is None else shown[shown["occurred_at"] < instant]


def to_be_found(later: pd.DataFrame) -> pd.DataFrame:
    """Return the interactions of a test period that did not come by a list.

    Those that did tell what was shown: whatever ranks as the list did would find them.

    Raises
    ------
    ValueError
        When nothing is left.
    """
    if "by_list" not in later:
        return later
    by_list = later["by_list"]
    if by_list.all():
        raise ValueError(
            f"all {len(later)} interactions since {later['occurred_at'].min()} came by "
            "lists of the service, and tell what was shown; there must be some by the "
            "unit alone, or of data.interactions, to judge by"
        )
    return later[~by_list]


def unit_groups(interactions: pd.DataFrame, data: Interactions) -> dict[str, list[str]]:
    """Return the market of each unit, its last one, where the interactions have it."""
    if "market" not in interactions:
        return {}
    last = interactions.sort_values("occurred_at", kind="stable").dropna(
        subset=["market"]
    )
    market_of = last.groupby("unit_id")["market"].last().to_dict()
    return {"market": [market_of.get(unit, "unknown") for unit in data.units]}


def default_test_start(interactions: pd.DataFrame) -> datetime:
    """Return the instant before which `LEARNED_SHARE` of the interactions lie."""
    instants = interactions["occurred_at"]
    return _instant(instants.quantile(LEARNED_SHARE, interpolation="higher"))


def time_range(interactions: pd.DataFrame) -> tuple[datetime, datetime]:
    """Return the first and the last instant."""
    instants = interactions["occurred_at"]
    return _instant(instants.min()), _instant(instants.max())


def digest(interactions: pd.DataFrame, shown: pd.DataFrame | None = None) -> str:
    """Return SHA-256 of the data, the same for any order of its rows.

    Parameters
    ----------
    shown : DataFrame, optional
        What units were shown, where it is learned from too.
    """
    hashed = hashlib.sha256()
    _add_rows(hashed, interactions, "weight")
    if shown is not None and not shown.empty:
        _add_rows(hashed, shown, "evidence")
    return hashed.hexdigest()


def _add_rows(hashed: "hashlib._Hash", table: pd.DataFrame, value: str) -> None:
    columns = []
    for name in ("unit_id", "item_id"):
        ids = IdMap.from_ids(table[name])
        hashed.update(json.dumps(ids.ids).encode())
        columns.append(ids.rows(table[name].tolist()).astype("<i8"))
    instants = table["occurred_at"].dt.tz_convert(None)
    columns.append(instants.to_numpy("datetime64[us]").astype("<i8"))
    columns.append(table[value].to_numpy("<f8"))
    order = np.lexsort(columns)
    for column in columns:
        hashed.update(column[order].tobytes())


def _instant(timestamp: pd.Timestamp) -> datetime:
    instant: datetime = timestamp.floor("us").to_pydatetime()
    return instant
