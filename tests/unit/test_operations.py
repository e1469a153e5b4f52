"""What operators run: image, compose file, units; linted, and held against the code."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from experiment_service.cli import build_parser
from experiment_service.config import Settings, variables

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "docs" / "operations" / "systemd").glob("*.service"))
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROGRAM = "/opt/experiment-service/.venv/bin/experiment-service"


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


def check_command(arguments):
    parsed = build_parser().parse_args([str(each) for each in arguments])
    assert parsed.command


def test_hadolint_has_nothing_to_say_about_the_image():
    linted = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), ROOT / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (linted.returncode, linted.stdout) == (0, "")


def test_the_image_holds_all_packages_and_runs_as_nobody_special():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"][
        "build"
    ]["targets"]["wheel"]["packages"]
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {name for line in copied for name in line.split()}
    assert set(packages) < sources
    allowed = set(
        re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    )
    assert sources == allowed
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", DOCKERFILE, re.MULTILINE)
    settings = set(re.findall(r"\b(EXPERIMENT_SERVICE_\w+)=", DOCKERFILE))
    assert settings <= set(variables().values())


def test_compose_runs_our_commands_with_our_settings(services):
    for name, service in services.items():
        for other in service.get("depends_on", {}):
            assert other in services, name
        if name == "postgres":
            continue
        check_command(service["command"])
        assert set(service["environment"]) <= set(variables().values())
        assert service["volumes"] == ["data:/var/lib/experiment-service"]
    ports = {"api": Settings().port, "dashboard": Settings().dashboard_port}
    for name, port in ports.items():
        assert services[name]["ports"] == [f"127.0.0.1:{port}:{port}"]
    exposed = re.search(r"^EXPOSE (.+)$", DOCKERFILE, re.MULTILINE)[1]
    assert exposed == " ".join(map(str, ports.values()))


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_units_run_our_commands(path):
    text = path.read_text()
    command = re.search(r"^ExecStart=(.+)$", text, re.MULTILINE)[1].split()
    assert command[0] == PROGRAM
    check_command(command[1:])
    ours = re.findall(r"experiment-service-\w+\.service", text)
    assert set(ours) <= {unit.name for unit in UNITS}
    settings = set(re.findall(r"\b(EXPERIMENT_SERVICE_\w+)=", text))
    assert settings <= set(variables().values())


@pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux only")
def test_systemd_understands_the_units(tmp_path):
    program = shutil.which("systemd-analyze")
    assert program, "systemd-analyze is missing; `apt-get install systemd` brings it"
    for unit in UNITS:
        # Checked on a machine that has neither the user nor the installation.
        text = unit.read_text().replace(PROGRAM, "/bin/true")
        text = re.sub(r"^(User|Group)=.*$", r"\1=root", text, flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    verified = subprocess.run(
        [program, "verify", *sorted(tmp_path.iterdir())],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ) | {"SYSTEMD_LOG_LEVEL": "warning"},
    )
    about_ours = [
        line for line in verified.stderr.splitlines() if "experiment-service" in line
    ]
    assert about_ours == []
    assert verified.returncode == 0, verified.stderr
