"""Log lines: one per event whatever a value holds, with fields and the request's id."""

import json
import logging

import pytest

from experiment_service.logs import REQUEST_ID, JsonFormatter, TextFormatter

HOSTILE = "a\nINFO forged\r\x1b[31m\x00\x85\u2028\ud800é"


def record(message, *arguments, error=None):
    return logging.LogRecord(
        "shop", logging.INFO, __file__, 1, message, arguments, error and error_of(error)
    )


def error_of(error):
    try:
        raise error
    except type(error) as raised:
        return (type(raised), raised, raised.__traceback__)


def as_json(entry):
    line = JsonFormatter().format(entry)
    assert line.isascii()
    assert "\n" not in line
    return json.loads(line)


def test_json_has_the_named_values_as_fields():
    found = as_json(
        record(
            "moved experiment=%s epoch=%d share=%.2f weights=%s seen=%r 100%% sure",
            "x",
            3,
            0.25,
            {"a": 1.0},
            None,
        )
    )
    assert found["event"] == "moved"
    assert found["experiment"] == "x"
    assert found["epoch"] == 3
    assert found["share"] == 0.25
    assert found["weights"] == {"a": 1.0}
    assert found["seen"] is None
    assert (found["level"], found["logger"]) == ("INFO", "shop")
    assert found["time"].endswith("+00:00")
    assert "request_id" not in found


def test_json_of_other_messages_is_the_message():
    assert as_json(record("%s ended; see %s", "worker", "log"))["event"] == (
        "worker ended; see log"
    )
    assert as_json(record("100% sure"))["event"] == "100% sure"
    assert as_json(record("stopped"))["event"] == "stopped"


def test_json_fields_cannot_pretend_to_be_ours_and_are_json():
    found = as_json(
        record("x level=%s time=%s bad=%s", "FORGED", "never", float("nan"))
    )
    assert found["level"] == "INFO"
    assert found["time"] != "never"
    assert found["bad"] == "nan"


def test_the_id_of_the_request_is_in_both():
    token = REQUEST_ID.set("trace-1")
    try:
        assert as_json(record("x"))["request_id"] == "trace-1"
        assert TextFormatter().format(record("x")).endswith("shop x request_id=trace-1")
    finally:
        REQUEST_ID.reset(token)


@pytest.mark.parametrize("error", [None, ValueError(HOSTILE)], ids=["plain", "error"])
def test_no_value_makes_a_line_or_a_control_character(error):
    entry = record("seen unit=%s", HOSTILE, error=error)
    first, *rest = TextFormatter().format(entry).split("\n")
    assert r"unit=a\nINFO forged\r\x1b[31m\x00\x85\u2028\ud800é" in first
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    assert bool(rest) == (error is not None)
    found = as_json(entry)
    assert found["unit"] == HOSTILE
    assert ("exception" in found) == (error is not None)
