"""Tasks: one file each, registered by name."""

from reskit.tasks.audio import Audio
from reskit.tasks.autoencode import Autoencode
from reskit.tasks.base import TASKS, Answered, Batch, Feeding, Network, Task, TaskSettings
from reskit.tasks.classify import Classify
from reskit.tasks.denoise import Denoise
from reskit.tasks.detect import Detect
from reskit.tasks.segment import Segment
from reskit.tasks.superresolve import SuperResolve
from reskit.tasks.tabular import Tabular
from reskit.tasks.text import Text

__all__ = [
    "TASKS",
    "Answered",
    "Audio",
    "Autoencode",
    "Batch",
    "Classify",
    "Denoise",
    "Detect",
    "Feeding",
    "Network",
    "Segment",
    "SuperResolve",
    "Tabular",
    "Task",
    "TaskSettings",
    "Text",
]
