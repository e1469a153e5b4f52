"""Snapshots: opened lists, damaged artifacts, and the copy on disk."""

import json
import logging

import pytest

from experiment_service.serving.snapshot import read_copy, write_copy
from tests.unit.serving.conftest import BANDIT, epoch, running

LISTS = {"units": {"u": [0]}, "default": [1, 2]}


def test_copy_is_read_back_equal(shop):
    epochs = [
        epoch(0, {"old": 0.5, "new": 0.5}),
        epoch(1, {"old": 0.3, "new": 0.7}, statistics={"old": {"units": 2.0}}),
    ]
    configuration = shop.configuration(
        running("t", epochs=epochs, **BANDIT), models=[shop.publish("als", **LISTS)]
    )
    write_copy(configuration, shop.data_dir)
    assert read_copy(shop.data_dir) == configuration
    assert [path.name for path in shop.data_dir.glob(".snapshot*")] == []


def test_no_copy(shop):
    assert read_copy(shop.data_dir) is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "7", '{"running": []}', '{"running": [{"epochs": 1}]}'],
)
def test_damaged_copy_is_no_copy(shop, content, caplog):
    (shop.data_dir / "snapshot.json").write_text(content)
    with caplog.at_level(logging.ERROR):
        assert read_copy(shop.data_dir) is None
    assert "snapshot copy not readable" in caplog.text


def test_copy_of_impossible_weights_is_no_copy(shop):
    write_copy(shop.configuration(running("t")), shop.data_dir)
    path = shop.data_dir / "snapshot.json"
    document = json.loads(path.read_text())
    document["running"][0]["epochs"][0]["weights"] = {"old": 0.9, "new": 0.9}
    path.write_text(json.dumps(document))
    assert read_copy(shop.data_dir) is None


def test_failed_write_leaves_the_former_copy(shop, monkeypatch):
    first = shop.configuration(running("t"))
    write_copy(first, shop.data_dir)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_copy(shop.configuration(), shop.data_dir)
    assert read_copy(shop.data_dir) == first
    assert list(shop.data_dir.glob(".snapshot*")) == []


def test_lists_that_are_open_are_not_opened_again(shop):
    model = shop.publish("als", **LISTS)
    first = shop.snapshot(models=[model])
    second = shop.snapshot(models=[model], previous=first)
    assert second.lists["als"] is first.lists["als"]


def test_new_version_is_opened_and_a_retired_model_dropped(shop):
    first = shop.snapshot(models=[shop.publish("als", **LISTS)])
    second = shop.snapshot(
        models=[shop.publish("als", 2, **LISTS), shop.publish("popularity", **LISTS)],
        previous=first,
    )
    assert second.lists["als"].version == 2
    third = shop.snapshot(previous=second)
    assert dict(third.lists) == {}


def damage_nothing(_):
    """Only the digest in the registry is another."""


def damage_bytes(folder):
    path = folder / "lists.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40  # the size stays
    path.write_bytes(content)


def damage_size(folder):
    (folder / "default.npy").write_bytes(b"short")


def damage_absence(folder):
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    "damage", [damage_nothing, damage_bytes, damage_size, damage_absence]
)
def test_damaged_version_leaves_the_former_one_serving(shop, damage, caplog):
    first = shop.snapshot(models=[shop.publish("als", **LISTS)])
    model = shop.publish("als", 2, **LISTS)
    damage(shop.data_dir / model.artifact)
    if damage is damage_nothing:
        model = type(model)(name="als", version=2, artifact=model.artifact, sha256="0")
    with caplog.at_level(logging.ERROR):
        second = shop.snapshot(models=[model], previous=first)
    assert second.lists["als"].version == 1
    assert second.problems["als"].startswith("model als/2 can't be opened: ")
    assert caplog.text.count("model not opened model=als/2 serving=als/1") == 1
    # Said once, not at every poll.
    third = shop.snapshot(models=[model], previous=second)
    assert third.lists["als"].version == 1
    assert caplog.text.count("model not opened") == 1


def test_model_that_never_opened_has_no_lists(shop):
    model = shop.publish("als", **LISTS)
    damage_absence(shop.data_dir / model.artifact)
    snapshot = shop.snapshot(models=[model])
    assert dict(snapshot.lists) == {}
    assert "als" in snapshot.problems
