"""Which items a business rule is for, and when it holds."""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from recommenders.instants import microseconds_of
from recommenders.interactions import Interactions


def chosen_items(
    what: str,
    interactions: Interactions,
    items: Sequence[str],
    categories: Sequence[str],
) -> NDArray[np.bool_]:
    """Return which items a rule is for, by id or category, shape (items,).

    Raises
    ------
    ValueError
        When it names a category, and there is no catalogue or no product of it has it.
    """
    chosen = np.zeros(len(interactions.items), dtype=bool)
    rows = interactions.items.rows(list(items))
    chosen[rows[rows >= 0]] = True
    if categories:
        catalogue = interactions.described(f"{what} by category")
        names = {name: code for code, name in enumerate(catalogue.category_names)}
        for category in categories:
            if category not in names:
                raise ValueError(
                    f"{what} names the category {category!r}, which no item has"
                )
            chosen |= catalogue.category_codes == names[category]
    return chosen


def check_texts(name: str, values: Sequence[str]) -> None:
    """Refuse what is no sequence of texts.

    Raises
    ------
    ValueError
        Names it and its value.
    """
    if isinstance(values, str) or not all(
        type(each) is str and each for each in values
    ):
        raise ValueError(
            f"{name} are {values!r}; they must be texts, none of them empty"
        )


def check_span(since: datetime | str | None, until: datetime | str | None) -> None:
    """Refuse what is no time, or an end before its start.

    Raises
    ------
    ValueError
        Names the bound and its value.
    """
    start, end = _instant("since", since), _instant("until", until)
    if start is not None and end is not None and start >= end:
        raise ValueError(f"since is {since} and until {until}; it must lie before")


def holds(
    since: datetime | str | None, until: datetime | str | None, now: datetime
) -> bool:
    """Whether an instant lies in a span; its end is not of it."""
    start, end = _instant("since", since), _instant("until", until)
    instant = microseconds_of(now)
    return (start is None or instant >= start) and (end is None or instant < end)


def _instant(name: str, value: datetime | str | None) -> int | None:
    if value is None:
        return None
    try:
        read = datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(value, str) and read.tzinfo is None:
            read = read.replace(tzinfo=UTC)
        return microseconds_of(read)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{name} is {value!r}; it must be a time in ISO 8601, such as "
            "2026-01-31T12:00:00Z"
        ) from error
