"""Weights of every common format into our networks, with a report on every name."""

from reskit.weights.checkpoint import READERS, Checkpoint, Reader
from reskit.weights.graph import Graph
from reskit.weights.keras import write_keras_h5
from reskit.weights.loading import Weights, as_checkpoint, load_into, read_checkpoint
from reskit.weights.report import KeyReport
from reskit.weights.torch import load_state
from reskit.weights.tracing import trace

__all__ = [
    "READERS",
    "Checkpoint",
    "Graph",
    "KeyReport",
    "Reader",
    "Weights",
    "as_checkpoint",
    "load_into",
    "load_state",
    "read_checkpoint",
    "trace",
    "write_keras_h5",
]
