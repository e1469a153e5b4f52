"""Policies as people write them."""

import pytest

from experiment_service.errors import InvalidRequest
from experiment_service.replay.choice import PolicyChoice, parse_policy


def test_a_name_alone_has_the_defaults():
    assert parse_policy("thompson") == PolicyChoice(name="thompson")


def test_values_are_json_and_lists_may_hold_commas():
    choice = parse_policy("fixed:weights=[0.5, 0.25, 0.25],control_share=0.1")
    assert choice.parameters == {"weights": [0.5, 0.25, 0.25]}
    assert choice.control_share == 0.1


@pytest.mark.parametrize(
    "written",
    ["uniform", "thompson:floor=0.05", "epsilon_greedy:floor=0.01,epsilon=0.2"],
)
def test_a_label_reads_back_as_the_same_choice(written):
    choice = parse_policy(written)
    assert choice.label == written
    assert parse_policy(choice.label) == choice


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("thomson", "thomson"),
        ("", "known policies"),
        ("thompson:floor", "can't be read at 'floor'"),
        ("thompson:=1", "can't be read at '=1'"),
        ("thompson:floor=0.1,floor=0.2", "names 'floor' twice"),
        ("thompson:floor=abc", "floor is 'abc'"),
        ("thompson:floor=1.5", "floor of policy 'thompson' is 1.5"),
        ("thompson:floor=true", "floor of policy 'thompson' is True"),
        ("thompson:floor=NaN", "floor of policy 'thompson' is nan"),
        ("epsilon_greedy:epsilon=2", "epsilon is 2"),
        ("epsilon_greedy:prior=2", "prior"),
    ],
)
def test_what_cannot_be_read_is_named(written, words):
    with pytest.raises(InvalidRequest) as refused:
        parse_policy(written)
    assert words in refused.value.message
