"""Tasks: one file each, registered by name."""

from reskit.tasks.base import TASKS, Batch, Task
from reskit.tasks.classify import Classify

__all__ = ["TASKS", "Batch", "Classify", "Task"]
