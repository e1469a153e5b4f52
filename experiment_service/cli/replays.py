"""The command that says what other policies would have earned."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiment_service.cli.common import (
    clock,
    open_reader,
    pairs,
    print_json,
    print_table,
)
from experiment_service.config import Settings
from experiment_service.domain.declaration import parse_duration
from experiment_service.errors import InvalidRequest, known
from experiment_service.replay.choice import PolicyChoice, parse_policy
from experiment_service.replay.comparison import (
    ESTIMATORS,
    ReplayPlan,
    ReplayReport,
    best_first,
    compare,
)
from experiment_service.replay.experiment import ExperimentLog, read_experiment
from experiment_service.replay.export import CONTENTS, export
from experiment_service.replay.files import ColumnMapping, read_rounds
from experiment_service.storage.database import transaction
from policies import POLICIES
from policies.logged import LoggedRounds
from policies.scores import Value

_COLUMNS = ("arm", "propensity", "reward", "time", "unit", "position")
_EXAMPLES = """\
examples:
  experiment-service replay offers --policy thompson:floor=0.05 \\
      --policy epsilon_greedy:epsilon=0.1
  experiment-service replay offers --segment-by device --policy segmented_thompson
  experiment-service replay --file log.csv --column arm=item_id --column reward=click \\
      --policy thompson --interval 1d
"""


def add_replay(commands: Any) -> None:  # noqa: ANN401 - argparse names no type
    """Add the command."""
    replay = commands.add_parser(
        "replay",
        help="say what other policies would have earned on a log",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    replay.set_defaults(command=_replay)
    replay.add_argument("key", nargs="?", help="experiment whose rows are the log")
    replay.add_argument("--file", type=Path, help="CSV or Parquet instead of one")
    replay.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help="what the file calls its arm, propensity, reward, time, unit or position",
    )
    replay.add_argument(
        "--segment-by",
        action="append",
        default=[],
        metavar="NAME",
        help="attribute of the exposure, or column of the file, that makes the segment; "
        "may be given many times",
    )
    replay.add_argument(
        "--policy",
        action="append",
        required=True,
        metavar="NAME[:PARAMETER=VALUE,...]",
        help=f"one of {', '.join(POLICIES)}, with floor=, control_share= and its own "
        "parameters; may be given many times",
    )
    replay.add_argument("--metric", help="the experiment's reward when left out")
    replay.add_argument(
        "--estimator", default="snips", help=f"one of {', '.join(ESTIMATORS)}"
    )
    replay.add_argument(
        "--method",
        default="expected",
        choices=("expected", "rejection"),
        help="how a policy learns from the log",
    )
    often = replay.add_mutually_exclusive_group()
    often.add_argument("--interval", help="time between looks, such as 30m or 1d")
    often.add_argument("--every", type=int, help="rounds between looks instead")
    replay.add_argument(
        "--delay", help="how long after its round a reward is known, such as 1d"
    )
    replay.add_argument("--control", help="arm that a control_share goes to")
    replay.add_argument("--lower-is-better", action="store_true")
    replay.add_argument(
        "--minimum-units",
        type=int,
        help="that every arm needs before weights move; the experiment's, or 0",
    )
    replay.add_argument("--level", type=float, default=0.95)
    replay.add_argument("--seed", type=int, default=0)
    replay.add_argument("--json", action="store_true", help="everything, as JSON")


def add_export(commands: Any) -> None:  # noqa: ANN401 - argparse names no type
    """Add the command that writes what an experiment recorded to a file."""
    export_ = commands.add_parser(
        "export", help="write an experiment's rounds or raw events to CSV or Parquet"
    )
    export_.set_defaults(command=_export)
    export_.add_argument("key")
    export_.add_argument("content", choices=CONTENTS)
    export_.add_argument(
        "--output", type=Path, required=True, help="FILE.csv, FILE.csv.gz, FILE.parquet"
    )
    export_.add_argument("--metric", help="reward of the rounds; the experiment's")
    export_.add_argument(
        "--segment-by",
        action="append",
        default=[],
        metavar="NAME",
        help="attribute that makes the segment of rounds; may be given many times",
    )


def _export(settings: Settings, parsed: argparse.Namespace) -> None:
    if parsed.content != "rounds" and (parsed.metric or parsed.segment_by):
        raise InvalidRequest("--metric and --segment-by are for rounds only")
    with open_reader(settings) as engine, transaction(engine) as connection:
        rows = export(
            connection,
            parsed.key,
            parsed.content,
            parsed.output,
            cutoff=clock(),
            metric=parsed.metric,
            segment_by=parsed.segment_by,
        )
    print(f"{parsed.output}: {rows:,} {parsed.content}")


def _replay(settings: Settings, parsed: argparse.Namespace) -> None:
    if (parsed.key is None) == (parsed.file is None):
        raise InvalidRequest("name an experiment or a --file, one of the two")
    _refuse_options(parsed)
    policies = tuple(parse_policy(text) for text in parsed.policy)
    if parsed.file is None:
        with open_reader(settings) as engine, transaction(engine) as connection:
            log = read_experiment(
                connection,
                parsed.key,
                metric=parsed.metric,
                cutoff=clock(),
                segment_by=parsed.segment_by,
            )
        rounds, plan, source = log.rounds, _plan(parsed, policies, log), log.source
        report = _with_progress(rounds, plan, source)
    else:
        plan = _plan(parsed, policies, None)
        with tempfile.TemporaryDirectory(prefix="replay-") as spool:
            rounds = read_rounds(parsed.file, _mapping(parsed), spool=Path(spool))
            report = _with_progress(rounds, plan, str(parsed.file))
    if parsed.json:
        print_json(report.to_document())
    else:
        _print(report)


def _refuse_options(parsed: argparse.Namespace) -> None:
    """Refuse options that say nothing about this kind of log."""
    of = (
        ("control", "column", "lower_is_better") if parsed.file is None else ("metric",)
    )
    for name in of:
        if getattr(parsed, name):
            other = "a --file" if parsed.file is None else "an experiment"
            raise InvalidRequest(f"--{name.replace('_', '-')} is for {other} only")


def _mapping(parsed: argparse.Namespace) -> ColumnMapping:
    """Return the columns of a file, as far as they are called otherwise."""
    names = pairs("column", parsed.column)
    unknown = sorted(set(names) - set(_COLUMNS))
    if unknown:
        raise InvalidRequest(
            f"--column names {unknown[0][:60]!r}; what can be named is {known(_COLUMNS)}"
        )
    return ColumnMapping(**names, segment=tuple(parsed.segment_by))


def _plan(
    parsed: argparse.Namespace,
    policies: tuple[PolicyChoice, ...],
    log: ExperimentLog | None,
) -> ReplayPlan:
    changes = {
        "estimator": parsed.estimator,
        "method": parsed.method,
        "update_rounds": parsed.every,
        "update_seconds": _seconds("--interval", parsed.interval),
        "delay_seconds": _seconds("--delay", parsed.delay),
        "minimum_units": parsed.minimum_units,
        "level": parsed.level,
        "seed": parsed.seed,
    }
    if log is not None:
        return log.plan(policies, **changes)
    if parsed.every is None and parsed.interval is None:
        changes["update_seconds"] = 3600.0
    return ReplayPlan(
        policies=policies,
        control=parsed.control,
        lower_is_better=parsed.lower_is_better,
        **{name: value for name, value in changes.items() if value is not None},
    )


def _seconds(option: str, given: str | None) -> float | None:
    return None if given is None else parse_duration(option, given).total_seconds()


def _with_progress(rounds: LoggedRounds, plan: ReplayPlan, source: str) -> ReplayReport:
    with tqdm(
        total=len(plan.policies) * rounds.rounds,
        unit=" rounds",
        unit_scale=True,
        desc="replaying",
        disable=not sys.stderr.isatty(),
        leave=False,
    ) as bar:
        return compare(rounds, plan, source=source, progress=bar.update)


def _print(report: ReplayReport) -> None:
    plan, log = report.plan, report.log
    print(
        f"{report.source}: {report.rounds:,} rounds of {report.units:,} "
        f"units, {report.started_at:%Y-%m-%d %H:%M} to "
        f"{report.ended_at:%Y-%m-%d %H:%M} UTC"
    )
    print(
        f"valued by {plan.estimator}, intervals at {plan.level:.0%}, policies learn by "
        f"the {plan.method} update\n"
    )
    rows = [("the log itself", _shown(log), "", "", "", "")]
    ordered = best_first(report.outcomes, lower_is_better=plan.lower_is_better)
    rows += [
        (
            each.label,
            _shown(each.value),
            _signed(each.over_log),
            "" if each.regret is None else _signed(each.regret),
            f"{each.epochs:,}",
            ""
            if each.accepted_rounds is None
            else f"{each.accepted_rounds:,} ({each.accepted_rounds / report.rounds:.1%})",
        )
        for each in ordered
    ]
    rows += [
        (f"always {arm}", _shown(one), "", "", "", "")
        for arm, one in report.fixed.items()
    ]
    header = (
        "POLICY",
        "VALUE PER ROUND",
        "AGAINST THE LOG",
        "REGRET",
        "EPOCHS",
        "ACCEPTED",
    )
    columns = [i for i in range(len(header)) if i < 2 or any(row[i] for row in rows)]
    print_table(
        [header[i] for i in columns], [[row[i] for i in columns] for row in rows]
    )
    if report.best_fixed is not None:
        print(f"\nregret is against always {report.best_fixed}, the best on this log")
    for label, each in [
        *((outcome.label, outcome.value) for outcome in ordered),
        *((f"always {arm}", one) for arm, one in report.fixed.items()),
    ]:
        if each.overlap.verdict != "fine":
            print(f"{each.overlap.verdict}: {label}: {each.overlap.reason}")


def _shown(given: Value) -> str:
    if given.estimate is None:
        return "withheld"
    return f"{given.estimate:.5f} [{given.low:.5f}, {given.high:.5f}]"


def _signed(given: Value) -> str:
    if given.estimate is None:
        return "withheld"
    return f"{given.estimate:+.5f} [{given.low:+.5f}, {given.high:+.5f}]"
