"""Health: is the service collecting well, and can each experiment be believed."""

from datetime import timedelta

import streamlit as st

from dashboard import encodings, formats, health_charts, parts, reports, tables


@st.fragment(run_every=reports.REFRESH_SECONDS)
def _service() -> None:
    with parts.problems_in_words():
        found = reports.operations()
        lag = found.lag
        parts.facts_row(
            {
                "Exposures, last hour": formats.count(
                    sum(each.exposures for each in found.minutes)
                ),
                "Interactions, last hour": formats.count(
                    sum(each.interactions for each in found.minutes)
                ),
                "Recorded after, median": formats.NOTHING
                if lag is None
                else f"{lag.median:.1f} s",
                "95% recorded within": formats.NOTHING
                if lag is None
                else f"{lag.p95:.1f} s",
                "Longest": formats.NOTHING if lag is None else f"{lag.longest:.1f} s",
                "Database": formats.size(found.database_bytes),
            }
        )
        parts.chart(
            health_charts.traffic(
                found.minutes, found.as_of - timedelta(hours=1), found.as_of
            )
            if found.minutes
            else None,
            instead="No events in the last hour.",
            key="Events per minute",
        )
        st.html(tables.checks_table(found.checks))


@st.fragment(run_every=reports.REFRESH_SECONDS)
def _experiment() -> None:
    with parts.problems_in_words():
        key = parts.choose_experiment(
            "An experiment", reports.experiments, section=True
        )
        if key is None:
            st.info("There are no experiments yet.", icon=":material/science:")
            return
        report = reports.report(key)
        if report.facts.state == "draft":
            st.caption("A draft has no traffic to check.")
            return
        colour_of = encodings.colours(report.facts)
        st.html(tables.checks_table(report.checks))
        st.subheader("Sample ratio by epoch", anchor=False)
        st.caption(
            "Each point compares the units of a variant with its weight. In a healthy "
            "experiment nearly all lie in the grey band of 3 standard errors."
        )
        parts.chart(
            health_charts.sample_ratio(report.epochs, colour_of),
            instead="Too few units so far: a variant must expect 5 in an epoch.",
            key="Sample ratio by epoch",
        )
        st.html(tables.ratio_table(report, colour_of))


st.title("Health", anchor=False)
st.subheader("The service", anchor=False)
_service()
_experiment()
