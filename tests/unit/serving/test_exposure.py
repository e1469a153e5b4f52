"""Prefetched exposures: the server computes the assignment again and trusts nobody."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from experiment_service.domain.assignment import assign
from experiment_service.errors import InvalidRequest
from experiment_service.serving.answer import Carousel, decide
from experiment_service.serving.exposure import make_exposure, verify_exposure
from tests.unit.serving.conftest import BANDIT, NOW, epoch, running

EPOCHS = [epoch(0, {"old": 0.5, "new": 0.5}), epoch(1, {"old": 0.2, "new": 0.8})]


def uuid7_at(instant):
    milliseconds = int(1000 * instant.timestamp())
    return UUID(int=(milliseconds << 80) | (7 << 76) | (2 << 62) | 12345)


@pytest.fixture
def experiment():
    return running(
        "t",
        epochs=EPOCHS,
        traffic_share=0.9,
        overrides={"qa": "new"},
        targeting=[{"attribute": "country", "operator": "in", "values": ["at"]}],
        **BANDIT,
    )


@pytest.fixture
def snapshot(shop, experiment):
    return shop.snapshot(experiment)


@pytest.fixture
def posted(experiment):
    """What a client honestly sends back for a unit that was admitted in epoch 0."""
    attributes = {"country": "at"}
    unit, assignment = next(
        (unit, found)
        for unit in map(str, range(100))
        if (found := assign(experiment.experiment, EPOCHS[0], unit, attributes)).counted
    )
    return {
        "exposure_id": uuid7_at(NOW - timedelta(minutes=5)),
        "experiment": "t",
        "unit_id": unit,
        "variant": assignment.variant,
        "epoch": 0,
        "model": "als/1",
        "items": ["i1"],
        "sources": ["als"],
        "attributes": attributes,
        "exposed_at": None,
        "now": NOW,
    }


def test_honest_exposure_gets_the_propensity_of_its_epoch(snapshot, posted):
    exposure = verify_exposure(snapshot, **posted)
    assert exposure.propensity == EPOCHS[0].weights[posted["variant"]] == 0.5
    assert (exposure.id, exposure.epoch) == (posted["exposure_id"], 0)
    assert exposure.exposed_at == NOW
    shown = verify_exposure(
        snapshot, **posted | {"exposed_at": NOW - timedelta(hours=1)}
    )
    assert shown.exposed_at == NOW - timedelta(hours=1)


def test_prefetched_and_logged_exposures_are_equal(snapshot, posted, sticky):
    carousel = Carousel(model="als/1", items=["i1"], sources=["als"], fallback=False)
    decision = decide(snapshot, sticky, "home", posted["unit_id"], posted["attributes"])
    logged = make_exposure(
        decision,
        carousel,
        posted["unit_id"],
        posted["attributes"],
        exposure_id=posted["exposure_id"],
        now=NOW,
    )
    honest = posted | {"epoch": 1, "variant": decision.variant}
    recommender = decision.recommender
    rebuilt = verify_exposure(snapshot, **honest | {"sources": [recommender]})
    assert rebuilt.propensity == logged.propensity
    assert (rebuilt.variant, rebuilt.epoch) == (logged.variant, logged.epoch)


@pytest.mark.parametrize(
    ("change", "field", "text"),
    [
        ({"experiment": "nope"}, "experiment", "does not exist"),
        ({"experiment": "done"}, "experiment", "is stopped"),
        ({"epoch": 2}, "epoch", "has epochs 0 to 1"),
        ({"unit_id": "qa"}, "unit_id", "override"),
        ({"attributes": {}}, "unit_id", "'country'"),
        ({"attributes": {"country": "de"}}, "unit_id", "'country'"),
        ({"exposure_id": uuid4()}, "exposure_id", "not a UUIDv7"),
        ({"exposure_id": UUID(int=2**128 - 1)}, "exposure_id", "not a UUIDv7"),
        (
            {"exposure_id": UUID("ffffffff-ffff-7fff-8fff-ffffffffffff")},
            "exposure_id",
            "out of range",
        ),
        (
            {"exposure_id": uuid7_at(NOW - timedelta(days=30, minutes=1))},
            "exposure_id",
            "out of range",
        ),
        (
            {"exposure_id": uuid7_at(NOW + timedelta(minutes=6))},
            "exposure_id",
            "not in the future",
        ),
        ({"exposed_at": NOW + timedelta(hours=1)}, "exposed_at", "out of range"),
        ({"exposed_at": NOW.replace(tzinfo=None)}, "exposed_at", "no time zone"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_field(
    snapshot, posted, change, field, text
):
    with pytest.raises(InvalidRequest, match=text) as refusal:
        verify_exposure(snapshot, **posted | change)
    assert refusal.value.field == field


def test_chosen_variant_is_refused(snapshot, posted):
    other = "old" if posted["variant"] == "new" else "new"
    for variant in (other, "nope"):
        with pytest.raises(InvalidRequest, match="in epoch 0 the unit has variant"):
            verify_exposure(snapshot, **posted | {"variant": variant})


def test_unit_outside_the_traffic_is_refused(snapshot, posted, experiment):
    outside = next(
        unit
        for unit in map(str, range(200))
        if assign(experiment.experiment, EPOCHS[0], unit, {"country": "at"}).step
        == "traffic_gate"
    )
    for variant in ("old", "new"):
        with pytest.raises(InvalidRequest, match=r"traffic share 0\.9"):
            verify_exposure(
                snapshot, **posted | {"unit_id": outside, "variant": variant}
            )


def test_fallback_is_told_by_the_sources(snapshot, posted):
    own = {"old": "popularity", "new": "als"}[posted["variant"]]
    other = {"old": "als", "new": "popularity"}[posted["variant"]]
    exposure = verify_exposure(snapshot, **posted | {"sources": [own]})
    assert not exposure.fallback
    assert verify_exposure(snapshot, **posted | {"sources": [other]}).fallback
    bare = verify_exposure(snapshot, **posted | {"items": [], "sources": []})
    assert not bare.fallback


def test_no_exposure_outside_or_for_an_override(shop, snapshot, sticky):
    carousel = Carousel(model="als/1", items=[], sources=[], fallback=True)
    for place, unit in ((shop.snapshot(), "u"), (snapshot, "qa")):
        decision = decide(place, sticky, "home", unit, {})
        made = make_exposure(
            decision, carousel, unit, {}, exposure_id=uuid7_at(NOW), now=NOW
        )
        assert made is None
