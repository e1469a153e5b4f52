"""Reward model: what each arm would have earned in each round, from means of the log.

Means per arm and cell (segment and position), pulled towards the arm's mean and that
towards the mean of all; cross-fitted, so that no unit predicts itself. Simple enough
that its own sampling error can be written down, which direct values need.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.base import FloatArray, check_number
from policies.logged import CHUNK, IntArray, LoggedRounds, add_to_units, chunks
from policies.target import Target


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RewardModel:
    """Predicted rewards per fold, cell and arm.

    Attributes
    ----------
    cell : float64 array, shape (F, C, K)
        Prediction for arm k in cell c, for rounds of fold f; from the other folds.
    arm : float64 array, shape (F, K)
        Mean of each arm, pulled towards `overall`; what `cell` is pulled towards.
    overall : float64 array, shape (F,)
        Mean of all rounds of the other folds.
    cell_rounds : float64 array, shape (F, C, K), or None
        Rounds behind each mean. None: the predictions do not come from the log, so
        they add no sampling error.
    prior_rounds : float
        Rounds that each pull is worth.

    References
    ----------
    Dudik, M., Erhan, D., Langford, J. and Li, L. (2014). Doubly robust policy
    evaluation and optimization. Statistical Science 29, 485-511 (direct method).
    Chernozhukov, V. et al. (2018). Double/debiased machine learning. Econometrics
    Journal 21, definition 3.2 (cross-fitting).
    """

    cell: FloatArray
    arm: FloatArray
    overall: FloatArray
    cell_rounds: FloatArray | None
    prior_rounds: float

    @classmethod
    def known(cls, rewards: FloatArray) -> "RewardModel":
        """Return a model with rewards known from elsewhere, shape (C, K)."""
        cell = np.asarray(rewards, dtype=np.float64)[None]
        return cls(
            cell=cell,
            arm=cell.mean(axis=1),
            overall=cell.mean(axis=(1, 2)),
            cell_rounds=None,
            prior_rounds=1.0,
        )

    def check_fits(self, rounds: LoggedRounds) -> None:
        """Refuse a model of another shape than the log.

        Raises
        ------
        ValueError
            Names both shapes.
        """
        wanted = (count_cells(rounds), len(rounds.arms))
        if self.cell.shape[1:] != wanted:
            raise ValueError(
                f"the reward model has {self.cell.shape[1:]} cells and arms; the log "
                f"has {wanted}"
            )

    def sensitivity(self, use: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return how an average of predictions moves with each logged reward.

        Parameters
        ----------
        use : float64 array, shape (F, C, K)
            Weight of each prediction in the average.

        Returns
        -------
        slope, shift : float64 array, shape (F, C, K)
            A round of fold f, cell c and arm k with reward r adds ``slope r + shift``
            to the average's error: the first-order (delta method) effect of the row on
            the means that predict for the other folds.

        Notes
        -----
        With n rows and sum s behind it and m prior rounds, the mean of a cell is
        (s + m arm) / (n + m), so a row moves it by (r - mean) / (n + m), and by
        m / (n + m) of what it moves the arm's mean; the same again for the arm.
        """
        if self.cell_rounds is None:
            return np.zeros_like(use), np.zeros_like(use)
        m, n = self.prior_rounds, self.cell_rounds
        per_cell = use / (n + m)
        arm_rounds = n.sum(axis=1)
        per_arm = (m * per_cell).sum(axis=1) / (arm_rounds + m)
        per_row = (m * per_arm).sum(axis=1) / arm_rounds.sum(axis=1)
        slope = per_cell + per_arm[:, None, :] + per_row[:, None, None]
        shift = -(
            per_cell * self.cell
            + (per_arm * self.arm)[:, None, :]
            + (per_row * self.overall)[:, None, None]
        )
        # A row is behind the predictions of every fold but its own.
        return slope.sum(axis=0) - slope, shift.sum(axis=0) - shift


class ModelPart:
    """The model's part in an estimate, and in its error, while a log is read."""

    def __init__(
        self, rounds: LoggedRounds, target: Target, model: RewardModel
    ) -> None:
        self.rounds, self.target, self.model = rounds, target, model
        self.cells = model.cell.reshape(-1, len(rounds.arms))
        self.use = np.zeros_like(self.cells)
        # All arms of all rounds of a chunk are held at once.
        self.chunk = max(CHUNK * 4 // len(rounds.arms), 1)

    @classmethod
    def of(
        cls,
        rounds: LoggedRounds,
        target: Target | FloatArray,
        model: RewardModel | None,
    ) -> "ModelPart | None":
        """Return the part of a model that fits the log; None without a model."""
        if model is None:
            return None
        if not isinstance(target, Target):
            raise TypeError(
                "an estimator with a reward model needs a Target, the probabilities of "
                "all arms"
            )
        model.check_fits(rounds)
        return cls(rounds, target, model)

    def predict(self, start: int, stop: int, used: FloatArray) -> FloatArray:
        """Return q(target) - v q(arm) of each round, and note which q it used."""
        place = self._places(start, stop)
        arm = self.rounds.arm[start:stop]
        chances = self.target.probabilities(start, stop)
        rows = len(self.cells)
        for k in range(self.cells.shape[1]):
            share = np.broadcast_to(chances[:, k], place.shape)
            self.use[:, k] += np.bincount(place, weights=share, minlength=rows)
        flat = place * self.cells.shape[1] + arm
        taken = np.bincount(flat, weights=used, minlength=self.cells.size)
        self.use -= taken.reshape(self.cells.shape)
        predicted = self.cells[place]
        expected = (predicted * chances).sum(axis=1)
        return np.asarray(expected - used * predicted[np.arange(len(arm)), arm])

    def _places(self, start: int, stop: int) -> IntArray:
        folds, cells, _ = self.model.cell.shape
        return places(self.rounds, folds, cells, start, stop)

    def add_influence(self, influence: FloatArray, codes: IntArray | None) -> None:
        """Add what each logged reward moved through the means behind the model."""
        if self.model.cell_rounds is None:
            return
        use = self.use.reshape(self.model.cell.shape) / self.rounds.rounds
        slope, shift = (
            table.reshape(self.cells.shape) for table in self.model.sensitivity(use)
        )
        for start, stop in chunks(self.rounds.rounds):
            place = self._places(start, stop)
            arm = self.rounds.arm[start:stop]
            reward = self.rounds.reward[start:stop]
            moved = slope[place, arm] * reward + shift[place, arm]
            add_to_units(influence, codes, start, moved)


def fit_reward_model(
    rounds: LoggedRounds, *, folds: int = 5, prior_rounds: float = 10.0
) -> RewardModel:
    """Fit means of the reward per arm and cell, cross-fitted by unit.

    Parameters
    ----------
    rounds : LoggedRounds
        A cell is a segment and a position, as far as the log has them.
    folds : int, 2 to 100
        Units are spread over so many parts by a hash of their code.
    prior_rounds : float, 0.001 to 1e9
        Rounds that each pull towards the more general mean is worth.

    Raises
    ------
    ValueError
        If a parameter breaks its rule, or the log has too few units to leave rounds
        outside each fold.
    """
    check_number("folds", folds, low=2, high=100)
    prior = check_number("prior_rounds", prior_rounds, low=0.001, high=1e9)
    cells, arms = count_cells(rounds), len(rounds.arms)
    shape = (int(folds), cells, arms)
    size = int(np.prod(shape))
    n, s = np.zeros(size), np.zeros(size)
    for start, stop in chunks(rounds.rounds):
        place = (
            places(rounds, shape[0], cells, start, stop) * arms + rounds.arm[start:stop]
        )
        n += np.bincount(place, minlength=size)
        s += np.bincount(place, weights=rounds.reward[start:stop], minlength=size)
    n, s = n.reshape(shape), s.reshape(shape)
    n, s = n.sum(axis=0) - n, s.sum(axis=0) - s
    # Differences of sums: where no row is left, rounding must not leave a reward.
    s[n == 0] = 0
    rows = n.sum(axis=(1, 2))
    if not rows.all():
        raise ValueError(
            f"all units of the log fall in one of {folds} folds; cross-fitting needs "
            "more units"
        )
    overall = s.sum(axis=(1, 2)) / rows
    arm = (s.sum(axis=1) + prior * overall[:, None]) / (n.sum(axis=1) + prior)
    cell = (s + prior * arm[:, None, :]) / (n + prior)
    return RewardModel(
        cell=cell, arm=arm, overall=overall, cell_rounds=n, prior_rounds=prior
    )


def count_cells(rounds: LoggedRounds) -> int:
    """Return the number of cells: segments times positions."""
    positions = 1 if rounds.position is None else int(rounds.position.max())
    return max(len(rounds.segments), 1) * positions


def places(
    rounds: LoggedRounds, folds: int, cells: int, start: int, stop: int
) -> IntArray:
    """Return fold * cells + cell of rounds start to stop - 1."""
    segments = max(len(rounds.segments), 1)
    place = _folds(rounds, folds, start, stop) * segments
    if rounds.segment is not None:
        place += rounds.segment[start:stop]
    place *= cells // segments
    if rounds.position is not None:
        place += rounds.position[start:stop].astype(np.int64) - 1
    return place


def _folds(rounds: LoggedRounds, folds: int, start: int, stop: int) -> IntArray:
    """Return the fold of each round, the same for all rounds of a unit.

    By a hash (the finaliser of SplitMix64; Steele, Lea and Flood 2014), because codes
    may follow time or any other order.
    """
    codes: NDArray[np.uint64]
    if rounds.unit is None:
        codes = np.arange(start, stop, dtype=np.uint64)
    else:
        codes = rounds.unit[start:stop].astype(np.uint64)
    codes = codes + np.uint64(0x9E3779B97F4A7C15)
    codes = (codes ^ (codes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    codes = (codes ^ (codes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    codes ^= codes >> np.uint64(31)
    return (codes % np.uint64(folds)).astype(np.int64)
