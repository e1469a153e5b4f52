"""Train a recommender, judge it, publish its lists, and let it serve if it may.

All computing happens before the one transaction that numbers, publishes and decides, so
a training that fails, is rejected or dies changes nothing that serves. A data directory
belongs to one database: folders of versions that the database does not know are removed.
"""

from experiment_service.training.data import (
    load_catalogue,
    load_interactions,
    pseudonymised,
)
from experiment_service.training.pipeline import (
    Pipeline,
    find_pipelines,
    pipeline_schema,
    read_pipeline,
)
from experiment_service.training.releasing import Release, Surroundings, release
from experiment_service.training.run import train
from experiment_service.training.search import search_parameters

__all__ = [
    "Pipeline",
    "Release",
    "Surroundings",
    "find_pipelines",
    "load_catalogue",
    "load_interactions",
    "pipeline_schema",
    "pseudonymised",
    "read_pipeline",
    "release",
    "search_parameters",
    "train",
]
