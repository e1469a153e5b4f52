"""Comparisons of policies: each number against its definition on a small log."""

import json

import numpy as np
import pytest

from experiment_service.errors import InvalidRequest
from experiment_service.replay.choice import parse_policy
from experiment_service.replay.comparison import (
    ESTIMATORS,
    ReplayPlan,
    best_first,
    compare,
)
from policies import off_policy
from policies.logged import LoggedRounds
from policies.replay import ReplayRun, replay
from policies.target import Target

ARMS = ("als", "knn", "popular")
RATES = np.array([0.05, 0.10, 0.07])
P = np.array([0.5, 0.3, 0.2])


def a_log(rows=20_000, seed=1, **changes):
    rng = np.random.default_rng(seed)
    arm = rng.choice(3, rows, p=P)
    columns = {
        "arms": ARMS,
        "arm": arm,
        "propensity": P[arm],
        "reward": (rng.random(rows) < RATES[arm]).astype(float),
        "time": 1.7e9 + np.arange(rows) * 30.0,
        "unit": rng.integers(rows // 2, size=rows),
    }
    return LoggedRounds(**(columns | changes))


def a_plan(*policies, **changes):
    changes.setdefault("update_rounds", 500)
    return ReplayPlan(policies=tuple(map(parse_policy, policies)), **changes)


def test_every_number_is_that_of_the_estimator_on_the_replayed_weights():
    rounds = a_log()
    report = compare(rounds, a_plan("thompson:floor=0.05", "uniform"), source="log")
    policy = parse_policy("thompson").build()
    run = ReplayRun(label="x", policy=policy, update_every=500, floor=0.05)
    result = replay(rounds, run)
    target = Target.from_epochs(result.starts, result.weights, rounds)
    expected = off_policy.snips(rounds, target)
    outcome = report.outcomes[0]
    assert outcome.value.estimate == expected.estimate
    assert outcome.epochs == 40
    assert report.log.estimate == pytest.approx(rounds.reward.mean(), abs=1e-15)
    best = max(report.fixed, key=lambda arm: report.fixed[arm].estimate)
    assert report.best_fixed == best
    gap = report.fixed[best].estimate - expected.estimate
    assert outcome.regret.estimate == pytest.approx(gap, abs=1e-15)
    over = expected.estimate - rounds.reward.mean()
    assert outcome.over_log.estimate == pytest.approx(over, abs=1e-15)
    assert report.units == len(np.unique(rounds.unit))


def test_values_lie_near_the_truth_that_made_the_log():
    report = compare(a_log(100_000), a_plan("uniform"), source="log")
    uniform = report.outcomes[0].value
    assert abs(uniform.estimate - RATES.mean()) < 4 * uniform.standard_error
    for arm, rate in zip(ARMS, RATES, strict=True):
        value = report.fixed[arm]
        assert abs(value.estimate - rate) < 4 * value.standard_error


def test_the_best_has_the_lowest_value_when_lower_is_better():
    plan = a_plan("thompson", "uniform", lower_is_better=True)
    report = compare(a_log(), plan, source="log")
    assert report.best_fixed == "als"
    assert all(each.regret.estimate > 0 for each in report.outcomes)
    ordered = best_first(report.outcomes, lower_is_better=True)
    assert [each.label for each in ordered] == ["thompson", "uniform"]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_compares(estimator):
    row = np.arange(6000)
    rounds = a_log(6000, position=row % 3 + 1, unit=row // 3)
    report = compare(rounds, a_plan("thompson", estimator=estimator), source="log")
    value = report.outcomes[0].value
    assert value.low < value.estimate < value.high


def test_a_thin_overlap_is_withheld_everywhere():
    report = compare(a_log(400), a_plan("uniform"), source="log")
    assert report.best_fixed == "als"
    assert report.fixed["popular"].estimate is None
    assert report.fixed["popular"].overlap.verdict == "withheld"
    document = json.loads(json.dumps(report.to_document(), allow_nan=False))
    assert document["fixed"]["popular"]["estimate"] is None


def test_weights_over_time_are_shares_at_their_instants():
    rounds = a_log()
    report = compare(rounds, a_plan("thompson", update_rounds=20), source="log")
    weights = report.outcomes[0].weights
    assert len(weights) == 250
    assert [each.at for each in weights] == sorted(each.at for each in weights)
    for each in weights:
        assert sum(each.weights.values()) == pytest.approx(1, abs=1e-9)


def test_a_segmented_policy_is_shown_as_its_average_over_segments():
    rounds = a_log(segment=np.arange(20_000) % 2, segments=("desk", "phone"))
    report = compare(rounds, a_plan("segmented_thompson"), source="log")
    assert len(report.outcomes[0].weights[-1].weights) == 3


def test_rejection_says_how_many_rounds_it_kept():
    plan = a_plan("thompson", method="rejection")
    report = compare(a_log(), plan, source="log")
    assert 0 < report.outcomes[0].accepted_rounds < 20_000


def test_progress_adds_up_to_all_rounds_of_all_policies():
    seen = []
    compare(a_log(), a_plan("thompson", "uniform"), source="log", progress=seen.append)
    assert sum(seen) == 40_000


def test_the_document_is_json_and_repeats_the_plan():
    report = compare(a_log(), a_plan("thompson:floor=0.05"), source="a log")
    document = json.loads(json.dumps(report.to_document(), allow_nan=False))
    assert document["source"] == "a log"
    assert document["plan"]["policies"][0]["label"] == "thompson:floor=0.05"
    assert document["outcomes"][0]["value"]["overlap"]["verdict"] == "fine"
    assert document["started_at"].endswith("+00:00")


@pytest.mark.parametrize(
    ("policies", "changes", "words"),
    [
        ([], {}, "policies is empty"),
        (["uniform", "uniform"], {}, "uniform"),
        (["uniform"], {"estimator": "magic"}, "estimator is 'magic'"),
        (["uniform"], {"update_seconds": 5.0}, "either by time or by rounds"),
        (["uniform"], {"update_rounds": 0}, "update_rounds is 0"),
        (["uniform"], {"delay_seconds": -1.0}, "delay_seconds is -1.0"),
        (["uniform"], {"delay_seconds": float("nan")}, "delay_seconds is nan"),
        (["uniform"], {"level": 0.2}, "level is 0.2"),
        (["uniform"], {"minimum_units": -1}, "minimum_units is -1"),
        (["uniform:control_share=0.1"], {}, "say which arm is the control"),
        (["uniform"], {"control": "x"}, "the arms of the log are als, knn, popular"),
        (["uniform:floor=0.5"], {}, "floor"),
        (["fixed:weights=[0.5,0.5]"], {}, "fixed"),
        (["segmented_thompson"], {}, "the log has no segments"),
        (["uniform"], {"estimator": "item_position"}, "position"),
    ],
)
def test_what_does_not_fit_is_refused(policies, changes, words):
    with pytest.raises(InvalidRequest) as refused:
        compare(a_log(2000), a_plan(*policies, **changes), source="log")
    assert words in refused.value.message


def test_a_reward_that_a_policy_cannot_learn_from_names_its_row():
    reward = np.zeros(2000)
    reward[7] = 2.5
    with pytest.raises(InvalidRequest, match=r"row 7.*2\.5"):
        compare(a_log(2000, reward=reward), a_plan("thompson"), source="log")
