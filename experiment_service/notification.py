"""Notifications to people: webhook, mail, Slack and all else that apprise knows.

Blocking for seconds, so only for the worker and for commands. What can't be delivered is
logged and told by the return value; no job fails because of it.
"""

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiment_service.errors import InvalidRequest
from experiment_service.lazy import LazyModule

if TYPE_CHECKING:
    import apprise
else:
    apprise = LazyModule("apprise")

log = logging.getLogger(__name__)

#: Seconds that one service may take, with its second attempt.
_TIMEOUT_SECONDS = 30.0

# At level debug both write whole addresses, which hold secrets.
logging.getLogger("apprise").propagate = False
logging.getLogger("urllib3").setLevel(logging.INFO)


def split_urls(text: str) -> tuple[str, ...]:
    """Split addresses with commas or spaces between; one may itself hold commas.

    Raises
    ------
    ValueError
        With the rule, when there is something that is no address.
    """
    urls = tuple(re.split(r"[,\s]+(?=[a-zA-Z0-9]+://)", text.strip(" ,\n\t")))
    for place, url in enumerate(urls, start=1):
        if not re.fullmatch(r"[a-zA-Z0-9]+://\S+", url):
            raise ValueError(
                "it must be addresses like json://host/path, with commas or spaces "
                f"between; {_name(place, url)} is none"
            )
    return urls


def check_urls(urls: Sequence[str]) -> None:
    """Check that a service takes each address; nothing is sent.

    Raises
    ------
    InvalidRequest
        Names the first that can't be used by its place and scheme alone.
    """
    for place, url in enumerate(urls, start=1):
        if apprise.Apprise.instantiate(url) is None:
            raise InvalidRequest(
                f"notifications can't be sent: {_name(place, url)} of their addresses "
                "is none that apprise takes; it knows json://, mailto://, slack:// and "
                "many more, each with its own form"
            )


def notify(subject: str, body: str, *, urls: Sequence[str]) -> bool:
    """Send one message to every address, trying each twice.

    Parameters
    ----------
    subject, body : str
        Plain text.
    urls : sequence of str
        Addresses of apprise, checked by `check_urls`.

    Returns
    -------
    bool
        Whether it reached somebody: False when no service took it, so that it can be
        sent again later. True without any address, as nobody is waiting.
    """
    if not urls:
        return True
    asset = apprise.AppriseAsset(
        app_id="Experiment Service",
        default_service_retry=1,
        service_timeout=_TIMEOUT_SECONDS,
    )
    messenger = apprise.Apprise(asset=asset)
    for url in urls:
        messenger.add(url)
    with messenger.notify(body=body, title=subject, body_format="text") as outcome:
        for service in outcome:
            if not service:
                log.warning(
                    "notification not delivered service=%s subject=%s reason=%s",
                    service.name,
                    subject,
                    _reason(service),
                )
        return outcome.success_count > 0


def _reason(service: "apprise.NotifyResult") -> str:
    """Join what the attempts said, each sentence once."""
    said = [entry.message for attempt in service for entry in attempt]
    return " ".join(dict.fromkeys(said)) or service.status.name.lower()


def _name(place: int, url: str) -> str:
    """Name an address without its secrets."""
    scheme = re.match(r"[a-zA-Z0-9]+://", url)
    return f"number {place} ({scheme[0] if scheme else 'without a scheme'})"
