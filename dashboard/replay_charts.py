"""Charts of a replay: values with their intervals, and weights over time."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from dashboard import encodings, formats
from dashboard.encodings import NEUTRAL, Chart, by_variant, inline, name_axis, time_x
from experiment_service.replay.comparison import PolicyOutcome, ReplayReport
from policies.scores import Value

_ROW_HEIGHT = 40
_AXIS_HEIGHT = 70
_WEIGHTS_HEIGHT = 260


def colours(arms: Sequence[str], control: str | None) -> dict[str, str]:
    """Return the colour of each arm: grey for the control, as on the other pages."""
    others = [arm for arm in arms if arm != control]
    palette = encodings.PALETTE
    chosen = {arm: palette[i % len(palette)] for i, arm in enumerate(others)}
    return {arm: chosen.get(arm, NEUTRAL) for arm in arms}


def values(
    report: ReplayReport, ordered: Sequence[PolicyOutcome], *, share: bool
) -> Chart | None:
    """Draw the value of each policy and fixed arm; None when all are withheld."""
    rows = [
        *(_row(each.label, "policy", each.value, share=share) for each in ordered),
        *(
            _row(f"always {arm}", "fixed arm", each, share=share)
            for arm, each in report.fixed.items()
        ),
    ]
    shown = [row for row in rows if row is not None]
    if not shown or report.log.estimate is None:
        return None
    order = [row["policy"] for row in shown]
    base = alt.Chart(inline(shown)).encode(
        y=alt.Y("policy:N", sort=order, title=None, axis=name_axis()),
        color=alt.Color(
            "kind:N",
            title=None,
            scale=alt.Scale(
                domain=["policy", "fixed arm"], range=[encodings.PALETTE[0], NEUTRAL]
            ),
            legend=alt.Legend(orient="top"),
        ),
        tooltip=[
            alt.Tooltip("policy:N", title="Policy"),
            alt.Tooltip("shown:N", title="Value"),
            alt.Tooltip("range:N", title="Interval"),
        ],
    )
    axis = alt.Axis(format=".2%" if share else ".3f")
    x = alt.X(
        "low:Q",
        title="Mean reward per round",
        scale=alt.Scale(zero=False, nice=True),
        axis=axis,
    )
    log = alt.Chart(inline([{"at": report.log.estimate}])).mark_rule(
        color=NEUTRAL, strokeDash=[4, 4], strokeWidth=1.5
    )
    return alt.layer(
        log.encode(x="at:Q"),
        base.mark_rule(strokeWidth=2).encode(x=x, x2="high:Q"),
        base.mark_point(filled=True, size=100, opacity=1).encode(x="estimate:Q"),
    ).properties(height=_ROW_HEIGHT * len(shown) + _AXIS_HEIGHT)


def weights(
    outcome: PolicyOutcome, report: ReplayReport, colour_of: Mapping[str, str]
) -> Chart:
    """Draw the weights that a policy would have set over the log, in steps."""
    order = list(report.arms)
    last = outcome.weights[-1]
    steps = [(each.at, each) for each in outcome.weights]
    rows: list[dict[str, Any]] = [
        {
            "variant": arm,
            "at": at.isoformat(),
            "when": formats.moment(at),
            "weight": each.weights[arm],
            "rank": rank,
        }
        for at, each in [*steps, (max(report.ended_at, last.at), last)]
        for rank, arm in enumerate(order)
    ]
    drawn: Chart = (
        alt.Chart(inline(rows))
        .mark_area(interpolate="step-after", opacity=0.85, line=False)
        .encode(
            x=time_x("Time (UTC)", report.ended_at - report.started_at),
            y=alt.Y(
                "weight:Q",
                title="Share of traffic",
                stack="zero",
                scale=alt.Scale(domain=[0, 1]),
                axis=encodings.share_axis(),
            ),
            color=by_variant(order, colour_of),
            order=alt.Order("rank:Q"),
            tooltip=[
                alt.Tooltip("variant:N", title="Variant"),
                alt.Tooltip("weight:Q", title="Weight", format=".1%"),
                alt.Tooltip("when:N", title="From"),
            ],
        )
        .properties(height=_WEIGHTS_HEIGHT)
    )
    return drawn


def _row(policy: str, kind: str, value: Value, *, share: bool) -> dict[str, Any] | None:
    if value.estimate is None or value.low is None or value.high is None:
        return None
    return {
        "policy": policy,
        "kind": kind,
        "estimate": value.estimate,
        "low": value.low,
        "high": value.high,
        "shown": formats.reward(value.estimate, share=share),
        "range": formats.reward_range(value.low, value.high, share=share),
    }
