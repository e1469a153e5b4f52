"""Add the category of an item to interactions and outcomes.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

KEY = ["experiment_id", "unit_id", "phase", "kind", "position"]


def upgrade() -> None:
    op.add_column("interaction", sa.Column("category", sa.Text(), nullable=True))
    op.add_column(
        "unit_outcome",
        sa.Column("category", sa.Text(), nullable=False, server_default=""),
    )
    op.alter_column("unit_outcome", "category", server_default=None)
    op.drop_constraint("pk_unit_outcome", "unit_outcome")
    op.create_primary_key("pk_unit_outcome", "unit_outcome", [*KEY, "category"])


def downgrade() -> None:
    op.execute(
        """
        CREATE TEMPORARY TABLE merged ON COMMIT DROP AS
        SELECT experiment_id, unit_id, phase, kind, sum(count)::integer AS count,
               sum(value_sum) AS value_sum, min(first_at) AS first_at, position
        FROM unit_outcome GROUP BY experiment_id, unit_id, phase, kind, position;
        DELETE FROM unit_outcome;
        """
    )
    op.drop_constraint("pk_unit_outcome", "unit_outcome")
    op.drop_column("unit_outcome", "category")
    op.create_primary_key("pk_unit_outcome", "unit_outcome", KEY)
    op.execute(
        "INSERT INTO unit_outcome (experiment_id, unit_id, phase, kind, count, value_sum,"
        " first_at, position) SELECT * FROM merged"
    )
    op.drop_column("interaction", "category")
