"""Add lineage and the data profile to model versions, and enforce their life.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# Whoever writes, also by hand: a version begins as a candidate, goes on only where
# `storage.models` lets it, and never changes what it is.
_ENFORCE = """
CREATE FUNCTION check_model_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    IF NEW.status <> 'candidate' THEN
      RAISE EXCEPTION 'model version %/% begins as %, it must begin as candidate',
        NEW.name, NEW.version, NEW.status USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
  END IF;
  IF (NEW.id, NEW.name, NEW.version, NEW.recommender, NEW.parameters, NEW.metrics,
      NEW.checklist, NEW.data_from, NEW.data_to, NEW.data_digest, NEW.code_version,
      NEW.artifact, NEW.sha256, NEW.created_at, NEW.parent, NEW.data_profile)
     IS DISTINCT FROM
     (OLD.id, OLD.name, OLD.version, OLD.recommender, OLD.parameters, OLD.metrics,
      OLD.checklist, OLD.data_from, OLD.data_to, OLD.data_digest, OLD.code_version,
      OLD.artifact, OLD.sha256, OLD.created_at, OLD.parent, OLD.data_profile) THEN
    RAISE EXCEPTION 'model version %/%: what it is never changes, only what is decided',
      OLD.name, OLD.version USING ERRCODE = 'check_violation';
  END IF;
  IF NEW.status <> OLD.status AND (OLD.status, NEW.status) NOT IN (
      ('candidate', 'rejected'), ('candidate', 'shadow'), ('candidate', 'live'),
      ('shadow', 'live'), ('shadow', 'rejected'),
      ('live', 'retired'), ('retired', 'live')) THEN
    RAISE EXCEPTION 'model version %/% is % and can''t become %',
      OLD.name, OLD.version, OLD.status, NEW.status USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER life BEFORE INSERT OR UPDATE ON model_version
  FOR EACH ROW EXECUTE FUNCTION check_model_version();
"""


def upgrade() -> None:
    op.add_column("model_version", sa.Column("parent", sa.Integer(), nullable=True))
    op.add_column(
        "model_version",
        sa.Column(
            "data_profile", postgresql.JSONB(astext_type=sa.Text()), nullable=True
        ),
    )
    op.create_foreign_key(
        op.f("fk_model_version_name_parent"),
        "model_version",
        "model_version",
        ["name", "parent"],
        ["name", "version"],
    )
    op.create_check_constraint(
        op.f("ck_model_version_parent"), "model_version", "parent < version"
    )
    op.create_check_constraint(
        op.f("ck_model_version_passed"),
        "model_version",
        "status IN ('candidate', 'rejected')"
        """ OR (sha256 <> '' AND NOT checklist @> '[{"passed": false}]')""",
    )
    op.execute(_ENFORCE)


def downgrade() -> None:
    op.execute(
        "DROP TRIGGER life ON model_version; DROP FUNCTION check_model_version()"
    )
    op.drop_constraint("ck_model_version_passed", "model_version")
    op.drop_constraint("ck_model_version_parent", "model_version")
    op.drop_constraint("fk_model_version_name_parent", "model_version")
    op.drop_column("model_version", "data_profile")
    op.drop_column("model_version", "parent")
