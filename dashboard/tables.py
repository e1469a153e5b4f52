"""Tables and chips as HTML: text that a screen reader and a test can read.

Every text that comes from data is escaped.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from dashboard import formats, sparkline
from experiment_service.analysis.interval import Estimate, Interval, Withheld
from experiment_service.domain.metric import MetricKind
from experiment_service.reporting import (
    Check,
    Comparison,
    EpochReport,
    Look,
    MetricReport,
    OverviewRow,
    Posterior,
    Report,
)

#: Rows of epochs and looks that a page lists.
LATEST = 10

_STATUS = {
    "ok": "OK",
    "warning": "Warning",
    "failed": "Failed",
    "not_enough_data": "Not enough data",
}
_VERDICT = {
    "draft": "Draft",
    "unhealthy": "Unhealthy",
    "too_early": "Too early",
    "no_difference": "No difference shown",
    "behind": "Behind",
    "guardrail": "Guardrail breached",
    "ahead": "Ahead",
}


_GUARDRAIL = {
    "held": ("Guardrail held", "ok"),
    "breached": ("Guardrail breached", "failed"),
    "open": ("Guardrail open", "draft"),
}


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str,
    plain_header: bool = True,
) -> str:
    """Lay out cells that are HTML already; headers ending in ``#`` hold numbers.

    Parameters
    ----------
    plain_header : bool
        Whether headers are text; else they are HTML too.
    """
    numeric = [name.endswith("#") for name in header]
    classes = [' class="number"' if each else "" for each in numeric]
    names = [name.removesuffix("#") for name in header]
    if plain_header:
        names = [escape(name) for name in names]
    head = "".join(
        f'<th scope="col"{c}>{name}</th>'
        for name, c in zip(names, classes, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{c}>{cell}</td>" for cell, c in zip(row, classes, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="es-scroll"><table class="es-table"><caption>{escape(caption)}'
        f"</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def chip(text: str, tone: str) -> str:
    """Return a small label; `tone` is a status, verdict or state."""
    return f'<span class="es-chip es-{escape(tone)}">{escape(text)}</span>'


def status_chip(status: str) -> str:
    """Return the label of a health status."""
    return chip(_STATUS[status], status)


def verdict_chip(verdict: str) -> str:
    """Return the label of a verdict."""
    return chip(_VERDICT[verdict], verdict)


def variant_name(key: str, colour: str, *, control: bool) -> str:
    """Return a variant with its colour, and whether it is the control."""
    swatch = f'<span class="es-swatch" style="background:{colour}"></span>'
    return (
        swatch + f"<b>{escape(key)}</b>" + (chip("control", "draft") if control else "")
    )


def overview_table(rows: Sequence[OverviewRow]) -> str:
    """List experiments; each name leads to its page."""
    return table(
        (
            "Experiment",
            "Kind",
            "State",
            "Running#",
            "Units#",
            "Health",
            "Difference to control",
            "Result",
        ),
        [
            (
                f'<a href="experiment?experiment={escape(row.facts.key)}" '
                f'target="_self"><b>{escape(row.facts.key)}</b></a>'
                + small(f"on {row.facts.placement}"),
                formats.kind(row.facts.kind),
                chip(row.facts.state.capitalize(), row.facts.state),
                formats.span(row.facts.running_for)
                if row.facts.started_at
                else formats.NOTHING,
                formats.count(row.facts.units),
                formats.NOTHING
                if row.facts.state == "draft"
                else status_chip(row.health),
                sparkline.forest(row),
                verdict_chip(row.summary.verdict) + small(row.summary.sentence),
            )
            for row in rows
        ],
        caption="Experiments; the lines are intervals that hold at every look for the "
        "metric that decides, the dashed line is no difference",
    )


def result_table(
    report: Report, metric: MetricReport, colour_of: Mapping[str, str]
) -> str:
    """Show a metric of every variant: value, difference and lift with intervals."""
    facts = {variant.key: variant for variant in report.facts.variants}
    compared = {each.variant: each for each in metric.comparisons}
    kind = metric.kind
    rows = []
    for result in metric.variants:
        variant = facts[result.variant]
        swatch = colour_of[variant.key]
        weight = variant.weight
        rows.append(
            (
                variant_name(variant.key, swatch, control=variant.control),
                formats.NOTHING if weight is None else formats.share(weight),
                formats.count(result.units)
                + small(
                    ""
                    if report.days
                    else f"{formats.count(result.open_units)} more open"
                ),
                _estimate(result.any_time, lambda i: formats.value(i.estimate, kind))
                + _range(result.any_time, lambda i: formats.value_range(i, kind)),
                *_comparison(compared.get(variant.key), metric),
            )
        )
    return table(
        (
            "Variant",
            "Weight#",
            "Units#",
            f"{metric.title}, any time#",
            "Difference, any time#",
            "Difference, one look#",
            "Lift, one look#",
            "P(better)#",
        ),
        rows,
        caption=f"{metric.title} by variant with {report.level:.0%} intervals; differences "
        f"and lift are to {report.facts.control}. P(better) is the posterior's; the loss "
        "is what choosing the variant costs on average if it is not",
    )


def _comparison(
    comparison: Comparison | None, metric: MetricReport
) -> tuple[str, str, str, str]:
    """Return both differences, the lift and P(better); control is their reference."""
    if comparison is None:
        reference = small("reference")
        return reference, reference, reference, reference
    belief = comparison.belief
    differences = [
        _difference(each, metric)
        + _range(each, lambda i: formats.difference_range(i, metric.kind))
        for each in (comparison.any_time, comparison.planned)
    ]
    removed = comparison.variance_removed
    if isinstance(removed, Withheld):
        differences[0] += small(f"not adjusted: {removed.reason}")
    elif removed is not None:
        differences[0] += small(
            f"CUPED: {formats.share(removed, digits=0)} less variance"
        )
    lift = comparison.lift_planned
    return (
        differences[0],
        differences[1],
        _estimate(lift, lambda i: formats.lift(i.estimate))
        + _range(lift, formats.lift_range),
        formats.NOTHING
        if belief is None
        else formats.probability(belief.probability_better)
        + small(f"loss {formats.loss(belief.expected_loss, metric.kind)}"),
    )


def metrics_table(report: Report, metrics: Sequence[MetricReport]) -> str:
    """Show every metric in a row: values and any-time differences of all variants."""
    variants = report.facts.variants
    rows = []
    for metric in metrics:
        compared = {each.variant: each for each in metric.comparisons}
        cells = [
            f"<b>{escape(metric.title)}</b>"
            + small("lower is better" if metric.direction == "lower" else "")
            + small(
                ""
                if metric.margin is None
                else f"guardrail: at most {formats.share(metric.margin)} worse"
            )
        ]
        for result in metric.variants:
            value = formats.given(result.any_time) or formats.given(result.planned)
            cell = (
                formats.NOTHING
                if value is None
                else formats.value(value.estimate, metric.kind)
            )
            if result.variant in compared:
                each = compared[result.variant]
                cell += "<br>" + _difference(each.any_time, metric)
                if each.guardrail is not None:
                    cell += " " + chip(*_GUARDRAIL[each.guardrail])
                if each.corrected_any_time is not None:
                    cell += small(f"p {formats.p_value(each.corrected_any_time)}")
            cells.append(cell)
        rows.append(tuple(cells))
    return table(
        ("Metric", *(f"{variant.key}#" for variant in variants)),
        rows,
        caption="Values, and differences to control; a triangle marks those whose any-time "
        "interval excludes 0: up is better, down is worse. The p-values hold at any look "
        "and for all variants and metrics together (Holm)",
    )


def methods_table(metric: MetricReport) -> str:
    """List the methods behind a metric's numbers, what makes them hold, and refusals.

    And what they cost in width: beside one look, and by weighting units unequally.
    """
    shown: dict[str, list[tuple[Estimate, Estimate | None]]] = {
        "Value, any time": [(each.any_time, each.planned) for each in metric.variants],
        "Value, one look": [(each.planned, None) for each in metric.variants],
        "Difference, any time": [
            (each.any_time, each.planned) for each in metric.comparisons
        ],
        "Difference, one look": [(each.planned, None) for each in metric.comparisons],
        "Lift, one look": [(each.lift_planned, None) for each in metric.comparisons],
    }
    rows: dict[tuple[str, str, str], None] = {}
    for number, estimates in sorted(shown.items()):
        cost = _cost(estimates)
        for estimate, _ in estimates:
            given = formats.given(estimate) is not None
            rows[*_method(number, estimate), cost if given else formats.NOTHING] = None
    return table(
        ("Number", "Method and when it holds", "What it costs in width"),
        list(rows),
        caption="Where they come from",
    )


def _cost(estimates: Sequence[tuple[Estimate, Estimate | None]]) -> str:
    """Say how wide intervals are beside those of one look, and by how many units."""
    ratios = [
        (watched.high - watched.low) / (once.high - once.low)
        for watched, once in estimates
        if isinstance(watched, Interval)
        and isinstance(once, Interval)
        and once.high > once.low
    ]
    sizes = [
        each.overlap.effective_sample_size
        for each, _ in estimates
        if isinstance(each, Interval) and each.overlap is not None
    ]
    parts = []
    if ratios:
        parts.append(
            f"{_span(f'{ratio:.1f}' for ratio in sorted(ratios))} times that of one look"
        )
    if sizes:
        units = _span(formats.count(size) for size in sorted(sizes))
        parts.append(f"as wide as {units} units of the smaller variant, weighted alike")
    return "; ".join(parts) or formats.NOTHING


def _span(values: Iterable[str]) -> str:
    """Write the first and the last of several values, once if they are the same."""
    ordered = list(values)
    low, high = ordered[0], ordered[-1]
    return low if low == high else f"{low} to {high}"


def checks_table(checks: Sequence[Check]) -> str:
    """List health checks, the worst first."""
    order = ("failed", "warning", "not_enough_data", "ok")
    ranked = sorted(checks, key=lambda check: order.index(check.result.status))
    return table(
        ("Check", "Status", "What was found"),
        [
            (
                f"<b>{escape(check.title)}</b>"
                + (small(check.subject) if check.subject else ""),
                status_chip(check.result.status),
                escape(check.result.message),
            )
            for check in ranked
        ],
        caption="Health checks",
    )


def epochs_table(report: Report) -> str:
    """List the latest epochs, the newest first."""
    variants = [variant.key for variant in report.facts.variants]
    return table(
        ("Epoch#", "From", *(f"{variant}#" for variant in variants), "Reason"),
        [
            (
                str(epoch.number),
                formats.moment(epoch.started_at),
                *(
                    formats.share(epoch.weights[variant])
                    + small(f"{formats.count(epoch.units[variant])} units")
                    for variant in variants
                ),
                small(epoch.reason),
            )
            for epoch in report.epochs[: -LATEST - 1 : -1]
        ],
        caption=f"Epochs, the latest {LATEST} of {len(report.epochs)}"
        if len(report.epochs) > LATEST
        else "Epochs",
    )


def looks_table(looks: Sequence[Look]) -> str:
    """List the latest scheduled looks, the newest first."""
    return table(
        ("Rewards up to", "Weights", "Epoch#", "Reason"),
        [
            (
                formats.moment(look.cutoff),
                chip("Moved", "ahead") if look.moved else chip("Kept", "draft"),
                str(look.epoch),
                small(look.reason),
            )
            for look in looks[: -LATEST - 1 : -1]
        ],
        caption=f"Looks of the policy, the latest {LATEST} of {len(looks)}"
        if len(looks) > LATEST
        else "Looks of the policy",
    )


def posteriors_table(
    posteriors: Sequence[Posterior],
    colour_of: Mapping[str, str],
    control: str,
    kind: MetricKind,
) -> str:
    """Show the posterior of each variant and P(best)."""
    return table(
        ("Variant", "Units#", "Rewards#", "Reward, 95% credible#", "P(best)#"),
        [
            (
                variant_name(
                    each.variant,
                    colour_of[each.variant],
                    control=each.variant == control,
                ),
                formats.count(each.units),
                formats.count(each.rewards),
                formats.value(each.mean, kind)
                + small(
                    f"{formats.value(each.low, kind)} to "
                    f"{formats.value(each.high, kind)}"
                ),
                f"<b>{formats.probability(each.probability_best)}</b>",
            )
            for each in posteriors
        ],
        caption=f"{'Beta' if posteriors[0].deviation is None else 'Normal'} posterior "
        "of each variant's reward",
    )


def segments_table(epoch: EpochReport) -> str:
    """List the weights of each segment in an epoch, the largest segments first."""
    ordered = sorted(epoch.segments.items(), key=lambda each: (-each[1].units, each[0]))
    return table(
        ("Segment", "Units of the epoch#", *(f"{each}#" for each in epoch.weights)),
        [
            (
                escape(name),
                formats.count(segment.units),
                *(formats.share(weight) for weight in segment.weights.values()),
            )
            for name, segment in ordered
        ],
        caption=f"Weights by segment in epoch {epoch.number}",
    )


def ratio_table(report: Report, colour_of: Mapping[str, str]) -> str:
    """Show units per variant beside those that the weights in force make expect."""
    expected = {variant.key: 0.0 for variant in report.facts.variants}
    for epoch in report.epochs:
        total = sum(epoch.units.values())
        for variant, weight in epoch.weights.items():
            expected[variant] += total * weight
    return table(
        ("Variant", "Units#", "Expected#", "Exposures#", "Fallbacks#"),
        [
            (
                variant_name(
                    variant.key, colour_of[variant.key], control=variant.control
                ),
                formats.count(variant.units),
                formats.count(expected[variant.key]),
                formats.count(variant.exposures),
                formats.NOTHING
                if not variant.exposures
                else formats.share(variant.fallbacks / variant.exposures),
            )
            for variant in report.facts.variants
        ],
        caption="Units per variant",
    )


def small(text: str) -> str:
    """Return a second line of a cell."""
    return f'<span class="es-small">{escape(text)}</span>' if text else ""


def _estimate(estimate: Estimate, write: Callable[[Interval], str]) -> str:
    interval = formats.given(estimate)
    return formats.NOTHING if interval is None else f"<b>{escape(write(interval))}</b>"


def _range(estimate: Estimate, write: Callable[[Interval], str]) -> str:
    if isinstance(estimate, Interval):
        return small(write(estimate))
    return f'<span class="es-small es-reason">{escape(estimate.reason)}</span>'


def _difference(estimate: Estimate, metric: MetricReport) -> str:
    """Write a difference, marked when its interval excludes 0."""
    if not isinstance(estimate, Interval):
        return f'<span title="{escape(estimate.reason)}">{formats.NOTHING}</span>'
    text = escape(formats.difference(estimate.estimate, metric.kind))
    if not estimate.excludes_zero:
        return f"<b>{text}</b>"
    better = (estimate.estimate > 0) == (metric.direction == "higher")
    tone, word = ("better", "better") if better else ("worse", "worse")
    return f'<b class="es-{tone}" title="{word} than control">{text}</b>'


def _method(number: str, estimate: Estimate) -> tuple[str, str]:
    if isinstance(estimate, Interval):
        return (
            f"<b>{number}</b>",
            f"{escape(estimate.method)}. {escape(estimate.validity)}",
        )
    return f"<b>{number}</b>", f"Withheld. {escape(estimate.reason)}"
