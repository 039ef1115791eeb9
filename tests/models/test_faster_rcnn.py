"""Faster R-CNN held against torchvision's, which has the same layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import reskit
from reskit.models import create_model
from reskit.models.faster_rcnn import grid_anchors
from reskit.tasks import faster_rcnn
from reskit.tasks.faster_rcnn import detections, rcnn_loss, split_outputs
from reskit.weights import load_into

CLASSES, SIDE = 3, 256
MOST = {"candidates": 200, "proposals": 150}


def theirs() -> FasterRCNN:
    """Build torchvision's Faster R-CNN on a ResNet-18, with heads that say something."""
    torch.manual_seed(0)
    body = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    settings = {
        f"rpn_{when}_nms_top_n_{phase}": MOST[name]
        for when, name in (("pre", "candidates"), ("post", "proposals"))
        for phase in ("train", "test")
    }
    unscaled = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    model = FasterRCNN(
        body, CLASSES + 1, min_size=SIDE, max_size=SIDE, box_nms_thresh=0.6, **settings, **unscaled
    )
    for name, parameter in [*model.rpn.named_parameters(), *model.roi_heads.named_parameters()]:
        if "cls_logits" in name or "cls_score" in name or "bbox_pred" in name:
            nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[FasterRCNN, nn.Module]:
    reference = theirs()
    path = tmp_path_factory.mktemp("weights") / "faster.safetensors"
    save_file(reference.state_dict(), path)
    ours = create_model("fasterrcnn_resnet18_fpn", num_classes=CLASSES, **MOST)
    report = load_into(ours, path)
    assert set(report.matched) == set(ours.state_dict())
    return reference, ours


def images(side: int = SIDE) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def anchors(model: nn.Module) -> Tensor:
    return grid_anchors((SIDE, SIDE), model.levels)


def test_the_boxes_are_torchvisions(pair: tuple[FasterRCNN, nn.Module]) -> None:
    reference, ours = pair[0].eval(), pair[1].eval()
    with torch.no_grad():
        expected = reference(list(images()))
        outputs = ours(images())
    assert outputs.shape == (2, MOST["proposals"], 4 + 5 * (CLASSES + 1))
    found = detections(outputs, anchors(ours), (SIDE, SIDE), overlap=0.6, most=100)
    for rows, image in zip(found, expected, strict=True):
        count = len(image["scores"])
        assert count > 20
        torch.testing.assert_close(rows[:count, :4], image["boxes"], rtol=0, atol=1e-2)
        torch.testing.assert_close(rows[:count, 4], image["scores"], rtol=0, atol=1e-4)
        assert torch.equal(rows[:count, 5].long() + 1, image["labels"])
        assert (rows[count:, 5] == -1).all()


def test_the_loss_is_torchvisions(
    pair: tuple[FasterRCNN, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, ours = pair[0].train(), pair[1].train()
    # all that may be drawn is, so that no chance is in it; and proposals are those of the network
    for samplers in (reference.rpn, reference.roi_heads):
        monkeypatch.setattr(samplers.fg_bg_sampler, "batch_size_per_image", 10**9)
    for sampler in (faster_rcnn._sample_anchors, faster_rcnn._sample_proposals):
        monkeypatch.setattr(sampler, "batch_size_per_image", 10**9)
    monkeypatch.setattr(reference.roi_heads, "add_gt_proposals", lambda proposals, true: proposals)
    with torch.no_grad():  # true boxes that some proposals lie on
        proposals = split_outputs(ours(images())[:, : MOST["proposals"]])[0]
    boxes = proposals[0, [0, 20, 40]] + torch.tensor([1.0, 2, -1, 1])
    labels = torch.tensor([0, 2, 1])
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    with torch.no_grad():
        parts = reference(list(images()), [{"boxes": boxes, "labels": labels + 1}, nothing])
        outputs = ours(images())
    target = torch.full((2, 5, 5), -1.0)
    target[0, :3] = torch.cat([boxes, labels[:, None].float()], 1)
    assert parts["loss_box_reg"] > 0
    ours_ = rcnn_loss(outputs, target, anchors(ours), ours.levels)
    torch.testing.assert_close(ours_, sum(parts.values()), rtol=1e-4, atol=1e-5)


def test_training_rows_begin_with_what_is_said_in_use() -> None:
    torch.manual_seed(0)
    model = create_model(
        "fasterrcnn_resnet18_fpn",
        num_classes=2,
        width=16,
        hidden=32,
        proposals=20,
        backbone_arguments={"depths": [1, 1, 1], "width": 8},
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    used, trained = model.eval()(images(90)), model.train()(images(90))
    places = grid_anchors((90, 90), model.levels)
    width = 4 + 5 * 3
    assert used.shape == (2, 20, width)
    assert trained.shape == (2, 20 + -(-5 * len(places) // width), width)


def test_every_part_learns() -> None:
    torch.manual_seed(0)
    model = create_model(
        "fasterrcnn_resnet18_fpn",
        num_classes=2,
        width=16,
        hidden=32,
        backbone_arguments={"depths": [1, 1, 1], "width": 8},
    ).train()
    outputs = model(images(96))
    proposals = split_outputs(outputs[:, :300])[0]
    target = torch.full((2, 3, 5), -1.0)
    target[:, 0] = torch.cat([proposals[:, 5], torch.tensor([[0.0], [1.0]])], 1).detach()
    rcnn_loss(outputs, target, grid_anchors((96, 96), model.levels), model.levels).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_an_image_without_objects_has_a_finite_loss(pair: tuple[FasterRCNN, nn.Module]) -> None:
    ours = pair[1].train()
    outputs = ours(images())
    loss = rcnn_loss(outputs, torch.full((2, 4, 5), -1.0), anchors(ours), ours.levels)
    loss.backward()
    assert loss.isfinite()


def test_outputs_that_are_not_finite_are_not_taken_for_no_boxes() -> None:
    outputs = torch.zeros(2, 8, 4 + 5 * 3)
    outputs[1, 3, 5] = torch.nan
    found = detections(outputs, torch.zeros(1, 4), (64, 64), overlap=0.6, most=5)
    assert found[0].isfinite().all()
    assert not found[1].isfinite().any()


def test_a_bundle_of_torchvisions_weights_predicts_as_torchvision(tmp_path: Path) -> None:
    reference = theirs().eval()
    reference.rpn._pre_nms_top_n = {"testing": 1000}
    reference.rpn._post_nms_top_n = {"testing": 300}
    state = {name: value for name, value in reference.state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "theirs.safetensors")
    bundle, _ = reskit.import_bundle(
        tmp_path / "theirs.safetensors",
        tmp_path / "bundle",
        model="fasterrcnn_resnet18_fpn",
        labels=["ant", "bee", "cat"],
        size=SIDE,
        statistics="unit",
    )
    assert bundle.task.settings.scheme == "faster_rcnn"
    assert bundle.task.settings.levels == (4, 8, 16, 32, 64)
    pixels = (images()[0] * 255).to(torch.uint8)
    found = reskit.predict(bundle, pixels)[0]["boxes"]
    with torch.no_grad():
        expected = reference([pixels / 255])[0]
    sure = expected["scores"] >= bundle.task.settings.score
    assert len(found) == int(sure.sum()) > 5
    corners = torch.tensor([[box[side] for side in ("x1", "y1", "x2", "y2")] for box in found])
    torch.testing.assert_close(corners, expected["boxes"][sure], rtol=0, atol=0.1)
