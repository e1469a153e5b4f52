"""Add the placement of interactions, and when a unit first acted at the experiment's own.

Outcomes that are there already are counted again by placement, from the raw events.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

KINDS = ("viewed", "click", "add_to_cart", "purchase", "dismiss")
KEY = ["experiment_id", "unit_id", "phase", "kind", "position", "category"]

#: An interaction happened where its exposure was shown, unless it says otherwise; one by
#: its unit alone says nothing yet.
COUNT_AGAIN = """
DELETE FROM unit_outcome;
WITH pair AS (
  SELECT x.experiment_id, x.unit_id,
         CASE WHEN e.declaration ->> 'kind' = 'bandit' THEN x.epoch ELSE 0 END AS phase,
         i.kind, i.position, i.category, e.declaration ->> 'placement' AS placement,
         i.value, i.occurred_at
  FROM interaction i JOIN exposure x ON x.id = i.exposure_id
       JOIN experiment e ON e.id = x.experiment_id
  WHERE (i.unit_id IS NULL OR i.unit_id = x.unit_id) AND i.occurred_at >= x.exposed_at
        AND i.occurred_at <= x.exposed_at + make_interval(
            secs => (e.declaration ->> 'attribution_window')::double precision)
  UNION ALL
  SELECT a.experiment_id, i.unit_id, a.phase, i.kind, i.position, i.category, '',
         i.value, i.occurred_at
  FROM attribution a JOIN interaction i ON i.id = a.interaction_id
)
INSERT INTO unit_outcome (experiment_id, unit_id, phase, kind, position, category,
                          placement, count, value_sum, first_at)
SELECT experiment_id, unit_id, phase, kind, coalesce(position, 0),
       coalesce(category, ''), placement, count(*), coalesce(sum(value), 0),
       min(occurred_at)
FROM pair GROUP BY 1, 2, 3, 4, 5, 6, 7
"""

FIRST_AT_OWN = """
UPDATE unit_of_analysis u SET {columns}
FROM (
  SELECT experiment_id, unit_id, phase,
         declaration ->> 'kind' = 'bandit' AS by_epoch, {first}
  FROM unit_outcome o JOIN experiment e ON e.id = o.experiment_id
  WHERE o.placement = declaration ->> 'placement'
  GROUP BY experiment_id, unit_id, phase, by_epoch
) own
WHERE own.experiment_id = u.experiment_id AND own.unit_id = u.unit_id
  AND own.phase = CASE WHEN by_epoch THEN u.epoch ELSE 0 END
"""


def upgrade() -> None:
    op.add_column("interaction", sa.Column("placement", sa.Text(), nullable=True))
    op.add_column(
        "unit_outcome",
        sa.Column("placement", sa.Text(), nullable=False, server_default=""),
    )
    op.alter_column("unit_outcome", "placement", server_default=None)
    op.drop_constraint("pk_unit_outcome", "unit_outcome")
    op.create_primary_key("pk_unit_outcome", "unit_outcome", [*KEY, "placement"])
    op.execute(COUNT_AGAIN)
    for kind in KINDS:
        op.add_column(
            "unit_of_analysis",
            sa.Column(f"{kind}_own_at", sa.DateTime(timezone=True), nullable=True),
        )
    op.execute(
        FIRST_AT_OWN.format(
            columns=", ".join(f"{kind}_own_at = own.{kind}" for kind in KINDS),
            first=", ".join(
                f"min(first_at) FILTER (WHERE o.kind = '{kind}') AS {kind}"
                for kind in KINDS
            ),
        )
    )


def downgrade() -> None:
    for kind in KINDS:
        op.drop_column("unit_of_analysis", f"{kind}_own_at")
    op.execute(
        """
        CREATE TEMPORARY TABLE merged ON COMMIT DROP AS
        SELECT experiment_id, unit_id, phase, kind, position, category,
               sum(count)::integer AS count, sum(value_sum) AS value_sum,
               min(first_at) AS first_at
        FROM unit_outcome
        GROUP BY experiment_id, unit_id, phase, kind, position, category;
        DELETE FROM unit_outcome;
        """
    )
    op.drop_constraint("pk_unit_outcome", "unit_outcome")
    op.drop_column("unit_outcome", "placement")
    op.create_primary_key("pk_unit_outcome", "unit_outcome", KEY)
    op.execute(
        "INSERT INTO unit_outcome (experiment_id, unit_id, phase, kind, position,"
        " category, count, value_sum, first_at) SELECT * FROM merged"
    )
    op.drop_column("interaction", "placement")
