"""What the outputs of a detector mean, by the name the network gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from reskit.models.detection import Fcos
from reskit.models.faster_rcnn import FasterRcnn, grid_anchors
from reskit.registry import Registry
from reskit.tasks import faster_rcnn, fcos
from reskit.tasks.fcos import PADDING

__all__ = ["PADDING", "SCHEMES", "Scheme"]


class Scheme(NamedTuple):
    """How outputs are made into a loss, and into boxes.

    Attributes:
        places: what rows of the outputs refer to, of the size of the network's input and the strides.
        loss: of outputs, true boxes, places and strides; see `fcos_loss`.
        detections: of outputs, places and the extent of the image; see `fcos.detections`.
    """

    places: Callable[..., Tensor]
    loss: Callable[..., Tensor]
    detections: Callable[..., Tensor]


SCHEMES: Registry[Scheme] = Registry("scheme of detection")
SCHEMES.add(Fcos.scheme, Scheme(fcos.grid_points, fcos.fcos_loss, fcos.detections))
SCHEMES.add(FasterRcnn.scheme, Scheme(grid_anchors, faster_rcnn.rcnn_loss, faster_rcnn.detections))
