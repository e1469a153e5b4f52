"""Who may look: nobody asks on loopback, else a password or an OpenID Connect provider.

`app.py` asks `gate` before any page runs. A password is checked against its scrypt
hash; a signed cookie then keeps the browser in for some hours, as each reload is a new
session of Streamlit's. OpenID Connect is Streamlit's own `st.login`.
"""

import hashlib
import hmac
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import streamlit as st

from dashboard import parts
from dashboard.server import has_login
from experiment_service.config import Settings
from experiment_service.errors import ExperimentServiceError
from experiment_service.passwords import verify_password

#: How long a browser stays logged in.
HOURS = 12
#: Failures of one address before it has to wait, and how long, doubled each time.
FREE_FAILURES = 5
FIRST_WAIT_SECONDS = 30.0
LONGEST_WAIT_SECONDS = 900.0
_FAILURE_SECONDS = 1.0
_MOST_ADDRESSES = 10_000

_COOKIE = "experiment_service_dashboard"
_UNTIL = "logged in until"
_GIVE = "cookie to give"
_LEFT = "logged out"


class Attempts:
    """Failed logins by address, and how long each address has to wait.

    Parameters
    ----------
    clock : callable
        Returns seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: dict[str, tuple[int, float]] = {}

    def wait(self, address: str) -> float:
        """Return the seconds until an address may try; 0 if it may now."""
        with self._lock:
            count, last = self._failures.get(address, (0, 0.0))
        if count < FREE_FAILURES:
            return 0.0
        doubled = FIRST_WAIT_SECONDS * 2.0 ** min(count - FREE_FAILURES, 10)
        return max(last + min(doubled, LONGEST_WAIT_SECONDS) - self._clock(), 0.0)

    def failed(self, address: str) -> None:
        """Count a failure."""
        now = self._clock()
        with self._lock:
            count, _ = self._failures.pop(address, (0, 0.0))
            self._failures[address] = (count + 1, now)
            if len(self._failures) > _MOST_ADDRESSES:
                # The one that failed longest ago, as each failure moves to the end.
                del self._failures[next(iter(self._failures))]

    def succeeded(self, address: str) -> None:
        """Forget the failures of an address."""
        with self._lock:
            self._failures.pop(address, None)


@st.cache_resource(show_spinner=False)
def _attempts() -> tuple[Attempts, threading.Lock]:
    """Return what all sessions share; the lock lets one password be checked at a time."""
    return Attempts(time.monotonic), threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Whether this session is let in.

    Attributes
    ----------
    entered : bool
    ask : callable
        Draws what stands in place of a page until then.
    log_out : callable or None
        None when nobody has to log in.
    """

    entered: bool
    ask: Callable[[], None]
    log_out: Callable[[], None] | None


def gate() -> Gate:
    """Look whether this session is let in, by its own state or its browser's cookie."""
    try:
        settings = Settings.from_environment()
    except ExperimentServiceError as error:
        return Gate(entered=False, ask=partial(parts.refusal, error), log_out=None)
    stored = settings.dashboard_password_hash
    if stored is not None:
        return Gate(
            entered=_has_password(stored), ask=partial(_ask, stored), log_out=_leave
        )
    if has_login(settings):
        return _gate_of_user(settings.oidc_allowed or "")
    return Gate(entered=True, ask=_head, log_out=None)


def _has_password(stored: str) -> bool:
    state = st.session_state
    if _UNTIL not in state and not state.get(_LEFT):
        token = _cookie()
        if token is not None and is_valid(token, stored, now=time.time()):
            state[_UNTIL] = float(token.partition(".")[0])
    entered = bool(state.get(_UNTIL, 0.0) > time.time())
    if entered and _GIVE in state:
        _set_cookie(state.pop(_GIVE), HOURS * 3600)
    if not entered and state.get(_LEFT):
        _set_cookie("", 0)
    return entered


def _ask(stored: str) -> None:
    _head()
    with st.form("login", width=420):
        password = st.text_input(
            "Password", type="password", autocomplete="current-password"
        )
        sent = st.form_submit_button("Log in", type="primary", icon=":material/login:")
    if not sent:
        return
    refusal = _try(password, stored)
    if refusal is None:
        until = time.time() + HOURS * 3600
        st.session_state[_UNTIL] = until
        st.session_state[_GIVE] = make_token(stored, until)
        st.session_state.pop(_LEFT, None)
        st.rerun()
    st.error(refusal, icon=":material/lock:")


def _head() -> None:
    st.title("Experiment Service", anchor=False)


def _try(password: str, stored: str) -> str | None:
    """Check a password; return why it is refused, None if it is right."""
    attempts, one_at_a_time = _attempts()
    address = _address()
    with one_at_a_time:
        wait = attempts.wait(address)
        if wait > 0:
            return (
                f"Too many wrong passwords from here. Try again in {wait:.0f} seconds."
            )
        if verify_password(password, stored):
            attempts.succeeded(address)
            return None
        attempts.failed(address)
    time.sleep(_FAILURE_SECONDS)
    return "That is not the password."


def make_token(stored: str, until: float) -> str:
    """Return what a cookie holds: until when it lets in, and a signature.

    The key follows from the password's hash, so that a new password ends all logins.
    """
    text = f"{until:.0f}"
    return f"{text}.{_signature(text, stored)}"


def is_valid(token: str, stored: str, *, now: float) -> bool:
    """Whether a cookie was made by us for this password and lets in still."""
    text, _, signature = token.partition(".")
    expected = _signature(text, stored)
    if not hmac.compare_digest(signature.encode(), expected.encode()):
        return False
    return float(text) > now


def _signature(text: str, stored: str) -> str:
    key = hashlib.sha256(b"experiment-service dashboard:" + stored.encode()).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _address() -> str:
    return st.context.ip_address or "this machine"


def _cookie() -> str | None:
    return st.context.cookies.get(_COOKIE)


def _set_cookie(value: str, seconds: int) -> None:
    """Let the browser keep a cookie; a page of Streamlit's can do so by script only."""
    st.html(
        f"<script>document.cookie = '{_COOKIE}={value}; path=/; max-age={seconds}; "
        "samesite=strict' + (location.protocol === 'https:' ? '; secure' : '');"
        "</script>",
        unsafe_allow_javascript=True,
    )


def _leave() -> None:
    st.session_state.pop(_UNTIL, None)
    st.session_state[_LEFT] = True
    st.rerun()


def _gate_of_user(allowed: str) -> Gate:
    if not st.user.get("is_logged_in", False):
        return Gate(entered=False, ask=_ask_provider, log_out=None)
    address = str(st.user.get("email", ""))
    entered = may_enter(address, allowed, verified=st.user.get("email_verified", True))
    return Gate(entered=entered, ask=partial(_refuse, address), log_out=st.logout)


def _ask_provider() -> None:
    _head()
    st.button("Log in", type="primary", icon=":material/login:", on_click=st.login)


def _refuse(address: str) -> None:
    _head()
    st.error(
        f"{parts.escape_markdown(address or 'Your account')} may not look at this "
        "dashboard. Whoever runs it decides by EXPERIMENT_SERVICE_OIDC_ALLOWED.",
        icon=":material/lock:",
    )
    st.button("Log out", on_click=st.logout)


def may_enter(address: str, allowed: str, *, verified: object = True) -> bool:
    """Whether an address is let in: by itself, by its domain, or as all are."""
    entries = {entry.strip().lower() for entry in allowed.split(",")} - {""}
    if "*" in entries:
        return True
    if verified in (False, "false") or "@" not in address:
        return False
    lowered = address.lower()
    return lowered in entries or f"@{lowered.rpartition('@')[2]}" in entries
