"""Health: is the service collecting well, and can each experiment be believed."""

from collections.abc import Mapping
from datetime import timedelta

import streamlit as st

from dashboard import (
    encodings,
    formats,
    health_charts,
    monitor_charts,
    parts,
    reports,
    tables,
)
from experiment_service.domain.monitor import MONITORS, title_of

#: Charts beside each other.
_COLUMNS = 3


@st.fragment(run_every=reports.REFRESH_SECONDS)
def _open_alerts() -> None:
    with parts.problems_in_words():
        for each in reports.alerts().open:
            name = parts.escape_markdown(f"{title_of(each.monitor)} of {each.about}")
            st.error(
                f"**{name}**, since {formats.moment(each.raised_at)}. "
                f"{parts.escape_markdown(each.reason)}",
                icon=":material/notifications_active:",
            )


@st.fragment(run_every=reports.REFRESH_SECONDS)
def _alerts() -> None:
    with parts.problems_in_words():
        found = reports.alerts()
        if found.open or found.over:
            st.html(monitor_charts.alerts_table(found))
        else:
            st.caption("No alert so far.")


def _monitors(key: str, colour_of: Mapping[str, str]) -> None:
    st.subheader("What it serves", anchor=False)
    days = reports.monitored(key)
    if not days:
        st.caption("Nothing was measured yet: a worker looks every ten minutes.")
        return
    st.caption(
        "Each point is of the 24 hours up to the last look on that day. Beyond the dashed "
        "line there is an alert."
    )
    st.html(monitor_charts.legend(colour_of))
    limits = reports.monitor_thresholds()
    for first in range(0, len(MONITORS), _COLUMNS):
        names = list(MONITORS)[first : first + _COLUMNS]
        for column, name in zip(st.columns(_COLUMNS), names, strict=True):
            title = MONITORS[name].title
            with column:
                st.markdown(f"**{title}**", help=_explained(name, limits[name]))
                parts.chart(
                    monitor_charts.by_day(
                        days, name, colour_of, threshold=limits[name]
                    ),
                    instead="Too little to measure.",
                    key=title,
                )
    st.subheader("Interactions by position", anchor=False)
    parts.chart(
        monitor_charts.by_position(days, colour_of),
        instead="No interaction so far.",
        key="Interactions by position",
    )


def _explained(name: str, threshold: float) -> str:
    monitor = MONITORS[name]
    return (
        f"A value of {monitor.write(threshold)} {monitor.what}. Alert "
        f"{monitor.alerts} {monitor.write(threshold)}."
    )


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
        _monitors(key, colour_of)


st.title("Health", anchor=False)
_open_alerts()
st.subheader("The service", anchor=False)
_service()
st.subheader("Alerts", anchor=False)
_alerts()
_experiment()
