"""Requests as the service wants them, and its answers as values; no I/O."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import httpx

from experiment_service.client.values import (
    Assignment,
    AttributeValue,
    Item,
    Recommendation,
    RequestRefused,
)

RECOMMENDATIONS = "/v1/recommendations"
ASSIGNMENTS = "/v1/assignments"

_SHARED = (
    "experiment",
    "variant",
    "epoch",
    "propensity",
    "settings",
    "exposure_id",
    "exposure",
)


def recommendation_request(
    unit_id: str,
    placement: str,
    *,
    k: int,
    item_id: str | None,
    recent_item_ids: Sequence[str],
    exclude: Sequence[str],
    attributes: Mapping[str, AttributeValue] | None,
    log_exposure: bool,
) -> dict[str, Any]:
    """Write a request for a carousel."""
    return {
        "unit_id": unit_id,
        "placement": placement,
        "k": k,
        "item_id": item_id,
        "recent_item_ids": list(recent_item_ids),
        "exclude_item_ids": list(exclude),
        "attributes": dict(attributes or {}),
        "log_exposure": log_exposure,
    }


def assignment_request(
    unit_id: str,
    *,
    experiment: str | None,
    placement: str | None,
    attributes: Mapping[str, AttributeValue] | None,
    log_exposure: bool,
) -> dict[str, Any]:
    """Write a request for a variant."""
    return {
        "unit_id": unit_id,
        "experiment": experiment,
        "placement": placement,
        "attributes": dict(attributes or {}),
        "log_exposure": log_exposure,
    }


def answer_of(response: httpx.Response) -> dict[str, Any] | None:
    """Return the document of an answer; None when the service could not answer.

    Raises
    ------
    RequestRefused
        When the request itself was wrong.
    """
    if response.is_success:
        try:
            document: dict[str, Any] = response.json()
        except ValueError:
            return None  # something else listens at that address
        return document
    if response.is_client_error and response.status_code not in _PASSING:
        raise refusal_of(response)
    return None


_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}


def refusal_of(response: httpx.Response) -> RequestRefused:
    """Read why a request was refused."""
    try:
        error = response.json()["error"]
        return RequestRefused(
            response.status_code, str(error["message"]), error.get("field")
        )
    except (ValueError, KeyError, TypeError):
        return RequestRefused(
            response.status_code, f"the service answered {response.status_code}"
        )


def read_recommendation(document: Mapping[str, Any]) -> Recommendation:
    """Read a carousel."""
    return Recommendation(
        served=True,
        unit_id=document["unit_id"],
        placement=document["placement"],
        items=tuple(
            Item(item_id=each["item_id"], source=each["source"])
            for each in document["items"]
        ),
        model=document["model"],
        **{name: document[name] for name in _SHARED},
    )


def fallback_recommendation(
    unit_id: str, placement: str, items: Sequence[str], k: int
) -> Recommendation:
    """Return what is shown while the service does not answer."""
    return Recommendation(
        served=False,
        unit_id=unit_id,
        placement=placement,
        items=tuple(Item(item_id=item, source="fallback") for item in items[:k]),
    )


def read_assignment(document: Mapping[str, Any]) -> Assignment:
    """Read a variant."""
    return Assignment(
        served=True,
        unit_id=document["unit_id"],
        recommender=document["recommender"],
        **{name: document[name] for name in _SHARED},
    )
