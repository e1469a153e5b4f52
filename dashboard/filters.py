"""Filters of a page that its address holds: days of first exposure, group, metric."""

from collections.abc import Sequence
from datetime import date

import streamlit as st

from dashboard import reports
from experiment_service.reporting import Days, Group, MetricReport, SegmentsReport
from experiment_service.reporting.segments import OTHER_LEVELS

#: Names in the address.
FIRST, LAST, METRIC, GROUP = "from", "to", "metric", "group"

EVERYBODY = "everybody"

EXPLORATORY = (
    "Only visitors first exposed from {first} to {last} (UTC) count below. A range of "
    "days that was chosen after looking is exploratory: among many ranges some show a "
    "difference by chance, and the intervals don't allow for that. Decide on all days."
)

EXPLORATORY_GROUP = (
    "Only visitors with {group} count below. A group that was chosen after looking is "
    "exploratory: the test under By attribute of visitors comes first, and decisions go "
    "by all visitors."
)


def choose_days(key: str) -> Days | None:
    """Ask for a range of days; None for all of them, or while one end is missing."""
    started = next(
        (each.started_at for each in reports.experiments() if each.key == key), None
    )
    if started is None:
        return None
    whole = Days(first=started.date(), last=max(reports.today(), started.date()))
    asked = _asked(whole)
    field = f"days {key}"
    if field not in st.session_state:
        st.session_state[field] = (asked.first, asked.last)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.date_input(
            "First exposed between (days in UTC)",
            min_value=whole.first,
            max_value=whole.last,
            key=field,
            on_change=_follow,
            args=(field, whole),
            format="YYYY-MM-DD",
            width=280,
        )
        if asked != whole:
            st.button(
                "All days",
                icon=":material/undo:",
                on_click=_reset,
                args=(field, whole),
            )
    if asked == whole:
        return None
    st.warning(
        EXPLORATORY.format(first=asked.first, last=asked.last),
        icon=":material/filter_alt:",
    )
    return asked


def _asked(whole: Days) -> Days:
    """Read the days of the address; what is no day, or outside, counts as not given."""
    first = _day(FIRST) or whole.first
    last = _day(LAST) or whole.last
    first, last = max(first, whole.first), min(last, whole.last)
    if first > last:
        st.toast("The days of the address are not in the experiment; all are shown.")
        return whole
    return Days(first=first, last=last)


def _day(name: str) -> date | None:
    given = st.query_params.get(name)
    if given is None:
        return None
    try:
        return date.fromisoformat(given)
    except ValueError:
        st.toast(f"The address has no day in its part {name}; write 2026-11-30.")
        return None


def _follow(field: str, whole: Days) -> None:
    chosen = st.session_state[field]
    if len(chosen) == 2:
        _write(Days(first=chosen[0], last=chosen[1]), whole)


def _reset(field: str, whole: Days) -> None:
    st.session_state[field] = (whole.first, whole.last)
    _write(whole, whole)


def _write(days: Days, whole: Days) -> None:
    for name, day, end in (
        (FIRST, days.first, whole.first),
        (LAST, days.last, whole.last),
    ):
        if day == end:
            st.query_params.pop(name, None)
        else:
            st.query_params[name] = day.isoformat()


def choose_group(key: str, segments: SegmentsReport) -> Group | None:
    """Ask for units with one value of an attribute; None for all units."""
    groups = {
        f"{attribute.attribute}: {level.level}": Group(
            attribute=attribute.attribute, value=level.level
        )
        for attribute in segments.attributes
        for level in attribute.levels
        if level.level != OTHER_LEVELS
    }
    if not groups:
        return None
    field = f"group {key}"
    names = [EVERYBODY, *groups]
    if st.session_state.get(field) not in names:
        asked = st.query_params.get(GROUP, EVERYBODY)
        if asked not in names:
            st.toast(
                "The group of the address is not in the experiment; all are shown."
            )
        st.session_state[field] = asked if asked in names else EVERYBODY
    chosen = st.selectbox(
        "Visitors", names, key=field, on_change=_follow_group, args=(field,), width=280
    )
    if chosen == EVERYBODY:
        return None
    st.warning(EXPLORATORY_GROUP.format(group=chosen), icon=":material/filter_alt:")
    return groups[chosen]


def _follow_group(field: str) -> None:
    chosen = st.session_state[field]
    if chosen == EVERYBODY:
        st.query_params.pop(GROUP, None)
    else:
        st.query_params[GROUP] = chosen


def choose_metric(key: str, metrics: Sequence[MetricReport]) -> MetricReport:
    """Ask which metric to show; the one that decides unless the address names another."""
    names = [metric.name for metric in metrics]
    titles = {metric.name: metric.title for metric in metrics}
    field = f"metric {key}"
    if field not in st.session_state:
        asked = st.query_params.get(METRIC)
        st.session_state[field] = asked if asked in names else names[0]
    chosen = st.segmented_control(
        "Metric",
        names,
        format_func=lambda name: (
            titles[name] + (" (decides)" if name == names[0] else "")
        ),
        key=field,
        required=True,
        label_visibility="collapsed",
        on_change=_follow_metric,
        args=(field, names[0]),
    )
    return metrics[names.index(chosen or names[0])]


def _follow_metric(field: str, decides: str) -> None:
    chosen = st.session_state[field]
    if chosen in (None, decides):
        st.query_params.pop(METRIC, None)
    else:
        st.query_params[METRIC] = chosen
