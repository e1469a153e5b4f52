import json

import numpy as np
import pytest

from recommenders import build_recommender
from recommenders.base import TrainedRecommender
from recommenders.interactions import Interactions
from recommenders.saving import load_recommender, save_recommender


@pytest.fixture
def folder(tmp_path):
    interactions = Interactions.from_columns(["a", "a", "b"], ["x", "é", "x"])
    trained = build_recommender("item_knn", {}).fit(
        interactions, np.random.default_rng(0)
    )
    save_recommender(trained, tmp_path / "saved")
    return tmp_path / "saved"


def change(folder, edit):
    path = folder / "recommender.json"
    tree = json.loads(path.read_text())
    edit(tree)
    path.write_text(json.dumps(tree))


def test_what_is_saved_is_arrays_and_json(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "arrays.npz",
        "recommender.json",
    ]
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        assert {array.dtype.kind for array in arrays.values()} <= set("ifb")
    assert load_recommender(folder).interactions.items.ids == ("x", "é")


def test_a_folder_is_written_once(folder):
    with pytest.raises(FileExistsError):
        save_recommender(load_recommender(folder), folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tree: tree.update(format_version=2), "this program reads"),
        (lambda tree: tree.pop("scorer"), "'scorer'"),
        (
            lambda tree: tree["scorer"].update({"class": "subprocess:Popen"}),
            "subprocess is not of this package",
        ),
        (
            lambda tree: tree["scorer"].update({"class": "recommenders.saving:json"}),
            "json is no dataclass",
        ),
        (lambda tree: tree["scorer"]["fields"].pop("fade"), "fade"),
        (
            lambda tree: tree["recommender"]["fields"].update(neighbours=0),
            "neighbours is 0",
        ),
    ],
)
def test_a_changed_file_is_refused(folder, edit, message):
    change(folder, edit)
    with pytest.raises(ValueError, match=message):
        load_recommender(folder)


@pytest.mark.parametrize("file", ["arrays.npz", "recommender.json"])
def test_a_cut_or_missing_file_is_refused(folder, file):
    path = folder / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="can't be read as a trained recommender"):
        load_recommender(folder)
    path.unlink()
    with pytest.raises(ValueError, match="can't be read as a trained recommender"):
        load_recommender(folder)


def test_a_scorer_that_can_not_be_saved_says_what_it_holds(folder, tmp_path):
    trained = load_recommender(folder)
    odd = TrainedRecommender(
        recommender=trained.recommender,
        interactions=trained.interactions,
        scorer={"a": 1},
    )
    with pytest.raises(TypeError, match="scorer is dict"):
        save_recommender(odd, tmp_path / "odd")
    assert not (tmp_path / "odd").exists()
