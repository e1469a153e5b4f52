"""What the contract suite cannot know: the numbers that each recommender learns."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from recommenders.interactions import Interactions
from recommenders.item_knn import ItemKNN
from recommenders.matrix_factorization import AlternatingLeastSquares
from recommenders.popularity import Popularity
from recommenders.weighting import bm25, tfidf

UNITS, ITEMS = 40, 15


@pytest.fixture
def interactions():
    rng = np.random.default_rng(11)
    return Interactions.from_columns(
        [f"u{row:02}" for row in rng.integers(0, UNITS, 300)],
        [f"i{row:02}" for row in rng.integers(0, ITEMS, 300)],
        rng.integers(1, 5, 300),
    )


def fit(recommender, interactions, seed=1):
    return recommender.fit(interactions, np.random.default_rng(seed))


def test_popularity_counts_units_and_not_purchases():
    interactions = Interactions.from_columns(
        ["a", "a", "b", "c", "c"], ["x", "y", "y", "x", "z"], [1, 1, 1, 1, 100]
    )
    trained = fit(Popularity(), interactions)
    items, scores = trained.recommend(np.array([1]), 3, exclude_seen=False)
    assert interactions.items.ids_of(items[0]) == ["x", "y", "z"]
    assert scores.tolist() == [[2, 2, 1]]


def naive_likeness(interactions, similarity):
    items = interactions.matrix.T.tocsr()
    if similarity == "bm25":
        weights = bm25(items, k1=1.2, b=0.75).toarray()
    else:
        weights = (items if similarity == "cosine" else tfidf(items)).toarray()
        weights = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    return weights @ weights.T


@pytest.mark.parametrize("similarity", ["cosine", "tfidf", "bm25"])
def test_knn_scores_are_weights_times_likeness(interactions, similarity):
    trained = fit(ItemKNN(similarity=similarity, neighbours=ITEMS), interactions)
    expected = interactions.matrix.toarray() @ naive_likeness(interactions, similarity)
    rows = np.arange(len(interactions.units))
    items, scores = trained.recommend(rows, ITEMS, exclude_seen=False)
    found = np.zeros_like(expected)
    np.put_along_axis(found, items, scores, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("similarity", ["cosine", "tfidf", "bm25"])
def test_knn_keeps_the_nearest(interactions, similarity):
    trained = fit(ItemKNN(similarity=similarity, neighbours=5), interactions)
    likeness = naive_likeness(interactions, similarity)
    rows = np.arange(ITEMS)
    items, scores = trained.related(rows, 5)
    for row in rows:
        nearest = np.argsort(-likeness[row])[:5]
        expected = [item for item in nearest if item != row]
        assert items[row, : len(expected)].tolist() == expected
        np.testing.assert_allclose(
            scores[row, : len(expected)], likeness[row, expected], rtol=1e-5
        )


@pytest.mark.parametrize(("weighting", "left"), [("counts", 0), ("bm25", 40)])
def test_als_ends_where_its_equations_hold(interactions, weighting, left):
    # Hu, Koren and Volinsky (2008), equations 4 and 5, with confidence 1 where nothing
    # was seen: neither vectors of units nor of items move any more. What was shown and
    # left adds to the confidence alone, also in pairs that were taken at times.
    if left:
        rng = np.random.default_rng(5)
        interactions = interactions.with_passed(
            rng.choice(interactions.units.ids, left),
            rng.choice(interactions.items.ids, left),
            rng.uniform(0.1, 2, left),
        )
    als = AlternatingLeastSquares(
        factors=3, regularization=0.1, iterations=500, weighting=weighting
    )
    scorer = fit(als, interactions).scorer
    matrix = interactions.matrix
    passed = interactions.passed if left else csr_matrix(matrix.shape)
    if weighting == "bm25":
        passed = bm25(passed, k1=100, b=0.8, like=matrix)
        matrix = bm25(matrix, k1=100, b=0.8)
    weights = als.alpha * matrix.toarray().astype(float)
    against = als.alpha * passed.toarray().astype(float)
    assert not left or ((weights > 0) & (against > 0)).any()
    for ours, other, seen, unwanted in (
        (scorer.units, scorer.items, weights, against),
        (scorer.items, scorer.units, weights.T, against.T),
    ):
        for vector, confidences, dislikes in zip(ours, seen, unwanted, strict=True):
            confidence = np.where(confidences > 0, confidences, 1.0) + dislikes
            left = (other.T * confidence) @ other + 0.1 * np.eye(3)
            right = other.T @ confidences
            np.testing.assert_allclose(vector, np.linalg.solve(left, right), atol=1e-3)


def test_als_scores_are_inner_products(interactions):
    trained = fit(AlternatingLeastSquares(factors=4), interactions)
    scorer = trained.scorer
    rows = np.array([4, 0])
    items, scores = trained.recommend(rows, 3, exclude_seen=False)
    expected = scorer.units[rows] @ scorer.items.T
    np.testing.assert_allclose(
        scores, np.take_along_axis(expected, items, axis=1), rtol=1e-5
    )
    assert (scores[:, 0] == expected.max(axis=1)).all()


def test_related_items_of_als_are_nearest_by_cosine(interactions):
    trained = fit(AlternatingLeastSquares(factors=4), interactions)
    vectors = trained.scorer.items
    lengths = np.linalg.norm(vectors, axis=1)
    cosines = (vectors @ vectors.T) / np.outer(lengths, lengths)
    np.fill_diagonal(cosines, -2)
    items, scores = trained.related(np.arange(ITEMS), 4)
    assert (items == np.argsort(-cosines, axis=1)[:, :4]).all()
    np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :4], rtol=1e-5)


def test_another_seed_starts_als_elsewhere(interactions):
    als = AlternatingLeastSquares(factors=4, iterations=1)
    first, second = (fit(als, interactions, seed).scorer.items for seed in (1, 2))
    assert not np.allclose(first, second)


@pytest.mark.parametrize("weight", [1e30, 1e38])
def test_factors_that_are_not_finite_are_refused(weight):
    interactions = Interactions.from_columns(
        ["a", "a", "b"], ["x", "y", "y"], [weight] * 3
    )
    als = AlternatingLeastSquares(weighting="counts", alpha=10)
    with pytest.raises(ValueError, match=r"factors of .*alpha=10.* are not finite"):
        fit(als, interactions)
