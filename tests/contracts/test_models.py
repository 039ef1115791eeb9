"""One set of promises over every registered model.

What needs no numbers runs for every name on the meta device. What computes runs for one small network of
each family.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reskit.models import MODELS, Backbone, create_model
from reskit.nn import Residual

# A small network of each family and each kind of block: name and what to change.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet_basic": ("resnet18", {"depths": [1, 2], "width": 8}),
    "resnet_bottleneck": ("resnet50", {"depths": [1, 1, 2], "width": 8}),
    "resnext": ("resnext50_32x4d", {"depths": [1, 1], "width": 16, "groups": 4, "width_per_group": 16}),
    "seresnet": ("seresnet50", {"depths": [1, 1], "width": 8, "se": 4}),
    "resnet_32px": ("resnet18", {"depths": [1, 1], "width": 8, "stem": "cifar"}),
    "resnet_d": ("resnet18", {"depths": [1, 1], "width": 8, "shortcut": "D"}),
    "one_block": ("cifar_resnet8", {"depths": [1]}),
    "two_stages": ("cifar_resnet8", {"depths": [1, 1]}),
    "cifar_resnet": ("cifar_resnet8", {}),
    "cifar_resnet_b": ("cifar_resnet8", {"shortcut": "B"}),
    "cifar_resnet_c": ("cifar_resnet8", {"shortcut": "C"}),
    "preact_basic": ("cifar_preact_resnet110", {"depths": [1, 2, 1], "width": 8, "stem_width": 8}),
    "preact_bottleneck": ("cifar_preact_resnet164", {"depths": [1, 2], "width": 8}),
    "wide": ("wrn_16_4", {"depths": [1, 2], "width": 16, "dropout": 0.3}),
    "densenet": ("densenet121", {"depths": [2, 2, 1], "growth": 4, "stem_width": 8}),
    "densenet_bc": ("cifar_densenet_bc_100_12", {"depths": [2, 2]}),
    "nin": ("nin_residual", {}),
    "nin_norm": ("nin_residual", {"norm": True}),
    "mobilenet": ("mobilenet_v2", {"width_factor": 0.25}),
    "denoiser": ("dncnn", {"depth": 3, "width": 8}),
    "denoiser_dilated": ("dilated_denoiser", {"dilations": [1, 2, 1], "width": 8, "shuffle": 2}),
    "vdsr": ("vdsr", {"depth": 3, "width": 8}),
    "vdsr_subpixel": ("vdsr", {"depth": 3, "width": 8, "scale": 3, "subpixel": True}),
    "edsr": ("edsr_baseline", {"depth": 2, "width": 8, "scale": 4, "scaling": 0.5}),
    "fcos": (
        "fcos_resnet18_fpn",
        {"backbone_arguments": {"depths": [1, 2], "width": 8}, "width": 64, "convs": 1},
    ),
    "faster_rcnn": (
        "fasterrcnn_resnet18_fpn",
        {
            "backbone_arguments": {"depths": [1, 2], "width": 8},
            "width": 16,
            "hidden": 32,
            "candidates": 20,
            "proposals": 10,
        },
    ),
    "fcos_wide": (
        "fcos_resnet18_fpn",
        {"backbone": "wrn_16_4", "backbone_arguments": {"depths": [1, 1, 1], "width": 16}, "width": 64},
    ),
    "unet": ("unet_cifar_resnet20", {"encoder_arguments": {"depths": [1, 1], "width": 8}}),
    "unet_joined_to_the_image": (
        "unet_resnet18",
        {"encoder_arguments": {"depths": [1, 2], "width": 8}, "deep_supervision": True, "widths": [12, 8, 6]},
    ),
    "autoencoder": ("residual_autoencoder", {"depths": [1, 2], "width": 8, "latent": 4}),
    "vae": ("residual_vae", {"depths": [1, 1], "width": 8, "latent": 4, "shortcut": "D"}),
}
RESIDUAL = [name for name in SMALL if not name.startswith("densenet")]


def build(small: str, *, size: tuple[int, int] = (33, 33), **arguments: Any) -> Backbone:
    """Build for images of `size`, where a network must know it, for five classes, where it knows classes."""
    name, changes = SMALL[small]
    entry = MODELS.get(name)
    settled: dict[str, Any] = {"size": size} if "size" in entry.options else {}
    if entry.num_classes is not None:
        settled["num_classes"] = 5
    torch.manual_seed(0)
    return create_model(name, **{**settled, **changes, **arguments})


def build_settled(small: str, *, size: tuple[int, int] = (33, 33), **arguments: Any) -> Backbone:
    """Build for evaluation, with statistics in the norms that keep the signal alive in the deepest layers."""
    model = build(small, size=size, **arguments)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        height, width = size if "size" in model.architecture else (64, 64)
        model(torch.randn(8, arguments.get("in_channels", 3), height, width))
    return model.eval()


def numbers(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def residuals(model: nn.Module) -> list[Residual]:
    return [module for module in model.modules() if isinstance(module, Residual)]


@pytest.mark.parametrize("name", MODELS.names())
def test_every_name_on_meta(name: str) -> None:
    entry = MODELS.get(name)
    with torch.device("meta"):
        model = create_model(name, in_channels=entry.in_channels).eval()
        assert entry.parameters == numbers(model)
        outputs = model(entry.zeros(2))
        assert len(outputs) == 2
        if entry.num_classes is not None and entry.task in ("classify", "text", "tabular"):
            assert outputs.shape == (2, entry.num_classes)
        sides = {"text": entry.input_size, "tabular": ()}.get(entry.task, entry.input_size[1:])
        maps = model.feature_maps(entry.zeros(2))
        assert [tuple(m.shape) for m in maps] == [
            (2, c, *(side // s for side in sides)) for c, s in zip(model.channels, model.strides, strict=True)
        ]
        rebuilt = create_model(**json.loads(json.dumps(model.architecture)))
    assert str(rebuilt) == str(model)
    assert entry.name == name
    assert "20" in entry.paper
    assert model.num_features == model.channels[-1]


@pytest.mark.parametrize("small", SMALL)
def test_forward_and_finite_gradients(small: str) -> None:
    model = build(small, size=(64, 64))
    outputs = model(torch.randn(2, 3, 64, 64))
    assert len(outputs) == 2
    if MODELS.get(SMALL[small][0]).task == "classify":
        assert outputs.shape == (2, 5)
    outputs.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("small", SMALL)
@pytest.mark.parametrize("in_channels", [1, 3, 4])
def test_any_number_of_channels_and_odd_sizes(small: str, in_channels: int) -> None:
    for size in [(33, 47), (35, 32)]:
        model = build(small, in_channels=in_channels, size=size).eval()
        with torch.inference_mode():
            assert model(torch.randn(2, in_channels, *size)).isfinite().all()


@pytest.mark.parametrize("small", SMALL)
def test_features(small: str) -> None:
    model = build_settled(small, features_only=True)
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        maps = model(x)
        pooled = model.pooled(x)
    shapes = [(2, c, 64 // s, 96 // s) for c, s in zip(model.channels, model.strides, strict=True)]
    assert [tuple(m.shape) for m in maps] == shapes
    assert model.strides == sorted(set(model.strides))
    with torch.inference_mode():  # nothing later wrote into an earlier map
        for segment, found in zip(model.segments(), maps, strict=True):
            for layer in segment:
                x = layer(x)
            assert torch.equal(found, x)
            x = x.clone()
    torch.testing.assert_close(pooled, maps[-1].mean((2, 3)))
    assert not isinstance(model.head, nn.Linear)


@pytest.mark.parametrize("small", SMALL)
def test_safetensors_round_trip(small: str, tmp_path: Path) -> None:
    model = build_settled(small)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(1)
    rebuilt = create_model(**model.architecture, weights=tmp_path / "model.safetensors").eval()
    assert load_file(tmp_path / "model.safetensors").keys() == rebuilt.state_dict().keys()
    x = torch.randn(2, 3, 33, 33)
    with torch.inference_mode():
        assert torch.equal(rebuilt(x), model(x))


@pytest.mark.parametrize("small", RESIDUAL)
def test_plain_twin_lacks_the_shortcuts_and_nothing_else(small: str) -> None:
    model, twin = build(small), build(small, residual=False)
    shortcuts = sum(numbers(m) for n, m in model.named_modules() if n.endswith("downsample"))
    assert numbers(model) - numbers(twin) == shortcuts
    own = {k: v for k, v in model.state_dict().items() if ".downsample." not in k}
    twin.load_state_dict(own, strict=True)
    assert residuals(twin)
    assert all(block.plain for block in residuals(twin))
    x = torch.randn(2, 3, 33, 33)
    assert not torch.equal(twin.eval()(x), model.eval()(x))


@pytest.mark.parametrize("small", RESIDUAL)
def test_zero_init_starts_every_block_as_its_shortcut(small: str) -> None:
    model = build(small, zero_init=True)
    seen = []

    def check(block: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        assert isinstance(block, Residual)
        seen.append(torch.equal(output, block.activation(block.shortcut(inputs[0]).clone())))

    blocks = [block for block in residuals(model) if not block.plain]
    for block in blocks:
        block.register_forward_hook(check)
    model.eval()(torch.randn(2, 3, 33, 33))
    assert len(seen) == len(blocks) > 0
    assert all(seen)


@pytest.mark.parametrize("small", SMALL)
def test_export_with_dynamic_batch(small: str) -> None:
    model = build_settled(small)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 33, 33),), dynamic_shapes=({0: batch},))
    exported = program.module()
    for size in (1, 3):
        x = torch.randn(size, 3, 33, 33)
        torch.testing.assert_close(exported(x), model(x))


@pytest.mark.parametrize("small", SMALL)
def test_channels_last_and_bfloat16(small: str) -> None:
    model = build_settled(small)
    x = torch.randn(2, 3, 33, 33)
    with torch.inference_mode():
        expected = model(x)
        assert expected.std() > 1e-3
        model = model.to(memory_format=torch.channels_last)
        last = model(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x).isfinite().all()
