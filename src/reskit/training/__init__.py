"""Training: recipe and data in, bundle out."""

from reskit.training.outcome import TrainResult
from reskit.training.run import train

__all__ = ["TrainResult", "train"]
