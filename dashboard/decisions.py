"""Decisions on model versions: sent to the API with a key that the user types.

The dashboard itself reads only. The key stays in the session of the browser's tab; the
API decides what it may do and writes the audit.
"""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx
import streamlit as st

from dashboard import parts, reports
from experiment_service.config import Settings
from experiment_service.errors import ExperimentServiceError, InvalidState, Unavailable
from experiment_service.reporting import VersionReport

#: Lists are read to the last byte before they serve: about a second per gigabyte.
_SECONDS = 120.0
_DEFAULT_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something that can be decided on a version.

    Attributes
    ----------
    path : str
        Of the route, after ``/v1/models/{name}/``.
    label, tells : str
        On the button, and what it does.
    """

    path: str
    label: str
    tells: str
    takes_share: bool = False
    takes_version: bool = False


def actions_for(version: VersionReport) -> dict[str, Action]:
    """Return what can be decided on a version, by its name on the page."""
    path = f"versions/{version.version}"
    promote = Action(
        path=f"{path}/promote",
        label=f"Promote version {version.version}",
        tells="It serves within a second; the version that serves now is retired.",
    )
    shadow = Action(
        path=f"{path}/shadow",
        label=f"Shadow version {version.version}",
        tells="It answers requests of a share of units beside the live version, never "
        "shown.",
        takes_share=True,
    )
    reject = Action(
        path=f"{path}/reject",
        label=f"Reject version {version.version}",
        tells="It never serves; nothing else changes.",
    )
    back = Action(
        path="rollback",
        label=f"Serve version {version.version} again",
        tells="It serves within a second; the version that serves now is retired.",
        takes_version=True,
    )
    former = Action(
        path="rollback",
        label="Roll back",
        tells="The version that served before serves again within a second.",
    )
    return {
        "candidate": {"Promote": promote, "Shadow": shadow, "Reject": reject},
        "shadow": {"Promote": promote, "Reject": reject, "Change the share": shadow},
        "live": {"Roll back": former},
        "retired": {"Serve again": back},
        "rejected": {},
    }[version.status]


def form(name: str, version: VersionReport) -> None:
    """Ask for a decision on a version and for an API key, and carry it out."""
    actions = actions_for(version)
    if not actions:
        return
    field = f"decide {name} {version.version} {version.status}"
    with st.expander("Decide", icon=":material/gavel:"):
        chosen = st.segmented_control(
            "What to do",
            list(actions),
            default=next(iter(actions)),
            required=True,
            key=field,
        )
        action = actions[chosen]
        st.caption(action.tells)
        with st.form(f"{field} {chosen}", border=False, width=520):
            body: dict[str, Any] = {"reason": st.text_input("Reason", max_chars=500)}
            if action.takes_share:
                share = version.shadow.share if version.shadow else None
                body["share"] = st.number_input(
                    "Share of units",
                    min_value=0.001,
                    max_value=1.0,
                    value=share or _DEFAULT_SHARE,
                    step=0.05,
                    format="%.3f",
                )
                if version.shadow is not None and version.shadow.rule is not None:
                    body["rule"] = version.shadow.rule.document()
            if action.takes_version:
                body["version"] = version.version
            key = st.text_input(
                "API key with the scope admin",
                type="password",
                key="api key",
                autocomplete="off",
                help="Sent to the API with this decision, and kept nowhere.",
            )
            sent = st.form_submit_button(action.label, type="primary")
        if sent:
            _carry_out(f"/v1/models/{name}/{action.path}", body, key)


def _carry_out(path: str, body: dict[str, Any], key: str) -> None:
    settings = Settings.from_environment()
    try:
        with httpx.Client(
            base_url=settings.api_address,
            headers=_headers(key),
            timeout=_SECONDS,
            trust_env=False,
        ) as client:
            if not settings.is_loopback:
                _check_keys(client)
            decided = _answer(client, "POST", path, json=body)
    except ExperimentServiceError as error:
        parts.refusal(error)
        return
    reports.models_changed()
    st.success(
        f"{parts.escape_markdown(decided['name'])}/{decided['version']} is "
        f"{decided['status']}.",
        icon=":material/check:",
    )


def _headers(key: str) -> dict[str, str]:
    user = str(st.user.get("email") or "")
    headers = {"x-actor": f"dashboard {user}".strip()}
    if key:
        if not (key.isascii() and key.isprintable()):
            raise InvalidState("that is not an API key; it starts with es_")
        headers["x-api-key"] = key
    return headers


def _check_keys(client: httpx.Client) -> None:
    """Refuse where everybody who sees the dashboard could decide."""
    if not _answer(client, "GET", "/v1/keys")["keys"]:
        raise InvalidState(
            "the API asks nobody for a key, and others than this machine reach the "
            "dashboard; make one with `experiment-service keys create NAME --scope "
            "admin`"
        )


def _answer(client: httpx.Client, method: str, path: str, **more: Any) -> Any:  # noqa: ANN401
    """Return the document of an answer.

    Raises
    ------
    Unavailable
        When there is none.
    InvalidState
        With what the API says is wrong.
    """
    try:
        response = client.request(method, path, **more)
        document = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise Unavailable(
            f"the API does not answer at {client.base_url} ({type(error).__name__}); "
            "start it, or set EXPERIMENT_SERVICE_API_URL"
        ) from error
    if response.status_code >= HTTPStatus.BAD_REQUEST:
        raise InvalidState(str(document["error"]["message"]))
    return document
