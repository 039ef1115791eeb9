"""Faster R-CNN on a feature pyramid over any residual network of ours; the layers are torchvision's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, nms, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from reskit.models.base import Rename, check_integer
from reskit.models.detection import Detector
from reskit.models.registry import register_family

__all__ = ["BOXES", "PROPOSALS", "FasterRcnn", "grid_anchors"]

RATIOS = (0.5, 1.0, 2.0)
"""Height by width of the anchors at every place."""
ANCHOR = 8
"""Side of an anchor, in strides of its level: 32 pixels at stride 4."""
PROPOSALS, BOXES = BoxCoder((1.0, 1.0, 1.0, 1.0)), BoxCoder((10.0, 10.0, 5.0, 5.0))
"""How differences from anchors, and from proposals, are written (Ren et al., equation 2)."""
OVERLAP = 0.7
"""Of two proposals of a level with a larger IoU the better one stays."""
POOLED, SAMPLES = 7, 2
"""Side of the map cut for a proposal, and points looked at along each side of a cell of it."""
CANONICAL = 14
"""A proposal is cut from the level whose stride is about its side by this: 224 pixels at stride 16."""
SMALLEST = 1e-3
"""Side below which a proposal is none, in pixels."""


def grid_anchors(size: tuple[int, int], levels: Sequence[int]) -> Tensor:
    """Return the anchors of a pyramid, `(anchors, 4)` as x1, y1, x2, y2 in pixels of the network's input.

    Level by level, row by row, and at each place in the order of `RATIOS`.

    Args:
        size: `(H, W)` of the network's input.
        levels: stride of each level.
    """
    found = []
    tall = torch.tensor(RATIOS).sqrt()
    for stride in levels:
        sides = ANCHOR * stride * torch.stack([1 / tall, tall], 1)  # width, height
        around = (torch.cat([-sides, sides], 1) / 2).round()
        rows, columns = (torch.arange(-(-side // stride)) * stride for side in size)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        places = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
        found.append((places + around).reshape(-1, 4))
    return torch.cat(found)


class _TwoStages(nn.Module):
    """A feature pyramid, the network that proposes boxes, and the one that looks at each of them."""

    def __init__(
        self,
        channels: Sequence[int],
        levels: Sequence[int],
        *,
        width: int,
        hidden: int,
        classes: int,
        **most: int,
    ) -> None:
        super().__init__()
        self.levels, self.most = list(levels), most
        self.fpn = FeaturePyramidNetwork(list(channels), width, extra_blocks=LastLevelMaxPool())
        self.rpn = RPNHead(width, len(RATIOS))
        self.box_head = TwoMLPHead(width * POOLED**2, hidden)
        self.box_predictor = FastRCNNPredictor(hidden, classes + 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return what is said of the proposals, and while training of the anchors, of the body's maps."""
        levels = list(self.fpn(OrderedDict((str(place), level) for place, level in enumerate(maps))).values())
        scores, changes = (
            [_by_place(level, len(RATIOS)).float() for level in kind] for kind in self.rpn(levels)
        )
        height, width = (self.levels[0] * side for side in levels[0].shape[-2:])
        anchors = [grid_anchors((height, width), [stride]).to(maps[0].device) for stride in self.levels]
        with torch.no_grad():
            proposals = self.propose(scores, changes, anchors, (height, width))
        said = self.box_predictor(self.box_head(self.cut(levels[: len(maps)], proposals)))
        rows = torch.cat([proposals.flatten(0, 1), *(part.float() for part in said)], 1)
        rows = rows.view(proposals.shape[0], -1, rows.shape[1])
        if not self.training:
            return rows
        whole = torch.cat([torch.cat(scores, 1), torch.cat(changes, 1)], 2).flatten(1)
        padded = nn.functional.pad(whole, (0, -whole.shape[1] % rows.shape[2]))
        return torch.cat([rows, padded.view(rows.shape[0], -1, rows.shape[2])], 1)

    def propose(
        self,
        scores: Sequence[Tensor],
        changes: Sequence[Tensor],
        anchors: Sequence[Tensor],
        size: tuple[int, int],
    ) -> Tensor:
        """Return the best boxes of each image, `(N, proposals, 4)`, the best first, then zeros."""
        boxes, best = [], []
        for score, change, anchor in zip(scores, changes, anchors, strict=True):
            top, order = score[..., 0].topk(min(self.most["candidates"], score.shape[1]))
            picked = change.gather(1, order[..., None].expand(-1, -1, 4))
            places = anchor[order]
            boxes.append(PROPOSALS.decode_single(picked.flatten(0, 1), places.flatten(0, 1)).view_as(places))
            best.append(top)
        box, score = torch.cat(boxes, 1), torch.cat(best, 1)
        limits = box.new_tensor([size[1], size[0], size[1], size[0]])
        box = torch.minimum(box.clamp(min=0), limits)
        score = score.masked_fill((box[..., 2:] - box[..., :2]).amin(-1) < SMALLEST, -torch.inf)
        # Boxes of other images and levels are put so far apart that they do not meet, to be sifted at once.
        level = torch.cat([torch.full_like(part, float(place)) for place, part in enumerate(best)], 1)
        image = torch.arange(box.shape[0], device=box.device)[:, None]
        apart = (image * len(best) + level) * (max(size) + 1)
        if not box.is_meta:  # without values nothing can be sifted, and shapes stay the same
            kept = nms((box + apart[..., None]).flatten(0, 1), score.flatten(), OVERLAP)
            stays = torch.zeros_like(score).flatten().index_fill(0, kept, 1.0).view_as(score)
            score = torch.where(stays > 0, score, -torch.inf)
        top, order = score.topk(min(self.most["proposals"], score.shape[1]))
        found = box.gather(1, order[..., None].expand(-1, -1, 4))
        return torch.where(top.isfinite()[..., None], found, 0.0)

    def cut(self, levels: Sequence[Tensor], proposals: Tensor) -> Tensor:
        """Return maps `(N * proposals, width, 7, 7)`, each cut from the level of the proposal's size."""
        boxes = proposals.flatten(0, 1)
        image = torch.arange(proposals.shape[0], device=boxes.device, dtype=boxes.dtype)
        image = image[:, None].expand(proposals.shape[:2]).reshape(-1, 1)
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt() / CANONICAL
        where = torch.cat([image, boxes], 1)
        maps: Tensor | None = None
        for stride, level in zip(self.levels, levels, strict=False):  # none is cut from the last
            there = roi_align(level.float(), where, POOLED, 1 / stride, SAMPLES)
            reached = (side * (1 + 1e-6) >= stride)[:, None, None, None]
            maps = there if maps is None else torch.where(reached, there, maps)
        assert maps is not None
        return maps


def _by_place(level: Tensor, anchors: int) -> Tensor:
    """Return `(N, places * anchors, values)` of `(N, anchors * values, h, w)`."""
    count, channels, height, width = level.shape
    parts = level.reshape(count, anchors, channels // anchors, height, width)
    return parts.permute(0, 3, 4, 1, 2).reshape(count, height * width * anchors, channels // anchors)


class FasterRcnn(Detector):
    """A two-stage detector: boxes are proposed by a feature pyramid's points, then each is looked at.

    :meth:`forward` returns `(N, proposals, 4 + 5 (classes + 1))`: the proposal as x1, y1, x2, y2 in pixels,
    zeros where there is none; logits of the background and the classes; for each of these the difference from
    the proposal to the object's box, as `BOXES` writes it. While it trains, rows follow that hold
    `(anchors, 5)`, one value after the other: the logit and the difference of each of `grid_anchors`.

    Sources: Ren et al., Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, 2015;
    Lin et al., Feature Pyramid Networks for Object Detection, 2017. Layers and their names are torchvision's.

    Args:
        backbone: name of the body, any of `list_models(task="classify")`.
        backbone_arguments: what differs from its published form.
        width: channels of the pyramid.
        hidden: width of the two layers that look at a proposal.
        candidates: anchors of each level and image that are sifted for proposals.
        proposals: boxes of each image that are looked at.
        residual: False builds the body's plain twin.
        zero_init: whether every block of the body starts as its shortcut.
        num_classes: kinds of objects; 0 for the body's pooled vector.
        in_channels: channels of the images.
        features_only: whether :meth:`forward` gives the body's maps.
    """

    logits_name: ClassVar[str] = "detector.box_predictor.cls_score"
    background: ClassVar[int] = 1
    renames: ClassVar[Sequence[Rename]] = (
        *Detector.renames,
        (r"^rpn\.head\.", "detector.rpn."),
        (r"^detector\.rpn\.conv\.(weight|bias)$", r"detector.rpn.conv.0.0.\1"),
        (r"^roi_heads\.", "detector."),
    )
    from_body: ClassVar[int] = 4  # C2 to C5 of a ResNet; one more level follows
    scheme: ClassVar[str] = "faster_rcnn"

    def __init__(
        self,
        *,
        backbone: str,
        backbone_arguments: Mapping[str, Any] | None = None,
        width: int = 256,
        hidden: int = 1024,
        candidates: int = 1000,
        proposals: int = 300,
        residual: bool = True,
        zero_init: bool = False,
        num_classes: int = 90,
        in_channels: int = 3,
        features_only: bool = False,
    ) -> None:
        for name, value in (
            ("width", width),
            ("hidden", hidden),
            ("candidates", candidates),
            ("proposals", proposals),
        ):
            check_integer(name, value, minimum=1)
        super().__init__(
            backbone=backbone,
            backbone_arguments=backbone_arguments,
            residual=residual,
            zero_init=zero_init,
            num_classes=num_classes,
            in_channels=in_channels,
            features_only=features_only,
        )
        self.width, self.hidden = width, hidden
        self.most = {"candidates": candidates, "proposals": proposals}
        self.levels = [*self.used, 2 * self.used[-1]]
        self.finish(self.body.channels, self.body.strides)

    def make_head(self, num_classes: int) -> nn.Module:
        """Return a new pyramid with both stages."""
        return _TwoStages(
            self.body.channels[-self.from_body :],
            self.levels,
            width=self.width,
            hidden=self.hidden,
            classes=num_classes,
            **self.most,
        )


_SOURCE = (
    "Ren et al., Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, 2015,"
    " arXiv:1506.01497"
)

register_family(
    FasterRcnn,
    {
        f"fasterrcnn_{backbone}_fpn": ({"backbone": backbone}, parameters, _SOURCE)
        for backbone, parameters in (
            ("resnet18", 28_739_606),
            ("resnet34", 38_847_766),
            ("resnet50", 41_808_406),
            ("resnet101", 60_800_534),
            ("mobilenet_v2", 19_907_798),
        )
    },
    num_classes=90,
    input_size=(3, 512, 512),
    task="detect",
)
