"""Data checks: each by a table that breaks it, drift by closed forms and simulation."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from recommenders.data_checks import (
    DataProfile,
    Thresholds,
    check_data,
    check_overlap,
    compare_data,
    profile,
)
from recommenders.drift import stability_index

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = START + timedelta(days=60)
NONE = Thresholds(**dict.fromkeys(Thresholds.__dataclass_fields__))


def table(rows=2000, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "unit_id": [f"u{n}" for n in rng.integers(100, size=rows)],
            "item_id": [f"i{n}" for n in rng.integers(40, size=rows)],
            "occurred_at": pd.Timestamp(START)
            + pd.to_timedelta(np.sort(rng.uniform(0, 59 * 86_400, rows)), "s"),
            "weight": rng.exponential(size=rows) + 0.1,
        }
    )


def products():
    return pd.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(40)],
            "category": ["a", "b", "c", None] * 10,
            "price": [float(n % 7) + 1 for n in range(30)] + [np.nan] * 10,
        }
    )


def failed(interactions, catalogue=None, now=NOW, **thresholds):
    given = Thresholds(**thresholds)
    checks = check_data(interactions, given, catalogue=catalogue, now=now)
    return [str(check) for check in checks if not check.passed]


def test_sound_data_passes():
    assert failed(table(), products()) == []
    assert len(check_data(table(), Thresholds(), now=NOW)) == 7
    assert check_data(table(), NONE, catalogue=products(), now=NOW) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.iloc[::4], "data: interactions is 500, must be at least 1000"),
        (
            lambda d: d.assign(unit_id=[f"u{n % 20}" for n in range(len(d))]),
            "data: units is 20, must be at least 50",
        ),
        (lambda d: d.assign(item_id="i1"), "data: items is 1, must be at least 10"),
        (
            lambda d: pd.concat([d, d]),
            "data: share of repeated interactions is 0.5, must be at most 0.1",
        ),
        (
            lambda d: d[~d["occurred_at"].dt.day_of_year.between(11, 30)],
            "data: longest gap in days is 20",
        ),
        (
            lambda d: pd.concat(
                [d, d.assign(unit_id="robot", item_id=d["item_id"] + "r")]
            ),
            "data: share of the interactions of the busiest unit is 0.5, must be at",
        ),
    ],
)
def test_what_is_wrong_is_found_alone(change, said):
    (found,) = failed(change(table()))
    assert found.startswith(said)


def test_an_export_that_stands_still_is_found():
    (found,) = failed(table(), now=NOW + timedelta(days=20))
    assert found.startswith("data: days since the last interaction is 21")


def test_gaps_of_the_catalogue_are_shares_of_interactions():
    data = table()
    short = products()[lambda p: p["item_id"].isin(data["item_id"].unique()[:20])]
    bounds = {"max_without_category": 0.3, "max_without_price": 0.2}
    checks = check_data(data, Thresholds(**bounds), catalogue=short, now=NOW)
    values = [check.value for check in checks[-3:]]
    told = {"unlisted": short, "category": short[short["category"].notna()]}
    told["price"] = short[short["price"].notna()]
    for value, known in zip(values, told.values(), strict=True):
        assert value == pytest.approx(1 - data["item_id"].isin(known["item_id"]).mean())
    assert [check.passed for check in checks[-3:]] == [False, False, False]


def test_one_interaction_can_be_checked():
    assert "longest gap" not in " ".join(failed(table(1), now=NOW))


# Drift


def drift(new, old, catalogue=None, thresholds=None):
    was = profile(old, catalogue)
    now = profile(
        new, catalogue, like=DataProfile(**json.loads(json.dumps(was.document())))
    )
    return {
        check.name: check
        for check in compare_data(now, was, thresholds or Thresholds())
    }


def test_the_index_is_siddiqis():
    new, old = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    assert stability_index(new, old) == pytest.approx(0.25 * np.log(3))
    assert stability_index(old, old) == 0
    # An empty bin counts as one in ten thousand.
    assert stability_index(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(
        0.5 * np.log(2) + 0.4999 * np.log(5000), rel=1e-3
    )


def test_the_same_data_has_no_drift():
    checks = drift(table(), table(), products())
    assert set(checks) == {
        "data: interactions, times those of the version that serves",
        *(
            f"data: drift of {name}"
            for name in (
                "interactions per unit",
                "days of the week",
                "categories",
                "weights",
                "prices",
            )
        ),
    }
    assert all(check.value == pytest.approx(0) for check in list(checks.values())[1:])


def test_shares_of_a_profile_sum_to_one():
    shares = profile(table(), products()).shares
    assert all(sum(each.values()) == pytest.approx(1) for each in shares.values())
    tenths = [share for name, share in shares["weights"].items() if name != "none"]
    assert tenths == pytest.approx([0.1] * 10, abs=0.001)


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        (lambda d: d.assign(weight=d["weight"] * 100), "weights"),
        (
            lambda d: d[d["item_id"].isin([f"i{n}" for n in range(0, 40, 4)])],
            "categories",
        ),
        (lambda d: d[d["item_id"].str.len() == 2], "prices"),
        (lambda d: d[d["occurred_at"].dt.day_name() == "Monday"], "days of the week"),
        (lambda d: d.iloc[::8], "interactions per unit"),
    ],
)
def test_drift_is_found_where_it_is(change, feature):
    checks = drift(change(table()), table(), products())
    assert not checks[f"data: drift of {feature}"].passed


def test_a_fall_in_volume_is_found():
    checks = drift(table().iloc[::4], table())
    volume = checks["data: interactions, times those of the version that serves"]
    assert (volume.value, volume.passed) == (0.25, False)


def test_a_feature_that_is_gone_never_passes():
    was = profile(table(), products())
    now = profile(table(), None, like=was)
    checks = {
        check.name: check.passed for check in compare_data(now, was, Thresholds())
    }
    assert checks["data: drift of prices"] is False
    assert checks["data: drift of weights"] is True


def test_names_beyond_the_largest_share_a_bin():
    many = table().assign(market=lambda d: [f"m{n % 50}" for n in range(len(d))])
    was = profile(many)
    assert len(was.shares["markets"]) == 21
    now = profile(many.assign(market="new"), like=was)
    assert now.shares["markets"]["other"] == 1


def test_chance_alone_is_rarely_called_drift():
    """20 bins, 60 and 80 units: the plain threshold would refuse nearly always."""
    rng = np.random.default_rng(5)
    p = np.full(20, 0.05)
    new, old = rng.multinomial(80, p, 4000) / 80, rng.multinomial(60, p, 4000) / 60
    pairs = zip(new, old, strict=True)
    indices = np.array([stability_index(*pair, least=1 / 60) for pair in pairs])
    bound = stats.chi2.ppf(0.999, 19) * (1 / 80 + 1 / 60)
    assert (indices > 0.25).mean() > 0.9
    assert (indices > bound).mean() < 0.001 + 4 * np.sqrt(0.001 / 4000)


def test_few_units_may_differ_by_chance():
    one, other = (
        table(rows, seed).assign(market=lambda d: d["item_id"].str[:2])
        for rows, seed in ((80, 1), (60, 2))
    )
    check = drift(one, other)["data: drift of markets"]
    units = [data["unit_id"].nunique() for data in (one, other)]
    bins = len({*other["market"], "other"})
    bound = stats.chi2.ppf(0.999, bins - 1) * sum(1 / count for count in units)
    assert check.threshold == pytest.approx(bound)
    assert check.passed
    assert drift(table(), table())["data: drift of weights"].threshold == pytest.approx(
        max(0.25, stats.chi2.ppf(0.999, 10) * 2 / 100)
    )


def test_ids_that_were_written_anew_are_found():
    assert [check.passed for check in check_overlap(0.1, 0.6, Thresholds())] == [
        False,
        True,
    ]
    assert check_overlap(0, 0, NONE) == []
