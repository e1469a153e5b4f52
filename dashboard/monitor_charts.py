"""Charts of monitors: each measure by day and variant, interactions by position."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from html import escape
from typing import Any

import altair as alt

from dashboard import formats
from dashboard.encodings import NEUTRAL, Chart, by_variant, inline
from dashboard.tables import chip, small, table, variant_name
from experiment_service.domain.monitor import MONITORS, Monitor, title_of
from experiment_service.reporting import Alert, Alerts, MonitoredDay

_HEIGHT = 170
_FORMATS = {"share": ".0%", "days": ".0f", "index": ".2f"}
_ALERT = "#D55E00"


def legend(colour_of: Mapping[str, str]) -> str:
    """Name the colours once for all the small charts."""
    return "&emsp;".join(
        variant_name(variant, colour, control=False)
        for variant, colour in colour_of.items()
    )


def by_day(
    days: Sequence[MonitoredDay],
    name: str,
    colour_of: Mapping[str, str],
    *,
    threshold: float,
) -> Chart | None:
    """Draw a measure by day, a line per variant, with the threshold of its alert.

    None when it could not be measured on any day.
    """
    monitor = MONITORS[name]
    rows = _rows(days, name, monitor)
    if not rows:
        return None
    order = list(dict.fromkeys(row["day"] for row in rows))
    most = max(threshold, *(row["value"] for row in rows))
    y = alt.Y(
        "value:Q",
        title=None,
        scale=alt.Scale(domain=[0, 1.05 * most], nice=True),
        axis=alt.Axis(format=_FORMATS[monitor.unit], tickCount=4),
    )
    drawn = (
        alt.Chart(inline(rows))
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=36))
        .encode(
            # By name of the day, as each row is of one and none lies between two.
            x=alt.X(
                "day:O",
                title=None,
                sort=order,
                axis=alt.Axis(labelAngle=0, labelOverlap="greedy", labelSeparation=6),
            ),
            y=y,
            color=by_variant(list(colour_of), colour_of, legend=False),
            tooltip=[
                alt.Tooltip("variant:N", title="Variant"),
                alt.Tooltip("until:N", title="24 hours up to"),
                alt.Tooltip("shown:N", title=monitor.title),
                alt.Tooltip("exposures:Q", title="Exposures looked at", format=","),
            ],
        )
    )
    rule = (
        alt.Chart(inline([{"value": threshold}]))
        .mark_rule(color=_ALERT, strokeDash=[4, 3], strokeWidth=1.5)
        .encode(y=y, tooltip=alt.value(f"Alert {monitor.alerts} it"))
    )
    return alt.layer(rule, drawn).properties(height=_HEIGHT)


def _rows(
    days: Sequence[MonitoredDay], name: str, monitor: Monitor
) -> list[dict[str, Any]]:
    return [
        {
            "day": f"{each.day.day} {each.day:%b}",
            "variant": each.variant,
            "value": value,
            "shown": monitor.write(value),
            "until": formats.moment(each.until),
            "exposures": each.exposures,
        }
        for each in days
        if (value := each.measured.get(name)) is not None
    ]


def by_position(
    days: Sequence[MonitoredDay], colour_of: Mapping[str, str]
) -> Chart | None:
    """Draw interactions per item shown at each position, now and in the days before.

    None without any.
    """
    rows = _place_rows(list({each.variant: each for each in days}.values()))
    if not any(row["rate"] > 0 for row in rows):
        return None
    drawn: Chart = (
        alt.Chart(inline(rows))
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=50))
        .encode(
            x=alt.X(
                "position:O",
                title="Position in the carousel",
                axis=alt.Axis(labelAngle=0, grid=False),
            ),
            y=alt.Y(
                "rate:Q",
                title="Interactions per item shown",
                axis=alt.Axis(format=".1%"),
                scale=alt.Scale(zero=True, nice=True),
            ),
            color=by_variant(list(colour_of), colour_of),
            strokeDash=alt.StrokeDash(
                "when:N",
                title=None,
                scale=alt.Scale(
                    domain=["last 24 hours", "7 days before"], range=[[1, 0], [5, 4]]
                ),
                legend=alt.Legend(
                    orient="top",
                    symbolType="stroke",
                    symbolStrokeColor=NEUTRAL,
                    symbolStrokeWidth=2,
                    symbolSize=400,
                ),
            ),
            tooltip=[
                alt.Tooltip("variant:N", title="Variant"),
                alt.Tooltip("when:N", title="When"),
                alt.Tooltip("position:O", title="Position"),
                alt.Tooltip("rate:Q", title="Rate", format=".2%"),
                alt.Tooltip("counts:N", title="Exposures"),
            ],
        )
        .properties(height=320)
    )
    return drawn


def _place_rows(last: Sequence[MonitoredDay]) -> list[dict[str, Any]]:
    return [
        {
            "position": place.position,
            "variant": each.variant,
            "when": when,
            "rate": acted / shown,
            "counts": f"{formats.count(acted)} of {formats.count(shown)}",
        }
        for each in last
        for place in each.positions
        for when, shown, acted in (
            ("last 24 hours", place.shown, place.acted),
            ("7 days before", place.shown_before, place.acted_before),
        )
        if shown
    ]


def alerts_table(alerts: Alerts) -> str:
    """List alerts, the open ones first."""
    return table(
        ("Alert", "State", "Raised", "Lasted", "What was found"),
        [
            (
                f"<b>{escape(title_of(each.monitor))}</b>" + small(each.about),
                chip("Open", "failed") if _lasted(each) is None else chip("Over", "ok"),
                formats.moment(each.raised_at),
                formats.NOTHING
                if (lasted := _lasted(each)) is None
                else formats.span(lasted),
                escape(each.reason) + small(each.resolution or ""),
            )
            for each in (*alerts.open, *alerts.over)
        ],
        caption="Alerts, the latest",
    )


def _lasted(alert: Alert) -> timedelta | None:
    return None if alert.resolved_at is None else alert.resolved_at - alert.raised_at
