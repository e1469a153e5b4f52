"""The data that a pipeline names: of its market, of its time, with its catalogue."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from sqlalchemy import Engine

from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.errors import InvalidRequest
from experiment_service.training.data import (
    listed_only,
    load_catalogue,
    load_interactions,
    pseudonymised,
    time_range,
)
from experiment_service.training.own_events import (
    Feedback,
    check_not_empty,
    load_own_events,
)
from experiment_service.training.pipeline import MARKET, Data, Pipeline
from recommenders import RECOMMENDERS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """Data to train on.

    Attributes
    ----------
    interactions : DataFrame
        As of `load_interactions`; with ``by_list``, as of `Feedback`, where own events
        are among them.
    unfiltered : DataFrame
        Also those with items that the catalogue does not list.
    catalogue : DataFrame or None
    shown : DataFrame or None
        As of `Feedback`.
    own_events : mapping or None
        What was read of own events, where some were asked for.
    """

    interactions: pd.DataFrame
    unfiltered: pd.DataFrame
    catalogue: pd.DataFrame | None
    shown: pd.DataFrame | None
    own_events: Mapping[str, Any] | None


def load(
    pipeline: Pipeline,
    market: str | None,
    *,
    engine: Engine,
    folder: Path,
    pseudonyms: Pseudonyms | None,
    now: datetime,
) -> Loaded:
    """Load what a pipeline trains on.

    Parameters
    ----------
    market : str or None
        Whose; of all where it is None.
    folder : Path
        That paths are seen from.
    now : datetime
        Own events are read up to here, unless the pipeline says until when.

    Raises
    ------
    InvalidRequest
        When a file can't be read or holds bad values, or nothing is left.
    InvalidState
        When own events that are asked for were retired.
    """
    data = pipeline.data
    imported = _imported(data, market, folder=folder, pseudonyms=pseudonyms)
    own = _own_events(pipeline, market, engine=engine, now=now, imported=imported)
    loaded = _together(imported, own)
    if data.days is not None:
        last = time_range(loaded)[1]
        loaded = loaded[loaded["occurred_at"] > last - timedelta(days=data.days)]
    listed = _path(data.catalogue, market, folder)
    catalogue, kept = None, loaded
    if listed is not None or data.complete_journey:
        catalogue = load_catalogue(listed, interactions=loaded)
    if listed is not None and catalogue is not None:
        kept = listed_only(loaded, catalogue, of=listed)
    return Loaded(
        interactions=kept,
        unfiltered=loaded,
        catalogue=catalogue,
        shown=None if own is None else own.shown,
        own_events=None if own is None else own.facts,
    )


def _imported(
    data: Data, market: str | None, *, folder: Path, pseudonyms: Pseudonyms | None
) -> pd.DataFrame | None:
    path = _path(data.interactions, market, folder)
    if path is None and not data.complete_journey:
        return None
    loaded = load_interactions(path, cut=data.until)
    if market is not None and MARKET not in (data.interactions or ""):
        loaded = _of_market(loaded, market, data.interactions)
    return loaded if pseudonyms is None else pseudonymised(loaded, pseudonyms)


def _together(imported: pd.DataFrame | None, own: Feedback | None) -> pd.DataFrame:
    parts = [] if imported is None else [imported]
    if own is not None:
        if not parts:
            check_not_empty(own)
        parts = [each.assign(by_list=False) for each in parts]
        if not own.interactions.empty:
            parts.append(own.interactions)
    return parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)


def _own_events(
    pipeline: Pipeline,
    market: str | None,
    *,
    engine: Engine,
    now: datetime,
    imported: pd.DataFrame | None,
) -> Feedback | None:
    data = pipeline.data
    if data.own is None:
        return None
    until = now if data.until is None else min(now, data.until)
    return load_own_events(
        engine,
        data.own,
        since=None if data.days is None else until - timedelta(days=data.days),
        until=until,
        market=market,
        dislikes=RECOMMENDERS[pipeline.recommender].capabilities.dislikes,
        others=() if imported is None else imported["unit_id"].unique(),
    )


def _path(written: str | None, market: str | None, folder: Path) -> Path | None:
    if written is None:
        return None
    return folder / written.replace(MARKET, market or "")


def _of_market(
    interactions: pd.DataFrame, market: str, written: str | None
) -> pd.DataFrame:
    if "market" not in interactions:
        raise InvalidRequest(
            f"{written or 'the data'} has no column market to choose {market!r} by; "
            f"write {MARKET} in the path where each market has a file"
        )
    chosen = interactions[interactions["market"] == market]
    if chosen.empty:
        known = interactions["market"].dropna().unique().tolist()
        raise InvalidRequest(
            f"no interaction is of market {market!r}; markets: "
            f"{', '.join(sorted(map(str, known))[:20]) or 'none'}"
        )
    return chosen
