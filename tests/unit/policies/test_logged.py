"""LoggedRounds: what is refused, and that arrays on disk stay there."""

import numpy as np
import pytest

from policies import logged
from policies.logged import LoggedRounds

GOOD = {
    "arms": ("a", "b"),
    "arm": np.array([0, 1, 1], dtype=np.int32),
    "propensity": np.array([0.5, 0.25, 1.0]),
    "reward": np.array([0.0, 1.0, -2.5]),
    "time": np.array([10.0, 10.0, 11.0]),
}
NAMED = {
    "arms": ["a", "b"],
    "arm": ["b", "a", "b"],
    "propensity": [0.5, 0.25, 1],
    "reward": [0, 1, 0],
    "time": [1, 2, 3],
}


def test_columns_with_names_become_indices():
    rounds = LoggedRounds.from_columns(
        **NAMED,
        unit=["u2", "u1", "u2"],
        position=[1, 1, 2],
        segment=["new", "back", "new"],
    )
    assert rounds.arm.tolist() == [1, 0, 1]
    assert rounds.unit.tolist() == [0, 1, 0]
    assert rounds.position.tolist() == [1, 1, 2]
    assert rounds.segments == ("back", "new")
    assert rounds.segment.tolist() == [1, 0, 1]
    assert [rounds.arm.dtype, rounds.unit.dtype, rounds.position.dtype] == [
        np.int32,
        np.int64,
        np.int16,
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"propensity": [0.5, 0, 1]}, "propensity of row 1 is 0.0; it must be a numb"),
        ({"propensity": [0.5, 0.5, 1.01]}, "propensity of row 2 is 1.01; it must be"),
        ({"propensity": [np.nan, 0.5, 1]}, "propensity of row 0 is nan; .*missing"),
        ({"propensity": [0.5, 0.5, -1]}, "propensity of row 2 is -1.0"),
        ({"arm": [0, 2, 1]}, "arm of row 1 is 2; it must be an index into the 2 arms"),
        ({"arm": [0, -1, 1]}, "arm of row 1 is -1"),
        ({"arm": [0.0, 1.0, 1.0]}, "arm has type float64; it must be whole numbers"),
        ({"arm": [0, 2**40, 1]}, "arm of row 1 is 1099511627776; it must fit in int32"),
        ({"reward": [0, np.nan, 1]}, "reward of row 1 is nan; it must be finite"),
        ({"reward": [0, np.inf, 1]}, "reward of row 1 is inf; it must be finite"),
        ({"reward": ["0", "1", "1"]}, "reward has type <U1; it must be numbers"),
        ({"time": [10, 12, 11]}, "time of row 2 is 11.0, before that of row 1, 12.0"),
        ({"time": [10, np.nan, 11]}, "time of row 1 is nan; it must be finite"),
        ({"time": [10, 11]}, "time has 2 rows and arm has 3"),
        ({"time": [[10, 11, 12]]}, r"time has shape \(1, 3\); it must be \(T,\)"),
        ({"unit": [1, 2]}, "unit has 2 rows and arm has 3"),
        ({"position": [1, 0, 2]}, "position of row 1 is 0; positions count from 1"),
        (
            {"segment": [0, 0, 1], "segments": ("s",)},
            "segment of row 2 is 1; .*the 1 s",
        ),
        ({"segment": [0, 0, 0]}, "segments has 0 entries; it must have >= 1"),
        ({"arms": ("a",)}, "arms has 1 entries; it must have >= 2"),
        ({"arms": ("a", "a")}, "arms has 'a' twice"),
        ({"arms": ("a", "")}, "arms entry 1 is ''; it must be a text"),
    ],
)
def test_what_breaks_a_rule_is_refused_with_its_row(change, message):
    columns = {
        name: value if name in ("arms", "segments") else np.array(value)
        for name, value in change.items()
    }
    with pytest.raises(ValueError, match=message):
        LoggedRounds(**(GOOD | columns))


def test_an_empty_log_is_refused():
    empty = {name: np.empty(0) for name in ("propensity", "reward", "time")}
    with pytest.raises(ValueError, match="the log is empty"):
        LoggedRounds(arms=("a", "b"), arm=np.empty(0, dtype=np.int32), **empty)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": ["b", "c", "b"]}, "arm of row 1 is 'c'; it must be one of: a, b"),
        ({"propensity": [0.5, None, 1]}, "propensity of row 1 is nan; .*missing"),
        ({"arms": ["b"], "arm": ["b"] * 3}, "arms has 1 entries"),
    ],
)
def test_names_and_missing_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LoggedRounds.from_columns(**(NAMED | change))


@pytest.mark.parametrize("row", [4, 5, 11])
def test_the_row_named_is_that_of_the_whole_log(row, monkeypatch):
    monkeypatch.setattr(logged.chunks, "__defaults__", (5,))
    propensity, time = np.full(12, 0.5), np.arange(12.0)
    propensity[row] = 0
    columns = {"arms": ("a", "b"), "arm": np.zeros(12, np.int32), "reward": time}
    with pytest.raises(ValueError, match=f"propensity of row {row} is 0.0"):
        LoggedRounds(**columns, propensity=propensity, time=time)
    time[row] = row - 2
    with pytest.raises(ValueError, match=f"time of row {row} is"):
        LoggedRounds(**columns, propensity=np.full(12, 0.5), time=time)


def test_arrays_on_disk_are_not_copied(tmp_path):
    columns = {}
    for name in ("arm", "propensity", "reward", "time"):
        GOOD[name].tofile(tmp_path / name)
        columns[name] = np.memmap(tmp_path / name, GOOD[name].dtype, mode="r")
    rounds = LoggedRounds(arms=("a", "b"), **columns)
    for name, given in columns.items():
        assert np.shares_memory(getattr(rounds, name), given)


def test_arrays_are_read_only_and_slices_are_views():
    rounds = LoggedRounds(**GOOD)
    with pytest.raises(ValueError, match="read-only"):
        rounds.reward[0] = 1
    part = rounds.slice(1, 3)
    assert part.rounds == 2
    assert part.arms == rounds.arms
    assert np.shares_memory(part.reward, rounds.reward)
    assert part.reward.tolist() == [1.0, -2.5]
    assert part.unit is None
