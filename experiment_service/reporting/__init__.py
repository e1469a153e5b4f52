"""Reports: one value with every number of an experiment and how far to trust it.

Feeds dashboard, API and CLI alike. Reads, never writes; all judgement is in `analysis`,
all SQL in `storage`.
"""

from experiment_service.reporting.build import (
    build_report,
    glance,
    list_experiments,
    operations,
    overview,
)
from experiment_service.reporting.examples import ExampleItem, ExampleList
from experiment_service.reporting.journey import Journey, Place, Reach, Step
from experiment_service.reporting.models import (
    Figure,
    GateCheck,
    Judgement,
    ModelReport,
    ShadowReport,
    Use,
    VersionReport,
)
from experiment_service.reporting.monitors import (
    Alerts,
    build_alerts,
    build_monitored,
)
from experiment_service.reporting.segments import build_segments
from experiment_service.reporting.service import Reports
from experiment_service.reporting.values import (
    Advice,
    AttributeReport,
    BanditReport,
    Check,
    Comparison,
    Days,
    EffectsDiffer,
    EpochReport,
    Facts,
    Group,
    LevelReport,
    ListedExperiment,
    Look,
    MetricReport,
    Operations,
    OverviewRow,
    Posterior,
    Report,
    SegmentsReport,
    Series,
    SeriesPoint,
    Summary,
    VariantFacts,
    VariantResult,
)
from experiment_service.storage.alerts import Alert
from experiment_service.storage.counts import Lag, MinuteCount
from experiment_service.storage.monitors import MonitoredDay, PlaceCount

__all__ = [
    "Advice",
    "Alert",
    "Alerts",
    "AttributeReport",
    "BanditReport",
    "Check",
    "Comparison",
    "Days",
    "EffectsDiffer",
    "EpochReport",
    "ExampleItem",
    "ExampleList",
    "Facts",
    "Figure",
    "GateCheck",
    "Group",
    "Journey",
    "Judgement",
    "Lag",
    "LevelReport",
    "ListedExperiment",
    "Look",
    "MetricReport",
    "MinuteCount",
    "ModelReport",
    "MonitoredDay",
    "Operations",
    "OverviewRow",
    "Place",
    "PlaceCount",
    "Posterior",
    "Reach",
    "Report",
    "Reports",
    "SegmentsReport",
    "Series",
    "SeriesPoint",
    "ShadowReport",
    "Step",
    "Summary",
    "Use",
    "VariantFacts",
    "VariantResult",
    "VersionReport",
    "build_alerts",
    "build_monitored",
    "build_report",
    "build_segments",
    "glance",
    "list_experiments",
    "operations",
    "overview",
]
