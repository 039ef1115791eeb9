"""What the contract of tasks needs of each: a small recipe, and small data of its kind."""

from __future__ import annotations

import importlib

from reskit.tasks import TASKS

from . import detect
from .case import TaskCase

__all__ = ["CASES", "TaskCase"]

CASES: dict[str, TaskCase] = {name: importlib.import_module(f"{__name__}.{name}").CASE for name in TASKS}
"""By the task's name: a task without a module here has no contract, and importing this fails."""
CASES["detect_in_two_stages"] = detect.IN_TWO_STAGES
