"""Sample ratio mismatch at any look: a test that may be watched, under moving weights."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

from experiment_service.analysis.health import HealthCheck, check_epochs, graded

#: By how much a variant's share may be off: chances times one of these, and renormed.
_FACTORS = np.array([0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998])
FACTORS: NDArray[np.float64] = np.concatenate([_FACTORS, 1 / _FACTORS[::-1]])
#: Units that the guess "the chances are the weights" is worth, for shares that are off
#: in any way: the fewer, the farther off they may be.
CONCENTRATIONS = (100.0, 10_000.0)


def sequential_srm(
    counts: Sequence[Mapping[str, float]],
    weights: Sequence[Mapping[str, float]],
    *,
    failed_below: float = 0.01,
    warning_below: float = 0.05,
) -> HealthCheck:
    """Compare units with weights by a p-value that holds at every look at once.

    Two kinds of alternatives, half of the mixture each. Shares that are off in any way:
    for each allocation a Dirichlet prior around its weights, at two concentrations. And
    one variant that is off by a factor c throughout, so that a unit lands in it with
    chance c w / (1 + (c - 1) w): that adds up over epochs however short they are, where
    the former starts anew with each allocation. Given the weights in force when it is
    drawn, a unit multiplies the likelihood ratio of each alternative by something with
    mean 1, whatever moved the weights; so the mean over all is a martingale that starts
    at 1, and its inverse a p-value at every look (Ville).

    Parameters
    ----------
    counts, weights : sequence of mapping of str to float
        As for `srm`.
    failed_below, warning_below : float
        Bounds for the p-value, over all looks together: that of `srm` at 0.001 fails
        about as often without cause when it is watched for 20 looks
        (docs/calibration.md).

    Returns
    -------
    HealthCheck
        Its value is the p-value, 1 without evidence. Not enough data before the first
        unit, or when a single variant ever had a choice.

    Raises
    ------
    ValueError
        As `srm`.

    References
    ----------
    Lindon and Malek (2022), Anytime-valid inference for multinomial count data, NeurIPS
    (the Dirichlet mixture, for one null that does not move).
    """
    check_epochs(counts, weights)
    variants = sorted({name for row in weights for name, w in row.items() if w > 0})
    n = np.array([[row.get(name, 0.0) for name in variants] for row in counts])
    w = np.array([[row.get(name, 0.0) for name in variants] for row in weights])
    # Units of a variant of weight 0 are a leak; that is another check.
    n = np.where(w > 0, n, 0.0).reshape(len(counts), len(variants))
    if n.sum() == 0 or len(variants) < 2:
        return HealthCheck(
            name="sequential_srm",
            status="not_enough_data",
            value=None,
            threshold=failed_below,
            message="No units yet in an epoch with two variants.",
        )
    w /= w.sum(axis=1, keepdims=True)
    units = n.sum(axis=1)
    # Shape (variants, factors).
    ratios = n.sum(axis=0)[:, None] * np.log(FACTORS)
    ratios -= np.einsum(
        "e,evc->vc", units, np.log1p((FACTORS - 1) * w[:, :, np.newaxis])
    )
    tilted = float(special.logsumexp(ratios)) - math.log(ratios.size)
    evidence = float(np.logaddexp(tilted, _dirichlet_evidence(n, w))) - math.log(2)
    p_value = math.exp(-max(evidence, 0.0))
    worst = int(ratios.max(axis=1).argmax())
    expected = float(units @ w[:, worst])
    off = float(n[:, worst].sum()) / expected - 1
    return graded(
        "sequential_srm",
        p_value,
        "failed"
        if p_value < failed_below
        else "warning"
        if p_value < warning_below
        else "ok",
        threshold=failed_below,
        found=f"Units against weights, at any look: p = {p_value:.2g}; "
        f"{variants[worst]!r} has {abs(off):.1%} {'more' if off > 0 else 'fewer'} units "
        "than its weights give.",
        causes="exposures lost or filtered in one variant only, a slower or failing variant, "
        "bots, or weights changed outside an epoch",
    )


def _dirichlet_evidence(n: NDArray[np.float64], w: NDArray[np.float64]) -> float:
    """Return the log likelihood ratio of the Dirichlet mixtures; (epochs, variants)."""
    allocations, place = np.unique(w, axis=0, return_inverse=True)
    pooled = np.zeros_like(allocations)
    np.add.at(pooled, place.ravel(), n)
    chance = allocations > 0
    null = np.log(np.where(chance, allocations, 1.0))
    evidence = []
    for concentration in CONCENTRATIONS:
        prior = np.where(chance, concentration * allocations, 1.0)
        each = special.gammaln(prior + pooled) - special.gammaln(prior)
        each = np.where(chance, each - pooled * null, 0.0)
        total = special.gammaln(concentration) - special.gammaln(
            concentration + pooled.sum(axis=1)
        )
        evidence.append(float(each.sum() + total.sum()))
    return float(special.logsumexp(evidence)) - math.log(len(evidence))
