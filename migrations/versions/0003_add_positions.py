"""Add the position to the outcomes of units.

What is there already keeps position 0, none told; `experiment-service rebuild-outcomes`
finds the positions in the raw events.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KEY = ["experiment_id", "unit_id", "phase", "kind"]


def upgrade() -> None:
    op.add_column(
        "unit_outcome",
        sa.Column("position", sa.SmallInteger(), nullable=False, server_default="0"),
    )
    op.alter_column("unit_outcome", "position", server_default=None)
    op.drop_constraint("pk_unit_outcome", "unit_outcome")
    op.create_primary_key("pk_unit_outcome", "unit_outcome", [*KEY, "position"])


def downgrade() -> None:
    op.execute(
        """
        CREATE TEMPORARY TABLE merged ON COMMIT DROP AS
        SELECT experiment_id, unit_id, phase, kind, sum(count)::integer AS count,
               sum(value_sum) AS value_sum, min(first_at) AS first_at
        FROM unit_outcome GROUP BY experiment_id, unit_id, phase, kind;
        DELETE FROM unit_outcome;
        """
    )
    op.drop_constraint("pk_unit_outcome", "unit_outcome")
    op.drop_column("unit_outcome", "position")
    op.create_primary_key("pk_unit_outcome", "unit_outcome", KEY)
    op.execute("INSERT INTO unit_outcome SELECT * FROM merged")
