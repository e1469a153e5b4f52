"""The outbox: one append per turn of the loop, and each request hears of its own."""

import asyncio
import threading
import time
from concurrent.futures import Future

import pytest

from experiment_service.api.desk import Outbox
from experiment_service.errors import Unavailable


class HeldJournal:
    """Holds appends until the test settles them."""

    def __init__(self, refusal=None):
        self.appended = []
        self.refusal = refusal

    def append(self, payloads):
        if self.refusal:
            raise self.refusal
        future = Future()
        self.appended.append((list(payloads), future))
        return future


def test_requests_of_one_turn_share_an_append():
    async def scenario():
        journal = HeldJournal()
        outbox = Outbox(journal, asyncio.get_running_loop())
        waiters = [outbox.put([b"a", b"b"]), outbox.put([b"c"])]
        await asyncio.sleep(0)
        later = outbox.put([b"d"])
        await asyncio.sleep(0)
        assert [payloads for payloads, _ in journal.appended] == [
            [b"a", b"b", b"c"],
            [b"d"],
        ]
        assert not any(waiter.done() for waiter in waiters)
        journal.appended[0][1].set_result(None)
        await asyncio.gather(*waiters)
        assert not later.done()
        journal.appended[1][1].set_exception(OSError("disk"))
        with pytest.raises(OSError, match="disk"):
            await later

    asyncio.run(scenario())


def test_full_journal_is_told_to_every_request():
    async def scenario():
        journal = HeldJournal(Unavailable("full", retry_after=7))
        outbox = Outbox(journal, asyncio.get_running_loop())
        waiters = [outbox.put([b"a"]), outbox.put([b"b"])]
        for waiter in waiters:
            with pytest.raises(Unavailable, match="full"):
                await waiter
        assert outbox.problem == "full"

    asyncio.run(scenario())


def test_cancelled_request_leaves_the_others_alone():
    async def scenario():
        journal = HeldJournal()
        outbox = Outbox(journal, asyncio.get_running_loop())
        gone, stays = outbox.put([b"a"]), outbox.put([b"b"])
        await asyncio.sleep(0)
        gone.cancel()
        journal.appended[0][1].set_result(None)
        await stays

    asyncio.run(scenario())


def test_request_hears_of_its_events_from_another_thread():
    async def scenario():
        journal = HeldJournal()
        outbox = Outbox(journal, asyncio.get_running_loop())
        waiter = outbox.put([b"a"])
        await asyncio.sleep(0)
        future = journal.appended[0][1]
        threading.Timer(0.05, future.set_result, [None]).start()
        # Nothing else wakes the loop.
        await asyncio.wait_for(waiter, 10)

    started = time.monotonic()
    asyncio.run(scenario())
    assert time.monotonic() - started < 5
