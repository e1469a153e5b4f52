"""What units did and were shown, as recommenders learn from it: rows in, rows out.

Raw events only grow, and each has the instant at which it was stored: what was read up to
such an instant can be read again, but for units that were erased and months that were
retired since.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select, text

from experiment_service.storage import schema
from experiment_service.storage.database import (
    EVENTS_LOCK,
    allow_time,
    lock_for_transaction,
    present_instant,
)
from experiment_service.storage.partitions import month_bounds
from recommenders.exploration import LABEL as DRAWN

_BATCH = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which events are read.

    Attributes
    ----------
    kinds : sequence of str
        Of interactions.
    since, until : datetime or None, datetime
        When they happened, the end not included.
    stored_until : datetime
        What was stored later is left out.
    attribute : tuple of (str, str), optional
        Only units that an exposure with this attribute and value was of.
    most_a_day : int
        A unit with more exposures or interactions on a day (UTC) is left out: no
        shopper.
    """

    kinds: Sequence[str]
    since: datetime | None
    until: datetime
    stored_until: datetime
    attribute: tuple[str, str] | None
    most_a_day: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """How many there are.

    Attributes
    ----------
    exposures, interactions : int
        Of the kinds and the time asked for, before anything is left out.
    unusable : int
        Interactions of which nobody can tell the unit or the item.
    robots : int
        Units left out.
    any_viewed : bool
        Whether a list came into sight.
    """

    exposures: int
    interactions: int
    unusable: int
    robots: int
    any_viewed: bool


def settled_instant(connection: Connection) -> datetime:
    """Return an instant up to which everything is stored that ever will be.

    Waits for those who are writing; end the transaction soon, as others then wait.
    """
    lock_for_transaction(connection, EVENTS_LOCK)
    return present_instant(connection)


def first_kept(connection: Connection) -> datetime | None:
    """Return the first instant after the months that were retired; None without any."""
    month = connection.scalar(select(func.max(schema.retired_month.c.month)))
    return None if month is None else month_bounds(month)[1]


# An interaction on a list names its exposure, and is with an item of it or says a place;
# one with something else is the unit's own doing, as is one without an exposure. One
# whose exposure was not recorded (an override) came by a list that nobody knows.
_DONE = text(
    """
    CREATE TEMPORARY TABLE done_feedback ON COMMIT DROP AS
    SELECT i.exposure_id, i.kind, i.occurred_at,
           coalesce(i.unit_id, e.unit_id) AS unit_id,
           coalesce(i.item_id, e.items[i.position]) AS item_id,
           CASE WHEN i.item_id IS NULL THEN i.position
                ELSE array_position(e.items, i.item_id) END AS place,
           i.exposure_id IS NOT NULL
               AND (e.id IS NULL OR i.item_id IS NULL OR i.item_id = ANY(e.items))
               AS by_list
    FROM interaction AS i
    LEFT JOIN exposure AS e ON e.id = i.exposure_id AND e.recorded_at <= :stored_until
        AND (i.unit_id IS NULL OR i.unit_id = e.unit_id)
    WHERE i.kind = ANY(:kinds) AND i.occurred_at >= :since AND i.occurred_at < :until
        AND i.recorded_at <= :stored_until
    """
)
_ROBOTS = text(
    """
    CREATE TEMPORARY TABLE robot_feedback ON COMMIT DROP AS
    SELECT unit_id FROM exposure
    WHERE exposed_at >= :since AND exposed_at < :until AND recorded_at <= :stored_until
    GROUP BY unit_id, (exposed_at AT TIME ZONE 'UTC')::date HAVING count(*) > :most_a_day
    UNION
    SELECT unit_id FROM done_feedback WHERE unit_id IS NOT NULL
    GROUP BY unit_id, (occurred_at AT TIME ZONE 'UTC')::date
    HAVING count(*) > :most_a_day
    """
)
_FOUND = text(
    """
    SELECT (SELECT count(*) FROM exposure
            WHERE exposed_at >= :since AND exposed_at < :until
                AND recorded_at <= :stored_until) AS exposures,
           count(*) AS interactions,
           count(*) FILTER (WHERE unit_id IS NULL OR item_id IS NULL) AS unusable,
           (SELECT count(*) FROM robot_feedback) AS robots,
           EXISTS (SELECT FROM interaction
                   WHERE kind = 'viewed' AND occurred_at >= :since
                       AND occurred_at < :until AND recorded_at <= :stored_until
           ) AS any_viewed
    FROM done_feedback
    """
)
_CHOSEN = """
    unit_id NOT IN (SELECT unit_id FROM robot_feedback)
    AND (CAST(:attribute AS text) IS NULL OR unit_id IN (
        SELECT unit_id FROM exposure
        WHERE context ->> :attribute = :value AND recorded_at <= :stored_until
    ))
"""
# The same thing done twice with an item of a list counts once.
_INTERACTIONS = text(
    f"""
    SELECT unit_id, item_id, kind, occurred_at, by_list,
           CASE WHEN by_list THEN place END AS position
    FROM (
        SELECT *, row_number() OVER (
            PARTITION BY exposure_id, item_id, kind ORDER BY occurred_at
        ) AS turn
        FROM done_feedback
        WHERE unit_id IS NOT NULL AND item_id IS NOT NULL
    ) AS once
    WHERE (turn = 1 OR NOT by_list) AND {_CHOSEN}
    ORDER BY occurred_at, unit_id, item_id, kind
    """  # noqa: S608 - no value is put into the text
)
# A list shown again on the same day is one look.
_SHOWN = text(
    f"""
    SELECT e.unit_id, p.item_id, p.place::int AS position,
           CASE WHEN p.source LIKE :drawn
                THEN e.model || ' ' || cardinality(e.items) END AS drawn_by,
           bool_or(done.place IS NOT NULL) AS taken,
           (extract(epoch FROM max(e.exposed_at)) * 1000000)::bigint AS shown_at
    FROM exposure AS e
    CROSS JOIN LATERAL unnest(e.items, e.sources) WITH ORDINALITY
        AS p(item_id, source, place)
    LEFT JOIN (
        SELECT DISTINCT exposure_id, place FROM done_feedback
        WHERE by_list AND place IS NOT NULL
    ) AS done ON done.exposure_id = e.id AND done.place = p.place
    WHERE e.exposed_at >= :since AND e.exposed_at < :until
        AND e.recorded_at <= :stored_until AND {_CHOSEN}
        AND (NOT :only_viewed
             OR EXISTS (SELECT FROM interaction AS v
                        WHERE v.exposure_id = e.id AND v.kind = 'viewed'
                            AND v.recorded_at <= :stored_until))
    GROUP BY e.unit_id, p.item_id, p.place, drawn_by,
             (e.exposed_at AT TIME ZONE 'UTC')::date
    ORDER BY shown_at, p.place
    """  # noqa: S608 - no value is put into the text
)


def find_feedback(connection: Connection, asked: Asked) -> Found:
    """Gather the events asked for until the transaction ends, and count them."""
    allow_time(connection)
    given = _given(asked)
    for statement in (_DONE, _ROBOTS):
        connection.execute(statement, given)
    connection.execute(text("ANALYZE done_feedback"))
    row = connection.execute(_FOUND, given).one()
    return Found(**row._mapping)  # noqa: SLF001 - the public name of a row's columns


def stream_interactions(
    connection: Connection, asked: Asked
) -> Iterator[Sequence[Sequence[Any]]]:
    """Yield batches of (unit, item, kind, instant, whether it came by a list, position).

    The position, from 1, is None where it did not, or the list was not recorded. In
    order of time; call `find_feedback` before.
    """
    return _stream(connection, _INTERACTIONS, _given(asked))


def stream_shown(
    connection: Connection, asked: Asked, *, only_viewed: bool
) -> Iterator[Sequence[Sequence[Any]]]:
    """Yield batches of (unit, item, position, drawn by, whether taken, microseconds).

    One for each place that was shown to a unit on a day, with the last instant of it in
    UTC since 1970. Items
    that exploration drew for the place have the model and the length of its list, others
    None. In order of time; call `find_feedback` before.

    Parameters
    ----------
    only_viewed : bool
        Only lists that came into sight.
    """
    given = {"only_viewed": only_viewed, "drawn": f"%:{DRAWN}"}
    return _stream(connection, _SHOWN, _given(asked) | given)


def _stream(
    connection: Connection,
    statement: Any,  # noqa: ANN401 - a text with options
    given: dict[str, Any],
) -> Iterator[Sequence[Sequence[Any]]]:
    options = {"stream_results": True, "max_row_buffer": _BATCH}
    rows = connection.execute(statement, given, execution_options=options)
    yield from rows.partitions(_BATCH)


def _given(asked: Asked) -> dict[str, Any]:
    attribute, value = asked.attribute or (None, None)
    return {
        "kinds": list(asked.kinds),
        "since": asked.since or datetime.min.replace(tzinfo=asked.until.tzinfo),
        "until": asked.until,
        "stored_until": asked.stored_until,
        "attribute": attribute,
        "value": value,
        "most_a_day": asked.most_a_day,
    }
