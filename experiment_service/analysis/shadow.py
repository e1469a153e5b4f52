"""How a shadow compares with what was shown, and whether it keeps its rule.

Pure functions of sums over its answers; the unit is the cluster of every interval, as a
unit's requests are all in the shadow or none is.
"""

import dataclasses
import functools
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from experiment_service.analysis.estimate import delta
from experiment_service.analysis.interval import Estimate, Withheld
from experiment_service.analysis.moments import Moments
from experiment_service.domain.shadow import ShadowRule

_LIST_IS_FIXED = (
    "Lists are fixed for a unit, so an item that was not shown at a place had no chance "
    "of a click there, and no weight can stand for it. An A/B test of the two can tell."
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShadowSums:
    """Sums over the answers of one shadow.

    Attributes
    ----------
    answers, units, failed : int
        Answers, the units they were for, and those that failed.
    covered, shown_covered : int
        Answers from the version's own lists for the unit or item, and shown ones.
    overlap : Moments
        Per unit y the sum over its answers of |both| / max(|shown|, |shadow|), x their
        number; of answers that did not fail and have items.
    milliseconds : tuple of float
        50th, 95th and 99th percentile of the time to make an answer that did not fail;
        empty without any.
    exposures, places, changed_places : int
        Exposures among the answers, places shown in them, and those of them where the
        shadow has another item or none.
    clicked : Moments
        Per unit x the places that were clicked, y those of them that the shadow fills
        with the same item; of units with a click.
    unplaced_clicks : int
        Clicks on these exposures with neither a position nor an item that was shown.
    first_at, last_at : datetime or None
        Of the answers.
    error : str or None
        The most frequent one.
    """

    answers: int
    units: int
    failed: int
    covered: int
    shown_covered: int
    overlap: Moments
    milliseconds: tuple[float, ...]
    exposures: int
    places: int
    changed_places: int
    clicked: Moments
    unplaced_clicks: int
    first_at: datetime | None
    last_at: datetime | None
    error: str | None

    def document(self) -> dict[str, Any]:
        """Write the sums as a JSON document."""
        return {
            **dataclasses.asdict(self),
            "first_at": None if self.first_at is None else self.first_at.isoformat(),
            "last_at": None if self.last_at is None else self.last_at.isoformat(),
        }

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> "ShadowSums":
        """Read what `document` wrote."""
        instants = {
            name: None
            if document[name] is None
            else datetime.fromisoformat(document[name])
            for name in ("first_at", "last_at")
        }
        return cls(
            **{
                **document,
                **instants,
                "overlap": Moments(**document["overlap"]),
                "clicked": Moments(**document["clicked"]),
                "milliseconds": tuple(document["milliseconds"]),
            }
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShadowClicks:
    """What logged clicks say about a shadow, where its answers were exposures.

    Under the item-position assumption, that an item at a place gets the clicks it gets
    whatever stands around it, the shadow keeps the clicks at the places that it fills
    with the same item. What its other items would get was never seen.

    Attributes
    ----------
    exposures, clicks : int
        Exposures, and places of them that were clicked.
    kept : Interval or Withheld
        Share of the clicks that the shadow keeps.
    changed : float
        Share of the places that it fills otherwise.
    least_gain : float
        Clicks per exposure that it gains at least: minus those that it does not keep.
    break_even : float or None
        Clicks that its other items need per place to make up for those; None when it
        changes no place.
    gain : Withheld
        Why the gain itself is not given.
    unplaced : int
        Clicks left out, as nobody knows at which place they were.
    """

    exposures: int
    clicks: int
    kept: Estimate
    changed: float
    least_gain: float
    break_even: float | None
    gain: Withheld
    unplaced: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShadowComparison:
    """A shadow beside what was shown.

    Attributes
    ----------
    answers, units : int
    errors : float or None
        Share of answers that failed; None, as the shares below, before the first one.
    error : str or None
        The most frequent one.
    mean_overlap : float or None
        Mean share of items that both have, of the longer list.
    overlap : Interval or Withheld
        The same with its interval.
    coverage, shown_coverage : float or None
        Share of answers from own lists for the unit or item, of the shadow and shown.
    milliseconds : tuple of float
        50th, 95th and 99th percentile of the time to make an answer, with the time the
        thread waits for its turn; empty without any.
    clicks : ShadowClicks or None
        None when none of the answers was an exposure.
    first_at, last_at : datetime or None
    """

    answers: int
    units: int
    errors: float | None
    error: str | None
    mean_overlap: float | None
    overlap: Estimate
    coverage: float | None
    shown_coverage: float | None
    milliseconds: tuple[float, ...]
    clicks: ShadowClicks | None
    first_at: datetime | None
    last_at: datetime | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RuleCheck:
    """One threshold of a rule; the value is None where there is none, which fails."""

    name: str
    value: float | None
    threshold: float
    rule: str
    passed: bool

    def __str__(self) -> str:
        value = "not known" if self.value is None else f"{self.value:.4g}"
        return f"{self.name} is {value}; it must be {self.rule} {self.threshold:.4g}"


def compare(sums: ShadowSums) -> ShadowComparison:
    """Turn sums into shares and intervals."""
    share = functools.partial(_share, of=sums.answers)
    return ShadowComparison(
        answers=sums.answers,
        units=sums.units,
        errors=share(sums.failed),
        error=sums.error,
        mean_overlap=_mean_overlap(sums),
        overlap=_share_interval(sums.overlap),
        coverage=share(sums.covered),
        shown_coverage=share(sums.shown_covered),
        milliseconds=sums.milliseconds,
        clicks=_clicks(sums) if sums.exposures else None,
        first_at=sums.first_at,
        last_at=sums.last_at,
    )


def _clicks(sums: ShadowSums) -> ShadowClicks:
    lost = sums.clicked.sum_x - sums.clicked.sum_y
    changed = sums.changed_places
    return ShadowClicks(
        exposures=sums.exposures,
        clicks=int(sums.clicked.sum_x),
        kept=_share_interval(sums.clicked),
        changed=changed / sums.places if sums.places else 0.0,
        least_gain=-lost / sums.exposures,
        break_even=lost / changed if changed else None,
        gain=Withheld(
            reason=_LIST_IS_FIXED
            if changed
            else "Both have the same item at every place: there is nothing to gain."
        ),
        unplaced=sums.unplaced_clicks,
    )


def _share(count: int, *, of: int) -> float | None:
    return count / of if of else None


def _share_interval(moments: Moments) -> Estimate:
    """Delta-method interval of a share, kept within 0 and 1."""
    interval = delta(moments)
    if isinstance(interval, Withheld):
        return interval
    return dataclasses.replace(
        interval, low=max(interval.low, 0.0), high=min(interval.high, 1.0)
    )


def _mean_overlap(sums: ShadowSums) -> float | None:
    return sums.overlap.ratio if sums.overlap.sum_x else None


def judge(sums: ShadowSums, rule: ShadowRule) -> tuple[RuleCheck, ...]:
    """Hold a shadow against its rule; empty until it has given enough answers."""
    if sums.answers < rule.answers:
        return ()
    checks = [
        _at_least("overlap", _mean_overlap(sums), rule.overlap),
        _at_most("share of errors", _share(sums.failed, of=sums.answers), rule.errors),
        _at_least("coverage", _share(sums.covered, of=sums.answers), rule.coverage),
    ]
    if rule.milliseconds is not None:
        slow = sums.milliseconds[1] if sums.milliseconds else None
        checks.append(
            _at_most("95th percentile of milliseconds", slow, rule.milliseconds)
        )
    return tuple(checks)


def _at_least(name: str, value: float | None, threshold: float) -> RuleCheck:
    passed = value is not None and value >= threshold
    return RuleCheck(
        name=name, value=value, threshold=threshold, rule="at least", passed=passed
    )


def _at_most(name: str, value: float | None, threshold: float) -> RuleCheck:
    passed = value is not None and value <= threshold
    return RuleCheck(
        name=name, value=value, threshold=threshold, rule="at most", passed=passed
    )
