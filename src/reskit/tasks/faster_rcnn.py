"""What the outputs of a Faster R-CNN mean: the loss they are trained by, the boxes they say.

Source: Ren et al., Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, 2015,
sections 3.1 and 3.2; thresholds and numbers of samples are those of torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from reskit.models.faster_rcnn import BOXES, PROPOSALS
from reskit.tasks.fcos import FLOOR, PADDING

__all__ = ["detections", "rcnn_loss", "split_outputs"]

BETA = 1 / 9
"""Where the loss of a box goes over from a parabola to a line."""
SMALLEST = 1e-2
"""Side below which a box is none, in pixels."""

_match_anchors = Matcher(0.7, 0.3, allow_low_quality_matches=True)
_match_proposals = Matcher(0.5, 0.5, allow_low_quality_matches=False)
_sample_anchors = BalancedPositiveNegativeSampler(256, 0.5)
_sample_proposals = BalancedPositiveNegativeSampler(512, 0.25)


def split_outputs(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return proposals `(..., 4)`, logits `(..., K + 1)` and changes `(..., K + 1, 4)`; 0 is background."""
    classes = (rows.shape[-1] - 4) // 5
    proposals, logits, changes = torch.split(rows, [4, classes, 4 * classes], -1)
    return proposals, logits, changes.reshape(*changes.shape[:-1], classes, 4)


def rcnn_loss(outputs: Tensor, target: Tensor, anchors: Tensor, levels: Sequence[int]) -> Tensor:
    """Return cross-entropy and smooth L1 of the anchors and of the proposals, summed.

    Of each image 256 anchors are drawn, half of them on objects where there are so many, and 512 proposals, a
    quarter on objects; by torch's global generator. True boxes are not put among the proposals, which the
    network makes without having seen them.

    Args:
        outputs: `(N, rows, 4 + 5 (K + 1))` of the training network.
        target: `(N, M, 5)`: x1, y1, x2, y2 in pixels of the network's input, class; padded by class -1.
        anchors: `(A, 4)` of `grid_anchors`.
        levels: not used here.
    """
    anchors = anchors.to(outputs.device)
    count, _, width = outputs.shape
    proposed = outputs.shape[1] - -(-5 * len(anchors) // width)
    said = outputs[:, proposed:].flatten(1)[:, : 5 * len(anchors)].view(count, -1, 5)
    first, second = [], []
    for image, padded in enumerate(target):
        true = padded[padded[:, 4] >= 0]
        first.append(_of_anchors(said[image, :, 0], said[image, :, 1:], true, anchors))
        second.append(_of_proposals(outputs[image, :proposed], true))
    return _mean(first) + _mean(second)


_Losses = tuple[Tensor, Tensor, int]
"""Sums of the losses of classes and of boxes, and over how many."""


def _mean(losses: Sequence[_Losses]) -> Tensor:
    total: Tensor = sum(kind + box for kind, box, _ in losses)  # type: ignore[assignment]
    return total / max(1, sum(number for _, _, number in losses))


def _of_anchors(objectness: Tensor, changes: Tensor, true: Tensor, anchors: Tensor) -> _Losses:
    label, which = _matched(_match_anchors, true, anchors)
    label = label.clamp(max=1)
    on, off = (places[0].nonzero()[:, 0] for places in _sample_anchors([label]))
    drawn = torch.cat([on, off])
    kind = F.binary_cross_entropy_with_logits(
        objectness[drawn], label[drawn].to(objectness.dtype), reduction="sum"
    )
    wanted = PROPOSALS.encode_single(true[which[on], :4], anchors[on])
    return kind, F.smooth_l1_loss(changes[on], wanted, beta=BETA, reduction="sum"), len(drawn)


def _of_proposals(rows: Tensor, true: Tensor) -> _Losses:
    proposals, logits, changes = split_outputs(rows)
    there = (proposals[:, 2] > proposals[:, 0]).nonzero()[:, 0]
    proposals, logits, changes = proposals[there], logits[there], changes[there]
    label, which = _matched(_match_proposals, true, proposals)
    on, off = (places[0].nonzero()[:, 0] for places in _sample_proposals([label]))
    drawn = torch.cat([on, off])
    kind = F.cross_entropy(logits[drawn], label[drawn], reduction="sum")
    wanted = BOXES.encode_single(true[which[on], :4], proposals[on])
    said = changes[on, label[on]]
    return kind, F.smooth_l1_loss(said, wanted, beta=BETA, reduction="sum"), len(drawn)


def _matched(matcher: Matcher, true: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return each box's class from 1, 0 for background, -1 where it learns nothing; and its true box."""
    if not len(true) or not len(boxes):
        nothing = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return nothing, nothing
    which = matcher(box_iou(true[:, :4], boxes))
    label = true[which.clamp(min=0), 4].long() + 1
    label[which == matcher.BELOW_LOW_THRESHOLD] = 0
    label[which == matcher.BETWEEN_THRESHOLDS] = -1
    return label, which.clamp(min=0)


def detections(
    outputs: Tensor, anchors: Tensor, extent: tuple[int, int], *, overlap: float, most: int
) -> Tensor:
    """Return the boxes that outputs say, best first: `(N, most, 6)`, padded by class -1.

    A score is the class's probability. Outputs that are not finite give boxes that are not, rather than none.

    Args:
        outputs: `(N, proposals, 4 + 5 (K + 1))` of the network.
        anchors: not used here: the network has put its proposals in places.
        extent: `(h, w)` of what is image in the network's input: boxes end there.
        overlap: of two boxes of a class whose IoU is larger the better one stays.
        most: boxes an image.

    Returns:
        x1, y1, x2, y2 in pixels of the network's input, score, class.
    """
    proposals, logits, changes = split_outputs(outputs.float())
    found = outputs.new_zeros((len(outputs), most, 6), dtype=torch.float32)
    found[..., 5] = PADDING
    for image in range(len(outputs)):
        if not outputs[image].isfinite().all():
            found[image] = torch.nan
            continue
        scores = logits[image].softmax(-1)[:, 1:]
        place, label = (scores > FLOOR).nonzero(as_tuple=True)
        boxes = BOXES.decode_single(changes[image, place, label + 1], proposals[image, place])
        boxes = clip_boxes_to_image(boxes, extent)
        large = (boxes[:, 2:] - boxes[:, :2]).amin(1) >= SMALLEST
        boxes, score, label = boxes[large], scores[place, label][large], label[large]
        kept = batched_nms(boxes, score, label, overlap)[:most]
        rows = torch.cat([boxes[kept], score[kept, None], label[kept, None].float()], 1)
        found[image, : len(rows)] = rows
    return found
