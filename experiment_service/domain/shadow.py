"""Shadow: a version whose answers are computed beside those of its model, never shown.

Which requests it gets is decided by a hash of the unit, so a unit is in it or not for as
long as it lasts, and a larger share adds units to those that are in it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeGuard

from experiment_service.domain.assignment import uniform
from experiment_service.errors import InvalidRequest, known


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowRule:
    """What decides on a shadow once it has given so many answers.

    It becomes live when every threshold is kept, and is rejected when one is not.

    Attributes
    ----------
    answers : int
        How many are waited for.
    overlap : float
        Least mean share of the items that both lists have.
    errors : float
        Largest share of answers that failed.
    coverage : float
        Least share of answers from its own lists for the unit or item.
    milliseconds : float or None
        Largest 95th percentile of the time to make an answer; None for any.

    Raises
    ------
    InvalidRequest
        When a value is out of its range.
    """

    answers: int
    overlap: float = 0.0
    errors: float = 0.0
    coverage: float = 0.0
    milliseconds: float | None = None

    def __post_init__(self) -> None:
        _check_answers(self.answers)
        for name in ("overlap", "errors", "coverage"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise InvalidRequest(
                    f"{name} is {value!r}; it must be a share from 0 to 1", field=name
                )
        limit = self.milliseconds
        if limit is not None and (not _is_number(limit) or limit <= 0):
            raise InvalidRequest(
                f"milliseconds is {limit!r}; it must be a number above 0",
                field="milliseconds",
            )

    def document(self) -> dict[str, Any]:
        """Write the rule as a JSON document."""
        return asdict(self)

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> "ShadowRule":
        """Read a rule.

        Raises
        ------
        InvalidRequest
            Names what is missing, unknown or out of range.
        """
        names = [each.name for each in fields(cls)]
        for name in document:
            if name not in names:
                raise InvalidRequest(
                    f"{str(name)[:80]!r} is not part of a rule; known: {known(names)}",
                    field="rule",
                )
        if "answers" not in document:
            raise InvalidRequest("answers is missing from the rule", field="answers")
        return cls(**document)


def _check_answers(answers: object) -> None:
    if not _is_number(answers) or answers % 1 or not 1 <= answers <= 10**9:
        raise InvalidRequest(
            f"answers is {answers!r}; it must be a whole number from 1 to 1000000000",
            field="answers",
        )


def check_share(share: object) -> float:
    """Return the share of units that a shadow gets.

    Raises
    ------
    InvalidRequest
        Unless it is above 0 and at most 1.
    """
    if not _is_number(share) or not 0 < share <= 1:
        raise InvalidRequest(
            f"share is {share!r}; it must be a number above 0 and at most 1",
            field="share",
        )
    return float(share)


def in_shadow(label: str, share: float, unit_id: str) -> bool:
    """Whether the requests of a unit go to the shadow of a label such as ``als/4``."""
    return uniform(f"shadow:{label}", unit_id) < share


def _is_number(value: object) -> TypeGuard[float]:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )
