"""Add segments of units to epochs and exposures.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    segments = postgresql.JSONB(astext_type=sa.Text())
    op.add_column("epoch", sa.Column("segments", segments, nullable=True))
    for table in ("exposure", "unit_exposure"):
        op.add_column(table, sa.Column("segment", sa.Text(), nullable=True))


def downgrade() -> None:
    for table in ("unit_exposure", "exposure"):
        op.drop_column(table, "segment")
    op.drop_column("epoch", "segments")
