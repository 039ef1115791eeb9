"""Errors a user can mend: each says what was wrong, where, and what to do.

Anything raised from here is shown by the command line as one line and exit code 1.
Everything else is a bug in reskit and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BackendError",
    "BundleError",
    "ConfigError",
    "DataError",
    "InputError",
    "InterruptedRunError",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "ReskitError",
    "ServiceError",
    "TrainingError",
    "UnknownNameError",
    "WeightsError",
    "did_you_mean",
]


class ReskitError(Exception):
    """Base of every error that is the user's to mend."""


class ConfigError(ReskitError):
    """A recipe, an option or an argument is not acceptable."""


class DataError(ReskitError):
    """The data given cannot be read or does not make sense for the task."""


class ModelError(ReskitError):
    """A model cannot be built as asked."""


class WeightsError(ReskitError):
    """A weights file cannot be read or does not fit the model."""


class BundleError(ReskitError):
    """A bundle is missing a file, was altered, or was written by something else."""


class BackendError(ReskitError):
    """A network cannot be written for a backend, or what was written cannot be run."""


class InputError(ReskitError):
    """Arrays given to a runner do not fit its signature."""


class ServiceError(ReskitError):
    """A service cannot be reached, or is not one of reskit."""


class TrainingError(ReskitError):
    """Training cannot start or cannot go on."""


class OutputError(ReskitError):
    """A file cannot be written: no space, no permission, a read-only place."""


class InterruptedRunError(ReskitError):
    """Training was asked to stop; its state is saved and it can be resumed."""


class MissingExtraError(ReskitError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: run `pip install 'reskit[{extra}]'`")


class UnknownNameError(ReskitError):
    """A name is not registered; the message carries the nearest known names."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown {kind} {name!r}{did_you_mean(name, known)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'a' or 'b'?"``, or the known words when none is near.

    Args:
        word: what the user wrote.
        known: what would have been accepted.
    """
    options = sorted(known)
    near = difflib.get_close_matches(word, options, n=3, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    if not options:
        return "; none is known"
    shown = ", ".join(options[:12]) + (", ..." if len(options) > 12 else "")
    return f"; known: {shown}"
