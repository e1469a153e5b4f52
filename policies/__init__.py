"""Policies by name: the registry, and the one way to build an entry of it.

Policies share out traffic between the arms of a bandit. NumPy and SciPy only.
"""

import reprlib
from collections.abc import Mapping
from inspect import signature

from policies.allocation import allocate_with_floor
from policies.base import ArmStatistics, Policy
from policies.discounted_thompson import DiscountedThompson
from policies.epsilon_greedy import EpsilonGreedy
from policies.fixed import Fixed
from policies.gaussian_thompson import GaussianThompson
from policies.segmented_thompson import SegmentedThompson
from policies.thompson import Thompson
from policies.top_two_thompson import TopTwoThompson
from policies.uniform import Uniform

__all__ = [
    "POLICIES",
    "ArmStatistics",
    "Policy",
    "allocate_with_floor",
    "build_policy",
]

POLICIES: dict[str, type[Policy]] = {
    "fixed": Fixed,
    "uniform": Uniform,
    "epsilon_greedy": EpsilonGreedy,
    "thompson": Thompson,
    "gaussian_thompson": GaussianThompson,
    "top_two_thompson": TopTwoThompson,
    "discounted_thompson": DiscountedThompson,
    "segmented_thompson": SegmentedThompson,
}


def build_policy(name: str, parameters: Mapping[str, object]) -> Policy:
    """Build a policy from its name and parameters; those left out have defaults.

    Raises
    ------
    ValueError
        When the name or a parameter is unknown, or a value breaks its rule; names the
        thing, its value and what is allowed.
    """
    if name not in POLICIES:
        raise ValueError(
            f"policy is {reprlib.repr(name)}; known policies: {', '.join(POLICIES)}"
        )
    kind = POLICIES[name]
    known = signature(kind).parameters
    for parameter in parameters:
        if parameter not in known:
            raise ValueError(
                f"policy {name!r} has no parameter {reprlib.repr(parameter)}; it has: "
                f"{', '.join(known) or 'none'}"
            )
    try:
        return kind(**parameters)
    except ValueError as error:
        raise ValueError(f"policy {name!r}: {error}") from error
