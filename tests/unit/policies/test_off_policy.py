"""Estimators against plain loops, hand-made numbers and statsmodels; the overlap gate."""

import math
import re

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from policies import logged, off_policy, overlap, reward_model
from policies.logged import LoggedRounds
from policies.off_policy import (
    clipped_ips,
    direct_method,
    doubly_robust,
    dr_shrinkage,
    ips,
    item_position,
    logged_value,
    snips,
    switch_dr,
)
from policies.reward_model import RewardModel, fit_reward_model
from policies.scores import difference, value
from policies.target import Target

INF = math.inf


def make(seed=0, *, rounds=400, units=None, segments=2, positions=None, sparse=False):
    """A log of a policy that varies by round, and a target over all arms."""
    rng = np.random.default_rng(seed)
    arms = 3
    behaviour = rng.dirichlet([2.0] * arms, rounds)
    arm = (rng.random((rounds, 1)) > behaviour.cumsum(axis=1)).sum(axis=1)
    segment = rng.integers(0, segments, rounds)
    unit = None if units is None else rng.integers(0, units, rounds)
    if sparse and unit is not None:
        unit = unit * 10_000_019 - 5
    log = LoggedRounds(
        arms=("a", "b", "c"),
        arm=arm,
        propensity=behaviour[np.arange(rounds), arm],
        reward=rng.normal(1 + arm + segment, 1.0),
        time=np.arange(rounds, dtype=float),
        unit=unit,
        position=None if positions is None else rng.integers(1, positions + 1, rounds),
        segment=segment,
        segments=tuple("xyz"[:segments]),
    )
    return log, Target(table=rng.dirichlet([1.0] * arms, rounds))


def plain_model(log, folds, prior):
    """Predictions of each row for each arm, by loops over rows."""
    fold = [
        int(reward_model._folds(log, folds, i, i + 1)[0]) for i in range(log.rounds)
    ]
    rows = range(log.rounds)
    cell = [
        (log.segment[i], None if log.position is None else log.position[i])
        for i in rows
    ]
    predictions = np.empty((log.rounds, len(log.arms)))
    for i in rows:
        others = [j for j in rows if fold[j] != fold[i]]
        overall = sum(log.reward[j] for j in others) / len(others)
        for k in range(len(log.arms)):
            same = [j for j in others if log.arm[j] == k]
            mean = (sum(log.reward[j] for j in same) + prior * overall) / (
                len(same) + prior
            )
            here = [j for j in same if cell[j] == cell[i]]
            predictions[i, k] = (sum(log.reward[j] for j in here) + prior * mean) / (
                len(here) + prior
            )
    return predictions, fold


@pytest.mark.parametrize("positions", [None, 2])
def test_estimators_with_a_model_equal_a_plain_loop(positions):
    log, target = make(rounds=150, units=40, positions=positions)
    model = fit_reward_model(log, folds=3, prior_rounds=2.0)
    q, _ = plain_model(log, 3, 2.0)
    totals = dict.fromkeys(("dm", "dr", "switch", "shrink"), 0.0)
    for i in range(log.rounds):
        k = log.arm[i]
        w = target.table[i, k] / log.propensity[i]
        direct = sum(target.table[i, a] * q[i, a] for a in range(3))
        error = log.reward[i] - q[i, k]
        totals["dm"] += direct
        totals["dr"] += direct + w * error
        totals["switch"] += direct + (w * error if w <= 1.5 else 0)
        totals["shrink"] += direct + 4 * w / (w**2 + 4) * error
    found = {
        "dm": direct_method(log, target, model=model),
        "dr": doubly_robust(log, target, model=model),
        "switch": switch_dr(log, target, model=model, tau=1.5),
        "shrink": dr_shrinkage(log, target, model=model, shrinkage=4.0),
    }
    for name, scores in found.items():
        assert scores.estimate == pytest.approx(totals[name] / log.rounds, rel=1e-12)


def test_ips_clipped_and_snips_equal_a_plain_loop():
    log, target = make(seed=1)
    w = [target.table[i, log.arm[i]] / log.propensity[i] for i in range(log.rounds)]
    r = log.reward.tolist()
    plain = sum(a * b for a, b in zip(w, r, strict=True)) / len(r)
    clipped = sum(min(a, 1.2) * b for a, b in zip(w, r, strict=True)) / len(r)
    assert ips(log, target).estimate == pytest.approx(plain, rel=1e-12)
    assert clipped_ips(log, target, clip=1.2).estimate == pytest.approx(clipped)
    assert snips(log, target).estimate == pytest.approx(plain * len(r) / sum(w))
    as_array = ips(log, np.array(w) * log.propensity)
    assert as_array.estimate == pytest.approx(plain, rel=1e-12)


def same(a, b):
    assert a.estimate == pytest.approx(b.estimate, rel=1e-12)
    assert a.standard_error == pytest.approx(b.standard_error, rel=1e-9)


@pytest.mark.parametrize("units", [None, 60])
def test_limits_of_the_parameters_are_the_other_estimators(units):
    log, target = make(seed=2, units=units)
    model = fit_reward_model(log)
    direct = direct_method(log, target, model=model)
    robust = doubly_robust(log, target, model=model)
    same(switch_dr(log, target, model=model, tau=0), direct)
    same(switch_dr(log, target, model=model, tau=INF), robust)
    same(switch_dr(log, target, model=model, tau=1e9), robust)
    same(dr_shrinkage(log, target, model=model, shrinkage=0), direct)
    same(dr_shrinkage(log, target, model=model, shrinkage=INF), robust)
    same(dr_shrinkage(log, target, model=model, shrinkage=1e15), robust)
    same(clipped_ips(log, target, clip=1e9), ips(log, target))
    nothing = RewardModel.known(np.zeros((2, 3)))
    same(doubly_robust(log, target, model=nothing), ips(log, target))
    assert direct_method(log, target, model=nothing).estimate == 0


def test_the_logged_policy_has_the_mean_of_the_log():
    log, _ = make(seed=3)
    ordinary = np.std(log.reward, ddof=1) / math.sqrt(log.rounds)
    for scores in (logged_value(log), ips(log, log.propensity)):
        assert scores.estimate == pytest.approx(log.reward.mean())
        assert scores.standard_error == pytest.approx(ordinary)
    assert snips(log, log.propensity).estimate == pytest.approx(log.reward.mean())


@pytest.mark.parametrize("sparse", [False, True])
def test_clustered_errors_equal_those_of_statsmodels(sparse):
    log, target = make(seed=4, units=50, sparse=sparse)
    w = target.of_logged(log, 0, log.rounds) / log.propensity
    _, groups = np.unique(log.unit, return_inverse=True)
    n, g = log.rounds, len(np.unique(groups))
    # Statsmodels multiplies by (n - 1) / (n - 1) g / (g - 1) for one regressor.
    for scores, outcome, weights in (
        (ips(log, target), w * log.reward, np.ones(n)),
        (snips(log, target), log.reward, w),
    ):
        fit = sm.WLS(outcome, np.ones(n), weights=weights).fit(
            cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}
        )
        assert scores.units == g
        assert scores.estimate == pytest.approx(fit.params[0])
        expected = fit.bse[0] * math.sqrt(g / (g - 1))
        assert scores.standard_error == pytest.approx(expected)


@pytest.mark.parametrize("estimator", ["direct", "switch", "shrink", "robust"])
def test_influence_of_a_reward_is_the_derivative(estimator):
    log, target = make(seed=5, rounds=120, units=30)

    def estimate(rewards):
        changed = LoggedRounds(
            arms=log.arms,
            arm=log.arm,
            propensity=log.propensity,
            reward=rewards,
            time=log.time,
            unit=log.unit,
            segment=log.segment,
            segments=log.segments,
        )
        model = fit_reward_model(changed, folds=4, prior_rounds=3.0)
        return {
            "direct": lambda: direct_method(changed, target, model=model),
            "robust": lambda: doubly_robust(changed, target, model=model),
            "switch": lambda: switch_dr(changed, target, model=model, tau=1.0),
            "shrink": lambda: dr_shrinkage(changed, target, model=model, shrinkage=2.0),
        }[estimator]()

    # An estimate is linear in the rewards, so a difference is the derivative.
    base = estimate(log.reward)
    model = fit_reward_model(log, folds=4, prior_rounds=3.0)
    _, fold = plain_model(log, 4, 3.0)
    part = reward_model.ModelPart(log, target, model)
    raw = target.of_logged(log, 0, log.rounds) / log.propensity
    used = {
        "direct": np.zeros_like(raw),
        "robust": raw,
        "switch": np.where(raw <= 1.0, raw, 0),
        "shrink": 2 * raw / (raw * raw + 2),
    }[estimator]
    part.predict(0, log.rounds, used)
    slope, _ = model.sensitivity(part.use.reshape(model.cell.shape) / log.rounds)
    for row in (0, 17, 119):
        bumped = log.reward.copy()
        bumped[row] += 1.0
        derivative = estimate(bumped).estimate - base.estimate
        through_model = slope[fold[row], log.segment[row], log.arm[row]]
        own = used[row] / log.rounds
        assert derivative == pytest.approx(through_model + own, rel=1e-6, abs=1e-12)


def test_direct_error_is_that_of_a_stratified_mean():
    """One arm always, one cell: the direct value is nearly the arm's mean."""
    rng = np.random.default_rng(6)
    n = 4000
    arm = rng.integers(0, 2, n)
    log = LoggedRounds(
        arms=("a", "b"),
        arm=arm,
        propensity=np.full(n, 0.5),
        reward=rng.exponential(1.0 + arm),
        time=np.arange(n, dtype=float),
    )
    model = fit_reward_model(log, prior_rounds=0.001)
    scores = direct_method(log, Target.constant([0, 1]), model=model)
    mine = log.reward[arm == 1]
    assert scores.estimate == pytest.approx(mine.mean(), rel=1e-3)
    assert scores.standard_error == pytest.approx(stats.sem(mine), rel=0.01)


def test_carousel_sums_its_positions_and_clusters_its_rows():
    log = LoggedRounds(
        arms=("a", "b"),
        arm=np.array([0, 1, 1, 0, 1, 0, 0, 1]),
        propensity=np.array([0.5, 0.5, 0.25, 0.25, 0.5, 0.5, 0.5, 0.5]),
        reward=np.array([1.0, 0, 2, 1, 0, 3, 1, 1]),
        time=np.arange(8.0),
        unit=np.array([7, 7, 3, 3, 7, 7, 1, 1]),
        position=np.array([1, 2] * 4),
    )
    target = Target.from_positions([[0.75, 0.25], [0.25, 0.75]], log)
    # Slates: (1.5*1 + 1.5*0), (1*2 + 1*1), (0.5*0 + 0.5*3), (1.5*1 + 1.5*1).
    scores = item_position(log, target)
    assert scores.estimate == pytest.approx((1.5 + 3 + 1.5 + 3) / 4)
    assert (scores.units, scores.per) == (3, "slate")
    # Units 7 (two slates, 3.0), 3 (one, 3.0) and 1 (one, 3.0) about 2.25 a slate.
    residual = np.array([3 - 4.5, 3 - 2.25, 3 - 2.25])
    expected = math.sqrt(3 / 2 * (residual**2).sum()) / 4
    assert scores.standard_error == pytest.approx(expected)


def test_carousels_without_unit_position_or_first_row_are_refused():
    log, target = make(seed=7, positions=3)
    with pytest.raises(ValueError, match="needs position and unit of each row"):
        item_position(log, target)
    log, target = make(seed=7, rounds=20, units=15, positions=3)
    with pytest.raises(ValueError, match=r"unit of row \d+, \d+, has rows but none"):
        item_position(log, target)


def test_a_difference_is_paired():
    log, target = make(seed=8, rounds=2000, units=700)
    near = Target(table=0.9 * target.table + 0.1 / 3)
    contrast = difference(ips(log, target), ips(log, near))
    scores = ips(log, target.of_logged(log, 0, 2000) * 0)
    assert scores.estimate == 0
    w = target.of_logged(log, 0, 2000) / log.propensity
    v = near.of_logged(log, 0, 2000) / log.propensity
    assert contrast.estimate == pytest.approx(np.mean((w - v) * log.reward))
    totals = np.bincount(log.unit, (w - v) * log.reward - contrast.estimate)
    g = len(np.unique(log.unit))
    expected = math.sqrt(g / (g - 1) * (totals**2).sum()) / 2000
    assert contrast.standard_error == pytest.approx(expected)
    assert contrast.standard_error < value(ips(log, target)).standard_error / 4
    assert contrast.high - contrast.estimate == pytest.approx(
        stats.norm.ppf(0.975) * expected
    )


def test_differences_of_unlike_scores_are_refused():
    log, target = make(seed=9)
    other, theirs = make(seed=9, rounds=300)
    with pytest.raises(ValueError, match="rounds is 400 in one and 300 in the other"):
        difference(ips(log, target), ips(other, theirs))


def test_chunks_do_not_change_a_number(monkeypatch):
    log, target = make(seed=10, units=60, positions=2)
    model = fit_reward_model(log)
    whole = [
        ips(log, target),
        snips(log, target),
        doubly_robust(log, target, model=model),
    ]
    monkeypatch.setattr(logged.chunks, "__defaults__", (37,))
    for module in (off_policy, reward_model):
        monkeypatch.setattr(module, "CHUNK", 37)
    model = fit_reward_model(log)
    parts = [
        ips(log, target),
        snips(log, target),
        doubly_robust(log, target, model=model),
    ]
    for a, b in zip(whole, parts, strict=True):
        same(a, b)
        assert a.overlap.effective_sample_size == pytest.approx(
            b.overlap.effective_sample_size
        )


def test_no_unit_predicts_itself():
    log, _ = make(seed=11, units=40)
    folds = reward_model._folds(log, 5, 0, log.rounds)
    for unit in np.unique(log.unit):
        assert len(set(folds[log.unit == unit])) == 1
    assert np.bincount(folds, minlength=5).min() > 20


def test_one_unit_leaves_nothing_to_fit_on():
    log, _ = make(seed=12, rounds=10, units=1)
    with pytest.raises(ValueError, match="all units of the log fall in one of 5 folds"):
        fit_reward_model(log)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda log, t: clipped_ips(log, t, clip=0), "clip is 0; it must be a number"),
        (lambda log, _t: ips(log, np.full(3, 0.5)), r"target has shape \(3,\)"),
        (
            lambda log, _t: ips(log, np.where(np.arange(400) == 9, 1.5, 0.5)),
            "target of row 9 is 1.5; it must be a number from 0 to 1",
        ),
        (
            lambda log, _t: ips(log, np.where(np.arange(400) == 9, np.nan, 0.5)),
            "target of row 9 is nan",
        ),
        (lambda log, _t: ips(log, Target.constant([0.5, 0.5])), "2 arms and 1 rounds"),
        (
            lambda log, t: switch_dr(log, t, model=fit_reward_model(log), tau=-1),
            "tau is -1",
        ),
        (
            lambda log, t: direct_method(
                log, t, model=RewardModel.known(np.zeros((1, 3)))
            ),
            r"the reward model has \(1, 3\) cells and arms; the log has \(2, 3\)",
        ),
        (lambda log, _t: fit_reward_model(log, folds=1), "folds is 1"),
        (lambda log, t: value(ips(log, t), level=1.0), "level is 1.0"),
        (lambda _log, _t: Target(table=np.array([[0.5, 0.6]])), "row 0 of table is"),
        (lambda _log, _t: Target(table=np.array([[1.5, -0.5]])), "row 0 of table is"),
        (lambda _log, _t: Target(table=np.array([[np.nan, 1]])), "row 0 of table is"),
        (lambda _log, _t: Target(table=np.ones(3)), r"table has shape \(3,\)"),
        (
            lambda _log, _t: Target(table=np.eye(2), row=np.array([0, 2])),
            "row of row 1 is 2",
        ),
    ],
)
def test_wrong_input_is_refused(call, message):
    log, target = make(seed=13)
    with pytest.raises(ValueError, match=message):
        call(log, target)


def test_epochs_and_segments_find_their_weights():
    log, _ = make(seed=14)
    weights = np.random.default_rng(0).dirichlet([1.0] * 3, (3, 2))
    target = Target.from_epochs([0, 100, 350], weights, log)
    for row in (0, 99, 100, 349, 350, 399):
        epoch = (row >= 100) + (row >= 350)
        expected = weights[epoch, log.segment[row]]
        assert target.probabilities(row, row + 1)[0] == pytest.approx(expected)
        assert target.of_logged(log, row, row + 1)[0] == expected[log.arm[row]]
    pooled = Target.from_epochs([0, 100], weights[:2, :1], log)
    assert pooled.probabilities(399, 400)[0] == pytest.approx(weights[1, 0])
    for starts in ([1, 2, 3], [0, 2, 2], [0, 1, 400], [0, 1]):
        with pytest.raises(ValueError, match="starts has shape"):
            Target.from_epochs(starts, weights, log)


def weighted(weights, units=None, **flags):
    """Overlap of given weights, all propensities 0.5."""
    w = np.asarray(weights, dtype=float)
    counts = None if units is None else np.bincount(units)
    sums = overlap.WeightSums(counts, len(w))
    sums.add(w, w, np.full(len(w), 0.5), units)
    return sums.overlap(**({"leans_on_model": False} | flags))


def test_overlap_measures_are_those_of_kish():
    w = np.random.default_rng(1).exponential(1, 5000)
    found = weighted(w)
    assert found.effective_sample_size == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert found.mean_weight == pytest.approx(w.mean())
    assert found.mean_weight_error == pytest.approx(stats.sem(w))
    assert found.largest_weight == w.max()
    assert found.verdict == "fine"
    units = np.repeat(np.arange(2500), 2)
    totals = w.reshape(-1, 2).sum(axis=1)
    clustered = weighted(w, units)
    kish = totals.sum() ** 2 / (totals**2).sum()
    assert clustered.effective_sample_size == pytest.approx(kish)
    assert clustered.mean_weight_error == pytest.approx(stats.sem(totals / 2))


@pytest.mark.parametrize(
    ("weights", "verdict", "reason"),
    [
        (np.ones(99), "withheld", "worth 99 of its 99 units .* at least 100"),
        (np.ones(100), "warning", "below 300 the interval is rough"),
        (np.ones(300), "fine", "worth 300 of its 300 units"),
        (np.r_[np.ones(10_000), 300], "warning", "one unit holds 2.9% of all weight"),
        (np.full(1000, 1.2), "withheld", "mean 1.2 and not 1.*propensities are wrong"),
        (np.full(1000, 0.5), "withheld", "mean 0.5 and not 1"),
        (np.full(1000, 1.05), "warning", "mean 1.05 and not 1, more than 3 standard"),
        (np.full(1000, 1.005), "fine", "worth 1,000"),
        (np.zeros(1000), "withheld", "worth 0 of its 1,000 units"),
    ],
)
def test_verdicts(weights, verdict, reason):
    found = weighted(weights)
    assert found.verdict == verdict
    assert re.search(reason, found.reason)


def test_a_withheld_value_shows_no_number():
    log, target = make(seed=15, rounds=60)
    shown = value(ips(log, target))
    assert shown.overlap.verdict == "withheld"
    numbers = (shown.estimate, shown.standard_error, shown.low, shown.high)
    assert numbers == (None,) * 4
    assert difference(ips(log, target), logged_value(log)).estimate is None


def test_a_target_the_log_never_followed_is_withheld():
    log, _ = make(seed=16)
    never = snips(log, np.zeros(log.rounds))
    assert math.isnan(never.estimate)
    assert value(never).estimate is None
    assert math.isnan(never.overlap.smallest_propensity)


@pytest.mark.filterwarnings("ignore:(overflow|invalid):RuntimeWarning")
def test_weights_that_overflow_are_withheld():
    log, target = make(seed=18, rounds=2000)
    propensity = log.propensity.copy()
    propensity[7] = 1e-320
    broken = LoggedRounds(
        arms=log.arms,
        arm=log.arm,
        propensity=propensity,
        reward=log.reward,
        time=log.time,
        segment=log.segment,
        segments=log.segments,
    )
    model = fit_reward_model(broken)
    for scores in (
        ips(broken, target),
        snips(broken, target),
        doubly_robust(broken, target, model=model),
        dr_shrinkage(broken, target, model=model, shrinkage=9),
    ):
        assert value(scores).estimate is None


def test_the_direct_method_says_what_it_rests_on():
    log, target = make(seed=17)
    direct = value(direct_method(log, target, model=fit_reward_model(log)))
    assert direct.overlap.reason == (
        "no weight is used: the value is as right as the reward model"
    )
    assert direct.estimate is not None
    with pytest.raises(TypeError, match="needs a Target"):
        direct_method(log, log.propensity, model=fit_reward_model(log))
