"""Evaluation: metrics, tables, plots and a report."""

from reskit.evaluation.comparison import Comparison, compare
from reskit.evaluation.run import (
    Evaluation,
    assess,
    evaluate,
    held_out_loader,
    measure,
    network_answers,
    open_as_trained,
)

__all__ = [
    "Comparison",
    "Evaluation",
    "assess",
    "compare",
    "evaluate",
    "held_out_loader",
    "measure",
    "network_answers",
    "open_as_trained",
]
