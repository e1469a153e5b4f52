"""Who gets what: the one experiment that admits a unit, and the chain of sources."""

from collections import Counter

import numpy as np
import pytest

from experiment_service.domain.assignment import Step, assign, layer_segment
from experiment_service.errors import NotFound
from experiment_service.serving.answer import (
    decide,
    decide_experiment,
    fill_carousel,
    is_fallback,
    model_label,
)
from tests.unit.serving.conftest import BANDIT, epoch, running

ALS = {
    "units": {"u": [0, 1, 2]},
    "default": [3, 4, 0, 5],
    "related": {7: [8, 2, 7]},
}
POPULARITY = {"units": {"someone": [9]}, "default": [6, 3, 9, 1]}


@pytest.fixture
def lists(shop):
    models = [shop.publish("als", **ALS), shop.publish("popularity", **POPULARITY)]
    return shop.snapshot(models=models)


def named(carousel):
    return list(zip(carousel.items, carousel.sources, strict=True))


def test_own_list_comes_first_and_is_no_fallback(lists):
    carousel = fill_carousel(lists, "als", "u", k=2)
    assert named(carousel) == [("i0", "als"), ("i1", "als")]
    assert not carousel.fallback
    assert carousel.model == "als/1"


def test_each_source_in_turn_until_k_without_an_item_twice(lists):
    carousel = fill_carousel(lists, "als", "u", k=200)
    assert named(carousel) == [
        ("i0", "als"),
        ("i1", "als"),
        ("i2", "als"),
        ("i3", "als:default"),
        ("i4", "als:default"),
        ("i5", "als:default"),
        ("i6", "popularity:default"),
        ("i9", "popularity:default"),
    ]
    assert carousel.fallback


def test_related_items_go_before_the_unit_list_and_are_no_fallback(lists):
    carousel = fill_carousel(lists, "als", "u", k=4, item_id="i7")
    assert named(carousel) == [
        ("i8", "als:related"),
        ("i2", "als:related"),
        ("i0", "als"),
        ("i1", "als"),
    ]
    assert not carousel.fallback


def test_item_at_hand_and_excluded_items_never_come(lists):
    carousel = fill_carousel(lists, "als", "u", k=200, item_id="i3", exclude=["i0"])
    assert "i3" not in carousel.items
    assert "i0" not in carousel.items
    assert carousel.items[0] == "i1"


def test_unknown_unit_and_item_get_the_default(lists):
    carousel = fill_carousel(lists, "als", "nobody", k=1, item_id="unheard of")
    assert named(carousel) == [("i3", "als:default")]
    assert carousel.fallback


def test_model_that_does_not_serve_falls_back_to_popularity(lists):
    carousel = fill_carousel(lists, "item_knn", "u", k=2)
    assert named(carousel) == [
        ("i6", "popularity:default"),
        ("i3", "popularity:default"),
    ]
    assert carousel.fallback
    assert carousel.model == "popularity/1"


def test_nothing_that_serves_gives_no_items_and_counts_as_fallback(shop):
    carousel = fill_carousel(shop.snapshot(), "als", "u", k=5)
    assert named(carousel) == []
    assert carousel.fallback
    assert carousel.model == "als" == model_label(shop.snapshot(), "als")


def test_default_list_is_popularity_s_own(lists):
    carousel = fill_carousel(lists, "popularity", "u", k=2)
    assert named(carousel) == [
        ("i6", "popularity:default"),
        ("i3", "popularity:default"),
    ]
    assert not carousel.fallback
    assert is_fallback("als", ["als", "als:default"])
    assert not is_fallback("als", ["als:related", "als"])


def test_parts_and_steps_of_a_recommender_are_told_and_no_fallback(shop):
    sources = np.array([[1, 0, 2, 0]], dtype=np.int8)
    labels = ("", "new", "explored")
    als = shop.publish("als", **ALS, sources=sources, labels=labels)
    snapshot = shop.snapshot(models=[als])
    carousel = fill_carousel(snapshot, "als", "u", k=2, exclude=["i1"])
    assert named(carousel) == [("i0", "als:new"), ("i2", "als:explored")]
    assert not carousel.fallback
    longer = fill_carousel(snapshot, "als", "u", k=5, item_id="i7")
    assert named(longer) == [
        ("i8", "als:related"),
        ("i2", "als:related"),
        ("i0", "als:new"),
        ("i1", "als"),
        ("i3", "als:default"),
    ]
    assert longer.fallback
    nobody = fill_carousel(snapshot, "als", "nobody", k=1)
    assert named(nobody) == [("i3", "als:default")]
    assert is_fallback("als", ["als", "popularity:explored"])


@pytest.fixture
def sessions(shop):
    """Beside i7 go i8 and i2, beside i6 i2, i9 and i1; the latest counts twice."""
    scores = np.zeros((10, 4), dtype=np.float32)
    scores[6, :3], scores[7, :2] = (4, 3, 1), (5, 3)
    als = shop.publish(
        "als",
        **{**ALS, "related": {7: [8, 2], 6: [2, 9, 1]}},
        related_scores=scores,
        session_fade=(1.0, 0.5),
    )
    return shop.snapshot(models=[als, shop.publish("popularity", **POPULARITY)])


@pytest.mark.parametrize("unit", ["u", "nobody"])
def test_recent_items_are_used_at_once_whoever_it_is(sessions, unit):
    # i2 has 4 + 3 / 2, i9 3, i8 5 / 2, i1 1.
    carousel = fill_carousel(sessions, "als", unit, k=3, recent_item_ids=["i7", "i6"])
    assert named(carousel) == [(f"i{n}", "als:session") for n in (2, 9, 8)]
    assert not carousel.fallback
    # i2 has 3 + 4 / 2, as has i8: equal ones by id.
    carousel = fill_carousel(sessions, "als", unit, k=3, recent_item_ids=["i6", "i7"])
    assert carousel.items == ["i2", "i8", "i9"]
    carousel = fill_carousel(
        sessions, "als", unit, k=2, recent_item_ids=["i6", "i7"], exclude=["i8"]
    )
    assert carousel.items == ["i2", "i9"]


def test_a_short_session_is_filled_up_and_shows_no_recent_item(sessions):
    carousel = fill_carousel(
        sessions, "als", "u", k=200, recent_item_ids=["i0", "unheard of", "i7"]
    )
    assert named(carousel) == [
        ("i8", "als:session"),
        ("i2", "als:session"),
        ("i1", "als"),
        ("i3", "als:default"),
        ("i4", "als:default"),
        ("i5", "als:default"),
        ("i6", "popularity:default"),
        ("i9", "popularity:default"),
    ]
    assert carousel.fallback
    carousel = fill_carousel(
        sessions, "als", "u", k=2, recent_item_ids=["unheard of", "i0"]
    )
    assert named(carousel) == [("i1", "als"), ("i2", "als")]


def test_the_item_at_hand_goes_before_recent_items(sessions):
    carousel = fill_carousel(
        sessions, "als", "u", k=4, item_id="i7", recent_item_ids=["i6", "i7"]
    )
    assert named(carousel) == [
        ("i8", "als:related"),
        ("i2", "als:related"),
        ("i9", "als:session"),
        ("i1", "als:session"),
    ]


@pytest.mark.parametrize("recommender", ["als", "popularity", "item_knn"])
def test_a_version_without_scores_ignores_recent_items(lists, recommender):
    given = {"k": 5, "item_id": "i7", "exclude": ["i0"]}
    with_recent = fill_carousel(
        lists, recommender, "u", recent_item_ids=["i1", "i6"], **given
    )
    assert with_recent == fill_carousel(lists, recommender, "u", **given)


def test_placement_s_recommender_outside_experiments(shop, sticky):
    decision = decide(shop.snapshot(), sticky, "home", "u", {})
    assert decision.served is None
    assert decision.variant is None
    assert (decision.recommender, decision.settings) == ("popularity", {"title": "Top"})


def test_unknown_placement_names_those_that_exist(shop, sticky):
    with pytest.raises(NotFound, match=r"'shelf' does not exist; placements: home"):
        decide(shop.snapshot(), sticky, "shelf", "u", {})


def test_variant_is_that_of_the_assignment_with_its_settings(shop, sticky):
    experiment = running("t")
    snapshot = shop.snapshot(experiment)
    for number in range(50):
        unit = f"u{number}"
        expected = assign(experiment.experiment, experiment.current, unit, {})
        decision = decide(snapshot, sticky, "home", unit, {})
        assert decision.assignment == expected
        assert decision.recommender == (
            "als" if expected.variant == "new" else "popularity"
        )
        assert decision.settings == (
            {"title": "You"} if expected.variant == "new" else {}
        )


def test_experiments_of_a_layer_share_units_by_segment(shop, sticky):
    first = running("a", number=1, segments=[0, 3000])
    second = running("b", number=2, segments=[3000, 6000])
    snapshot = shop.snapshot(first, second)
    seen = Counter()
    for number in range(2000):
        unit = f"u{number}"
        decision = decide(snapshot, sticky, "home", unit, {})
        segment = layer_segment("layer:default", unit)
        expected = "a" if segment < 3000 else "b" if segment < 6000 else None
        found = decision.served.experiment.key if decision.served else None
        assert found == expected
        seen[found] += 1
    # Binomial(2000, 0.3): four standard errors are 82.
    assert abs(seen["a"] - 600) < 82
    assert abs(seen["b"] - 600) < 82


def test_override_of_a_later_experiment_goes_before_admission_to_an_earlier(
    shop, sticky
):
    first = running("a", number=1, segments=[0, 9999])
    second = running("b", number=2, segments=[9999, 10000], overrides={"qa": "new"})
    decision = decide(shop.snapshot(first, second), sticky, "home", "qa", {})
    assert decision.served.experiment.key == "b"
    assert decision.assignment.step is Step.OVERRIDE
    assert decision.recommender == "als"


def test_sticky_unit_keeps_its_first_epoch(shop, sticky):
    epochs = [epoch(0, {"old": 1.0, "new": 0.0}), epoch(1, {"old": 0.0, "new": 1.0})]
    experiment = running("t", epochs=epochs, mode="sticky", **BANDIT)
    snapshot = shop.snapshot(experiment)
    sticky.remember(1, "loyal", 0)
    loyal = decide(snapshot, sticky, "home", "loyal", {}).assignment
    fresh = decide(snapshot, sticky, "home", "fresh", {}).assignment
    assert (loyal.variant, loyal.epoch, loyal.propensity) == ("old", 0, 1.0)
    assert loyal.step is Step.STICKY
    assert (fresh.variant, fresh.epoch, fresh.step) == ("new", 1, Step.VARIANT)


def test_one_experiment_by_key(shop, sticky):
    snapshot = shop.snapshot(running("t", traffic_share=0.0), running("v", number=2))
    inside = decide_experiment(snapshot, sticky, "v", "u", {})
    assert inside.variant in ("old", "new")
    outside = decide_experiment(snapshot, sticky, "t", "u", {})
    assert outside.variant is None
    assert outside.assignment.step is Step.TRAFFIC_GATE
    assert outside.recommender == "popularity"
    over = decide_experiment(snapshot, sticky, "done", "u", {})
    assert (over.assignment, over.recommender) == (None, None)
    assert over.reason == "the experiment is stopped"
    with pytest.raises(NotFound, match="experiments: done, t, v"):
        decide_experiment(snapshot, sticky, "nope", "u", {})
