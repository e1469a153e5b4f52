"""Events in Postgres: every rule of attribution, I4, retries, races and partitions."""

import random
import threading
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from sqlalchemy import text

from experiment_service.domain.declaration import parse_declaration
from experiment_service.domain.event import (
    EVENT_KINDS,
    Exposure,
    Interaction,
    event_uuid,
)
from experiment_service.domain.experiment import Epoch, ExperimentState
from experiment_service.errors import InvalidRequest, Unavailable
from experiment_service.storage import experiments as storage
from experiment_service.storage.counts import default_partition_rows
from experiment_service.storage.database import migrate, transaction
from experiment_service.storage.events import (
    StoredCounts,
    rebuild_outcomes,
    store_events,
)
from experiment_service.storage.partitions import ensure_partitions

START = datetime(2026, 11, 20, 12, tzinfo=UTC)
WINDOW = timedelta(hours=6)
MICROSECOND = timedelta(microseconds=1)


def make_experiment(connection, key, *, kind="ab", window=WINDOW):
    """Store a running experiment with variants a and b, and two epochs if a bandit."""
    document = {
        "key": key,
        "kind": kind,
        "placement": f"place-{key}",
        "layer": f"layer-{key}",
        "attribution_window": window.total_seconds(),
        "variants": [
            {"key": "a", "recommender": "popularity", "control": True},
            {"key": "b", "recommender": "als"},
        ],
    }
    if kind == "bandit":
        document["policy"] = {"name": "thompson"}
    experiment = storage.create_experiment(
        connection, parse_declaration(document), now=START
    )
    storage.set_state(connection, experiment, ExperimentState.RUNNING, now=START)
    for number in range(2):
        epoch = Epoch(
            number=number,
            weights={"a": 0.5, "b": 0.5},
            reason="test",
            started_at=START,
        )
        storage.insert_epoch(connection, experiment.id, epoch)
    return experiment.id


class Maker:
    """Makes events with ids as the service makes them, but reproducibly."""

    def __init__(self, seed=0):
        self.random = random.Random(seed)

    def uuid7(self, instant):
        milliseconds = int(instant.timestamp() * 1000)
        value = (milliseconds << 80) | self.random.getrandbits(80)
        value = value & ~(0xF << 76) | (0x7 << 76)
        return UUID(int=value & ~(0x3 << 62) | (0x2 << 62))

    def exposure(self, experiment_id, unit_id="u", at=START, **changes):
        values = {
            "id": self.uuid7(at),
            "experiment_id": experiment_id,
            "unit_id": unit_id,
            "variant": "a",
            "epoch": 0,
            "propensity": 0.5,
            "model": "popularity/1",
            "items": ("i", "j"),
            "sources": ("popularity", "popularity"),
            "fallback": False,
            "context": {},
            "exposed_at": at,
        }
        return Exposure(**(values | changes))

    def interaction(self, exposure=None, unit_id=None, at=START, **changes):
        values = {
            "id": self.uuid7(at),
            "exposure_id": exposure.id if exposure else None,
            "unit_id": unit_id,
            "kind": "click",
            "item_id": None,
            "position": None,
            "value": None,
            "occurred_at": at,
        }
        return Interaction(**(values | changes))


@pytest.fixture
def make():
    return Maker()


@pytest.fixture
def ab(engine):
    with transaction(engine) as connection:
        return make_experiment(connection, "ab")


@pytest.fixture
def bandit(engine):
    with transaction(engine) as connection:
        return make_experiment(connection, "bandit", kind="bandit")


def store(engine, *events):
    with transaction(engine) as connection:
        return store_events(
            connection,
            [event for event in events if isinstance(event, Exposure)],
            [event for event in events if isinstance(event, Interaction)],
        )


TABLES = {
    "unit_exposure": "experiment_id, unit_id, epoch, variant",
    "attribution": "interaction_id, experiment_id, phase",
    "unit_outcome": "experiment_id, unit_id, phase, kind, position, category, placement",
    "unit_history": "unit_id, day, kind",
    "unit_of_analysis": "experiment_id, unit_id, phase",
}


def table_rows(engine, table):
    """Every column of every row as Postgres writes it, to the last digit."""
    with transaction(engine) as connection:
        rows = connection.execute(
            text(f"SELECT t::text FROM {table} t ORDER BY {TABLES[table]}")
        )
        return [row[0] for row in rows]


def all_rows(engine):
    return {table: table_rows(engine, table) for table in TABLES}


def outcome_key(*key):
    return key if key[-1] else key[:-1]


def outcomes(engine):
    """Return (experiment, unit, phase, kind) -> (count, value sum, first time).

    With the position at the end of the key if there is one; of all categories and
    placements together.
    """
    with transaction(engine) as connection:
        rows = connection.execute(
            text(
                """SELECT experiment_id, unit_id, phase, kind, position,
                       sum(count) AS count, sum(value_sum) AS value_sum,
                       min(first_at) AS first_at
                FROM unit_outcome
                GROUP BY experiment_id, unit_id, phase, kind, position"""
            )
        )
        return {
            outcome_key(
                row.experiment_id, row.unit_id, row.phase, row.kind, row.position
            ): (
                row.count,
                row.value_sum,
                row.first_at,
            )
            for row in rows
        }


def outcomes_by_hand(experiments, exposures, interactions):
    """Straight from the definition; `experiments` gives (kind, window) by id."""
    found = defaultdict(dict)
    for event in interactions:
        for shown in exposures:
            kind, window = experiments[shown.experiment_id]
            if event.exposure_id is None:
                belongs = event.unit_id == shown.unit_id
            else:
                belongs = event.exposure_id == shown.id and event.unit_id in (
                    None,
                    shown.unit_id,
                )
            age = event.occurred_at - shown.exposed_at
            if belongs and timedelta(0) <= age <= window:
                phase = shown.epoch if kind == "bandit" else 0
                key = outcome_key(
                    shown.experiment_id,
                    shown.unit_id,
                    phase,
                    event.kind,
                    event.position,
                )
                found[key][event.id] = event
    return {
        key: (
            len(events),
            sum((event.value or Decimal(0) for event in events.values()), Decimal(0)),
            min(event.occurred_at for event in events.values()),
        )
        for key, events in found.items()
    }


def units_by_hand(exposures):
    groups = defaultdict(list)
    for each in exposures:
        groups[each.experiment_id, each.unit_id, each.epoch, each.variant].append(each)
    return {
        key: (
            len(shown),
            sum(each.fallback for each in shown),
            *min(
                (e.exposed_at, e.segment or "", sorted(e.context.items()), e.propensity)
                for e in shown
            )[1:],
            min(each.exposed_at for each in shown),
            max(each.exposed_at for each in shown),
        )
        for key, shown in groups.items()
    }


def units(engine):
    with transaction(engine) as connection:
        rows = connection.execute(text("SELECT * FROM unit_exposure"))
        return {
            (row.experiment_id, row.unit_id, row.epoch, row.variant): (
                row.exposures,
                row.fallback_exposures,
                row.segment or "",
                sorted(row.context.items()),
                row.propensity,
                row.first_at,
                row.last_at,
            )
            for row in rows
        }


def analysed_by_hand(experiments, exposures, interactions):
    """Each unit of analysis: where it belongs, what it did, what it had done before."""
    groups = defaultdict(list)
    for (experiment, unit_id, epoch, variant), row in units_by_hand(exposures).items():
        phase = epoch if experiments[experiment][0] == "bandit" else 0
        groups[experiment, unit_id, phase].append((epoch, row[5], variant, row))
    unit_of = {each.id: each.unit_id for each in exposures}
    done = outcomes_by_hand(experiments, exposures, interactions)
    found = {}
    for key, rows in groups.items():
        rows.sort()
        epoch, first_at, variant, first = rows[0]
        first_at = min(row[1] for row in rows)
        did, before = {}, {}
        for kind in EVENT_KINDS:
            own = [value for of, value in done.items() if of[:4] == (*key, kind)]
            if own:
                counts, values, times = zip(*own, strict=True)
                did[kind] = (sum(counts), float(sum(values)), min(times))
            earlier = [
                event.value or Decimal(0)
                for event in interactions
                if event.kind == kind
                and (event.unit_id or unit_of[event.exposure_id]) == key[1]
                and 1 <= (first_at.date() - event.occurred_at.date()).days <= 28
            ]
            if earlier:
                before[kind] = (len(earlier), float(sum(earlier)))
        found[key] = (
            (variant, epoch, *first[2:5]),
            (sum(row[3][0] for row in rows), first_at, max(row[3][6] for row in rows)),
            min((row[1] for row in rows if row[2] != variant), default=None),
            did,
            before,
        )
    return found


def analysed(engine):
    with transaction(engine) as connection:
        rows = connection.execute(text("SELECT * FROM unit_of_analysis")).mappings()

        def each(row, kinds, *columns):
            return {
                kind: tuple(row[f"{kind}_{column}"] for column in columns)
                for kind in kinds
                if row[f"{kind}_{columns[0]}"] is not None
            }

        return {
            (row["experiment_id"], row["unit_id"], row["phase"]): (
                (
                    row["variant"],
                    row["epoch"],
                    row["segment"] or "",
                    sorted(row["context"].items()),
                    row["propensity"],
                ),
                (row["exposures"], row["first_at"], row["last_at"]),
                row["crossed_at"],
                each(row, EVENT_KINDS, "count", "value", "at"),
                each(row, EVENT_KINDS, "count_before", "value_before"),
            )
            for row in rows
        }


# One event at a time.


def test_every_column_is_stored(engine, ab, make):
    odd = ('"', "\\", "a\tb\nc", "{}", "NULL", "", "\\N", "päö 🛒", "a,b", "'")
    exposure = make.exposure(
        ab,
        segment="phone / käse",
        unit_id="ünit\\",
        variant="b",
        epoch=1,
        propensity=0.1 + 0.2,
        model="als/3",
        items=odd,
        sources=odd[::-1],
        fallback=True,
        context={"device": "phone \\ \t", "age": 7, "share": 0.1, "member": True},
        exposed_at=START + MICROSECOND,
    )
    interaction = make.interaction(
        exposure,
        unit_id="ünit\\",
        kind="purchase",
        item_id="\\N",
        category="käse \\",
        position=2,
        value=Decimal("12.50"),
        at=START + 3 * MICROSECOND,
    )
    assert store(engine, exposure, interaction) == StoredCounts(
        exposures=1, interactions=1, attributed=1
    )
    with transaction(engine) as connection:
        row = connection.execute(text("SELECT * FROM exposure")).one()._asdict()
        lag = row.pop("recorded_at") - datetime.now(UTC)
        assert abs(lag) < timedelta(minutes=1)
        assert row == {
            name: getattr(exposure, name)
            if name not in ("items", "sources")
            else list(getattr(exposure, name))
            for name in row
        }
        row = connection.execute(text("SELECT * FROM interaction")).one()._asdict()
        del row["recorded_at"]
        assert row == {name: getattr(interaction, name) for name in row}
        assert str(row["value"]) == "12.50"


def test_nothing_to_store_is_no_work(engine):
    assert store(engine) == StoredCounts(exposures=0, interactions=0, attributed=0)


def test_retry_changes_nothing_whatever_it_carries(engine, ab, make):
    exposure = make.exposure(ab)
    click = make.interaction(exposure, value=Decimal(3))
    store(engine, exposure, click)
    before = all_rows(engine)
    later = START + timedelta(hours=1)
    again = make.exposure(ab, id=exposure.id, unit_id="other", exposed_at=later)
    clicked_again = make.interaction(exposure, id=click.id, at=later, value=Decimal(9))
    counts = store(engine, again, clicked_again)
    assert counts == StoredCounts(exposures=0, interactions=0, attributed=0)
    assert all_rows(engine) == before


def test_copies_in_one_batch_count_once_and_the_first_wins(engine, ab, make):
    exposure = make.exposure(ab)
    copy = make.exposure(ab, id=exposure.id, unit_id="other")
    click = make.interaction(exposure)
    counts = store(engine, exposure, copy, exposure, click, click)
    assert counts == StoredCounts(exposures=1, interactions=1, attributed=1)
    assert outcomes(engine) == {(ab, "u", 0, "click"): (1, 0, START)}
    assert list(units(engine)) == [(ab, "u", 0, "a")]


def test_batches_of_one_transaction_are_kept_apart(engine, ab, make):
    shown = [make.exposure(ab, unit_id=f"u{i}") for i in range(4)]
    with transaction(engine) as connection:
        for batch in (shown[:2], shown[1:], shown):
            counts = store_events(connection, batch, [])
            assert counts.exposures == (2 if batch is not shown else 0)
    assert len(units(engine)) == 4


@pytest.mark.parametrize("event_id", ["order-77", "7", "not a uuid at all", "é" * 128])
def test_foreign_ids_have_their_own_partition_and_retry_safely(
    engine, ab, make, event_id
):
    exposure = make.exposure(ab)
    for hours in (1, 2):
        event = make.interaction(
            exposure, id=event_uuid(event_id), at=START + timedelta(hours=hours)
        )
        store(engine, exposure, event)
    with transaction(engine) as connection:
        stored = connection.scalar(text("SELECT count(*) FROM interaction_foreign"))
    assert stored == 1
    first_at = START + timedelta(hours=1)
    assert outcomes(engine) == {(ab, "u", 0, "click"): (1, 0, first_at)}


# Attribution.


@pytest.mark.parametrize("exposure_first", [False, True])
@pytest.mark.parametrize(
    ("age", "counts"),
    [
        (timedelta(0), True),
        (-MICROSECOND, False),
        (WINDOW, True),
        (WINDOW + MICROSECOND, False),
        (timedelta(days=-20), False),
        (timedelta(days=20), False),
    ],
)
def test_window_has_both_its_edges(engine, ab, age, counts, exposure_first):
    make = Maker()
    at = START + age
    shown = [make.exposure(ab, unit_id=unit_id) for unit_id in ("named", "alone")]
    done = [
        make.interaction(shown[0], at=at),
        make.interaction(unit_id="alone", at=at),
    ]
    for batch in (shown, done) if exposure_first else (done, shown):
        store(engine, *batch)
    expected = {(ab, each.unit_id, 0, "click"): (1, 0, at) for each in shown}
    assert outcomes(engine) == (expected if counts else {})


def test_interaction_may_leave_its_unit_out(engine, ab, make):
    exposure = make.exposure(ab)
    store(engine, exposure, make.interaction(exposure, unit_id=None))
    assert outcomes(engine) == {(ab, "u", 0, "click"): (1, 0, START)}


@pytest.mark.parametrize("exposure_first", [False, True])
def test_naming_the_exposure_of_another_unit_does_not_count(
    engine, ab, make, exposure_first
):
    exposure = make.exposure(ab)
    mine = make.exposure(ab, unit_id="thief")
    stolen = make.interaction(exposure, unit_id="thief")
    events = [exposure, mine, stolen]
    for each in events if exposure_first else reversed(events):
        store(engine, each)
    assert outcomes(engine) == {}


def test_orphan_is_kept_and_counts_when_its_exposure_comes(engine, ab, make):
    exposure = make.exposure(ab)
    orphan = make.interaction(exposure, value=Decimal("0.10"))
    counts = store(engine, orphan)
    assert counts == StoredCounts(exposures=0, interactions=1, attributed=0)
    assert outcomes(engine) == {}
    counts = store(engine, exposure)
    assert counts == StoredCounts(exposures=1, interactions=0, attributed=1)
    assert outcomes(engine) == {(ab, "u", 0, "click"): (1, Decimal("0.10"), START)}


def test_purchase_by_unit_counts_for_every_experiment_in_its_window(engine, make):
    with transaction(engine) as connection:
        short = make_experiment(connection, "short", window=timedelta(hours=1))
        long = make_experiment(connection, "long", window=timedelta(days=90))
        other = make_experiment(connection, "other")
    at = START + timedelta(hours=2)
    purchase = make.interaction(
        unit_id="u", kind="purchase", value=Decimal("9.99"), at=at
    )
    store(
        engine,
        make.exposure(short),
        make.exposure(long, at=START - timedelta(days=80)),
        make.exposure(other),
        make.exposure(other, unit_id="else"),
    )
    assert store(engine, purchase).attributed == 2
    expected = (1, Decimal("9.99"), at)
    assert outcomes(engine) == {
        (long, "u", 0, "purchase"): expected,
        (other, "u", 0, "purchase"): expected,
    }


def test_many_exposures_count_an_interaction_of_their_unit_once(engine, ab, make):
    shown = [make.exposure(ab, at=START - timedelta(minutes=i)) for i in range(5)]
    store(engine, *shown[:3])
    store(engine, make.interaction(unit_id="u"))
    store(engine, *shown[3:])
    assert outcomes(engine) == {(ab, "u", 0, "click"): (1, 0, START)}


def test_phase_is_0_for_ab_tests_and_the_epoch_for_bandits(engine, ab, bandit, make):
    late = START + timedelta(hours=1)
    shown = [
        make.exposure(experiment, epoch=epoch, at=START + timedelta(minutes=epoch))
        for experiment in (ab, bandit)
        for epoch in (0, 1)
    ]
    named = [make.interaction(each, at=late) for each in shown]
    store(engine, *shown, *named)
    assert outcomes(engine) == {
        (ab, "u", 0, "click"): (2, 0, late),
        (bandit, "u", 0, "click"): (1, 0, late),
        (bandit, "u", 1, "click"): (1, 0, late),
    }
    by_unit = make.interaction(unit_id="u", at=late, kind="purchase")
    assert store(engine, by_unit).attributed == 3
    bought = {
        key: value for key, value in outcomes(engine).items() if "purchase" in key
    }
    assert bought == {
        (ab, "u", 0, "purchase"): (1, 0, late),
        (bandit, "u", 0, "purchase"): (1, 0, late),
        (bandit, "u", 1, "purchase"): (1, 0, late),
    }


def test_crossover_leaves_a_row_per_variant(engine, ab, make):
    store(engine, make.exposure(ab, variant="a"), make.exposure(ab, variant="b"))
    store(engine, make.exposure(ab, variant="b", fallback=True))
    assert units(engine) == {
        (ab, "u", 0, "a"): (1, 0, "", [], 0.5, START, START),
        (ab, "u", 0, "b"): (2, 1, "", [], 0.5, START, START),
    }


def test_exposure_of_an_unknown_experiment_is_kept_without_outcomes(engine, make):
    exposure = make.exposure(4711)
    counts = store(engine, exposure, make.interaction(exposure))
    assert counts == StoredCounts(exposures=1, interactions=1, attributed=0)
    before = all_rows(engine)
    with transaction(engine) as connection:
        rebuild_outcomes(connection)
    assert all_rows(engine) == before


# What the database refuses.


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "a\x00b"},
        {"items": ("\x00",), "sources": ("x",)},
        {"variant": "\ud800"},
        {"context": {"secret-unit": "\x00"}},
        {"context": {"a": float("nan")}},
        {"epoch": 2**31},
    ],
)
def test_refused_event_is_told_and_nothing_is_stored(engine, ab, make, changes):
    good = make.exposure(ab)
    with pytest.raises(InvalidRequest) as refused:
        store(engine, good, make.exposure(ab, unit_id="secret-unit", **changes))
    assert "secret-unit" not in refused.value.message
    assert "\n" not in refused.value.message
    assert units(engine) == {}
    assert store(engine, good).exposures == 1


def test_broken_constraint_is_a_refusal(engine, ab, make):
    exposure = make.exposure(ab)
    object.__setattr__(exposure, "propensity", 1.5)
    with pytest.raises(InvalidRequest, match="ck_exposure_propensity"):
        store(engine, exposure)


def test_connection_lost_while_copying_is_no_refusal(engine, ab, make):
    class Cut(list):
        def __reversed__(self):
            with transaction(engine) as other:
                other.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE pid <> pg_backend_pid() "
                        "AND datname = current_database()"
                    )
                )
            return super().__reversed__()

    with pytest.raises(Unavailable), transaction(engine) as connection:
        store_events(connection, Cut([make.exposure(ab)]), [])
    assert store(engine, make.exposure(ab)).exposures == 1


def test_other_statements_of_the_connection_are_prepared_as_before(engine, make):
    with transaction(engine) as connection:
        driver = connection.connection.driver_connection
        before = driver.prepare_threshold
        store_events(connection, [make.exposure(1)], [])
        assert driver.prepare_threshold == before
        with pytest.raises(InvalidRequest):
            store_events(connection, [make.exposure(1, model="\x00")], [])
        assert driver.prepare_threshold == before


def test_statements_are_prepared_once_and_planned_for_each_batch(engine, ab, make):
    for _ in range(3):
        exposure = make.exposure(ab)
        store(
            engine, exposure, make.interaction(exposure), make.interaction(unit_id="v")
        )
    with transaction(engine) as connection:
        plans = connection.execute(
            text(
                "SELECT generic_plans, custom_plans FROM pg_prepared_statements "
                "WHERE statement ~ '^(DELETE|INSERT|WITH)'"
            )
        ).all()
    assert len(plans) == 9
    assert set(plans) == {(0, 3)}


# Any order, any batches, several writers.


def random_events(make, ab, bandit, *, count=250):
    """Events of few units in little time, so that they meet in every way."""
    rng = make.random
    steps = [
        timedelta(0),
        MICROSECOND,
        timedelta(hours=1),
        WINDOW,
        WINDOW + MICROSECOND,
        timedelta(days=-1),
        timedelta(days=-14),
    ]
    times = [START + sum(rng.choices(steps, k=2), timedelta(0)) for _ in range(40)]
    shown = []
    for _ in range(count):
        experiment = rng.choice([ab, bandit])
        epoch = rng.randrange(2)
        segment = rng.choice(["desk", "phone"]) if experiment == bandit else None
        shown.append(
            make.exposure(
                experiment,
                unit_id=f"unit-{rng.randrange(20)}",
                at=rng.choice(times),
                variant=rng.choice("ab"),
                epoch=epoch,
                propensity=0.25 + 0.5 * epoch + (0.125 if segment == "phone" else 0),
                segment=segment,
                fallback=rng.random() < 0.2,
                context=rng.choice([{}, {"age": 1}, {"age": 2}]),
            )
        )
    done = []
    for number in range(count):
        named = rng.random() < 0.6
        exposure = rng.choice(shown) if named else None
        unit_id = rng.choice(
            [None, exposure.unit_id, "unit-0"] if named else [f"unit-{number % 20}"]
        )
        at = rng.choice(times)
        changes = {"id": event_uuid(f"order-{number}")} if rng.random() < 0.2 else {}
        done.append(
            make.interaction(
                exposure,
                unit_id=unit_id,
                at=at,
                kind=rng.choice(sorted(EVENT_KINDS)),
                position=rng.choice([None, 1, 2]),
                value=rng.choice([None, Decimal("0.1"), Decimal("-2.50"), Decimal(7)]),
                **changes,
            )
        )
    return shown, done


def shuffled_batches(rng, events):
    """Cut events, a third of them sent twice, into batches of 1 to 60."""
    sent = events + rng.sample(events, len(events) // 3)
    rng.shuffle(sent)
    batches = []
    while sent:
        size = rng.randint(1, 60)
        batches.append(sent[:size])
        sent = sent[size:]
    return batches


@pytest.mark.parametrize("seed", range(6))
def test_i4_outcomes_are_the_definition_in_any_order(engine, ab, bandit, seed):
    make = Maker(seed)
    shown, done = random_events(make, ab, bandit)
    for batch in shuffled_batches(make.random, shown + done):
        store(engine, *batch)
    check_against_definition(engine, ab, bandit, shown, done)


@pytest.mark.parametrize("seed", range(3))
def test_i4_two_writers_at_once_miss_nothing(engine, ab, bandit, seed):
    make = Maker(100 + seed)
    shown, done = random_events(make, ab, bandit)
    batches = shuffled_batches(make.random, shown + done)
    failures = []

    def work(mine):
        try:
            for batch in mine:
                store(engine, *batch)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(batches[i::2],)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    check_against_definition(engine, ab, bandit, shown, done)


def check_against_definition(engine, ab, bandit, shown, done):
    experiments = {ab: ("ab", WINDOW), bandit: ("bandit", WINDOW)}
    expected = outcomes_by_hand(experiments, shown, done)
    assert len(expected) > 50
    assert outcomes(engine) == expected
    assert units(engine) == units_by_hand(shown)
    by_hand = analysed_by_hand(experiments, shown, done)
    assert sum(bool(row[-1]) for row in by_hand.values()) > 10
    assert analysed(engine) == by_hand
    before = all_rows(engine)
    for experiment_id in (None, ab, bandit):
        with transaction(engine) as connection:
            rebuild_outcomes(connection, experiment_id)
        assert all_rows(engine) == before


def test_writer_waits_for_the_exposure_of_an_open_transaction(engine, ab, make):
    exposure = make.exposure(ab)
    stored = threading.Event()

    def click():
        store(engine, make.interaction(exposure))
        stored.set()

    thread = threading.Thread(target=click)
    with transaction(engine) as connection:
        store_events(connection, [exposure], [])
        thread.start()
        assert not stored.wait(0.3)
    assert stored.wait(10)
    thread.join(10)
    assert outcomes(engine) == {(ab, "u", 0, "click"): (1, 0, START)}


def test_rows_of_units_are_made_of_what_an_older_schema_holds(
    engine, database_url, ab, bandit
):
    make = Maker(11)
    shown, done = random_events(make, ab, bandit)
    shown = [replace(exposure, context={}) for exposure in shown]
    store(engine, *shown, *done)
    before = all_rows(engine)
    migrate(database_url, "0003")
    migrate(database_url)
    assert table_rows(engine, "attribution") == before["attribution"]
    assert table_rows(engine, "unit_history") == before["unit_history"]
    assert table_rows(engine, "unit_outcome") == before["unit_outcome"]
    assert table_rows(engine, "unit_of_analysis") == before["unit_of_analysis"]


def test_rebuild_repairs_one_experiment_and_leaves_others(engine, ab, bandit, make):
    shown = [make.exposure(ab), make.exposure(bandit)]
    store(engine, *shown, *(make.interaction(each) for each in shown))
    store(engine, make.interaction(unit_id="u"))
    right = all_rows(engine)
    with transaction(engine) as connection:
        for table in ("unit_exposure", "unit_outcome", "unit_of_analysis"):
            connection.execute(text(f"UPDATE {table} SET first_at = now()"))
        connection.execute(text("DELETE FROM attribution"))
        connection.execute(text("UPDATE unit_history SET count = 7"))
    wrong = all_rows(engine)
    with transaction(engine) as connection:
        rebuild_outcomes(connection, ab)
    # What units did on a day belongs to no experiment.
    assert table_rows(engine, "unit_history") == wrong["unit_history"]
    for table in TABLES.keys() - {"unit_history"}:
        rows = table_rows(engine, table)
        assert set(rows) & set(right[table])
        assert set(rows) != set(right[table])
    assert set(table_rows(engine, "unit_outcome")) & set(wrong["unit_outcome"])
    with transaction(engine) as connection:
        rebuild_outcomes(connection)
    assert all_rows(engine) == right


def test_recorded_time_of_a_unit_is_that_of_its_first_exposure(engine, ab, make):
    store(engine, make.exposure(ab))
    store(engine, make.exposure(ab))
    with transaction(engine) as connection:
        first, last = connection.execute(
            text("SELECT min(recorded_at), max(recorded_at) FROM exposure")
        ).one()
        recorded_at = connection.scalar(text("SELECT recorded_at FROM unit_exposure"))
    assert first < last
    assert recorded_at == first


# Partitions.


def partition_of(engine, event):
    table = "exposure" if isinstance(event, Exposure) else "interaction"
    with transaction(engine) as connection:
        return connection.scalar(
            text(f"SELECT tableoid::regclass::text FROM {table} WHERE id = :id"),
            {"id": event.id},
        )


def partition(engine, *, now=START, **options):
    with transaction(engine) as connection:
        return ensure_partitions(connection, now=now, **options)


def default_rows(engine):
    with transaction(engine) as connection:
        return default_partition_rows(connection)


def test_partitions_reach_from_the_oldest_event_to_months_ahead(engine):
    made = partition(engine, now=datetime(2026, 11, 20, tzinfo=UTC))
    months = ["2026_10", "2026_11", "2026_12", "2027_01", "2027_02"]
    assert made == [f"{t}_{m}" for t in ("exposure", "interaction") for m in months]
    assert partition(engine, now=datetime(2026, 11, 20, tzinfo=UTC)) == []
    assert (
        partition(engine, now=datetime(2026, 12, 1, tzinfo=UTC), months_ahead=2) == []
    )
    december = datetime(2026, 12, 31, 23, 59, tzinfo=UTC)
    assert partition(engine, now=december) == [
        "exposure_2027_03",
        "interaction_2027_03",
    ]


def test_months_meet_without_gap_or_overlap(engine, ab, make):
    partition(engine)
    edge = datetime(2026, 12, 1, tzinfo=UTC)
    millisecond = timedelta(milliseconds=1)
    last, first = make.exposure(ab, at=edge - millisecond), make.exposure(ab, at=edge)
    lowest = make.exposure(ab, id=UUID(int=int(edge.timestamp() * 1000) << 80))
    store(engine, last, first, lowest)
    assert partition_of(engine, last) == "exposure_2026_11"
    assert partition_of(engine, first) == "exposure_2026_12"
    assert partition_of(engine, lowest) == "exposure_2026_12"


def test_rows_of_the_default_partition_move_and_nothing_is_lost(engine, ab, bandit):
    make = Maker(7)
    shown, done = random_events(make, ab, bandit, count=60)
    for batch in shuffled_batches(make.random, shown + done):
        store(engine, *batch)
    assert partition_of(engine, shown[0]) == "exposure_default"
    before = all_rows(engine)
    assert default_rows(engine)["exposure"] == 60
    partition(engine)
    assert default_rows(engine) == {"exposure": 0, "interaction": 0}
    assert partition_of(engine, shown[0]) == "exposure_2026_11"
    store(engine, *shown, *done)
    assert all_rows(engine) == before
    with transaction(engine) as connection:
        rebuild_outcomes(connection)
    assert all_rows(engine) == before


def test_forgotten_month_is_made_for_the_rows_it_has(engine, ab, make):
    now = START + timedelta(days=300)
    forgotten = make.exposure(ab, at=START)
    ancient = make.exposure(ab, at=START - timedelta(days=2000))
    store(engine, forgotten, ancient)
    made = partition(engine, now=now)
    assert made[0] == "exposure_2026_11"
    assert "exposure_2026_12" not in made
    assert "interaction_2026_11" not in made
    assert partition_of(engine, forgotten) == "exposure_2026_11"
    assert partition_of(engine, ancient) == "exposure_default"


def test_partitions_have_the_keys_and_indexes_of_their_table(engine):
    partition(engine)
    with transaction(engine) as connection:
        rows = connection.execute(
            text(
                "SELECT tablename, count(*) AS indexes FROM pg_indexes "
                "WHERE tablename ~ '^(exposure|interaction)' "
                "AND schemaname = 'public' GROUP BY tablename"
            )
        )
        assert {row.indexes for row in rows} == {3}
        invalid = connection.scalar(
            text("SELECT count(*) FROM pg_index WHERE NOT indisvalid")
        )
    assert invalid == 0


def test_two_processes_make_partitions_once(engine, ab, make):
    store(engine, make.exposure(ab))
    made, failures = [], []
    barrier = threading.Barrier(2)

    def work():
        try:
            with transaction(engine) as connection:
                barrier.wait(10)
                made.append(ensure_partitions(connection, now=START))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert sorted(map(len, made)) == [0, 10]


def test_look_ups_never_read_whole_partitions(engine, ab, make):
    """Whatever the statistics say, and however small the tables once were."""
    partition(engine)
    with transaction(engine) as connection:
        leaves = "SELECT relid FROM pg_partition_tree('{}') WHERE isleaf"
        for name in ("exposure", "interaction"):
            for leaf in connection.scalars(text(leaves.format(name))).all():
                # It would tell the planner of a partition just begun how few rows it has.
                unseen = f"ALTER TABLE {leaf} SET (autovacuum_enabled = off)"
                connection.execute(text(unseen))

    def store_few(connection):
        for number in range(15):
            exposure = make.exposure(ab, unit_id=f"u{number}")
            click = make.interaction(exposure)
            purchase = make.interaction(unit_id=f"u{number}")
            store_events(connection, [exposure], [click, purchase])

    with transaction(engine) as connection:
        store_few(connection)
    with transaction(engine) as connection:
        connection.execute(text("ANALYZE exposure, interaction"))
    with transaction(engine) as connection:
        store_few(connection)
    shown = [make.exposure(ab, unit_id=f"u{i}") for i in range(20_000)]
    done = [make.interaction(each, unit_id=each.unit_id) for each in shown[:5000]]
    done += [make.interaction(unit_id=each.unit_id) for each in shown[5000:10_000]]
    store(engine, *shown, *done)
    with transaction(engine) as connection:
        store_few(connection)
        read = connection.scalar(
            text(
                "SELECT sum(seq_tup_read) FROM pg_stat_xact_user_tables "
                "WHERE relname ~ '^(exposure|interaction)_'"
            )
        )
    assert read == 0
