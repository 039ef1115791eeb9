"""Residual networks from labelled data to a monitored service."""

__version__ = "0.1.0"
