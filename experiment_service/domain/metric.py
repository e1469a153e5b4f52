"""Metrics: declarations of what is measured per unit, and their registry.

A metric is data. SQL moments, reports and rewards are generated from the declaration,
so a new metric is one entry of `METRICS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from experiment_service.domain.event import EVENT_KINDS
from experiment_service.errors import InvalidRequest, NotFound, known

MetricKind = Literal["proportion", "mean", "ratio"]


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
        Proportion: share of units with at least one event. Mean: events per unit.
        Ratio: events per exposure, with units as clusters.
    event_kinds : tuple of str
        Interactions that count.
    trigger : {"served", "viewed"}
        Units that count: all that were served, or only those that viewed.
    direction : {"higher", "lower"}
        Which way is better.
    """

    name: str
    title: str
    kind: MetricKind
    event_kinds: tuple[str, ...]
    trigger: Literal["served", "viewed"] = "served"
    direction: Literal["higher", "lower"] = "higher"

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.event_kinds if kind not in EVENT_KINDS]
        if unknown or not self.event_kinds:
            raise InvalidRequest(
                f"metric {self.name!r}: event kinds {unknown or 'none'} are not known; "
                f"known kinds: {known(EVENT_KINDS)}"
            )


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric(
                name="visitor_interaction_rate",
                title="Visitor interaction rate",
                kind="proportion",
                event_kinds=("click", "add_to_cart", "purchase"),
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
                name="click_through_rate",
                title="Click-through rate",
                kind="ratio",
                event_kinds=("click",),
            ),
        )
    }
)


def get_metric(name: str) -> Metric:
    """Return a registered metric.

    Raises
    ------
    NotFound
        When no metric has that name; the message lists those that exist.
    """
    if name not in METRICS:
        raise NotFound(f"metric {name!r} is not known; known metrics: {known(METRICS)}")
    return METRICS[name]
