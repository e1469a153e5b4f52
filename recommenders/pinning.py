"""Items that somebody wants at a certain place of every list."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recommenders.base import Lists
from recommenders.diversity import taken
from recommenders.interactions import IntArray

LABEL = "pinned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """Put items at positions; the others keep their order around them.

    Attributes
    ----------
    items : tuple of int
        Rows.
    positions : tuple of int
        From 1 on, one for each, rising. An item is not shown where its position lies
        beyond the end of a list, or where it is excluded as seen.
    """

    items: tuple[int, ...]
    positions: tuple[int, ...]
    candidates: int = 1

    def __post_init__(self) -> None:
        if (
            len(set(self.items)) < len(self.items)
            or list(self.positions) != sorted(set(self.positions))
            or len(self.positions) != len(self.items)
        ):
            raise ValueError(
                f"pins are of items {self.items} at {self.positions}; each item and "
                "each position must come once, positions rising"
            )

    def rerank(
        self,
        lists: Lists,
        k: int,
        units: IntArray,  # noqa: ARG002 - of the protocol
        seen: csr_matrix | None,
    ) -> Lists:
        """Take them away from where they were, and insert them."""
        if LABEL not in lists.labels:
            lists = replace(lists, labels=(*lists.labels, LABEL))
        width = min(k, lists.items.shape[1])
        pins = [
            (item, position - 1)
            for item, position in zip(self.items, self.positions, strict=True)
            if position <= width
        ]
        allowed = [_allowed(lists, item, place, seen) for item, place in pins]
        for (item, _), wanted in zip(pins, allowed, strict=True):
            lists = _removed(lists, item, wanted)
        for (item, place), wanted in zip(pins, allowed, strict=True):
            lists = _inserted(lists, item, place, wanted)
        return lists


def _allowed(
    lists: Lists, item: int, place: int, seen: csr_matrix | None
) -> NDArray[np.bool_]:
    # A list too short to reach the place would get a gap.
    others = ((lists.items >= 0) & (lists.items != item)).sum(axis=1)
    allowed: NDArray[np.bool_] = others >= place
    if seen is not None:
        allowed &= seen[:, [item]].toarray().ravel() == 0
    return allowed


def _removed(lists: Lists, item: int, wanted: NDArray[np.bool_]) -> Lists:
    there = (lists.items == item) & wanted[:, np.newaxis]
    moved = taken(lists, np.argsort(there, axis=1, kind="stable"))
    gone = moved.items == item
    gone &= wanted[:, np.newaxis]
    return replace(
        moved,
        items=np.where(gone, np.int32(-1), moved.items),
        scores=np.where(gone, np.float32(-np.inf), moved.scores),
        sources=np.where(gone, np.int8(0), moved.sources),
        propensities=np.where(gone, np.float32(1), moved.propensities),
    )


def _inserted(lists: Lists, item: int, place: int, wanted: NDArray[np.bool_]) -> Lists:
    columns = np.arange(lists.items.shape[1])
    order = np.where(wanted[:, np.newaxis], columns - (columns > place), columns)
    moved = taken(lists, order)
    there = wanted[:, np.newaxis] & (columns == place)
    # It takes the score of the item below, so that scores go on to fall.
    return replace(
        moved,
        items=np.where(there, np.int32(item), moved.items),
        scores=np.where(there & ~np.isfinite(moved.scores), 0, moved.scores).astype(
            np.float32
        ),
        sources=np.where(there, np.int8(lists.labels.index(LABEL)), moved.sources),
        propensities=np.where(there, np.float32(1), moved.propensities),
    )
