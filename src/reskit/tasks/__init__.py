"""Tasks: one file each, registered by name."""

from reskit.tasks.base import TASKS, Answered, Batch, Feeding, Network, Task, TaskSettings
from reskit.tasks.classify import Classify
from reskit.tasks.denoise import Denoise

__all__ = ["TASKS", "Answered", "Batch", "Classify", "Denoise", "Feeding", "Network", "Task", "TaskSettings"]
