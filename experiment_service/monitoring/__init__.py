"""Watching what serves: measure it by day, raise alerts, tell people once.

Above the other use cases, as sample ratios and guardrails are judged by reports.
"""

from experiment_service.monitoring.telling import tell
from experiment_service.monitoring.watching import watch

__all__ = ["tell", "watch"]
