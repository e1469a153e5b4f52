"""What a shadow computes beside an answer, and what is given up when it falls behind."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from experiment_service.domain.configuration import ShadowModel
from experiment_service.errors import Unavailable
from experiment_service.serving import shadow as module
from experiment_service.serving.answer import fill_carousel
from experiment_service.serving.shadow import ShadowRunner
from experiment_service.serving.snapshot import build_snapshot, read_copy, write_copy
from tests.unit.serving.conftest import NOW

LIVE = {"units": {"u": [0, 1, 2]}, "default": [5, 6, 7]}
BESIDE = {
    "units": {"u": [1, 8, 2]},
    "default": [5, 9, 7],
    "related": {4: [3, 8]},
    "related_scores": np.full((10, 3), 0.5, dtype=np.float32),
    "session_fade": (1.0,),
}


@pytest.fixture
def given(shop):
    """A snapshot in which als/2 is the shadow of als/1."""
    models = [shop.publish("als", **LIVE)]
    beside = ShadowModel(version_id=7, model=shop.publish("als", 2, **BESIDE), share=1)
    configuration = replace(shop.configuration(models=models), shadows=(beside,))
    return build_snapshot(configuration, shop.data_dir)


class Stored(list):
    """In place of the database: keeps answers, or fails."""

    failure: Exception | None = None

    def insert(self, _, answers):
        if self.failure is not None:
            raise self.failure
        self.extend(answers)


@pytest.fixture
def stored(monkeypatch):
    stored = Stored()
    monkeypatch.setattr(module, "insert_answers", stored.insert)
    monkeypatch.setattr(module, "transaction", lambda _: nullcontext())
    return stored


@pytest.fixture
def runner():
    return ShadowRunner(None, clock=lambda: NOW)


def note(runner, snapshot, unit="u", **more):
    given = {"k": 3, "item_id": None, "recent_item_ids": (), "exclude": (), **more}
    shown = fill_carousel(snapshot, "als", unit, **given)
    runner.note(snapshot, "als", unit, shown, answer_id=None, **given)


def test_a_copy_has_the_shadows(given, shop):
    write_copy(given.configuration, shop.data_dir)
    assert read_copy(shop.data_dir) == given.configuration


def test_both_lists_are_compared(given, runner, stored):
    note(runner, given)
    note(runner, given, "stranger")
    note(runner, given, exclude=["i1"], k=2)
    note(runner, given, recent_item_ids=["i4"])
    runner._compute()
    runner._store()
    own, default, excluded, recent = stored
    assert (own.version_id, own.unit_id, own.answered_at) == (7, "u", NOW)
    # i0, i1, i2 beside i1, i8, i2.
    assert (own.shown, own.made, own.common, own.same_places) == (3, 3, 2, [3])
    assert (own.shown_fallback, own.fallback, own.error) == (False, False, None)
    # i5, i6, i7 beside i5, i9, i7.
    assert (default.common, default.same_places, default.fallback) == (2, [1, 3], True)
    # i0, i2 beside i8, i2.
    assert (excluded.made, excluded.same_places) == (2, [2])
    # i0, i1, i2 of a version without scores beside i3, i8, i1.
    assert (recent.common, recent.same_places, recent.fallback) == (1, [], False)
    assert runner.counts == {("als/2", "made"): 4}


def test_a_shadow_whose_lists_are_damaged_fails_and_nothing_else(shop, given, runner):
    (shop.data_dir / "models/als/2/lists.npy").write_bytes(b"")
    snapshot = build_snapshot(given.configuration, shop.data_dir)
    assert snapshot.problems == {}
    assert not snapshot.is_whole
    note(runner, snapshot)
    runner._compute()
    ((_, answer),) = runner._unstored
    assert answer.error.startswith("its lists can't be opened: ")
    assert (answer.shown, answer.made, answer.common) == (3, 0, 0)
    assert runner.counts == {("als/2", "failed"): 1}


def test_an_error_is_the_answer(given, runner, monkeypatch):
    def fail(*_, **__):
        raise IndexError("row 12")

    note(runner, given)
    monkeypatch.setattr(module, "fill_carousel", fail)
    runner._compute()
    ((_, answer),) = runner._unstored
    assert answer.error == "IndexError: row 12"


def test_a_promoted_shadow_is_not_opened_again(shop, given):
    (beside,) = given.configuration.shadows
    configuration = shop.configuration(models=[beside.model])
    after = build_snapshot(configuration, shop.data_dir, given)
    assert after.lists["als"] is given.shadows["als"][0].lists
    assert after.shadows == {}


def test_what_waits_is_bounded(given, runner, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    for _ in range(5):
        note(runner, given)
    runner._compute()
    assert runner.counts == {("als/2", "made"): 2, ("als/2", "dropped"): 3}


def test_answers_wait_for_the_database_up_to_a_bound(
    given, runner, stored, monkeypatch
):
    monkeypatch.setattr(module, "MAX_UNSTORED", 2)
    stored.failure = Unavailable("away")
    for _ in range(3):
        note(runner, given)
    runner._compute()
    with pytest.raises(Unavailable):
        runner._store()
    stored.failure = None
    runner._store()
    assert len(stored) == 2
    assert runner.counts["als/2", "lost"] == 1


def test_a_batch_that_can_t_be_stored_is_given_up(given, runner, stored):
    stored.failure = ValueError("odd")
    note(runner, given)
    runner._compute()
    with pytest.raises(ValueError, match="odd"):
        runner._store()
    stored.failure = None
    runner._store()
    assert stored == []
    assert runner.counts["als/2", "lost"] == 1
