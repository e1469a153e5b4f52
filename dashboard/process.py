"""What the dashboard's process runs: Streamlit, once all that pages need is loaded.

Pages load nothing by themselves, so the first one is as fast as any other.
"""

import pkgutil
import sys
from importlib import import_module
from pathlib import Path

from altair.utils import schemapi
from streamlit.web import cli

if __name__ == "__main__":
    for _module in pkgutil.iter_modules([str(Path(__file__).parent)], "dashboard."):
        # The app and its views are scripts: Streamlit runs them for each visitor.
        if _module.name != "dashboard.app" and not _module.ispkg:
            import_module(_module.name)
    # Each part of a chart would be checked when it is made, and the whole once more.
    schemapi.DEBUG_MODE = False
    sys.exit(cli.main(prog_name="streamlit"))
