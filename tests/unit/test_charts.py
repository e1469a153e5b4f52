"""Charts and number formats as pure functions of report pieces."""

import json
from datetime import UTC, datetime, timedelta

import altair as alt
import numpy as np
import pytest
from scipy import stats

from dashboard import charts, encodings, formats, health_charts, monitor_charts
from experiment_service.analysis.interval import Interval, Withheld
from experiment_service.domain.experiment import ExperimentKind, ExperimentState
from experiment_service.reporting import (
    Comparison,
    EpochReport,
    Facts,
    MetricReport,
    MinuteCount,
    MonitoredDay,
    PlaceCount,
    Posterior,
    Series,
    SeriesPoint,
    VariantFacts,
)

T0 = datetime(2026, 5, 4, 9, tzinfo=UTC)
VARIANTS = ("popular", "knn", "als")
COLOURS = {"popular": "#8C8C8C", "knn": "#0072B2", "als": "#E69F00"}
WITHHELD = Withheld(reason="Too few units.")


def interval(estimate, half):
    return Interval(
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        level=0.95,
        method="method",
        validity="valid",
    )


def metric(*comparisons, kind="proportion"):
    return MetricReport(
        name="rate",
        title="Rate",
        kind=kind,
        direction="higher",
        reward=True,
        variants=(),
        comparisons=comparisons,
    )


def comparison(variant, planned, any_time):
    return Comparison(
        variant=variant,
        planned=planned,
        any_time=any_time,
        lift_planned=WITHHELD,
        lift_any_time=WITHHELD,
    )


def epochs(count, units=100):
    return tuple(
        EpochReport(
            number=number,
            started_at=T0 + number * timedelta(hours=1),
            weights={"popular": 0.2, "knn": 0.3, "als": 0.5},
            units={"popular": units // 5, "knn": units // 4, "als": units // 2},
            cutoff=None,
            reason="test",
        )
        for number in range(count)
    )


def valid(chart):
    """The specification, checked against the schema of Vega-Lite and JSON."""
    spec = chart.to_dict(validate=True)
    assert spec["$schema"].endswith(".json")
    json.dumps(spec, allow_nan=False)
    return spec


def rows(spec):
    """Every inline row of a specification, of all its layers."""
    found = list(spec.get("data", {}).get("values", []))
    for layer in spec.get("layer", []):
        found += rows(layer)
    for dataset in spec.get("datasets", {}).values():
        found += dataset
    return found


def test_control_is_grey_and_others_have_colours_of_their_own():
    facts = Facts(
        key="k",
        description="",
        kind=ExperimentKind.AB,
        state=ExperimentState.RUNNING,
        placement="home",
        reward_metric="rate",
        attribution_window=timedelta(hours=1),
        started_at=T0,
        stopped_at=None,
        running_for=timedelta(hours=1),
        epoch=0,
        variants=tuple(
            VariantFacts(
                key=key,
                recommender=key,
                control=key == "v1",
                weight=0.1,
                units=1,
                exposures=1,
                fallbacks=0,
            )
            for key in (f"v{i}" for i in range(9))
        ),
        units=9,
        crossed=0,
        interactions={},
        last_exposure_at=None,
    )
    colours = encodings.colours(facts)
    assert colours["v1"] == encodings.NEUTRAL
    assert len(colours) == 9
    assert len({colours[f"v{i}"] for i in (0, 2, 3, 4, 5, 6, 7)}) == 7


def test_forest_is_in_points_and_skips_what_is_withheld():
    chart = charts.forest(
        metric(
            comparison("knn", interval(0.01, 0.02), WITHHELD),
            comparison("als", interval(0.03, 0.01), interval(0.03, 0.02)),
        ),
        "popular",
        COLOURS,
    )
    spec = valid(chart)
    limits = sorted(
        (row["variant"], round(row["low"], 9), round(row["high"], 9))
        for row in rows(spec)
        if "low" in row
    )
    assert ("knn", -1.0, 3.0) in limits
    assert ("als", 1.0, 5.0) in limits
    assert "percentage points" in json.dumps(spec)


def test_forest_of_a_mean_is_in_its_unit():
    chart = charts.forest(
        metric(comparison("als", WITHHELD, interval(0.3, 0.1)), kind="mean"),
        "popular",
        COLOURS,
    )
    spec = valid(chart)
    assert {row["estimate"] for row in rows(spec) if "estimate" in row} == {0.3}
    assert "events per visitor" in json.dumps(spec)


def test_forest_without_an_interval_is_none():
    withheld = metric(comparison("als", WITHHELD, WITHHELD))
    assert charts.forest(withheld, "popular", COLOURS) is None


def series(count):
    return tuple(
        Series(
            variant=variant,
            points=tuple(
                SeriesPoint(
                    at=T0 + i * timedelta(hours=1),
                    units=100 * (i + 1),
                    interval=interval(0.1, min(0.09 / (i + 1), 0.1)),
                )
                for i in range(count)
            ),
        )
        for variant in VARIANTS
    )


def test_cumulative_shows_every_point_and_ignores_the_first_bands_for_its_scale():
    spec = valid(charts.cumulative(series(20), metric(), COLOURS))
    shown = [row for row in rows(spec) if "units" in row]
    assert {(row["variant"], row["at"]) for row in shown} == {
        (variant, (T0 + i * timedelta(hours=1)).isoformat())
        for variant in VARIANTS
        for i in range(20)
    }
    low, high = spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert (low, high) == pytest.approx((0.1 - 0.09 / 6, 0.1 + 0.09 / 6))


@pytest.mark.parametrize("count", [0, 1])
def test_cumulative_needs_two_times(count):
    assert charts.cumulative(series(count), metric(), COLOURS) is None


def test_weights_are_steps_that_reach_until_now():
    until = T0 + timedelta(hours=10)
    spec = valid(charts.weights(epochs(3), until, COLOURS))
    shown = rows(spec)
    assert len(shown) == 4 * 3
    assert max(row["at"] for row in shown) == until.isoformat()
    assert spec["mark"]["interpolate"] == "step-after"
    domain = spec["encoding"]["color"]["scale"]
    assert domain == {
        "domain": list(VARIANTS),
        "range": [COLOURS[variant] for variant in VARIANTS],
    }


def test_thousands_of_epochs_are_thinned_and_the_last_one_stays():
    spec = valid(charts.weights(epochs(5000), T0 + timedelta(days=900), COLOURS))
    shown = rows(spec)
    assert len(shown) <= 3 * 402
    assert max(row["epoch"] for row in shown) == 4999


def test_weights_of_a_draft_are_none():
    assert charts.weights((), T0, COLOURS) is None


def posterior(variant, alpha, beta, best):
    return Posterior(
        variant=variant,
        units=int(alpha + beta - 2),
        rewards=int(alpha - 1),
        alpha=alpha,
        beta=beta,
        mean=alpha / (alpha + beta),
        low=0.0,
        high=1.0,
        probability_best=best,
    )


POSTERIORS = (
    posterior("popular", 11.0, 91.0, 0.0001),
    posterior("knn", 1.0, 1.0, 0.0009),
    posterior("als", 31.0, 71.0, 0.999),
)


def test_densities_are_those_of_scipy():
    spec = valid(charts.densities(POSTERIORS, COLOURS, "proportion"))
    shown = [row for row in rows(spec) if row["variant"] == "als"]
    rates = np.array([row["rate"] for row in shown])
    found = [row["density"] for row in shown]
    assert found == pytest.approx(stats.beta.pdf(rates, 31, 71))


def test_bars_say_the_probability_of_being_best():
    spec = valid(charts.probability_best(POSTERIORS, COLOURS))
    words = {row["variant"]: row["shown"] for row in rows(spec)}
    assert words == {"popular": "< 0.1%", "knn": "< 0.1%", "als": "99.9%"}


def test_sample_ratio_is_in_standard_errors():
    spec = valid(health_charts.sample_ratio(epochs(2), COLOURS))
    shown = [row for row in rows(spec) if "deviation" in row]
    total = 20 + 25 + 50
    for row in shown:
        weight = {"popular": 0.2, "knn": 0.3, "als": 0.5}[row["variant"]]
        expected = (row["units"] - total * weight) / np.sqrt(
            total * weight * (1 - weight)
        )
        assert row["deviation"] == pytest.approx(expected)
    assert len(shown) == 6


def test_sample_ratio_of_too_few_units_is_none():
    assert health_charts.sample_ratio(epochs(3, units=4), COLOURS) is None
    assert health_charts.sample_ratio((), COLOURS) is None


def test_traffic_shows_silent_minutes_as_zero():
    minutes = [MinuteCount(minute=T0, exposures=7, interactions=3)]
    since, until = T0 - timedelta(minutes=2), T0 + timedelta(minutes=2, seconds=30)
    spec = valid(health_charts.traffic(minutes, since, until))
    shown = [row["events"] for row in rows(spec) if row["kind"] == "exposures"]
    assert shown == [0, 0, 7, 0, 0]


def monitored(variant, number, **measured):
    until = datetime(2026, 4, 29, tzinfo=UTC) + timedelta(days=number)
    return MonitoredDay(
        variant=variant,
        day=until.date() - timedelta(days=1),
        until=until,
        exposures=500,
        measured=measured,
        positions=[
            PlaceCount(position=1, shown=0, acted=0, shown_before=40, acted_before=10)
        ],
    )


def test_monitors_are_drawn_by_day_in_the_order_of_time_with_their_threshold():
    days = [
        monitored("popular", number, fallback_share=number / 10, coverage=None)
        for number in range(4)
    ]
    drawn = monitor_charts.by_day(days, "fallback_share", COLOURS, threshold=0.2)
    spec = drawn.to_dict()
    rule, lines = (spec["datasets"][layer["data"]["name"]] for layer in spec["layer"])
    assert rule == [{"value": 0.2}]
    assert [row["value"] for row in lines] == [0, 0.1, 0.2, 0.3]
    assert lines[3]["shown"] == "30.0%"
    lines = spec["layer"][1]
    assert lines["encoding"]["x"]["sort"] == ["28 Apr", "29 Apr", "30 Apr", "1 May"]
    assert lines["encoding"]["y"]["scale"]["domain"] == [0, pytest.approx(0.315)]
    assert monitor_charts.by_day(days, "coverage", COLOURS, threshold=0.5) is None


def test_positions_of_the_last_look_are_drawn_where_something_was_shown():
    drawn = monitor_charts.by_position(
        [monitored("popular", 1), monitored("popular", 2)], COLOURS
    )
    ((row,),) = drawn.to_dict()["datasets"].values()
    assert (row["when"], row["rate"]) == ("7 days before", 0.25)
    assert monitor_charts.by_position([], COLOURS) is None


def test_every_chart_is_altair():
    drawn = charts.densities(POSTERIORS, COLOURS, "mean")
    assert isinstance(drawn, alt.Chart)


@pytest.mark.parametrize(
    ("write", "argument", "text"),
    [
        (formats.count, 1234567, "1,234,567"),
        (formats.share, 0.1234, "12.3%"),
        (formats.lift, -0.0001, "0.0%"),
        (formats.lift, 0.25, "+25.0%"),
        (formats.probability, 0.9999, "> 99.9%"),
        (formats.probability, 0.5, "50.0%"),
        (formats.size, 999, "999 B"),
        (formats.size, 53_000_000, "53 MB"),
        (formats.size, 7_200_000_000_000, "7.2 TB"),
        (formats.moment, None, "\N{EN DASH}"),
        (formats.moment, T0, "04 May 2026, 09:00 UTC"),
    ],
)
def test_formats(write, argument, text):
    assert write(argument) == text


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(0), "0 s"),
        (timedelta(seconds=59), "59 s"),
        (timedelta(minutes=2, seconds=3), "2 min 3 s"),
        (timedelta(hours=4), "4 h"),
        (timedelta(days=6, hours=1, minutes=9), "6 d 1 h"),
        (timedelta(seconds=-5), "0 s"),
    ],
)
def test_spans(span, text):
    assert formats.span(span).replace("\N{NO-BREAK SPACE}", " ") == text


def test_values_and_differences_know_their_unit():
    assert formats.value(0.0456, "proportion") == "4.56%"
    assert formats.value(0.1456, "ratio") == "14.6%"
    assert formats.value(0.1456, "mean") == "0.146"
    assert formats.difference(-0.0123, "ratio") == "\N{MINUS SIGN}1.23 pp"
    assert formats.difference(0.0123, "mean") == "+0.012"
    low_high = formats.difference_range(interval(0.0, 0.01), "proportion")
    assert low_high == "\N{MINUS SIGN}1.00 to +1.00 pp"


def test_ago():
    assert formats.ago(None, T0) == "never"
    assert formats.ago(T0, T0) == "just now"
    ago = formats.ago(T0 - timedelta(minutes=5), T0)
    assert ago.replace("\N{NO-BREAK SPACE}", " ") == "5 min ago"
