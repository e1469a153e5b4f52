"""Gates: figures that a version must reach, by themselves or beside what serves.

A rule is a frozen dataclass, its verdict a `Check` like those of the checklist.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from recommenders.checklist import Check
from recommenders.evaluation import Evaluation, Interval, Repeats
from recommenders.search import MEASURES

#: Means over units, for which two versions compare unit by unit; higher is better.
COMPARED = (*MEASURES, "novelty", "diversity")

#: What a version can be held to by itself.
GATED = (*COMPARED, "coverage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A rule for one figure of lists of 10.

    Attributes
    ----------
    measure : str
        One of `GATED`.
    repeats : {"allowed", "new only"}
        The protocol that the figure is of.
    at_least : float, optional
        What it must reach.
    worse_than_live_by_at_most : float, optional
        How much worse than the version that serves it may be, in units of the measure:
        the lower bound of the 95 % interval of the difference, over the same units, must
        not lie below minus this. 0 asks for proof that it is no worse. It holds by
        itself while nothing serves.

    Raises
    ------
    ValueError
        When a value breaks its rule, or neither bound is given.
    """

    measure: str = "ndcg"
    repeats: Repeats = "new only"
    at_least: float | None = None
    worse_than_live_by_at_most: float | None = None

    def __post_init__(self) -> None:
        if self.repeats not in get_args(Repeats):
            raise ValueError(
                f"repeats is {self.repeats!r}; it must be one of "
                f"{', '.join(get_args(Repeats))}"
            )
        bounds = {
            "at_least": self.at_least,
            "worse_than_live_by_at_most": self.worse_than_live_by_at_most,
        }
        if all(bound is None for bound in bounds.values()):
            raise ValueError(f"a gate needs one of {', '.join(bounds)}")
        for name, bound in bounds.items():
            if bound is not None and not (math.isfinite(bound) and bound >= 0):
                raise ValueError(f"{name} is {bound}; it must be finite and 0 or more")
        compared = self.worse_than_live_by_at_most is not None
        known = COMPARED if compared else GATED
        if self.measure not in known:
            raise ValueError(
                f"measure is {self.measure!r}; it must be one of {', '.join(known)}"
            )

    def __str__(self) -> str:
        rules = []
        if self.at_least is not None:
            rules.append(f"at least {self.at_least:g}")
        if self.worse_than_live_by_at_most is not None:
            rules.append(
                f"worse than live by at most {self.worse_than_live_by_at_most:g}"
            )
        return f"{self.measure}, repeats: {self.repeats}, {' and '.join(rules)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A version beside the one that serves, on the same test.

    Attributes
    ----------
    live : str
        Name and version, such as ``als/3``.
    differences : mapping of tuple of str to Interval
        New less live, by repeats and measure.
    problem : str
        Why there are no differences, if there are none.
    """

    live: str
    differences: Mapping[tuple[str, str], Interval]
    problem: str = ""


def check_gates(
    gates: Sequence[Gate],
    evaluations: Sequence[Evaluation],
    comparison: Comparison | None,
) -> list[Check]:
    """Return a verdict for each bound of each gate.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        One for each protocol that a gate names.
    comparison : Comparison, optional
        None while nothing serves. A difference that it lacks never passes.
    """
    by_repeats = {each.repeats: each for each in evaluations}
    checks = []
    for gate in gates:
        title = f"gate: {gate.measure}, repeats: {gate.repeats}"
        if gate.at_least is not None:
            checks.append(
                Check(
                    name=title,
                    value=float(getattr(by_repeats[gate.repeats], gate.measure)),
                    threshold=gate.at_least,
                )
            )
        if gate.worse_than_live_by_at_most is not None and comparison is not None:
            apart = comparison.differences.get((gate.repeats, gate.measure))
            checks.append(
                Check(
                    name=f"{title}, less that of {comparison.live}, at worst",
                    value=math.nan if apart is None else apart.low,
                    threshold=-gate.worse_than_live_by_at_most,
                    slice=comparison.problem if apart is None else f"95 % of {apart}",
                )
            )
    return checks
