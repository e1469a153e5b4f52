"""Replay against a plain loop over rounds and looks, written here on its own."""

import numpy as np
import pytest

from policies import ArmStatistics, allocate_with_floor, build_policy
from policies.logged import LoggedRounds
from policies.off_policy import ips, logged_value
from policies.replay import ReplayRun, replay
from policies.replay_many import replay_many
from policies.target import Target

K, T = 3, 4_000


def make_log(seed=0, rounds=T, *, segments=False, rates=(0.1, 0.15, 0.3)):
    rng = np.random.default_rng(seed)
    logged = rng.dirichlet(np.full(len(rates), 8.0), rounds)
    arm = (rng.random((rounds, 1)) > logged.cumsum(axis=1)).sum(axis=1)
    arm = np.minimum(arm, len(rates) - 1)
    return LoggedRounds(
        arms=tuple(f"arm{i}" for i in range(len(rates))),
        arm=arm.astype(np.int32),
        propensity=logged[np.arange(rounds), arm],
        reward=(rng.random(rounds) < np.array(rates)[arm]).astype(float),
        # Several rounds share an instant, as in real logs.
        time=np.floor(np.sort(rng.uniform(0, 10_000, rounds))),
        segment=rng.integers(0, 2, rounds).astype(np.int32) if segments else None,
        segments=("phone", "desktop") if segments else (),
    )


def run_of(name, parameters=None, **options):
    options = options or {"update_every": 500}
    return ReplayRun(label=name, policy=build_policy(name, parameters or {}), **options)


def plain_replay(rounds, run):
    """Weights of each epoch, one round and one look after the other."""
    time = rounds.time
    if run.update_every is not None:
        looks = [(i, time[i]) for i in range(0, rounds.rounds, run.update_every)]
    else:
        looks, at = [(0, time[0])], time[0]
        while at + run.update_seconds <= time[-1]:
            at += run.update_seconds
            first = int(np.argmax(time >= at))
            if looks[-1][0] == first and len(looks) > 1:
                looks.pop()
            if first:
                looks.append((first, at))
    segments = len(rounds.segments) if run.policy.segmented else 1
    ruled = [k for k in range(len(rounds.arms)) if k != run.control]
    history, epoch_of = [], np.zeros(rounds.rounds, dtype=int)
    for number, (row, at) in enumerate(looks):
        epoch_of[row:] = number
        sums = np.zeros((3, segments, len(rounds.arms)))
        for i in range(row):
            if number == 0 or time[i] + run.delay > at:
                continue
            s = rounds.segment[i] if segments > 1 else 0
            w = history[epoch_of[i]][s][rounds.arm[i]] / rounds.propensity[i]
            if run.policy.half_life is not None:
                w *= 0.5 ** ((at - time[i]) / run.policy.half_life)
            r = rounds.reward[i]
            sums[:, s, rounds.arm[i]] += (w, w * r, w * r * r)
        if number and (sums[0].sum(axis=0)[ruled] < run.minimum_units).any():
            history.append(history[-1])
            continue
        shaped = sums[:, :, ruled] if run.policy.segmented else sums[:, 0, ruled]
        asked = run.policy.allocate(
            ArmStatistics(
                units=shaped[0],
                reward_sum=shaped[1],
                reward_sum_squares=shaped[2],
                lower_is_better=run.lower_is_better,
            ),
            np.random.default_rng(0),
        )
        history.append(
            [
                allocate_with_floor(
                    each,
                    floor=run.floor,
                    control=run.control,
                    control_share=run.control_share,
                )
                for each in np.atleast_2d(asked)
            ]
        )
    return [row for row, _ in looks], np.array(history)


@pytest.mark.parametrize(
    ("name", "parameters", "options"),
    [
        ("thompson", {}, {"update_every": 500}),
        ("thompson", {}, {"update_every": 7_000}),
        ("thompson", {}, {"update_seconds": 700.0}),
        ("thompson", {}, {"update_seconds": 700.0, "delay": 1_500.0}),
        ("thompson", {}, {"update_every": 333, "delay": 40.0, "floor": 0.05}),
        ("thompson", {}, {"update_every": 300, "minimum_units": 400.0}),
        ("thompson", {}, {"update_every": 500, "lower_is_better": True}),
        (
            "thompson",
            {},
            {"update_every": 500, "control": 1, "control_share": 0.2, "floor": 0.1},
        ),
        ("gaussian_thompson", {}, {"update_seconds": 900.0, "delay": 100.0}),
        ("top_two_thompson", {}, {"update_every": 500}),
        ("epsilon_greedy", {"epsilon": 0.2}, {"update_every": 500}),
        ("discounted_thompson", {"half_life": 900.0}, {"update_every": 500}),
        (
            "discounted_thompson",
            {"half_life": 900.0},
            {"update_seconds": 800.0, "delay": 600.0},
        ),
        ("segmented_thompson", {}, {"update_every": 600, "floor": 0.02}),
        ("segmented_thompson", {}, {"update_seconds": 999.0, "delay": 333.0}),
    ],
)
def test_weights_are_those_of_a_plain_loop(name, parameters, options):
    rounds = make_log(segments=name == "segmented_thompson", rounds=2_000)
    run = run_of(name, parameters, **options)
    starts, weights = plain_replay(rounds, run)
    result = replay(rounds, run)
    assert result.starts.tolist() == starts
    np.testing.assert_allclose(result.weights, weights, rtol=0, atol=1e-8)


def test_time_without_rounds_makes_no_epochs():
    rounds = make_log(rounds=6)
    late = LoggedRounds(
        arms=rounds.arms,
        arm=rounds.arm,
        propensity=rounds.propensity,
        reward=rounds.reward,
        time=np.array([0.0, 1, 2, 1_000_000, 1_000_001, 1_000_002]),
    )
    result = replay(late, run_of("thompson", update_seconds=10.0))
    assert result.starts.tolist() == [0, 3]
    assert result.weights.shape == (2, 1, 3)


def test_the_logged_policy_is_worth_what_the_log_is_worth():
    weights = [0.2, 0.5, 0.3]
    rng = np.random.default_rng(1)
    arm = rng.choice(3, T, p=weights)
    rounds = LoggedRounds(
        arms=("a", "b", "c"),
        arm=arm.astype(np.int32),
        propensity=np.array(weights)[arm],
        reward=rng.random(T),
        time=np.arange(T, dtype=float),
    )
    result = replay(rounds, run_of("fixed", {"weights": weights}))
    target = Target.from_epochs(result.starts, result.weights, rounds)
    assert ips(rounds, target).estimate == pytest.approx(
        logged_value(rounds).estimate, rel=1e-12
    )


def uniform_log(seed, rounds=20_000, rates=(0.2, 0.4)):
    rng = np.random.default_rng(seed)
    arm = rng.integers(0, len(rates), rounds)
    return LoggedRounds(
        arms=tuple(str(i) for i in range(len(rates))),
        arm=arm.astype(np.int32),
        propensity=np.full(rounds, 1 / len(rates)),
        reward=(rng.random(rounds) < np.array(rates)[arm]).astype(float),
        time=np.arange(rounds, dtype=float),
    )


def test_rejection_keeps_one_in_k_of_a_uniform_log():
    rounds = uniform_log(2)
    weights = (0.9, 0.1)
    run = run_of("fixed", {"weights": weights}, update_every=100, method="rejection")
    result = replay(rounds, run)
    assert abs(result.accepted - T * 5 / 2) < 4 * np.sqrt(T * 5 / 4)
    # What is kept has the target's mean: 0.9 * 0.2 + 0.1 * 0.4.
    error = np.sqrt(0.22 * 0.78 / result.accepted)
    assert abs(result.accepted_reward - 0.22) < 4 * error
    assert result.statistics.units.sum() < result.accepted
    share = result.statistics.units[0] / result.statistics.units.sum()
    assert abs(share - 0.9) < 4 * np.sqrt(0.09 / result.accepted)


def test_rejection_of_a_log_that_is_not_uniform_keeps_the_law_of_the_target():
    rounds = make_log(3, rounds=60_000)
    run = run_of("uniform", method="rejection", update_every=1_000)
    result = replay(rounds, run)
    shares = result.statistics.units / result.statistics.units.sum()
    error = 4 * np.sqrt(2 / 9 / result.statistics.units.sum())
    assert np.all(np.abs(shares - 1 / 3) < error)


def test_the_seed_decides_what_is_kept_and_nothing_else_is_drawn():
    rounds = uniform_log(4)
    first, again, other = (
        replay(rounds, run_of("thompson", method="rejection", update_every=500, seed=s))
        for s in (1, 1, 2)
    )
    assert first.accepted == again.accepted
    np.testing.assert_array_equal(first.weights, again.weights)
    assert first.accepted != other.accepted
    expected = [
        replay(rounds, run_of("thompson", update_every=500, seed=s)).weights
        for s in (1, 2)
    ]
    np.testing.assert_array_equal(*expected)


def test_progress_adds_up_to_the_rounds():
    done = []
    for options in (
        {"update_every": 100},
        {"update_every": 10_000},
        {"update_seconds": 50.0, "method": "rejection", "delay": 300.0},
    ):
        done.clear()
        replay(make_log(), run_of("uniform", **options), progress=done.append)
        assert sum(done) == T


@pytest.mark.parametrize("processes", [1, 2])
def test_many_runs_come_back_in_their_order(processes):
    rounds = make_log(5, segments=True)
    runs = [
        run_of(name, update_every=400)
        for name in ("thompson", "uniform", "segmented_thompson")
    ]
    done = []
    results = replay_many(rounds, runs, processes=processes, progress=done.append)
    assert sum(done) == 3 * T
    for run, result in zip(runs, results, strict=True):
        alone = replay(rounds, run)
        np.testing.assert_array_equal(result.weights, alone.weights)
        np.testing.assert_array_equal(result.starts, alone.starts)


def test_a_log_on_disk_is_opened_by_each_process(tmp_path):
    rounds = make_log(6)
    columns = {}
    for name in ("arm", "propensity", "reward", "time"):
        np.save(tmp_path / f"{name}.npy", getattr(rounds, name))
        columns[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    on_disk = LoggedRounds(arms=rounds.arms, **columns).slice(1_000, 4_000)
    in_memory = rounds.slice(1_000, 4_000)
    runs = [run_of("thompson"), run_of("gaussian_thompson")]
    for ours, expected in zip(
        replay_many(on_disk, runs, processes=2),
        replay_many(in_memory, runs, processes=1),
        strict=True,
    ):
        np.testing.assert_array_equal(ours.weights, expected.weights)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_policy_that_does_not_fit_is_named(processes):
    runs = [run_of("thompson"), run_of("fixed", {"weights": [0.5, 0.5]})]
    with pytest.raises(
        ValueError, match=r"policy 'fixed': weights has 2 entries for 3 arms"
    ):
        replay_many(make_log(), runs, processes=processes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "greedy"}, "method is 'greedy'; it must be 'expected' or"),
        ({"update_every": None}, "exactly one of them must be given"),
        ({"update_seconds": 5.0}, "exactly one of them must be given"),
        ({"update_every": 0}, "update_every is 0; it must be at least 1"),
        ({"update_every": None, "update_seconds": 0.0}, "update_seconds is 0"),
        ({"delay": -1.0}, r"delay is -1\.0; it must be 0 or more"),
        ({"delay": float("nan")}, "delay is nan"),
        ({"minimum_units": -1.0}, "minimum_units is"),
    ],
)
def test_impossible_runs_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        run_of("uniform", **{"update_every": 10, **options})


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (
            run_of("segmented_thompson"),
            "gives each segment its own weights, and the log has no segments",
        ),
        (
            run_of("thompson", control=3, control_share=0.1, update_every=5),
            "control is 3; of 3 arms it must be one of 0 to 2",
        ),
        (
            run_of("thompson", floor=0.5, update_every=5),
            r"floor is 0\.5 for 3 arms",
        ),
    ],
)
def test_runs_that_do_not_fit_the_log_are_refused(run, words):
    with pytest.raises(ValueError, match=words):
        replay(make_log(), run)


def test_rewards_that_a_policy_can_not_learn_from_are_named_by_row():
    rounds = make_log()
    reward = rounds.reward.copy()
    reward[[17, 40]] = 0.5
    other = LoggedRounds(
        arms=rounds.arms,
        arm=rounds.arm,
        propensity=rounds.propensity,
        reward=reward,
        time=rounds.time,
    )
    with pytest.raises(
        ValueError, match=r"reward of row 17 is 0\.5; policy 'thompson'"
    ):
        replay(other, run_of("thompson"))
    assert replay(other, run_of("gaussian_thompson")).weights.shape[0] == T / 500
