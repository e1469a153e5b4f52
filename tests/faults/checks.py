"""What must hold after every fault, whatever died."""

from collections import defaultdict
from contextlib import closing

import pytest
from sqlalchemy import text

from experiment_service.domain.experiment import ExperimentKind
from experiment_service.journal import Journal
from experiment_service.reallocation import compute_weights
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import present_instant, transaction
from experiment_service.storage.events import rebuild_outcomes

#: Tables that follow from the raw rows.
DERIVED = (
    "unit_exposure",
    "attribution",
    "unit_outcome",
    "unit_of_analysis",
    "unit_history",
)

#: The definition of an outcome, written without regard to how the service finds it.
_OUTCOMES = """
WITH seen AS (
    SELECT x.*, make_interval(secs => (declaration ->> 'attribution_window')::float)
           AS attribution_window,
           CASE declaration ->> 'kind' WHEN 'bandit' THEN x.epoch ELSE 0 END AS phase,
           declaration ->> 'placement' AS shown_at
    FROM exposure x JOIN experiment e ON e.id = x.experiment_id
), pair AS (
    SELECT i.*, x.experiment_id, x.phase, x.unit_id AS unit, x.shown_at
    FROM interaction i JOIN seen x ON x.id = i.exposure_id
    WHERE coalesce(i.unit_id, x.unit_id) = x.unit_id
      AND i.occurred_at - x.exposed_at BETWEEN interval '0' AND attribution_window
    UNION
    SELECT i.*, x.experiment_id, x.phase, x.unit_id, ''
    FROM interaction i JOIN seen x ON x.unit_id = i.unit_id
    WHERE i.exposure_id IS NULL
      AND i.occurred_at - x.exposed_at BETWEEN interval '0' AND attribution_window
)
SELECT experiment_id, unit, phase, kind, coalesce(position, 0), coalesce(category, ''),
       coalesce(placement, shown_at), count(*), coalesce(sum(value), 0), min(occurred_at)
FROM pair GROUP BY 1, 2, 3, 4, 5, 6, 7
"""


def _difference(one, other):
    """Return a statement for rows that are in one of two tables only."""
    return (
        f"(TABLE {one} EXCEPT ALL TABLE {other}) UNION ALL"
        f" (TABLE {other} EXCEPT ALL TABLE {one}) LIMIT 10"
    )


_DIFFERENCE = f"""
WITH by_hand AS MATERIALIZED ({_OUTCOMES}),
stored AS MATERIALIZED (
    SELECT experiment_id, unit_id, phase, kind, position, category, placement,
           count, value_sum, first_at
    FROM unit_outcome
)
{_difference("by_hand", "stored")}
"""


def check_events(engine, load):
    """Every accepted event is stored once, as it was sent; return how many."""
    with transaction(engine) as connection:
        exposures = connection.execute(text("SELECT id, unit_id FROM exposure")).all()
        interactions = connection.execute(
            text("SELECT id, exposure_id, unit_id, kind, position FROM interaction")
        ).all()
        received, known = connection.execute(
            text("SELECT sum(received), sum(known) FROM intake")
        ).one()
    shown = {row.id: row.unit_id for row in exposures}
    done = {
        row.id: (
            str(row.exposure_id) if row.exposure_id else None,
            row.unit_id,
            row.kind,
            row.position,
        )
        for row in interactions
    }
    assert len(shown) == len(exposures), "an exposure is stored twice"
    assert len(done) == len(interactions), "an interaction is stored twice"
    assert load.exposures.items() <= shown.items(), "an accepted exposure is lost"
    assert load.interactions.items() <= done.items(), "an accepted interaction is lost"
    assert done.keys() <= load.sent, "an interaction is stored that nobody sent"
    # Of a request that was not answered, the client can't know.
    assert len(shown) - len(load.exposures) <= load.uncertain
    assert received - known == len(shown) + len(done)
    return len(shown), len(done)


def check_outcomes(engine):
    """Outcomes are those of the definition, and those computed again from raw rows."""
    with transaction(engine) as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        assert connection.execute(text(_DIFFERENCE)).all() == []
        for table in DERIVED:
            copy = (
                f"CREATE TEMPORARY TABLE former_{table} ON COMMIT DROP AS TABLE {table}"
            )
            connection.execute(text(copy))
        rebuild_outcomes(connection)
        for table in DERIVED:
            changed = _difference(f"former_{table}", table)
            assert connection.execute(text(changed)).all() == [], table
            count = connection.scalar(text(f"SELECT count(*) FROM former_{table}"))
            assert count > 1000
        return connection.scalar(text("SELECT count(*) FROM unit_outcome"))


def check_epochs(engine):
    """Epochs have no hole, weights that sum to 1 and follow from their own row.

    None looked into the future. Each exposure has the weight of its variant in its epoch
    as propensity, and each unit one variant per epoch.
    """
    counts = {}
    with transaction(engine) as connection:
        for experiment in storage.list_experiments(connection):
            epochs = storage.list_epochs(connection, experiment.id)
            assert [each.number for each in epochs] == list(range(len(epochs)))
            for epoch in epochs:
                assert sum(epoch.weights.values()) == pytest.approx(1, abs=1e-9)
            for epoch in epochs[1:]:
                again = compute_weights(epoch).weights
                assert again == pytest.approx(epoch.weights, abs=1e-12)
            looks = storage.list_reallocations(connection, experiment.id)
            cutoffs = [each.cutoff for each in looks]
            assert cutoffs == sorted(set(cutoffs))
            assert all(each < present_instant(connection) for each in cutoffs)
            moved = [each.epoch for each in looks if each.moved]
            assert moved == [each.number for each in epochs[1:]]
            weights = {
                (experiment.id, each.number, variant): weight
                for each in epochs
                for variant, weight in each.weights.items()
            }
            if experiment.declaration.kind is ExperimentKind.BANDIT:
                counts[experiment.key] = len(epochs)
            _check_propensities(connection, experiment.id, weights)
    return counts


def _check_propensities(connection, experiment_id, weights):
    rows = connection.execute(
        text(
            "SELECT DISTINCT experiment_id, epoch, variant, propensity FROM exposure"
            " WHERE experiment_id = :experiment_id"
        ),
        {"experiment_id": experiment_id},
    ).all()
    assert rows
    for row in rows:
        assert row.propensity == pytest.approx(
            weights[row.experiment_id, row.epoch, row.variant], abs=1e-12
        )
    variants = defaultdict(set)
    for unit, epoch, variant in connection.execute(
        text(
            "SELECT unit_id, epoch, variant FROM unit_exposure"
            " WHERE experiment_id = :experiment_id"
        ),
        {"experiment_id": experiment_id},
    ):
        variants[unit, epoch].add(variant)
    assert all(len(each) == 1 for each in variants.values())


def check_journals(data_dir):
    """Nothing is left in the journals of a machine: a stop has drained them."""
    for journal in Journal.abandoned(data_dir / "journal"):
        with closing(journal):
            assert (journal.depth, journal.set_aside_count) == (0, 0), journal.path
    assert list(data_dir.glob("journal/*/*.damaged")) == []
