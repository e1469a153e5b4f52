"""Declarations: what is accepted, what is refused, and with which words."""

from datetime import timedelta

import pytest

from experiment_service.domain.declaration import (
    declaration_document,
    parse_declaration,
    parse_duration,
)
from experiment_service.errors import InvalidRequest


def document(**changes):
    base = {
        "key": "home-carousel",
        "kind": "ab",
        "placement": "home",
        "variants": [
            {"key": "control", "recommender": "popularity", "control": True},
            {"key": "als", "recommender": "als", "settings": {"title": "For you"}},
        ],
    }
    return {**base, **changes}


OWN_METRIC = {
    "name": "own-clicks",
    "title": "Own clicks",
    "kind": "mean",
    "event_kinds": ["click"],
}
BANDIT = {"kind": "bandit", "policy": {"name": "thompson", "interval": "30s"}}


def test_a_full_declaration_reads_back_as_written():
    declaration = parse_declaration(
        document(
            kind="bandit",
            description="Which list earns more clicks?",
            layer="home",
            segments=[0, 5000],
            traffic_share=0.5,
            targeting=[{"attribute": "market", "operator": "in", "values": ["de"]}],
            overrides={"tester": "als"},
            reward_metric="conversion_rate",
            attribution_window="7d",
            mode="sticky",
            policy={
                "name": "thompson",
                "parameters": {"prior_successes": 2.0},
                "floor": 0.1,
                "control_share": 0.2,
                "interval": "15m",
                "minimum_units": 10,
            },
        )
    )
    assert declaration.attribution_window == timedelta(days=7)
    assert declaration.policy.interval == timedelta(minutes=15)
    assert parse_declaration(declaration_document(declaration)) == declaration


def test_equal_weights_when_none_are_given():
    declaration = parse_declaration(document())
    assert declaration.initial_weights == {"control": 0.5, "als": 0.5}
    assert declaration.control.key == "control"


def variants(*weights, **changes):
    rows = [
        {"key": f"v{i}", "recommender": "als", "control": i == 0, "weight": weight}
        for i, weight in enumerate(weights)
    ]
    rows[0].update(changes)
    return rows


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"key": "Home Carousel"}, "key", "'Home Carousel'"),
        ({"key": ""}, "key", "1 to 63"),
        ({"key": 7}, "key", "must be a text"),
        ({"kind": "abn"}, "kind", "ab, bandit"),
        ({"placement": "a/b"}, "placement", "'a/b'"),
        ({"unknown": 1}, "unknown", "is not a field"),
        ({"variants": []}, "variants", "are 0; give 2"),
        ({"variants": "als"}, "variants", "must be a list"),
        ({"variants": variants(0.5, 0.6)}, "weights", "sum to 1.1; they must sum to 1"),
        ({"variants": variants(1.5, -0.5)}, None, "must lie in 0 to 1"),
        ({"variants": variants(0.5, 0.5, key="v1")}, "variants", "v1 more than once"),
        (
            {"variants": variants(0.5, 0.5, control=False)},
            "variants",
            "have 0 controls",
        ),
        ({"variants": variants(0.5, None)}, "variants.1.weight", "finite number"),
        ({"variants": [{"key": "a"}]}, "variants.0.recommender", "is missing"),
        ({"variants": variants(0.5, 0.5, settings={"a": [1]})}, None, "text, a finite"),
        ({"variants": variants(float("nan"), 0.5)}, "variants.0.weight", "finite"),
        ({"segments": [5, 5]}, "segments", "range within 0 to 10000"),
        ({"segments": [0, 10_001]}, "segments", "range within"),
        ({"segments": [0]}, "segments", "two whole numbers"),
        ({"traffic_share": 1.01}, "traffic_share", "1.01; it must lie in 0 to 1"),
        ({"traffic_share": "all"}, "traffic_share", "finite number"),
        ({"traffic_share": True}, "traffic_share", "finite number"),
        ({"attribution_window": 0}, "attribution_window", "is 0 s; it must lie in 1 s"),
        ({"attribution_window": "91d"}, "attribution_window", "90 days"),
        ({"attribution_window": "soon"}, "attribution_window", "s, m, h or d"),
        ({"reward_metric": "happiness"}, "reward_metric", "click_through_rate"),
        ({"overrides": {"u": "nobody"}}, "overrides", "'nobody'; the variants are"),
        ({"overrides": {"": "als"}}, "overrides unit", "1 to 128"),
        ({"mode": "sticky"}, "mode", "for bandits"),
        ({"kind": "bandit"}, "policy", "a bandit needs one"),
        ({"policy": {"name": "thompson"}}, "policy", "an A/B test has none"),
        (
            {**BANDIT, "policy": {"name": "thompson", "floor": 0.6}},
            "policy.floor",
            "take 1.2, more than 1",
        ),
        (
            {**BANDIT, "policy": {"name": "t", "floor": 0.5, "control_share": 0.6}},
            "policy.floor",
            "more than 1",
        ),
        (
            {**BANDIT, "policy": {"name": "t", "floor": 0.1, "control_share": 0.05}},
            "policy.control_share",
            "below the floor 0.1",
        ),
        (
            {**BANDIT, "policy": {"name": "thompson", "interval": "1s"}},
            "policy.interval",
            "5 s to 30 days",
        ),
        (
            {**BANDIT, "policy": {"name": "thompson", "minimum_units": -1}},
            "policy.minimum_units",
            "0 or more",
        ),
        (
            {"metrics": [{**OWN_METRIC, "name": "conversion_rate"}]},
            "metrics.0.name",
            "is taken",
        ),
        (
            {"metrics": [{**OWN_METRIC, "name": "Clicks!"}]},
            "metrics.0.name",
            "characters of a-z",
        ),
        (
            {"metrics": [{**OWN_METRIC, "kind": "median"}]},
            "metrics.0.kind",
            "proportion, mean, ratio",
        ),
        (
            {"metrics": [{**OWN_METRIC, "event_kinds": ["wave"]}]},
            None,
            "'wave'",
        ),
        (
            {"metrics": [{**OWN_METRIC, "event_kinds": []}]},
            None,
            "event kinds none are not known",
        ),
        (
            {"metrics": [{**OWN_METRIC, "kind": "proportion", "cap": 2}]},
            None,
            "neither of: value nor cap",
        ),
        (
            {"metrics": [{**OWN_METRIC, "kind": "proportion", "of": "value"}]},
            None,
            "neither of: value nor cap",
        ),
        (
            {"metrics": [{**OWN_METRIC, "positions": [3, 1]}]},
            None,
            "positions are 3 to 1",
        ),
        (
            {"metrics": [{**OWN_METRIC, "placements": []}]},
            None,
            "placements are none; name at least one",
        ),
        (
            {"metrics": [{**OWN_METRIC, "placements": "home"}]},
            "metrics.0.placements",
            "is 'home'; it must be own, or a list of placements",
        ),
        (
            {"metrics": [{**OWN_METRIC, "positions": [1]}]},
            "metrics.0.positions",
            "two whole numbers",
        ),
        (
            {"metrics": [{**OWN_METRIC, "cap": 0}]},
            None,
            "cap is 0.0",
        ),
        (
            {"metrics": [{**OWN_METRIC, "colour": "red"}]},
            "metrics.0.colour",
            "is not a field",
        ),
        ({"metrics": [OWN_METRIC, OWN_METRIC]}, "metrics.0.name", "is taken"),
        ({"metrics": [{"name": "x"}]}, "metrics.0.title", "is missing"),
        ({"reward_metric": "own"}, "reward_metric", "known metrics"),
        ({"guardrails": {"speed": 0.1}}, "guardrails", "'speed'"),
        ({"guardrails": {"dismiss_rate": 0}}, "guardrails.dismiss_rate", "0.001 to 1"),
        ({"guardrails": {"dismiss_rate": "x"}}, "guardrails.dismiss_rate", "finite"),
        (
            {"guardrails": {"visitor_interaction_rate": 0.1}},
            "guardrails",
            "any metric but the reward",
        ),
        (
            {**BANDIT, "policy": {"name": "p", "segment_by": {}}},
            "policy.segment_by",
            "at least one attribute",
        ),
        (
            {**BANDIT, "policy": {"name": "p", "segment_by": {"device": []}}},
            "policy.segment_by.device",
            "at least one",
        ),
        (
            {**BANDIT, "policy": {"name": "p", "segment_by": {"device": ["a", "a"]}}},
            "policy.segment_by.device",
            "more than once",
        ),
        (
            {**BANDIT, "policy": {"name": "p", "segment_by": {"device": ["other"]}}},
            "policy.segment_by.device",
            "other than 'other'",
        ),
        (
            {**BANDIT, "policy": {"name": "p", "segment_by": {"n": [1, "1"]}}},
            "policy.segment_by.n",
            "more than once",
        ),
        (
            {**BANDIT, "policy": {"name": "p", "segment_by": {"n": [[1]]}}},
            None,
            "a text, a finite number or a truth value",
        ),
        (
            {
                **BANDIT,
                "policy": {
                    "name": "p",
                    "segment_by": {k: list("abcdef") for k in ("x", "y", "z")},
                },
            },
            "policy.segment_by",
            "343 segments",
        ),
        (
            {
                **BANDIT,
                "mode": "sticky",
                "policy": {"name": "p", "segment_by": {"device": ["phone"]}},
            },
            "mode",
            "use mode redraw",
        ),
        ({**BANDIT, "variants": variants(0.0, 1.0)}, "weights", "above 0"),
        (
            {"targeting": [{"attribute": "a", "operator": "near", "values": [1]}]},
            "targeting.0.operator",
            "at_least",
        ),
        (
            {"targeting": [{"attribute": "a", "operator": "in", "values": []}]},
            None,
            "give 1 to 1000",
        ),
        (
            {"targeting": [{"attribute": "a", "operator": "in", "values": ["x", 1]}]},
            None,
            "mixes types",
        ),
        (
            {
                "targeting": [
                    {"attribute": "a", "operator": "at_least", "values": ["x"]}
                ]
            },
            None,
            "give one number",
        ),
    ],
)
def test_what_breaks_a_rule_is_refused_by_field_value_and_rule(changes, field, words):
    with pytest.raises(InvalidRequest) as refusal:
        parse_declaration(document(**changes))
    assert words in refusal.value.message
    if field is not None:
        assert refusal.value.field == field


@pytest.mark.parametrize("nothing", [None, [], "text", 3])
def test_a_document_must_be_a_mapping(nothing):
    with pytest.raises(InvalidRequest, match="must be a mapping"):
        parse_declaration(nothing)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("30s", 30),
        ("15m", 900),
        ("12h", 43_200),
        ("7d", 604_800),
        (90, 90),
        ("1.5h", 5400),
    ],
)
def test_durations(written, seconds):
    assert parse_duration("window", written) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "written", ["", "7 days", "-3s", None, True, float("inf"), 1e12]
)
def test_bad_durations(written):
    with pytest.raises(InvalidRequest, match="window is"):
        parse_duration("window", written)
