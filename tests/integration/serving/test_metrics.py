"""Metrics of several processes together, request ids, and what operators load."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.serving.conftest import (
    UNITS,
    bandit,
    declaration,
    run_experiment,
)

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations"
HERE = Path(__file__).parent


def scrape(server):
    """Return samples by name and labels, from whichever process answers."""
    answer = server.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (
            sample.name.removeprefix("experiment_service_"),
            *sorted(sample.labels.items()),
        ): (sample.value)
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples, name, **labels):
    return samples.get((name, *sorted(labels.items())), 0)


def promtool(*arguments, **options):
    program = shutil.which("promtool")
    assert program, "promtool is missing; `make promtool` installs it"
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, **options
    )


def check_counts(samples, sent, served):
    route = {"method": "POST", "route": "/v1/recommendations"}
    for status in ("200", "415"):
        assert value(samples, "responses_total", **route, status=status) == sent
    assert value(samples, "response_seconds_count", **route) == 2 * sent
    for variant, model in (("old", "popularity"), ("new", "als")):
        labels = {"experiment": "b", "variant": variant, "logged": "true"}
        assert value(samples, "assignments_total", **labels) == served[model]
    accepted = {"exposure": 1, "click": 1, "viewed": 1, "purchase": 0}
    for kind, times in accepted.items():
        assert value(samples, "events_accepted_total", kind=kind) == times * sent
    for field in ("kind", "position", "other"):
        labels = {"event": "interaction", "field": field}
        assert value(samples, "events_refused_total", **labels) == sent, field
    assert value(samples, "request_events_count") == sent
    assert value(samples, "request_events_sum") == 5 * sent
    assert value(samples, "request_events_bucket", le="2.0") == 0
    assert value(samples, "request_events_bucket", le="5.0") == sent


def test_counts_of_all_processes_add_up_and_outlive_them(
    shop, start_server, database_url
):
    run_experiment(shop, bandit("b"))
    server = start_server(database_url, workers=2)
    server.client.close()
    # Each request comes on a connection of its own, to any of the processes.
    server.client = httpx.Client(
        base_url=server.address,
        limits=httpx.Limits(max_keepalive_connections=0),
        timeout=20,
    )
    served = {"popularity": 0, "als": 0}
    sent = 0

    def shop_for(units):
        nonlocal sent
        for unit in units:
            answer = server.post(
                "/v1/recommendations", {"unit_id": unit, "placement": "home"}
            ).json()
            served[answer["model"].split("/")[0]] += 1
            interactions = [
                {"id": f"{unit}-1", "kind": "click", "unit_id": unit},
                {"id": f"{unit}-2", "kind": "viewed", "unit_id": unit},
                {"id": f"{unit}-3", "kind": "nod", "unit_id": unit},
                {"id": f"{unit}-4", "kind": "click", "unit_id": unit, "position": 0},
                {"id": f"{unit}-5", "kind": "click", "unit_id": unit, unit: 1},
            ]
            server.post("/v1/interactions", {"interactions": interactions})
            server.client.post("/v1/recommendations", content=b"{")
            sent += 1

    def complete():
        return value(scrape(server), "events_accepted_total", kind="viewed") == sent

    server.wait_for(lambda: value(scrape(server), "processes") == 2)
    shop_for(UNITS[:60])
    server.wait_for(complete)
    for _ in range(6):  # each process tells the same
        check_counts(scrape(server), sent, served)
    server.wait_for(lambda: value(scrape(server), "journal_events") == 0)
    server.wait_for(lambda: value(scrape(server), "stored_events_sum") == 3 * sent)
    samples = scrape(server)
    assert value(samples, "journal_oldest_seconds") == 0
    assert value(samples, "journal_set_aside_events") == 0
    assert 0 <= value(samples, "snapshot_age_seconds") < 60
    b = {"experiment": "b", "kind": "bandit"}
    assert value(samples, "epoch_number", **b) == 0
    assert 0 < value(samples, "epoch_age_seconds", **b) < 120
    weight = {"experiment": "b", "variant": "new"}
    assert value(samples, "variant_weight", **weight) == 0.5

    victim = server.get("/v1/status").json()["process"]
    os.kill(victim, signal.SIGKILL)
    shop_for(UNITS[60:70])
    server.wait_for(complete)
    check_counts(scrape(server), sent, served)


def test_prometheus_finds_nothing_to_complain_about(common_shop):
    common_shop.post("/v1/recommendations", {"unit_id": "u", "placement": "offers"})
    text = common_shop.get("/metrics").text
    checked = promtool("check", "metrics", input=text)
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stderr


def test_clients_that_ask_for_open_metrics_get_it(common_shop):
    accept = "application/openmetrics-text; version=1.0.0"
    answer = common_shop.get("/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_alert_rules_are_sound_and_fire_when_they_should():
    checked = promtool("check", "rules", str(OPERATIONS / "alerts.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = promtool("test", "rules", "alerts_test.yml", cwd=HERE)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    rules = yaml.safe_load((OPERATIONS / "alerts.yml").read_text())["groups"][0][
        "rules"
    ]
    cases = yaml.safe_load((HERE / "alerts_test.yml").read_text())["tests"]
    fired = {
        each["alertname"]
        for case in cases
        for each in case["alert_rule_test"]
        if each.get("exp_alerts")
    }
    assert fired == {rule["alert"] for rule in rules}


def test_grafana_draws_only_metrics_that_exist(common_shop, tmp_path):
    dashboard = json.loads((OPERATIONS / "grafana.json").read_text())
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel["targets"]
    ]
    known = {name for name, *_ in scrape(common_shop)}
    families = set(
        re.findall(r"^# TYPE (\S+)", common_shop.get("/metrics").text, re.MULTILINE)
    )
    for expression in expressions:
        for name in re.findall(r"experiment_service_\w+", expression):
            bare = re.sub(r"_(bucket|sum|count)$", "", name)
            assert {name, bare} & families or name[19:] in known, name
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$(?!__)(\w+)", " ".join(expressions)))
    assert used <= variables
    places = [
        (panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]
    ]
    assert len(set(places)) == len(places)
    rules = [
        {
            "record": f"panel:{number}",
            "expr": expression.replace("$__rate_interval", "5m"),
        }
        for number, expression in enumerate(expressions)
    ]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked = promtool("check", "rules", str(path))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", ["/v1/recommendations", "/v1/experiments/none", "/no"])
def test_a_sane_request_id_is_echoed(common_shop, path):
    document = {"unit_id": "u", "placement": "offers"}
    for sane in ("a", "Root=1-67891233-abcdef012345678912345678", "x" * 128):
        answer = common_shop.post(path, document, headers={"X-Request-ID": sane})
        assert answer.headers["x-request-id"] == sane
    for bad in ("a b", "x" * 129, "", '"', "é".encode("latin-1"), "<script>"):
        answer = common_shop.post(path, document, headers={"X-Request-ID": bad})
        told = answer.headers.get("x-request-id")
        assert told is None or re.fullmatch("[0-9a-f]{32}", told), told


def test_json_lines_have_fields_and_the_id_of_the_request(common_shop):
    def lines(event):
        every = [json.loads(line) for line in common_shop.log.read_text().splitlines()]
        for line in every:
            assert {"time", "level", "logger", "event", "process"} <= line.keys()
        return [line for line in every if line["event"] == event]

    opened = {line["model"]: line for line in lines("model opened")}
    assert opened["als/1"]["units"] == len(UNITS)
    answer = common_shop.post(
        "/v1/experiments", declaration("x"), headers={"X-Request-ID": "trace-1"}
    )
    assert answer.status_code == 201

    def told():
        return [line for line in lines("answered") if line["request_id"] == "trace-1"]

    common_shop.wait_for(told)
    (line,) = told()
    assert (line["method"], line["route"]) == ("POST", "/v1/experiments")
    assert line["status"] == 201
    assert line["milliseconds"] > 0
