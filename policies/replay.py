"""Replay: run a policy over a log as it would have run, one weight version at a time.

Between two looks weights are constant, so all rounds of an epoch are handled at once.
Which rounds are known at which look depends on time alone, so their sums are made
beforehand; only the policy itself is stepped through.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from policies.allocation import allocate_with_floor
from policies.base import ArmStatistics, FloatArray, Policy
from policies.logged import CHUNK, LoggedRounds, chunks

#: How a policy learns from rounds that another one chose: by weighting each, or by
#: keeping those that it might have chosen itself.
Method = Literal["expected", "rejection"]

_SUMS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRun:
    """A policy to replay and how.

    Attributes
    ----------
    label : str
        Names it in errors.
    policy : Policy
    method : "expected" or "rejection"
    update_every : int or None
        Rounds between two looks, >= 1; or
    update_seconds : float or None
        seconds between two looks, > 0. One of the two is given.
    delay : float, >= 0
        Seconds from a round until its reward is known; before, it counts neither as a
        unit nor as a reward.
    floor, control, control_share
        As for `allocate_with_floor`.
    minimum_units : float, >= 0
        Weights stay until every arm that the policy rules has so many units.
    lower_is_better : bool
    seed : int
        Of the draws of rejection.

    Raises
    ------
    ValueError
        Names the field, its value and the rule.
    """

    label: str
    policy: Policy
    method: Method = "expected"
    update_every: int | None = None
    update_seconds: float | None = None
    delay: float = 0.0
    floor: float = 0.0
    control: int | None = None
    control_share: float = 0.0
    minimum_units: float = 0.0
    lower_is_better: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("expected", "rejection"):
            raise ValueError(
                f"method is {self.method!r}; it must be 'expected' or 'rejection'"
            )
        if (self.update_every is None) == (self.update_seconds is None):
            raise ValueError(
                f"update_every is {self.update_every} and update_seconds "
                f"{self.update_seconds}; exactly one of them must be given"
            )
        for name, low in (("update_every", 1.0), ("update_seconds", 1e-6)):
            given = getattr(self, name)
            if given is not None and not low <= given < np.inf:
                raise ValueError(f"{name} is {given}; it must be at least {low:g}")
        for name in ("delay", "minimum_units"):
            given = getattr(self, name)
            if not 0 <= given < np.inf:
                raise ValueError(f"{name} is {given}; it must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplayResult:
    """What a policy would have done over a log.

    Attributes
    ----------
    starts : int64 array, shape (E,)
        First round of each epoch, increasing from 0.
    weights : float64 array, shape (E, S, K)
        Weights in force in each epoch; S is 1 for a policy that is not segmented.
    statistics : ArmStatistics
        What the policy had learned at its last look.
    accepted : int or None
        Rounds that rejection kept; None for the expected update.
    accepted_reward : float or None
        Mean reward of those rounds, the estimate of Li et al.; None when there are
        none, and for the expected update.
    """

    starts: NDArray[np.int64]
    weights: FloatArray
    statistics: ArmStatistics
    accepted: int | None
    accepted_reward: float | None


def replay(
    rounds: LoggedRounds,
    run: ReplayRun,
    *,
    progress: Callable[[int], None] | None = None,
) -> ReplayResult:
    """Run a policy over a log.

    Method ``expected`` adds to each arm's statistics, for every round that is known,
    the weight w = target / logged propensity as units and w r as reward: in expectation
    what the policy itself would have gathered, with no round thrown away. Method
    ``rejection`` keeps a round with chance w times the smallest logged propensity of
    the log; for a uniform log that is to draw an arm and keep the round if the log has
    the same. The kept rounds are distributed as the policy's own.

    Parameters
    ----------
    rounds : LoggedRounds
        May be memory-mapped; beside it some hundred bytes for each epoch, arm and
        segment are held, and a few MB.
    progress : callable, optional
        Called with the number of rounds done since the last call.

    Raises
    ------
    ValueError
        When log and policy do not fit: other arms, segments that are not there, rewards
        of another kind (names the row).

    References
    ----------
    Li, L., Chu, W., Langford, J. and Wang, X. (2011). Unbiased offline evaluation of
    contextual-bandit-based news article recommendation algorithms, WSDM, algorithm 2.
    Precup, D., Sutton, R. S. and Singh, S. (2000). Eligibility traces for off-policy
    policy evaluation, ICML (importance weights instead of rejection).
    """
    _check_fit(rounds, run)
    plan = _Plan.of(rounds, run)
    learner = _Learner(rounds, run)
    weights = np.empty((len(plan.starts), learner.segments, len(rounds.arms)))
    weights[0] = learner.decide()
    keeper = _Keeper(rounds, run) if run.method == "rejection" else None
    for first, last in plan.blocks(learner.segments * len(rounds.arms)):
        sums = None if keeper else _weighted_sums(rounds, run, plan, (first, last))
        for look in range(first, last):
            learner.age_to(plan.at[look])
            for piece in range(plan.first_piece[look], plan.first_piece[look + 1]):
                own = weights[plan.epoch[piece]]
                if sums is None:
                    assert keeper is not None  # noqa: S101 - sums are None only then
                    learner.add(keeper.sums(plan.rows(piece), own, plan.at[look]))
                else:
                    learner.add(sums[piece - plan.first_piece[first]] * own)
            weights[look] = (
                learner.decide() if learner.has_enough() else weights[look - 1]
            )
        if progress is not None:
            progress(int(plan.starts[last - 1] - plan.starts[first - 1]))
    if keeper:
        for piece in range(plan.first_piece[-1], len(plan.epoch)):
            keeper.sums(plan.rows(piece), weights[plan.epoch[piece]], plan.at[-1])
    if progress is not None:
        progress(int(rounds.rounds - plan.starts[-1]))
    return ReplayResult(
        starts=plan.starts,
        weights=weights,
        statistics=learner.statistics(),
        accepted=keeper.accepted if keeper else None,
        accepted_reward=keeper.mean_reward if keeper else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Plan:
    """When looks are, and which rounds are known at each: a matter of time alone.

    Attributes
    ----------
    starts : int64 array, shape (E,)
        First round of each epoch. Epoch e > 0 is opened by look e.
    at : float64 array, shape (E,)
        Time of each look.
    cuts : int64 array, shape (P + 1,)
        Bounds of pieces: rounds of one epoch that become known at one look.
    epoch : int64 array, shape (P,)
        Epoch of each piece.
    first_piece : int64 array, shape (E + 1,)
        First piece that becomes known at each look; from the last one on never.
    """

    starts: NDArray[np.int64]
    at: FloatArray
    cuts: NDArray[np.int64]
    epoch: NDArray[np.int64]
    first_piece: NDArray[np.int64]

    @classmethod
    def of(cls, rounds: LoggedRounds, run: ReplayRun) -> "_Plan":
        time, total = rounds.time, rounds.rounds
        if run.update_every is not None:
            starts = np.arange(0, total, run.update_every, dtype=np.int64)
            at = np.array(time[starts])
        else:
            assert run.update_seconds is not None  # noqa: S101 - one of them is given
            looks = int((time[-1] - time[0]) // run.update_seconds)
            at = time[0] + run.update_seconds * np.arange(looks + 1)
            starts = np.searchsorted(time, at, side="left").astype(np.int64)
            # Of looks without a round between them only the last one matters.
            kept = np.append(np.diff(starts) > 0, starts[-1] < total)
            kept[0] = True
            starts, at = starts[kept], at[kept]
            starts[0] = 0
        known = np.searchsorted(time, at - run.delay, side="right")
        known = np.minimum(known, starts).astype(np.int64)
        known[0] = 0
        cuts = np.unique(np.concatenate([starts, known, [total]]))
        return cls(
            starts=starts,
            at=at,
            cuts=cuts,
            epoch=np.searchsorted(starts, cuts[:-1], side="right") - 1,
            # Pieces before known[e] are known by look e, the others are not yet.
            first_piece=np.searchsorted(
                cuts, np.concatenate([[0], known[:-1], known[-1:]]), side="left"
            ),
        )

    def rows(self, piece: int) -> tuple[int, int]:
        """Return the bounds of a piece's rounds."""
        return int(self.cuts[piece]), int(self.cuts[piece + 1])

    def blocks(self, cells: int) -> Iterator[tuple[int, int]]:
        """Yield bounds of looks whose sums are made together, within a few MB."""
        first, last_look = 1, len(self.starts)
        most = max(1, 8 * CHUNK // (_SUMS * cells))
        while first < last_look:
            row = self.cuts[self.first_piece[first]]
            last = first + 1
            while (
                last < last_look
                and self.cuts[self.first_piece[last + 1]] - row <= CHUNK
                and self.first_piece[last + 1] - self.first_piece[first] <= most
            ):
                last += 1
            yield first, last
            first = last


def _weighted_sums(
    rounds: LoggedRounds, run: ReplayRun, plan: _Plan, looks: tuple[int, int]
) -> FloatArray:
    """Return sums of 1/p, r/p and r^2/p by piece, segment and arm.

    Times the target's weights, which are constant within a piece, these are the sums of
    w, w r and w r^2. Discounted to the look at which the piece becomes known.

    Returns
    -------
    float64 array, shape (pieces, 3, S, K)
    """
    first, last = plan.first_piece[looks[0]], plan.first_piece[looks[1]]
    arms, segments = len(rounds.arms), _segments(rounds, run.policy)
    cells = arms * segments
    size = int(last - first) * cells
    sums = np.zeros((_SUMS, size))
    half_life = run.policy.half_life
    for start, stop in chunks(int(plan.cuts[last] - plan.cuts[first])):
        begin, end = plan.cuts[first] + start, plan.cuts[first] + stop
        rows = np.arange(begin, end)
        piece = np.searchsorted(plan.cuts[first : last + 1], rows, side="right") - 1
        key = piece * cells + rounds.arm[begin:end]
        if segments > 1:
            assert rounds.segment is not None  # noqa: S101 - checked before
            key += rounds.segment[begin:end] * arms
        share = 1.0 / rounds.propensity[begin:end]
        if half_life is not None:
            look = np.searchsorted(plan.first_piece, first + piece, side="right") - 1
            share *= 0.5 ** ((plan.at[look] - rounds.time[begin:end]) / half_life)
        reward = rounds.reward[begin:end]
        sums[0] += np.bincount(key, share, size)
        share = share * reward
        sums[1] += np.bincount(key, share, size)
        sums[2] += np.bincount(key, share * reward, size)
    return sums.reshape(_SUMS, -1, segments, arms).swapaxes(0, 1)


class _Keeper:
    """Keeps or rejects rounds, piece by piece in their order."""

    def __init__(self, rounds: LoggedRounds, run: ReplayRun) -> None:
        self._rounds = rounds
        self._half_life = run.policy.half_life
        self._segments = _segments(rounds, run.policy)
        self._rng = _generator(run)
        self._smallest = min(
            float(rounds.propensity[start:stop].min())
            for start, stop in chunks(rounds.rounds)
        )
        self.accepted = 0
        self._reward = 0.0

    @property
    def mean_reward(self) -> float | None:
        """Mean reward of the rounds kept so far."""
        return self._reward / self.accepted if self.accepted else None

    def sums(self, rows: tuple[int, int], weights: FloatArray, at: float) -> FloatArray:
        """Return units, rewards and squares of what is kept, shape (3, S, K)."""
        rounds, arms = self._rounds, weights.shape[1]
        total = np.zeros((_SUMS, weights.size))
        for start, stop in chunks(rows[1] - rows[0]):
            part = slice(rows[0] + start, rows[0] + stop)
            key = rounds.arm[part].astype(np.int64)
            if self._segments > 1:
                assert rounds.segment is not None  # noqa: S101 - checked before
                key += rounds.segment[part] * np.int64(arms)
            chance = weights.ravel()[key] * (self._smallest / rounds.propensity[part])
            kept = self._rng.random(key.size) < chance
            key, reward = key[kept], rounds.reward[part][kept]
            self.accepted += key.size
            self._reward += float(reward.sum())
            worth = np.ones(key.size)
            if self._half_life is not None:
                age = at - rounds.time[part][kept]
                worth = 0.5 ** (age / self._half_life)
            total[0] += np.bincount(key, worth, weights.size)
            worth = worth * reward
            total[1] += np.bincount(key, worth, weights.size)
            total[2] += np.bincount(key, worth * reward, weights.size)
        return total.reshape(_SUMS, *weights.shape)


class _Learner:
    """What a policy has learned so far, and the weights that it asks for."""

    def __init__(self, rounds: LoggedRounds, run: ReplayRun) -> None:
        self._run = run
        self.segments = _segments(rounds, run.policy)
        self._rng = _generator(run)
        arms = np.arange(len(rounds.arms))
        self._ruled: NDArray[np.int64] | slice = slice(None)
        if run.control is not None:
            self._ruled = arms[arms != run.control]
        self._sums = np.zeros((_SUMS, self.segments, arms.size))
        self._at = float(rounds.time[0])

    def age_to(self, at: float) -> None:
        """Discount all that is known to a later time."""
        half_life = self._run.policy.half_life
        if half_life is not None:
            self._sums *= 0.5 ** ((at - self._at) / half_life)
        self._at = at

    def add(self, sums: FloatArray) -> None:
        """Take in sums of shape (3, S, K), discounted to the present."""
        self._sums += sums

    def has_enough(self) -> bool:
        """Whether every arm that the policy rules has its minimum of units."""
        if not self._run.minimum_units:
            return True
        units = self._sums[0].sum(axis=0)[self._ruled]
        return bool((units >= self._run.minimum_units).all())

    def statistics(self) -> ArmStatistics:
        """Return what is known of the arms that the policy rules."""
        units, rewards, squares = self._sums[:, :, self._ruled]
        if not self._run.policy.segmented:
            units, rewards, squares = units[0], rewards[0], squares[0]
        return ArmStatistics(
            units=units,
            reward_sum=rewards,
            reward_sum_squares=squares,
            lower_is_better=self._run.lower_is_better,
        )

    def decide(self) -> FloatArray:
        """Return the weights in force from now on, shape (S, K)."""
        run = self._run
        asked = np.atleast_2d(run.policy.allocate(self.statistics(), self._rng))
        return np.array(
            [
                allocate_with_floor(
                    row,
                    floor=run.floor,
                    control=run.control,
                    control_share=run.control_share,
                )
                for row in asked
            ]
        )


def _generator(run: ReplayRun) -> np.random.Generator:
    # The run carries its seed, so that it draws alike in whatever process it runs.
    return np.random.default_rng(run.seed)  # noqa: TID251


def _segments(rounds: LoggedRounds, policy: Policy) -> int:
    return len(rounds.segments) if policy.segmented and rounds.segments else 1


def _check_fit(rounds: LoggedRounds, run: ReplayRun) -> None:
    if run.policy.segmented and rounds.segment is None:
        raise ValueError(
            f"policy {run.label!r} gives each segment its own weights, and the log has "
            "no segments"
        )
    arms = len(rounds.arms)
    if run.control is not None and not 0 <= run.control < arms:
        raise ValueError(
            f"control is {run.control}; of {arms} arms it must be one of 0 to "
            f"{arms - 1}"
        )
    if "mean" in run.policy.reward_kinds:
        return
    for start, stop in chunks(rounds.rounds):
        reward = rounds.reward[start:stop]
        good = (reward == 0) | (reward == 1)
        if not good.all():
            row = start + int(np.argmin(good))
            raise ValueError(
                f"reward of row {row} is {rounds.reward[row]}; policy {run.label!r} "
                "learns from rewards of 0 or 1"
            )
