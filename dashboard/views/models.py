"""Models: what serves where, how each version was judged, and why it may serve."""

import streamlit as st

from dashboard import decisions, formats, model_tables, parts, reports
from experiment_service.reporting import ModelReport, ShadowReport, VersionReport

#: Items of a list that the page shows.
_EXAMPLES = 10

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
        st.html(model_tables.models_table(models, reports.now()))
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
    version = model.versions[numbers.index(number)]
    _version(version)
    decisions.form(model.name, version)
    _examples(model, version)


def _follow_version(field: str) -> None:
    st.query_params[_VERSION] = str(st.session_state[field])


def _examples(model: ModelReport, version: VersionReport) -> None:
    """Put the lists of this version beside those of another one."""
    others = [each.version for each in model.versions if each is not version]
    if not others:
        return
    st.subheader("Lists side by side", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        other = st.selectbox(
            "Beside version",
            others,
            index=others.index(model.live) if model.live in others else 0,
            key=f"other than {model.name} {version.version}",
            width=160,
        )
        unit_id = st.text_input("Unit", key="example unit", width=240)
        item_id = st.text_input("Product", key="example product", width=240)
    examples = reports.examples(
        model.name,
        (version.version, other),
        unit_id=unit_id.strip(),
        item_id=item_id.strip(),
        k=_EXAMPLES,
    )
    for each in examples:
        if each.problem is not None:
            st.warning(
                f"The lists of version {each.version} can't be shown: "
                f"{parts.escape_markdown(each.problem)}.",
                icon=":material/folder_off:",
            )
    if any(each.items for each in examples):
        st.html(model_tables.examples_table(model.name, examples))
    elif not any(each.problem for each in examples):
        st.caption("Neither version has a list for that.")


def _shadow(shadow: ShadowReport) -> None:
    share = "" if shadow.share is None else f": {formats.share(shadow.share)} of units"
    st.subheader(f"Shadow{share}", anchor=False)
    left, right = st.columns(2, gap="large")
    with left:
        st.html(model_tables.shadow_table(shadow))
    with right:
        clicks = shadow.comparison.clicks
        if clicks is None:
            st.caption(
                "Clicks are counted on exposures of running experiments; none of the "
                "answers was one."
            )
            return
        st.html(model_tables.clicks_table(clicks))
        st.caption(f"**The gain itself is withheld.** {clicks.gain.reason}")


def _version(version: VersionReport) -> None:
    if version.status == "rejected":
        st.warning(
            f"**It was rejected, so it never serves:** "
            f"{parts.escape_markdown(version.reason or 'no reason was given')}",
            icon=":material/block:",
        )
    if version.shadow is not None:
        _shadow(version.shadow)
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
                "Configuration": version.configuration_digest[:12],
                "Data": version.data_digest[:12],
                "Lists": version.sha256[:12] or formats.NOTHING,
            }
        )
        st.json(dict(version.parameters))


st.title("Models", anchor=False)
_live()
