"""How well lists foretell what units had to do with later: temporal and full ranking.

Every item of the catalogue is ranked, never a sample of them, and the test lies after
the training in time. One evaluator for all recommenders.
"""

from recommenders.evaluation.held_out import HeldOut, hold_out
from recommenders.evaluation.intervals import Interval
from recommenders.evaluation.judge import (
    Evaluation,
    Judged,
    Repeats,
    Slice,
    difference,
    differences,
    evaluate,
    judge,
    summarise,
)

__all__ = [
    "Evaluation",
    "HeldOut",
    "Interval",
    "Judged",
    "Repeats",
    "Slice",
    "difference",
    "differences",
    "evaluate",
    "hold_out",
    "judge",
    "summarise",
]
