"""`experiment-service search` from files to sentences; it opens no database."""

import json
import shlex

import numpy as np
import pandas as pd
import pytest

from experiment_service.cli import main


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    units, items = rng.integers(0, 40, 2000), rng.integers(0, 15, 2000)
    start = pd.Timestamp("2026-01-01", tz="UTC")
    pd.DataFrame(
        {
            "unit_id": [f"u{unit}" for unit in units],
            "item_id": [f"i{2 * i + u % 2}" for i, u in zip(items, units, strict=True)],
            "occurred_at": start + pd.to_timedelta(rng.integers(0, 90, 2000), "D"),
        }
    ).to_csv(tmp_path / "purchases.csv", index=False)
    pd.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(31)],
            "category": ["even", "odd"] * 15 + [""],
        }
    ).to_csv(tmp_path / "products.csv", index=False)
    return tmp_path


def run(files, *options):
    data = ["--interactions", str(files / "purchases.csv")]
    return main(["search", *options, *data])


def test_it_tells_trials_and_what_they_are_worth(files, capsys):
    options = ["item_knn", "age_routed", "--trials", "3", "--repeats"]
    catalogue = ["--catalogue", str(files / "products.csv")]
    storage = ["--storage", str(files / "trials"), "--test-since", "2026-03-15"]
    assert run(files, *options, *catalogue, *storage) == 0
    said = capsys.readouterr()
    assert said.err.count("trial ") == 6
    assert (
        "searching item_knn by ndcg@10, repeats: allowed, learning before" in said.err
    )
    lines = said.out.splitlines()
    assert lines[0].startswith("item_knn: 3 trials, 0 failed; validation ndcg 0.")
    assert "better than popularity, by 0." in said.out
    command = next(line for line in lines if "train item_knn" in line)
    found = json.loads(shlex.split(command)[-1])
    assert set(found) == {"similarity", "neighbours"}
    routed = next(line for line in lines if "train age_routed" in line)
    assert json.loads(shlex.split(routed)[-1])["known"]["recommender"] == "item_knn"
    assert run(files, *options, *catalogue, *storage) == 0
    again = capsys.readouterr()
    assert "trial " not in again.err
    assert again.out == said.out


def test_what_can_not_be_searched_is_refused(files, capsys):
    for options, message in (
        (["svd"], "known recommenders"),
        (["content"], "content needs a catalogue"),
        (["item_knn", "--trials", "0"], "trials is 0; it must be 1 or more"),
        (["item_knn", "--space", '{"neighbours": 7}'], "space of neighbours is 7"),
        (["item_knn", "--space", "[]"], "--space '[]' must be a JSON object"),
        (["item_knn", "--test-since", "2027-01-01"], "leaves one side empty"),
    ):
        assert run(files, *options) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{step: mmr}", "must hold a list of steps"),
        ("[{step: mmr", "can't be read"),
        (None, "can't be read"),
    ],
)
def test_reranking_that_can_not_be_read_is_refused(files, capsys, text, message):
    steps = files / "steps.yaml"
    if text is not None:
        steps.write_text(text)
    data = ["--interactions", str(files / "purchases.csv"), "--reranking", str(steps)]
    assert main(["train", "popularity", *data]) == 2
    assert message in capsys.readouterr().err
