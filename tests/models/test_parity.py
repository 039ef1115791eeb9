"""Other people's networks and weights give the same numbers here."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

from reskit.models import MODELS, create_model

TORCHVISION = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnext50_32x4d",
    "densenet121",
    "densenet169",
    "densenet201",
    "mobilenet_v2",
]


def live_norms(model: nn.Module) -> nn.Module:
    """Give every norm statistics of its own: at their defaults a swap of two would go unseen."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    return model.eval()


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_state_dicts_load_and_agree(name: str) -> None:
    with torch.device("meta"):  # building on meta and filling is far quicker than initialising twice
        theirs = getattr(torchvision.models, name)(weights=None, num_classes=5)
        ours = create_model(name, num_classes=5)
    theirs = theirs.to_empty(device="cpu")
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        fan = max(parameter[0].numel(), 1)
        nn.init.uniform_(parameter, -((3 / fan) ** 0.5), (3 / fan) ** 0.5)
    live_norms(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    x = torch.randn(2, 3, 40, 33)
    with torch.inference_mode():
        expected = theirs(x)
        assert expected.isfinite().all()
        assert expected.std() > 0
        assert torch.equal(ours.eval()(x), expected)


def test_timm_seresnet50_loads_and_agrees() -> None:
    theirs = live_norms(timm.create_model("seresnet50", num_classes=5))
    ours = create_model("seresnet50", num_classes=5).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", TORCHVISION)
def test_counts_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(weights=None)
    assert MODELS.get(name).parameters == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.4])
def test_mobilenet_widths_are_torchvisions(factor: float) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.mobilenet_v2(weights=None, width_mult=factor)
        ours = create_model("mobilenet_v2", width_factor=factor)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }


def test_published_cifar_weights(shared_data: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    weights = shared_data / "weights" / "pytorch-cifar-resnet" / "resnet20-12fca82f.th"
    model = create_model("cifar_resnet20", weights=weights).eval()
    table = pq.read_table(shared_data / "cifar10-lossless-4k" / "train-00000-of-00001.parquet")
    labels = torch.tensor(table["label"].to_pylist())
    images = np.stack([np.asarray(Image.open(io.BytesIO(i["bytes"]))) for i in table["img"].to_pylist()])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    right = 0
    with torch.inference_mode():
        for batch, answer in zip(torch.from_numpy(images).split(500), labels.split(500), strict=True):
            x = ((batch / 255 - mean) / std).permute(0, 3, 1, 2)
            right += int((model(x).argmax(1) == answer).sum())
    assert len(labels) == 4000
    assert right / len(labels) >= 0.995


def test_published_resnet56_loads(shared_data: Path) -> None:
    weights = shared_data / "weights" / "pytorch-cifar-resnet" / "resnet56-4bfd9763.th"
    assert create_model("cifar_resnet56", weights=str(weights)).linear.out_features == 10
