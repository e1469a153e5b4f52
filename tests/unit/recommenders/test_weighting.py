import numpy as np
import pytest
from implicit.nearest_neighbours import bm25_weight, normalize, tfidf_weight
from scipy.sparse import csr_matrix, random_array

from recommenders.weighting import bm25, normalized, tfidf, word_rarity


@pytest.fixture
def counts():
    rng = np.random.default_rng(5)
    drawn = random_array((60, 30), density=0.2, rng=rng, format="csr")
    return csr_matrix((rng.integers(1, 9, drawn.nnz), drawn.indices, drawn.indptr))


def test_rarity_by_hand():
    matrix = csr_matrix(np.array([[1, 1, 0], [4, 0, 0], [1, 0, 0], [1, 0, 0]]))
    np.testing.assert_allclose(
        word_rarity(matrix), np.log([1 + 0.5 / 4.5, 1 + 3.5 / 1.5, 1 + 4.5 / 0.5])
    )
    assert (word_rarity(matrix) > 0).all(), "also of a word of every document"


def without_rarity(weights, counts, rarity):
    weights = csr_matrix(weights)
    weights.sort_indices()
    return weights.data / rarity[counts.indices]


def test_tfidf_is_implicits_but_for_the_rarity(counts):
    n = np.bincount(counts.indices, minlength=30)
    theirs = np.log(60) - np.log1p(n)
    np.testing.assert_allclose(
        without_rarity(tfidf(counts), counts, word_rarity(counts)),
        without_rarity(tfidf_weight(counts.astype(float)), counts, theirs),
    )


def test_bm25_is_implicits_but_for_the_rarity(counts):
    n = np.bincount(counts.indices, minlength=30)
    theirs = np.log(60) - np.log1p(n)
    np.testing.assert_allclose(
        without_rarity(bm25(counts, k1=1.2, b=0.75), counts, word_rarity(counts)),
        without_rarity(bm25_weight(counts.astype(float), 1.2, 0.75), counts, theirs),
    )


def test_normalized_is_implicits(counts):
    np.testing.assert_allclose(
        normalized(counts).toarray(), normalize(counts.astype(float)).toarray()
    )


def test_an_empty_document_stays_empty():
    matrix = csr_matrix(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert normalized(matrix).toarray().tolist() == [[0.6, 0.8], [0.0, 0.0]]
    assert np.isfinite(bm25(matrix, k1=1.0, b=0.5).data).all()
