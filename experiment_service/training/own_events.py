"""The service's own events as data to train on: what units did, were shown, and left."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine

from experiment_service.errors import InvalidRequest, InvalidState
from experiment_service.storage.database import transaction
from experiment_service.storage.feedback import (
    Asked,
    find_feedback,
    first_kept,
    settled_instant,
    stream_interactions,
    stream_shown,
)
from experiment_service.training.data import as_invalid_request
from experiment_service.training.pipeline import OwnEvents
from recommenders.feedback import PositionBias, estimate_position_bias

#: However unlikely a look was, what followed counts at most so many times.
MOST_WEIGHED = 10.0

_TIME = "datetime64[us, UTC]"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Feedback:
    """Own events.

    Attributes
    ----------
    interactions : DataFrame
        As of `recommenders.tables.read_interactions`, and ``by_list``: whether it came
        by a list that the service made. May be empty.
    shown : DataFrame or None
        What units were shown: ``unit_id``, ``item_id``, ``occurred_at``, and
        ``evidence`` against the pair, in the units of ``weight``, below 0 where it was
        taken. None when nobody learns from it.
    facts : mapping
        What was read and how, for the version.
    """

    interactions: pd.DataFrame
    shown: pd.DataFrame | None
    facts: Mapping[str, Any]


def load_own_events(
    engine: Engine,
    own: OwnEvents,
    *,
    since: datetime | None,
    until: datetime,
    market: str | None,
    dislikes: bool,
    others: Iterable[str] = (),
) -> Feedback:
    """Read own events.

    Parameters
    ----------
    since, until : datetime or None, datetime
        When they happened, the end not included; all that are kept without `since`.
    market : str or None
        Whose, by the attribute that the pipeline names.
    dislikes : bool
        Whether the recommender learns from what units were shown and did not take. For
        one that does not, what came by a list has its weight divided by the chance of
        a look at its position, but is never weighed more than ten times.
    others : iterable of str
        Units that are known from elsewhere: what they were shown counts too.

    Raises
    ------
    InvalidState
        When events of the time asked for were retired.
    InvalidRequest
        When no list was viewed though only such are asked for, or the position bias
        can't be estimated.
    """
    with transaction(engine) as connection:
        settled = settled_instant(connection)
    with transaction(engine) as connection:
        _check_kept(first_kept(connection), since)
        asked = Asked(
            kinds=sorted(own.kinds),
            since=since,
            until=until,
            stored_until=min(settled, own.stored_until or settled),
            attribute=None if market is None else (str(own.market_attribute), market),
            most_a_day=own.most_a_day,
        )
        found = find_feedback(connection, asked)
        if own.only_viewed and found.exposures and not found.any_viewed:
            raise InvalidRequest(
                f"data.own.only_viewed is true, and none of {found.exposures} exposures "
                "was viewed; set it to false where the shop sends no viewed"
            )
        done = _interactions(connection, asked)
        units = {*done["unit_id"], *others}
        # While nothing comes of any list, interactions may just not be sent.
        looks = None
        if done["by_list"].any() and (dislikes or own.position_bias == "estimated"):
            looks = _looks(connection, asked, units, only_viewed=own.only_viewed)
    bias = _position_bias(own, looks)
    shown = None
    if dislikes and looks is not None:
        shown = _evidence(looks, bias, weight=min(own.kinds.values()))
        # What was drawn for others told of positions, and that is all.
        shown = shown[shown["unit_id"].isin(units)]
    facts = {
        "until": until.isoformat(),
        "stored_until": asked.stored_until.isoformat(),
        "exposures": found.exposures,
        "interactions": len(done),
        "by_list": int(done["by_list"].sum()),
        "unusable": found.unusable,
        "robots": found.robots,
        "left_counts_against": shown is not None,
        "position_bias": bias.power,
        "position_bias_error": bias.standard_error,
    }
    weights = done["kind"].map(own.kinds).astype(np.float64)
    if not dislikes:
        weights *= _per_look(bias, done["position"])
    return Feedback(
        interactions=done[["unit_id", "item_id", "occurred_at"]].assign(
            weight=weights, by_list=done["by_list"]
        ),
        shown=shown,
        facts=facts,
    )


def check_not_empty(feedback: Feedback) -> None:
    """Refuse own events that are all there is to learn from, and hold no interaction.

    Raises
    ------
    InvalidRequest
        Says what was found instead.
    """
    if feedback.interactions.empty:
        facts = feedback.facts
        raise InvalidRequest(
            "data.own has no interaction to learn from: there are "
            f"{facts['exposures']} exposures and {facts['unusable']} interactions "
            f"without a unit or an item, and {facts['robots']} units were left out for "
            "more than most_a_day events; send interactions of the kinds named, or add "
            "data.interactions"
        )


def _check_kept(kept: datetime | None, since: datetime | None) -> None:
    if since is not None and kept is not None and since < kept:
        raise InvalidState(
            f"data.own asks for events since {since:%Y-%m-%d}, and those before "
            f"{kept:%Y-%m-%d} have been retired; lower data.days"
        )


def _interactions(connection: Connection, asked: Asked) -> pd.DataFrame:
    rows = [row for batch in stream_interactions(connection, asked) for row in batch]
    columns = ["unit_id", "item_id", "kind", "occurred_at", "by_list", "position"]
    read = pd.DataFrame(rows, columns=columns)
    return read.astype({"by_list": bool, "position": np.float64}).assign(
        occurred_at=pd.to_datetime(read["occurred_at"], utc=True).astype(_TIME)
    )


def _looks(
    connection: Connection, asked: Asked, units: set[str], *, only_viewed: bool
) -> pd.DataFrame:
    """Return the places that were shown; ids as categories, as there are many rows.

    Of units that are not among those given, only what exploration drew.
    """
    unit_codes: dict[str, int] = {}
    item_codes: dict[str, int] = {}
    drawn_codes: dict[str | None, int] = {None: -1}
    parts = []
    for batch in stream_shown(connection, asked, only_viewed=only_viewed):
        rows = [row for row in batch if row[0] in units or row[3]]
        if not rows:
            continue
        columns: list[tuple[Any, ...]] = list(zip(*rows, strict=True))
        unit_ids, item_ids, positions, drawn_by, taken, instants = columns
        parts.append(
            pd.DataFrame(
                {
                    "unit": _encoded(unit_ids, unit_codes),
                    "item": _encoded(item_ids, item_codes),
                    "position": np.array(positions, dtype=np.int16),
                    "drawn": _encoded(drawn_by, drawn_codes, first=-1),
                    "taken": np.array(taken, dtype=bool),
                    "instant": np.array(instants, dtype=np.int64),
                }
            )
        )
    names = ("unit", "item", "position", "drawn", "taken", "instant")
    read = pd.concat(parts) if parts else pd.DataFrame(columns=names, dtype=np.int64)
    return pd.DataFrame(
        {
            "unit_id": pd.Categorical.from_codes(read["unit"], list(unit_codes)),
            "item_id": pd.Categorical.from_codes(read["item"], list(item_codes)),
            "occurred_at": pd.to_datetime(
                read["instant"].to_numpy(), unit="us", utc=True
            ).astype(_TIME),
            "position": read["position"].to_numpy(np.int16),
            "drawn": read["drawn"].to_numpy(np.int32),
            "taken": read["taken"].to_numpy(bool),
        }
    )


def _encoded(
    values: Sequence[Any], codes: dict[Any, int], *, first: int = 0
) -> NDArray[np.int32]:
    """Return numbers of values, by the order in which they came, from `first` on."""
    numbers = (codes.setdefault(value, len(codes) + first) for value in values)
    return np.fromiter(numbers, np.int32, len(values))


def _position_bias(own: OwnEvents, looks: pd.DataFrame | None) -> PositionBias:
    if own.position_bias != "estimated":
        return PositionBias(power=float(own.position_bias))
    if looks is None:
        return PositionBias(power=0.0)  # there is nothing to weigh by it
    units = looks["unit_id"].cat.codes.to_numpy(np.int64)
    items = looks["item_id"].cat.codes.to_numpy(np.int64)
    pairs = units * len(looks["item_id"].cat.categories) + items
    drawn = looks["drawn"].to_numpy(np.int64)
    with as_invalid_request():
        return estimate_position_bias(
            np.where(drawn >= 0, -1 - drawn, pairs),
            units,
            looks["position"].to_numpy(np.int64),
            looks["taken"].to_numpy(),
        )


def _evidence(
    looks: pd.DataFrame, bias: PositionBias, *, weight: float
) -> pd.DataFrame:
    """Return what looks tell against pairs: each as much as the least that may follow."""
    chances = bias.examination(looks["position"].to_numpy())
    return looks[["unit_id", "item_id", "occurred_at"]].assign(
        evidence=weight * (chances - looks["taken"].to_numpy())
    )


def _per_look(bias: PositionBias, positions: pd.Series) -> pd.Series:
    """Return one over the chance of a look, 1 where there is no position."""
    chances = bias.examination(positions.fillna(1).to_numpy())
    return pd.Series(np.minimum(1 / chances, MOST_WEIGHED), index=positions.index)


def said(facts: Mapping[str, Any]) -> str:
    """Return what was read in a few words."""
    error = facts["position_bias_error"]
    spread = "" if error is None else f" (standard error {error:.2f})"
    told = (
        f"{facts['interactions']} own interactions, {facts['by_list']} of them by lists, "
        f"with position bias {facts['position_bias']:.2f}{spread}"
    )
    robots = facts["robots"]
    return f"{told}, without {robots} units that are no shoppers" if robots else told
