"""Reports: one value with every number of an experiment and how far to trust it.

Feeds dashboard, API and CLI alike. Reads, never writes; all judgement is in `analysis`,
all SQL in `storage`.
"""

from experiment_service.reporting.build import (
    build_report,
    list_experiments,
    operations,
    overview,
)
from experiment_service.reporting.journey import Journey, Place, Reach, Step
from experiment_service.reporting.models import (
    Figure,
    GateCheck,
    Judgement,
    ModelReport,
    Use,
    VersionReport,
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
from experiment_service.storage.counts import Lag, MinuteCount

__all__ = [
    "Advice",
    "AttributeReport",
    "BanditReport",
    "Check",
    "Comparison",
    "Days",
    "EffectsDiffer",
    "EpochReport",
    "Facts",
    "Figure",
    "GateCheck",
    "Journey",
    "Judgement",
    "Lag",
    "LevelReport",
    "ListedExperiment",
    "Look",
    "MetricReport",
    "MinuteCount",
    "ModelReport",
    "Operations",
    "OverviewRow",
    "Place",
    "Posterior",
    "Reach",
    "Report",
    "Reports",
    "SegmentsReport",
    "Series",
    "SeriesPoint",
    "Step",
    "Summary",
    "Use",
    "VariantFacts",
    "VariantResult",
    "VersionReport",
    "build_report",
    "build_segments",
    "list_experiments",
    "operations",
    "overview",
]
