"""Evaluation: metrics, tables, plots and a report."""

from reskit.evaluation.comparison import Comparison, compare
from reskit.evaluation.run import Evaluation, evaluate, measure, summarise

__all__ = ["Comparison", "Evaluation", "compare", "evaluate", "measure", "summarise"]
