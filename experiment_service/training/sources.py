"""The data that a pipeline names: of its market, of its time, with its catalogue."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pandas as pd

from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.errors import InvalidRequest
from experiment_service.training.data import (
    listed_only,
    load_catalogue,
    load_interactions,
    pseudonymised,
    time_range,
)
from experiment_service.training.pipeline import MARKET, Data


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """Data to train on.

    Attributes
    ----------
    interactions : DataFrame
        As of `load_interactions`.
    unfiltered : DataFrame
        Also those with items that the catalogue does not list.
    catalogue : DataFrame or None
    """

    interactions: pd.DataFrame
    unfiltered: pd.DataFrame
    catalogue: pd.DataFrame | None


def load(
    data: Data, market: str | None, *, folder: Path, pseudonyms: Pseudonyms | None
) -> Loaded:
    """Load what a pipeline trains on.

    Parameters
    ----------
    market : str or None
        Whose; of all where it is None.
    folder : Path
        That paths are seen from.

    Raises
    ------
    InvalidRequest
        When a file can't be read or holds bad values, or nothing is left.
    """
    path = _path(data.interactions, market, folder)
    loaded = load_interactions(path, cut=data.until)
    if market is not None and MARKET not in (data.interactions or ""):
        loaded = _of_market(loaded, market, data.interactions)
    if data.days is not None:
        last = time_range(loaded)[1]
        loaded = loaded[loaded["occurred_at"] > last - timedelta(days=data.days)]
    if pseudonyms is not None:
        loaded = pseudonymised(loaded, pseudonyms)
    listed = _path(data.catalogue, market, folder)
    if listed is None and not data.complete_journey:
        return Loaded(interactions=loaded, unfiltered=loaded, catalogue=None)
    catalogue = load_catalogue(listed, interactions=loaded)
    kept = loaded if listed is None else listed_only(loaded, catalogue, of=listed)
    return Loaded(interactions=kept, unfiltered=loaded, catalogue=catalogue)


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
