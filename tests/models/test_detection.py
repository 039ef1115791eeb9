"""Detectors held against torchvision's, which have the same layers; and what weights fill them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import reskit
from reskit.errors import ModelError, WeightsError
from reskit.models import create_model
from reskit.tasks.fcos import detections, fcos_loss, grid_points
from reskit.weights import load_into

CLASSES, SIDE = 4, 256  # a side at which torchvision's strides, image by map, are whole


def theirs() -> FCOS:
    """Build torchvision's FCOS on a ResNet-18, with heads that say something."""
    torch.manual_seed(0)
    body = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    unscaled = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    model = FCOS(body, CLASSES, min_size=SIDE, max_size=SIDE, score_thresh=0.05, **unscaled)
    for parameter in model.head.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[FCOS, nn.Module]:
    reference = theirs()
    path = tmp_path_factory.mktemp("weights") / "fcos.safetensors"
    save_file(reference.state_dict(), path)
    ours = create_model("fcos_resnet18_fpn", num_classes=CLASSES)
    report = load_into(ours, path)
    assert set(report.matched) == set(ours.state_dict())
    return reference, ours


def images() -> Tensor:
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def test_as_many_parameters_as_torchvisions(pair: tuple[FCOS, nn.Module]) -> None:
    reference, ours = ([p.numel() for p in model.parameters()] for model in pair)
    assert sorted(reference) == sorted(ours)


def test_the_loss_is_torchvisions(pair: tuple[FCOS, nn.Module]) -> None:
    reference, ours = pair[0].train(), pair[1].train()
    boxes = torch.tensor(  # one of every level's size, two that share points, a tiny one
        [[10.0, 20, 60, 90], [30, 10, 250, 200], [100, 100, 120, 130], [104, 104, 118, 124], [3, 3, 7, 6]]
    )
    labels = torch.tensor([0, 3, 1, 1, 2])
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    with torch.no_grad():
        expected = sum(reference(list(images()), [{"boxes": boxes, "labels": labels}, nothing]).values())
        outputs = ours(images())
    target = torch.full((2, 7, 5), -1.0)
    target[0, :5] = torch.cat([boxes, labels[:, None].float()], 1)
    points = grid_points((SIDE, SIDE), tuple(ours.levels))
    torch.testing.assert_close(fcos_loss(outputs, target, points, ours.levels), expected)


def test_the_boxes_are_torchvisions(pair: tuple[FCOS, nn.Module]) -> None:
    reference, ours = pair[0].eval(), pair[1].eval()
    with torch.no_grad():
        expected = reference(list(images()))
        outputs = ours(images())
    points = grid_points((SIDE, SIDE), tuple(ours.levels))
    found = detections(outputs, points, (SIDE, SIDE), overlap=0.6, most=100)
    assert found.shape == (2, 100, 6)
    for rows, image in zip(found, expected, strict=True):
        count = len(image["scores"])
        assert count > 20
        torch.testing.assert_close(rows[:count, :4], image["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(rows[:count, 4], image["scores"])
        assert torch.equal(rows[:count, 5].long(), image["labels"])
        assert (rows[count:, 5] == -1).all()


def test_points_go_level_by_level_as_the_outputs_do() -> None:
    model = create_model("fcos_resnet18_fpn", backbone_arguments={"width": 8}, width=64, convs=1).eval()
    for size in [(96, 160), (90, 131)]:
        points = grid_points(size, tuple(model.levels))
        with torch.inference_mode():
            assert model(torch.zeros(1, 3, *size)).shape == (1, len(points), 91 + 5)
        assert points[:2].tolist() == [[0, 0, 8], [8, 0, 8]]
        assert points[-1].tolist() == [128.0 * (size[1] > 128), 0, 128]


def test_outputs_that_are_not_finite_are_not_taken_for_no_boxes() -> None:
    points = grid_points((64, 64), (8, 16))
    outputs = torch.zeros(2, len(points), 7)
    outputs[1, 3, 0] = torch.nan
    found = detections(outputs, points, (64, 64), overlap=0.6, most=5)
    assert found[0].isfinite().all()
    assert not found[1].isfinite().any()


# Weights.


def test_a_bundle_of_torchvisions_weights_predicts_as_torchvision(
    pair: tuple[FCOS, nn.Module], tmp_path: Path
) -> None:
    reference = pair[0].eval()
    # as files written before torchvision 0.13 are named
    state = {
        re.sub(r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1.", name): value
        for name, value in reference.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(state, tmp_path / "theirs.safetensors")
    bundle, _ = reskit.import_bundle(
        tmp_path / "theirs.safetensors",
        tmp_path / "bundle",
        model="fcos_resnet18_fpn",
        labels=["ant", "bee", "cat", "dog"],
        size=SIDE,
        statistics="unit",
    )
    assert bundle.task.name == "detect"
    pixels = (images()[0] * 255).to(torch.uint8)
    with torch.no_grad():
        expected = reference([pixels / 255])[0]
    found = reskit.predict(bundle, pixels)[0]["boxes"]
    sure = expected["scores"] >= bundle.task.settings.score
    assert len(found) == int(sure.sum()) > 5
    corners = torch.tensor([[box[side] for side in ("x1", "y1", "x2", "y2")] for box in found])
    torch.testing.assert_close(corners, expected["boxes"][sure], rtol=0, atol=1e-2)
    assert [bundle.task.labels.index(box["label"]) for box in found] == expected["labels"][sure].tolist()


def small(**arguments: object) -> nn.Module:
    return create_model(
        "fcos_resnet18_fpn",
        num_classes=2,
        width=64,
        convs=1,
        backbone_arguments={"depths": [1, 1, 1], "width": 8},
        **arguments,
    )


def test_weights_of_a_classifier_fill_the_body_and_leave_the_rest(tmp_path: Path) -> None:
    classifier = create_model("resnet18", depths=[1, 1, 1], width=8, num_classes=7)
    save_file(classifier.state_dict(), tmp_path / "classifier.safetensors")
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_into(model, tmp_path / "classifier.safetensors", adapt=True)
    assert {name.split(".")[0] for name in report.matched} == {"body"}
    for name, value in classifier.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(model.state_dict()[f"body.{name}"], value)
    for name, value in before.items():
        if name.startswith("detector."):
            assert torch.equal(model.state_dict()[name], value)


def test_weights_of_another_body_are_refused(tmp_path: Path) -> None:
    save_file(create_model("resnet18", depths=[2, 1], width=8).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="does not fit the model"):
        load_into(small(), tmp_path / "other.safetensors", adapt=True)


def test_a_detector_of_other_classes_gives_all_but_its_classifier(tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = create_model(
        "fcos_resnet18_fpn",
        num_classes=5,
        width=64,
        convs=1,
        backbone_arguments={"depths": [1, 1, 1], "width": 8},
    )
    save_file(other.state_dict(), tmp_path / "detector.safetensors")
    model = small()
    report = load_into(model, tmp_path / "detector.safetensors", adapt=True)
    left = {name for name, what in report.adapted.items() if "left as it was" in what}
    assert left == {f"detector.head.classification_head.cls_logits.{part}" for part in ("weight", "bias")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"width": 100}, "multiple of 32"),
        ({"width": 32}, "at least 64"),
        ({"convs": 0}, "convs"),
        ({"backbone": "dncnn"}, "'dncnn' is no network to detect with"),
        ({"backbone": "densenet121", "zero_init": True}, "does not know zero_init=True"),
        ({"backbone_arguments": {"depth": [1]}}, "did you mean 'depths'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        create_model("fcos_resnet18_fpn", **arguments)
