"""Weights from files into our networks, with a report on every name."""

from reskit.weights.torch import KeyReport, load_into, load_state

__all__ = ["KeyReport", "load_into", "load_state"]
