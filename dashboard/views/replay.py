"""Replay: what other policies would have earned on an experiment's own log."""

from dataclasses import dataclass

import streamlit as st

from dashboard import formats, parts, replay_charts, replay_tables, reports
from experiment_service.domain.metric import METRICS
from experiment_service.errors import ExperimentServiceError
from experiment_service.replay.comparison import ESTIMATORS, ReplayReport, best_first
from policies import POLICIES

_DEFAULT = "thompson:floor=0.05\nepsilon_greedy:epsilon=0.1\nuniform"
_REWARD = "the experiment's reward"
#: What is asked for, by its name in the address.
_FIELDS = {
    "policies": _DEFAULT,
    "segment_by": "",
    "metric": _REWARD,
    "estimator": next(iter(ESTIMATORS)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    policies: tuple[str, ...]
    metric: str | None
    estimator: str
    segment_by: tuple[str, ...]


def _page() -> None:
    with parts.problems_in_words():
        key = parts.choose_experiment("Replay", reports.experiments)
        st.caption(
            "Each policy is run again over the experiment's log, as it would have run, "
            "and valued by the logged propensities. Nothing that serves is touched."
        )
        if key is None:
            st.info(
                "There are no experiments yet, so there is no log to replay.",
                icon=":material/replay:",
            )
            return
        asked = _form()
        if asked is None:
            return
        _run(key, asked)


def _form() -> _Asked | None:
    """Ask for policies, metric and estimator; the address holds what was asked."""
    address, state = st.query_params, st.session_state
    metrics = [_REWARD, *(n for n, each in METRICS.items() if each.kind != "ratio")]
    for field, otherwise in _FIELDS.items():
        # Not by value=, which would make another field of it with each new address.
        state.setdefault(field, address.get(field, otherwise))
    if state["metric"] not in metrics:
        state["metric"] = _REWARD
    if state["estimator"] not in ESTIMATORS:
        state["estimator"] = next(iter(ESTIMATORS))
    with st.form("replay"):
        left, right = st.columns([3, 2], gap="large")
        left.text_area(
            "Policies, one a line",
            key="policies",
            height=120,
            help="NAME or NAME:PARAMETER=VALUE,... with floor= and control_share=. "
            f"Names: {', '.join(POLICIES)}.",
        )
        metric = right.selectbox(
            "Reward",
            metrics,
            key="metric",
            format_func=lambda name: METRICS[name].title if name in METRICS else name,
        )
        estimator = right.selectbox("Estimator", list(ESTIMATORS), key="estimator")
        left.text_input(
            "Segments by",
            key="segment_by",
            placeholder="device, market",
            help="Attributes of the exposures, for policies with weights per segment.",
        )
        if st.form_submit_button("Replay", type="primary", icon=":material/replay:"):
            address.update({field: state[field] for field in _FIELDS})
    if "policies" not in address:
        return None
    return _Asked(
        policies=tuple(
            line.strip() for line in address["policies"].splitlines() if line.strip()
        ),
        metric=None if metric == _REWARD else metric,
        estimator=estimator,
        segment_by=tuple(
            name.strip()
            for name in address.get("segment_by", "").split(",")
            if name.strip()
        ),
    )


def _run(key: str, asked: _Asked) -> None:
    bar = st.progress(0.0, text="Reading the log")

    def progress(share: float) -> None:
        bar.progress(min(share, 1.0), text="Replaying")

    try:
        report = reports.replay(
            key,
            policies=asked.policies,
            metric=asked.metric,
            estimator=asked.estimator,
            segment_by=asked.segment_by,
            progress=progress,
        )
    except ExperimentServiceError as error:
        parts.refusal(error)
        return
    finally:
        bar.empty()
    _show(report)


def _show(report: ReplayReport) -> None:
    share = report.proportion
    ordered = best_first(report.outcomes, lower_is_better=report.plan.lower_is_better)
    parts.facts_row(
        {
            "Rounds": formats.count(report.rounds),
            "Units": formats.count(report.units),
            "From": formats.moment(report.started_at),
            "To": formats.moment(report.ended_at),
            "The log itself": _log(report, share=share),
        }
    )
    st.subheader("What each policy would have earned", anchor=False)
    st.caption(
        f"Estimator {report.plan.estimator}, intervals at "
        f"{report.plan.level:.0%}. The dashed line is the log itself."
    )
    parts.chart(
        replay_charts.values(report, ordered, share=share),
        instead="Every value is withheld; the table says why.",
        key="Value of each policy",
    )
    st.html(replay_tables.replay_table(report, ordered, share=share))
    st.subheader("Where the traffic would have gone", anchor=False)
    colour_of = replay_charts.colours(report.arms, report.plan.control)
    for outcome in ordered:
        st.markdown(f"**{parts.escape_markdown(outcome.label)}**")
        parts.chart(
            replay_charts.weights(outcome, report, colour_of),
            key=f"Weights of {outcome.label}",
        )


def _log(report: ReplayReport, *, share: bool) -> str:
    log = report.log
    if log.estimate is None or log.low is None or log.high is None:
        return formats.NOTHING
    limits = formats.reward_range(log.low, log.high, share=share)
    return f"{formats.reward(log.estimate, share=share)} ({limits})"


_page()
