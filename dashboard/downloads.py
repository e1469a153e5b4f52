"""Files to take away: the table, the report, and what was recorded."""

import csv
import io
import json
from collections.abc import Sequence

import streamlit as st

from dashboard import formats, reports
from experiment_service.analysis.interval import Estimate, Interval
from experiment_service.replay.export import CONTENTS, Content
from experiment_service.reporting import Report

#: Rows that a page hands out; a file is made in memory, so more go by the command line.
MOST_ROWS = 100_000

_LIMITS = ("estimate", "low", "high", "withheld")
_SAID = {
    "rounds": "Rounds: one row for each unit whose window has closed",
    "exposures": "Exposures: every carousel that was served",
    "interactions": "Interactions that count for the experiment",
}
_FORMATS = {".csv": ("CSV", "text/csv"), ".parquet": ("Parquet", "application/parquet")}


def section(report: Report) -> None:
    """Offer the numbers of the page, and the raw events while they are not too many."""
    key, numbers = report.facts.key, _part(report)
    with st.container(horizontal=True):
        st.download_button(
            "All metrics, CSV",
            lambda: metrics_csv(report),
            file_name=f"{key}{numbers}-metrics.csv",
            mime="text/csv",
            icon=":material/table:",
            on_click="ignore",
        )
        st.download_button(
            "The whole report, JSON",
            lambda: json.dumps(
                report.to_document(), allow_nan=False, ensure_ascii=False, indent=2
            ),
            file_name=f"{key}{numbers}-report.json",
            mime="application/json",
            icon=":material/data_object:",
            on_click="ignore",
        )
    _raw(report)


def _part(report: Report) -> str:
    days = report.days
    return "" if days is None else f"-{days.first}-{days.last}"


def _raw(report: Report) -> None:
    key = report.facts.key
    st.caption(
        "What was recorded, of all days, to analyse elsewhere; "
        f"up to {formats.count(MOST_ROWS)} rows."
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        content: Content = st.selectbox(
            "What was recorded",
            CONTENTS,
            format_func=lambda name: _SAID[name],
            key=f"content {key}",
            width=430,
        )
        ending = st.selectbox(
            "Format",
            list(_FORMATS),
            format_func=lambda each: _FORMATS[each][0],
            key=f"format {key}",
            width=130,
        )
        refusal = _refusal(report, content)
        st.download_button(
            f"Make {content}{ending}",
            lambda: reports.export(key, content, ending),
            file_name=f"{key}-{content}{ending}",
            mime=_FORMATS[ending][1],
            icon=":material/download:",
            disabled=refusal is not None,
            on_click="ignore",
        )
    if refusal is not None:
        st.caption(refusal)


def _refusal(report: Report, content: Content) -> str | None:
    """Say why the page does not make a file; None when it does."""
    rows = rows_of(report, content)
    if rows == 0:
        return "Nothing was recorded yet."
    if content == "rounds" and report.reward.kind == "ratio":
        return (
            "Rounds have one reward for each unit, and a ratio is none: take the "
            "exposures and interactions, or name a metric to the command `experiment-"
            f"service export {report.facts.key} rounds --output rounds.parquet --metric "
            "NAME`."
        )
    if rows > MOST_ROWS:
        return (
            f"About {formats.count(rows)} rows are too many for a page. The command "
            f"`experiment-service export {report.facts.key} {content} --output "
            f"{content}.parquet` writes them to a file, however many they are."
        )
    return None


def rows_of(report: Report, content: Content) -> int:
    """Return how many rows a file would have, or a few more."""
    if content == "rounds":
        return report.facts.units
    if content == "exposures":
        return sum(each.exposures for each in report.facts.variants)
    return sum(report.facts.interactions.values())


def metrics_csv(report: Report) -> str:
    """Write every metric of every variant as CSV, a row for each.

    Rates are shares of 1 and not percentages; a number that is withheld is empty and has
    its reason in a column of its own.
    """
    written = io.StringIO()
    lines = csv.writer(written)
    estimates = ("value", "difference_any_time", "difference_one_look", "lift_one_look")
    lines.writerow(
        (
            "experiment",
            "as_of",
            "metric",
            "kind",
            "variant",
            "control",
            "units",
            *(f"{name}_{limit}" for name in estimates for limit in _LIMITS),
            "p_any_time_corrected",
            "probability_better",
            "expected_loss",
        )
    )
    for metric in report.metrics:
        compared = {each.variant: each for each in metric.comparisons}
        for result in metric.variants:
            each = compared.get(result.variant)
            belief = None if each is None else each.belief
            lines.writerow(
                (
                    report.facts.key,
                    report.as_of.isoformat(),
                    metric.name,
                    metric.kind,
                    result.variant,
                    report.facts.control,
                    result.units,
                    *_limits(result.any_time),
                    *_limits(None if each is None else each.any_time),
                    *_limits(None if each is None else each.planned),
                    *_limits(None if each is None else each.lift_planned),
                    "" if each is None else _blank(each.corrected_any_time),
                    "" if belief is None else belief.probability_better,
                    "" if belief is None else belief.expected_loss,
                )
            )
    return written.getvalue()


def _limits(estimate: Estimate | None) -> Sequence[object]:
    if estimate is None:
        return ("", "", "", "")
    if isinstance(estimate, Interval):
        return (estimate.estimate, estimate.low, estimate.high, "")
    return ("", "", "", estimate.reason)


def _blank(value: float | None) -> object:
    return "" if value is None else value
