"""The command that prints what an experiment has shown."""

import argparse
from typing import Any

from experiment_service.analysis.interval import Interval, Withheld
from experiment_service.cli.common import clock, open_reader, print_json, print_table
from experiment_service.config import Settings
from experiment_service.reporting import (
    Comparison,
    EffectsDiffer,
    Report,
    SegmentsReport,
    build_report,
    build_segments,
)
from experiment_service.storage.database import transaction


def add_report(commands: Any) -> None:  # noqa: ANN401 - argparse names no type
    """Add the command."""
    report = commands.add_parser("report", help="print the report")
    report.set_defaults(command=_report)
    report.add_argument("key", help="key of the experiment")
    report.add_argument("--json", action="store_true", help="the whole report as JSON")
    report.add_argument(
        "--segments",
        action="store_true",
        help="the reward by attributes that exposures carry",
    )


def _report(settings: Settings, parsed: argparse.Namespace) -> None:
    with open_reader(settings) as engine, transaction(engine) as connection:
        build = build_segments if parsed.segments else build_report
        report = build(connection, parsed.key, as_of=clock())
    if parsed.json:
        print_json(report.to_document())
    elif isinstance(report, Report):
        _print_report(report)
    else:
        _print_segments(parsed.key, report)


def _print_report(report: Report) -> None:
    print(f"{report.facts.key}, as of {report.as_of:%Y-%m-%d %H:%M:%S} UTC")
    print(f"{report.summary.sentence} {report.summary.advice}")
    for check in report.checks:
        if check.result.status in ("warning", "failed"):
            about = f" of {check.subject}" if check.subject else ""
            print(
                f"{check.result.status}: {check.title}{about}: {check.result.message}"
            )
    for metric in report.metrics:
        print(f"\n{metric.title}")
        against = {each.variant: each for each in metric.comparisons}
        rows = [
            (
                result.variant,
                result.units,
                _shown(result.planned, metric.kind),
                _shown(result.any_time, metric.kind),
                _difference(against.get(result.variant), metric.kind),
                _adjusted(against.get(result.variant)),
            )
            for result in metric.variants
        ]
        heads = (
            "VARIANT",
            "UNITS",
            "ONE LOOK",
            "ANY TIME",
            f"AGAINST {report.facts.control}, ANY TIME",
            "CUPED",
        )
        adjusts = any(each.variance_removed is not None for each in metric.comparisons)
        shown = len(heads) if adjusts else len(heads) - 1
        print_table(heads[:shown], [row[:shown] for row in rows])


def _print_segments(key: str, report: SegmentsReport) -> None:
    print(f"{key}, as of {report.as_of:%Y-%m-%d %H:%M:%S} UTC: {report.metric}")
    if not report.attributes:
        print("Its exposures carry no attributes, so there are no segments.")
    for attribute in report.attributes:
        print(f"\n{attribute.attribute}")
        for each in attribute.differ:
            print(f"{each.variant}: {_differs(each)}")
        rows = [
            (
                part.level,
                each.variant,
                sum(result.units for result in part.report.variants),
                _difference(each, part.report.kind),
            )
            for part in attribute.levels
            for each in part.report.comparisons
        ]
        print_table(("LEVEL", "VARIANT", "UNITS", "DIFFERENCE, ANY TIME"), rows)
    if report.left_out:
        print(f"\nnot looked at: {', '.join(report.left_out)}")


def _differs(each: EffectsDiffer) -> str:
    if isinstance(each.test, Withheld):
        return f"not tested: {each.test.reason}"
    assert each.corrected is not None  # noqa: S101 - there is a test, so it is corrected
    found = "effects differ" if each.corrected < 0.05 else "no difference established"
    return (
        f"{found} between levels, p {each.corrected:.3g} corrected for all attributes "
        f"and variants, I2 {each.test.inconsistency:.0%}"
    )


def _difference(comparison: Comparison | None, kind: str) -> str:
    if comparison is None:
        return "control"
    if isinstance(comparison.any_time, Withheld):
        return f"none: {comparison.any_time.reason}"
    each = comparison.any_time
    p_value = comparison.corrected_any_time
    told = "" if p_value is None else f", p {p_value:.3g}"
    if kind == "mean":
        return f"{each.estimate:+.3f} [{each.low:+.3f}, {each.high:+.3f}]{told}"
    scaled = [100 * value for value in (each.estimate, each.low, each.high)]
    return "{:+.2f} [{:+.2f}, {:+.2f}] points".format(*scaled) + told


def _adjusted(comparison: Comparison | None) -> str:
    removed = None if comparison is None else comparison.variance_removed
    if removed is None:
        return ""
    if isinstance(removed, Withheld):
        return f"none: {removed.reason}"
    return f"{removed:.0%} less variance"


def _shown(estimate: Interval | Withheld, kind: str) -> str:
    if isinstance(estimate, Withheld):
        return f"none: {estimate.reason}"
    if kind == "mean":
        return f"{estimate.estimate:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.estimate:.2%} [{estimate.low:.2%}, {estimate.high:.2%}]"
