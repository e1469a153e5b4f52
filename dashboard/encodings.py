"""Parts of charts that all share: colours of variants, axes, inline data.

A variant has one colour everywhere: grey for control, the palette of Okabe and Ito
(distinct for colour-blind readers) for the others in the order of the declaration.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import altair as alt

from experiment_service.reporting import EpochReport, Facts

Chart = alt.Chart | alt.LayerChart | alt.FacetChart

_MAX_EPOCHS = 400
_LEGEND_COLUMNS = 4
NEUTRAL = "#8C8C8C"
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")


def colours(facts: Facts) -> dict[str, str]:
    """Return the colour of each variant."""
    others = [variant.key for variant in facts.variants if not variant.control]
    chosen = {key: PALETTE[i % len(PALETTE)] for i, key in enumerate(others)}
    return {variant.key: chosen.get(variant.key, NEUTRAL) for variant in facts.variants}


def by_variant(
    order: Sequence[str], colour_of: Mapping[str, str], *, legend: bool = True
) -> alt.Color:
    """Colour marks by variant, with the legend on top."""
    return alt.Color(
        "variant:N",
        title=None,
        scale=alt.Scale(
            domain=list(order), range=[colour_of[variant] for variant in order]
        ),
        legend=alt.Legend(
            orient="top",
            title=None,
            symbolOpacity=1,
            columns=_LEGEND_COLUMNS,
        )
        if legend
        else None,
    )


def inline(rows: Sequence[Mapping[str, Any]]) -> alt.InlineData:
    """Put rows into the chart itself."""
    return alt.InlineData(values=[dict(row) for row in rows])


def name_axis() -> alt.Axis:
    """Return an axis of variant names."""
    return alt.Axis(labelLimit=200, labelFontSize=14, ticks=False, domain=False)


def time_x(title: str, span: timedelta) -> alt.X:
    """Place marks by the instant `at`, in UTC whatever the viewer's clock says.

    Parameters
    ----------
    span : timedelta
        Time that the axis covers; it decides how much of an instant a label says.
    """
    if span < timedelta(hours=36):
        labels = "%H:%M"
    else:
        labels = "%d %b, %H:%M" if span < timedelta(days=5) else "%d %b"
    return alt.X(
        "at:T",
        title=title,
        scale=alt.Scale(type="utc"),
        axis=alt.Axis(format=labels, labelOverlap=True, tickCount=8),
    )


def share_axis() -> alt.Axis:
    """Return an axis of shares from 0% to 100%."""
    return alt.Axis(format=".0%", values=[0, 0.25, 0.5, 0.75, 1])


def thinned(epochs: Sequence[EpochReport]) -> list[EpochReport]:
    """Return at most some hundred epochs, evenly chosen, the last one always."""
    step = -(-len(epochs) // _MAX_EPOCHS) or 1
    return list(epochs[::-1][::step][::-1])
