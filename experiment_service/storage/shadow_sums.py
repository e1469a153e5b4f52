"""Answers of shadows summed up for those who decide, and removed afterwards."""

from typing import Any

from sqlalchemy import Connection, func, select, text

from experiment_service.analysis.moments import Moments
from experiment_service.analysis.shadow import ShadowSums
from experiment_service.storage import schema
from experiment_service.storage.database import allow_time

_REMOVED_AT_ONCE = 20_000

_ANSWERS = text(
    """
    SELECT count(*) AS answers, count(DISTINCT unit_id) AS units,
           count(error) AS failed,
           count(*) FILTER (WHERE NOT fallback AND error IS NULL) AS covered,
           count(*) FILTER (WHERE NOT shown_fallback) AS shown_covered,
           percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY seconds)
               FILTER (WHERE error IS NULL) AS seconds,
           min(answered_at) AS first_at, max(answered_at) AS last_at,
           mode() WITHIN GROUP (ORDER BY error) AS error
    FROM shadow_answer WHERE version_id = :version
    """
)
_MOMENTS = """
    SELECT count(*) AS n, coalesce(sum(y), 0) AS sum_y, coalesce(sum(y * y), 0) AS sum_yy,
           coalesce(sum(x), 0) AS sum_x, coalesce(sum(x * x), 0) AS sum_xx,
           coalesce(sum(x * y), 0) AS sum_xy
    FROM units
"""
_OVERLAP = text(
    f"""
    WITH units AS (
        SELECT sum(common::float8 / greatest(shown, made)) AS y, count(*)::float8 AS x
        FROM shadow_answer
        WHERE version_id = :version AND error IS NULL AND greatest(shown, made) > 0
        GROUP BY unit_id
    ) {_MOMENTS}
    """  # noqa: S608 - no value is put into the text
)
_PLACES = text(
    """
    SELECT count(*) AS exposures, coalesce(sum(a.shown), 0) AS places,
           coalesce(sum(a.shown - cardinality(a.same_places)), 0) AS changed_places
    FROM shadow_answer AS a JOIN exposure AS e ON e.id = a.id
    WHERE a.version_id = :version AND a.error IS NULL
    """
)
# A place counts as clicked once, however often it was; a click without a position is at
# the place of its item.
_CLICKED = """
    clicked AS (
        SELECT a.unit_id, a.id, a.same_places,
               coalesce(i.position, array_position(e.items, i.item_id)) AS place
        FROM shadow_answer AS a
        JOIN exposure AS e ON e.id = a.id
        JOIN interaction AS i ON i.exposure_id = a.id AND i.kind = 'click'
        WHERE a.version_id = :version AND a.error IS NULL
    )
"""
_CLICKS = text(
    f"""
    WITH {_CLICKED}, places AS (
        SELECT DISTINCT unit_id, id, place, place = ANY(same_places) AS kept
        FROM clicked WHERE place IS NOT NULL
    ), units AS (
        SELECT count(*) FILTER (WHERE kept)::float8 AS y, count(*)::float8 AS x
        FROM places GROUP BY unit_id
    ) {_MOMENTS}
    """  # noqa: S608 - no value is put into the text
)
_UNPLACED = text(
    f"WITH {_CLICKED} SELECT count(*) FROM clicked WHERE place IS NULL"  # noqa: S608
)


def count_answers(connection: Connection, version_id: int) -> int:
    """Count the answers of a version, quicker than summing them."""
    answer = schema.shadow_answer.c
    return (
        connection.scalar(select(func.count()).where(answer.version_id == version_id))
        or 0
    )


def sum_answers(connection: Connection, version_id: int) -> ShadowSums:
    """Sum the answers of a version, with the clicks on those that are exposures."""
    allow_time(connection)
    given: dict[str, Any] = {"version": version_id}
    answers = connection.execute(_ANSWERS, given).one()
    places = connection.execute(_PLACES, given).one()
    return ShadowSums(
        answers=answers.answers,
        units=answers.units,
        failed=answers.failed,
        covered=answers.covered,
        shown_covered=answers.shown_covered,
        overlap=_moments(connection.execute(_OVERLAP, given).one()),
        milliseconds=tuple(1000 * seconds for seconds in answers.seconds or ()),
        exposures=places.exposures,
        places=places.places,
        changed_places=places.changed_places,
        clicked=_moments(connection.execute(_CLICKS, given).one()),
        unplaced_clicks=connection.execute(_UNPLACED, given).scalar_one(),
        first_at=answers.first_at,
        last_at=answers.last_at,
        error=answers.error,
    )


def _moments(row: Any) -> Moments:  # noqa: ANN401 - a row of sums by name
    return Moments(**row._mapping)  # noqa: SLF001 - the public name of a row's columns


_REMOVE = text(
    """
    DELETE FROM shadow_answer WHERE (version_id, id) IN (
        SELECT a.version_id, a.id FROM shadow_answer AS a
        JOIN model_version AS v ON v.id = a.version_id
        WHERE v.status <> 'shadow' LIMIT :limit
    )
    """
)


def remove_answers(connection: Connection) -> bool:
    """Remove answers of versions that were decided on; return whether some are left."""
    removed = connection.execute(
        _REMOVE.execution_options(preserve_rowcount=True), {"limit": _REMOVED_AT_ONCE}
    ).rowcount
    return removed == _REMOVED_AT_ONCE
