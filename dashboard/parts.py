"""Parts that pages share: choosing an experiment, errors in words, banners, facts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape

import streamlit as st

from dashboard import encodings, formats
from experiment_service.errors import ExperimentServiceError
from experiment_service.reporting import ListedExperiment, Report, Summary

_PARAMETER = "experiment"
_DECIDED = {
    "ship": "Decided: ship ",
    "keep_control": "Decided: control stays",
    "inconclusive": "Decided: inconclusive",
}
_REMEMBERED = "remembered experiment"


@contextmanager
def problems_in_words() -> Iterator[None]:
    """Show what the service says is wrong, instead of what was to be drawn."""
    try:
        yield
    except ExperimentServiceError as error:
        st.error(
            f"{_capitalised(error.message)}. The page tries again every few seconds.",
            icon=":material/cloud_off:",
        )


def choose_experiment(
    title: str,
    load: Callable[[], Sequence[ListedExperiment]],
    *,
    section: bool = False,
) -> str | None:
    """Head a page, or a section of one, with its title and a choice of experiment.

    The choice is in the address, so that it can be shared. The title stands also when
    `load` fails. None when there is nothing to choose from.
    """
    row = st.container(
        horizontal=True, horizontal_alignment="distribute", vertical_alignment="bottom"
    )
    with row:
        head = st.subheader if section else st.title
        head(title, anchor=False, width="content")
    states = {each.key: each.state for each in load()}
    if not states:
        return None
    asked = st.query_params.get(_PARAMETER, st.session_state.get(_REMEMBERED))
    if asked not in states:
        if _PARAMETER in st.query_params:
            st.toast(
                f"{escape_markdown(str(asked))} is not among the experiments of this page."
            )
        asked = next(iter(states))
    st.session_state["experiment"] = asked
    st.session_state[_REMEMBERED] = asked
    if st.query_params.get(_PARAMETER) != asked:
        st.query_params[_PARAMETER] = asked
    with row:
        st.selectbox(
            "Experiment",
            list(states),
            key="experiment",
            on_change=_follow,
            format_func=lambda key: f"{key} ({states[key]})",
            width=380,
        )
    return asked


def _follow() -> None:
    st.query_params[_PARAMETER] = st.session_state["experiment"]


def header(report: Report) -> None:
    """Show what the experiment is, how far it has come, and its health if not good."""
    facts = report.facts
    if facts.description:
        st.html(f'<span class="es-small">{escape(facts.description)}</span>')
    open_units = sum(result.open_units for result in report.reward.variants)
    counted = sum(result.units for result in report.reward.variants)
    facts_row(
        {
            "Kind": formats.kind(facts.kind),
            "State": facts.state.capitalize(),
            "Placement": facts.placement,
            "Running for": formats.span(facts.running_for)
            if facts.started_at
            else formats.NOTHING,
            "Units that count": formats.count(counted),
            # A chosen range of days knows no units whose window is open.
            "Window still open": formats.NOTHING
            if report.days
            else formats.count(open_units),
            "Attribution window": formats.span(facts.attribution_window),
            "Last exposure": formats.ago(facts.last_exposure_at, report.as_of),
        }
    )
    if facts.decision is not None:
        st.success(
            f"**{_DECIDED[facts.decision.outcome]}"
            f"{escape_markdown(facts.decision.variant or '')}.** "
            f"{escape_markdown(facts.decision.reason)} "
            f"({escape_markdown(facts.decision.actor)}, "
            f"{formats.moment(facts.decision.decided_at)})",
            icon=":material/gavel:",
        )
    health_banner(report)


def facts_row(facts: Mapping[str, str]) -> None:
    """Show labelled values in a row that wraps."""
    items = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>"
        for label, value in facts.items()
    )
    st.html(f'<dl class="es-facts">{items}</dl>')


def health_banner(report: Report) -> None:
    """Warn above the numbers of what makes them doubtful."""
    for status, show, icon in (
        ("failed", st.error, ":material/report:"),
        ("warning", st.warning, ":material/warning:"),
    ):
        found = [check for check in report.checks if check.result.status == status]
        if not found:
            continue
        lines = "\n".join(
            f"- **{check.title}{f' ({check.subject})' if check.subject else ''}:** "
            f"{escape_markdown(check.result.message)}"
            for check in found
        )
        lead = "Do not use these numbers." if status == "failed" else "Take care."
        show(f"**{lead}**\n\n{lines}", icon=icon)


def summary_box(summary: Summary) -> None:
    """Show what was found and what to do; an unhealthy report has its banner instead."""
    if summary.verdict == "unhealthy":
        return
    shown = {"ahead": st.success, "guardrail": st.warning}
    show = shown.get(summary.verdict, st.info)
    icon = {
        "ahead": ":material/trending_up:",
        "behind": ":material/trending_down:",
        "guardrail": ":material/report:",
        "no_difference": ":material/drag_handle:",
    }.get(summary.verdict, ":material/hourglass_empty:")
    show(
        f"**{escape_markdown(summary.sentence)}** {escape_markdown(summary.advice)}",
        icon=icon,
    )


def refusal(error: ExperimentServiceError) -> None:
    """Show why something that was asked for can't be done."""
    st.error(_capitalised(escape_markdown(error.message)), icon=":material/block:")


def chart(drawn: encodings.Chart | None, *, key: str, instead: str = "") -> None:
    """Show a chart, or say why there is none; its key names it to a screen reader."""
    if drawn is None:
        st.caption(instead)
    else:
        st.altair_chart(drawn, key=key, alt=key)


def when_opened(title: str, draw: Callable[[], None], *, key: str) -> None:
    """Draw what is in an expander once it is open: charts cost a browser much."""
    with st.expander(title, key=key, on_change="rerun") as part:
        if part.open:
            draw()


def escape_markdown(text: str) -> str:
    """Keep signs of Markdown as they are."""
    for sign in "\\*_`$[]~":
        text = text.replace(sign, f"\\{sign}")
    return text


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
