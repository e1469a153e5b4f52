"""The demo's shoppers: their clicks against the closed form of what they are."""

import numpy as np
import pandas as pd
import pytest

from experiment_service.simulation import (
    CLICK_OTHER,
    CLICK_PRODUCT,
    CLICK_TYPE,
    EXAMINATION,
    Household,
    Product,
    browse,
    future_households,
    interaction_documents,
    products_of,
)

PRODUCTS = {
    "wanted": Product(type="milk", category="dairy", price=1.5),
    "akin": Product(type="milk", category="dairy", price=None),
    "other": Product(type="wine", category=None, price=9.0),
}
HOUSEHOLD = Household(
    unit_id="h",
    products=frozenset(["wanted"]),
    types=frozenset(["milk"]),
    buyer="light",
)
APPEAL = {"wanted": CLICK_PRODUCT, "akin": CLICK_TYPE, "other": CLICK_OTHER}


@pytest.mark.parametrize("item", ["wanted", "akin", "other"])
def test_a_click_is_examination_times_appeal_at_each_position(item):
    rng = np.random.default_rng([7, len(item)])
    visits, positions = 20_000, 5
    counts = np.zeros(positions)
    for _ in range(visits):
        for click in browse(HOUSEHOLD, [item] * positions, PRODUCTS, rng):
            counts[click.position - 1] += 1
    expected = EXAMINATION ** np.arange(positions) * APPEAL[item]
    error = np.sqrt(expected * (1 - expected) / visits)
    assert np.all(np.abs(counts / visits - expected) < 4 * error)


def test_who_buys_had_it_in_the_cart_and_shares_follow():
    rng = np.random.default_rng(8)
    clicks = [
        click
        for _ in range(20_000)
        for click in browse(HOUSEHOLD, ["wanted"] * 5, PRODUCTS, rng)
    ]
    carted = np.array([click.carted for click in clicks])
    bought = np.array([click.bought for click in clicks])
    assert not np.any(bought & ~carted)
    for share, expected, of in (
        (carted.mean(), 0.35, carted.size),
        (bought[carted].mean(), 0.5, carted.sum()),
    ):
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / of)


def test_households_are_who_bought_later_and_what():
    earlier = pd.DataFrame(
        {"unit_id": ["a", "a", "a", "c", "c", "d"], "item_id": ["other"] * 6}
    )
    later = pd.DataFrame(
        {
            "unit_id": ["a", "a", "b", "c"],
            "item_id": ["wanted", "akin", "unlisted", "other"],
        }
    )
    assert future_households(earlier, later, PRODUCTS) == [
        Household(
            unit_id="a",
            products=frozenset(["wanted", "akin"]),
            types=frozenset(["milk"]),
            buyer="heavy",
        ),
        Household(
            unit_id="b",
            products=frozenset(["unlisted"]),
            types=frozenset(),
            buyer="new",
        ),
        Household(
            unit_id="c",
            products=frozenset(["other"]),
            types=frozenset(["wine"]),
            buyer="light",
        ),
    ]


def test_what_a_catalogue_leaves_out_is_not_known():
    catalogue = pd.DataFrame(
        {
            "item_id": list(PRODUCTS),
            "type": pd.Categorical(["milk", "milk", "wine"]),
            "category": ["dairy", "dairy", None],
            "price": [1.5, np.nan, 9.0],
        }
    )
    assert products_of(catalogue) == PRODUCTS


def test_a_visit_is_told_with_ids_of_its_own_that_a_retry_repeats():
    rng = np.random.default_rng(1)
    clicks = []
    while not any(click.bought for click in clicks):
        clicks = browse(HOUSEHOLD, ["wanted"] * 3, PRODUCTS, rng)
    documents = interaction_documents("x", "h", clicks, PRODUCTS)
    assert documents == interaction_documents("x", "h", clicks, PRODUCTS)
    ids = [document["id"] for document in documents]
    assert len(set(ids)) == len(ids)
    kinds = [document["kind"] for document in documents]
    assert kinds[0] == "viewed"
    assert kinds.count("click") == len(clicks)
    assert kinds.count("purchase") == sum(click.bought for click in clicks)
    assert {each["category"] for each in documents[1:]} == {"dairy"}
    for document in documents[1:]:
        assert document["value"] == (1.5 if document["kind"] == "purchase" else None)
