"""What is known of the items: texts, prices, stock and the day they were listed.

Aligned to rows of items, so that whatever ranks can look things up by row. Gaps are
allowed everywhere; what a gap means is said at each attribute.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recommenders.instants import microseconds

#: Columns of text, in the order in which they name an item.
TEXTS = ("name", "category", "type", "brand", "department")


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalogue:
    """What is known of each item, by its row.

    Attributes
    ----------
    names, categories, types, brands, departments : tuple of str, length (items,)
        Empty where nothing is known.
    category_names : tuple of str
        Distinct categories in sorted order, also those of products not among the items.
    prices : float64 array, shape (items,)
        >= 0; nan where it is not known.
    in_stock : bool array, shape (items,)
        True where it is not known: a shop that does not say sells everything.
    listed_at : int64 array, shape (items,)
        Microseconds since 1970 in UTC; `NO_TIME` where it is not known.

    Raises
    ------
    ValueError
        When a column has another length, or a price is negative or infinite.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    types: tuple[str, ...]
    brands: tuple[str, ...]
    departments: tuple[str, ...]
    category_names: tuple[str, ...]
    prices: NDArray[np.float64]
    in_stock: NDArray[np.bool_]
    listed_at: NDArray[np.int64]

    def __post_init__(self) -> None:
        lengths = {
            "names": len(self.names),
            "categories": len(self.categories),
            "types": len(self.types),
            "brands": len(self.brands),
            "departments": len(self.departments),
            "in_stock": len(self.in_stock),
            "listed_at": len(self.listed_at),
        }
        for name, length in lengths.items():
            if length != len(self.prices):
                raise ValueError(
                    f"catalogue has {len(self.prices)} prices and {length} {name}; "
                    "all columns must have one length"
                )
        bad = np.flatnonzero((self.prices < 0) | np.isinf(self.prices))
        if bad.size:
            raise ValueError(
                f"catalogue has the price {self.prices[bad[0]]} at row {bad[0]}; "
                "prices must be finite and 0 or more"
            )

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, item_ids: Sequence[str]) -> "Catalogue":
        """Pick the rows of items; an item that is not listed has gaps everywhere.

        Parameters
        ----------
        frame : DataFrame
            Column ``item_id``, no one twice, and any of those that
            `tables.read_catalogue` gives.

        Raises
        ------
        ValueError
            When an item is listed twice or a price is negative.
        """
        twice = frame.loc[frame["item_id"].duplicated(), "item_id"]
        if not twice.empty:
            raise ValueError(
                f"catalogue lists item {twice.iloc[0]!r} twice, and {len(twice)} such "
                "in all; each must occur only once"
            )
        rows = frame.set_index("item_id").reindex(list(item_ids))

        def texts(column: str) -> tuple[str, ...]:
            return _texts(rows, column)

        missing = pd.Series(np.nan, index=rows.index)
        stock = rows.get("in_stock", missing)
        listed = rows.get("listed_at", missing)
        return cls(
            names=texts("name"),
            categories=texts("category"),
            types=texts("type"),
            brands=texts("brand"),
            departments=texts("department"),
            category_names=tuple(sorted({*_texts(frame, "category")} - {""})),
            prices=rows.get("price", missing).to_numpy(np.float64, na_value=np.nan),
            in_stock=stock.astype("boolean").fillna(value=True).to_numpy(bool),
            listed_at=microseconds(listed),
        )

    def texts(self, column: str) -> tuple[str, ...]:
        """Return one of the columns `TEXTS`."""
        columns = {
            "name": self.names,
            "category": self.categories,
            "type": self.types,
            "brand": self.brands,
            "department": self.departments,
        }
        return columns[column]

    @cached_property
    def category_codes(self) -> NDArray[np.int32]:
        """Place of each item's category in its names, -1 where it is not known."""
        names = {name: code for code, name in enumerate(self.category_names)}
        codes = (names.get(each, -1) for each in self.categories)
        return np.fromiter(codes, np.int32, len(self.categories))


def _texts(frame: pd.DataFrame, column: str) -> tuple[str, ...]:
    if column not in frame:
        return ("",) * len(frame)
    return tuple(frame[column].astype(object).fillna("").astype(str))
