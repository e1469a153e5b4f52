"""Recommenders by name: the registry and the one way to build an entry of it."""

from collections.abc import Mapping
from dataclasses import fields
from inspect import signature
from typing import Any

from recommenders.age_routed import AgeRouted
from recommenders.base import Recommender
from recommenders.co_purchase import CoPurchase
from recommenders.content import Content
from recommenders.item_knn import ItemKNN
from recommenders.matrix_factorization import (
    AlternatingLeastSquares,
    BayesianPersonalizedRanking,
)
from recommenders.own_frequent import OwnFrequent
from recommenders.popularity import CategoryPopularity, Popularity
from recommenders.session import SessionRules

RECOMMENDERS: dict[str, type[Recommender]] = {
    "popularity": Popularity,
    "category_popularity": CategoryPopularity,
    "own_frequent": OwnFrequent,
    "item_knn": ItemKNN,
    "als": AlternatingLeastSquares,
    "bpr": BayesianPersonalizedRanking,
    "content": Content,
    "session": SessionRules,
    "co_purchase": CoPurchase,
    "age_routed": AgeRouted,
}


def build_recommender(name: str, parameters: Mapping[str, object]) -> Recommender:
    """Build a recommender from its name and parameters; those left out have defaults.

    A parameter that is a recommender is written as it is described: a mapping with
    ``recommender``, its name, and optionally ``parameters``.

    Raises
    ------
    ValueError
        When the name or a parameter is unknown, or a value breaks its rule.
    """
    if name not in RECOMMENDERS:
        raise ValueError(
            f"recommender is {name!r}; known recommenders: {', '.join(RECOMMENDERS)}"
        )
    kind = RECOMMENDERS[name]
    known = signature(kind).parameters
    for parameter in parameters:
        if parameter not in known:
            raise ValueError(
                f"recommender {name!r} has no parameter {parameter!r}; it has: "
                f"{', '.join(known) or 'none'}"
            )
    try:
        return kind(**{key: _built(key, value) for key, value in parameters.items()})
    except ValueError as error:
        raise ValueError(f"recommender {name!r}: {error}") from error


def describe(recommender: Recommender) -> dict[str, Any]:
    """Return the parameters of a recommender as `build_recommender` takes them."""
    return {
        field.name: _described(getattr(recommender, field.name))
        for field in fields(recommender)  # type: ignore[arg-type]  # a dataclass
    }


def _built(name: str, value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    part, parameters = value.get("recommender"), value.get("parameters", {})
    if (
        not isinstance(part, str)
        or not isinstance(parameters, Mapping)
        or not set(value) <= {"recommender", "parameters"}
    ):
        raise ValueError(
            f"{name} is {dict(value)!r}; it must be a mapping with recommender, a name, "
            "and optionally parameters, a mapping"
        )
    return build_recommender(part, parameters)


def _described(value: object) -> object:
    for name, kind in RECOMMENDERS.items():
        if type(value) is kind:
            return {"recommender": name, "parameters": describe(value)}
    return value
