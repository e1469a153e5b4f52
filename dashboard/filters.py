"""Filters of a page that its address holds: days of first exposure, group, metric."""

from collections.abc import Mapping, Sequence
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


def choose_units(
    key: str, segments: SegmentsReport
) -> tuple[Days | None, Group | None]:
    """Ask for units by their days of first exposure and by an attribute; None for all.

    The fields come when they are asked for: they cost a browser as much as a chart.
    """
    whole = _whole(key)
    if whole is None:
        return None, None
    groups = _groups(segments)
    days, chosen = _asked(whole), _asked_group(groups)
    with st.container(horizontal=True, vertical_alignment="center"):
        with st.popover(
            "Filter visitors",
            icon=":material/filter_alt:",
            key="filter",
            on_change="rerun",
        ) as part:
            if part.open:
                _days_field(key, days, whole)
                if groups:
                    _group_field(key, chosen, groups)
        undo = ":material/undo:"
        if days != whole:
            st.button("All days", icon=undo, on_click=_write_days, args=(whole, whole))
        if chosen != EVERYBODY:
            st.button(
                "All visitors", icon=undo, on_click=_write_group, args=(EVERYBODY,)
            )
    if days != whole:
        told = EXPLORATORY.format(first=days.first, last=days.last)
        st.warning(told, icon=":material/filter_alt:")
    if chosen != EVERYBODY:
        told = EXPLORATORY_GROUP.format(group=chosen)
        st.warning(told, icon=":material/filter_alt:")
    return days if days != whole else None, groups.get(chosen)


def _whole(key: str) -> Days | None:
    """Return all days of an experiment; None before it has started."""
    started = next(
        (each.started_at for each in reports.experiments() if each.key == key), None
    )
    if started is None:
        return None
    return Days(first=started.date(), last=max(reports.today(), started.date()))


def _days_field(key: str, asked: Days, whole: Days) -> None:
    field = f"days {key}"
    # What the address says, unless one end of a range is chosen and the other is not.
    if len(st.session_state.get(field, ())) != 1:
        st.session_state[field] = (asked.first, asked.last)
    st.date_input(
        "First exposed between (days in UTC)",
        min_value=whole.first,
        max_value=whole.last,
        key=field,
        on_change=_follow_days,
        args=(field, whole),
        format="YYYY-MM-DD",
        width=280,
    )


def _asked(whole: Days) -> Days:
    """Read the days of the address; what is no day, or outside, counts as not given."""
    first = _day(FIRST) or whole.first
    last = _day(LAST) or whole.last
    first, last = max(first, whole.first), min(last, whole.last)
    if first > last:
        st.toast("The days of the address are not in the experiment; all are shown.")
        _write_days(whole, whole)
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
        del st.query_params[name]
        return None


def _follow_days(field: str, whole: Days) -> None:
    chosen = st.session_state[field]
    if len(chosen) == 2:
        _write_days(Days(first=chosen[0], last=chosen[1]), whole)


def _write_days(days: Days, whole: Days) -> None:
    for name, day, end in (
        (FIRST, days.first, whole.first),
        (LAST, days.last, whole.last),
    ):
        if day == end:
            st.query_params.pop(name, None)
        else:
            st.query_params[name] = day.isoformat()


def _groups(segments: SegmentsReport) -> dict[str, Group]:
    return {
        f"{attribute.attribute}: {level.level}": Group(
            attribute=attribute.attribute, value=level.level
        )
        for attribute in segments.attributes
        for level in attribute.levels
        if level.level != OTHER_LEVELS
    }


def _asked_group(groups: Mapping[str, Group]) -> str:
    asked = st.query_params.get(GROUP, EVERYBODY)
    if asked == EVERYBODY or asked in groups:
        return asked
    st.toast("The group of the address is not in the experiment; all are shown.")
    del st.query_params[GROUP]
    return EVERYBODY


def _group_field(key: str, chosen: str, groups: Mapping[str, Group]) -> None:
    field = f"group {key}"
    st.session_state[field] = chosen
    st.selectbox(
        "Visitors",
        (EVERYBODY, *groups),
        key=field,
        on_change=_follow_group,
        args=(field,),
        width=280,
    )


def _follow_group(field: str) -> None:
    _write_group(st.session_state[field])


def _write_group(chosen: str) -> None:
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
