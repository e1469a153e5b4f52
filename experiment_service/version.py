"""Which code this is: the version of the package, and the commit where it can be told."""

import json
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

_PACKAGE = "experiment-service"
_DESCRIBE = (
    "git",
    "describe",
    "--always",
    "--dirty=.dirty",
    "--abbrev=12",
    "--exclude=*",
)


@cache
def code_version() -> str:
    """Return such as ``0.1.0+g1a2b3c4d5e6f``; ``.dirty`` is added for changed files.

    The commit is that of the checkout that the code runs from, or the one that pip
    recorded when it installed from a repository; without either, the version alone.
    """
    version = metadata.version(_PACKAGE)
    commit = _of_checkout() or _of_installation()
    return f"{version}+g{commit}" if commit else version


def _of_checkout() -> str:
    root = Path(__file__).parents[1]
    # Else a checkout further up, which this was only unpacked in, would answer.
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            _DESCRIBE,
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _of_installation() -> str:
    # PEP 610: what pip and uv write beside a package installed from a repository.
    recorded = metadata.distribution(_PACKAGE).read_text("direct_url.json")
    facts = json.loads(recorded) if recorded else {}
    return str(facts.get("vcs_info", {}).get("commit_id", ""))[:12]
