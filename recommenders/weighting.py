"""Weights that say how much an interaction tells: cosine, TF-IDF and BM25.

Matrices in, matrices out, in the terms of text search: rows are documents, columns are
words, entries count them. Whether a unit is the document and items are its words, or the
other way round, is the caller's choice.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

_Floats = NDArray[np.float64]


def word_rarity(counts: csr_matrix) -> _Floats:
    """Return the inverse document frequency of each word.

    ``ln(1 + (N - n + 0.5) / (n + 0.5))``, where n of N documents have the word. The
    textbook's form without ``1 +`` is 0 or negative for a word of most documents: in a
    small catalogue, what everybody had would count as a dislike.

    Returns
    -------
    float64 array, shape (words,)
        Greater than 0.
    """
    documents, words = counts.shape
    n = np.bincount(counts.indices, minlength=words)
    rarity: _Floats = np.log1p((documents - n + 0.5) / (n + 0.5))
    return rarity


def tfidf(counts: csr_matrix) -> csr_matrix:
    """Weigh by ``sqrt(count) * rarity(word)``, in float64."""
    words = counts.indices
    tf = np.sqrt(counts.data.astype(np.float64))
    return _with_data(counts, tf * word_rarity(counts)[words])


def bm25(
    counts: csr_matrix, *, k1: float, b: float, like: csr_matrix | None = None
) -> csr_matrix:
    """Weigh by ``count (k1 + 1) / (k1 L + count) * rarity(word)``, in float64.

    Parameters
    ----------
    counts : csr_matrix, shape (documents, words)
        Greater than 0 where stored.
    k1 : float, > 0
        The larger, the later do repeats stop to add.
    b : float in [0, 1]
        How far a long document's counts are scaled down: L of a document is
        ``1 - b + b * length / mean length``, its length the sum of its counts.
    like : csr_matrix of the same shape, optional
        Whose lengths and rarity count, so that both are on one scale; its own when left
        out.

    References
    ----------
    Robertson and Zaragoza (2009), The Probabilistic Relevance Framework: BM25 and
    Beyond, section 3.
    """
    like = counts if like is None else like
    lengths = np.asarray(like.sum(axis=1, dtype=np.float64)).ravel()
    scale = 1.0 - b + b * lengths / lengths.mean()
    count = counts.data.astype(np.float64)
    tf = count * (k1 + 1.0) / (k1 * scale[_documents(counts)] + count)
    return _with_data(counts, tf * word_rarity(like)[counts.indices])


def normalized(weights: csr_matrix) -> csr_matrix:
    """Scale each document to length 1, in float64; an empty one stays empty."""
    documents = _documents(weights)
    values = weights.data.astype(np.float64)
    squares = np.bincount(documents, values**2, minlength=weights.shape[0])
    return _with_data(weights, values / np.sqrt(squares)[documents])


def _documents(counts: csr_matrix) -> NDArray[np.intp]:
    return np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))


def _with_data(counts: csr_matrix, data: _Floats) -> csr_matrix:
    # Copies: implicit's compiled code takes writable arrays only.
    places = (data, counts.indices.copy(), counts.indptr.copy())
    return csr_matrix(places, shape=counts.shape)
