"""Planning: how long a test takes on an experiment's own traffic, and what it can see."""

import streamlit as st

from dashboard import formats, parts, planning_charts, reports
from experiment_service.domain.metric import METRICS
from experiment_service.errors import ExperimentServiceError
from experiment_service.reporting.planning import Plan

_REWARD = "the experiment's reward"


def _page() -> None:
    with parts.problems_in_words():
        key = parts.choose_experiment("Planning", reports.experiments)
        st.caption(
            "How long the next test takes on the traffic of this one, and what it can "
            "see by when."
        )
        if key is None:
            st.info(
                "There are no experiments yet, so there is no traffic to plan with. "
                "`experiment-service plan --rate 0.05 --units-per-day 1000 --lift 0.1` "
                "plans without one.",
                icon=":material/event:",
            )
            return
        _plan(key)


def _plan(key: str) -> None:
    metric, lift, power, comparisons, explained = _form()
    try:
        plan = reports.plan(
            key,
            metric=None if metric == _REWARD else metric,
            lift=lift / 100,
            power=power / 100,
            comparisons=comparisons,
            variance_explained=explained / 100,
        )
    except ExperimentServiceError as error:
        parts.refusal(error)
        return
    _show(plan)


def _form() -> tuple[str, float, int, int, int]:
    """Ask for what is to be planned; the address holds it."""
    address, state = st.query_params, st.session_state
    for name, (otherwise, low, high) in _NUMBERS.items():
        if name not in state:
            state[name] = _number(address.get(name), otherwise, low, high)
    metrics = [_REWARD, *METRICS]
    asked = state.setdefault("planned metric", address.get("metric", _REWARD))
    if asked not in metrics:
        state["planned metric"] = _REWARD
    columns = st.columns([3, 2, 2, 2, 3])
    metric = columns[0].selectbox(
        "Metric",
        metrics,
        key="planned metric",
        format_func=lambda name: METRICS[name].title if name in METRICS else name,
    )
    lift = columns[1].number_input("Lift to be seen, %", 0.1, 500.0, key="lift")
    power = columns[2].number_input("Power, %", 50, 99, key="power")
    comparisons = columns[3].number_input(
        "Variants beside control", 1, 20, key="comparisons"
    )
    explained = columns[4].number_input(
        "Variance explained beforehand, %",
        0,
        95,
        key="explained",
        help="By what units did before the test: the squared correlation of CUPED.",
    )
    address["metric"] = metric
    for name in _NUMBERS:
        address[name] = str(state[name])
    return metric, lift, power, comparisons, explained


#: Fields that are numbers: value to begin with, smallest and largest.
_NUMBERS: dict[str, tuple[float, float, float]] = {
    "lift": (10.0, 0.1, 500.0),
    "power": (80, 50, 99),
    "comparisons": (1, 1, 20),
    "explained": (0, 0, 95),
}


def _number(given: str | None, otherwise: float, low: float, high: float) -> float:
    """Read a number of an address that people may have changed."""
    kind = type(otherwise)
    try:
        return min(max(kind(given), low), high) if given is not None else otherwise
    except ValueError:
        return otherwise


def _show(plan: Plan) -> None:
    baseline, kind = plan.baseline, plan.baseline.kind
    parts.facts_row(
        {
            "Control": formats.value(baseline.spread.value, kind),
            "Seen on": f"{formats.count(baseline.units or 0)} units",
            "New units a day": formats.count(baseline.units_per_day),
            "Difference to be seen": formats.difference(plan.difference, kind),
        }
    )
    once, watched = st.columns(2, gap="large")
    for column, title, each in (
        (once, "Read once, at the end", plan.once),
        (watched, "Watched at any time", plan.any_time),
    ):
        column.metric(title, f"{each.days:,.1f} days", border=True)
        column.caption(f"{formats.count(each.units)} units of all variants together")
    st.subheader("What can be seen by when", anchor=False)
    st.caption(
        f"Smallest difference to control that is seen with {plan.design.power:.0%} "
        "power. The dashed line is the one asked for."
    )
    parts.chart(
        planning_charts.reach(plan),
        instead="No difference that this metric can have is large enough.",
        key="What can be seen by when",
    )
    st.html(planning_charts.reach_table(plan))


_page()
