import math

import pytest

from experiment_service.domain.shadow import ShadowRule, in_shadow
from experiment_service.errors import InvalidRequest

UNITS = [f"u{i}" for i in range(4000)]


def test_a_rule_comes_back_from_its_document():
    rule = ShadowRule(answers=10, overlap=0.2, coverage=1, milliseconds=3)
    assert ShadowRule.parse(rule.document()) == rule
    assert ShadowRule.parse({"answers": 1}) == ShadowRule(answers=1)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "answers is missing from the rule"),
        ({"answers": 0}, "answers is 0; it must be a whole number from 1"),
        ({"answers": True}, "answers is True"),
        ({"answers": 2.5}, "answers is 2.5"),
        ({"answers": 1, "overlap": 1.5}, "overlap is 1.5; it must be a share"),
        ({"answers": 1, "errors": math.nan}, "errors is nan"),
        ({"answers": 1, "coverage": "1"}, "coverage is '1'"),
        ({"answers": 1, "milliseconds": 0}, "milliseconds is 0; it must be a number"),
        ({"answers": 1, "latency": 5}, "'latency' is not part of a rule; known: ans"),
    ],
)
def test_a_bad_rule_is_refused_with_what_is_wrong(document, message):
    with pytest.raises(InvalidRequest, match=message):
        ShadowRule.parse(document)


def test_a_share_of_units_is_in_a_shadow_and_a_larger_one_adds_units():
    small = {unit for unit in UNITS if in_shadow("als/4", 0.2, unit)}
    large = {unit for unit in UNITS if in_shadow("als/4", 0.5, unit)}
    assert small < large
    # Five standard errors of a binomial share.
    assert len(small) / 4000 == pytest.approx(0.2, abs=5 * math.sqrt(0.16 / 4000))
    assert all(in_shadow("als/4", 1.0, unit) for unit in UNITS)
    other = {unit for unit in UNITS if in_shadow("als/5", 0.2, unit)}
    expected = 4000 * 0.04
    assert len(small & other) == pytest.approx(expected, abs=5 * math.sqrt(expected))
