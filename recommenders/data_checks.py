"""Checks of interactions before a training, and the small profile they compare by.

Looks at tables only; what follows from a verdict is the caller's. A check says what was
measured and what it had to be, as those of lists do.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pandas as pd

from recommenders.checklist import Check
from recommenders.drift import LEAST_SHARE, stability_index, stability_noise

#: Names of a feature that get a bin of their own, the most frequent ones; the others
#: share one.
LARGEST_BINS = 20

#: Bins of a number, of equally many interactions each in the data that set them.
QUANTILES = 10

_OTHER, _MISSING = "other", "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What data must be like to be trained on; None leaves a check out.

    Attributes
    ----------
    min_interactions, min_units, min_items : int
        Volumes.
    max_duplicates : float
        Share of the interactions that repeat another: unit, item and time.
    max_gap_days : float
        Longest time without any interaction, between the first and the last.
    max_age_days : float
        From the last interaction to now: an export that stands still is seen here.
    max_unit_share : float
        Share of the interactions that one unit has: a robot, or a test account.
    max_unlisted, max_without_category, max_without_price : float
        Shares of the interactions, with items that the catalogue does not list, or of
        which it does not tell that. They need a catalogue.
    min_volume : float
        Interactions, times those of the version that serves.
    min_same_units, min_same_items : float
        Shares of the units and items in the lists that serve that the data knows: ids
        that were written anew are seen here.
    max_psi : float
        Population stability index of each feature against the version that serves.

    Raises
    ------
    ValueError
        When one is negative, a share above 1, or not finite.
    """

    min_interactions: int | None = 1000
    min_units: int | None = 50
    min_items: int | None = 10
    max_duplicates: float | None = 0.1
    max_gap_days: float | None = 14.0
    max_age_days: float | None = 14.0
    max_unit_share: float | None = 0.1
    max_unlisted: float | None = 0.2
    max_without_category: float | None = None
    max_without_price: float | None = None
    min_volume: float | None = 0.5
    min_same_units: float | None = 0.2
    min_same_items: float | None = 0.5
    max_psi: float | None = 0.25

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None:
                continue
            high = 1.0 if each.name in _SHARES else math.inf
            if not (math.isfinite(value) and 0 <= value <= high):
                rule = "in 0 to 1" if high == 1 else "finite and 0 or more"
                raise ValueError(f"{each.name} is {value}; it must be {rule}")


_SHARES = frozenset(
    {
        "max_duplicates",
        "max_unit_share",
        "max_unlisted",
        "max_without_category",
        "max_without_price",
        "min_same_units",
        "min_same_items",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataProfile:
    """What is kept of data to compare the next with; some kilobytes, and no ids of units.

    Attributes
    ----------
    interactions, units, items : int
    shares : mapping of str to mapping of str to float
        For each feature its bins and the share of the interactions, or of the units
        for ``interactions per unit``, in each; they sum to 1.
    edges : mapping of str to sequence of float
        Inner edges of the bins of features that are numbers.
    """

    interactions: int
    units: int
    items: int
    shares: Mapping[str, Mapping[str, float]]
    edges: Mapping[str, Sequence[float]]

    def document(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return asdict(self)


def profile(
    interactions: pd.DataFrame,
    catalogue: pd.DataFrame | None = None,
    *,
    like: DataProfile | None = None,
) -> DataProfile:
    """Sum up data.

    Parameters
    ----------
    interactions, catalogue : DataFrame
        As of `tables.read_interactions` and `tables.read_catalogue`; not empty.
    like : DataProfile, optional
        Use its bins, so that the two compare.
    """
    shares: dict[str, dict[str, float]] = {}
    edges: dict[str, list[float]] = {}
    for name, values in _names(interactions, catalogue).items():
        known = None if like is None else like.shares.get(name)
        shares[name] = _shares_of_names(values, known)
    for name, numbers in _numbers(interactions, catalogue).items():
        given = None if like is None else like.edges.get(name)
        edges[name] = _quantile_edges(numbers) if given is None else list(given)
        shares[name] = _shares_of_numbers(numbers, edges[name])
    return DataProfile(
        interactions=len(interactions),
        units=interactions["unit_id"].nunique(),
        items=interactions["item_id"].nunique(),
        shares=shares,
        edges=edges,
    )


def check_data(
    interactions: pd.DataFrame,
    thresholds: Thresholds,
    *,
    catalogue: pd.DataFrame | None = None,
    now: datetime,
) -> list[Check]:
    """Check data by itself.

    Parameters
    ----------
    interactions : DataFrame
        As of `tables.read_interactions`, also those with items that are not listed.
    now : datetime
        With a time zone.

    Returns
    -------
    list of Check
        None for thresholds that are None, or that need a catalogue when there is none.
    """
    count = len(interactions)
    times = interactions["occurred_at"].sort_values()
    busiest = interactions["unit_id"].value_counts().max()
    day = pd.Timedelta(days=1)
    twice = interactions.duplicated(["unit_id", "item_id", "occurred_at"])
    measured = [
        ("interactions", count, thresholds.min_interactions),
        ("units", interactions["unit_id"].nunique(), thresholds.min_units),
        ("items", interactions["item_id"].nunique(), thresholds.min_items),
    ]
    bounded = [
        ("share of repeated interactions", twice.mean(), thresholds.max_duplicates),
        (
            "longest gap in days",
            times.diff().max() / day if count > 1 else 0.0,
            thresholds.max_gap_days,
        ),
        (
            "days since the last interaction",
            (pd.Timestamp(now) - times.iloc[-1]) / day,
            thresholds.max_age_days,
        ),
        (
            "share of the interactions of the busiest unit",
            busiest / count,
            thresholds.max_unit_share,
        ),
    ]
    if catalogue is not None:
        bounded += _catalogue_shares(interactions, catalogue, thresholds)
    return [
        *(
            _check(name, value, bound, "at least")
            for name, value, bound in measured
            if bound is not None
        ),
        *(
            _check(name, value, bound, "at most")
            for name, value, bound in bounded
            if bound is not None
        ),
    ]


def compare_data(
    new: DataProfile, old: DataProfile, thresholds: Thresholds
) -> list[Check]:
    """Check data against that of the version that serves.

    Parameters
    ----------
    new : DataProfile
        Made with the bins of `old`.

    Returns
    -------
    list of Check
        Where a population stability index could be so large by chance alone, at that
        many units, its threshold is the greatest that chance explains.
    """
    checks = []
    if thresholds.min_volume is not None:
        checks.append(
            _check(
                "interactions, times those of the version that serves",
                new.interactions / old.interactions,
                thresholds.min_volume,
                "at least",
            )
        )
    if thresholds.max_psi is None:
        return checks
    for name, before in old.shares.items():
        after = new.shares.get(name)
        if after is None:
            # Such as prices, when the catalogue is no longer given.
            checks.append(
                _check(f"drift of {name}", math.nan, thresholds.max_psi, "at most")
            )
            continue
        bins = sorted({*before, *after})
        index = stability_index(
            np.array([after.get(each, 0.0) for each in bins]),
            np.array([before.get(each, 0.0) for each in bins]),
            # As if one unit were there, or an empty bin of a few would be drift.
            least=max(LEAST_SHARE, 1 / min(new.units, old.units)),
        )
        chance = stability_noise(len(bins), new.units, old.units)
        checks.append(
            _check(
                f"drift of {name}", index, max(thresholds.max_psi, chance), "at most"
            )
        )
    return checks


def check_overlap(units: float, items: float, thresholds: Thresholds) -> list[Check]:
    """Check which share of the units and items that serve the data still knows."""
    named = (
        ("units", units, thresholds.min_same_units),
        ("items", items, thresholds.min_same_items),
    )
    return [
        _check(
            f"share of the {name} served now that the data has",
            value,
            bound,
            "at least",
        )
        for name, value, bound in named
        if bound is not None
    ]


def _check(
    name: str,
    value: float,
    threshold: float,
    rule: Literal["at least", "at most"],
) -> Check:
    return Check(
        name=f"data: {name}", value=float(value), threshold=threshold, rule=rule
    )


def _catalogue_shares(
    interactions: pd.DataFrame, catalogue: pd.DataFrame, thresholds: Thresholds
) -> list[tuple[str, float, float | None]]:
    items = interactions["item_id"]
    shares = [
        (
            "share of interactions with items not in the catalogue",
            float((~items.isin(catalogue["item_id"])).mean()),
            thresholds.max_unlisted,
        )
    ]
    for column, bound in (
        ("category", thresholds.max_without_category),
        ("price", thresholds.max_without_price),
    ):
        told = (
            catalogue.loc[catalogue[column].notna(), "item_id"]
            if column in catalogue
            else []
        )
        shares.append(
            (
                f"share of interactions with items without {column}",
                float((~items.isin(told)).mean()),
                bound,
            )
        )
    return shares


# Features


def _names(
    interactions: pd.DataFrame, catalogue: pd.DataFrame | None
) -> dict[str, pd.Series]:
    """Return the features that are names, one value for each interaction or unit."""
    per_unit = interactions["unit_id"].value_counts()
    powers = np.floor(np.log2(per_unit)).astype(int)
    named = {
        "interactions per unit": powers.map(lambda power: f"from {2**power}"),
        "days of the week": interactions["occurred_at"].dt.day_name(),
    }
    if "market" in interactions:
        named["markets"] = interactions["market"]
    if catalogue is not None and _tells(catalogue, "category"):
        named["categories"] = _looked_up(interactions, catalogue, "category")
    return named


def _numbers(
    interactions: pd.DataFrame, catalogue: pd.DataFrame | None
) -> dict[str, pd.Series]:
    numbers = {"weights": interactions["weight"]}
    if catalogue is not None and _tells(catalogue, "price"):
        numbers["prices"] = _looked_up(interactions, catalogue, "price")
    return numbers


def _tells(catalogue: pd.DataFrame, column: str) -> bool:
    return column in catalogue and bool(catalogue[column].notna().any())


def _looked_up(
    interactions: pd.DataFrame, catalogue: pd.DataFrame, column: str
) -> pd.Series:
    values = catalogue.set_index("item_id")[column]
    found: pd.Series = interactions["item_id"].map(values)
    return found


def _shares_of_names(
    values: pd.Series, known: Mapping[str, float] | None
) -> dict[str, float]:
    shares = values.astype(object).fillna(_MISSING).value_counts(normalize=True)
    kept = list(shares.index[:LARGEST_BINS]) if known is None else list(known)
    binned = {
        str(name): float(shares.get(name, 0.0)) for name in kept if name != _OTHER
    }
    binned[_OTHER] = max(0.0, 1.0 - sum(binned.values()))
    return binned


def _quantile_edges(values: pd.Series) -> list[float]:
    inner = np.linspace(0, 1, QUANTILES + 1)[1:-1]
    given = values.dropna()
    if given.empty:
        return []
    edges = np.unique(given.quantile(inner, interpolation="lower"))
    return [float(edge) for edge in edges]


def _shares_of_numbers(values: pd.Series, edges: Sequence[float]) -> dict[str, float]:
    """Return shares of bins that include their upper edge, and of missing values."""
    places = np.searchsorted(edges, values.to_numpy(np.float64), side="left")
    missing = values.isna().to_numpy()
    counts = np.bincount(places[~missing], minlength=len(edges) + 1)
    shares = {
        str(place): float(count / len(values)) for place, count in enumerate(counts)
    }
    shares[_MISSING] = float(missing.mean())
    return shares
