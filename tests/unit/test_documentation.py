"""The README names everything that people can set, call or choose."""

import re
from pathlib import Path

import pytest

from experiment_service.cli import build_parser
from experiment_service.config import variables
from experiment_service.domain.event import EVENT_KINDS
from experiment_service.domain.metric import METRICS
from policies import POLICIES
from recommenders import RECOMMENDERS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
TARGETS = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
COMMANDS = next(iter(build_parser()._subparsers._group_actions)).choices


@pytest.mark.parametrize(
    "name",
    [
        *variables().values(),
        *EVENT_KINDS,
        *METRICS,
        *POLICIES,
        *RECOMMENDERS,
        *COMMANDS,
        *(target for target in TARGETS if target != "help"),
    ],
)
def test_readme_names_it(name):
    assert re.search(rf"[`/ ]{re.escape(name)}`|make {re.escape(name)}\b", README), name
