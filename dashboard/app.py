"""The dashboard: `experiment-service dashboard`.

Opens the database of the settings; a page more is one line here and one file in views/.
"""

from pathlib import Path

import streamlit as st

from dashboard import login

_HERE = Path(__file__).parent

st.set_page_config(
    page_title="Experiment Service", page_icon=str(_HERE / "icon.svg"), layout="wide"
)
st.html(_HERE / "style.css")
_gate = login.gate()
_pages = [
    st.Page("views/overview.py", title="Overview", icon=":material/list:"),
    st.Page("views/experiment.py", title="Experiment", icon=":material/science:"),
    st.Page("views/bandit.py", title="Bandit", icon=":material/casino:"),
    st.Page("views/planning.py", title="Planning", icon=":material/event:"),
    st.Page("views/replay.py", title="Replay", icon=":material/replay:"),
    st.Page("views/models.py", title="Models", icon=":material/model_training:"),
    st.Page("views/health.py", title="Health", icon=":material/monitor_heart:"),
]
if _gate.entered and _gate.log_out is not None:
    _pages.append(
        st.Page(
            _gate.log_out, title="Log out", icon=":material/logout:", url_path="logout"
        )
    )
# Known before anyone is let in, so that the address asked for is where one arrives.
_page = st.navigation(_pages, position="top" if _gate.entered else "hidden")
if _gate.entered:
    _page.run()
else:
    _gate.ask()
