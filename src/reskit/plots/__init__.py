"""Pictures of an evaluation and of training, in one house style."""

from reskit.plots.autoencode import heat, score_histogram, tiles
from reskit.plots.boxes import draw_boxes, precision_recall
from reskit.plots.dense import panels
from reskit.plots.evaluation import confusion, image_grid, reliability, threshold_curve
from reskit.plots.masks import indexed, mask_panels, overlay, palette
from reskit.plots.training import convergence, training_curves

__all__ = [
    "confusion",
    "convergence",
    "draw_boxes",
    "heat",
    "image_grid",
    "indexed",
    "mask_panels",
    "overlay",
    "palette",
    "panels",
    "precision_recall",
    "reliability",
    "score_histogram",
    "threshold_curve",
    "tiles",
    "training_curves",
]
