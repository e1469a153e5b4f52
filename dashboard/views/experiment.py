"""One experiment: is it healthy, what does it say, and how sure is that."""

from collections.abc import Mapping
from functools import partial

import streamlit as st

from dashboard import (
    charts,
    downloads,
    encodings,
    filters,
    formats,
    journey_charts,
    parts,
    reports,
    segment_tables,
    tables,
)
from experiment_service.reporting import (
    AttributeReport,
    Journey,
    Report,
    SegmentsReport,
)


@st.fragment(run_every=reports.REFRESH_SECONDS)
def _live() -> None:
    with parts.problems_in_words():
        key = parts.choose_experiment("Experiment", reports.experiments)
        if key is None:
            st.info("There are no experiments yet.", icon=":material/science:")
            return
        segments = reports.segments(key)
        days, group = filters.choose_units(key, segments)
        report = reports.report(key, days, group)
        parts.header(report)
        if days is None and group is None:
            # A verdict is for all units: one on chosen ones would pass for it.
            parts.summary_box(report.summary)
        if report.bandit is not None:
            st.page_link(
                "views/bandit.py",
                label="Weights, gain, posteriors and P(best) are on the page Bandit",
                icon=":material/casino:",
                query_params={"experiment": key},
            )
        if report.facts.state == "draft":
            st.caption(f"Start it with `experiment-service start {key}`.")
            return
        _result(report)
        _over_time(report)
        _all_metrics(report)
        _journey(report, reports.journey(key, days, group))
        _segments(report, segments)
        parts.when_opened(
            "Download", partial(downloads.section, report), key="download"
        )


def _result(report: Report) -> None:
    metric = filters.choose_metric(report.facts.key, report.metrics)
    colour_of = encodings.colours(report.facts)
    st.html(tables.result_table(report, metric, colour_of))
    st.subheader(f"Difference to {report.facts.control}", anchor=False)
    st.caption(
        f"{report.level:.0%} intervals. The thin line holds at every look, the thick one "
        "for a single look at a planned end. An interval that crosses the dashed line "
        "is compatible with no difference."
    )
    parts.chart(
        charts.forest(metric, report.facts.control, colour_of),
        instead="No interval can be given yet; the table says why.",
        key="Differences to control",
    )
    with st.expander("How these numbers are made"):
        st.html(tables.methods_table(metric))


def _over_time(report: Report) -> None:
    st.subheader(f"{report.reward.title} so far", anchor=False)
    st.caption(
        "All units whose attribution window had closed by then. The bands hold at every "
        "point of time at once, so looking as often as you like is allowed."
        if report.days is None
        else "Units first exposed on these days, added up day by day. The bands hold at "
        "every point of time at once."
    )
    parts.chart(
        charts.cumulative(
            report.series,
            report.reward,
            encodings.colours(report.facts),
            time="Time at which windows had closed (UTC)"
            if report.days is None
            else "End of the day of first exposure (UTC)",
        ),
        instead="The first windows have not closed yet."
        if report.days is None
        else "Two days with units are needed to draw a course over time.",
        key="Reward so far",
    )


def _all_metrics(report: Report) -> None:
    st.subheader("All metrics", anchor=False)
    st.html(tables.metrics_table(report, report.metrics))


def _journey(report: Report, journey: Journey) -> None:
    colour_of = encodings.colours(report.facts)
    st.subheader("From exposure to purchase", anchor=False)
    st.html(journey_charts.funnel_table(journey, colour_of, report.facts.control))
    parts.when_opened(
        "Clicks by position", partial(_positions, journey, colour_of), key="positions"
    )


def _positions(journey: Journey, colour_of: Mapping[str, str]) -> None:
    shown = len(journey.places)
    st.caption(
        "Share of all exposed visitors who clicked on the position at least once within "
        f"the attribution window, with {journey.level:.0%} intervals that hold at every "
        "look. Few look far down a carousel, so positions compare across variants and "
        "not with each other."
        + (
            f" The first {shown} of {formats.count(journey.length)} positions."
            if journey.length > shown
            else ""
        )
    )
    parts.chart(
        journey_charts.positions(journey.places, colour_of),
        instead="Nobody has clicked on a position yet, among visitors who count.",
        key="Clicks by position",
    )
    if journey.places:
        st.html(journey_charts.positions_table(journey.places))


def _segments(report: Report, segments: SegmentsReport) -> None:
    st.subheader("By attribute of visitors", anchor=False)
    if not segments.attributes:
        st.caption(
            "Requests carry no attributes. Send `attributes` with them, such as the "
            "device, to see whether a variant does better for some visitors."
        )
        return
    st.caption(
        f"{report.reward.title} of all visitors, by attributes of their first exposure. "
        "First the test whether the effect differs at all: p-values are corrected for all "
        "attributes and variants."
    )
    st.html(segment_tables.tests_table(segments))
    colour_of = encodings.colours(report.facts)
    for attribute in segments.attributes:
        name = f"By {attribute.attribute}"
        draw = partial(_levels, attribute, report.facts.control, colour_of)
        parts.when_opened(name, draw, key=name)
    if segments.left_out:
        st.caption(f"Not looked at: {', '.join(segments.left_out)}.")


def _levels(
    attribute: AttributeReport, control: str, colour_of: Mapping[str, str]
) -> None:
    parts.chart(
        segment_tables.levels(attribute, control, colour_of),
        instead="No interval can be given yet; the table says why.",
        key=f"Differences by {attribute.attribute}",
    )
    st.html(segment_tables.levels_table(attribute, control))


_live()
