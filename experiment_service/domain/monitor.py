"""Monitors of what serves: their names, what they mean, and when they alert."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from experiment_service.errors import known


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """A number watched per variant and day.

    Attributes
    ----------
    title : str
        What people read.
    what : str
        The number in words, as in "34% of exposures".
    unit : {"share", "days", "index"}
        How it is written.
    alerts : {"above", "below"}
        On which side of the threshold.
    threshold : float
        Unless the settings name another; > 0.
    causes : str
        What an alert usually means.
    """

    title: str
    what: str
    unit: Literal["share", "days", "index"]
    alerts: Literal["above", "below"]
    threshold: float
    causes: str

    def write(self, value: float) -> str:
        """Write a value of it."""
        if self.unit == "share":
            return f"{value:.1%}"
        return f"{value:.1f} days" if self.unit == "days" else f"{value:.2f}"

    def is_beyond(self, value: float, threshold: float, *, alerting: bool) -> bool:
        """Whether a value calls for an alert.

        One that is open ends a tenth of the threshold on the good side only, so that a
        value that trembles around the threshold is told once.
        """
        if self.alerts == "above":
            return value > threshold * (0.9 if alerting else 1.0)
        return value < threshold / (0.9 if alerting else 1.0)


MONITORS: Mapping[str, Monitor] = {
    "fallback_share": Monitor(
        title="Fallback share",
        what="of exposures have an item from elsewhere than the variant's own lists",
        unit="share",
        alerts="above",
        threshold=0.2,
        causes="a model without a live version, or many shoppers or products that it "
        "does not know",
    ),
    "coverage": Monitor(
        title="Coverage",
        what="of the variety of the 7 days before: distinct items in as many exposures",
        unit="share",
        alerts="below",
        threshold=0.5,
        causes="a new version that shows the same items to all, or filters and rules "
        "that leave few",
    ),
    "list_age": Monitor(
        title="Age of lists",
        what="since the versions that serve were trained, on average over exposures",
        unit="days",
        alerts="above",
        threshold=14.0,
        causes="a training that no longer runs, or whose versions are rejected",
    ),
    "category_drift": Monitor(
        title="Category drift (PSI)",
        what="is the stability index of the categories shown, against the 7 days before",
        unit="index",
        alerts="above",
        threshold=0.25,
        causes="a new version or rule, categories that were renamed, or a changed "
        "assortment",
    ),
    "item_drift": Monitor(
        title="Item drift (PSI)",
        what="is the stability index of the items shown, by how much they were shown in "
        "the 7 days before",
        unit="index",
        alerts="above",
        threshold=0.25,
        causes="a new version, another reranking, or a changed assortment",
    ),
    "interaction_rate": Monitor(
        title="Interaction rate",
        what="of the interactions per item shown of the 7 days before",
        unit="share",
        alerts="below",
        threshold=0.5,
        causes="clicks that the storefront no longer sends, a carousel that moved out of "
        "sight, or worse recommendations",
    ),
}

#: Alerts that come from an experiment's report.
_REPORTED = {"sample_ratio": "Sample ratio", "guardrail": "Guardrail"}


def title_of(name: str) -> str:
    """Return what people read of a monitor, or of an alert from a report."""
    return _REPORTED[name] if name in _REPORTED else MONITORS[name].title


def parse_thresholds(text: str) -> dict[str, float]:
    """Read ``NAME=NUMBER`` pairs with commas or spaces between.

    Raises
    ------
    ValueError
        With the rule, naming what breaks it.
    """
    found = {}
    for pair in filter(None, re.split(r"[,\s]+", text)):
        name, _, number = pair.partition("=")
        if name not in MONITORS:
            raise ValueError(f"{name!r} is no monitor; monitors: {known(MONITORS)}")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise ValueError(f"{pair!r} must be {name}=NUMBER, with a number above 0")
        found[name] = value
    return found


def thresholds(chosen: Mapping[str, float]) -> dict[str, float]:
    """Return the threshold of each monitor, as chosen or by default."""
    return {name: chosen.get(name, each.threshold) for name, each in MONITORS.items()}
