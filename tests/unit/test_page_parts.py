"""Small drawings, the funnel, positions and files of the dashboard, as pure functions."""

import csv
import io
import re
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from dashboard import downloads, journey_charts, model_tables, sparkline
from experiment_service.analysis.interval import Interval, Withheld
from experiment_service.reporting import (
    Comparison,
    Figure,
    GateCheck,
    Journey,
    Judgement,
    MetricReport,
    Place,
    Reach,
    Step,
    VariantResult,
)
from tests.unit.test_charts import rows, valid

T0 = datetime(2026, 5, 4, 9, tzinfo=UTC)
COLOURS = {
    "popular": "#8C8C8C",
    "als": "#E69F00",
    **{f"v{i}": "#0072B2" for i in range(9)},
}
NO = Withheld(reason="Too few units <b>.")


def interval(estimate, low, high):
    return Interval(
        estimate=estimate, low=low, high=high, level=0.95, method="m", validity="v"
    )


def comparison(variant, any_time):
    return Comparison(
        variant=variant,
        planned=NO,
        any_time=any_time,
        lift_planned=NO,
        lift_any_time=NO,
    )


def metric(comparisons, kind="proportion"):
    results = [
        VariantResult(variant=v, units=10, open_units=0, planned=NO, any_time=NO)
        for v in ("popular", *(each.variant for each in comparisons))
    ]
    return MetricReport(
        name="rate",
        title="Rate",
        kind=kind,
        direction="higher",
        reward=True,
        variants=tuple(results),
        comparisons=tuple(comparisons),
    )


def facts(*variants, exposures=10, units=10):
    return SimpleNamespace(
        key="home",
        control="popular",
        units=units,
        interactions={"click": 3, "purchase": 4},
        variants=[
            SimpleNamespace(key=key, control=key == "popular", exposures=exposures)
            for key in ("popular", *variants)
        ],
    )


def drawn(comparisons, health="ok"):
    row = SimpleNamespace(
        reward=metric(comparisons),
        health=health,
        facts=facts(*(each.variant for each in comparisons)),
    )
    return sparkline.forest(row)


def test_a_small_interval_lies_on_a_scale_that_holds_zero():
    html = drawn([comparison("als", interval(0.06, 0.02, 0.08))])
    lefts = [float(x) for x in re.findall(r"left:([\d.]+)%", html)]
    width = float(re.search(r"width:([\d.]+)%", html)[1])
    # Zero at the left end, the interval from a quarter to the end, the dot at 3/4.
    assert lefts == [0.0, 25.0, 75.0]
    assert width == 75.0
    assert "als: +6.00 pp, +2.00 to +8.00 pp" in html


def test_nothing_is_drawn_that_should_not_be_read():
    good = [comparison("als", interval(0.06, 0.02, 0.08))]
    for html in (drawn(good, health="failed"), drawn([comparison("als", NO)])):
        assert "es-lane" not in html
    many = [comparison(f"v{i}", interval(0.0, -0.1, 0.1)) for i in range(7)]
    html = drawn(many)
    assert html.count('class="es-lane"') == 4
    assert "and 3 more" in html


def reach(variant, units, of):
    share = interval(units / of, 0.0, 1.0) if of else NO
    return Reach(variant=variant, units=units, of=of, share=share)


def place(position, *counts):
    named = zip(("popular", "als"), counts, strict=True)
    return Place(position=position, clicked=tuple(reach(v, n, 200) for v, n in named))


def test_positions_have_a_point_and_an_interval_each():
    spec = valid(journey_charts.positions([place(1, 20, 30), place(2, 0, 4)], COLOURS))
    found = {(row["position"], row["variant"]): row for row in rows(spec)}
    assert len(found) == 4
    assert found[1, "als"]["estimate"] == pytest.approx(0.15)
    assert found[2, "als"]["counts"] == "4 of 200"
    assert journey_charts.positions([place(1, 0, 0)], COLOURS) is None
    assert journey_charts.positions([], COLOURS) is None


def test_the_funnel_says_how_many_and_why_not():
    steps = (
        Step(
            kind="click",
            title="Clicked",
            reached=(reach("popular", 20, 200), reach("als", 0, 0)),
        ),
    )
    journey = Journey(as_of=T0, level=0.95, days=None, steps=steps, places=(), length=0)
    html = journey_charts.funnel_table(journey, COLOURS, "popular")
    assert "<b>10.0%</b>" in html
    assert "20 of 200" in html
    assert "width:10.00%" in html
    assert "Too few units &lt;b&gt;." in html


def test_the_table_as_csv_has_a_reason_where_it_has_no_number():
    compared = comparison("als", interval(0.01, -0.02, 0.04))
    report = SimpleNamespace(as_of=T0, facts=facts("als"), metrics=[metric([compared])])
    control, als = csv.DictReader(io.StringIO(downloads.metrics_csv(report)))
    assert (control["variant"], als["variant"]) == ("popular", "als")
    assert als["difference_any_time_low"] == "-0.02"
    assert als["difference_any_time_withheld"] == ""
    assert als["value_estimate"] == ""
    assert als["value_withheld"] == NO.reason
    assert control["difference_any_time_estimate"] == ""


def asked(content, kind="proportion", **traffic):
    report = SimpleNamespace(
        facts=facts("als", **traffic), reward=SimpleNamespace(kind=kind)
    )
    return downloads._refusal(report, content)


def test_a_page_makes_files_of_a_bounded_size():
    half = downloads.MOST_ROWS // 2
    assert asked("exposures", exposures=half) is None
    told = asked("exposures", exposures=half + 1)
    assert "experiment-service export home exposures --output" in told
    assert "100,002 rows" in told
    assert asked("interactions") is None
    assert asked("rounds", units=0) == "Nothing was recorded yet."
    assert "a ratio is none" in asked("rounds", kind="ratio")


def test_figures_and_checks_of_models_are_numbers_or_nothing():
    checks = (
        GateCheck(name="a", value=0.91, threshold=0.5, rule="at least", passed=True),
        GateCheck(name="b", value=None, threshold=0, rule="at most", passed=False),
    )
    html = model_tables.checklist_table(checks)
    assert html.index("Failed") < html.index("Passed")
    assert "at most 0" in html
    judged = (
        Judgement(
            title="repeats allowed",
            protocol="p",
            figures=(
                Figure(name="ndcg", value=0.23456, low=0.2, high=0.25),
                Figure(name="coverage", value=None),
                Figure(name="units", value=2469),
            ),
        ),
        Judgement(title="new only", protocol="q", figures=()),
    )
    html = model_tables.figures_table(judged)
    assert "0.2346" in html
    assert "0.2 to 0.25" in html
    assert "2,469" in html
    assert "nan" not in html.lower()
