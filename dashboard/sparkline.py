"""A small drawing of an experiment's primary result, as HTML for a cell of a table."""

from html import escape

from dashboard import encodings, formats
from experiment_service.analysis.interval import Interval
from experiment_service.reporting import OverviewRow

#: Variants that are drawn; with more, the rest is counted.
_MOST = 4


def forest(row: OverviewRow) -> str:
    """Draw each variant's difference to control with its any-time interval.

    All lines of a cell have one scale, which holds 0; the numbers stand beside them. Not
    drawn when a health check failed, as nobody should read a difference then.
    """
    given = {
        each.variant: each.any_time
        for each in row.reward.comparisons
        if isinstance(each.any_time, Interval)
    }
    if row.health == "failed" or not given:
        return formats.NOTHING
    low = min(0.0, *(each.low for each in given.values()))
    high = max(0.0, *(each.high for each in given.values()))
    colour_of = encodings.colours(row.facts)
    lanes = "".join(
        _lane(row, variant, each, (low, high - low), colour_of[variant])
        for variant, each in list(given.items())[:_MOST]
    )
    more = len(given) - _MOST
    rest = f'<span class="es-small">and {more} more</span>' if more > 0 else ""
    return f'<div class="es-forest">{lanes}</div>{rest}'


def _lane(
    row: OverviewRow,
    variant: str,
    interval: Interval,
    scale: tuple[float, float],
    colour: str,
) -> str:
    low, width = scale

    def at(value: float) -> str:
        return f"{100 * (value - low) / width:.2f}%"

    kind = row.reward.kind
    shown = formats.difference(interval.estimate, kind)
    told = f"{variant}: {shown}, {formats.difference_range(interval, kind)}"
    length = f"{100 * (interval.high - interval.low) / width:.2f}%"
    return (
        f'<div class="es-lane" title="{escape(told)}"><span class="es-lane-draw">'
        f'<span class="es-zero" style="left:{at(0.0)}"></span>'
        f'<span class="es-line" style="left:{at(interval.low)};width:{length};'
        f'background:{colour}"></span>'
        f'<span class="es-dot" style="left:{at(interval.estimate)};'
        f'background:{colour}"></span></span>'
        f'<span class="es-lane-name">{escape(variant)} <b>{escape(shown)}</b></span></div>'
    )
