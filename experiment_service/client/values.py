"""What the client gives back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

AttributeValue = str | int | float | bool


class RequestRefused(Exception):  # noqa: N818 - what happened, not only an error
    """The service will not answer this request, however often it comes.

    Attributes
    ----------
    status : int
        Of HTTP, 400 to 499.
    message : str
        A sentence that names the field, the value and the rule.
    field : str or None
        The offending field.
    """

    def __init__(self, status: int, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.field = field


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An item and where it came from: ``als``, ``als:related``, ..., ``fallback``."""

    item_id: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The variant of a unit.

    Attributes
    ----------
    served : bool
        Whether the service answered; if not, nothing is known and nothing is recorded.
    experiment, variant : str or None
        None outside of every experiment.
    epoch, propensity
        The weights in force and the variant's share; None outside.
    recommender : str or None
        Of the variant, or of the placement.
    settings : mapping
        Likewise.
    exposure_id : str or None
        Names the exposure in what the unit does next; None when it has none.
    exposure : mapping or None
        Asked for without an exposure: what `expose` sends once it is shown.
    """

    served: bool
    unit_id: str
    experiment: str | None = None
    variant: str | None = None
    epoch: int | None = None
    propensity: float | None = None
    recommender: str | None = None
    settings: Mapping[str, AttributeValue] = field(default_factory=dict)
    exposure_id: str | None = None
    exposure: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """A carousel; the attributes that `Assignment` has mean the same.

    Attributes
    ----------
    items : tuple of Item
        In order; the fallback's when `served` is False.
    model : str or None
        Name and version of what made the list.
    """

    served: bool
    unit_id: str
    placement: str
    items: tuple[Item, ...]
    experiment: str | None = None
    variant: str | None = None
    epoch: int | None = None
    propensity: float | None = None
    model: str | None = None
    settings: Mapping[str, AttributeValue] = field(default_factory=dict)
    exposure_id: str | None = None
    exposure: Mapping[str, Any] | None = None

    @property
    def item_ids(self) -> list[str]:
        """The items without their sources."""
        return [item.item_id for item in self.items]
