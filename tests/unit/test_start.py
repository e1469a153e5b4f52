"""A quick start: what is not needed is not loaded, and the lists of names stay true."""

import subprocess
import sys

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from experiment_service.cli import COMMANDS, build_parser
from experiment_service.storage.database import _MIGRATIONS, head_revision

HEAVY = {
    "alembic",
    "altair",
    "apprise",
    "implicit",
    "mlflow",
    "pandas",
    "pyarrow",
    "scipy",
    "statsmodels",
}


def loaded_by(statement):
    script = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module", ["experiment_service.api.app", "experiment_service.api.writing"]
)
def test_serving_loads_no_statistics(module):
    assert not loaded_by(f"import {module}") & HEAVY


def test_a_worker_loads_no_mlflow():
    assert "mlflow" not in loaded_by("import experiment_service.worker")


def test_help_loads_nothing():
    loaded = loaded_by("from experiment_service.cli import build_parser as b; b('')")
    assert not loaded & {*HEAVY, "fastapi", "sqlalchemy", "numpy"}


def test_output_that_nobody_reads_is_no_trace():
    command = [sys.executable, "-m", "experiment_service", "pipeline-schema"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_commands_are_listed_as_they_are():
    listed = {name: text for group in COMMANDS.values() for name, text in group.items()}
    (action,) = build_parser()._subparsers._group_actions
    assert {each.dest: each.help for each in action._choices_actions} == listed


def test_needed_revision_is_the_last_migration():
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    assert head_revision() == ScriptDirectory.from_config(config).get_current_head()
