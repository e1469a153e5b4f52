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
from experiment_service.reporting.segments import build_segments
from experiment_service.reporting.service import Reports
from experiment_service.reporting.values import (
    AttributeReport,
    BanditReport,
    Check,
    Comparison,
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
    "AttributeReport",
    "BanditReport",
    "Check",
    "Comparison",
    "EffectsDiffer",
    "EpochReport",
    "Facts",
    "Lag",
    "LevelReport",
    "ListedExperiment",
    "Look",
    "MetricReport",
    "MinuteCount",
    "Operations",
    "OverviewRow",
    "Posterior",
    "Report",
    "Reports",
    "SegmentsReport",
    "Series",
    "SeriesPoint",
    "Summary",
    "VariantFacts",
    "VariantResult",
    "build_report",
    "build_segments",
    "list_experiments",
    "operations",
    "overview",
]
