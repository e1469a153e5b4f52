"""Segments of units: which of a bandit's weight tables a unit draws from.

A segment is a combination of declared values of the request's attributes, so it is
known before the draw and the propensity within it is exact. Not to be mixed up with the
10,000 segments of a layer, which separate experiments.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from experiment_service.domain.event import AttributeValue, check_id
from experiment_service.errors import InvalidRequest, known

#: Part of the name of a segment whose attribute has no declared value, or is missing.
OTHER = "other"
#: Between the parts of a segment's name.
SEPARATOR = " / "
MAX_SEGMENTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """Attributes and the values that segments are made of.

    Attributes
    ----------
    by : mapping of str to tuple
        Values by attribute, each as in requests: texts, numbers or truth values. What
        has none of them is ``other``. In the order of their names.

    Raises
    ------
    InvalidRequest
        When there is no attribute, an attribute has no value or one twice, a value
        reads like another or like ``other``, or there are over 200 segments.
    """

    by: Mapping[str, tuple[AttributeValue, ...]]

    def __post_init__(self) -> None:
        if not self.by:
            raise _refuse("policy.segment_by", "is empty; name at least one attribute")
        # Stored as JSON, which keeps no order, and the names depend on it.
        object.__setattr__(self, "by", dict(sorted(self.by.items())))
        for attribute, values in self.by.items():
            check_id("policy.segment_by attribute", attribute)
            name = f"policy.segment_by.{attribute}"
            if not values:
                raise _refuse(name, "has no values; give at least one")
            parts = [_part(value) for value in values]
            for part in parts:
                if part == OTHER or SEPARATOR in part or not part.strip():
                    raise _refuse(
                        name,
                        f"has {part[:60]!r}; a value must have a text other than "
                        f"{OTHER!r} and without {SEPARATOR!r}",
                    )
                if parts.count(part) > 1:
                    raise _refuse(name, f"has {part[:60]!r} more than once")
        count = math.prod(len(values) + 1 for values in self.by.values())
        if count > MAX_SEGMENTS:
            raise _refuse(
                "policy.segment_by",
                f"makes {count:,} segments of {known(self.by)}; there may be "
                f"{MAX_SEGMENTS}, as each must learn",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every segment, such as ``mobile / dk`` and ``other / other``."""
        parts = [[*map(_part, values), OTHER] for values in self.by.values()]
        return tuple(SEPARATOR.join(each) for each in itertools.product(*parts))

    def of(self, attributes: Mapping[str, AttributeValue]) -> str:
        """Return the segment of a request."""
        parts = []
        for attribute, values in self.by.items():
            value = attributes.get(attribute)
            found = next((each for each in values if _same(each, value)), None)
            parts.append(OTHER if found is None else _part(found))
        return SEPARATOR.join(parts)


def _same(declared: AttributeValue, given: AttributeValue | None) -> bool:
    # 1 and true are equal in Python, and not here.
    return isinstance(declared, bool) == isinstance(given, bool) and declared == given


def _part(value: AttributeValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _refuse(name: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{name} {message}", field=name)
