"""Effects by attribute of visitors: does one differ, and where is it how large."""

from collections.abc import Mapping
from html import escape

import altair as alt

from dashboard import formats
from dashboard.encodings import NEUTRAL, Chart, by_variant, inline, name_axis
from dashboard.tables import chip, small, table
from experiment_service.analysis.interval import Interval, Withheld
from experiment_service.reporting import AttributeReport, EffectsDiffer, SegmentsReport

#: Corrected p-values below this are told as a difference.
ALPHA = 0.05

_ROW_HEIGHT = 34
_AXIS_HEIGHT = 80


def tests_table(segments: SegmentsReport) -> str:
    """Show for each attribute and variant whether the effect differs between levels."""
    variants = [each.variant for each in segments.attributes[0].differ]
    return table(
        ("Attribute", "Levels#", *variants),
        [
            (
                f"<b>{escape(attribute.attribute)}</b>",
                str(len(attribute.levels)),
                *(_test(each) for each in attribute.differ),
            )
            for attribute in segments.attributes
        ],
        caption="Whether a variant's difference to control is the same at all levels "
        "(Cochran's Q, for one look; Holm over all attributes and variants)",
    )


def _test(each: EffectsDiffer) -> str:
    if isinstance(each.test, Withheld) or each.corrected is None:
        reason = each.test.reason if isinstance(each.test, Withheld) else ""
        return chip("Not tested", "draft") + small(reason)
    differs = each.corrected < ALPHA
    told = (
        chip("Effects differ", "warning")
        if differs
        else chip("No difference shown", "ok")
    )
    left_out = ", ".join(each.test.left_out)
    return (
        told
        + small(
            f"p {formats.p_value(each.corrected)}, "
            f"{formats.share(each.test.inconsistency, digits=0)} of the spread is not chance"
        )
        + small(f"too few data: {left_out}" if left_out else "")
    )


def levels(
    attribute: AttributeReport, control: str, colour_of: Mapping[str, str]
) -> Chart | None:
    """Draw the any-time difference to control at each level; None without any."""
    rows = [
        {
            "level": part.level,
            "variant": each.variant,
            "estimate": scale * each.any_time.estimate,
            "low": scale * each.any_time.low,
            "high": scale * each.any_time.high,
            "shown": formats.difference(each.any_time.estimate, part.report.kind),
            "range": formats.difference_range(each.any_time, part.report.kind),
        }
        for part in attribute.levels
        for scale in (1.0 if part.report.kind == "mean" else 100.0,)
        for each in part.report.comparisons
        if isinstance(each.any_time, Interval)
    ]
    if not rows:
        return None
    kind = attribute.levels[0].report.kind
    unit = "per visitor" if kind == "mean" else "percentage points"
    order = [each.variant for each in attribute.levels[0].report.comparisons]
    names = [part.level for part in attribute.levels]
    base = alt.Chart(inline(rows)).encode(
        y=alt.Y("level:N", sort=names, title=None, axis=name_axis()),
        yOffset=alt.YOffset("variant:N", sort=order),
        color=by_variant(order, colour_of),
        tooltip=[
            alt.Tooltip("level:N", title="Level"),
            alt.Tooltip("variant:N", title="Variant"),
            alt.Tooltip("shown:N", title="Difference"),
            alt.Tooltip("range:N", title="Interval, any time"),
        ],
    )
    x = alt.X("low:Q", title=f"Difference to {control} ({unit})")
    zero = alt.Chart(inline([{"at": 0}])).mark_rule(
        color=NEUTRAL, strokeDash=[4, 4], strokeWidth=1.5
    )
    return alt.layer(
        zero.encode(x="at:Q"),
        base.mark_rule(strokeWidth=2).encode(x=x, x2="high:Q"),
        base.mark_point(filled=True, size=80, opacity=1).encode(x="estimate:Q"),
    ).properties(height=_ROW_HEIGHT * len(order) * len(names) + _AXIS_HEIGHT)


def levels_table(attribute: AttributeReport, control: str) -> str:
    """Show the numbers behind the chart."""
    variants = [each.variant for each in attribute.levels[0].report.comparisons]
    rows = []
    for part in attribute.levels:
        cells = [
            f"<b>{escape(part.level)}</b>",
            formats.count(sum(each.units for each in part.report.variants)),
        ]
        for each in part.report.comparisons:
            interval = formats.given(each.any_time)
            if interval is None:
                reason = (
                    each.any_time.reason if isinstance(each.any_time, Withheld) else ""
                )
                cells.append(formats.NOTHING + small(reason))
                continue
            kind = part.report.kind
            p_value = each.corrected_any_time
            cells.append(
                f"<b>{formats.difference(interval.estimate, kind)}</b>"
                + small(formats.difference_range(interval, kind))
                + small("" if p_value is None else f"p {formats.p_value(p_value)}")
            )
        rows.append(tuple(cells))
    return table(
        (attribute.attribute, "Units#", *(f"{variant}#" for variant in variants)),
        rows,
        caption=f"Difference to {control} at any time; p-values are corrected for all "
        "levels and variants of the attribute (Holm)",
    )
