"""Lists of two versions side by side, for a unit or beside a product."""

import dataclasses
from pathlib import Path

from sqlalchemy import Connection

from experiment_service.storage import models
from recommenders.lists import PublishedLists


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExampleItem:
    """An item of a list.

    Attributes
    ----------
    name : str
        What people call it; empty when the catalogue of the training did not say.
    """

    item_id: str
    name: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExampleList:
    """What a version has for a unit or beside a product.

    Attributes
    ----------
    kind : str
        ``own`` list of the unit, ``default`` list, items ``beside`` the product, or
        ``none`` when it has nothing to say.
    problem : str or None
        Why the lists can't be read.
    """

    version: int
    kind: str
    items: tuple[ExampleItem, ...]
    problem: str | None = None


def build_examples(
    connection: Connection,
    data_dir: Path,
    name: str,
    versions: tuple[int, ...],
    *,
    unit_id: str | None,
    item_id: str | None,
    k: int,
) -> tuple[ExampleList, ...]:
    """Read the first `k` items of each version, before filters and fallback.

    Parameters
    ----------
    unit_id, item_id : str or None
        Whose list; items that go with `item_id` when it is given, and the default list
        when neither is.

    Raises
    ------
    NotFound
        When there is no such model or version.
    """
    found = []
    for number in versions:
        version = models.get_version(connection, name, number)
        found.append(_example(data_dir, version, unit_id, item_id, k))
    return tuple(found)


def _example(
    data_dir: Path,
    version: models.ModelVersion,
    unit_id: str | None,
    item_id: str | None,
    k: int,
) -> ExampleList:
    number = version.version
    if not version.artifact:
        return _unreadable(number, "it was rejected before it was published")
    try:
        lists = PublishedLists.open(data_dir / version.artifact)
    except ValueError as error:
        return _unreadable(number, str(error))
    if item_id is not None:
        kind, items = "beside", lists.related(item_id, k)
    else:
        own = None if unit_id is None else lists.for_unit(unit_id, k)
        kind = "default" if own is None else "own"
        items = lists.default[:k] if own is None else own
    return ExampleList(
        version=number,
        kind=kind if items else "none",
        items=tuple(
            ExampleItem(item_id=item, name=lists.name_of(item)) for item in items or ()
        ),
    )


def _unreadable(number: int, problem: str) -> ExampleList:
    return ExampleList(version=number, kind="none", items=(), problem=problem)
