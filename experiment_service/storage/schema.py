"""Tables. Seen by `storage` and the migrations only.

`exposure` and `interaction` are append-only and range-partitioned by their UUIDv7, so
the primary key is the event id alone: a retry finds its first copy whatever timestamp
it carries. Experiments are never deleted, so events need no foreign key to them.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

UQ_EXPERIMENT_KEY = "uq_experiment_key"
PK_EPOCH = "pk_epoch"


def _instant(name: str, *, nullable: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


def _recorded_at() -> Column[object]:
    return Column(
        "recorded_at",
        DateTime(timezone=True),
        nullable=False,
        server_default=func.clock_timestamp(),
    )


#: A place in the shop that shows a carousel, and what it shows outside experiments.
placement = Table(
    "placement",
    metadata,
    Column("key", Text, primary_key=True),
    Column("recommender", Text, nullable=False),
    Column("settings", JSONB, nullable=False),
)

#: Segments of one layer share one salt, or experiments could not exclude each other.
layer = Table(
    "layer",
    metadata,
    Column("key", Text, primary_key=True),
    Column("salt", Text, nullable=False, unique=True),
)

experiment = Table(
    "experiment",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("key", Text, nullable=False),
    Column("placement", Text, ForeignKey("placement.key"), nullable=False),
    Column("layer", Text, ForeignKey("layer.key"), nullable=False),
    Column("state", Text, nullable=False),
    Column("declaration", JSONB, nullable=False),
    Column("traffic_salt", Text, nullable=False, unique=True),
    Column("variant_salt", Text, nullable=False, unique=True),
    _instant("created_at"),
    _instant("started_at", nullable=True),
    _instant("stopped_at", nullable=True),
    UniqueConstraint("key", name=UQ_EXPERIMENT_KEY),
    CheckConstraint("state IN ('draft', 'running', 'stopped')", name="state"),
    CheckConstraint(
        "(state = 'draft') = (started_at IS NULL)"
        " AND (state = 'stopped') = (stopped_at IS NOT NULL)",
        name="state_times",
    ),
)

#: Immutable: a trigger of the first migration refuses UPDATE and DELETE.
epoch = Table(
    "epoch",
    metadata,
    Column("experiment_id", Integer, ForeignKey("experiment.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("weights", JSONB, nullable=False),
    Column("segments", JSONB),
    Column("floor", Double, nullable=False),
    Column("control_share", Double, nullable=False),
    Column("statistics", JSONB),
    _instant("cutoff", nullable=True),
    Column("policy", JSONB),
    Column("seed", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    _instant("started_at"),
    PrimaryKeyConstraint("experiment_id", "number", name=PK_EPOCH),
    CheckConstraint("number >= 0", name="number"),
)

#: One row per scheduled reallocation, also when the weights stayed; immutable.
reallocation = Table(
    "reallocation",
    metadata,
    Column("experiment_id", Integer, ForeignKey("experiment.id"), nullable=False),
    _instant("cutoff"),
    Column("epoch", Integer, nullable=False),
    Column("moved", Boolean, nullable=False),
    Column("statistics", JSONB, nullable=False),
    Column("reason", Text, nullable=False),
    _recorded_at(),
    PrimaryKeyConstraint("experiment_id", "cutoff"),
)

exposure = Table(
    "exposure",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("experiment_id", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("unit_id", Text, nullable=False),
    Column("variant", Text, nullable=False),
    Column("propensity", Double, nullable=False),
    Column("model", Text, nullable=False),
    Column("items", ARRAY(Text), nullable=False),
    Column("sources", ARRAY(Text), nullable=False),
    Column("fallback", Boolean, nullable=False),
    Column("context", JSONB, nullable=False),
    _instant("exposed_at"),
    # Of a bandit that has weights per segment.
    Column("segment", Text),
    _recorded_at(),
    CheckConstraint("propensity > 0 AND propensity <= 1", name="propensity"),
    CheckConstraint("cardinality(items) = cardinality(sources)", name="sources"),
    # Attribution of an interaction by the unit alone; erasure of a unit.
    Index(None, "unit_id", "exposed_at"),
    # Health and raw export of one experiment over time.
    Index(None, "experiment_id", "exposed_at"),
    postgresql_partition_by="RANGE (id)",
)

interaction = Table(
    "interaction",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("exposure_id", Uuid),
    Column("unit_id", Text),
    Column("kind", Text, nullable=False),
    Column("item_id", Text),
    Column("position", SmallInteger),
    Column("value", Numeric),
    _instant("occurred_at"),
    # Of the item, if the storefront tells it.
    Column("category", Text),
    # Where it happened, if not where its exposure was shown.
    Column("placement", Text),
    _recorded_at(),
    CheckConstraint("exposure_id IS NOT NULL OR unit_id IS NOT NULL", name="subject"),
    CheckConstraint("position >= 1", name="position"),
    # Attribution when the exposure comes after its interaction; orphans.
    Index(None, "exposure_id", postgresql_where=text("exposure_id IS NOT NULL")),
    # Attribution of an interaction by the unit alone.
    Index(
        None,
        "unit_id",
        "occurred_at",
        postgresql_where=text("exposure_id IS NULL"),
    ),
    postgresql_partition_by="RANGE (id)",
)

#: What a unit was shown, per epoch and variant; two variants here are a crossover.
unit_exposure = Table(
    "unit_exposure",
    metadata,
    Column("experiment_id", Integer, nullable=False),
    Column("unit_id", Text, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("variant", Text, nullable=False),
    Column("propensity", Double, nullable=False),
    Column("exposures", Integer, nullable=False),
    Column("fallback_exposures", Integer, nullable=False),
    # Of the first exposure, as is the propensity.
    Column("segment", Text),
    Column("context", JSONB, nullable=False),
    _instant("first_at"),
    _instant("last_at"),
    _recorded_at(),
    PrimaryKeyConstraint("experiment_id", "unit_id", "epoch", "variant"),
    # Sticky assignments made elsewhere since the last look.
    Index(None, "experiment_id", "recorded_at"),
)

#: Interaction i, known by its unit alone, counts for experiment e in phase p; see
#: `storage.events`.
attribution = Table(
    "attribution",
    metadata,
    Column("interaction_id", Uuid, nullable=False),
    Column("experiment_id", Integer, nullable=False),
    Column("phase", Integer, nullable=False),
    PrimaryKeyConstraint("interaction_id", "experiment_id", "phase"),
)

#: What a unit did, per phase (epoch of a bandit, 0 of an A/B test), kind, position (0:
#: none was told), category and placement ("": none is known).
unit_outcome = Table(
    "unit_outcome",
    metadata,
    Column("experiment_id", Integer, nullable=False),
    Column("unit_id", Text, nullable=False),
    Column("phase", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("position", SmallInteger, nullable=False),
    Column("category", Text, nullable=False),
    Column("placement", Text, nullable=False),
    Column("count", Integer, nullable=False),
    Column("value_sum", Numeric, nullable=False),
    _instant("first_at"),
    PrimaryKeyConstraint(
        "experiment_id",
        "unit_id",
        "phase",
        "kind",
        "position",
        "category",
        "placement",
    ),
)

#: Events that came in on a day (UTC), and those of them that were there already.
intake = Table(
    "intake",
    metadata,
    Column("day", Date, primary_key=True),
    Column("received", BigInteger, nullable=False),
    Column("known", BigInteger, nullable=False),
)

#: What a unit did on a day (UTC), whatever made it do so: what it did before it was
#: first shown an experiment is known from here.
unit_history = Table(
    "unit_history",
    metadata,
    Column("unit_id", Text, nullable=False),
    Column("day", Date, nullable=False),
    Column("kind", Text, nullable=False),
    Column("count", Integer, nullable=False),
    Column("value_sum", Numeric, nullable=False),
    PrimaryKeyConstraint("unit_id", "day", "kind"),
)

#: Kinds of interaction with columns in `unit_of_analysis`; a metric of another kind
#: reads `unit_outcome`.
SUMMARISED_KINDS = ("viewed", "click", "add_to_cart", "purchase", "dismiss")


def _summary(kind: str) -> list[Column[object]]:
    return [
        Column(f"{kind}_count", Integer),
        Column(f"{kind}_value", Double),
        _instant(f"{kind}_at", nullable=True),
        # At the experiment's own placement.
        _instant(f"{kind}_own_at", nullable=True),
        Column(f"{kind}_count_before", Integer),
        Column(f"{kind}_value_before", Double),
    ]


#: A row per unit of analysis, made from the three tables above by `storage.units`: a
#: unit of an A/B test or sticky bandit (phase 0), a unit's epoch of a bandit that
#: redraws. Variant, segment, propensity and context are of its first exposure.
unit_of_analysis = Table(
    "unit_of_analysis",
    metadata,
    Column("experiment_id", Integer, nullable=False),
    Column("unit_id", Text, nullable=False),
    Column("phase", Integer, nullable=False),
    Column("variant", Text, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("segment", Text),
    Column("propensity", Double, nullable=False),
    Column("exposures", Integer, nullable=False),
    Column("context", JSONB, nullable=False),
    _instant("first_at"),
    _instant("last_at"),
    # When it was first seen in another variant too.
    _instant("crossed_at", nullable=True),
    *(column for kind in SUMMARISED_KINDS for column in _summary(kind)),
    PrimaryKeyConstraint("experiment_id", "unit_id", "phase"),
    # Late events of the time before; erasure of a unit.
    Index(None, "unit_id"),
)

model_version = Table(
    "model_version",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("recommender", Text, nullable=False),
    Column("parameters", JSONB, nullable=False),
    Column("metrics", JSONB, nullable=False),
    Column("checklist", JSONB, nullable=False),
    Column("data_from", DateTime(timezone=True), nullable=False),
    Column("data_to", DateTime(timezone=True), nullable=False),
    Column("data_digest", Text, nullable=False),
    Column("code_version", Text, nullable=False),
    Column("artifact", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("status", Text, nullable=False),
    _instant("created_at"),
    Column("decided_by", Text),
    _instant("decided_at", nullable=True),
    Column("reason", Text),
    # Of units whose requests a shadow gets, what decides on it unasked, and how it
    # compared when it was decided.
    Column("shadow_share", Double),
    Column("shadow_rule", JSONB),
    Column("shadow_result", JSONB),
    # The version that served when it was trained, and what it was compared with.
    Column("parent", Integer),
    # What is kept of its data, for the next training to be compared with.
    Column("data_profile", JSONB(none_as_null=True)),
    UniqueConstraint("name", "version"),
    ForeignKeyConstraint(
        ["name", "parent"], ["model_version.name", "model_version.version"]
    ),
    CheckConstraint(
        "status IN ('candidate', 'rejected', 'shadow', 'live', 'retired')",
        name="status",
    ),
    CheckConstraint(
        "(status = 'shadow') = (shadow_share IS NOT NULL)"
        " AND shadow_share > 0 AND shadow_share <= 1",
        name="shadow_share",
    ),
    CheckConstraint("parent < version", name="parent"),
    # What a check rejected never serves, whoever asks. That a status follows only where
    # it may, and that facts of a version never change, is a trigger's; see migration 0010.
    CheckConstraint(
        "status IN ('candidate', 'rejected')"
        """ OR (sha256 <> '' AND NOT checklist @> '[{"passed": false}]')""",
        name="passed",
    ),
    # At most one live version of a model.
    Index(
        "uq_model_version_live",
        "name",
        unique=True,
        postgresql_where=text("status = 'live'"),
    ),
)

#: What a shadow would have shown, beside what was; `id` is that of the answer, which an
#: exposure has too. Removed once the version is decided on.
shadow_answer = Table(
    "shadow_answer",
    metadata,
    Column("version_id", Integer, ForeignKey("model_version.id"), nullable=False),
    Column("id", Uuid, nullable=False),
    Column("unit_id", Text, nullable=False),
    # How many items each had, how many both, and at which places the same one.
    Column("shown", SmallInteger, nullable=False),
    Column("made", SmallInteger, nullable=False),
    Column("common", SmallInteger, nullable=False),
    Column("same_places", ARRAY(SmallInteger), nullable=False),
    Column("shown_fallback", Boolean, nullable=False),
    Column("fallback", Boolean, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("error", Text),
    _instant("answered_at"),
    PrimaryKeyConstraint("version_id", "id"),
    # Erasure of a unit.
    Index(None, "unit_id"),
)

#: Every change: who did what to what, before and after.
audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("before", JSONB),
    Column("after", JSONB),
    Column("reason", Text),
    _recorded_at(),
    # The history of one thing.
    Index(None, "subject", "id"),
)

#: Who may ask; of a secret only its SHA-256 is here. Never deleted: the audit names them.
api_key = Table(
    "api_key",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("hash", Text, nullable=False),
    # Pages that may use it from a browser.
    Column("origins", ARRAY(Text), nullable=False),
    Column("per_second", Double),
    _instant("created_at"),
    _instant("expires_at", nullable=True),
    _instant("revoked_at", nullable=True),
    Column("used_on", Date),
)

#: Units that were erased: events from before, still on their way, are dropped.
erased_unit = Table(
    "erased_unit",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    _instant("erased_at"),
)

#: Months whose raw events were archived or dropped; their outcomes stay. Immutable.
retired_month = Table(
    "retired_month",
    metadata,
    # Its first day, UTC.
    Column("month", Date, primary_key=True),
    Column("exposures", BigInteger, nullable=False),
    Column("interactions", BigInteger, nullable=False),
    # No event from up to then is taken any more: it could count with rows that are gone.
    _instant("closed_until"),
    # Whose outcomes can't be computed again.
    Column("experiment_ids", ARRAY(Integer), nullable=False),
    # By table: file, rows and sha256; null when the rows were dropped for good.
    Column("archive", JSONB(none_as_null=True)),
    _recorded_at(),
)

#: What monitors measured of a variant in the 24 hours up to the last look on a day (UTC).
monitored_day = Table(
    "monitored_day",
    metadata,
    Column("experiment_id", Integer, ForeignKey("experiment.id"), nullable=False),
    Column("variant", Text, nullable=False),
    Column("day", Date, nullable=False),
    _instant("until"),
    Column("exposures", Integer, nullable=False),
    Column("measured", JSONB, nullable=False),
    Column("positions", JSONB, nullable=False),
    PrimaryKeyConstraint("experiment_id", "variant", "day"),
)

#: Something that calls for a look, from when it was raised until it was over; told once
#: at each end.
alert = Table(
    "alert",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("experiment_id", Integer, ForeignKey("experiment.id"), nullable=False),
    Column("monitor", Text, nullable=False),
    # A variant, a variant and a metric, or nothing for the whole experiment.
    Column("subject", Text, nullable=False),
    Column("value", Double, nullable=False),
    Column("threshold", Double, nullable=False),
    Column("reason", Text, nullable=False),
    _instant("raised_at"),
    _instant("resolved_at", nullable=True),
    Column("resolution", Text),
    _instant("raise_told_at", nullable=True),
    _instant("resolve_told_at", nullable=True),
    CheckConstraint(
        "(resolved_at IS NULL) = (resolution IS NULL)"
        " AND (resolved_at IS NOT NULL OR resolve_told_at IS NULL)",
        name="resolved",
    ),
    # At most one open alert about a thing, however many workers look.
    Index(
        "uq_alert_open",
        "experiment_id",
        "monitor",
        "subject",
        unique=True,
        postgresql_where=text("resolved_at IS NULL"),
    ),
    # What is still to be told.
    Index(
        "ix_alert_untold",
        "id",
        postgresql_where=text(
            "raise_told_at IS NULL OR"
            " (resolved_at IS NOT NULL AND resolve_told_at IS NULL)"
        ),
    ),
)
