"""Off-policy evaluation: what a policy would have earned on a log of another one.

One estimator is one function that gives `Scores`; a value with its interval, and the
difference of two policies on the same log, follow from scores alone. Memory beside the
log: 16 bytes per unit while it is read, 24 more when rounds share units; 8 in the end.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from policies.base import FloatArray, check_number
from policies.logged import CHUNK, IntArray, LoggedRounds, add_to_units, chunks
from policies.overlap import WeightSums
from policies.reward_model import ModelPart, RewardModel
from policies.scores import Scores
from policies.target import Target, chances_of_logged

_Reweigh = Callable[[FloatArray], FloatArray]


def logged_value(rounds: LoggedRounds) -> Scores:
    """Return the mean reward of the log itself: the policies that wrote it."""
    return _score(rounds, rounds.propensity, "mean of the log")


def ips(rounds: LoggedRounds, target: Target | FloatArray) -> Scores:
    """Inverse propensity scores: the mean of w r, w = target / logged propensity.

    Unbiased whenever the log gave every arm of the target some probability; the widest
    of all.

    Parameters
    ----------
    rounds : LoggedRounds
    target : Target, or float64 array of shape (T,)
        The array: the target's probability of the logged arm of each round.

    Returns
    -------
    Scores
        Per round.

    Raises
    ------
    ValueError
        If the target is not of this log, or a probability is not in 0 to 1; names the
        row.

    References
    ----------
    Horvitz, D. G. and Thompson, D. J. (1952). JASA 47, 663-685.
    """
    return _score(rounds, target, "ips")


def clipped_ips(
    rounds: LoggedRounds, target: Target | FloatArray, *, clip: float
) -> Scores:
    """Inverse propensity scores with weights cut at `clip`: less noise, some bias.

    With rewards >= 0 the bias is downward.

    Parameters
    ----------
    clip : float, > 0
        The largest weight; others as for `ips`.

    References
    ----------
    Ionides, E. L. (2008). Truncated importance sampling. Journal of Computational and
    Graphical Statistics 17, 295-311.
    """
    limit = check_number("clip", clip, low=math.ulp(0), high=math.inf)
    return _score(
        rounds,
        target,
        f"clipped_ips(clip={limit:g})",
        reweigh=lambda w: np.minimum(w, limit),
    )


def snips(rounds: LoggedRounds, target: Target | FloatArray) -> Scores:
    """Self-normalised: sum of w r over sum of w.

    Does not move when a constant is added to all rewards and stays within their range;
    its bias goes to 0 as the log grows. Parameters as for `ips`.

    Its error is that of a ratio: unit u adds (sum of w (r - estimate)) / sum of w.
    To divide each w r by the mean weight and then treat the rounds as independent, as
    if the mean were known, gives the wrong interval.

    References
    ----------
    Swaminathan, A. and Joachims, T. (2015). The self-normalized estimator for
    counterfactual learning. NeurIPS. The variance: Owen, A. B. (2013). Monte Carlo
    theory, methods and examples, section 9.2.
    """
    return _score(rounds, target, "snips", over="weights")


def item_position(rounds: LoggedRounds, target: Target | FloatArray) -> Scores:
    """Value of a carousel: per slate the sum over positions of w r.

    The weight of a row is that of its own item at its own position, so a slate of three
    items needs no ratio of probabilities of whole slates. Unbiased when what an item
    earns depends on the item and its position, not on the other items.

    Parameters
    ----------
    rounds : LoggedRounds
        Rows of one slate at positions 1, 2, ..., none left out; the unit is the slate
        or the shopper, who may have several slates.
    target : Target, or float64 array of shape (T,)
        Probability of the item at that position, as the propensities of the log.

    Returns
    -------
    Scores
        Per slate; slates are counted by their rows at position 1.

    Raises
    ------
    ValueError
        If the log has no positions or no units, or a unit has no row at position 1.

    References
    ----------
    Li, S., Abbasi-Yadkori, Y., Kveton, B., Muthukrishnan, S., Vinay, V. and Wen, Z.
    (2018). Offline evaluation of ranking policies with click models. KDD (item-position).
    McInerney, J. et al. (2020). Counterfactual evaluation of slate recommendations
    with sequential reward interactions. KDD (independent IPS).
    """
    if rounds.position is None or rounds.unit is None:
        raise ValueError(
            "item_position needs position and unit of each row; without the slate (or "
            "shopper) its rows would pass for independent"
        )
    return _score(rounds, target, "item_position", over="slates")


def direct_method(
    rounds: LoggedRounds, target: Target, *, model: RewardModel
) -> Scores:
    """Mean of the rewards that a model predicts for the target; no weights at all.

    As right as the model: the interval covers sampling error (of the rounds and, to
    first order, of the means behind the model) but not what the model leaves out, such
    as the pull of its prior, or a cause that moved both choice and reward within a
    cell.

    Parameters
    ----------
    rounds : LoggedRounds
    target : Target
        Probabilities of all arms.
    model : RewardModel
        Of this log.

    References
    ----------
    Dudik, M., Erhan, D., Langford, J. and Li, L. (2014). Doubly robust policy
    evaluation and optimization. Statistical Science 29, 485-511 (direct method).
    """
    return _score(
        rounds,
        target,
        "direct_method",
        reweigh=np.zeros_like,
        model=model,
        leans_on_model=True,
    )


def doubly_robust(
    rounds: LoggedRounds, target: Target, *, model: RewardModel
) -> Scores:
    """Model plus the weighted error of the model where the log can tell.

    Unbiased like `ips` whatever the model, because no unit is predicted from itself;
    narrower the better the model is. Parameters as for `direct_method`.

    References
    ----------
    Dudik, M. et al. (2014), as for `direct_method` (doubly robust).
    """
    return _score(rounds, target, "doubly_robust", model=model)


def switch_dr(
    rounds: LoggedRounds, target: Target, *, model: RewardModel, tau: float
) -> Scores:
    """Doubly robust where the weight is at most `tau`, the model alone elsewhere.

    tau = 0 is `direct_method`, infinite tau `doubly_robust`.

    Parameters
    ----------
    tau : float, >= 0
        Largest weight that is used; others as for `direct_method`.

    References
    ----------
    Wang, Y.-X., Agarwal, A. and Dudik, M. (2017). Optimal and adaptive off-policy
    evaluation in contextual bandits. ICML (SWITCH with a doubly
    robust part).
    """
    limit = check_number("tau", tau, low=0, high=math.inf)
    return _score(
        rounds,
        target,
        f"switch_dr(tau={limit:g})",
        reweigh=lambda w: np.where(w <= limit, w, 0.0),
        model=model,
        leans_on_model=True,
    )


def dr_shrinkage(
    rounds: LoggedRounds, target: Target, *, model: RewardModel, shrinkage: float
) -> Scores:
    """Doubly robust with optimistically shrunk weights, lambda w / (w^2 + lambda).

    lambda = 0 is `direct_method`, infinite lambda `doubly_robust`.

    Parameters
    ----------
    shrinkage : float, >= 0
        The lambda of the paper: weights well below its square root stay as they are.
        Others as for `direct_method`.

    References
    ----------
    Su, Y., Dimakopoulou, M., Krishnamurthy, A. and Dudik, M. (2020). Doubly robust
    off-policy evaluation with shrinkage. ICML (optimistic shrinkage).
    """
    limit = check_number("shrinkage", shrinkage, low=0, high=math.inf)

    def shrink(w: FloatArray) -> FloatArray:
        if math.isinf(limit):
            return w
        return limit * w / (w * w + limit) if limit else np.zeros_like(w)

    return _score(
        rounds,
        target,
        f"dr_shrinkage(shrinkage={limit:g})",
        reweigh=shrink,
        model=model,
        leans_on_model=True,
    )


def _score(
    rounds: LoggedRounds,
    target: Target | FloatArray,
    method: str,
    *,
    reweigh: _Reweigh = lambda w: w,
    model: RewardModel | None = None,
    leans_on_model: bool = False,
    over: Literal["rounds", "weights", "slates"] = "rounds",
) -> Scores:
    """Return the scores of sum(q(target) + v (r - q(arm))) / sum(denominator).

    v is the weight as `reweigh` leaves it and q the model, 0 without one; every
    estimator here is a choice of these and of the denominator.
    """
    given = chances_of_logged(rounds, target)
    codes, counts = _units(rounds)
    numerator, denominator = (
        np.zeros(rounds.rounds if counts is None else len(counts)) for _ in range(2)
    )
    weights = WeightSums(counts, rounds.rounds)
    part = ModelPart.of(rounds, target, model)
    for start, stop in chunks(rounds.rounds, part.chunk if part else CHUNK):
        propensity = rounds.propensity[start:stop]
        raw = given(start, stop) / propensity
        used = reweigh(raw)
        weights.add(raw, used, propensity, None if codes is None else codes[start:stop])
        top = used * rounds.reward[start:stop]
        if part is not None:
            top += part.predict(start, stop, used)
        add_to_units(numerator, codes, start, top)
        add_to_units(denominator, codes, start, _denominator(rounds, over, start, used))
    if over == "slates":
        _check_slates(rounds, denominator, codes, counts)
    total = float(denominator.sum())
    estimate = float(numerator.sum()) / total if total > 0 else math.nan
    denominator *= estimate
    numerator -= denominator
    numerator /= total if total > 0 else 1.0
    if part is not None:
        part.add_influence(numerator, codes)
        _centre(numerator, counts)
    return Scores(
        estimate=estimate,
        influence=numerator,
        units=rounds.rounds if counts is None else int(np.count_nonzero(counts)),
        rounds=rounds.rounds,
        method=method,
        per="slate" if over == "slates" else "round",
        overlap=weights.overlap(leans_on_model=leans_on_model),
    )


def _denominator(
    rounds: LoggedRounds, over: str, start: int, used: FloatArray
) -> FloatArray:
    """Return what each round adds to the denominator."""
    if over == "weights":
        return used
    if over == "slates" and rounds.position is not None:
        first = rounds.position[start : start + len(used)] == 1
        return np.asarray(first, dtype=np.float64)
    return np.ones(len(used))


def _units(rounds: LoggedRounds) -> tuple[IntArray | None, IntArray | None]:
    """Return a code per round and the rounds per code; None for both without units.

    Codes far beyond the number of rounds are replaced by their ranks.
    """
    codes = rounds.unit
    if codes is None:
        return None, None
    if codes.min() < 0 or codes.max() > 2 * rounds.rounds:
        _, codes = np.unique(codes, return_inverse=True)
    counts = np.zeros(int(codes.max()) + 1, dtype=np.int64)
    for start, stop in chunks(rounds.rounds):
        np.add.at(counts, codes[start:stop], 1)
    return codes, counts


def _centre(influence: FloatArray, counts: IntArray | None) -> None:
    """Take the mean over the units that are in the log away from each of them."""
    if counts is None:
        influence -= influence.mean()
    else:
        here = counts > 0
        influence[here] -= influence[here].mean()


def _check_slates(
    rounds: LoggedRounds,
    slates: FloatArray,
    codes: IntArray | None,
    counts: IntArray | None,
) -> None:
    """Refuse units that have rows but no row at position 1."""
    if counts is None or codes is None or rounds.unit is None:
        return
    missing = np.flatnonzero((slates == 0) & (counts > 0))
    if missing.size:
        row = int(np.argmax(codes == missing[0]))
        raise ValueError(
            f"unit of row {row}, {rounds.unit[row].item()}, has rows but none at "
            "position 1; slates are counted by their first position"
        )
