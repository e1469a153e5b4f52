"""Add alerts, and what monitors measured by day.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "monitored_day",
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("variant", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("exposures", sa.Integer(), nullable=False),
        sa.Column("measured", postgresql.JSONB(), nullable=False),
        sa.Column("positions", postgresql.JSONB(), nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id"],
            ["experiment.id"],
            name="fk_monitored_day_experiment_id",
        ),
        sa.PrimaryKeyConstraint(
            "experiment_id", "variant", "day", name="pk_monitored_day"
        ),
    )
    op.create_table(
        "alert",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("monitor", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("raised_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("resolution", sa.Text(), nullable=True),
        sa.Column("raise_told_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("resolve_told_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiment.id"], name="fk_alert_experiment_id"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_alert"),
        sa.CheckConstraint(
            "(resolved_at IS NULL) = (resolution IS NULL)"
            " AND (resolved_at IS NOT NULL OR resolve_told_at IS NULL)",
            name="ck_alert_resolved",
        ),
    )
    op.create_index(
        "uq_alert_open",
        "alert",
        ["experiment_id", "monitor", "subject"],
        unique=True,
        postgresql_where=sa.text("resolved_at IS NULL"),
    )
    op.create_index(
        "ix_alert_untold",
        "alert",
        ["id"],
        postgresql_where=sa.text(
            "raise_told_at IS NULL OR"
            " (resolved_at IS NOT NULL AND resolve_told_at IS NULL)"
        ),
    )


def downgrade() -> None:
    op.drop_table("alert")
    op.drop_table("monitored_day")
