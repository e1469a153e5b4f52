"""A bandit: where its traffic goes, what its policy believes, and what it did."""

import streamlit as st

from dashboard import charts, encodings, formats, parts, reports, tables
from experiment_service.analysis.gain import Gain
from experiment_service.analysis.interval import Interval, Withheld
from experiment_service.reporting import BanditReport, Report


@st.fragment(run_every=reports.REFRESH_SECONDS)
def _live() -> None:
    with parts.problems_in_words():
        key = parts.choose_experiment("Bandit", reports.bandits)
        if key is None:
            st.info(
                "There are no bandits yet. An experiment of kind `bandit` names a "
                "policy that moves its weights.",
                icon=":material/casino:",
            )
            return
        report = reports.report(key)
        bandit = report.bandit
        if bandit is None:
            return
        parts.header(report)
        parts.summary_box(report.summary)
        st.page_link(
            "views/experiment.py",
            label="Differences to control are on the page Experiment",
            icon=":material/science:",
            query_params={"experiment": key},
        )
        _policy(report, bandit)
        _gain(report, bandit)
        _traffic(report)
        _beliefs(report, bandit)
        _history(report, bandit)


def _policy(report: Report, bandit: BanditReport) -> None:
    next_look = formats.NOTHING
    if bandit.next_look_at is not None:
        wait = bandit.next_look_at - report.as_of
        next_look = "due" if wait.total_seconds() <= 0 else f"in {formats.span(wait)}"
    parts.facts_row(
        {
            "Policy": bandit.policy,
            "Epoch": formats.NOTHING
            if report.facts.epoch is None
            else str(report.facts.epoch),
            "Looks every": formats.span(bandit.interval),
            "Next look": next_look,
            "Looks that kept the weights": formats.count(
                sum(not look.moved for look in bandit.looks)
            ),
            "Floor": formats.share(bandit.floor),
            "Fixed control share": formats.share(bandit.control_share)
            if bandit.control_share
            else "none",
            "Returning units": "redrawn each epoch"
            if bandit.mode == "redraw"
            else "keep their variant",
        }
    )


def _gain(report: Report, bandit: BanditReport) -> None:
    st.subheader("What the weights earned", anchor=False)
    gain, kind = bandit.gain, report.reward.kind
    control = parts.escape_markdown(report.facts.control)
    if isinstance(gain, Withheld):
        st.caption(f"No gain over {control} can be given. {gain.reason}")
    else:
        found = gain.difference
        parts.facts_row(
            {
                f"Earned per {'exposure' if kind == 'ratio' else 'visitor'}": formats.value(
                    gain.earned, kind
                ),
                f"With {report.facts.control} alone": formats.value(gain.control, kind),
                "Gain": formats.difference(found.estimate, kind),
                f"{found.level:.0%} interval, at any look": formats.difference_range(
                    found, kind
                ),
                "Visitors behind it": formats.count(gain.units),
            }
        )
        st.caption(
            f"{_gain_in_words(report, gain)} The value of {control} alone is estimated "
            "from its own share of the traffic by the logged propensities "
            f"(effective sample {_size(found)}). {found.validity}"
        )
    advice = bandit.advice
    show = st.success if advice.action == "stop" else st.info
    cost = (
        ""
        if advice.expected_loss is None
        else f" Choosing {advice.leader} now costs "
        f"{formats.loss(advice.expected_loss, kind)} on average if it is not the best."
    )
    show(
        f"**{parts.escape_markdown(advice.sentence)}**"
        f"{parts.escape_markdown(cost)} {advice.rule}",
        icon=":material/flag:",
    )


def _gain_in_words(report: Report, gain: Gain) -> str:
    found = gain.difference
    if not found.excludes_zero:
        return "The interval holds 0: no gain or loss over control is established yet."
    better = (found.estimate > 0) == (report.reward.direction == "higher")
    return (
        "The traffic that moved away from control earned more than control would have."
        if better
        else "The traffic that moved away from control earned less than control would "
        "have."
    )


def _size(interval: Interval) -> str:
    overlap = interval.overlap
    return (
        formats.NOTHING
        if overlap is None
        else formats.count(overlap.effective_sample_size)
    )


def _traffic(report: Report) -> None:
    st.subheader("Where the traffic goes", anchor=False)
    st.caption("Weights by epoch. An epoch's weights never change once it is open.")
    until = report.facts.stopped_at or report.as_of
    parts.chart(
        charts.weights(report.epochs, until, encodings.colours(report.facts)),
        instead="No epoch yet: the experiment has not started.",
        key="Weights by epoch",
    )
    if report.epochs and report.epochs[-1].segments:
        st.html(tables.segments_table(report.epochs[-1]))


def _beliefs(report: Report, bandit: BanditReport) -> None:
    colour_of, kind = encodings.colours(report.facts), report.reward.kind
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.subheader("What the rewards say", anchor=False)
        st.caption(
            f"Posterior of the {report.reward.title.lower()} of each variant, from "
            f"units that count, with {bandit.prior}."
        )
        parts.chart(
            charts.densities(bandit.posteriors, colour_of, kind),
            instead="All rewards are alike so far.",
            key="Posterior densities",
        )
    with right:
        st.subheader("Probability of being best", anchor=False)
        st.caption("Exact, by quadrature over the posteriors.")
        parts.chart(
            charts.probability_best(bandit.posteriors, colour_of),
            key="Probability of being best",
        )
    control = report.facts.control
    st.html(tables.posteriors_table(bandit.posteriors, colour_of, control, kind))


def _history(report: Report, bandit: BanditReport) -> None:
    st.subheader("History", anchor=False)
    epochs, looks = st.tabs(["Epochs", "Looks of the policy"])
    with epochs:
        st.html(tables.epochs_table(report))
    with looks:
        if bandit.looks:
            st.html(tables.looks_table(bandit.looks))
        else:
            st.caption("The policy has not looked yet.")


_live()
