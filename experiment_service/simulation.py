"""Shoppers for the demo: real households that go through HTTP like a storefront.

What a household will click is not planted: it follows what the household really bought
in the weeks after the training cut. The module knows the API by its address only.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from experiment_service.client import AsyncExperimentClient, Options

#: Chance to examine position j (from 1) is EXAMINATION ** (j - 1): the exponential
#: examination of a cascade reader.
EXAMINATION = 0.85

#: Chance to click an examined item the household will buy / whose type it will buy /
#: any other.
CLICK_PRODUCT = 0.30
CLICK_TYPE = 0.06
CLICK_OTHER = 0.002

_CART_AFTER_CLICK = 0.35
_PURCHASE_AFTER_CART = 0.5
_LIST_LENGTH = 10
_MAX_WAITING = 64
_TIMEOUT_SECONDS = 10.0
# Short, so that the demo's dashboard moves at once.
_FLUSH_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Household:
    """A shopper and what it bought after the training cut.

    Attributes
    ----------
    buyer : {"heavy", "light", "new"}
        How it bought before the cut: more than the median household, less, or nothing.
    """

    unit_id: str
    products: frozenset[str]
    types: frozenset[str]
    buyer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What a shop knows of a product; its type is what households come back for."""

    type: str | None
    category: str | None
    price: float | None


_UNLISTED = Product(type=None, category=None, price=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Click:
    """A click at a position (from 1) and how far it went."""

    item_id: str
    position: int
    carted: bool
    bought: bool


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the shoppers did so far."""

    visits: int = 0
    clicks: int = 0
    failures: int = 0
    milliseconds: list[float] = field(default_factory=list)


def products_of(catalogue: pd.DataFrame) -> dict[str, Product]:
    """Return the products of a catalogue by id.

    Parameters
    ----------
    catalogue : DataFrame
        ``item_id``, ``type``, ``category`` and ``price``, missing where unknown.
    """
    columns = catalogue[["type", "category", "price"]].astype(object)
    known = columns.where(columns.notna(), None)
    return {
        str(item): Product(type=kind, category=category, price=price)
        for item, kind, category, price in zip(
            catalogue["item_id"], *(known[name] for name in known), strict=True
        )
    }


def future_households(
    earlier: pd.DataFrame, later: pd.DataFrame, products: Mapping[str, Product]
) -> list[Household]:
    """Return the households of later purchases.

    Parameters
    ----------
    earlier, later : DataFrame
        Purchases before and after the training cut, with ``unit_id`` and ``item_id``.
    """
    counts = earlier["unit_id"].value_counts()
    median = counts.median()
    return [
        Household(
            unit_id=str(unit_id),
            products=frozenset(items),
            types=frozenset(
                kind
                for item in items
                if (kind := products.get(item, _UNLISTED).type) is not None
            ),
            buyer=_buyer(counts.get(unit_id, 0), median),
        )
        for unit_id, items in later.groupby("unit_id")["item_id"]
    ]


def _buyer(purchases: int, median: float) -> str:
    if purchases == 0:
        return "new"
    return "heavy" if purchases > median else "light"


def browse(
    household: Household,
    items: Sequence[str],
    products: Mapping[str, Product],
    rng: np.random.Generator,
) -> list[Click]:
    """Return what a household clicks on a carousel.

    It examines position j with chance ``EXAMINATION ** (j - 1)`` and clicks an examined
    item by whether it will buy the product, something of its type, or neither.
    """
    draws = rng.random((len(items), 4))
    clicks = []
    for index, item in enumerate(items):
        appeal = CLICK_OTHER
        if item in household.products:
            appeal = CLICK_PRODUCT
        elif products.get(item, _UNLISTED).type in household.types:
            appeal = CLICK_TYPE
        examined, clicked, carted, bought = draws[index]
        if examined < EXAMINATION**index and clicked < appeal:
            in_cart = bool(carted < _CART_AFTER_CLICK)
            clicks.append(
                Click(
                    item_id=item,
                    position=index + 1,
                    carted=in_cart,
                    bought=in_cart and bool(bought < _PURCHASE_AFTER_CART),
                )
            )
    return clicks


def interaction_documents(
    exposure_id: str,
    unit_id: str,
    clicks: Sequence[Click],
    products: Mapping[str, Product],
) -> list[dict[str, Any]]:
    """Write a visit as the interactions a storefront sends; ids make retries safe."""
    documents: list[dict[str, Any]] = [
        {
            "id": f"{exposure_id}:viewed",
            "exposure_id": exposure_id,
            "unit_id": unit_id,
            "kind": "viewed",
        }
    ]
    for click in clicks:
        kinds = ["click"]
        kinds += ["add_to_cart"] if click.carted else []
        kinds += ["purchase"] if click.bought else []
        product = products.get(click.item_id, _UNLISTED)
        documents += [
            {
                "id": f"{exposure_id}:{kind}:{click.position}",
                "exposure_id": exposure_id,
                "unit_id": unit_id,
                "kind": kind,
                "item_id": click.item_id,
                "position": click.position,
                "category": product.category,
                "value": product.price if kind == "purchase" else None,
            }
            for kind in kinds
        ]
    return documents


class Shoppers:
    """Households that visit at random, at a given rate, until told to stop.

    Parameters
    ----------
    address : str
        Of the API, such as ``http://127.0.0.1:8000``.
    placements : sequence of str
        A visit asks for a carousel on each.
    visits_per_second : float
        Mean rate of a Poisson process.
    key : str, optional
        API key, where one is needed.
    """

    def __init__(
        self,
        address: str,
        *,
        placements: Sequence[str],
        households: Sequence[Household],
        products: Mapping[str, Product],
        visits_per_second: float,
        rng: np.random.Generator,
        key: str | None = None,
    ) -> None:
        self._address = address
        self._key = key
        self._placements = placements
        self._households = households
        self._products = products
        self._rate = visits_per_second
        self._rng = rng
        self.tally = Tally()

    async def run(self, stopping: asyncio.Event) -> None:
        """Visit until `stopping` is set, then finish the visits under way."""
        gate = asyncio.Semaphore(_MAX_WAITING)
        under_way: set[asyncio.Task[None]] = set()
        options = Options(timeout=_TIMEOUT_SECONDS, flush_seconds=_FLUSH_SECONDS)
        async with AsyncExperimentClient(
            self._address, api_key=self._key, options=options
        ) as client:
            while not stopping.is_set():
                household = self._households[
                    int(self._rng.integers(len(self._households)))
                ]
                await gate.acquire()
                visit = asyncio.create_task(self._visit(client, household))
                under_way.add(visit)
                visit.add_done_callback(under_way.discard)
                visit.add_done_callback(lambda _: gate.release())
                await asyncio.sleep(self._rng.exponential(1 / self._rate))
            await asyncio.gather(*under_way)

    async def _visit(self, client: AsyncExperimentClient, household: Household) -> None:
        for placement in self._placements:
            started = time.perf_counter()
            shown = await client.recommend(
                household.unit_id,
                placement,
                k=_LIST_LENGTH,
                attributes={"buyer": household.buyer},
            )
            if not shown.served:
                # A shop goes on when a carousel fails; the demo counts and shows it.
                self.tally.failures += 1
                return
            self.tally.milliseconds.append(1000 * (time.perf_counter() - started))
            del self.tally.milliseconds[:-1000]
            if shown.exposure_id is None:
                continue
            clicks = browse(household, shown.item_ids, self._products, self._rng)
            self.tally.clicks += len(clicks)
            for document in interaction_documents(
                shown.exposure_id, household.unit_id, clicks, self._products
            ):
                client.track(**document)
        self.tally.visits += 1
