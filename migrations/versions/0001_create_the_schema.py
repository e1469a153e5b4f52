"""Create the schema.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op
from procrastinate.schema import SchemaManager
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


# Ids that are not UUIDv7 are mapped above this bound; see `domain.event.event_uuid`.
_FOREIGN = "ffff0000-0000-0000-0000-000000000000"

_CREATE_PARTITIONS = f"""
CREATE TABLE exposure_default PARTITION OF exposure DEFAULT;
CREATE TABLE interaction_default PARTITION OF interaction DEFAULT;
CREATE TABLE interaction_foreign PARTITION OF interaction
    FOR VALUES FROM ('{_FOREIGN}') TO (MAXVALUE);
"""

_MAKE_IMMUTABLE = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % never change', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER immutable BEFORE UPDATE OR DELETE ON epoch
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER immutable BEFORE UPDATE OR DELETE ON reallocation
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER immutable BEFORE UPDATE OR DELETE ON audit
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
"""


def _run(script: str) -> None:
    """Run a script of several statements as it stands, % and : included."""
    op.get_bind().connection.driver_connection.execute(script)


def upgrade() -> None:
    op.create_table(
        "attribution",
        sa.Column("interaction_id", sa.Uuid(), nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint(
            "interaction_id", "experiment_id", "phase", name=op.f("pk_attribution")
        ),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("before", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("after", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index(
        op.f("ix_audit_subject_id"), "audit", ["subject", "id"], unique=False
    )
    op.create_table(
        "exposure",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("unit_id", sa.Text(), nullable=False),
        sa.Column("variant", sa.Text(), nullable=False),
        sa.Column("propensity", sa.Double(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("items", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("sources", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("fallback", sa.Boolean(), nullable=False),
        sa.Column("context", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("exposed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "cardinality(items) = cardinality(sources)",
            name=op.f("ck_exposure_sources"),
        ),
        sa.CheckConstraint(
            "propensity > 0 AND propensity <= 1", name=op.f("ck_exposure_propensity")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exposure")),
        postgresql_partition_by="RANGE (id)",
    )
    op.create_index(
        op.f("ix_exposure_experiment_id_exposed_at"),
        "exposure",
        ["experiment_id", "exposed_at"],
        unique=False,
    )
    op.create_index(
        op.f("ix_exposure_unit_id_exposed_at"),
        "exposure",
        ["unit_id", "exposed_at"],
        unique=False,
    )
    op.create_table(
        "interaction",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("exposure_id", sa.Uuid(), nullable=True),
        sa.Column("unit_id", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=True),
        sa.Column("position", sa.SmallInteger(), nullable=True),
        sa.Column("value", sa.Numeric(), nullable=True),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "exposure_id IS NOT NULL OR unit_id IS NOT NULL",
            name=op.f("ck_interaction_subject"),
        ),
        sa.CheckConstraint("position >= 1", name=op.f("ck_interaction_position")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_interaction")),
        postgresql_partition_by="RANGE (id)",
    )
    op.create_index(
        op.f("ix_interaction_exposure_id"),
        "interaction",
        ["exposure_id"],
        unique=False,
        postgresql_where=sa.text("exposure_id IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_interaction_unit_id_occurred_at"),
        "interaction",
        ["unit_id", "occurred_at"],
        unique=False,
        postgresql_where=sa.text("exposure_id IS NULL"),
    )
    op.create_table(
        "layer",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("salt", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_layer")),
        sa.UniqueConstraint("salt", name=op.f("uq_layer_salt")),
    )
    op.create_table(
        "model_version",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("recommender", sa.Text(), nullable=False),
        sa.Column(
            "parameters", postgresql.JSONB(astext_type=sa.Text()), nullable=False
        ),
        sa.Column("metrics", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("checklist", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("data_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("data_to", sa.DateTime(timezone=True), nullable=False),
        sa.Column("data_digest", sa.Text(), nullable=False),
        sa.Column("code_version", sa.Text(), nullable=False),
        sa.Column("artifact", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "status IN ('candidate', 'rejected', 'shadow', 'live', 'retired')",
            name=op.f("ck_model_version_status"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_version")),
        sa.UniqueConstraint(
            "name", "version", name=op.f("uq_model_version_name_version")
        ),
    )
    op.create_index(
        "uq_model_version_live",
        "model_version",
        ["name"],
        unique=True,
        postgresql_where=sa.text("status = 'live'"),
    )
    op.create_table(
        "placement",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("recommender", sa.Text(), nullable=False),
        sa.Column("settings", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_placement")),
    )
    op.create_table(
        "unit_exposure",
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("unit_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("variant", sa.Text(), nullable=False),
        sa.Column("propensity", sa.Double(), nullable=False),
        sa.Column("exposures", sa.Integer(), nullable=False),
        sa.Column("fallback_exposures", sa.Integer(), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint(
            "experiment_id",
            "unit_id",
            "epoch",
            "variant",
            name=op.f("pk_unit_exposure"),
        ),
    )
    op.create_index(
        op.f("ix_unit_exposure_experiment_id_recorded_at"),
        "unit_exposure",
        ["experiment_id", "recorded_at"],
        unique=False,
    )
    op.create_table(
        "unit_outcome",
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("unit_id", sa.Text(), nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("value_sum", sa.Numeric(), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint(
            "experiment_id", "unit_id", "phase", "kind", name=op.f("pk_unit_outcome")
        ),
    )
    op.create_table(
        "experiment",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("placement", sa.Text(), nullable=False),
        sa.Column("layer", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column(
            "declaration", postgresql.JSONB(astext_type=sa.Text()), nullable=False
        ),
        sa.Column("traffic_salt", sa.Text(), nullable=False),
        sa.Column("variant_salt", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stopped_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'draft') = (started_at IS NULL) AND (state = 'stopped') = (stopped_at IS NOT NULL)",
            name=op.f("ck_experiment_state_times"),
        ),
        sa.CheckConstraint(
            "state IN ('draft', 'running', 'stopped')", name=op.f("ck_experiment_state")
        ),
        sa.ForeignKeyConstraint(
            ["layer"], ["layer.key"], name=op.f("fk_experiment_layer")
        ),
        sa.ForeignKeyConstraint(
            ["placement"], ["placement.key"], name=op.f("fk_experiment_placement")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_experiment")),
        sa.UniqueConstraint("key", name="uq_experiment_key"),
        sa.UniqueConstraint("traffic_salt", name=op.f("uq_experiment_traffic_salt")),
        sa.UniqueConstraint("variant_salt", name=op.f("uq_experiment_variant_salt")),
    )
    op.create_table(
        "epoch",
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("weights", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("floor", sa.Double(), nullable=False),
        sa.Column("control_share", sa.Double(), nullable=False),
        sa.Column("statistics", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("cutoff", sa.DateTime(timezone=True), nullable=True),
        sa.Column("policy", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("number >= 0", name=op.f("ck_epoch_number")),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiment.id"], name=op.f("fk_epoch_experiment_id")
        ),
        sa.PrimaryKeyConstraint("experiment_id", "number", name="pk_epoch"),
    )
    op.create_table(
        "reallocation",
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("cutoff", sa.DateTime(timezone=True), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("moved", sa.Boolean(), nullable=False),
        sa.Column(
            "statistics", postgresql.JSONB(astext_type=sa.Text()), nullable=False
        ),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["experiment_id"],
            ["experiment.id"],
            name=op.f("fk_reallocation_experiment_id"),
        ),
        sa.PrimaryKeyConstraint(
            "experiment_id", "cutoff", name=op.f("pk_reallocation")
        ),
    )
    _run(_CREATE_PARTITIONS)
    _run(_MAKE_IMMUTABLE)
    # Its own PostgreSQL schema keeps procrastinate's tables apart from ours.
    _run("CREATE SCHEMA procrastinate")
    _run("SET LOCAL search_path = procrastinate")
    _run(SchemaManager.get_schema())
    _run("SET LOCAL search_path = public")


def downgrade() -> None:
    op.drop_table("reallocation")
    op.drop_table("epoch")
    op.drop_table("experiment")
    op.drop_table("unit_outcome")
    op.drop_index(
        op.f("ix_unit_exposure_experiment_id_recorded_at"), table_name="unit_exposure"
    )
    op.drop_table("unit_exposure")
    op.drop_table("placement")
    op.drop_index(
        "uq_model_version_live",
        table_name="model_version",
        postgresql_where=sa.text("status = 'live'"),
    )
    op.drop_table("model_version")
    op.drop_table("layer")
    op.drop_index(
        op.f("ix_interaction_unit_id_occurred_at"),
        table_name="interaction",
        postgresql_where=sa.text("exposure_id IS NULL"),
    )
    op.drop_index(
        op.f("ix_interaction_exposure_id"),
        table_name="interaction",
        postgresql_where=sa.text("exposure_id IS NOT NULL"),
    )
    op.drop_table("interaction")
    op.drop_index(op.f("ix_exposure_unit_id_exposed_at"), table_name="exposure")
    op.drop_index(op.f("ix_exposure_experiment_id_exposed_at"), table_name="exposure")
    op.drop_table("exposure")
    op.drop_index(op.f("ix_audit_subject_id"), table_name="audit")
    op.drop_table("audit")
    op.drop_table("attribution")
    op.execute("DROP FUNCTION refuse_change")
    op.execute("DROP SCHEMA procrastinate CASCADE")
