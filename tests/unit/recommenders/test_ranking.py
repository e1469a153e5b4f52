import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from recommenders.ranking import top_k

FEW_VALUES = st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 1.0, 2.0, 1e30, np.inf])


@given(
    scores=arrays(
        np.float32, array_shapes(min_dims=2, max_dims=2), elements=FEW_VALUES
    ),
    k=st.integers(1, 12),
)
def test_it_is_a_full_sort_by_score_then_column(scores, k):
    columns, values = top_k(scores, k)
    assert columns.dtype == np.int32
    assert values.dtype == np.float32
    for row, found, worth in zip(scores, columns, values, strict=True):
        order = sorted(range(row.size), key=lambda column: (-row[column], column))
        kept = [column for column in order if row[column] > -np.inf][:k]
        padding = k - len(kept)
        assert found.tolist() == kept + [-1] * padding
        assert worth.tolist() == row[kept].tolist() + [-np.inf] * padding


def test_of_equal_scores_the_lowest_columns_win_at_the_cut():
    scores = np.zeros((1, 1000), np.float32)
    scores[0, 900] = 1
    assert top_k(scores, 4)[0].tolist() == [[900, 0, 1, 2]]


@pytest.mark.parametrize("shown", [1.0, 0.3, 0.02, 0.0005])
def test_many_columns_are_sorted_like_few(shown):
    rng = np.random.default_rng(3)
    # Few values, so that many are equal at the cut; zeros and -inf as of sparse data.
    scores = rng.integers(0, 50, (20, 5003)).astype(np.float32)
    scores[rng.random(scores.shape) > shown] = 0
    scores[10:][scores[10:] == 0] = -np.inf
    columns, values = top_k(scores, 7)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :7]
    expected = np.take_along_axis(scores, order, axis=1)
    assert (values == expected).all()
    assert (columns == np.where(np.isneginf(expected), -1, order)).all()


@pytest.mark.parametrize("column", [0, 4000, 5002])
def test_nan_is_refused_among_many_columns(column):
    scores = np.zeros((2, 5003), np.float32)
    scores[1, column] = np.nan
    with pytest.raises(ValueError, match="scores hold nan"):
        top_k(scores, 7)


@pytest.mark.parametrize("k", [1, 3])
def test_nan_is_refused(k):
    scores = np.array([[1, 2, 3], [1, np.nan, 3]], np.float32)
    with pytest.raises(ValueError, match="scores hold nan"):
        top_k(scores, k)
