"""Every metric: the moments that SQL makes equal those made by NumPy from raw events."""

from collections import defaultdict
from dataclasses import astuple, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import create_engine as plain_engine
from sqlalchemy import text
from sqlalchemy.engine import make_url

from experiment_service.analysis.adjustment import CovariateMoments
from experiment_service.analysis.moments import Moments
from experiment_service.domain.declaration import parse_declaration
from experiment_service.domain.event import EVENT_KINDS, Exposure, Interaction
from experiment_service.domain.experiment import Epoch, ExperimentState
from experiment_service.domain.metric import METRICS, Metric
from experiment_service.storage import experiments as storage
from experiment_service.storage.database import create_engine, transaction
from experiment_service.storage.events import store_events
from experiment_service.storage.reads import (
    Spans,
    metric_moments,
    moments_by_metric,
    reward_sums,
)
from experiment_service.storage.rounds import stream_rounds

START = datetime(2026, 3, 1, tzinfo=UTC)
WINDOW = timedelta(hours=12)
HOURS = 120
EPOCH_HOURS = 30
VARIANTS = ("popular", "knn", "als")

#: No registered metric has this trigger or joins kinds in a mean or ratio.
MORE_METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            name="viewed_click_rate",
            title="Click rate of those that viewed",
            kind="proportion",
            event_kinds=("click",),
            trigger="viewed",
        ),
        Metric(
            name="viewed_actions_per_visitor",
            title="Actions per visitor that viewed",
            kind="mean",
            event_kinds=("click", "add_to_cart", "purchase"),
            trigger="viewed",
        ),
        Metric(
            name="second-place-rate",
            title="Click rate at the second place",
            kind="proportion",
            event_kinds=("click",),
            positions=(2, 2),
        ),
        Metric(
            name="shoe_clicks_per_visitor",
            title="Clicks on shoes and hats per visitor",
            kind="mean",
            event_kinds=("click", "add_to_cart"),
            categories=("shoes", "hats"),
        ),
        Metric(
            name="shoe_rate_at_the_top",
            title="Click rate of shoes at the top",
            kind="proportion",
            event_kinds=("click",),
            categories=("shoes",),
            positions=(1, 2),
        ),
        Metric(
            name="own_clicks_per_visitor",
            title="Clicks on the carousel per visitor",
            kind="mean",
            event_kinds=("click",),
            placements="own",
        ),
        Metric(
            name="elsewhere_value_per_visitor",
            title="What was bought in the cart and on product pages is worth",
            kind="mean",
            event_kinds=("purchase",),
            of="value",
            placements=("cart", "product"),
        ),
        Metric(
            name="rate_at_the_top_of_the_cart",
            title="Share that acts at the top of the cart's carousel",
            kind="proportion",
            event_kinds=("add_to_cart", "click"),
            positions=(1, 3),
            placements=("cart",),
        ),
        Metric(
            name="capped_value_at_the_top",
            title="What was clicked and bought at the top is worth",
            kind="mean",
            event_kinds=("click", "purchase"),
            of="value",
            positions=(1, 2),
            cap=1.5,
        ),
        Metric(
            name="value_per_exposure",
            title="Value per exposure",
            kind="ratio",
            event_kinds=("purchase", "add_to_cart"),
            of="value",
        ),
        Metric(
            name="viewed_actions_per_exposure",
            title="Actions per exposure of those that viewed",
            kind="ratio",
            event_kinds=("click", "purchase"),
            trigger="viewed",
        ),
    )
}
ALL_METRICS = {**METRICS, **MORE_METRICS}


def declaration_of(mode):
    kind = "ab" if mode == "ab" else "bandit"
    document = {
        "key": mode,
        "kind": kind,
        "placement": mode,
        "attribution_window": WINDOW.total_seconds(),
        "variants": [
            {"key": key, "recommender": "popularity", "control": key == VARIANTS[0]}
            for key in VARIANTS
        ],
    }
    if kind == "bandit":
        document |= {"mode": mode, "policy": {"name": "thompson"}}
    return parse_declaration(document)


def random_events(experiment_id, mode, rng):
    """Whole hours, so that many events lie exactly on the edge of a window."""
    exposures, interactions = [], []
    drawn = {}
    kinds = ["viewed", "viewed", *EVENT_KINDS]

    def uuid():
        at = int((START + timedelta(days=1)).timestamp() * 1000)
        low = int(rng.integers(1 << 62))
        return UUID(int=(at << 80) | (7 << 76) | (2 << 62) | low)

    def expose(unit, hour):
        epoch = hour // EPOCH_HOURS
        if mode == "sticky":
            epoch = drawn.setdefault((unit, "epoch"), epoch)
        key = (unit, epoch) if mode == "redraw" else unit
        variant = drawn.setdefault(key, VARIANTS[rng.integers(3)])
        if rng.random() < 0.02:
            variant = VARIANTS[rng.integers(3)]
        exposures.append(
            Exposure(
                id=uuid(),
                experiment_id=experiment_id,
                unit_id=unit,
                variant=variant,
                epoch=epoch,
                propensity=(epoch + 1) / 8,
                model=f"{variant}/1",
                items=("a", "b"),
                sources=("model", "fallback"),
                fallback=bool(rng.random() < 0.1),
                context={"device": ("phone", "desk")[hour % 2]} if hour % 5 else {},
                exposed_at=START + timedelta(hours=hour),
            )
        )

    def interact(unit, exposure, hour):
        interactions.append(
            Interaction(
                id=uuid(),
                exposure_id=None if exposure is None else exposure.id,
                unit_id=unit,
                kind=kinds[rng.integers(len(kinds))],
                item_id=None,
                position=(None, 1, 2, 3)[rng.integers(4)],
                # Quarters add up without rounding.
                value=(None, Decimal("0.25"), Decimal("-0.5"), Decimal(2))[
                    rng.integers(4)
                ],
                occurred_at=START + timedelta(hours=hour),
                category=(None, "shoes", "hats", "coats")[rng.integers(4)],
                placement=(None, None, None, "cart", "product", mode)[rng.integers(6)],
            )
        )

    for number in range(120):
        unit = f"unit-{number}"
        hours = sorted(rng.integers(HOURS, size=1 + rng.poisson(2)).tolist())
        for hour in hours:
            expose(unit, hour)
            for _ in range(rng.poisson(1.2)):
                named = rng.random()
                exposure = None if named < 0.3 else exposures[-1]
                late = int(rng.integers(-2, 16))
                interact(None if named > 0.9 else unit, exposure, hour + late)
        for days in rng.integers(1, 40, size=rng.poisson(1)):
            interact(unit, None, hours[0] - 24 * int(days))
    return exposures, interactions


def value_by_hand(metric, events, limit, own):
    """What a unit's events are worth for a metric.

    `limit` ends the first window, `own` is the placement of the experiment.
    """
    low, high = metric.positions or (-1, 99)
    wanted = (own,) if metric.placements == "own" else metric.placements
    counted = [
        event
        for event in events
        if low <= (event.position or 0) <= high
        and (metric.categories is None or event.category in metric.categories)
        and (metric.placements is None or place_of(event, own) in wanted)
    ]
    if metric.kind == "proportion":
        return float(any(event.occurred_at <= limit for event in counted))
    if metric.of == "value":
        y = float(sum(event.value or 0 for event in counted))
    else:
        y = len(counted)
    return y if metric.cap is None else min(y, metric.cap)


def place_of(event, own):
    shown_at = None if event.exposure_id is None else own
    return event.placement or shown_at


#: What `units_by_hand` gave: several tests ask for the same.
_KNOWN = {}


def units_by_hand(mode, exposures, interactions, metric, cutoff):
    """First exposure, y, x, end of window and z of each unit that counts."""
    key = mode, metric.name, cutoff
    if key not in _KNOWN:
        _KNOWN[key] = _units_by_hand(mode, exposures, interactions, metric, cutoff)
    return _KNOWN[key]


def _units_by_hand(mode, exposures, interactions, metric, cutoff):
    """Straight from the definition; knows neither tables nor phases of storage."""
    seen = defaultdict(list)
    for exposure in exposures:
        key = exposure.unit_id
        seen[(key, exposure.epoch) if mode == "redraw" else key].append(exposure)
    units = []
    for shown in seen.values():
        shown.sort(key=lambda exposure: exposure.exposed_at)
        if len({e.variant for e in shown if e.exposed_at <= cutoff}) != 1:
            continue
        first, last = shown[0], shown[-1]
        ids = {exposure.id: exposure for exposure in shown}
        happened = defaultdict(list)
        for event in interactions:
            if event.exposure_id is None:
                causes = [e for e in shown if e.unit_id == event.unit_id]
            else:
                causes = [ids[event.exposure_id]] if event.exposure_id in ids else []
            if any(
                timedelta(0) <= event.occurred_at - cause.exposed_at <= WINDOW
                for cause in causes
            ):
                happened[event.kind].append(event)
        ends = (last if metric.kind == "ratio" else first).exposed_at + WINDOW
        if ends > cutoff:
            continue
        viewed = min((e.occurred_at for e in happened["viewed"]), default=None)
        if metric.trigger == "viewed" and (viewed is None or viewed > ends):
            continue
        events = [event for kind in metric.event_kinds for event in happened[kind]]
        y = value_by_hand(metric, events, first.exposed_at + WINDOW, mode)
        x = len(shown) if metric.kind == "ratio" else 1
        z = before_by_hand(metric, exposures, interactions, first)
        units.append((first, y, x, ends, z))
    return units


def before_by_hand(metric, exposures, interactions, first):
    """What the unit of a first exposure did on the 28 whole days before."""
    unit_of = {exposure.id: exposure.unit_id for exposure in exposures}
    before = [
        event
        for event in interactions
        if event.kind in metric.event_kinds
        and (event.unit_id or unit_of[event.exposure_id]) == first.unit_id
        and 1 <= (first.exposed_at.date() - event.occurred_at.date()).days <= 28
    ]
    if metric.of == "value":
        z = float(sum(event.value or 0 for event in before))
    else:
        z = len(before)
    return z if metric.cap is None else min(z, metric.cap)


def moments_by_hand(*given):
    values = defaultdict(list)
    for first, *rest in units_by_hand(*given):
        cell = first.variant, first.epoch, None, first.exposed_at.date()
        values[cell].append(rest)
    return values


@pytest.fixture(scope="module", params=["ab", "redraw", "sticky"])
def stored(request, server_url, template_database):
    """A mode with its events in a database, and the events themselves."""
    mode = request.param
    name = f"test_metrics_{mode}"
    admin = plain_engine(server_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template_database}"))
    url = make_url(server_url).set(database=name)
    engine = create_engine(url.render_as_string(hide_password=False))
    with transaction(engine) as connection:
        experiment = storage.create_experiment(
            connection, declaration_of(mode), now=START
        )
        experiment = storage.set_state(
            connection, experiment, ExperimentState.RUNNING, now=START
        )
        for number in range(HOURS // EPOCH_HOURS):
            epoch = Epoch(
                number=number,
                weights=dict.fromkeys(VARIANTS, 1 / 3),
                reason="test",
                started_at=START + timedelta(hours=number * EPOCH_HOURS),
            )
            storage.insert_epoch(connection, experiment.id, epoch)
        rng = np.random.default_rng(20260301)
        exposures, interactions = random_events(experiment.id, mode, rng)
        half = len(exposures) // 2
        store_events(connection, exposures[half:], interactions[::2])
        store_events(connection, exposures[:half], interactions[1::2])
        store_events(connection, exposures, interactions)
    yield mode, engine, experiment, exposures, interactions
    engine.dispose()
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


CUTOFFS = [
    pytest.param(START + timedelta(hours=hours), id=f"{hours}h")
    for hours in (0, 12, 47, 60, 120, 400)
]


@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize("name", ALL_METRICS)
def test_sql_moments_equal_numpy_moments(stored, name, cutoff):
    mode, engine, experiment, exposures, interactions = stored
    metric = ALL_METRICS[name]
    values = moments_by_hand(mode, exposures, interactions, metric, cutoff)
    expected = {
        cell: Moments.from_arrays(*np.array(rows)[:, :2].astype(float).T)
        for cell, rows in values.items()
    }
    with transaction(engine) as connection:
        found = metric_moments(connection, experiment, metric, cutoff=cutoff)
    assert found.keys() == expected.keys()
    for cell, moments in expected.items():
        assert astuple(found[cell]) == astuple(moments), cell


@pytest.mark.parametrize("name", ALL_METRICS)
def test_sql_covariates_equal_numpy_covariates(stored, name):
    mode, engine, experiment, exposures, interactions = stored
    metric, cutoff = ALL_METRICS[name], START + timedelta(hours=120)
    values = moments_by_hand(mode, exposures, interactions, metric, cutoff)
    adjusting = replace(
        experiment, declaration=replace(experiment.declaration, cuped=True)
    )
    with transaction(engine) as connection:
        cells = moments_by_metric(connection, adjusting, [metric], cutoff=cutoff)[name]
    assert cells.covariates.keys() == cells.moments.keys() == values.keys()
    for cell, rows in values.items():
        y, x, z = (np.array([row[i] for row in rows], dtype=float) for i in (0, 1, 3))
        expected = CovariateMoments.from_arrays(y, z, x)
        assert astuple(cells.covariates[cell]) == astuple(expected), cell
    assert any(row[3] for rows in values.values() for row in rows)


def test_one_pass_over_all_metrics_gives_the_same_as_one_each(stored):
    _, engine, experiment, _, _ = stored
    cutoff = START + timedelta(hours=60)
    with transaction(engine) as connection:
        together = moments_by_metric(
            connection, experiment, list(ALL_METRICS.values()), cutoff=cutoff
        )
        for name, metric in ALL_METRICS.items():
            alone = metric_moments(connection, experiment, metric, cutoff=cutoff)
            assert together[name].moments == alone


@pytest.mark.parametrize("name", ALL_METRICS)
def test_series_adds_up_by_the_time_at_which_windows_closed(stored, name):
    mode, engine, experiment, exposures, interactions = stored
    metric = ALL_METRICS[name]
    start, cutoff, buckets = START + WINDOW, START + timedelta(hours=96), 12
    values = moments_by_hand(mode, exposures, interactions, metric, cutoff)
    with transaction(engine) as connection:
        cells = moments_by_metric(
            connection,
            experiment,
            [metric],
            cutoff=cutoff,
            spans=Spans(start=start, end=cutoff, count=buckets),
        )[name]
        alone = metric_moments(connection, experiment, metric, cutoff=cutoff)
    assert cells.moments == alone
    assert cells.series.keys() == {cell.variant for cell in alone}
    for variant, spans in cells.series.items():
        rows = [
            row for place, cell in values.items() if place[0] == variant for row in cell
        ]
        width = (cutoff - start) / buckets
        for number, span in enumerate(spans):
            low = start + number * width
            last = number == buckets - 1
            inside = [
                (y, x)
                for y, x, ends, _ in rows
                if low <= ends and (ends < low + width or last)
            ]
            expected = Moments.zero()
            if inside:
                expected = Moments.from_arrays(*np.array(inside, dtype=float).T)
            assert span == expected


def test_there_is_something_to_compare(stored):
    mode, _, _, exposures, interactions = stored
    for metric in ALL_METRICS.values():
        values = moments_by_hand(
            mode, exposures, interactions, metric, START + timedelta(hours=400)
        )
        rows = [row for cell in values.values() for row in cell]
        assert len(rows) > 30
        assert len({y for y, *_ in rows}) > 1


@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize(
    "name", [name for name, metric in ALL_METRICS.items() if metric.kind != "ratio"]
)
def test_rounds_are_the_units_that_count(stored, name, cutoff):
    mode, engine, experiment, exposures, interactions = stored
    metric = ALL_METRICS[name]
    expected = sorted(
        (
            first.exposed_at.timestamp(),
            first.unit_id,
            VARIANTS.index(first.variant),
            first.propensity,
            float(y),
            first.context.get("device", "-"),
        )
        for first, y, *_ in units_by_hand(mode, exposures, interactions, metric, cutoff)
    )
    with transaction(engine) as connection:
        batches = list(
            stream_rounds(
                connection, experiment, metric, cutoff=cutoff, segment_by=["device"]
            )
        )
        code_of = dict(
            connection.execute(
                text(
                    "SELECT DISTINCT unit_id, hashtextextended(unit_id, 0)"
                    " FROM unit_exposure"
                )
            ).all()
        )
    found = [row for batch in batches for row in rows_of(batch)]
    assert [row[0] for row in found] == [row[0] for row in expected]
    assert sorted(found) == sorted(
        (at, code_of[unit], *rest) for at, unit, *rest in expected
    )


def rows_of(batch):
    return zip(
        batch.time,
        batch.unit,
        batch.arm,
        batch.propensity,
        batch.reward,
        batch.segment,
        strict=True,
    )


@pytest.mark.parametrize("half_life", [None, 20 * 3600.0, 7.0])
@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize("name", ALL_METRICS)
def test_what_a_policy_learns_from_are_discounted_sums(stored, name, cutoff, half_life):
    mode, engine, experiment, exposures, interactions = stored
    metric = ALL_METRICS[name]
    expected = defaultdict(lambda: np.zeros(6))
    for first, y, x, *_ in units_by_hand(mode, exposures, interactions, metric, cutoff):
        age = (cutoff - first.exposed_at).total_seconds()
        worth = 1.0 if half_life is None else 0.5 ** (age / half_life)
        sums = np.array([1, y, y * y, x, x * x, x * y], dtype=float)
        expected[None, first.variant] += worth * sums
    with transaction(engine) as connection:
        found = reward_sums(
            connection, experiment, metric, cutoff=cutoff, half_life=half_life
        )
    assert found.keys() == expected.keys()
    for cell, sums in expected.items():
        assert list(found[cell].values()) == pytest.approx(
            list(sums), rel=1e-12, abs=1e-290
        )
