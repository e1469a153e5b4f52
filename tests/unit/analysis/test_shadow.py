import dataclasses

import pytest

from experiment_service.analysis.estimate import delta
from experiment_service.analysis.interval import Withheld
from experiment_service.analysis.moments import Moments
from experiment_service.analysis.shadow import ShadowSums, compare, judge
from experiment_service.domain.shadow import ShadowRule

SUMS = ShadowSums(
    answers=10,
    units=4,
    failed=1,
    covered=8,
    shown_covered=9,
    overlap=Moments.from_arrays([1.0, 1.5, 2.0, 0.5], [2, 2, 4, 1]),
    milliseconds=(0.1, 0.4, 0.9),
    exposures=8,
    places=80,
    changed_places=20,
    # 3 + 1 + 2 places clicked, twice; of these the shadow keeps 2 + 1 + 1.
    clicked=Moments.from_arrays([2.0, 1, 1, 2, 1, 1], [3, 1, 2, 3, 1, 2]),
    unplaced_clicks=2,
    first_at=None,
    last_at=None,
    error="KeyError: 'x'",
)
NOTHING = dataclasses.replace(
    SUMS,
    **dict.fromkeys(("answers", "units", "failed", "covered", "shown_covered"), 0),
    **dict.fromkeys(("exposures", "places", "changed_places"), 0),
    overlap=Moments.zero(),
    clicked=Moments.zero(),
    milliseconds=(),
)


def test_shares_and_intervals():
    found = compare(SUMS)
    assert (found.errors, found.coverage, found.shown_coverage) == (0.1, 0.8, 0.9)
    interval = delta(SUMS.overlap)
    assert found.overlap.estimate == pytest.approx(5 / 9)
    assert (found.overlap.low, found.overlap.high) == (interval.low, 1.0)
    assert interval.high > 1
    clicks = found.clicks
    assert (clicks.exposures, clicks.clicks, clicks.unplaced) == (8, 12, 2)
    assert clicks.kept.estimate == pytest.approx(4 / 6)
    assert clicks.kept.low < 4 / 6 < clicks.kept.high <= 1
    assert clicks.changed == 0.25
    # 4 of 12 clicks are on the 20 places that it fills otherwise.
    assert clicks.least_gain == pytest.approx(-4 / 8)
    assert clicks.break_even == pytest.approx(4 / 20)
    assert "no chance of a click" in clicks.gain.reason


def test_before_the_first_answer():
    found = compare(NOTHING)
    assert (found.errors, found.coverage, found.clicks) == (None, None, None)
    assert isinstance(found.overlap, Withheld)


def test_equal_lists_have_nothing_to_gain():
    clicks = compare(dataclasses.replace(SUMS, changed_places=0)).clicks
    assert (clicks.changed, clicks.break_even) == (0.0, None)
    assert "nothing to gain" in clicks.gain.reason


def test_a_rule_waits_for_its_answers():
    assert judge(SUMS, ShadowRule(answers=11)) == ()
    assert len(judge(SUMS, ShadowRule(answers=10))) == 3


@pytest.mark.parametrize(
    ("thresholds", "passed"),
    [
        ({"errors": 0.1}, True),
        ({"errors": 0.09}, False),
        ({"errors": 1, "overlap": 0.5}, True),
        ({"errors": 1, "overlap": 0.6}, False),
        ({"errors": 1, "coverage": 0.8}, True),
        ({"errors": 1, "coverage": 0.81}, False),
        ({"errors": 1, "milliseconds": 0.4}, True),
        ({"errors": 1, "milliseconds": 0.39}, False),
    ],
)
def test_a_rule_is_kept_up_to_its_thresholds(thresholds, passed):
    checks = judge(SUMS, ShadowRule(answers=10, **thresholds))
    assert all(check.passed for check in checks) is passed


def test_what_is_not_known_fails():
    failed = dataclasses.replace(NOTHING, answers=5, failed=5)
    checks = judge(failed, ShadowRule(answers=5, errors=1, milliseconds=1))
    assert [str(check) for check in checks if not check.passed] == [
        "overlap is not known; it must be at least 0",
        "95th percentile of milliseconds is not known; it must be at most 1",
    ]
