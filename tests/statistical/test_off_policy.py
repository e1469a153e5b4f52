"""Bias and coverage of the off-policy estimators where the truth is known; level 0.95."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from policies.logged import LoggedRounds
from policies.off_policy import (
    clipped_ips,
    direct_method,
    doubly_robust,
    dr_shrinkage,
    ips,
    item_position,
    snips,
    switch_dr,
)
from policies.reward_model import fit_reward_model
from policies.scores import difference, value
from policies.target import Target

pytestmark = pytest.mark.slow

TRIALS = 2000
LEVEL = 0.95
#: Click rates by segment and arm; the segment moves both choice and reward.
RATES = np.array([[0.04, 0.08, 0.12, 0.06], [0.16, 0.08, 0.05, 0.10]])
LOGGING = np.array([[0.55, 0.25, 0.10, 0.10], [0.10, 0.20, 0.60, 0.10]])
TARGET = np.array([[0.05, 0.15, 0.70, 0.10], [0.70, 0.10, 0.10, 0.10]])
#: What the target mostly chooses, this log chose in 2 % of its rounds.
RARE = np.array([[0.90, 0.06, 0.02, 0.02], [0.02, 0.06, 0.90, 0.02]])
SHARES = np.array([0.6, 0.4])
TRUTH = float(SHARES @ (TARGET * RATES).sum(axis=1))
UNIFORM = np.full(4, 0.25)
UNIFORM_TRUTH = float(SHARES @ RATES.mean(axis=1))


def draw(rng, chances):
    """One index a row, with the chances of the row."""
    return (rng.random((len(chances), 1)) > chances.cumsum(axis=1)).sum(axis=1)


def build(segment, arm, propensity, reward, unit=None):
    return LoggedRounds(
        arms=("a", "b", "c", "d"),
        arm=np.minimum(arm, 3),
        propensity=propensity,
        reward=reward.astype(float),
        time=np.arange(len(arm), dtype=float),
        unit=unit,
        segment=segment,
        segments=("new", "back"),
    )


def independent(rng, rounds=4000, logging=LOGGING):
    """Each round a shopper of its own."""
    segment = rng.choice(2, rounds, p=SHARES)
    arm = draw(rng, logging[segment])
    reward = rng.random(rounds) < RATES[segment, arm]
    return build(segment, arm, logging[segment, arm], reward), Target(
        table=TARGET, row=segment
    )


def clustered(rng, units=1500):
    """A shopper keeps one arm over 1 to 9 rounds, and has a taste for clicking."""
    size = 1 + rng.binomial(8, 0.25, units)
    unit = np.repeat(np.arange(units), size)
    segment = rng.choice(2, units, p=SHARES)
    arm = draw(rng, LOGGING[segment])
    taste = rng.choice([-0.04, 0.04], units)
    rate = RATES[segment, arm] + taste
    reward = rng.random(len(unit)) < rate[unit]
    chance = LOGGING[segment, arm]
    log = build(segment[unit], arm[unit], chance[unit], reward, unit)
    return log, Target(table=TARGET, row=segment[unit])


def adaptive(rng, epochs=10, rounds=400):
    """A bandit's log: the weights of an epoch follow the clicks before it, floor 5 %."""
    clicks, tries = np.zeros((2, 4)), np.zeros((2, 4))
    parts = []
    for _ in range(epochs):
        draws = rng.beta(1 + clicks, 1 + tries - clicks, (200, 2, 4)).argmax(axis=2)
        best = np.stack([np.bincount(draws[:, s], minlength=4) / 200 for s in (0, 1)])
        weights = 0.05 + 0.8 * best
        segment = rng.choice(2, rounds, p=SHARES)
        arm = np.minimum(draw(rng, weights[segment]), 3)
        reward = rng.random(rounds) < RATES[segment, arm]
        np.add.at(clicks, (segment, arm), reward)
        np.add.at(tries, (segment, arm), 1)
        parts.append((segment, arm, weights[segment, arm], reward))
    segment, arm, chance, reward = (np.concatenate(p) for p in zip(*parts, strict=True))
    return build(segment, arm, chance, reward), Target(table=TARGET, row=segment)


def thin(rng):
    """A log with little overlap: an effective sample size of about 130 of 4,000."""
    return independent(rng, logging=RARE)


def summarise(name, setting, found, truth, *, unbiased=False, covers=LEVEL):
    """Print a row; check bias and coverage as far as the estimator promises them."""
    shown = [v for v in found if v.estimate is not None]
    estimates = np.array([v.estimate for v in shown])
    errors = np.array([v.standard_error for v in shown])
    held = np.mean([v.low <= truth <= v.high for v in shown])
    trials, spread = len(shown), estimates.std(ddof=1)
    bias = (estimates.mean() - truth) / spread
    print(
        f"| {name} | {setting} | {spread / truth:.1%} | {bias:+.3f} | "
        f"{errors.mean() / spread:.3f} | {held:.4f} |"
    )
    if unbiased:
        assert trials == len(found)
        assert abs(bias) < 4 / math.sqrt(trials), name
    assert held > covers - 4 * math.sqrt(LEVEL * (1 - LEVEL) / trials), name


def evaluate(log, target):
    """All estimators and contrasts of one log."""
    model = fit_reward_model(log)
    blind = without(log, "segment")
    coarse = fit_reward_model(blind)
    plain, uniform = snips(log, target), snips(log, Target.constant(UNIFORM))
    return {
        "ips": value(ips(log, target)),
        "snips": value(plain),
        "doubly_robust": value(doubly_robust(log, target, model=model)),
        "doubly_robust, model without the segment": value(
            doubly_robust(blind, target, model=coarse)
        ),
        "snips, target - uniform": difference(plain, uniform),
        "clipped_ips(clip=10)": value(clipped_ips(log, target, clip=10)),
        "direct_method": value(direct_method(log, target, model=model)),
        "direct_method, model without the segment": value(
            direct_method(blind, target, model=coarse)
        ),
        "switch_dr(tau=10)": value(switch_dr(log, target, model=model, tau=10)),
        "dr_shrinkage(shrinkage=100)": value(
            dr_shrinkage(log, target, model=model, shrinkage=100)
        ),
        "(ips, rounds as units, not used)": regardless(
            ips(without(log, "unit"), target)
        ),
    }


def regardless(scores):
    """The value as if the overlap were fine."""
    return value(replace(scores, overlap=replace(scores.overlap, verdict="fine")))


def without(log, column):
    """The log without its units or its segments."""
    columns = {
        name: getattr(log, name)
        for name in ("arms", "arm", "propensity", "reward", "time", "unit", "segment")
    }
    segments = () if column == "segment" else log.segments
    return LoggedRounds(**(columns | {column: None}), segments=segments)


PROMISED = {
    "ips",
    "snips",
    "doubly_robust",
    "doubly_robust, model without the segment",
    "snips, target - uniform",
}


@pytest.mark.parametrize(
    ("setting", "simulate"),
    [
        ("4,000 rounds", independent),
        ("1,500 shoppers of 3 rounds", clustered),
        ("a bandit's log", adaptive),
        ("thin overlap", thin),
    ],
)
def test_estimators(setting, simulate):
    rng = np.random.default_rng(1)
    found, sizes = {}, []
    for _ in range(TRIALS):
        log, target = simulate(rng)
        for name, result in evaluate(log, target).items():
            found.setdefault(name, []).append(result)
        sizes.append(found["ips"][-1].overlap.effective_sample_size)
    withheld = np.mean([v.estimate is None for v in found["ips"]])
    print(f"\n{setting}: mean ESS {np.mean(sizes):,.0f}, ips withheld {withheld:.4f}")
    # Skew: an interval from few heavy weights misses a little too often, upwards.
    promised = 0.93 if simulate is thin else LEVEL
    for name, results in found.items():
        if name.startswith("(") and simulate is not clustered:
            continue
        truth = TRUTH - UNIFORM_TRUTH if "uniform" in name else TRUTH
        summarise(
            name,
            setting,
            results,
            truth,
            unbiased=name.startswith(("ips", "doubly")) and simulate is not thin,
            covers=promised if name in PROMISED else 0,
        )


#: Carousels of 3 of 6 items: all 120 orders, chosen by Plackett-Luce.
ORDERS = np.array(list(itertools.permutations(range(6), 3)))
EXAMINED = np.array([1.0, 0.6, 0.4])
APPEAL = np.array([0.05, 0.08, 0.12, 0.20, 0.10, 0.06])


def plackett_luce(scores):
    """Chances of the orders, and of each item at each position, shape (3, 6)."""
    chances, left = np.ones(len(ORDERS)), np.full(len(ORDERS), scores.sum())
    for place in range(3):
        chances *= scores[ORDERS[:, place]] / left
        left -= scores[ORDERS[:, place]]
    table = np.array([np.bincount(ORDERS[:, p], chances, 6) for p in range(3)])
    return chances, table


def test_carousels():
    rng = np.random.default_rng(2)
    chances, logged = plackett_luce(np.array([3.0, 2, 1, 1, 1, 2]))
    _, wanted = plackett_luce(np.array([0.5, 1, 2, 4, 2, 0.5]))
    truth = float((wanted * APPEAL * EXAMINED[:, None]).sum())
    found = {"item_position": [], "(item_position, slates as units, not used)": []}
    for _ in range(TRIALS):
        slates = rng.integers(1, 4, 800)
        shopper = np.repeat(np.arange(800), slates)
        taste = rng.choice([0.0, 2.0], 800)[shopper]
        order = ORDERS[rng.choice(len(ORDERS), len(shopper), p=chances)]
        rate = APPEAL[order] * EXAMINED * taste[:, None]
        clicks = rng.random(order.shape) < rate
        rows = order.size
        columns = {
            "arms": tuple("abcdef"),
            "arm": order.ravel(),
            "propensity": logged[np.arange(3), order].ravel(),
            "reward": clicks.ravel().astype(float),
            "time": np.arange(rows, dtype=float),
            "position": np.tile([1, 2, 3], len(shopper)),
        }
        log = LoggedRounds(**columns, unit=np.repeat(shopper, 3))
        single = LoggedRounds(**columns, unit=np.repeat(np.arange(len(shopper)), 3))
        target = Target.from_positions(wanted, log)
        for name, rounds in zip(found, (log, single), strict=True):
            found[name].append(value(item_position(rounds, target)))
    print()
    for name, results in found.items():
        covers = 0 if name.startswith("(") else LEVEL
        setting = "800 shoppers of 2 carousels"
        summarise(name, setting, results, truth, unbiased=True, covers=covers)


def test_snips_error_halves_with_four_times_the_rounds():
    rng = np.random.default_rng(3)
    errors = []
    for rounds in (1000, 4000):
        estimates = [
            snips(*independent(rng, rounds)).estimate - TRUTH for _ in range(TRIALS)
        ]
        errors.append(math.sqrt(np.mean(np.square(estimates))))
    # The standard error of each root mean square is about 1 / sqrt(2 trials) of it.
    tolerance = 4 * 0.5 * math.sqrt(2 / (2 * TRIALS)) + 0.01
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=tolerance)


def test_snips_needs_the_variance_of_a_ratio():
    """Rewards far from 0: the mean weight's own error is most of the matter."""
    rng = np.random.default_rng(4)
    right, wrong = [], []
    for _ in range(TRIALS):
        log, target = independent(rng)
        stays = build(log.segment, log.arm, log.propensity, 1 - log.reward)
        right.append(value(snips(stays, target)))
        w = target.of_logged(stays, 0, stays.rounds) / stays.propensity
        error = np.std(w * stays.reward / w.mean(), ddof=1) / math.sqrt(len(w))
        low, high = (right[-1].estimate + side * 1.959964 * error for side in (-1, 1))
        wrong.append(replace(right[-1], standard_error=error, low=low, high=high))
    print()
    setting = "4,000 rounds, reward 1 - click"
    summarise("snips", setting, right, 1 - TRUTH)
    known = "(snips, mean weight as if known, not used)"
    summarise(known, setting, wrong, 1 - TRUTH, covers=0)
