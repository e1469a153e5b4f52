"""Charts: pure functions from pieces of a report to Altair charts.

Light and dark come from Streamlit's theme; colours of variants from `encodings`.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import altair as alt

from dashboard import formats
from dashboard.encodings import (
    NEUTRAL,
    Chart,
    by_variant,
    inline,
    name_axis,
    share_axis,
    thinned,
    time_x,
)
from experiment_service.analysis.interval import Estimate, Interval
from experiment_service.analysis.posterior import beta_density, normal_density
from experiment_service.domain.metric import MetricKind
from experiment_service.reporting import (
    EpochReport,
    MetricReport,
    Posterior,
    Series,
)

_ROW_HEIGHT = 52
_AXIS_HEIGHT = 80
_MINUTE = timedelta(minutes=1)


def forest(
    metric: MetricReport, control: str, colour_of: Mapping[str, str]
) -> Chart | None:
    """Draw differences to control: thin line any-time, thick line for a planned end.

    None when every interval is withheld.
    """
    compared = metric.comparisons
    any_time = _limits(
        metric, "any time", {each.variant: each.any_time for each in compared}
    )
    planned = _limits(
        metric, "one look", {each.variant: each.planned for each in compared}
    )
    if not any_time and not planned:
        return None
    unit = "events per visitor" if metric.kind == "mean" else "percentage points"
    order = [each.variant for each in compared]
    x = alt.X(
        "low:Q",
        title=f"Difference to {control} ({unit})",
        scale=alt.Scale(nice=True, zero=True),
        axis=alt.Axis(tickCount=10),
    )
    watched = {row["variant"] for row in any_time}
    points = any_time + [row for row in planned if row["variant"] not in watched]
    thick, thin, middle = (
        _differences(each, order, colour_of) for each in (planned, any_time, points)
    )
    zero = alt.Chart(inline([{"at": 0}])).mark_rule(
        color=NEUTRAL, strokeDash=[4, 4], strokeWidth=1.5
    )
    layers = [zero.encode(x="at:Q")]
    if planned:
        thick = thick.mark_rule(strokeWidth=9, opacity=0.4)
        layers.append(thick.encode(x=x, x2="high:Q"))
    if any_time:
        layers.append(thin.mark_rule(strokeWidth=2).encode(x=x, x2="high:Q"))
    middle = middle.mark_point(filled=True, size=110, opacity=1)
    return alt.layer(*layers, middle.encode(x="estimate:Q")).properties(
        height=_ROW_HEIGHT * len(order) + _AXIS_HEIGHT
    )


def _differences(
    rows: Sequence[Mapping[str, Any]],
    order: Sequence[str],
    colour_of: Mapping[str, str],
) -> alt.Chart:
    drawn: alt.Chart = alt.Chart(inline(rows)).encode(
        y=alt.Y("variant:N", sort=list(order), title=None, axis=name_axis()),
        color=by_variant(order, colour_of, legend=False),
        tooltip=[
            alt.Tooltip("variant:N", title="Variant"),
            alt.Tooltip("shown:N", title="Difference"),
            alt.Tooltip("range:N", title="Interval"),
            alt.Tooltip("look:N", title="It holds at"),
        ],
    )
    return drawn


def cumulative(
    series: Sequence[Series],
    metric: MetricReport,
    colour_of: Mapping[str, str],
    *,
    time: str = "Time at which windows had closed (UTC)",
) -> Chart | None:
    """Draw the value so far over time, with its confidence sequence as a band.

    None without two points of time. The band of the first points is cut off: with few
    units it fills the whole range.

    Parameters
    ----------
    time : str
        What the points of time are.
    """
    times = sorted({point.at for each in series for point in each.points})
    if len(times) < 2:
        return None
    settled = [
        point.interval
        for each in series
        for point in each.points
        if point.at >= times[len(times) // 4]
    ]
    low, high = min(each.low for each in settled), max(each.high for each in settled)
    scale = alt.Scale(domain=[max(low, 0.0), high], zero=False, nice=True)
    axis = alt.Axis(format=".3f" if metric.kind == "mean" else ".1%")
    base = alt.Chart(inline(_points(series, metric))).encode(
        x=time_x(time, times[-1] - times[0]),
        color=by_variant([each.variant for each in series], colour_of),
        tooltip=[
            alt.Tooltip("variant:N", title="Variant"),
            alt.Tooltip("when:N", title="By"),
            alt.Tooltip("units:Q", title="Units", format=","),
            alt.Tooltip("shown:N", title=metric.title),
            alt.Tooltip("range:N", title="Interval, any time"),
        ],
    )
    band = base.mark_area(opacity=0.13 if len(series) <= 4 else 0.05, clip=True).encode(
        y=alt.Y("low:Q", title=metric.title, scale=scale, axis=axis), y2="high:Q"
    )
    line = base.mark_line(strokeWidth=2.5, clip=True).encode(
        y=alt.Y("estimate:Q", scale=scale)
    )
    return alt.layer(band, line).properties(height=390)


def _points(series: Sequence[Series], metric: MetricReport) -> list[dict[str, Any]]:
    return [
        {
            "variant": each.variant,
            "at": point.at.isoformat(),
            "when": formats.moment(point.at),
            "units": point.units,
            "shown": formats.value(point.interval.estimate, metric.kind),
            "range": formats.value_range(point.interval, metric.kind),
            "estimate": point.interval.estimate,
            "low": point.interval.low,
            "high": point.interval.high,
        }
        for each in series
        for point in each.points
    ]


def weights(
    epochs: Sequence[EpochReport], until: datetime, colour_of: Mapping[str, str]
) -> Chart | None:
    """Draw the share of traffic per variant over time, in steps; None for a draft."""
    if not epochs:
        return None
    rows = _steps(thinned(epochs), until)
    order = list(epochs[0].weights)
    span = max(until - epochs[0].started_at, _MINUTE)
    drawn: Chart = (
        alt.Chart(inline(rows))
        .mark_area(interpolate="step-after", opacity=0.85, line=False)
        .encode(
            x=time_x("Time (UTC)", span),
            y=alt.Y(
                "weight:Q",
                title="Share of traffic",
                stack="zero",
                scale=alt.Scale(domain=[0, 1]),
                axis=share_axis(),
            ),
            color=by_variant(order, colour_of),
            order=alt.Order("rank:Q"),
            tooltip=[
                alt.Tooltip("variant:N", title="Variant"),
                alt.Tooltip("epoch:Q", title="Epoch"),
                alt.Tooltip("weight:Q", title="Weight", format=".1%"),
                alt.Tooltip("when:N", title="From"),
            ],
        )
        .properties(height=350)
    )
    return drawn


def _steps(epochs: Sequence[EpochReport], until: datetime) -> list[dict[str, Any]]:
    """Return the weights at the start of each epoch, and the last ones again."""
    last = epochs[-1]
    starts = [(epoch.started_at, epoch) for epoch in epochs]
    return [
        {
            "variant": variant,
            "at": at.isoformat(),
            "when": formats.moment(at),
            "epoch": epoch.number,
            "weight": weight,
            "rank": rank,
        }
        for at, epoch in [*starts, (max(until, last.started_at), last)]
        for rank, (variant, weight) in enumerate(epoch.weights.items())
    ]


def densities(
    posteriors: Sequence[Posterior], colour_of: Mapping[str, str], kind: MetricKind
) -> Chart | None:
    """Draw the posterior of each variant's reward; None while there is no spread."""
    alphas = [each.alpha for each in posteriors if each.alpha is not None]
    betas = [each.beta for each in posteriors if each.beta is not None]
    deviations = [each.deviation for each in posteriors if each.deviation]
    if alphas:
        grid = beta_density(alphas, betas)
    elif len(deviations) == len(posteriors):
        grid = normal_density([each.mean for each in posteriors], deviations)
    else:
        return None
    axis = alt.Axis(format=".3f" if kind == "mean" else "%")
    order = [each.variant for each in posteriors]
    rows: list[dict[str, Any]] = [
        {"variant": variant, "rate": float(rate), "density": float(density)}
        for variant, row in zip(order, grid.density, strict=True)
        for rate, density in zip(grid.rate, row, strict=True)
    ]
    drawn: Chart = (
        alt.Chart(inline(rows))
        .mark_area(opacity=0.3, line={"strokeWidth": 2})
        .encode(
            x=alt.X(
                "rate:Q",
                title="Reward",
                axis=axis,
                scale=alt.Scale(zero=False, nice=False),
            ),
            y=alt.Y(
                "density:Q",
                title="Density",
                stack=None,
                axis=alt.Axis(labels=False, ticks=False, grid=False),
            ),
            color=by_variant(order, colour_of),
            tooltip=[
                alt.Tooltip("variant:N", title="Variant"),
                alt.Tooltip(
                    "rate:Q", title="Reward", format=".3f" if kind == "mean" else ".2%"
                ),
            ],
        )
        .properties(height=max(_ROW_HEIGHT * len(order) + _AXIS_HEIGHT, 300))
    )
    return drawn


def probability_best(
    posteriors: Sequence[Posterior], colour_of: Mapping[str, str]
) -> Chart:
    """Draw P(best) of each variant as a bar with its number."""
    order = [each.variant for each in posteriors]
    rows: list[dict[str, Any]] = [
        {
            "variant": each.variant,
            "share": each.probability_best,
            "shown": formats.probability(each.probability_best),
        }
        for each in posteriors
    ]
    base = alt.Chart(inline(rows)).encode(
        y=alt.Y("variant:N", sort=order, title=None, axis=name_axis()),
        x=alt.X(
            "share:Q",
            title="P(best)",
            # Room for the number beside a full bar.
            scale=alt.Scale(domain=[0, 1.12], nice=False),
            axis=share_axis(),
        ),
        tooltip=[
            alt.Tooltip("variant:N", title="Variant"),
            alt.Tooltip("shown:N", title="P(best)"),
        ],
    )
    bar = base.mark_bar(height={"band": 0.55}, cornerRadiusEnd=3).encode(
        color=by_variant(order, colour_of, legend=False)
    )
    number = base.mark_text(align="left", dx=6, fontSize=14, color=NEUTRAL).encode(
        text="shown:N"
    )
    return alt.layer(bar, number).properties(
        height=_ROW_HEIGHT * len(order) + _AXIS_HEIGHT
    )


def _limits(
    metric: MetricReport, look: str, estimates: Mapping[str, Estimate]
) -> list[dict[str, Any]]:
    """Return a row for each interval that is given, in points for rates."""
    scale = 1 if metric.kind == "mean" else 100
    return [
        {
            "variant": variant,
            "look": look,
            "estimate": scale * interval.estimate,
            "low": scale * interval.low,
            "high": scale * interval.high,
            "shown": formats.difference(interval.estimate, metric.kind),
            "range": formats.difference_range(interval, metric.kind),
        }
        for variant, interval in estimates.items()
        if isinstance(interval, Interval)
    ]
