"""Add the months whose raw events were retired.

Revision ID: 0009
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "retired_month",
        sa.Column("month", sa.Date(), nullable=False),
        sa.Column("exposures", sa.BigInteger(), nullable=False),
        sa.Column("interactions", sa.BigInteger(), nullable=False),
        sa.Column("closed_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("experiment_ids", postgresql.ARRAY(sa.Integer()), nullable=False),
        sa.Column("archive", postgresql.JSONB(), nullable=True),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("month", name=op.f("pk_retired_month")),
    )
    op.execute(
        "CREATE TRIGGER immutable BEFORE UPDATE OR DELETE ON retired_month"
        " FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )


def downgrade() -> None:
    op.drop_table("retired_month")
