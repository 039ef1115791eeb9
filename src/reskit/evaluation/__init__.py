"""Evaluation: metrics, tables, plots and a report."""

from reskit.evaluation.run import Evaluation, evaluate, measure, summarise

__all__ = ["Evaluation", "evaluate", "measure", "summarise"]
