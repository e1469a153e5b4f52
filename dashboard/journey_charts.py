"""Funnel and positions: a table with bars, a chart, and the numbers behind it."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import altair as alt

from dashboard import formats
from dashboard.encodings import Chart, by_variant, inline
from dashboard.tables import table, variant_name
from experiment_service.analysis.interval import Interval
from experiment_service.reporting import Journey, Place, Reach


def funnel_table(journey: Journey, colour_of: Mapping[str, str], control: str) -> str:
    """Show the share of each variant's visitors that came so far, as number and bar."""
    counted = journey.steps[0].reached
    header = [
        variant_name(
            each.variant, colour_of[each.variant], control=each.variant == control
        )
        for each in counted
    ]
    rows = [
        (
            "<b>Exposed</b>",
            *(
                f"<b>{formats.count(each.of)}</b>" + _bar(1.0, colour_of[each.variant])
                for each in counted
            ),
        )
    ]
    rows += [
        (
            f"<b>{escape(step.title)}</b>",
            *(_reached(each, colour_of[each.variant]) for each in step.reached),
        )
        for step in journey.steps
    ]
    return table(
        ("Step", *header),
        rows,
        caption=f"Visitors who did it within the attribution window, of those exposed; "
        f"{journey.level:.0%} intervals that hold at every look",
        plain_header=False,
    )


def _reached(reach: Reach, colour: str) -> str:
    if not isinstance(reach.share, Interval):
        return f'{formats.NOTHING}<span class="es-small">{escape(reach.share.reason)}</span>'
    share = reach.share
    return (
        f"<b>{formats.value(share.estimate, 'proportion')}</b> "
        f'<span class="es-aside">{formats.count(reach.units)} of '
        f"{formats.count(reach.of)}</span>"
        f"{_bar(share.estimate, colour)}"
        f'<span class="es-small">{formats.value_range(share, "proportion")}</span>'
    )


def _bar(share: float, colour: str) -> str:
    width = f"{100 * share:.2f}%"
    return (
        '<span class="es-bar"><span style="width:'
        f'{width};background:{colour}"></span></span>'
    )


def positions(places: Sequence[Place], colour_of: Mapping[str, str]) -> Chart | None:
    """Draw the share of visitors who clicked on each position, with its interval.

    None without any click.
    """
    rows = _rows(places)
    if not any(row["estimate"] > 0 for row in rows):
        return None
    order = [each.variant for each in places[0].clicked]
    base = alt.Chart(inline(rows)).encode(
        x=alt.X(
            "position:O",
            title="Position in the carousel",
            axis=alt.Axis(labelAngle=0, grid=False),
            scale=alt.Scale(paddingInner=0.35),
        ),
        xOffset=alt.XOffset("variant:N", sort=order),
        color=by_variant(order, colour_of),
        tooltip=[
            alt.Tooltip("variant:N", title="Variant"),
            alt.Tooltip("position:O", title="Position"),
            alt.Tooltip("shown:N", title="Clicked"),
            alt.Tooltip("counts:N", title="Visitors"),
            alt.Tooltip("range:N", title="Interval, any time"),
        ],
    )
    scale = alt.Scale(zero=True, nice=True)
    title = "Share of visitors who clicked there"
    axis = alt.Axis(format=".1%")
    rule = base.mark_rule(strokeWidth=2).encode(
        y=alt.Y("low:Q", title=title, scale=scale, axis=axis), y2="high:Q"
    )
    point = base.mark_point(filled=True, size=80, opacity=1).encode(y="estimate:Q")
    return alt.layer(rule, point).properties(height=320)


def _rows(places: Sequence[Place]) -> list[dict[str, Any]]:
    return [
        {
            "position": place.position,
            "variant": each.variant,
            "estimate": each.share.estimate,
            "low": each.share.low,
            "high": each.share.high,
            "shown": formats.value(each.share.estimate, "proportion"),
            "range": formats.value_range(each.share, "proportion"),
            "counts": f"{formats.count(each.units)} of {formats.count(each.of)}",
        }
        for place in places
        for each in place.clicked
        if isinstance(each.share, Interval)
    ]


def positions_table(places: Sequence[Place]) -> str:
    """Show the numbers behind the chart of positions."""
    return table(
        ("Position#", *(f"{each.variant}#" for each in places[0].clicked)),
        [
            (str(place.position), *(_cell(each) for each in place.clicked))
            for place in places
        ],
        caption="Visitors who clicked on the position, of those exposed",
    )


def _cell(reach: Reach) -> str:
    if not isinstance(reach.share, Interval):
        return formats.NOTHING
    return (
        f"<b>{formats.value(reach.share.estimate, 'proportion')}</b>"
        f'<span class="es-small">{formats.count(reach.units)} of '
        f"{formats.count(reach.of)}, "
        f"{formats.value_range(reach.share, 'proportion')}</span>"
    )
