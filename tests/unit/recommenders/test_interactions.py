import numpy as np
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from recommenders.interactions import IdMap, Interactions


def test_ids_are_numbered_in_sorted_order_whatever_order_they_come_in():
    ids = IdMap.from_ids(["b", "a", "c", "a"])
    assert ids.ids == ("a", "b", "c")
    assert ids == IdMap.from_ids(iter("cba"))
    assert len(ids) == 3
    assert list(ids) == ["a", "b", "c"]
    assert "b" in ids
    assert "z" not in ids


def test_rows_and_ids_are_inverse():
    ids = IdMap.from_ids(["10", "9", "é", "A"])
    rows = ids.rows(["é", "10", "nobody", "9"])
    assert rows.dtype == np.int32
    assert rows.tolist() == [3, 0, -1, 1]
    assert ids.ids_of(rows) == ["é", "10", "9"], "the padding is left out"
    assert ids.rows([]).shape == (0,)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "ids are empty"),
        (["a", ""], "id '' has 0 characters; it must have 1 to 128"),
        (["a" * 129], "has 129 characters"),
        (["a", 7], "id 7 is int; ids must be text"),
        (["a", None], "id None is NoneType"),
    ],
)
def test_bad_ids_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        IdMap.from_ids(ids)


@pytest.mark.parametrize("ids", [("b", "a"), ("a", "a")])
def test_an_id_map_is_sorted_and_distinct(ids):
    with pytest.raises(ValueError, match="distinct and sorted"):
        IdMap(ids=ids)


def test_weights_of_a_pair_are_summed():
    interactions = Interactions.from_columns(
        ["u2", "u1", "u2", "u2"], ["x", "y", "y", "x"], [1, 2, 3, 0.5]
    )
    assert interactions.units.ids == ("u1", "u2")
    assert interactions.items.ids == ("x", "y")
    assert interactions.matrix.toarray().tolist() == [[0, 2], [1.5, 3]]
    assert interactions.matrix.dtype == np.float32
    assert interactions.item_units().tolist() == [1, 2]


def test_without_weights_a_pair_counts_its_interactions():
    interactions = Interactions.from_columns(["u", "u", "u"], ["x", "x", "y"])
    assert interactions.matrix.toarray().tolist() == [[2, 1]]


def test_large_sums_are_made_before_they_are_rounded():
    # One by one in float32, 2**24 + 1 + 1 stays at 2**24.
    interactions = Interactions.from_columns(["u"] * 3, ["x"] * 3, [2.0**24, 1, 1])
    assert interactions.matrix.data.tolist() == [2.0**24 + 2]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([], []), "weights are empty"),
        ((["u"], ["x", "y"]), "must have one length"),
        ((["u"], ["x"], [1, 2]), "must have one length"),
        ((["u"], ["x"], [[1]]), "must have one length"),
        ((["u", "v"], ["x", ""]), "id '' has 0 characters"),
        (([1], ["x"]), "id 1 is int"),
        ((["u", "v"], ["x", "y"], [1, 0]), "hold 0.0 at entry 1, and 1 such"),
        ((["u", "v"], ["x", "y"], [-1, -2]), "hold -1.0 at entry 0, and 2 such"),
        ((["u"], ["x"], [float("nan")]), "hold nan"),
        ((["u"], ["x"], [float("inf")]), "hold inf"),
        ((["u"], ["x"], [1e39]), "hold inf"),
        ((["u"], ["x"], [1e-60]), "hold 0.0"),
    ],
)
def test_bad_columns_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        Interactions.from_columns(*columns)


def build(matrix):
    return Interactions(
        units=IdMap.from_ids("ab"), items=IdMap.from_ids("xyz"), matrix=matrix
    )


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (csr_matrix((3, 2), dtype=np.float32), r"shape \(3, 2\); .* must be \(2, 3\)"),
        (csr_matrix((2, 3), dtype=np.float32), "interactions are empty"),
        (csr_matrix(np.ones((2, 3))), "csr_matrix of float64"),
        (csc_matrix(np.ones((2, 3), np.float32)), "csc_matrix of float32"),
        (np.ones((2, 3), np.float32), "ndarray of float32"),
        (csr_matrix(-np.ones((2, 3), np.float32)), "greater than 0"),
    ],
)
def test_a_bad_matrix_is_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        build(matrix)


def test_a_matrix_with_a_pair_twice_is_refused():
    data = np.ones(2, np.float32)
    matrix = csr_matrix((data, np.array([1, 1]), np.array([0, 2, 2])), shape=(2, 3))
    with pytest.raises(ValueError, match="a pair twice"):
        build(matrix)


def test_the_arrays_cannot_be_changed():
    interactions = Interactions.from_columns(["u"], ["x"])
    with pytest.raises(ValueError, match="read-only"):
        interactions.matrix.data[0] = 5
