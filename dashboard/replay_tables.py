"""The table of a replay: values with intervals, and how far the log can speak."""

from collections.abc import Callable, Sequence
from html import escape

from dashboard import formats, tables
from experiment_service.replay.comparison import PolicyOutcome, ReplayReport
from policies.scores import Value


def replay_table(
    report: ReplayReport, ordered: Sequence[PolicyOutcome], *, share: bool
) -> str:
    """List what each policy and each fixed arm would have earned."""

    def shown(value: Value, write: Callable[..., str]) -> str:
        if value.estimate is None or value.low is None or value.high is None:
            return tables.chip("Withheld", "warning")
        low, high = write(value.low, share=share), write(value.high, share=share)
        limits = tables.small(
            f"{low.removesuffix(' pp')} to {high}".replace(" ", formats.NO_BREAK)
        )
        return escape(write(value.estimate, share=share)) + limits

    rows = [
        [
            escape(each.label),
            shown(each.value, formats.reward),
            shown(each.over_log, formats.reward_difference),
            shown(each.regret, formats.reward_difference) if each.regret else "",
            formats.count(each.epochs),
            escape(_overlap(each.value)),
        ]
        for each in ordered
    ]
    rows += [
        [
            escape(f"always {arm}"),
            shown(value, formats.reward),
            "",
            "",
            "",
            escape(_overlap(value)),
        ]
        for arm, value in report.fixed.items()
    ]
    best = report.best_fixed
    regret = f"Regret against always {best}#" if best else "Regret#"
    return tables.table(
        ["Policy", "Value#", "Against the log#", regret, "Epochs#", "Overlap"],
        rows,
        caption="What each policy would have earned",
    )


def _overlap(value: Value) -> str:
    overlap = value.overlap
    if overlap.verdict == "fine":
        return (
            f"worth {formats.count(overlap.effective_sample_size)} of "
            f"{formats.count(value.units)} units"
        )
    return f"{overlap.verdict}: {overlap.reason}"
