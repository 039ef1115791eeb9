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
from safetensors.torch import save_file
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


@pytest.mark.parametrize(
    ("library", "name", "file"),
    [
        ("timm", "resnet18", "w.pth"),
        ("timm", "resnet50", "w.safetensors"),
        ("timm", "resnetv2_50", "w.safetensors"),
        ("timm", "wide_resnet50_2", "w.safetensors"),
        ("timm", "densenet121", "w.pth"),
        ("timm", "seresnet50", "w.pth"),
        ("torchvision", "resnet18", "w.safetensors"),
        ("torchvision", "resnet50", "w.pth"),
    ],
)
def test_files_of_others_give_the_same_logits(tmp_path: Path, library: str, name: str, file: str) -> None:
    build = timm.create_model if library == "timm" else torchvision.models.get_model
    theirs = live_norms(build(name, num_classes=5))
    for module in theirs.modules():  # timm starts the last of each branch at zero: a swap would go unseen
        if isinstance(module, nn.Conv2d) and not module.weight.any():
            nn.init.kaiming_normal_(module.weight)
    save = save_file if file.endswith(".safetensors") else torch.save
    save(theirs.state_dict(), tmp_path / file)
    with torch.no_grad():
        ours = create_model(name, num_classes=5, weights=tmp_path / file).eval()
    (tmp_path / file).unlink()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs(x)
        assert (expected[0] - expected[1]).abs().max() > 1e-3
        assert (ours(x) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["resnetv2_50", "resnetv2_101"])
def test_counts_and_strides_are_timms(name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name)
        ours = create_model(name)
    assert MODELS.get(name).parameters == sum(p.numel() for p in theirs.parameters())
    assert [(f["num_chs"], f["reduction"]) for f in theirs.feature_info] == list(
        zip(ours.channels, ours.strides, strict=True)
    )


def strided(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {n: m.stride for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)}


def test_stride_first_is_the_paper_s_version() -> None:
    with torch.device("meta"):
        ours = create_model("resnet50", stride_first=True)
        usual = create_model("resnet50")
    moved = {name.replace("conv2", "conv1"): stride for name, stride in strided(usual).items()}
    assert strided(ours) == moved != strided(usual)
    assert ours.architecture["stride_first"] is True
    assert {n: p.shape for n, p in ours.named_parameters()} == {
        n: p.shape for n, p in usual.named_parameters()
    }


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
