"""What a variant shows now beside what it showed in the days before, as numbers.

Functions of two samples of exposures. None stands for too little to measure.
"""

import zlib
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from uuid import UUID

from experiment_service.analysis.drift import (
    GROUPS,
    LARGE_CHANGE,
    UNKNOWN_GROUP,
    distinct_items,
    grouped,
    popularity_groups,
    stability_index,
)
from experiment_service.storage.monitors import PlaceCount, ServedExposure
from recommenders.drift import stability_noise

#: Fewer exposures than these say nothing about a share.
MINIMUM_EXPOSURES = 100

#: Fewer interactions expected than these say nothing about a rate.
MINIMUM_INTERACTIONS = 50

#: Interactions later than this after their exposure are not waited for.
SOON = timedelta(hours=1)

#: Share of the items shown whose category must be known.
_KNOWN_SHARE = 0.5

_DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Exposures of one variant, and the exposures and positions acted upon soon after."""

    exposures: Sequence[ServedExposure]
    acted: Collection[tuple[UUID, int]]

    @property
    def filled(self) -> list[ServedExposure]:
        """Those that showed items."""
        return [each for each in self.exposures if each.items]

    @property
    def units(self) -> int:
        """Distinct units among those that were shown items."""
        return len({each.unit_id for each in self.filled})


def measure(
    current: Served,
    before: Served,
    *,
    categories: Mapping[str, str],
    trained_at: Mapping[str, datetime],
    until: datetime,
) -> tuple[dict[str, float | None], list[PlaceCount]]:
    """Return the value of every monitor, and the counts by position.

    Parameters
    ----------
    current, before : Served
        Of the last day, and of the days before it.
    categories : mapping of str to str
        Of items, as far as they are known.
    trained_at : mapping of str to datetime
        By label of the model version.
    until : datetime
        End of the last day.
    """
    places = count_places(current, before, until=until)
    return {
        "fallback_share": fallback_share(current.exposures),
        "coverage": coverage(current, before),
        "list_age": list_age(current.exposures, trained_at, until=until),
        "category_drift": category_drift(current, before, categories),
        "item_drift": item_drift(current, before),
        "interaction_rate": interaction_rate(places),
    }, places


def fallback_share(exposures: Sequence[ServedExposure]) -> float | None:
    """Return the share of exposures that fell back."""
    if len(exposures) < MINIMUM_EXPOSURES:
        return None
    return sum(each.fallback for each in exposures) / len(exposures)


def coverage(current: Served, before: Served) -> float | None:
    """Return how many distinct items are shown beside the days before.

    Both in as many exposures as the smaller sample has.
    """
    now, then = current.filled, before.filled
    drawn = min(len(now), len(then))
    if drawn < MINIMUM_EXPOSURES:
        return None
    distinct = [
        distinct_items(_item_counts(each), len(each), of=drawn) for each in (now, then)
    ]
    return distinct[0] / distinct[1]


def list_age(
    exposures: Sequence[ServedExposure],
    trained_at: Mapping[str, datetime],
    *,
    until: datetime,
) -> float | None:
    """Return the mean age in days of the versions that served; unknown ones left out."""
    ages = [
        (until - trained_at[each.model]).total_seconds() / _DAY_SECONDS
        for each in exposures
        if each.model in trained_at
    ]
    return max(sum(ages) / len(ages), 0.0) if ages else None


def category_drift(
    current: Served, before: Served, categories: Mapping[str, str]
) -> float | None:
    """Return the stability index of the categories shown.

    The categories most shown before are groups, all others one more. None when the
    category of half of the items shown, now or before, is not known.
    """
    shown = []
    for each in (current, before):
        items = _item_counts(each.filled)
        known = {item: count for item, count in items.items() if item in categories}
        if not known or sum(known.values()) < _KNOWN_SHARE * sum(items.values()):
            return None
        shown.append(grouped(known, categories))
    now, then = shown
    groups = {category: category for category, _ in then.most_common(GROUPS - 1)}
    return _index(grouped(now, groups), grouped(then, groups), current, before)


def item_drift(current: Served, before: Served) -> float | None:
    """Return the stability index of the items shown, by how much they were shown.

    One half of the units says which items are shown how much; the shares of these groups
    are compared in the other half, now and before, so that no group was chosen by the
    counts that are compared.
    """
    groups = popularity_groups(_item_counts(_half(before, 0).filled))
    now, then = _half(current, 1), _half(before, 1)
    return _index(
        grouped(_item_counts(now.filled), groups),
        grouped(_item_counts(then.filled), groups),
        now,
        then,
    )


def interaction_rate(places: Sequence[PlaceCount]) -> float | None:
    """Return interactions per item shown, as a share of those of the days before."""
    shown, acted, shown_before, acted_before = (
        sum(getattr(each, name) for each in places)
        for name in ("shown", "acted", "shown_before", "acted_before")
    )
    if not shown_before:
        return None
    expected = shown * acted_before / shown_before
    return acted / expected if expected >= MINIMUM_INTERACTIONS else None


def count_places(
    current: Served, before: Served, *, until: datetime
) -> list[PlaceCount]:
    """Count by position what was shown and acted upon; exposures too new are left out."""
    old_enough = [each for each in current.filled if each.exposed_at <= until - SOON]
    now = _by_position(old_enough, current.acted)
    then = _by_position(before.filled, before.acted)
    return [
        PlaceCount(
            position=position,
            shown=now[0][position],
            acted=now[1][position],
            shown_before=then[0][position],
            acted_before=then[1][position],
        )
        for position in sorted({*now[0], *then[0]})
    ]


def _by_position(
    exposures: Sequence[ServedExposure], acted: Collection[tuple[UUID, int]]
) -> tuple[Counter[int], Counter[int]]:
    shown = Counter(
        chain.from_iterable(range(1, len(each.items) + 1) for each in exposures)
    )
    lengths = {each.id: len(each.items) for each in exposures}
    return shown, Counter(
        position for made, position in acted if position <= lengths.get(made, 0)
    )


def _item_counts(exposures: Sequence[ServedExposure]) -> Counter[str]:
    """Count the exposures that show each item."""
    return Counter(chain.from_iterable(set(each.items) for each in exposures))


def _half(served: Served, number: int) -> Served:
    """Return the exposures of one half of the units."""
    return Served(
        exposures=[
            each
            for each in served.exposures
            if zlib.crc32(each.unit_id.encode()) % 2 == number
        ],
        acted=served.acted,
    )


def _index(
    now: Mapping[Hashable, int],
    then: Mapping[Hashable, int],
    current: Served,
    before: Served,
) -> float | None:
    """Return the stability index; None where chance alone could make it large."""
    groups = len({*now, *then})
    if not current.units or not before.units or {*then} <= {UNKNOWN_GROUP}:
        return None
    if stability_noise(groups, before.units, current.units) > LARGE_CHANGE:
        return None
    return stability_index(then, now)
