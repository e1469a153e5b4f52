"""Answers: which variant a unit gets, and which items in which order.

Functions of a snapshot and a request; the sticky store is read, never written.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from experiment_service.domain.assignment import Assignment, assign
from experiment_service.domain.event import AttributeValue
from experiment_service.serving.snapshot import ServedExperiment, Snapshot
from experiment_service.serving.sticky import StickyStore

#: The model whose default list fills up what every other source left open.
FALLBACK_MODEL = "popularity"


# Each request makes one of both below: as tuples they take half as long.
class Decision(NamedTuple):
    """What a unit gets, before any item.

    Attributes
    ----------
    served : ServedExperiment or None
        The experiment that admits the unit; None outside every experiment.
    assignment : Assignment or None
        Set when `served` is, or when one running experiment was asked for.
    recommender : str or None
        Of the variant, else of the placement; None when an experiment was asked for
        that does not run.
    settings : mapping
        Likewise.
    reason : str
        What decided, in words.
    """

    served: ServedExperiment | None
    assignment: Assignment | None
    recommender: str | None
    settings: Mapping[str, AttributeValue]
    reason: str

    @property
    def variant(self) -> str | None:
        """Key of the variant, None outside."""
        return self.assignment.variant if self.assignment else None


class Carousel(NamedTuple):
    """Items in order.

    Attributes
    ----------
    model : str
        Label of the recommender's version, such as ``als/3``; of the fallback's when
        the recommender has none that serves, and its bare name when neither has.
    sources : list of str
        Where each item came from, such as ``als``, ``als:related``, ``als:session``,
        ``als:default``, or ``als:explored`` where a part of the recommender or a step
        put it into its list.
    fallback : bool
        Whether an item came from elsewhere than the recommender's own lists for this
        unit, item or session, or none was found.
    """

    model: str
    items: Sequence[str]
    sources: Sequence[str]
    fallback: bool


def decide(
    snapshot: Snapshot,
    sticky: StickyStore,
    placement: str,
    unit_id: str,
    attributes: Mapping[str, AttributeValue],
) -> Decision:
    """Find the experiment of a placement that admits a unit, and its variant.

    At most one admits it, as running experiments of a placement share a layer and own
    different segments. An override goes before all of them.

    Raises
    ------
    NotFound
        When there is no such placement.
    """
    candidates = snapshot.by_placement.get(placement, ())
    for served in candidates:
        if unit_id in served.experiment.declaration.overrides:
            candidates = (served,)
            break
    for served in candidates:
        assignment = _assign(served, sticky, unit_id, attributes)
        if assignment.variant is not None:
            return _admitted(served, assignment, assignment.variant)
    place = snapshot.configuration.placement(placement)
    return Decision(
        served=None,
        assignment=None,
        recommender=place.recommender,
        settings=place.settings,
        reason="no running experiment of the placement admits the unit",
    )


def decide_experiment(
    snapshot: Snapshot,
    sticky: StickyStore,
    experiment: str,
    unit_id: str,
    attributes: Mapping[str, AttributeValue],
) -> Decision:
    """Find a unit's variant in one experiment, asked for by its key.

    A unit that is not in it gets its placement's recommender.

    Raises
    ------
    NotFound
        When there is no such experiment.
    """
    configuration = snapshot.configuration
    if configuration.experiment(experiment) is None:
        return Decision(
            served=None,
            assignment=None,
            recommender=None,
            settings={},
            reason=f"the experiment is {configuration.states[experiment]}",
        )
    served = snapshot.experiments[experiment]
    assignment = _assign(served, sticky, unit_id, attributes)
    if assignment.variant is None:
        place = configuration.placement(served.experiment.declaration.placement)
        return Decision(
            served=None,
            assignment=assignment,
            recommender=place.recommender,
            settings=place.settings,
            reason=assignment.reason,
        )
    return _admitted(served, assignment, assignment.variant)


def _admitted(
    served: ServedExperiment, assignment: Assignment, variant: str
) -> Decision:
    treatment = served.variants[variant]
    return Decision(
        served=served,
        assignment=assignment,
        recommender=treatment.recommender,
        settings=treatment.settings,
        reason=assignment.reason,
    )


def _assign(
    served: ServedExperiment,
    sticky: StickyStore,
    unit_id: str,
    attributes: Mapping[str, AttributeValue],
) -> Assignment:
    first_epoch = None
    if served.sticky:
        number = sticky.first_epoch(served.experiment.id, unit_id)
        if number is not None:
            first_epoch = served.epochs.get(number)
    return assign(
        served.experiment,
        served.current,
        unit_id,
        attributes,
        first_epoch=first_epoch,
    )


def fill_carousel(
    snapshot: Snapshot,
    recommender: str,
    unit_id: str,
    *,
    k: int,
    item_id: str | None = None,
    recent_item_ids: Sequence[str] = (),
    exclude: Collection[str] = (),
) -> Carousel:
    """Take items from one source after the other until there are `k`.

    The sources: the recommender's items that go with `item_id`, those that go with the
    recent items, the latest last, its list of the unit, its default list, the default
    list of `FALLBACK_MODEL`. No item comes twice, nor does `item_id`, an excluded or a
    recent one. A version that was not published for sessions knows no recent items.
    """
    taken = set(exclude)
    if item_id is not None:
        taken.add(item_id)
    if recent_item_ids:
        own = snapshot.lists.get(recommender)
        if own is None or not own.session_fade:
            recent_item_ids = ()
        taken.update(recent_item_ids)
    found: dict[str, str] = {}  # the source of each item, best item first
    for more in _sources(
        snapshot,
        recommender,
        unit_id,
        item_id,
        recent_item_ids,
        # Of so many, even if all that are taken are among them, k are new.
        limit=k + len(taken),
    ):
        for item in taken:
            more.pop(item, None)
        # What was found before keeps its place and its source.
        found = {**found, **more, **found} if found else more
        if len(found) >= k:
            break
    sources = list(found.values())[:k]
    return Carousel(
        model=model_label(snapshot, recommender),
        items=list(found)[:k],
        sources=sources,
        fallback=is_fallback(recommender, sources),
    )


def _sources(
    snapshot: Snapshot,
    recommender: str,
    unit_id: str,
    item_id: str | None,
    recent_item_ids: Sequence[str],
    *,
    limit: int,
) -> Iterator[dict[str, str]]:
    """Yield candidates, best first, each with its source."""
    own = snapshot.lists.get(recommender)
    if own is not None:
        if item_id is not None:
            related = own.related(item_id, limit) or ()
            yield dict.fromkeys(related, f"{recommender}:related")
        if recent_item_ids:
            together = own.for_session(recent_item_ids, limit)
            yield dict.fromkeys(together, f"{recommender}:session")
        if own.labels:
            items, labels = own.for_unit_labelled(unit_id, limit) or ((), ())
            sources = [f"{recommender}:{e}" if e else recommender for e in labels]
            yield dict(zip(items, sources, strict=True))
        else:
            yield dict.fromkeys(own.for_unit(unit_id, limit) or (), recommender)
        yield dict.fromkeys(own.default, f"{recommender}:default")
    if recommender != FALLBACK_MODEL and FALLBACK_MODEL in snapshot.lists:
        default = snapshot.lists[FALLBACK_MODEL].default
        yield dict.fromkeys(default, f"{FALLBACK_MODEL}:default")


def model_label(snapshot: Snapshot, recommender: str) -> str:
    """Return name and version of what serves a recommender; see `Carousel.model`."""
    lists = snapshot.lists.get(recommender) or snapshot.lists.get(FALLBACK_MODEL)
    return recommender if lists is None else lists.label


def is_fallback(recommender: str, sources: Collection[str]) -> bool:
    """Whether a carousel differs from what the recommender itself has to say.

    Its parts and re-ranking steps are its own. `FALLBACK_MODEL` says the same to all, so
    its default list is its own.
    """
    others = set(sources) - {recommender}
    if not others:
        return not sources
    part, default = f"{recommender}:", f"{recommender}:default"
    if recommender == FALLBACK_MODEL:
        others.discard(default)
    return any(not each.startswith(part) or each == default for each in others)
