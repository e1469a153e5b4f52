"""A pipeline's file: what is read, what is refused, and what editors are told."""

import json
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest
import yaml

from experiment_service.errors import InvalidRequest
from experiment_service.training import find_pipelines, pipeline_schema, read_pipeline

DOCS = Path(__file__).parents[2] / "docs" / "pipelines"
GOOD = {"name": "knn", "recommender": "item_knn", "data": {"interactions": "p.csv"}}


@pytest.fixture
def write(tmp_path):
    def write(file="a.yaml", /, **changes):
        path = tmp_path / file
        path.write_text(yaml.safe_dump({**GOOD, **changes}))
        return path

    return write


def test_what_is_left_out_has_a_default(write):
    pipeline = read_pipeline(
        write(data={"complete_journey": True, "until": "2017-12-01"})
    )
    assert pipeline.data.until == datetime(2017, 12, 1, tzinfo=UTC)
    assert pipeline.checks.max_psi == 0.25
    assert (pipeline.depth, pipeline.gates, pipeline.schedule) == (50, [], None)
    assert pipeline.markets_of(None) == [None]


def test_each_market_has_a_model(write):
    pipeline = read_pipeline(write(markets=["DE", "at"]))
    assert pipeline.markets_of(None) == ["DE", "at"]
    assert pipeline.markets_of("DE") == ["DE"]
    assert pipeline.model_name("DE") == "knn-de"
    with pytest.raises(InvalidRequest, match=r"market is 'fr'; .*'knn' has: DE, at"):
        pipeline.markets_of("fr")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "name is None; it must be a valid string"),
        ({"name": "../x"}, "name is '../x'; it must be 1 to 63 characters of a-z"),
        ({"markets": ["d/e"]}, "name is 'knn-d/e'; it must be"),
        ({"markets": ["de", "de"]}, "markets has 'de' twice"),
        ({"colour": 1}, "colour is not known here; leave it out"),
        ({"data": {}}, "data needs interactions, a file, or complete_journey: true"),
        (
            {"data": {"interactions": "p.csv", "complete_journey": True}},
            "data has interactions and complete_journey: true; leave one out",
        ),
        ({"data": {"own": {}}}, r"data\.own\.kinds is missing"),
        ({"data": {"own": {"kinds": {}}}}, "kinds is {}; it must name one at least"),
        (
            {"data": {"own": {"kinds": {"dismiss": 1}}}},
            "it must name some of click, add_to_cart, purchase",
        ),
        (
            {"data": {"own": {"kinds": {"click": 0}}}},
            "it must have weights above 0 and at most 1e\\+06",
        ),
        (
            {"data": {"own": {"kinds": {"click": 1}, "position_bias": 4}}},
            "position_bias is 4; it must be estimated, or 0 to 3",
        ),
        (
            {"data": {"own": {"kinds": {"click": 1}}}, "markets": ["de"]},
            "data.own needs market_attribute where the pipeline has markets, and only",
        ),
        ({"data": {"interactions": "{market}.csv"}}, "name the markets"),
        (
            {"data": {"complete_journey": True, "catalogue": "c.csv"}},
            "has one of its own",
        ),
        (
            {"data": {"interactions": "p.csv", "until": "soon"}},
            "data.until is 'soon'; it must be a day or an ISO 8601 instant",
        ),
        ({"recommender": "svd"}, "recommender is 'svd'; it must be one of popularity"),
        ({"parameters": {"factors": 3}}, "parameters: .* has no parameter 'factors'"),
        ({"parameters": {"neighbours": 0}}, "parameters: .* neighbours is 0"),
        ({"search": {"trials": 0}}, r"search.trials is 0; it must be greater than"),
        ({"search": {"measure": "auc"}}, "measure is 'auc'; it must be one of ndcg"),
        ({"search": {"space": {"factors": [1]}}}, "search.space has 'factors'"),
        ({"search": {"space": {"neighbours": 3}}}, "space of neighbours is 3"),
        ({"reranking": [{"step": "shuffle"}]}, r"reranking\.0\.step is 'shuffle'"),
        ({"depth": 0}, "depth is 0; it must be greater than or equal to 1"),
        ({"test_days": -1}, "test_days is -1; it must be greater than 0"),
        (
            {"recommender": "own_frequent", "exclude_seen": True},
            "exclude_seen is true, and own_frequent recommends only what",
        ),
        ({"checks": {"max_drift": 1}}, r"checks\.max_drift is not known here"),
        ({"checks": {"max_psi": -1}}, "checks: max_psi is -1.0; it must be finite"),
        ({"checks": {"max_unlisted": 2}}, "max_unlisted is 2.0; it must be in 0 to 1"),
        ({"gates": [{}]}, r"gates\.0: a gate needs one of at_least, worse_than_live"),
        ({"gates": [{"measure": "auc", "at_least": 0}]}, "measure is 'auc'; it must"),
        (
            {"gates": [{"measure": "coverage", "worse_than_live_by_at_most": 0}]},
            "measure is 'coverage'; it must be one of ndcg",
        ),
        ({"gates": [{"at_least": float("nan")}]}, "at_least is nan; it must be finite"),
        ({"gates": [{"repeats": "no", "at_least": 1}]}, r"gates\.0\.repeats is 'no'"),
        ({"schedule": "61 * * * *"}, "schedule is '61 .*; it must be five fields of"),
        ({"schedule": "* * * * * *"}, "it must be five fields of cron"),
    ],
)
def test_what_is_wrong_is_said_with_place_value_and_rule(write, changes, message):
    path = write(**changes)
    with pytest.raises(InvalidRequest, match=message) as refusal:
        read_pipeline(path)
    assert str(path) in refusal.value.message


def test_every_problem_is_told_at_once(write):
    with pytest.raises(InvalidRequest) as refusal:
        read_pipeline(write(depth=0, seed=-1, colour="red"))
    for place in ("depth is 0", "seed is -1", "colour is not known"):
        assert place in refusal.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "can't be read"),
        ("- a", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("\xff", "can't be read"),
    ],
)
def test_what_is_no_pipeline_is_refused(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InvalidRequest, match=message):
        read_pipeline(path)
    with pytest.raises(InvalidRequest, match=r"none\.yaml can't be read"):
        read_pipeline(tmp_path / "none.yaml")


def test_pipelines_of_a_folder_release_distinct_models(write, tmp_path):
    one = write()
    two = write("b.yml", name="other", markets=["de"])
    (tmp_path / "purchases.csv").write_text("")
    assert list(find_pipelines(tmp_path)) == [one, two]
    write("c.yaml", name="other-de")
    with pytest.raises(InvalidRequest, match=r"c\.yaml and .*b\.yml both release"):
        find_pipelines(tmp_path)
    with pytest.raises(InvalidRequest, match="is no folder"):
        find_pipelines(tmp_path / "none")


def test_editors_are_told_what_is_read():
    schema = json.loads((DOCS / "schema.json").read_text())
    assert schema == pipeline_schema(), (
        "run `experiment-service pipeline-schema > docs/pipelines/schema.json`"
    )
    check = jsonschema.Draft202012Validator(schema)
    for path in DOCS.glob("*.yaml"):
        document = yaml.safe_load(path.read_text())
        if "until" in document["data"]:
            document["data"]["until"] = str(document["data"]["until"])
        assert not list(check.iter_errors(document))
        read_pipeline(path)
    for changes in (
        {"colour": 1},
        {"recommender": "svd"},
        {"parameters": {"factors": 3}},
        {"search": {"measure": "auc"}},
        {"reranking": [{"step": "shuffle"}]},
    ):
        assert list(check.iter_errors({**GOOD, **changes})), changes
