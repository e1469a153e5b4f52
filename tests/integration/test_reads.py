"""Counts and edge cases of the reads; `contracts/test_metrics.py` has the moments."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import event, text

from experiment_service.domain.declaration import parse_declaration
from experiment_service.domain.event import Exposure, Interaction
from experiment_service.domain.metric import METRICS
from experiment_service.storage import counts, reads
from experiment_service.storage import experiments as storage
from experiment_service.storage.events import store_events

T0 = datetime(2026, 5, 4, 9, tzinfo=UTC)
HOUR = timedelta(hours=1)
RATE = METRICS["visitor_interaction_rate"]
numbers = iter(range(1, 1 << 20))


def uuid_at(instant):
    number = next(numbers)
    return UUID(int=int(instant.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62 | number)


def experiment_of(connection, kind="ab", **more):
    if kind == "bandit":
        more["policy"] = {"name": "thompson"}
    document = {
        "key": "carousel",
        "kind": kind,
        "placement": "home",
        "attribution_window": "1h",
        "variants": [
            {"key": "a", "recommender": "popularity", "control": True},
            {"key": "b", "recommender": "popularity"},
        ],
        **more,
    }
    return storage.create_experiment(connection, parse_declaration(document), now=T0)


def exposure(experiment, unit, variant, at, *, epoch=0, fallback=False):
    return Exposure(
        id=uuid_at(at),
        experiment_id=experiment.id,
        unit_id=unit,
        variant=variant,
        epoch=epoch,
        propensity=0.5,
        model="popularity/1",
        items=("x",),
        sources=("popularity",),
        fallback=fallback,
        context={},
        exposed_at=at,
    )


def interaction(on, at, kind="click", exposure_id=None):
    return Interaction(
        id=uuid_at(at),
        exposure_id=exposure_id or on.id,
        unit_id=on.unit_id,
        kind=kind,
        item_id=None,
        position=None,
        value=None,
        occurred_at=at,
    )


def summed(cells):
    """(variant, epoch) -> (n, sum of y)."""
    totals = {}
    for cell, moments in cells.items():
        n, y = totals.get(cell[:2], (0, 0))
        totals[cell[:2]] = n + moments.n, y + moments.sum_y
    return totals


def test_a_unit_seen_in_two_variants_counts_nowhere_once_it_has_crossed(connection):
    experiment = experiment_of(connection)
    shown = [
        exposure(experiment, "u", "a", T0),
        exposure(experiment, "u", "b", T0 + 5 * HOUR),
        exposure(experiment, "v", "a", T0),
    ]
    store_events(connection, shown, [])
    before = reads.metric_moments(connection, experiment, RATE, cutoff=T0 + 2 * HOUR)
    after = reads.metric_moments(connection, experiment, RATE, cutoff=T0 + 9 * HOUR)
    assert summed(before) == {("a", 0): (2, 0)}
    assert summed(after) == {("a", 0): (1, 0)}


def test_moments_of_a_cutoff_ignore_what_comes_later(connection):
    experiment = experiment_of(connection)
    first = exposure(experiment, "u", "a", T0)
    store_events(connection, [first], [])
    cutoff = T0 + HOUR
    before = reads.metric_moments(connection, experiment, RATE, cutoff=cutoff)
    again = exposure(experiment, "u", "a", T0 + 3 * HOUR)
    store_events(connection, [again], [interaction(again, T0 + 3 * HOUR)])
    assert reads.metric_moments(connection, experiment, RATE, cutoff=cutoff) == before
    assert summed(before) == {("a", 0): (1, 0)}


def test_a_sticky_unit_that_raced_into_a_second_epoch_stays_in_its_first(connection):
    experiment = experiment_of(connection, "bandit", mode="sticky")
    first = exposure(experiment, "u", "a", T0, epoch=3)
    raced = exposure(experiment, "u", "a", T0 + timedelta(seconds=1), epoch=4)
    late = exposure(experiment, "v", "b", T0, epoch=4)
    clicks = [interaction(first, T0 + timedelta(minutes=5))]
    store_events(connection, [first, raced, late], clicks)
    cutoff = T0 + 2 * HOUR
    ratio = METRICS["click_through_rate"]
    rates = reads.metric_moments(connection, experiment, RATE, cutoff=cutoff)
    ratios = reads.metric_moments(connection, experiment, ratio, cutoff=cutoff)
    assert summed(rates) == {("a", 3): (1, 1), ("b", 4): (1, 0)}
    assert [(cell[:2], m.sum_x) for cell, m in sorted(ratios.items())] == [
        (("a", 3), 1),
        (("b", 4), 1),
    ]
    units = counts.unit_counts(connection, experiment, cutoff=cutoff)
    assert {cell: each.units for cell, each in units.items()} == {
        (3, None, "a"): 1,
        (4, None, "b"): 1,
    }


def test_units_whose_window_is_open_are_counted_apart(connection):
    experiment = experiment_of(connection)
    shown = [
        exposure(experiment, "old", "a", T0),
        exposure(experiment, "back", "a", T0),
        exposure(experiment, "back", "a", T0 + 2 * HOUR),
        exposure(experiment, "new", "b", T0 + 2 * HOUR),
    ]
    store_events(connection, shown, [])
    metrics = [RATE, METRICS["click_through_rate"]]
    cells = reads.moments_by_metric(
        connection, experiment, metrics, cutoff=T0 + 2.5 * HOUR
    )
    rate, ratio = (cells[metric.name] for metric in metrics)
    assert summed(rate.moments) == {("a", 0): (2, 0)}
    assert rate.open_units == {"a": 0, "b": 1}
    assert summed(ratio.moments) == {("a", 0): (1, 0)}
    assert ratio.open_units == {"a": 1, "b": 1}


def test_an_experiment_without_events_has_no_moments(connection):
    experiment = experiment_of(connection)
    cells = reads.moments_by_metric(connection, experiment, [RATE], cutoff=T0)
    assert cells[RATE.name].moments == {}
    assert counts.unit_counts(connection, experiment, cutoff=T0) == {}
    assert counts.exposure_counts(connection, experiment) == {}
    assert counts.activity(connection, experiment).interactions == {}
    assert counts.late_count(connection, experiment, as_of=T0).interactions == 0
    assert counts.recording_lag(connection, experiment) is None
    assert counts.events_by_minute(connection, since=T0) == []


def test_units_are_joined_by_hashes_before_there_are_statistics(connection):
    experiment = experiment_of(connection)
    made = [exposure(experiment, f"u{n}", "ab"[n % 2], T0) for n in range(60)]
    clicks = [interaction(each, T0) for each in made]
    store_events(connection, made, clicks)
    asked = []

    def explained(_, cursor, statement, parameters, *__):
        if "unit_outcome" in statement and not statement.startswith("EXPLAIN"):
            cursor.execute(f"EXPLAIN {statement}", parameters)
            asked.append("\n".join(line for (line,) in cursor.fetchall()))

    event.listen(connection, "before_cursor_execute", explained)
    at_top = replace(RATE, placements=None, positions=(1, 1))
    reads.metric_moments(connection, experiment, at_top, cutoff=T0 + HOUR)
    event.remove(connection, "before_cursor_execute", explained)
    (plan,) = asked
    assert "unit_outcome" in plan
    assert "Nested Loop" not in plan
    # What was avoided is allowed again in the same transaction.
    assert connection.scalar(text("SHOW enable_nestloop")) == "on"
    assert connection.scalar(text("SHOW enable_sort")) == "on"


def test_units_are_counted_in_the_variant_of_their_first_exposure(connection):
    experiment = experiment_of(connection)
    shown = [
        exposure(experiment, "u", "b", T0),
        exposure(experiment, "u", "a", T0 + HOUR, epoch=1),
        exposure(experiment, "v", "a", T0 + HOUR, epoch=1),
        exposure(experiment, "later", "a", T0 + 9 * HOUR, epoch=1),
    ]
    store_events(connection, shown, [])
    found = counts.unit_counts(connection, experiment, cutoff=T0 + 2 * HOUR)
    assert {cell: (each.units, each.crossed) for cell, each in found.items()} == {
        (0, None, "b"): (1, 1),
        (1, None, "a"): (1, 0),
    }


def test_a_redrawn_unit_counts_once_in_each_epoch(connection):
    experiment = experiment_of(connection, "bandit")
    shown = [
        exposure(experiment, "u", "b", T0),
        exposure(experiment, "u", "a", T0 + HOUR, epoch=1),
    ]
    store_events(connection, shown, [])
    found = counts.unit_counts(connection, experiment, cutoff=T0 + 2 * HOUR)
    assert {cell: (each.units, each.crossed) for cell, each in found.items()} == {
        (0, None, "b"): (1, 0),
        (1, None, "a"): (1, 0),
    }


def test_exposures_and_interactions_are_counted(connection):
    experiment = experiment_of(connection)
    shown = [
        exposure(experiment, "u", "a", T0),
        exposure(experiment, "u", "a", T0 + HOUR, fallback=True),
        exposure(experiment, "v", "b", T0),
    ]
    clicks = [
        interaction(shown[0], T0 + timedelta(minutes=1)),
        interaction(shown[0], T0 + timedelta(minutes=2)),
        interaction(shown[2], T0 + timedelta(minutes=2), "purchase"),
        interaction(shown[2], T0 + timedelta(hours=7), "purchase"),
    ]
    store_events(connection, shown, clicks)
    found = counts.exposure_counts(connection, experiment)
    assert found["a"] == counts.ExposureCount(
        exposures=2, fallbacks=1, last_at=T0 + HOUR
    )
    assert (found["b"].exposures, found["b"].fallbacks) == (1, 0)
    activity = counts.activity(connection, experiment)
    assert activity.interactions == {"click": 2, "purchase": 1}
    assert sorted(activity.exposures) == [("a", 2, 1), ("b", 1, 1)]
    assert sorted(activity.acts) == [("a", 2, 1), ("b", 1, 1)]


def test_late_interactions_are_those_recorded_after_their_window(connection):
    experiment = experiment_of(connection)
    shown = [exposure(experiment, f"u{i}", "a", T0) for i in range(4)]
    shown.append(exposure(experiment, "new", "a", T0 + 2 * HOUR))
    clicks = [interaction(each, each.exposed_at + HOUR) for each in shown]
    clicks.append(interaction(shown[0], T0 + 1.5 * HOUR))
    store_events(connection, shown, clicks)
    for recorded_at, chosen in ((T0 + HOUR, clicks[:2]), (T0 + 2 * HOUR, clicks[2:])):
        connection.execute(
            text("UPDATE interaction SET recorded_at = :at WHERE id = ANY(:ids)"),
            {"at": recorded_at, "ids": [each.id for each in chosen]},
        )
    found = counts.late_count(connection, experiment, as_of=T0 + 2 * HOUR)
    assert found == counts.LateCount(interactions=4, late=2)


def test_intake_counts_what_came_in_and_what_was_there(connection):
    experiment = experiment_of(connection)
    shown = [exposure(experiment, f"u{i}", "a", T0) for i in range(4)]
    clicks = [interaction(shown[0], T0)]
    store_events(connection, shown, clicks)
    store_events(connection, shown[2:], clicks)
    today = connection.scalar(text("SELECT current_date"))
    found = counts.intake(connection, since=today)
    assert found == counts.Intake(received=8, known=3)
    later = counts.intake(connection, since=today + timedelta(days=1))
    assert later == counts.Intake(received=0, known=0)


def test_recording_lag_is_that_of_the_latest_exposures(connection):
    experiment = experiment_of(connection)
    shown = [
        exposure(experiment, f"u{i}", "a", T0 + timedelta(seconds=i)) for i in range(5)
    ]
    store_events(connection, shown, [])
    lags = dict(zip((each.id for each in shown), (1, 2, 3, 4, -60), strict=True))
    for identifier, seconds in lags.items():
        connection.execute(
            text(
                "UPDATE exposure SET recorded_at = exposed_at + :lag * interval '1 s' "
                "WHERE id = :id"
            ),
            {"lag": seconds, "id": identifier},
        )
    for found in (
        counts.recording_lag(connection),
        counts.recording_lag(connection, experiment),
    ):
        assert found.exposures == 5
        assert found.newest == pytest.approx(2)
        assert found.median == pytest.approx(2)
        assert found.p95 == pytest.approx(3.8)
        assert found.longest == pytest.approx(4)


def test_newest_lag_forgets_an_outage(connection):
    experiment = experiment_of(connection)
    shown = [
        exposure(experiment, f"u{i}", "a", T0 + timedelta(seconds=i)) for i in range(40)
    ]
    store_events(connection, shown, [])
    connection.execute(
        text(
            "UPDATE exposure SET recorded_at = exposed_at + "
            "CASE WHEN exposed_at < :late THEN interval '1 hour' ELSE interval '1 s' END"
        ),
        {"late": T0 + timedelta(seconds=15)},
    )
    found = counts.recording_lag(connection, experiment)
    assert found.newest == pytest.approx(1)
    assert found.longest == pytest.approx(3600)


def test_orphans_are_found_among_the_latest_and_the_made_up(connection):
    experiment = experiment_of(connection)
    known = exposure(experiment, "u", "a", T0)
    old = exposure(experiment, "v", "a", T0 - 5 * HOUR)
    lost = exposure(experiment, "w", "a", T0)
    at = T0 + timedelta(minutes=1)
    events = [
        interaction(known, at),
        interaction(old, T0 - 5 * HOUR),
        interaction(lost, at),
        interaction(
            known, at, exposure_id=UUID("f47ac10b-58cc-4372-a567-0e02b2c3d479")
        ),
    ]
    store_events(connection, [known, old], events)
    found = counts.orphan_count(connection, since=T0 - HOUR)
    assert found == counts.OrphanCount(interactions=3, orphans=2)


def test_a_unit_misses_its_exposure_by_the_first_that_it_names(connection):
    experiment = experiment_of(connection)
    at = T0 + timedelta(minutes=1)
    shown = [exposure(experiment, unit, "ab"[unit > "v"], T0) for unit in "uvwx"]
    lost = [exposure(experiment, unit, "a", T0) for unit in ("v", "w", "nobody")]
    events = [
        *(interaction(each, at) for each in lost),
        # Known first, lost later; and one that leaves its unit to the exposure.
        interaction(shown[2], T0),
        replace(interaction(shown[0], at), unit_id=None),
        interaction(shown[1], at + timedelta(minutes=1)),
    ]
    store_events(connection, shown, events)
    found = counts.missing_exposure_counts(connection, experiment, since=T0 - HOUR)
    assert found == {
        counts.UnitCell(0, None, "a"): counts.MissingCount(units=2, missing=1),
        counts.UnitCell(0, None, "b"): counts.MissingCount(units=1, missing=0),
    }
    assert not counts.missing_exposure_counts(connection, experiment, since=at)


def test_events_are_counted_by_minute(connection):
    experiment = experiment_of(connection)
    shown = [
        exposure(experiment, "u", "a", T0 + timedelta(seconds=second))
        for second in (0, 59, 60)
    ]
    events = [interaction(shown[0], T0 + timedelta(minutes=3))]
    store_events(connection, shown, events)
    found = counts.events_by_minute(connection, since=T0)
    assert [(e.minute - T0, e.exposures, e.interactions) for e in found] == [
        (timedelta(0), 2, 0),
        (timedelta(minutes=1), 1, 0),
        (timedelta(minutes=3), 0, 1),
    ]
    assert counts.events_by_minute(connection, since=T0 + HOUR) == []


def test_events_outside_the_monthly_partitions_are_counted(connection):
    experiment = experiment_of(connection)
    before = counts.default_partition_rows(connection)
    assert before == {"exposure": 0, "interaction": 0}
    store_events(
        connection, [exposure(experiment, "u", "a", T0.replace(year=2003))], []
    )
    assert counts.default_partition_rows(connection)["exposure"] == 1
    assert counts.database_size(connection) > 1_000_000
