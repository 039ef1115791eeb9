"""What the outputs of an FCOS network mean: its points, the loss they are trained by, the boxes they say.

Source: Tian et al., FCOS: A Simple and Strong Anchor-free Object Detector, 2020, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image, generalized_box_iou_loss, sigmoid_focal_loss

__all__ = ["FLOOR", "assign", "detections", "fcos_loss", "grid_points", "split_outputs"]

RANGE = 8
"""A level finds objects whose farthest side is up to so many of its strides away, beyond the level below."""
RADIUS = 1.5
"""Points learn that lie within so many strides of an object's centre."""
FLOOR = 0.05
"""Least score of a detection; COCO's metrics look at the whole order of scores."""
CANDIDATES = 1000
"""Points with the best scores that are looked at, of each image."""
PADDING = -1.0
"""The class of rows that are no box."""


@lru_cache(maxsize=16)
def grid_points(size: tuple[int, int], levels: tuple[int, ...]) -> Tensor:
    """Return the points of a pyramid: x, y and stride in pixels, `(points, 3)`; in the order of the outputs.

    They lie at multiples of the stride, where the receptive fields of padded convolutions have their centres.

    Args:
        size: `(H, W)` of the network's input.
        levels: stride of each level.
    """
    found = []
    for stride in levels:
        rows, columns = (torch.arange(-(-side // stride)) * stride for side in size)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        found.append(torch.stack([x, y, torch.full_like(x, stride)], -1).reshape(-1, 3))
    return torch.cat(found).float()


def split_outputs(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits `(N, A, K)`, distances `(N, A, 4)` and centre-ness `(N, A)` of `(N, A, K + 5)`."""
    return outputs[..., :-5], outputs[..., -5:-1], outputs[..., -1]


def boxes_of(points: Tensor, distances: Tensor) -> Tensor:
    """Return boxes `(..., A, 4)` as x1, y1, x2, y2 of distances in strides `(..., A, 4)`."""
    x, y, stride = points.unbind(-1)
    left, top, right, bottom = (distances * stride[..., None]).unbind(-1)
    return torch.stack([x - left, y - top, x + right, y + bottom], -1)


def assign(points: Tensor, boxes: Tensor, levels: Sequence[int]) -> Tensor:
    """Return which box each point learns, -1 for none, `(A,)`: of several the smallest.

    Args:
        points: `(A, 3)` of `grid_points`.
        boxes: `(M, 4)`.
        levels: stride of each level.
    """
    if not len(boxes):
        return torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    x, y, stride = (values[:, None] for values in points.unbind(-1))
    x1, y1, x2, y2 = boxes.unbind(-1)
    sides = torch.stack([x - x1, y - y1, x2 - x, y2 - y], -1)  # (A, M, 4)
    farthest = sides.amax(-1)
    above = (farthest > RANGE / 2 * stride) | (stride == min(levels))
    below = (farthest < RANGE * stride) | (stride == max(levels))
    off_centre = torch.maximum((x - (x1 + x2) / 2).abs(), (y - (y1 + y2) / 2).abs())
    may = (sides.amin(-1) > 0) & above & below & (off_centre < RADIUS * stride)
    area = ((x2 - x1) * (y2 - y1)).expand_as(may)
    smallest, which = torch.where(may, area, torch.inf).min(1)
    return torch.where(smallest.isfinite(), which, -1)


def fcos_loss(outputs: Tensor, target: Tensor, points: Tensor, levels: Sequence[int]) -> Tensor:
    """Return focal loss of the classes, GIoU loss of the boxes and cross-entropy of centre-ness, summed.

    Each is a sum over the points of all images, divided by the number of those that learn an object.

    Args:
        outputs: `(N, A, K + 5)` of the network.
        target: `(N, M, 5)`: x1, y1, x2, y2 in pixels of the network's input, class; padded by class -1.
        points: `(A, 3)` of `grid_points`.
        levels: stride of each level.
    """
    points = points.to(outputs.device)
    logits, distances, centreness = split_outputs(outputs)
    truth = torch.zeros_like(logits)
    images, places, wanted = [], [], []
    for number, padded in enumerate(target):
        rows = padded[padded[:, 4] >= 0]
        which = assign(points, rows[:, :4], levels)
        place = which.ge(0).nonzero()[:, 0]
        boxes = rows[which[place]]
        truth[number, place, boxes[:, 4].long()] = 1.0
        images.append(torch.full_like(place, number))
        places.append(place)
        wanted.append(boxes[:, :4])
    image, place, boxes = torch.cat(images), torch.cat(places), torch.cat(wanted)
    said = boxes_of(points[place], distances[image, place])
    losses = (
        sigmoid_focal_loss(logits, truth, reduction="sum"),
        generalized_box_iou_loss(said, boxes, reduction="sum"),
        F.binary_cross_entropy_with_logits(
            centreness[image, place], _centreness(points[place], boxes), reduction="sum"
        ),
    )
    total: Tensor = sum(losses, start=outputs.new_zeros(())) / max(1, len(place))
    return total


def _centreness(points: Tensor, boxes: Tensor) -> Tensor:
    """Return how central points lie in their boxes, 1 in the middle and 0 at the border (equation 3)."""
    x, y, _ = points.unbind(-1)
    x1, y1, x2, y2 = boxes.unbind(-1)
    across, down = torch.stack([x - x1, x2 - x]), torch.stack([y - y1, y2 - y])
    return (across.amin(0) / across.amax(0) * down.amin(0) / down.amax(0)).sqrt()


def detections(
    outputs: Tensor, points: Tensor, extent: tuple[int, int], *, overlap: float, most: int
) -> Tensor:
    """Return the boxes that outputs say, best first: `(N, most, 6)`, padded by class -1.

    A score is the geometric mean of a class's probability and the centre-ness. Outputs that are not finite
    give boxes that are not, rather than none.

    Args:
        outputs: `(N, A, K + 5)` of the network.
        points: `(A, 3)` of `grid_points`.
        extent: `(h, w)` of what is image in the network's input: boxes end there.
        overlap: of two boxes of a class whose IoU is larger the better one stays.
        most: boxes an image.

    Returns:
        x1, y1, x2, y2 in pixels of the network's input, score, class.
    """
    points = points.to(outputs.device)
    logits, distances, centreness = split_outputs(outputs.float())
    found = outputs.new_zeros((len(outputs), most, 6), dtype=torch.float32)
    found[..., 5] = PADDING
    for image in range(len(outputs)):
        scores = (logits[image].sigmoid() * centreness[image].sigmoid()[:, None]).sqrt().flatten()
        if not outputs[image].isfinite().all():
            found[image] = torch.nan
            continue
        scores, order = scores.topk(min(CANDIDATES, len(scores)))
        order, scores = order[scores > FLOOR], scores[scores > FLOOR]
        place, label = order // logits.shape[2], order % logits.shape[2]
        boxes = clip_boxes_to_image(boxes_of(points[place], distances[image, place]), extent)
        kept = batched_nms(boxes, scores, label, overlap)[:most]
        rows = torch.cat([boxes[kept], scores[kept, None], label[kept, None].float()], 1)
        found[image, : len(rows)] = rows
    return found
