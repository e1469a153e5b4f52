"""Plans on the traffic of an experiment: from its rows, by the command line too."""

import json
from collections import Counter
from datetime import timedelta

import pytest

from experiment_service.analysis.planning import Design, Spread, needed_units
from experiment_service.cli import main
from experiment_service.errors import InvalidRequest, InvalidState
from experiment_service.reporting.planning import (
    Baseline,
    make_plan,
    read_baseline,
)
from experiment_service.storage.database import create_engine, transaction
from tests.integration.reporting.test_dashboard import EMAIL, HOME
from tests.integration.reporting.test_reporting import T0, fill, small_experiment


@pytest.fixture(scope="module")
def reader(shop):
    engine = create_engine(shop.url)
    yield engine
    engine.dispose()


@pytest.fixture
def run(shop, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("DATABASE_URL", shop.url)
    monkeypatch.setenv("EXPERIMENT_SERVICE_DATA_DIR", str(tmp_path))

    def run(*arguments):
        status = main(["plan", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_a_baseline_is_what_the_rows_say(shop, reader):
    with transaction(reader) as connection:
        baseline = read_baseline(connection, HOME, as_of=shop.now)
    first = {}
    for exposure in sorted(shop.exposures[HOME], key=lambda each: each.exposed_at):
        first.setdefault(exposure.unit_id, exposure)
    closed = [
        each
        for each in first.values()
        if each.exposed_at + timedelta(hours=1) <= shop.now
    ]
    control = [each for each in closed if each.variant == "popular"]
    assert baseline.units == len(control)
    days = Counter(each.exposed_at.date() for each in closed)
    inner = sorted(days)[1:-1]
    assert baseline.units_per_day == sum(days[day] for day in inner) / len(inner)
    assert 0.05 < baseline.spread.value < 0.2


def test_days_are_units_over_units_a_day():
    spread = Spread.of_rate(0.1)
    baseline = Baseline(
        source="x", kind="proportion", spread=spread, units=None, units_per_day=500.0
    )
    plan = make_plan(baseline, Design(), lift=0.1)
    assert plan.difference == pytest.approx(0.01)
    assert plan.once.units == needed_units(spread, 0.01, Design())
    assert plan.once.days == plan.once.units / 500
    watched = needed_units(spread, 0.01, Design(any_time=True))
    assert plan.any_time.units == watched
    assert plan.reach[1].units == 7000


def test_of_several_variants_each_pair_has_its_part_of_the_traffic():
    baseline = Baseline(
        source="x",
        kind="proportion",
        spread=Spread.of_rate(0.1),
        units=None,
        units_per_day=500.0,
    )
    design = Design(comparisons=3)
    plan = make_plan(baseline, design, difference=0.01)
    pair = needed_units(baseline.spread, 0.01, design)
    assert plan.once.units == pytest.approx(2 * pair, abs=1)


def test_the_command_plans_on_an_experiment(run):
    status, out, err = run(HOME, "--lift", 0.1)
    assert (status, err) == (0, "")
    assert out.startswith(f"visitor_interaction_rate of {HOME}, variant popular: ")
    assert "new units a day" in out.splitlines()[0]
    assert "(+10.0%) with 80% power at level 95%" in out
    document = json.loads(run(HOME, "--lift", 0.1, "--json")[1])
    assert document["any_time"]["units"] > document["once"]["units"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((HOME, "--rate", 0.1, "--lift", 0.1), "one of the three"),
        (("--lift", 0.1), "one of the three"),
        (("--mean", 1, "--lift", 0.1, "--units-per-day", 5), "go together"),
        (("--rate", 0.1, "--lift", 0.1), "give --units-per-day"),
        (("--rate", 0.1, "--lift", 0.1, "--units-per-day", 0), "units_per_day is 0.0"),
        (("--rate", 2, "--lift", 0.1, "--units-per-day", 9), "rate is 2.0"),
        (("--rate", 0.5, "--lift", 2, "--units-per-day", 9), "rate is 1.5"),
        (("--rate", 0.5, "--lift", 0, "--units-per-day", 9), "difference is 0.0"),
        ((HOME, "--lift", 0.1, "--power", 1), "power is 1.0"),
        ((EMAIL, "--lift", 0.1), "is no base for a plan"),
        (("nope", "--lift", 0.1), "'nope' does not exist"),
        ((HOME, "--lift", 0.1, "--metric", "x"), "metric 'x' is not known"),
    ],
)
def test_what_cannot_be_planned_is_said(run, arguments, words):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


def test_one_day_of_traffic_is_not_enough(connection, recorder):
    experiment = small_experiment(connection)
    fill(connection, recorder, experiment, {("a", 0): (300, 30), ("b", 0): (300, 30)})
    with pytest.raises(InvalidState, match="no complete day of traffic"):
        read_baseline(connection, "small", as_of=T0 + timedelta(days=9))
    given = read_baseline(
        connection, "small", units_per_day=50, as_of=T0 + timedelta(days=9)
    )
    assert given.units_per_day == 50


def test_a_difference_or_a_lift_is_needed():
    baseline = Baseline(
        source="x",
        kind="proportion",
        spread=Spread.of_rate(0.1),
        units=None,
        units_per_day=500.0,
    )
    with pytest.raises(InvalidRequest, match="one of the two"):
        make_plan(baseline, Design())
