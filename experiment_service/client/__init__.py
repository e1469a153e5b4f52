"""Client for shops written in Python: carousels with a fallback, events that arrive once.

`ExperimentClient` is for threads, `AsyncExperimentClient` for asyncio. It knows the
service by its address and needs httpx alone.
"""

from experiment_service.client.asynchronous import AsyncExperimentClient
from experiment_service.client.common import Options
from experiment_service.client.synchronous import ExperimentClient
from experiment_service.client.values import (
    Assignment,
    Item,
    Recommendation,
    RequestRefused,
)

__all__ = [
    "Assignment",
    "AsyncExperimentClient",
    "ExperimentClient",
    "Item",
    "Options",
    "Recommendation",
    "RequestRefused",
]
