"""Metrics: declarations of what is measured per unit, and their registry.

A metric is data. SQL moments, reports and rewards are generated from the declaration,
so a new metric is one entry of `METRICS`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from experiment_service.domain.event import EVENT_KINDS, MAX_POSITION, check_id
from experiment_service.errors import InvalidRequest, known

MetricKind = Literal["proportion", "mean", "ratio"]

#: In place of placements: the one of the experiment that the metric is for.
OWN: Final = "own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """Declaration of a metric.

    Attributes
    ----------
    name : str
        Key in the registry, the API, reports and charts.
    title : str
        What people read.
    kind : {"proportion", "mean", "ratio"}
        Proportion: share of units with at least one event. Mean: events (or their
        value) per unit. Ratio: the same per exposure, with units as clusters.
    event_kinds : tuple of str
        Interactions that count.
    of : {"events", "value"}
        What a mean or ratio adds up: the events, or what they are worth.
    positions : tuple of int, or None
        First and last place in the carousel, from 1, at which interactions count; None
        counts all, those without a position too.
    categories : tuple of str, or None
        Categories of items whose interactions count; None counts all.
    placements : tuple of str, "own" or None
        Placements at which interactions count, "own" for the experiment's; None counts
        all, those of no known placement too.
    cap : float or None
        What a unit's sum counts at most (winsorising), > 0: few huge orders would
        otherwise decide. Of a mean or ratio only, and chosen before the data.
    trigger : {"served", "viewed"}
        Units that count: all that were served, or only those that viewed.
    direction : {"higher", "lower"}
        Which way is better.
    """

    name: str
    title: str
    kind: MetricKind
    event_kinds: tuple[str, ...]
    of: Literal["events", "value"] = "events"
    positions: tuple[int, int] | None = None
    categories: tuple[str, ...] | None = None
    placements: tuple[str, ...] | Literal["own"] | None = None
    cap: float | None = None
    trigger: Literal["served", "viewed"] = "served"
    direction: Literal["higher", "lower"] = "higher"

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.event_kinds if kind not in EVENT_KINDS]
        if unknown or not self.event_kinds:
            raise InvalidRequest(
                f"metric {self.name!r}: event kinds {unknown or 'none'} are not known; "
                f"known kinds: {known(EVENT_KINDS)}"
            )
        if self.kind == "proportion" and (self.of == "value" or self.cap is not None):
            raise InvalidRequest(
                f"metric {self.name!r} is a proportion, 0 or 1 for each unit; it takes "
                "neither of: value nor cap"
            )
        if self.positions is not None:
            first, last = self.positions
            if not 1 <= first <= last <= MAX_POSITION:
                raise InvalidRequest(
                    f"metric {self.name!r}: positions are {first} to {last}; they must "
                    f"be a range within 1 to {MAX_POSITION}"
                )
        self._check_names("categories", self.categories)
        if self.placements != OWN:
            self._check_names("placements", self.placements)
        if self.cap is not None and not 0 < self.cap < math.inf:
            raise InvalidRequest(
                f"metric {self.name!r}: cap is {self.cap}; it must be above 0"
            )

    def _check_names(self, field: str, names: tuple[str, ...] | None) -> None:
        if names is None:
            return
        if not names:
            raise InvalidRequest(
                f"metric {self.name!r}: {field} are none; name at least one"
            )
        for name in names:
            check_id(field, name)


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric(
                name="visitor_interaction_rate",
                title="Visitor interaction rate",
                kind="proportion",
                event_kinds=("click", "add_to_cart", "purchase"),
                placements=OWN,
            ),
            Metric(
                name="visitor_click_rate",
                title="Visitor click rate",
                kind="proportion",
                event_kinds=("click",),
            ),
            Metric(
                name="add_to_cart_rate",
                title="Add-to-cart rate",
                kind="proportion",
                event_kinds=("add_to_cart",),
            ),
            Metric(
                name="conversion_rate",
                title="Conversion rate",
                kind="proportion",
                event_kinds=("purchase",),
            ),
            Metric(
                name="dismiss_rate",
                title="Dismiss rate",
                kind="proportion",
                event_kinds=("dismiss",),
                direction="lower",
            ),
            Metric(
                name="clicks_per_visitor",
                title="Clicks per visitor",
                kind="mean",
                event_kinds=("click",),
            ),
            Metric(
                name="revenue_per_visitor",
                title="Revenue per visitor",
                kind="mean",
                event_kinds=("purchase",),
                of="value",
            ),
            Metric(
                name="click_through_rate",
                title="Click-through rate",
                kind="ratio",
                event_kinds=("click",),
            ),
        )
    }
)
