"""Training on what the service itself logged: which rows, with what weight, and when not."""

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import text

from experiment_service import erasure
from experiment_service.errors import InvalidRequest, InvalidState
from experiment_service.storage.database import transaction
from experiment_service.training.data import digest
from experiment_service.training.own_events import load_own_events
from experiment_service.training.pipeline import OwnEvents
from tests.integration.test_events import START, Maker, ab, make, store
from tests.integration.test_release import (
    ITEMS,
    NOW,
    UNITS,
    folder,
    run,
    shop,
    verdicts,
)

__all__ = ["ab", "folder", "make", "run"]

DAY = timedelta(days=1)
KINDS = {"click": 0.5, "purchase": 2.0}


@pytest.fixture
def load(engine):
    def load(*, since=None, market=None, dislikes=False, others=(), **settings):
        own = OwnEvents(**{"kinds": KINDS, "position_bias": 1, **settings})
        return load_own_events(
            engine,
            own,
            since=since,
            until=START + 5 * DAY,
            market=market,
            dislikes=dislikes,
            others=others,
        )

    return load


@pytest.fixture
def shown(ab, make):
    """Make an exposure of items i, j and k."""

    def shown(unit_id="u", at=START, **changes):
        changes.setdefault("items", ("i", "j", "k"))
        changes.setdefault("sources", ("als",) * len(changes["items"]))
        return make.exposure(ab, unit_id, at, **changes)

    return shown


def rows(feedback):
    """Item, weight and whether it came by a list, in the order of time."""
    table = feedback.interactions
    return list(zip(table["item_id"], table["weight"], table["by_list"], strict=True))


def evidence(feedback):
    """Evidence against each pair."""
    return feedback.shown.groupby(["unit_id", "item_id"])["evidence"].sum().to_dict()


def test_what_is_read_and_how_it_is_weighed(engine, load, shown, make):
    list_ = shown()
    minutes = (START + timedelta(minutes=n) for n in range(1, 20))
    nobody = shown(at=START + DAY)  # never stored
    store(
        engine,
        list_,
        make.interaction(list_, at=next(minutes), item_id="j", position=2),
        make.interaction(list_, at=next(minutes), item_id="j", position=2),
        make.interaction(list_, at=next(minutes), position=3),
        make.interaction(list_, at=next(minutes), item_id="i", kind="purchase"),
        make.interaction(list_, at=next(minutes), item_id="z", kind="purchase"),
        make.interaction(None, "u", next(minutes), item_id="i", kind="purchase"),
        make.interaction(nobody, "u", next(minutes), item_id="k"),
        make.interaction(nobody, None, next(minutes), item_id="k"),
        make.interaction(list_, at=next(minutes), position=9),
        make.interaction(list_, at=next(minutes), item_id="k", kind="dismiss"),
    )
    weighed = load()
    # By its place 1, 2 or 3: the second click on j is the first one again.
    assert rows(weighed) == [
        ("j", 0.5 * 2, True),
        ("k", 0.5 * 3, True),
        ("i", 2.0, True),
        ("z", 2.0, False),
        ("i", 2.0, False),
        ("k", 0.5, True),
    ]
    assert weighed.shown is None
    assert weighed.facts["unusable"] == 2
    left = load(dislikes=True)
    assert [weight for _, weight, _ in rows(left)] == [0.5, 0.5, 2, 2, 2, 0.5]
    # A look is worth a click; what was taken was looked at, whatever its place.
    assert evidence(left) == {
        ("u", "i"): pytest.approx(0.5 * (1 - 1)),
        ("u", "j"): pytest.approx(0.5 * (1 / 2 - 1)),
        ("u", "k"): pytest.approx(0.5 * (1 / 3 - 1)),
    }


def test_a_list_shown_again_on_a_day_is_one_look(engine, load, shown, make):
    today = [shown(at=START + timedelta(minutes=n)) for n in range(4)]
    click = make.interaction(today[2], at=START + timedelta(hours=1), item_id="i")
    store(engine, *today, shown(at=START + DAY), click)
    against = evidence(load(dislikes=True))
    assert against == {
        ("u", "i"): pytest.approx(0.5 * (2 - 1)),
        ("u", "j"): pytest.approx(0.5 * 2 / 2),
        ("u", "k"): pytest.approx(0.5 * 2 / 3),
    }


def test_units_that_count_are_those_that_did_something(engine, load, shown, make):
    mine, other, stranger = shown(), shown("other"), shown("stranger")
    click = make.interaction(mine, at=START + DAY, item_id="j")
    store(engine, mine, other, stranger, click)
    units = {unit for unit, _ in evidence(load(dislikes=True, others=["other"]))}
    assert units == {"u", "other"}


def test_robots_markets_lists_out_of_sight_and_times(engine, load, shown, make):
    seen = shown("de", context={"market": "de"})
    unseen = shown("at", context={"market": "at"})
    robot = [shown("robot", START + timedelta(minutes=n)) for n in range(4)]
    mad = [
        make.interaction(None, "mad", START + timedelta(minutes=n), item_id="i")
        for n in range(4)
    ]
    clicks = [
        make.interaction(each, at=START + timedelta(hours=hour), item_id="k")
        for each, hour in ((seen, 1), (unseen, 30), (robot[0], 3))
    ]
    alone = make.interaction(None, "de", START, item_id="z", kind="purchase")
    viewed = make.interaction(seen, at=START, kind="viewed")
    store(engine, seen, unseen, *robot, *mad, *clicks, alone)

    def units(**asked):
        read = load(**asked)
        return sorted(read.interactions["unit_id"]), read.facts["robots"]

    assert units(most_a_day=4) == (["at", "de", "de", *["mad"] * 4, "robot"], 0)
    assert units(most_a_day=3) == (["at", "de", "de"], 2)
    german = {"market": "de", "market_attribute": "market"}
    assert units(**german) == (["de", "de"], 0)
    assert units(since=START + DAY) == (["at"], 0)
    with pytest.raises(InvalidRequest, match="none of 6 exposures was viewed; set it"):
        load(only_viewed=True)
    store(engine, viewed)
    shown_to = {unit for unit, _ in evidence(load(only_viewed=True, dislikes=True))}
    assert shown_to == {"de"}


def test_what_was_read_can_be_read_again(engine, load, shown, make):
    first = shown()
    store(engine, first, make.interaction(first, at=START + DAY, item_id="j"))
    before = load(dislikes=True)
    later = shown("late")
    store(engine, later, make.interaction(later, at=START + DAY, item_id="j"))
    now = load(dislikes=True)
    again = load(dislikes=True, stored_until=before.facts["stored_until"])

    def told(feedback):
        return digest(feedback.interactions, feedback.shown)

    assert told(again) == told(before) != told(now)
    assert digest(now.interactions) != told(now)
    with transaction(engine) as connection:
        erasure.erase(
            connection, ["late"], actor="key:1", now=START + 2 * DAY, reason="asked"
        )
    assert told(load(dislikes=True)) == told(before)


def test_the_position_bias_comes_from_lists_that_explore(engine, load, ab, make):
    # At places 1 and 2 as many drawn items, of which 240 and 120 are taken.
    events = []
    for n in range(800):
        sources = ("als:explored", "als:explored", "als")
        items = (f"i{n}", f"j{n}", "k")
        list_ = make.exposure(ab, f"u{n}", items=items, sources=sources, model="als/2")
        events.append(list_)
        taken = [items[0]] * (n < 240) + [items[1]] * (n % 20 < 3)
        events += [make.interaction(list_, item_id=item) for item in taken]
    store(engine, *events)
    facts = load(position_bias="estimated").facts
    assert facts["position_bias"] == pytest.approx(1)
    # Two shares of 800: delta method.
    variance = 1 / 240 + 1 / 120 - 2 / 800
    assert facts["position_bias_error"] == pytest.approx(
        variance**0.5 / np.log(2), rel=0.1
    )


def test_retired_months_and_too_little_are_reasons(engine, load, shown, make):
    exposure = shown()
    store(engine, exposure)
    # While nothing comes of any list, nothing that was left tells anything.
    quiet = load(dislikes=True, position_bias="estimated", others=["u"])
    assert (quiet.interactions.empty, quiet.shown) == (True, None)
    store(engine, make.interaction(exposure, at=START, item_id="i"))
    with pytest.raises(InvalidRequest, match=r"^0 interactions are with what was sho"):
        load(position_bias="estimated")
    retired = (
        "INSERT INTO retired_month VALUES "
        "('2026-10-01', 1, 0, '2026-11-01', ARRAY[]::int[], NULL)"
    )
    with transaction(engine) as connection:
        connection.execute(text(retired))
    assert len(rows(load(since=START - DAY))) == 1
    with pytest.raises(InvalidState, match=r"those before 2026-11-01 have been retire"):
        load(since=START - 30 * DAY)


# From events to a version


def log_events(engine, ab, make, *, organic):
    """Store 300 lists of the shop's own items, of which every other brings a click."""
    rng = np.random.default_rng(1)
    events = []
    for each in shop(seed=4, rows=300).itertuples():
        at = each.occurred_at.to_pydatetime()
        others = [f"帽子-{n}" for n in rng.permutation(ITEMS)[:9]]
        items = tuple(dict.fromkeys([*others[:5], each.item_id, *others[5:]]))
        list_ = make.exposure(
            ab, each.unit_id, at, items=items, sources=("als",) * len(items)
        )
        events.append(list_)
        if rng.random() < 0.5:
            click = make.interaction(list_, at=at, item_id=each.item_id)
            events.append(click)
        if organic:
            events.append(
                make.interaction(
                    None,
                    each.unit_id,
                    at + timedelta(minutes=1),
                    item_id=each.item_id,
                    kind="purchase",
                )
            )
    store(engine, *events)


@pytest.mark.parametrize("recommender", ["als", "item_knn"])
def test_a_version_learns_from_purchases_and_own_events_together(
    run, engine, ab, make, recommender
):
    log_events(engine, ab, make, organic=False)
    parameters = {"factors": 4, "iterations": 5} if recommender == "als" else {}
    data = {
        "interactions": "purchases.csv",
        "own": {"kinds": KINDS, "position_bias": 0.7},
    }
    made = run(data=data, recommender=recommender, parameters=parameters, gates=[])
    assert set(verdicts(made).values()) == {"passed"}, made.error
    assert "own interactions" in made.steps[0].said
    trained_on = made.version.metrics["trained_on"]
    own = trained_on["own_events"]
    assert trained_on["interactions"] == 2400 + own["interactions"]
    assert own["by_list"] == own["interactions"] > 100
    assert own["left_counts_against"] is (recommender == "als")
    assert own["position_bias"] == 0.7
    # Judged on purchases alone: clicks on a list tell what was shown.
    known = {f"ünit-{n}" for n in range(UNITS)}
    later = shop()[lambda d: d["occurred_at"] >= made.version.parameters["test_since"]]
    pairs = len(
        later[later["unit_id"].isin(known)].drop_duplicates(["unit_id", "item_id"])
    )
    judged = made.version.metrics["repeats allowed"]
    assert pairs
    assert judged["units"] == later["unit_id"].nunique()
    assert pd.Timestamp(own["stored_until"]) > NOW


@pytest.mark.parametrize(
    "case",
    [
        (None, {}, "there are 0 exposures and 0 interactions without a unit"),
        (False, {"kinds": {"add_to_cart": 1}}, "there are 300 exposures and 0 inter"),
        (False, {}, "interactions since .* came by lists of the service"),
        (True, {}, None),
    ],
)
def test_own_events_alone_are_enough_or_it_is_said_why_not(run, engine, ab, case):
    organic, own, said = case
    if organic is not None:
        log_events(engine, ab, Maker(), organic=organic)
    own = {"kinds": KINDS, "position_bias": 1, **own}
    made = run(data={"own": own}, gates=[], checks={"min_interactions": 100})
    if said is None:
        assert set(verdicts(made).values()) == {"passed"}, made.error
    else:
        assert made.version is None
        assert pd.Series([made.error.message]).str.contains(said).all(), made.error
