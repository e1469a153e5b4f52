"""One experiment: is it healthy, what does it say, and how sure is that."""

import streamlit as st

from dashboard import charts, encodings, parts, reports, tables
from experiment_service.reporting import Report


@st.fragment(run_every=reports.REFRESH_SECONDS)
def _live() -> None:
    with parts.problems_in_words():
        key = parts.choose_experiment("Experiment", reports.experiments)
        if key is None:
            st.info("There are no experiments yet.", icon=":material/science:")
            return
        report = reports.report(key)
        parts.header(report)
        parts.summary_box(report.summary)
        if report.bandit is not None:
            st.page_link(
                "views/bandit.py",
                label="Weights, posteriors and P(best) are on the page Bandit",
                icon=":material/casino:",
                query_params={"experiment": key},
            )
        if report.facts.state == "draft":
            st.caption(f"Start it with `experiment-service start {key}`.")
            return
        _result(report)
        _over_time(report)
        _all_metrics(report)


def _result(report: Report) -> None:
    names = [metric.name for metric in report.metrics]
    titles = {metric.name: metric.title for metric in report.metrics}
    chosen = st.segmented_control(
        "Metric",
        names,
        default=names[0],
        format_func=lambda name: (
            titles[name] + (" (decides)" if name == names[0] else "")
        ),
        key=f"metric {report.facts.key}",
        required=True,
        label_visibility="collapsed",
    )
    metric = report.metrics[names.index(chosen or names[0])]
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
    )
    parts.chart(
        charts.cumulative(
            report.series, report.reward, encodings.colours(report.facts)
        ),
        instead="The first windows have not closed yet.",
        key="Reward so far",
    )


def _all_metrics(report: Report) -> None:
    st.subheader("All metrics", anchor=False)
    st.html(tables.metrics_table(report, report.metrics))


_live()
