"""Events: exposures and interactions, the rules they obey at the door, and their ids.

Every accepted event has a UUID whose order is its time partition: exposure ids are
UUIDv7 made here, interaction ids may be the client's. The module knows no storage.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from uuid import UUID

from experiment_service.errors import InvalidRequest, known

#: Kinds of interaction, with what each means. A new kind is one line here.
EVENT_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "viewed": "the carousel came into sight",
        "click": "an item of the carousel was opened",
        "add_to_cart": "an item was put into the cart",
        "purchase": "an item was bought",
        "dismiss": "an item or the carousel was hidden by the shopper",
    }
)

MAX_ID_LENGTH = 128
MAX_POSITION = 1000
MAX_VALUE = Decimal(10) ** 12
MAX_AGE = timedelta(days=30)
MAX_AHEAD = timedelta(minutes=5)

AttributeValue = str | int | float | bool

MAX_ATTRIBUTES = 50
MAX_ATTRIBUTE_LENGTH = 256

# C0 and C1 controls and lone surrogates: they break logs, hashes and UTF-8.
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

# The first 16 bits of a UUID mapped from a foreign id. As a UUIDv7 it would be a time
# after the year 8900, so such ids never fall into a time partition.
_FOREIGN_PREFIX = 0xFFFF
_UUID_DIGITS = 32


def check_id(name: str, value: str, *, max_length: int = MAX_ID_LENGTH) -> str:
    """Return an identifier that is fit to be hashed, logged and stored.

    Raises
    ------
    InvalidRequest
        When it is empty, too long, or holds a control character.
    """
    if not value or len(value) > max_length:
        raise InvalidRequest(
            f"{name} has {len(value)} characters; it must have 1 to {max_length}",
            field=name,
        )
    # What is printable holds none, and that is told faster.
    if not value.isprintable() and _FORBIDDEN.search(value):
        raise InvalidRequest(
            f"{name} {value[:40]!r} holds a control character; none is allowed",
            field=name,
        )
    return value


def check_attributes(
    name: str, attributes: Mapping[str, object]
) -> dict[str, AttributeValue]:
    """Return the attributes of a request, each a text, number or truth value.

    Raises
    ------
    InvalidRequest
        When there are too many, or one has a bad name, type or length.
    """
    if len(attributes) > MAX_ATTRIBUTES:
        raise InvalidRequest(
            f"{name} has {len(attributes)} entries; at most {MAX_ATTRIBUTES} are allowed",
            field=name,
        )
    checked: dict[str, AttributeValue] = {}
    for key, value in attributes.items():
        check_id(f"{name} key", key)
        if not isinstance(value, str | int | float | bool) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            raise InvalidRequest(
                f"{name}.{key} is {value!r:.60}; it must be a text, a finite number or "
                "a truth value",
                field=f"{name}.{key}",
            )
        if isinstance(value, str) and value:
            check_id(f"{name}.{key}", value, max_length=MAX_ATTRIBUTE_LENGTH)
        checked[key] = value
    return checked


def check_instant(name: str, value: datetime, *, now: datetime) -> datetime:
    """Return an event's time in UTC.

    Raises
    ------
    InvalidRequest
        When it has no time zone, is older than 30 days or over 5 minutes ahead.
    """
    if value.tzinfo is None:
        raise InvalidRequest(
            f"{name} {value.isoformat()} has no time zone; give one, such as "
            f"{value.isoformat()}Z",
            field=name,
        )
    if not now - MAX_AGE <= value <= now + MAX_AHEAD:
        raise InvalidRequest(
            f"{name} {value.isoformat()} is out of range; it must lie within the last "
            f"{MAX_AGE.days} days and at most {MAX_AHEAD.seconds // 60} minutes ahead",
            field=name,
        )
    return value.astimezone(UTC)


def event_uuid(event_id: str) -> UUID:
    """Map a client's event id to the UUID under which it is stored.

    A UUIDv7 is kept, so it lands in the partition of its time. Any other text becomes a
    UUIDv8 of 0xffff and 106 bits of SHA-256. Both are functions of the id alone, so a
    retry with another timestamp still meets its first copy.

    Raises
    ------
    InvalidRequest
        When the id is empty, too long or holds a control character.
    """
    check_id("id", event_id)
    parsed = _parsed(event_id)
    if parsed is not None and is_uuid7_of_time(parsed):
        return parsed
    digest = int.from_bytes(hashlib.sha256(event_id.encode()).digest()[:16], "big")
    value = (_FOREIGN_PREFIX << 112) | (digest & ((1 << 112) - 1))
    value = value & ~(0xF << 76) | (0x8 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    return UUID(int=value)


def _parsed(event_id: str) -> UUID | None:
    # Most ids are shorter than any UUID, and a failure costs more than all the rest.
    if len(event_id) < _UUID_DIGITS:
        return None
    try:
        return UUID(event_id)
    except ValueError:
        return None


def is_uuid7_of_time(parsed: UUID) -> bool:
    """Whether an id is a UUIDv7, and not of the years that foreign ids are mapped to."""
    number = parsed.int
    return (
        number >> 76 & 0xF == 0x7
        and number >> 62 & 0x3 == 0x2
        and number >> 112 != _FOREIGN_PREFIX
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """A carousel served to a unit.

    Attributes
    ----------
    id : UUID
        UUIDv7 made by the service.
    experiment_id, epoch, segment, variant, propensity
        The assignment that decided it; `propensity` in (0, 1].
    unit_id : str
        The shopper.
    model : str
        Model and version that made the list, such as ``als/3``.
    items, sources : tuple of str
        Items in order, and where each came from; equal lengths.
    fallback : bool
        Whether any item came from elsewhere than the variant's own model.
    context : mapping
        Attributes of the request.
    exposed_at : datetime
        UTC.
    """

    id: UUID
    experiment_id: int
    unit_id: str
    variant: str
    epoch: int
    propensity: float
    model: str
    items: tuple[str, ...]
    sources: tuple[str, ...]
    fallback: bool
    context: Mapping[str, AttributeValue]
    exposed_at: datetime
    segment: str | None = None

    def __post_init__(self) -> None:
        if len(self.items) != len(self.sources):
            raise InvalidRequest(
                f"exposure has {len(self.items)} items and {len(self.sources)} sources; "
                "each item has one source"
            )
        if not 0 < self.propensity <= 1:
            raise InvalidRequest(
                f"propensity is {self.propensity}; it must lie in (0, 1]"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """What a shopper did, on an exposure or by the unit alone.

    Attributes
    ----------
    id : UUID
        See `event_uuid`.
    exposure_id : UUID or None
        The exposure it belongs to.
    unit_id : str or None
        The shopper; may be left out when the exposure is named.
    kind : str
        One of `EVENT_KINDS`.
    item_id : str or None
    category : str or None
        Of the item, as the storefront names it; metrics may ask for it.
    placement : str or None
        Where it happened; where the exposure was shown when left out.
    position : int or None
        From 1.
    value : Decimal or None
        Money or another amount.
    occurred_at : datetime
        UTC.
    """

    id: UUID
    exposure_id: UUID | None
    unit_id: str | None
    kind: str
    item_id: str | None
    position: int | None
    value: Decimal | None
    occurred_at: datetime
    category: str | None = None
    placement: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in EVENT_KINDS:
            raise InvalidRequest(
                f"kind {self.kind[:40]!r} is not known; known kinds: {known(EVENT_KINDS)}",
                field="kind",
            )
        if self.exposure_id is None and self.unit_id is None:
            raise InvalidRequest(
                "exposure_id and unit_id are both missing; give at least one",
                field="exposure_id",
            )
        if self.unit_id is not None:
            check_id("unit_id", self.unit_id)
        if self.item_id is not None:
            check_id("item_id", self.item_id)
        if self.category is not None:
            check_id("category", self.category)
        if self.placement is not None:
            check_id("placement", self.placement)
        if self.position is not None and not 1 <= self.position <= MAX_POSITION:
            raise InvalidRequest(
                f"position is {self.position}; it must lie in 1 to {MAX_POSITION}",
                field="position",
            )
        if self.value is not None and not (
            self.value.is_finite() and abs(self.value) <= MAX_VALUE
        ):
            raise InvalidRequest(
                f"value is {self.value}; it must be finite and at most {MAX_VALUE:.0e}",
                field="value",
            )
