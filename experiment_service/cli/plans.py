"""The command that says how long a test takes."""

import argparse
from typing import Any

from experiment_service.analysis.planning import Design, Spread
from experiment_service.cli.common import clock, open_reader, print_json, print_table
from experiment_service.config import Settings
from experiment_service.domain.metric import MetricKind
from experiment_service.errors import InvalidRequest
from experiment_service.reporting.planning import (
    Baseline,
    Plan,
    make_plan,
    read_baseline,
)
from experiment_service.storage.database import transaction

_EXAMPLES = """\
examples:
  experiment-service plan home-carousel --lift 0.05
  experiment-service plan home-carousel --metric clicks_per_visitor --difference 0.02
  experiment-service plan --rate 0.04 --units-per-day 3000 --lift 0.1 --comparisons 2
  experiment-service plan --mean 1.5 --deviation 4 --units-per-day 3000 --difference 0.1
"""


def add_plan(commands: Any) -> None:  # noqa: ANN401 - argparse names no type
    """Add the command."""
    plan = commands.add_parser(
        "plan",
        help="say how many units and days a test needs, and what it can see by when",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.set_defaults(command=_plan)
    plan.add_argument(
        "key", nargs="?", help="experiment whose traffic it is planned on"
    )
    plan.add_argument("--metric", help="the experiment's reward when left out")
    plan.add_argument(
        "--rate", type=float, help="of the control, without an experiment"
    )
    plan.add_argument("--mean", type=float, help="likewise, with --deviation")
    plan.add_argument("--deviation", type=float, help="of one unit")
    plan.add_argument(
        "--units-per-day", type=float, help="new units; the experiment's when left out"
    )
    wanted = plan.add_mutually_exclusive_group(required=True)
    wanted.add_argument(
        "--lift", type=float, help="that is to be seen, relative: 0.05 is +5%%"
    )
    wanted.add_argument(
        "--difference", type=float, help="that is to be seen, in the metric's own unit"
    )
    plan.add_argument("--power", type=float, default=0.8)
    plan.add_argument("--level", type=float, default=0.95)
    plan.add_argument("--treatment-share", type=float, default=0.5, metavar="SHARE")
    plan.add_argument(
        "--comparisons", type=int, default=1, help="variants beside the control"
    )
    plan.add_argument(
        "--variance-explained",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="by behaviour before the test (the squared correlation of CUPED)",
    )
    plan.add_argument("--json", action="store_true", help="everything, as JSON")


def _plan(settings: Settings, parsed: argparse.Namespace) -> None:
    try:
        design = Design(
            level=parsed.level,
            power=parsed.power,
            treatment_share=parsed.treatment_share,
            comparisons=parsed.comparisons,
            variance_explained=parsed.variance_explained,
        )
        baseline = _baseline(settings, parsed)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    plan = make_plan(baseline, design, difference=parsed.difference, lift=parsed.lift)
    if parsed.json:
        print_json(plan.to_document())
    else:
        _print(plan)


def _baseline(settings: Settings, parsed: argparse.Namespace) -> Baseline:
    given = [
        name for name in ("key", "rate", "mean") if getattr(parsed, name) is not None
    ]
    if len(given) != 1:
        raise InvalidRequest(
            "name an experiment, a --rate or a --mean, one of the three"
        )
    if (parsed.mean is None) != (parsed.deviation is None):
        raise InvalidRequest("--mean and --deviation go together")
    if parsed.key is not None:
        with open_reader(settings) as engine, transaction(engine) as connection:
            return read_baseline(
                connection,
                parsed.key,
                metric=parsed.metric,
                units_per_day=parsed.units_per_day,
                as_of=clock(),
            )
    if parsed.units_per_day is None or parsed.metric is not None:
        raise InvalidRequest(
            "without an experiment give --units-per-day, and no --metric"
        )
    spread = (
        Spread.of_rate(parsed.rate)
        if parsed.rate is not None
        else Spread(value=parsed.mean, deviation=parsed.deviation)
    )
    return Baseline(
        source="as given",
        kind="proportion" if parsed.rate is not None else "mean",
        spread=spread,
        units=None,
        units_per_day=parsed.units_per_day,
    )


def _print(plan: Plan) -> None:
    baseline, design = plan.baseline, plan.design
    value, kind = baseline.spread.value, baseline.kind
    seen = "" if baseline.units is None else f" on {baseline.units:,} units"
    print(
        f"{baseline.source}: {_shown(value, kind)}{seen}; "
        f"{baseline.units_per_day:,.0f} new units a day"
    )
    lift = f" ({plan.difference / value:+.1%})" if value else ""
    print(
        f"to see {_signed(plan.difference, kind)}{lift} with {design.power:.0%} power "
        f"at level {design.level:.0%}:"
    )
    for name, each in (
        ("read once, at the end", plan.once),
        ("watched at any time", plan.any_time),
    ):
        print(f"  {name:<22} {each.units:>12,} units  {each.days:>8,.1f} days")
    print()
    print_table(
        ["DAYS", "UNITS", "SEEN, READ ONCE", "SEEN, WATCHED"],
        [
            (
                each.days,
                f"{each.units:,}",
                _reach(each.once, value, kind),
                _reach(each.any_time, value, kind),
            )
            for each in plan.reach
        ],
    )


def _reach(difference: float | None, value: float, kind: MetricKind) -> str:
    if difference is None:
        return "nothing"
    lift = f" ({difference / value:+.1%})" if value else ""
    return f"{_signed(difference, kind)}{lift}"


def _shown(value: float, kind: MetricKind) -> str:
    return f"{value:.4f}" if kind == "mean" else f"{value:.2%}"


def _signed(value: float, kind: MetricKind) -> str:
    return f"{value:+.4f}" if kind == "mean" else f"{100 * value:+.3f} pp"
