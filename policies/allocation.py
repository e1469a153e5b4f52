"""From a policy's weights to the weights in force: the floor and the control share.

Both are outside the policy, so every arm's propensity is known and bounded below
whatever the policy thinks of it.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from policies.base import FloatArray, check_weights


def allocate_with_floor(
    weights: ArrayLike,
    *,
    floor: float,
    control: int | None = None,
    control_share: float = 0.0,
) -> FloatArray:
    """Mix a policy's weights with a floor, beside a control of fixed share if any.

    Each arm that the policy rules gets ``f + (1 - s - n f) w``. The mixture holds the
    floor exactly; weights clipped at the floor and then divided by their sum do not.

    Parameters
    ----------
    weights : array_like, shape (n,)
        w, the policy's weights of the n arms that it rules, >= 0, sum 1 within 1e-9.
        With a control share these are all arms but the control, in their order.
    floor : float, 0 to 1/n
        f, the smallest weight of an arm that the policy rules.
    control : int, 0 to n, or None
        Index of the control among all n + 1 arms; None when there is no control share.
    control_share : float, 0 to 1
        s, the weight of the control; 0 when the policy rules all arms.

    Returns
    -------
    float64 array, shape (n,) or (n + 1,)
        Weights of all arms; the sum is as near to 1 as that of `weights`.

    Raises
    ------
    ValueError
        If an argument is out of its range, floor and control share together take more
        than 1, or only one of control and control share is given.
    """
    policy_weights = np.asarray(weights, dtype=np.float64)
    check_weights("weights", policy_weights)
    if (control is None) != (control_share == 0):
        raise ValueError(
            f"control is {control} and control_share is {control_share:g}; a control "
            "has a share above 0, and a share needs a control"
        )
    ruled = policy_weights.size
    reserved = _reserved(ruled, floor, control_share)
    mixed: FloatArray = floor + (1 - reserved) * policy_weights
    if control is None:
        return mixed
    if not 0 <= control <= ruled:
        raise ValueError(
            f"control is {control}; of {ruled + 1} arms it must be one of 0 to {ruled}"
        )
    return np.insert(mixed, control, control_share)


def _reserved(ruled: int, floor: float, control_share: float) -> float:
    """Return the share that is not the policy's to give."""
    for name, value in (("floor", floor), ("control_share", control_share)):
        if not math.isfinite(value) or not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it must lie in 0 to 1")
    reserved = control_share + ruled * floor
    if reserved > 1:
        beside = (
            f" beside a control_share of {control_share:g}" if control_share else ""
        )
        raise ValueError(
            f"floor is {floor:g} for {ruled} arms{beside}; it must be at most "
            f"{(1 - control_share) / ruled:g}, or together they take more than 1"
        )
    return reserved
