"""Which policies to replay: names and parameters as people write them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from experiment_service.errors import InvalidRequest
from policies import POLICIES, Policy, build_policy

_COMMA = re.compile(r",(?![^\[]*\])")
_OUTSIDE = ("floor", "control_share")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChoice:
    """A policy to replay, and the floor and control share around it.

    Attributes
    ----------
    name : str
        Of the registry.
    parameters : mapping
        Those of the policy; what is left out has its default.
    floor, control_share : float, 0 to 1
        As in an experiment's declaration, outside the policy.

    Raises
    ------
    InvalidRequest
        When the policy is unknown or can't take its parameters.
    """

    name: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    floor: float = 0.0
    control_share: float = 0.0

    def __post_init__(self) -> None:
        for name in _OUTSIDE:
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 <= value <= 1
            ):
                raise InvalidRequest(
                    f"{name} of policy {self.name!r} is {value!r}; it must be a "
                    "number from 0 to 1"
                )
        try:
            build_policy(self.name, self.parameters)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error

    @property
    def label(self) -> str:
        """The choice as it is written: ``thompson:floor=0.05``."""
        outside = {name: getattr(self, name) for name in _OUTSIDE}
        given = {name: value for name, value in outside.items() if value}
        given |= dict(self.parameters)
        texts = (f"{name}={json.dumps(value)}" for name, value in given.items())
        return f"{self.name}:{','.join(texts)}" if given else self.name

    def build(self) -> Policy:
        """Return the policy itself."""
        return build_policy(self.name, self.parameters)


def parse_policy(text: str) -> PolicyChoice:
    """Read ``NAME`` or ``NAME:PARAMETER=VALUE,...``; values are JSON.

    Raises
    ------
    InvalidRequest
        Names the part that can't be read, or what the policy refuses.
    """
    name, _, rest = text.partition(":")
    parameters: dict[str, object] = {}
    for part in _COMMA.split(rest) if rest else ():
        parameter, equals, value = part.partition("=")
        if not parameter or not equals:
            raise InvalidRequest(
                f"policy {text!r} can't be read at {part!r}; write "
                f"NAME:PARAMETER=VALUE,... with a name of {', '.join(POLICIES)}"
            )
        if parameter in parameters:
            raise InvalidRequest(f"policy {text!r} names {parameter!r} twice")
        try:
            parameters[parameter] = json.loads(value)
        except json.JSONDecodeError:
            raise InvalidRequest(
                f"policy {text!r}: {parameter} is {value!r}; it must be a number, "
                'true, false, a "text" or a [list]'
            ) from None
    outside = {name: parameters.pop(name) for name in _OUTSIDE if name in parameters}
    return PolicyChoice(name=name, parameters=parameters, **outside)  # type: ignore[arg-type]
