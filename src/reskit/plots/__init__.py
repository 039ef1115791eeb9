"""Pictures of an evaluation and of training, in one house style."""

from reskit.plots.dense import panels
from reskit.plots.evaluation import confusion, image_grid, reliability
from reskit.plots.training import convergence, training_curves

__all__ = ["confusion", "convergence", "image_grid", "panels", "reliability", "training_curves"]
