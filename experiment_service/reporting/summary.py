"""The report in words, what it found and what to do, by rules written down here.

1. Not started: a draft.
2. A failed health check: the numbers are not to be used, so nothing else is said.
3. Too early: no comparison to control in the reward metric has an any-time interval yet.
4. Ahead, behind: the any-time interval of a difference excludes 0 at a level corrected
   for the number of comparisons (Bonferroni), so that the sentence holds for all
   variants and all looks together. Of several that are ahead, the one with the largest
   difference is named; behind is said only if none is ahead.
5. Guardrail: the variant that is ahead is shown to be worse in a guardrail metric.
6. Else: no difference is established.

Advice follows from the verdict: start, find the cause, keep running, ship, keep control.
Shipping comes with the chance that the variant is better and the expected loss if it is
not (`analysis.beliefs`); waiting for a difference that is not there comes with the most
that stopping now may give up, the far end of the any-time interval.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from experiment_service.analysis.interval import Estimate, Interval, Withheld
from experiment_service.analysis.sequential import MINIMUM_UNITS
from experiment_service.domain.experiment import ExperimentKind, ExperimentState
from experiment_service.domain.metric import MetricKind
from experiment_service.reporting.metrics import MetricData, differences
from experiment_service.reporting.values import Check, Facts, MetricReport, Summary


def summarise(
    facts: Facts,
    checks: Sequence[Check],
    metrics: Sequence[MetricReport],
    rewards: MetricData,
    *,
    level: float,
) -> Summary:
    """Say what the report amounts to, by the rules of this module."""
    reward = metrics[0]
    if facts.state is ExperimentState.DRAFT:
        return Summary(
            verdict="draft",
            sentence="Not started: a draft has no units.",
            advice="Start it once its variants serve.",
        )
    failed = [check for check in checks if check.result.status == "failed"]
    if failed:
        return Summary(
            verdict="unhealthy",
            sentence=f"Do not use these numbers: {_listed(failed)} failed.",
            advice="Find the cause first: more traffic does not repair it.",
        )
    count = len(reward.comparisons)
    corrected_level = 1 - (1 - level) / count
    estimates = {
        each.variant: differences(rewards, each.variant, facts.control)[1](
            corrected_level
        )
        for each in reward.comparisons
    }
    intervals = {
        variant: each
        for variant, each in estimates.items()
        if isinstance(each, Interval)
    }
    if not intervals:
        return _too_early(reward, estimates)
    assurance = f"{level:.0%} confidence at any look"
    if count > 1:
        assurance += f", corrected for {count} comparisons"
    breached = {
        each.variant: metric.title.lower()
        for metric in metrics
        for each in metric.comparisons
        if each.guardrail == "breached"
    }
    summary = _compare(facts.control, reward, intervals, assurance, breached)
    if facts.kind is ExperimentKind.BANDIT and summary.verdict == "ahead":
        # Ahead of the control is not yet ahead of all: the policy has its own rule.
        advice = f"{summary.advice} Or let the policy go on until it may stop."
        return replace(summary, advice=advice)
    return summary


def _too_early(reward: MetricReport, estimates: Mapping[str, Estimate]) -> Summary:
    fewest = min(reward.variants, key=lambda result: result.units)
    if fewest.units < MINIMUM_UNITS:
        why = (
            f"{fewest.variant} has {fewest.units} of the {MINIMUM_UNITS} units that each "
            "variant needs."
        )
    else:
        reasons = [
            each.reason for each in estimates.values() if isinstance(each, Withheld)
        ]
        why = _lower_first(reasons[0])
    return Summary(
        verdict="too_early",
        sentence=f"Too early to tell: {why}",
        advice="Keep running.",
    )


def _compare(
    control: str,
    reward: MetricReport,
    intervals: Mapping[str, Interval],
    assurance: str,
    breached: Mapping[str, str],
) -> Summary:
    sign = 1 if reward.direction == "higher" else -1
    name = reward.title.lower()
    gains = {key: sign * each.estimate for key, each in intervals.items()}
    established = [key for key, each in intervals.items() if each.excludes_zero]
    if not established:
        return Summary(
            verdict="no_difference",
            sentence=f"No difference from {control} in {name} is established: "
            f"{_ranges(intervals, reward.kind)} ({assurance}).",
            advice=_waiting(control, reward, intervals),
        )
    best = max(established, key=lambda key: gains[key])
    ahead = gains[best] > 0
    named = best if ahead else min(established, key=lambda key: gains[key])
    size = _size(intervals[named], reward.kind)
    sentence = (
        f"{named} is {'ahead of' if ahead else 'behind'} {control} in {name} by "
        f"{size} ({assurance})."
    )
    if ahead and best in breached:
        return Summary(
            verdict="guardrail",
            sentence=f"{sentence} But it is worse in {breached[best]}, a guardrail.",
            advice=f"Do not ship {best} unless that harm is worth it.",
        )
    if ahead:
        return Summary(
            verdict="ahead", sentence=sentence, advice=_shipping(best, reward)
        )
    return Summary(
        verdict="behind",
        sentence=sentence,
        advice=f"Keep {control}, and send no more traffic to {named}.",
    )


def _shipping(variant: str, reward: MetricReport) -> str:
    belief = next(each.belief for each in reward.comparisons if each.variant == variant)
    if belief is None:
        return f"Ship {variant}."
    scale, unit = _unit(reward.kind)
    chance = min(belief.probability_better, 0.9999)
    more = "over " if belief.probability_better > chance else ""
    loss = scale * belief.expected_loss
    cost = f"{loss:.2g}{unit}" if loss >= 0.001 else f"less than 0.001{unit}"
    return (
        f"Ship {variant}: the chance that it is better is {more}{chance:.2%}, and choosing "
        f"it when it is not costs {cost} on average."
    )


def _waiting(
    control: str, reward: MetricReport, intervals: Mapping[str, Interval]
) -> str:
    """Say what stopping now and keeping the control may give up."""
    sign = 1 if reward.direction == "higher" else -1
    scale, unit = _unit(reward.kind)
    most = max(
        scale * max(sign * each.low, sign * each.high) for each in intervals.values()
    )
    return (
        f"Keep running, or stop if no more than {most:.2g}{unit} matters: that is the most "
        f"that keeping {control} may give up."
    )


def _size(interval: Interval, kind: MetricKind) -> str:
    """Write a difference without its sign, as `ahead` and `behind` say it."""
    low, high = sorted((abs(interval.low), abs(interval.high)))
    scale, unit = _unit(kind)
    digits = _digits(scale * (high - low), scale * low)
    return (
        f"{scale * abs(interval.estimate):.{digits}f}{unit}, between "
        f"{scale * low:.{digits}f} and {scale * high:.{digits}f}"
    )


def _ranges(intervals: Mapping[str, Interval], kind: MetricKind) -> str:
    scale, unit = _unit(kind)
    parts = []
    for variant, each in intervals.items():
        low, high = scale * each.low, scale * each.high
        digits = _digits(high - low, min(-low, high))
        parts.append(
            f"{variant} between {low:+.{digits}f} and {high:+.{digits}f}{unit}"
        )
    return ", ".join(parts)


def _unit(kind: MetricKind) -> tuple[float, str]:
    return (1.0, "") if kind == "mean" else (100.0, " points")


def _digits(width: float, nearest: float) -> int:
    """Return the decimals that show two digits of a width, and no limit as 0."""
    shown = [1 - math.floor(math.log10(width))] if width > 0 else []
    if nearest > 0:
        shown.append(-math.floor(math.log10(nearest)))
    return min(max([1, *shown]), 6)


def _listed(failed: Sequence[Check]) -> str:
    return ", ".join(
        check.title.lower() + (f" ({check.subject})" if check.subject else "")
        for check in failed
    )


def _lower_first(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
