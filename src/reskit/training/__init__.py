"""Training: recipe and data in, bundle out."""

from reskit.training.run import TrainResult, train

__all__ = ["TrainResult", "train"]
