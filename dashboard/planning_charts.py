"""Chart and table of a plan: the smallest difference that is seen, by days."""

import altair as alt

from dashboard import encodings, formats, tables
from dashboard.encodings import NEUTRAL, Chart, inline
from experiment_service.reporting.planning import Plan

_HEIGHT = 320
_ONCE, _WATCHED = "read once, at the end", "watched at any time"


def reach(plan: Plan) -> Chart | None:
    """Draw what can be seen after so many days; None when nothing can."""
    kind = plan.baseline.kind
    rows = [
        {
            "days": each.days,
            "read": read,
            "difference": value,
            "shown": formats.difference(value, kind),
            "units": formats.count(each.units),
        }
        for each in plan.reach
        for read, value in ((_ONCE, each.once), (_WATCHED, each.any_time))
        if value is not None
    ]
    if not rows:
        return None
    axis = alt.Axis(format=".3f" if kind == "mean" else ".2%")
    lines = (
        alt.Chart(inline(rows))
        .mark_line(point=alt.OverlayMarkDef(size=60), strokeWidth=2)
        .encode(
            x=alt.X(
                "days:Q",
                title="Days",
                axis=alt.Axis(values=[each.days for each in plan.reach], grid=False),
            ),
            y=alt.Y(
                "difference:Q",
                title="Difference to control",
                axis=axis,
                scale={"zero": True},
            ),
            color=alt.Color(
                "read:N",
                title=None,
                scale=alt.Scale(
                    domain=[_ONCE, _WATCHED], range=list(encodings.PALETTE[:2])
                ),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=[
                alt.Tooltip("read:N", title="Reading"),
                alt.Tooltip("days:Q", title="Days"),
                alt.Tooltip("units:N", title="Units"),
                alt.Tooltip("shown:N", title="Seen from"),
            ],
        )
    )
    asked = (
        alt.Chart(inline([{"difference": abs(plan.difference)}]))
        .mark_rule(color=NEUTRAL, strokeDash=[4, 4], strokeWidth=1.5)
        .encode(y="difference:Q")
    )
    drawn: Chart = alt.layer(asked, lines).properties(height=_HEIGHT)
    return drawn


def reach_table(plan: Plan) -> str:
    """List what can be seen after so many days, absolute and relative."""
    value, kind = plan.baseline.spread.value, plan.baseline.kind

    def shown(difference: float | None) -> str:
        if difference is None:
            return tables.chip("Nothing", "draft")
        lift = tables.small(formats.lift(difference / value)) if value else ""
        return formats.difference(difference, kind) + lift

    return tables.table(
        ("Days#", "Units#", "Read once, at the end#", "Watched at any time#"),
        [
            (
                str(each.days),
                formats.count(each.units),
                shown(each.once),
                shown(each.any_time),
            )
            for each in plan.reach
        ],
        caption="What can be seen by when",
    )
