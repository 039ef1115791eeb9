"""Evaluation: metrics, tables, plots and a report."""

from reskit.evaluation.comparison import Comparison, compare
from reskit.evaluation.run import Evaluation, evaluate, measure, network_answers, open_as_trained, summarise

__all__ = [
    "Comparison",
    "Evaluation",
    "compare",
    "evaluate",
    "measure",
    "network_answers",
    "open_as_trained",
    "summarise",
]
