"""All experiments at a glance: state, traffic, health and result in a line each."""

import streamlit as st

from dashboard import formats, parts, reports, tables


@st.fragment(run_every=reports.REFRESH_SECONDS)
def _live() -> None:
    with parts.problems_in_words():
        rows = reports.overview()
        if not rows:
            st.info(
                "There are no experiments yet. Write one in YAML and run "
                "`experiment-service create FILE --start`, or see it all at work with "
                "`make demo`.",
                icon=":material/science:",
            )
            return
        running = [row for row in rows if row.facts.state == "running"]
        failed = [row for row in running if row.health == "failed"]
        parts.facts_row(
            {
                "Running": formats.count(len(running)),
                "All experiments": formats.count(len(rows)),
                "Units in running experiments": formats.count(
                    sum(row.facts.units for row in running)
                ),
                "Running with failed checks": formats.count(len(failed)),
            }
        )
        st.html(tables.overview_table(rows))


st.title("Experiments", anchor=False)
_live()
