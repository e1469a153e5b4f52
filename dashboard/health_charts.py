"""Charts of health: units against weights, and events over the last hour."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import altair as alt

from dashboard import formats
from dashboard.encodings import (
    NEUTRAL,
    PALETTE,
    Chart,
    by_variant,
    inline,
    thinned,
    time_x,
)
from experiment_service.reporting import EpochReport, MinuteCount

_MINUTE = timedelta(minutes=1)
#: A variant that expects fewer units in an epoch says nothing about its share.
_LEAST_EXPECTED = 5


def sample_ratio(
    epochs: Sequence[EpochReport], colour_of: Mapping[str, str]
) -> Chart | None:
    """Draw units against weights per epoch, in standard errors.

    None when no variant expects 5 units in an epoch.
    """
    rows = _deviations(thinned(epochs))
    if not rows:
        return None
    order = list(epochs[0].weights)
    reach = max(4.0, *(abs(row["deviation"]) for row in rows))
    scale = alt.Scale(domain=[-reach, reach], nice=True)
    expected_band = alt.Chart(inline([{"low": -3, "high": 3}])).mark_rect(
        color=NEUTRAL, opacity=0.12
    )
    points = (
        alt.Chart(inline(rows))
        .mark_point(filled=True, size=70, opacity=0.9)
        .encode(
            x=alt.X(
                "epoch:O", title="Epoch", axis=alt.Axis(labelAngle=0, labelOverlap=True)
            ),
            xOffset=alt.XOffset("variant:N", sort=order),
            y=alt.Y(
                "deviation:Q",
                title="Standard errors from weight",
                scale=scale,
            ),
            color=by_variant(order, colour_of),
            tooltip=[
                alt.Tooltip("variant:N", title="Variant"),
                alt.Tooltip("epoch:O", title="Epoch"),
                alt.Tooltip("units:Q", title="Units", format=","),
                alt.Tooltip("expected:Q", title="Expected", format=",.1f"),
                alt.Tooltip("deviation:Q", title="Standard errors", format="+.2f"),
            ],
        )
    )
    return alt.layer(
        expected_band.encode(y=alt.Y("low:Q", scale=scale), y2="high:Q"), points
    ).properties(height=320)


def _deviations(epochs: Sequence[EpochReport]) -> list[dict[str, Any]]:
    rows = []
    for epoch in epochs:
        total = sum(epoch.units.values())
        for variant, weight in epoch.weights.items():
            expected = total * weight
            if expected < _LEAST_EXPECTED or weight >= 1:
                continue
            units = epoch.units.get(variant, 0)
            error = math.sqrt(expected * (1 - weight))
            rows.append(
                {
                    "variant": variant,
                    "epoch": epoch.number,
                    "units": units,
                    "expected": round(expected, 1),
                    "deviation": (units - expected) / error,
                }
            )
    return rows


def traffic(minutes: Sequence[MinuteCount], since: datetime, until: datetime) -> Chart:
    """Draw exposures and interactions per minute, minutes without any as 0."""
    rows = _by_minute(minutes, since, until)
    drawn: Chart = (
        alt.Chart(inline(rows))
        .mark_line(strokeWidth=2, interpolate="step-after")
        .encode(
            x=time_x("Time (UTC)", until - since),
            y=alt.Y(
                "events:Q",
                title="Events per minute",
                axis=alt.Axis(format=",d", tickMinStep=1),
            ),
            color=alt.Color(
                "kind:N",
                title=None,
                scale=alt.Scale(
                    domain=["exposures", "interactions"], range=list(PALETTE[:2])
                ),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=[
                alt.Tooltip("kind:N", title="Events"),
                alt.Tooltip("when:N", title="Minute"),
                alt.Tooltip("events:Q", title="Number", format=","),
            ],
        )
        .properties(height=260)
    )
    return drawn


def _by_minute(
    minutes: Sequence[MinuteCount], since: datetime, until: datetime
) -> list[dict[str, Any]]:
    counted = {each.minute: each for each in minutes}
    first = since.replace(second=0, microsecond=0)
    shown = [
        first + number * _MINUTE for number in range(int((until - first) / _MINUTE) + 1)
    ]
    return [
        {
            "kind": kind,
            "at": minute.isoformat(),
            "when": formats.moment(minute),
            "events": getattr(counted.get(minute), kind, 0),
        }
        for minute in shown
        for kind in ("exposures", "interactions")
    ]
