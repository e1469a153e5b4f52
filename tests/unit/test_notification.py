"""Notifications reach a real webhook and a real mail server, and tell no secret."""

import logging
from email import message_from_bytes, policy

import pytest
from aiosmtpd.controller import Controller

from experiment_service.errors import InvalidRequest
from experiment_service.notification import check_urls, notify, split_urls
from tests.conftest import free_port
from tests.webhook import receiving


@pytest.fixture
def webhook():
    with receiving() as server:
        yield server


@pytest.fixture
def mailbox():
    """A mail server; `received` fills up."""

    class Receiver:
        async def handle_DATA(self, _server, _session, envelope):  # noqa: N802
            server.received.append(envelope)
            return "250 OK"

    server = Controller(Receiver(), hostname="127.0.0.1", port=free_port())
    server.received = []
    server.start()
    yield server
    server.stop()


def test_a_message_reaches_webhook_and_mail(webhook, mailbox):
    mail = (
        f"mailto://127.0.0.1:{mailbox.port}?from=service@shop.example"
        "&to=ana@shop.example,bo@shop.example"
    )
    urls = split_urls(f" {webhook.url},{mail}\n")
    check_urls(urls)
    body = "more than 10 % <b>\nthan yesterday: größer"
    assert notify("Fallback share of home", body, urls=urls)
    ((path, document),) = webhook.received
    assert path == "/hook/s3cret"
    assert document["title"] == "Fallback share of home"
    assert document["message"] == body
    envelopes = mailbox.received
    assert {each for found in envelopes for each in found.rcpt_tos} == {
        "ana@shop.example",
        "bo@shop.example",
    }
    message = message_from_bytes(envelopes[0].content, policy=policy.default)
    assert message["subject"] == "Fallback share of home"
    assert "größer" in message.get_body().get_content()


def test_what_nobody_takes_is_logged_without_its_secret(webhook, capfd, request):
    # Not caplog, which also listens where our log lines don't come from.
    root, handler = logging.getLogger(), logging.StreamHandler()
    request.addfinalizer(lambda: root.removeHandler(handler))
    request.addfinalizer(lambda: root.setLevel(logging.WARNING))
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    webhook.status = 500
    assert notify("Drift", "body", urls=[webhook.url]) is False
    assert len(webhook.received) == 2
    logged = "".join(capfd.readouterr())
    (line,) = [each for each in logged.splitlines() if "not delivered" in each]
    assert "service=JSON subject=Drift reason=" in line
    assert "error=500" in line
    assert "s3cret" not in logged


def test_one_that_reaches_somebody_is_not_sent_again(webhook, caplog):
    closed = f"json://127.0.0.1:{free_port()}/"
    assert notify("Drift", "body", urls=[closed, webhook.url])
    assert len(webhook.received) == 1
    assert "notification not delivered service=JSON" in caplog.text


def test_without_an_address_nobody_waits():
    assert notify("Drift", "body", urls=[])


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nonsense://s3cret", "number 2 (nonsense://)"),
        ("slack://s3cret", "number 2 (slack://)"),
        ("json://", "number 2 (json://)"),
    ],
)
def test_an_address_that_no_service_takes_is_named_by_its_scheme(url, shown, capfd):
    with pytest.raises(InvalidRequest) as refusal:
        check_urls(["json://127.0.0.1/", url])
    assert shown in refusal.value.message
    assert "s3cret" not in refusal.value.message + "".join(capfd.readouterr())


def test_addresses_are_split_where_the_next_begins():
    assert split_urls("json://a/b, mailto://c?to=d@e,f@g\nntfy://h") == (
        "json://a/b",
        "mailto://c?to=d@e,f@g",
        "ntfy://h",
    )
    for wrong in ("s3cret", "json://a b", "json://a s3cret, ntfy://b", ","):
        with pytest.raises(ValueError, match=r"is none$") as refusal:
            split_urls(wrong)
        assert "s3cret" not in str(refusal.value)
