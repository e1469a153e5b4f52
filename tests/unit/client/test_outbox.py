"""The client's outbox: order, bounds, retries; and what its options allow."""

import logging

import httpx
import pytest

from experiment_service.client.common import Options
from experiment_service.client.outbox import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    Outbox,
)

STORED = httpx.Response(200, json={"accepted": 1, "refused": []})


def outbox(count=0, *, batch_size=3, limit=10):
    made = Outbox(batch_size=batch_size, limit=limit)
    for number in range(count):
        made.put("interaction", {"id": number})
    return made


def ids(batch):
    return [event["id"] for event in batch.events]


def test_batches_are_the_oldest_of_one_sort_and_leave_once_stored():
    box = outbox(4)
    box.put("exposure", {"id": "x"})
    box.put("interaction", {"id": 4})
    seen = []
    while batch := box.next_batch():
        assert batch == box.next_batch()
        seen.append((batch.path, ids(batch)))
        assert box.settle(batch, STORED)
    assert seen == [
        ("/v1/interactions", [0, 1, 2]),
        ("/v1/interactions", [3]),
        ("/v1/exposures", ["x"]),
        ("/v1/interactions", [4]),
    ]
    assert len(box) == box.dropped == box.refused == 0


@pytest.mark.parametrize("status", [None, 401, 403, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again_with_growing_pauses(status):
    box = outbox(2)
    response = None if status is None else httpx.Response(status)
    for failure in range(12):
        batch = box.next_batch()
        assert ids(batch) == [0, 1]
        assert not box.settle(batch, response)
        due = min(FIRST_PAUSE_SECONDS * 2**failure, LONGEST_PAUSE_SECONDS)
        assert 0.5 * due <= box.pause <= 1.5 * due
    assert box.settle(box.next_batch(), STORED)
    assert box.pause == 0


def test_retry_after_is_heeded_within_reason():
    for asked, least in (("20", 20), ("99999", LONGEST_PAUSE_SECONDS), ("soon", 0)):
        box = outbox(1)
        refused = httpx.Response(503, headers={"retry-after": asked})
        assert not box.settle(box.next_batch(), refused)
        assert least <= box.pause <= 1.5 * LONGEST_PAUSE_SECONDS


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_what_never_will_be_taken_is_let_go_and_told(status, caplog):
    box = outbox(2)
    details = {"accepted": 0, "refused": [{"reason": "kind"}, {"reason": "id"}]}
    response = httpx.Response(status, json={"error": {"details": details}})
    with caplog.at_level(logging.WARNING):
        assert box.settle(box.next_batch(), response)
    assert (len(box), box.refused) == (0, 2)
    assert "event refused reason=kind" in caplog.text


def test_the_oldest_go_when_there_is_no_room_also_while_they_are_sent():
    box = outbox(10)
    batch = box.next_batch()
    box.put("interaction", {"id": 10})
    box.put("interaction", {"id": 11})
    assert (len(box), box.dropped) == (10, 2)
    assert box.settle(batch, STORED)  # 0 and 1 are gone already
    assert ids(box.next_batch()) == [3, 4, 5]
    assert len(box) == 9


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"timeout": 0}, "timeout is 0"),
        ({"flush_seconds": float("nan")}, "flush_seconds is nan"),
        ({"batch_size": 1001}, "batch_size is 1001"),
        ({"batch_size": 50, "limit": 49}, "limit is 49"),
    ],
)
def test_options_are_checked(options, named):
    with pytest.raises(ValueError, match=named):
        Options(**options)
