"""Recommenders by name; the registry is in `registry` and loaded when it is asked for.

Serving needs `lists` alone, and would otherwise load what training is made of.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recommenders.registry import RECOMMENDERS, build_recommender, describe

__all__ = ["RECOMMENDERS", "build_recommender", "describe"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a name of the registry
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("recommenders.registry"), name)
