"""The code version names the commit that the code runs from."""

import subprocess
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

from experiment_service import version


def test_a_checkout_tells_its_commit():
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        check=True,
        capture_output=True,
        text=True,
    )
    told = version.code_version.__wrapped__().removesuffix(".dirty")
    package = metadata.version("experiment-service")
    assert told == f"{package}+g{done.stdout[:12]}"


def test_without_a_commit_it_is_the_version_of_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(version, "__file__", str(tmp_path / "service" / "version.py"))
    package = metadata.version("experiment-service")
    assert version.code_version.__wrapped__() == package
    recorded = '{"vcs_info": {"commit_id": "0123456789abcdef"}}'
    found = SimpleNamespace(version=package, read_text=lambda _: recorded)
    monkeypatch.setattr(metadata, "distribution", lambda _: found)
    assert version.code_version.__wrapped__() == f"{package}+g0123456789ab"
