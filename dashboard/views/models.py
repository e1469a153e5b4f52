"""Models: what serves where, how each version was judged, and why it may serve."""

import streamlit as st

from dashboard import formats, model_tables, parts, reports
from experiment_service.reporting import ModelReport, VersionReport

_MODEL, _VERSION = "model", "version"


@st.fragment(run_every=reports.REFRESH_SECONDS)
def _live() -> None:
    with parts.problems_in_words():
        models = reports.models()
        if not models:
            st.info(
                "There are no models yet. Train one with `experiment-service train "
                "popularity --interactions FILE`.",
                icon=":material/model_training:",
            )
            return
        silent = [each.name for each in models if each.uses and each.live is None]
        if silent:
            st.error(
                "**A running experiment asks for a model that has no live version: "
                f"{parts.escape_markdown(', '.join(silent))}.** Its variant falls back. "
                "Usual causes: every version failed its gate, or none was trained under "
                "this name.",
                icon=":material/report:",
            )
        st.html(model_tables.models_table(models))
        _model(_chosen(models))


def _chosen(models: tuple[ModelReport, ...]) -> ModelReport:
    """Ask for a model; the address holds it."""
    by_name = {each.name: each for each in models}
    asked = st.query_params.get(_MODEL)
    if asked is not None and asked not in by_name:
        st.toast(f"{parts.escape_markdown(asked)} is not among the models.")
    if st.session_state.get(_MODEL) not in by_name or asked in by_name:
        st.session_state[_MODEL] = asked if asked in by_name else models[0].name
    name = st.selectbox(
        "Model", list(by_name), key=_MODEL, on_change=_follow_model, width=380
    )
    return by_name[name]


def _follow_model() -> None:
    st.query_params[_MODEL] = st.session_state[_MODEL]
    st.query_params.pop(_VERSION, None)


def _model(model: ModelReport) -> None:
    st.html(model_tables.versions_table(model))
    numbers = [each.version for each in model.versions]
    asked = st.query_params.get(_VERSION, "")
    field = f"version of {model.name}"
    if field not in st.session_state:
        given = int(asked) if asked.isdecimal() else None
        st.session_state[field] = given if given in numbers else numbers[0]
    number = st.selectbox(
        "Version",
        numbers,
        key=field,
        on_change=_follow_version,
        args=(field,),
        width=380,
    )
    _version(model.versions[numbers.index(number)])


def _follow_version(field: str) -> None:
    st.query_params[_VERSION] = str(st.session_state[field])


def _version(version: VersionReport) -> None:
    failed = [check.name for check in version.checks if not check.passed]
    if failed:
        st.warning(
            f"**It did not pass its gate, so it never serves:** "
            f"{parts.escape_markdown(version.reason or ', '.join(failed))}",
            icon=":material/block:",
        )
    left, right = st.columns(2, gap="large")
    with left:
        st.html(model_tables.checklist_table(version.checks))
    with right:
        if version.judgements:
            st.html(model_tables.figures_table(version.judgements))
        else:
            st.caption("No evaluation was stored with this version.")
    protocols = [each.protocol for each in version.judgements if each.protocol]
    for protocol in dict.fromkeys(protocols):
        st.caption(parts.escape_markdown(protocol))
    with st.expander("How it was made"):
        parts.facts_row(
            {
                "Program": version.code_version,
                "Data": version.data_digest[:12],
                "Lists": version.sha256[:12] or formats.NOTHING,
            }
        )
        st.json(dict(version.parameters))


st.title("Models", anchor=False)
_live()
