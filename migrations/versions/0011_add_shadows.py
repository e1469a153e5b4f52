"""Add the share and the rule of shadows, and what they answered.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model_version", sa.Column("shadow_share", sa.Double()))
    op.add_column("model_version", sa.Column("shadow_rule", postgresql.JSONB()))
    op.add_column("model_version", sa.Column("shadow_result", postgresql.JSONB()))
    # Nothing was computed for a shadow before: this is what it starts with.
    op.execute("UPDATE model_version SET shadow_share = 0.1 WHERE status = 'shadow'")
    op.create_check_constraint(
        op.f("ck_model_version_shadow_share"),
        "model_version",
        "(status = 'shadow') = (shadow_share IS NOT NULL)"
        " AND shadow_share > 0 AND shadow_share <= 1",
    )
    op.create_table(
        "shadow_answer",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("unit_id", sa.Text(), nullable=False),
        sa.Column("shown", sa.SmallInteger(), nullable=False),
        sa.Column("made", sa.SmallInteger(), nullable=False),
        sa.Column("common", sa.SmallInteger(), nullable=False),
        sa.Column("same_places", postgresql.ARRAY(sa.SmallInteger()), nullable=False),
        sa.Column("shown_fallback", sa.Boolean(), nullable=False),
        sa.Column("fallback", sa.Boolean(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["model_version.id"], name="fk_shadow_answer_version_id"
        ),
        sa.PrimaryKeyConstraint("version_id", "id", name="pk_shadow_answer"),
    )
    op.create_index("ix_shadow_answer_unit_id", "shadow_answer", ["unit_id"])


def downgrade() -> None:
    op.drop_table("shadow_answer")
    op.drop_constraint(op.f("ck_model_version_shadow_share"), "model_version")
    op.drop_column("model_version", "shadow_result")
    op.drop_column("model_version", "shadow_rule")
    op.drop_column("model_version", "shadow_share")
