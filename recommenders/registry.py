"""Recommenders by name: the registry and the one way to build an entry of it."""

from collections.abc import Mapping
from inspect import signature

from recommenders.base import Recommender
from recommenders.item_knn import ItemKNN
from recommenders.matrix_factorization import AlternatingLeastSquares
from recommenders.popularity import Popularity

RECOMMENDERS: dict[str, type[Recommender]] = {
    "popularity": Popularity,
    "item_knn": ItemKNN,
    "als": AlternatingLeastSquares,
}


def build_recommender(name: str, parameters: Mapping[str, object]) -> Recommender:
    """Build a recommender from its name and parameters; those left out have defaults.

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
        return kind(**parameters)
    except ValueError as error:
        raise ValueError(f"recommender {name!r}: {error}") from error
