"""Which variant a unit gets: a pure function of salts, weights and the unit.

The steps are those of design section 4: override, layer segment, traffic gate,
targeting, variant. `tests/vectors/assignment.json` pins the arithmetic for other
languages; a change here breaks it, on purpose.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from experiment_service.domain.event import AttributeValue
from experiment_service.domain.experiment import (
    SEGMENTS,
    Epoch,
    Experiment,
    ExperimentKind,
)

_SEPARATOR = "\x1f"

# Of the 256 bits of a hash; a float holds 53.
_BITS_UNUSED = 256 - 53


class Step(StrEnum):
    """The step of assignment that decided."""

    OVERRIDE = "override"
    LAYER_SEGMENT = "layer_segment"
    TRAFFIC_GATE = "traffic_gate"
    TARGETING = "targeting"
    VARIANT = "variant"
    STICKY = "sticky"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Answer to "which variant for this unit", and which step decided it.

    Attributes
    ----------
    experiment : str
        Key of the experiment.
    variant : str or None
        None when the unit is not in the experiment.
    propensity : float or None
        Probability of that variant under the epoch's weights; None for an override
        and for a unit that is not in the experiment.
    epoch : int or None
        Epoch whose weights and salt were used.
    segment : str or None
        Segment whose weights were used, of a bandit that has segments.
    step : Step
        What decided.
    reason : str
        The same in words, with the numbers compared.
    """

    experiment: str
    variant: str | None
    propensity: float | None
    epoch: int | None
    segment: str | None = None
    step: Step
    reason: str

    @property
    def counted(self) -> bool:
        """Whether exposures of this assignment belong to the analysis."""
        return self.variant is not None and self.step is not Step.OVERRIDE


def uniform(salt: str, *parts: str) -> float:
    r"""Hash a salt and parts to a number in [0, 1).

    The first 53 bits (big-endian) of SHA-256 of the UTF-8 text
    ``salt \x1f part \x1f part ...``, divided by 2**53.
    """
    return _uniform(_SEPARATOR.join((salt, *parts)))


def _uniform(text: str) -> float:
    digest = hashlib.sha256(text.encode()).digest()
    return (int.from_bytes(digest, "big") >> _BITS_UNUSED) / 2**53


def layer_segment(salt: str, unit_id: str) -> int:
    """Return the unit's segment of the layer, 0 to 9,999."""
    return int(uniform(salt, unit_id) * SEGMENTS)


def epoch_salt(variant_salt: str, kind: ExperimentKind, epoch: int) -> str:
    """Return the salt that draws variants: one for life (A/B) or one per epoch.

    With one salt across the epochs of a bandit, a returning unit's variant would be a
    function of its own past and the epoch's weight would not be its propensity.
    """
    return f"{variant_salt}:{epoch}" if kind is ExperimentKind.BANDIT else variant_salt


def choose_variant(weights: Mapping[str, float], salt: str, unit_id: str) -> str:
    """Choose a variant by weighted rendezvous hashing.

    The score of variant v is ``-ln(u_v) / w_v`` with ``u_v = uniform(salt, unit, v)``,
    an exponential of rate w_v, so v has the smallest score with probability w_v. A
    growing weight only draws units to its own variant; weight 0 never wins.

    Parameters
    ----------
    weights : mapping of str to float
        At least one above 0; ties (of probability 2**-53) go to the smaller key.

    References
    ----------
    Thaler and Ravishankar 1998, "Using name-based mappings to increase hit rates";
    the weighted form as in Schindelhauer and Schomaker 2005.
    """
    scores = []
    prefix = f"{salt}{_SEPARATOR}{unit_id}{_SEPARATOR}"
    for variant, weight in weights.items():
        if weight > 0:
            u = _uniform(prefix + variant)
            scores.append((-math.log(u) / weight if u else math.inf, variant))
    return min(scores)[1]


def assign(
    experiment: Experiment,
    epoch: Epoch,
    unit_id: str,
    attributes: Mapping[str, AttributeValue],
    *,
    first_epoch: Epoch | None = None,
) -> Assignment:
    """Assign a unit.

    Parameters
    ----------
    epoch : Epoch
        The epoch in force.
    attributes : mapping
        What targeting and segments look at.
    first_epoch : Epoch, optional
        In mode sticky, the epoch of the unit's first exposure: the unit keeps that
        epoch, its draw and its propensity.
    """
    declaration = experiment.declaration
    if unit_id in declaration.overrides:
        return Assignment(
            experiment=declaration.key,
            variant=declaration.overrides[unit_id],
            propensity=None,
            epoch=epoch.number,
            step=Step.OVERRIDE,
            reason="an override names this unit; it is not counted in the analysis",
        )
    # Each hash costs as much as the rest of a step: none where all units pass.
    start, end = declaration.segments
    if end - start < SEGMENTS:
        place = layer_segment(experiment.layer_salt, unit_id)
        if not start <= place < end:
            return _outside(
                experiment,
                Step.LAYER_SEGMENT,
                f"segment {place} of layer {declaration.layer!r} is outside {start} to "
                f"{end - 1}",
            )
    if declaration.traffic_share < 1:
        gate = uniform(experiment.traffic_salt, unit_id)
        if gate >= declaration.traffic_share:
            return _outside(
                experiment,
                Step.TRAFFIC_GATE,
                f"gate value {gate:.6f} is not below the traffic share "
                f"{declaration.traffic_share:g}",
            )
    for rule in declaration.targeting:
        if not rule.accepts(attributes):
            return _outside(
                experiment,
                Step.TARGETING,
                f"attribute {rule.attribute!r} is {attributes.get(rule.attribute)!r}, "
                f"not {rule.operator} {list(rule.values)}",
            )
    drawn = first_epoch or epoch
    salt = epoch_salt(experiment.variant_salt, declaration.kind, drawn.number)
    policy, segment = declaration.policy, None
    if policy is not None and policy.segment_by is not None:
        segment = policy.segment_by.of(attributes)
    weights = drawn.weights if segment is None else drawn.weights_of(segment)
    variant = choose_variant(weights, salt, unit_id)
    step = Step.STICKY if first_epoch else Step.VARIANT
    return _drawn(
        declaration.key,
        variant,
        weights[variant],
        drawn.number,
        segment=segment,
        step=step,
    )


def _outside(experiment: Experiment, step: Step, reason: str) -> Assignment:
    return Assignment(
        experiment=experiment.key,
        variant=None,
        propensity=None,
        epoch=None,
        step=step,
        reason=reason,
    )


# All units that draw the same variant get the same answer. Typed: weights 1 and 1.0 are
# written differently.
@lru_cache(maxsize=4096, typed=True)
def _drawn(
    experiment: str,
    variant: str,
    weight: float,
    epoch: int,
    *,
    segment: str | None,
    step: Step,
) -> Assignment:
    return Assignment(
        experiment=experiment,
        variant=variant,
        propensity=weight,
        epoch=epoch,
        segment=segment,
        step=step,
        reason=f"drawn with weight {weight:g} in epoch {epoch}"
        + (f", segment {segment!r}" if segment is not None else "")
        + (", the epoch of its first exposure" if step is Step.STICKY else ""),
    )
