"""Environments with known truth, and what a policy would earn and lose in them.

For planning a bandit (how fast does it learn, what does a floor cost) and for testing
whatever looks back at logs. Units come in looks of equal size; within a look weights
are constant, so a look is a few draws from multinomial and binomial laws.
"""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from policies.allocation import allocate_with_floor
from policies.base import (
    ArmStatistics,
    FloatArray,
    Mask,
    Policy,
    check_number,
    check_weights,
)
from policies.logged import LoggedRounds

# Below this many looks of all seeds, starting processes takes longer.
_WORTH_PROCESSES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Environment:
    """Arms whose units earn a reward of 0 or 1.

    Attributes
    ----------
    rates : float64 array, shape (S, K), or (K,) for one segment
        Chance of a reward, per segment and arm, in [0, 1].
    shares : float64 array, shape (S,), or None
        Share of units in each segment; None: equal.
    swing : float64 array, shape of rates, or None
        Drift: at time t the rate is ``rates + swing sin(2 pi t / period)``.
    period : float, > 0
        Seconds of one swing.
    arrivals : float64 array, shape (K,), or None
        Seconds at which each arm appears; before, nobody can choose it. At least two
        are there from 0 on.
    delay : float, >= 0
        Seconds until a unit's reward is known, and the unit counts.

    Raises
    ------
    ValueError
        Names the field, the arm, its value and the rule.
    """

    rates: FloatArray
    shares: FloatArray | None = None
    swing: FloatArray | None = None
    period: float = 86_400.0
    arrivals: FloatArray | None = None
    delay: float = 0.0

    def __post_init__(self) -> None:
        rates = np.atleast_2d(np.asarray(self.rates, dtype=np.float64))
        segments, arms = rates.shape
        swing = _filled("swing", self.swing, np.zeros_like(rates))
        shares = _filled("shares", self.shares, np.full(segments, 1 / segments))
        arrivals = _filled("arrivals", self.arrivals, np.zeros(arms))
        check_weights("shares", shares)
        check_number("period", self.period, low=1e-6, high=1e12)
        check_number("delay", self.delay, low=0, high=1e12)
        extreme = np.stack([rates - np.abs(swing), rates + np.abs(swing)])
        if arms < 2 or not ((extreme >= 0) & (extreme <= 1)).all():
            raise ValueError(
                f"rates is {rates.tolist()} with swing {swing.tolist()}; of at least 2 "
                "arms every rate must stay in 0 to 1"
            )
        if np.count_nonzero(arrivals <= 0) < 2 or not np.isfinite(arrivals).all():
            raise ValueError(
                f"arrivals is {arrivals.tolist()}; at least 2 arms must be there at 0"
            )
        for name, value in (
            ("rates", rates),
            ("swing", swing),
            ("shares", shares),
            ("arrivals", arrivals),
        ):
            object.__setattr__(self, name, value)

    def rates_at(self, time: float) -> FloatArray:
        """Return the rates at a time, shape (S, K)."""
        assert self.swing is not None  # noqa: S101 - filled when built
        angle = 2 * np.pi * time / self.period
        result: FloatArray = self.rates + self.swing * np.sin(angle)
        return result

    def present(self, time: float) -> Mask:
        """Return which arms are there at a time, bool of shape (K,)."""
        assert self.arrivals is not None  # noqa: S101 - filled when built
        there: Mask = self.arrivals <= time
        return there


def _filled(name: str, given: ArrayLike | None, default: FloatArray) -> FloatArray:
    if given is None:
        return default
    values = np.asarray(given, dtype=np.float64).reshape(
        (1, -1) if default.ndim == 2 and np.ndim(given) == 1 else np.shape(given)
    )
    if values.shape != default.shape:
        raise ValueError(
            f"{name} has shape {values.shape}; beside these rates it must be "
            f"{default.shape}"
        )
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """How units come and how often weights are looked at.

    Attributes
    ----------
    looks : int, >= 1
        Number of spans between looks.
    units : int, >= 1
        Units in each.
    seconds : float, > 0
        Time between two looks.
    floor : float
        As for `allocate_with_floor`.
    lower_is_better : bool
    """

    looks: int
    units: int
    seconds: float = 3600.0
    floor: float = 0.0
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        for name in ("looks", "units"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number >= 1")
        check_number("seconds", self.seconds, low=1e-6, high=1e12)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Simulation:
    """What a policy did in an environment, once for each seed.

    Attributes
    ----------
    regret : float64 array, shape (seeds, looks)
        Cumulative: rewards expected of the best arm of each segment at each time, less
        those expected of what was chosen (or the other way round when lower is better).
    reward : float64 array, shape (seeds, looks)
        Cumulative rewards, as drawn.
    weights : float64 array, shape (seeds, looks, S, K)
        Weights in force; 0 for arms that are not there yet.
    """

    regret: FloatArray
    reward: FloatArray
    weights: FloatArray

    @property
    def mean_regret(self) -> FloatArray:
        """Mean over seeds, shape (looks,)."""
        mean: FloatArray = self.regret.mean(axis=0)
        return mean

    @property
    def regret_error(self) -> FloatArray:
        """Standard error of `mean_regret`, shape (looks,); nan for one seed."""
        seeds = len(self.regret)
        if seeds < 2:
            return np.full(self.regret.shape[1], np.nan)
        error: FloatArray = self.regret.std(axis=0, ddof=1) / np.sqrt(seeds)
        return error


def simulate(
    environment: Environment,
    policy: Policy,
    traffic: Traffic,
    *,
    seeds: Sequence[int],
    processes: int | None = None,
) -> Simulation:
    """Run a policy in an environment, once for each seed.

    Parameters
    ----------
    processes : int, >= 1, or None
        None: as many as there are cores, or none beside this one for little work.

    Raises
    ------
    ValueError
        When there is no seed, or the policy can't run in the environment.
    """
    if not seeds:
        raise ValueError("seeds is empty; give at least one")
    if processes is None:
        much = traffic.looks * len(seeds) >= _WORTH_PROCESSES
        processes = len(os.sched_getaffinity(0)) if much else 1
    one = partial(_run, environment, policy, traffic)
    if processes == 1:
        runs = [one(seed) for seed in seeds]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            chunk = -(-len(seeds) // (4 * processes))
            runs = list(pool.map(one, seeds, chunksize=chunk))
    regret, reward, weights = (np.array(each) for each in zip(*runs, strict=True))
    return Simulation(
        regret=regret.cumsum(axis=1), reward=reward.cumsum(axis=1), weights=weights
    )


def simulated_log(
    environment: Environment, policy: Policy, traffic: Traffic, *, seed: int
) -> LoggedRounds:
    """Return the log of one run, a row for each unit, with its exact propensities."""
    rng = _generator(seed)
    _, _, weights = _run(environment, policy, traffic, seed)
    looks, segments, arms = weights.shape
    rounds = looks * traffic.units
    look = np.repeat(np.arange(looks), traffic.units)
    segment = rng.choice(segments, rounds, p=environment.shares).astype(np.int32)
    chosen = weights[look, segment]
    arm = (rng.random((rounds, 1)) >= chosen.cumsum(axis=1)).sum(axis=1)
    # Rounding of the last sum may lie below 1.
    last = arms - 1 - np.argmax(chosen[:, ::-1] > 0, axis=1)
    arm = np.minimum(arm, last).astype(np.int32)
    rates = np.array(
        [environment.rates_at(each * traffic.seconds) for each in range(looks)]
    )
    within = np.tile(np.arange(traffic.units) / traffic.units, looks)
    return LoggedRounds(
        arms=tuple(f"arm {number}" for number in range(arms)),
        arm=arm,
        propensity=chosen[np.arange(rounds), arm],
        reward=(rng.random(rounds) < rates[look, segment, arm]).astype(np.float64),
        time=(look + within) * traffic.seconds,
        segment=segment if segments > 1 else None,
        segments=tuple(f"segment {number}" for number in range(segments))
        if segments > 1
        else (),
    )


def _run(
    environment: Environment, policy: Policy, traffic: Traffic, seed: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return regret and reward of each look, and the weights in it."""
    rng = _generator(seed)
    shape = environment.rates.shape
    regret, reward = np.zeros(traffic.looks), np.zeros(traffic.looks)
    weights = np.zeros((traffic.looks, *shape))
    units = np.zeros((traffic.looks, *shape))
    rewards = np.zeros((traffic.looks, *shape))
    best_of: Any = np.min if traffic.lower_is_better else np.max
    sums = np.zeros((2, *shape))
    lag = int(np.ceil(environment.delay / traffic.seconds))
    for look in range(traffic.looks):
        time = look * traffic.seconds
        present = environment.present(time)
        if policy.half_life is not None:
            sums *= 0.5 ** (traffic.seconds / policy.half_life)
        known = look - 1 - lag
        if known >= 0:
            # Units of a look came half a look before its end, on average.
            age = time - (known + 0.5) * traffic.seconds
            worth = 0.5 ** (age / policy.half_life) if policy.half_life else 1.0
            sums += worth * np.stack([units[known], rewards[known]])
        weights[look][:, present] = _decide(policy, traffic, sums[:, :, present], rng)
        rates = environment.rates_at(time)
        assert environment.shares is not None  # noqa: S101 - filled when built
        drawn = rng.multinomial(traffic.units, environment.shares)
        units[look] = [
            rng.multinomial(n, row) for n, row in zip(drawn, weights[look], strict=True)
        ]
        rewards[look] = rng.binomial(units[look].astype(np.int64), rates)
        best = best_of(rates[:, present], axis=1, keepdims=True)
        regret[look] = abs(float((units[look] * (best - rates)).sum()))
        reward[look] = rewards[look].sum()
    return regret, reward, weights


def _decide(
    policy: Policy, traffic: Traffic, sums: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Return the weights of the arms that are there, shape (S, arms)."""
    units, rewards = sums if policy.segmented else sums.sum(axis=1)
    statistics = ArmStatistics(
        units=units,
        reward_sum=rewards,
        reward_sum_squares=rewards,
        lower_is_better=traffic.lower_is_better,
    )
    asked = np.atleast_2d(policy.allocate(statistics, rng))
    return np.array([allocate_with_floor(row, floor=traffic.floor) for row in asked])


def _generator(seed: int) -> np.random.Generator:
    # A run is its seed, so that it draws alike in whatever process it runs.
    return np.random.default_rng(seed)  # noqa: TID251
