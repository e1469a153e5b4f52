"""Add a row per unit of analysis, what units did by day, and what came in by day.

Rows of what is there already are made from outcomes and raw events. Attributes of first
exposures stay empty; `experiment-service rebuild-outcomes` finds them in the raw events.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

KINDS = ("viewed", "click", "add_to_cart", "purchase", "dismiss")

HISTORY = """
INSERT INTO unit_history (unit_id, day, kind, count, value_sum)
SELECT coalesce(i.unit_id, x.unit_id), (i.occurred_at AT TIME ZONE 'UTC')::date, i.kind,
       count(*), coalesce(sum(i.value), 0)
FROM interaction i LEFT JOIN exposure x ON x.id = i.exposure_id
WHERE coalesce(i.unit_id, x.unit_id) IS NOT NULL
GROUP BY 1, 2, 3
"""

#: An interaction that names its exposure needs no row to be counted once.
FORGET_NAMED = """
DELETE FROM attribution a USING interaction i
WHERE i.id = a.interaction_id AND i.exposure_id IS NOT NULL
"""

REMEMBER_NAMED = """
INSERT INTO attribution (interaction_id, experiment_id, phase)
SELECT i.id, x.experiment_id,
       CASE WHEN e.declaration ->> 'kind' = 'bandit' THEN x.epoch ELSE 0 END
FROM interaction i JOIN exposure x ON x.id = i.exposure_id
     JOIN experiment e ON e.id = x.experiment_id
WHERE (i.unit_id IS NULL OR i.unit_id = x.unit_id) AND i.occurred_at >= x.exposed_at
      AND i.occurred_at <= x.exposed_at + make_interval(
          secs => (e.declaration ->> 'attribution_window')::double precision)
"""

DONE = """
sum(count) FILTER (WHERE kind = '{kind}'),
sum(value_sum) FILTER (WHERE kind = '{kind}')::double precision,
min(first_at) FILTER (WHERE kind = '{kind}')"""

BEFORE = """
sum(count) FILTER (WHERE kind = '{kind}'),
sum(value_sum) FILTER (WHERE kind = '{kind}')::double precision"""

UNITS = """
WITH rule AS (
  SELECT id, declaration ->> 'kind' = 'bandit' AS by_epoch,
         declaration ->> 'kind' = 'bandit'
         AND coalesce(declaration ->> 'mode', 'redraw') = 'redraw' AS redraws
  FROM experiment
), key AS (
  SELECT DISTINCT u.experiment_id, u.unit_id,
         CASE WHEN redraws THEN u.epoch ELSE 0 END AS phase, by_epoch, redraws
  FROM unit_exposure u JOIN rule ON rule.id = u.experiment_id
)
INSERT INTO unit_of_analysis (experiment_id, unit_id, phase, variant, epoch, segment,
                              propensity, context, exposures, first_at, last_at,
                              crossed_at, {columns})
SELECT key.experiment_id, key.unit_id, key.phase, shown.variant, shown.epoch,
       shown.segment, shown.propensity, shown.context, seen.*, done.*, before.*
FROM key, LATERAL (
  SELECT * FROM unit_exposure u
  WHERE u.experiment_id = key.experiment_id AND u.unit_id = key.unit_id
    AND (NOT redraws OR u.epoch = phase)
  ORDER BY epoch, first_at, variant LIMIT 1
) shown, LATERAL (
  SELECT sum(exposures) FILTER (WHERE own), min(first_at) FILTER (WHERE own) AS first_at,
         max(last_at) FILTER (WHERE own),
         min(first_at) FILTER (WHERE variant <> shown.variant)
  FROM (SELECT u.*, redraws OR NOT by_epoch OR epoch = shown.epoch AS own
        FROM unit_exposure u
        WHERE u.experiment_id = key.experiment_id AND u.unit_id = key.unit_id
          AND (NOT redraws OR u.epoch = phase)) u
) seen, LATERAL (
  SELECT {done} FROM unit_outcome o
  WHERE o.experiment_id = key.experiment_id AND o.unit_id = key.unit_id
    AND o.phase = CASE WHEN by_epoch THEN shown.epoch ELSE 0 END
) done, LATERAL (
  SELECT {before} FROM unit_history h
  WHERE h.unit_id = key.unit_id
    AND day < (seen.first_at AT TIME ZONE 'UTC')::date
    AND day >= (seen.first_at AT TIME ZONE 'UTC')::date - 28
) before
"""


def upgrade() -> None:
    context = postgresql.JSONB(astext_type=sa.Text())
    op.add_column(
        "unit_exposure",
        sa.Column("context", context, nullable=False, server_default="{}"),
    )
    op.alter_column("unit_exposure", "context", server_default=None)
    op.create_table(
        "intake",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("received", sa.BigInteger(), nullable=False),
        sa.Column("known", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("day", name=op.f("pk_intake")),
    )
    op.create_table(
        "unit_history",
        sa.Column("unit_id", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("value_sum", sa.Numeric(), nullable=False),
        sa.PrimaryKeyConstraint("unit_id", "day", "kind", name=op.f("pk_unit_history")),
    )
    op.create_table(
        "unit_of_analysis",
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("unit_id", sa.Text(), nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False),
        sa.Column("variant", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("segment", sa.Text(), nullable=True),
        sa.Column("propensity", sa.Double(), nullable=False),
        sa.Column("exposures", sa.Integer(), nullable=False),
        sa.Column("context", context, nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("crossed_at", sa.DateTime(timezone=True), nullable=True),
        *(
            column
            for kind in KINDS
            for column in (
                sa.Column(f"{kind}_count", sa.Integer(), nullable=True),
                sa.Column(f"{kind}_value", sa.Double(), nullable=True),
                sa.Column(f"{kind}_at", sa.DateTime(timezone=True), nullable=True),
                sa.Column(f"{kind}_count_before", sa.Integer(), nullable=True),
                sa.Column(f"{kind}_value_before", sa.Double(), nullable=True),
            )
        ),
        sa.PrimaryKeyConstraint(
            "experiment_id", "unit_id", "phase", name=op.f("pk_unit_of_analysis")
        ),
    )
    op.create_index(
        op.f("ix_unit_of_analysis_unit_id"), "unit_of_analysis", ["unit_id"]
    )
    op.execute(FORGET_NAMED)
    op.execute(HISTORY)
    done = [f"{kind}_{what}" for kind in KINDS for what in ("count", "value", "at")]
    before = [f"{kind}_{what}_before" for kind in KINDS for what in ("count", "value")]
    op.execute(
        UNITS.format(
            columns=", ".join([*done, *before]),
            done=",".join(DONE.format(kind=kind) for kind in KINDS),
            before=",".join(BEFORE.format(kind=kind) for kind in KINDS),
        )
    )


def downgrade() -> None:
    op.execute(REMEMBER_NAMED)
    op.drop_index(op.f("ix_unit_of_analysis_unit_id"), table_name="unit_of_analysis")
    op.drop_table("unit_of_analysis")
    op.drop_table("unit_history")
    op.drop_table("intake")
    op.drop_column("unit_exposure", "context")
