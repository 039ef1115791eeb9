"""Networks as files that cannot run code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reskit.backends import Metadata, Precision, Signature, TensorSpec
from reskit.backends.graph_file import checksum, load_graph, read_metadata, save_graph, trace
from reskit.backends.servable import Servable
from reskit.data import ImagePreprocess
from reskit.errors import BackendError
from reskit.models import create_model
from reskit.weights.layers import Affine, BatchNorm, Flatten, PaddedAvgPool2d, PaddedMaxPool2d, Scale, Window

CHANNELS, SIDE = 3, 6
BORDER = Window((2, 2), (2, 2), (1, 1), [0, 1, 0, 1])


def metadata_of(network: nn.Module, precision: Precision = "fp32") -> Metadata:
    answer = network(torch.zeros(1, CHANNELS, SIDE, SIDE))
    return Metadata(
        backend="torch",
        precision=precision,
        model="small",
        task={"labels": ["a", "b"]},
        signature=Signature(
            inputs=(TensorSpec(name="image", dtype="uint8", shape=(None, CHANNELS, SIDE, SIDE)),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=(None, *answer.shape[1:])),),
        ),
        bundle="",
        library="",
    )


def served(network: nn.Module) -> Servable:
    normalize = ImagePreprocess(channels=CHANNELS, size=(SIDE, SIDE)).normalize()
    return Servable(normalize, network).eval().requires_grad_(False)


def pixels(batch: int) -> Tensor:
    return torch.from_numpy(
        np.random.default_rng(batch).integers(0, 256, (batch, CHANNELS, SIDE, SIDE), dtype=np.uint8)
    )


def written(network: nn.Module, path: Path, precision: Precision = "fp32") -> Metadata:
    metadata = metadata_of(network.eval(), precision)
    save_graph(trace(served(network), metadata), path, metadata)
    return metadata


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "small.safetensors"


class Squeezed(nn.Module):
    """A gate computed of means, and maps side by side."""

    def forward(self, x: Tensor) -> Tensor:
        gated = x * torch.sigmoid(x.mean((2, 3), keepdim=True))
        return torch.cat([gated - x, gated[:, :, ::2, ::2].new_ones(1) / (x + 9)], 1)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


class Choice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


LAYERS = {
    "convolution": nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(True)),
    "groups": nn.Conv2d(3, 6, (3, 1), dilation=(2, 1), groups=3),
    "vector": nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten("chw"), nn.Dropout(), nn.Linear(3, 2)),
    "pools": nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1), nn.AdaptiveMaxPool2d(1)),
    "uneven": nn.Sequential(
        PaddedMaxPool2d(BORDER, ceil_mode=False),
        PaddedAvgPool2d(BORDER, ceil_mode=False, count_include_pad=False),
    ),
    "last": nn.Sequential(Flatten("hwc"), BatchNorm(108), nn.Softmax(1)),
    "gates": Squeezed(),
    "imported": nn.Sequential(Scale(3, bias=True), Affine(0.5, 0.1), nn.PReLU(3)),
    "border": nn.ConstantPad2d((1, 0, 0, 1), 2.0),
    "bends": nn.Sequential(nn.ReLU6(True), nn.LeakyReLU(0.2), nn.ELU(0.5), nn.Hardswish(), nn.SiLU()),
    "in place": nn.Sequential(nn.Conv2d(3, 3, 1), nn.LeakyReLU(0.2, True), nn.ELU(0.5, True)),
    "enlarged": nn.Sequential(nn.Upsample(scale_factor=2), nn.Upsample((9, 7), mode="bilinear")),
    "denoised": create_model("dilated_denoiser", dilations=[1, 2], width=4, norm=False, shuffle=2),
    "detailed": create_model("vdsr", depth=2, width=4, subpixel=True),
    "curves": nn.Sequential(nn.Tanh(), nn.Sigmoid(), nn.Hardsigmoid(), nn.Hardtanh(-0.1, 0.6)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_survive_the_file(kind: str, path: Path) -> None:
    metadata = written(LAYERS[kind], path)
    loaded = load_graph(path, read_metadata(path, "torch"))
    assert read_metadata(path, "torch") == metadata
    for batch in (1, 3):
        expected = served(LAYERS[kind])(pixels(batch))
        torch.testing.assert_close(loaded(pixels(batch)), expected, rtol=1e-6, atol=1e-6)


def test_bf16_halves_the_weights_and_leaves_the_network_alone(path: Path) -> None:
    network = nn.Conv2d(3, 8, 3)
    metadata = written(network, path, "bf16")
    stored = load_file(path)
    assert network.weight.dtype is torch.float32
    assert {str(w.dtype) for n, w in stored.items() if "scale" in n or "shift" in n} == {"torch.float32"}
    assert [w.dtype for n, w in stored.items() if n.endswith("weight")] == [torch.bfloat16]
    found, expected = load_graph(path, metadata)(pixels(3)), served(network)(pixels(3))
    assert found.dtype is torch.float32
    assert 0 < (found - expected).abs().max() / expected.abs().max() < 0.02


@pytest.mark.parametrize(
    ("network", "reason"), [(Sine(), r"uses aten\.sin\.default"), (Choice(), "cannot be exported")]
)
def test_networks_that_cannot_be_written(network: nn.Module, reason: str, path: Path) -> None:
    with pytest.raises(BackendError, match=reason) as raised:
        written(network, path)
    assert "\n" not in str(raised.value)


def rewritten(path: Path, change: Callable[[list[Any]], object]) -> None:
    """Change the operators in a file."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    steps, weights = json.loads(header["graph"]), load_file(path)
    text = json.dumps(change(steps) or steps)
    save_file(weights, path, metadata={**header, "graph": text, "checksum": checksum(text, weights)})


def set_first(at: int, value: object) -> Callable[[list[Any]], None]:
    return lambda steps: steps[0].__setitem__(at, value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_first(0, "aten.from_file.default"), "unknown operator"),
        (set_first(0, "__class__.__base__"), "unknown operator"),
        (set_first(0, ["getitem"]), "damaged"),
        (set_first(1, [{"step": 0}, {"dtype": "__import__('os')"}]), "damaged"),
        (set_first(1, [{"step": 99}]), "damaged"),
        (set_first(1, [{"weight": "nowhere"}]), "damaged"),
        (set_first(1, [{"step": 0}, "file:///etc/passwd"]), "unknown word"),
        (set_first(2, {"x); import os; (y": 1}), "damaged"),
        (lambda steps: steps[:-1], "damaged"),
        (lambda steps: [*steps[:-1], ["output", [{"step": 1}], {}]], "its metadata says"),
        (lambda steps: {"output": steps}, "damaged"),
    ],
)
def test_altered_graphs_are_refused(change: Callable[[list[Any]], Any], reason: str, path: Path) -> None:
    metadata = written(nn.Conv2d(3, 4, 3), path)
    rewritten(path, change)
    with pytest.raises(BackendError, match=reason) as raised:
        load_graph(path, metadata)
    assert str(path) in str(raised.value)


def test_altered_weights_are_refused(path: Path) -> None:
    metadata = written(nn.Conv2d(3, 4, 3), path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BackendError, match="damaged: its checksum differs"):
        load_graph(path, metadata)


def test_names_of_weights_reach_no_code(path: Path) -> None:
    metadata = written(nn.Conv2d(3, 4, 3), path)
    expected = load_graph(path, metadata)(pixels(1))
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    header["graph"] = header["graph"].replace("model.weight", "w;raise SystemExit")
    weights = {name.replace("model.weight", "w;raise SystemExit"): w for name, w in load_file(path).items()}
    header["checksum"] = checksum(header["graph"], weights)
    save_file(weights, path, metadata=header)
    loaded = load_graph(path, metadata)
    assert torch.equal(loaded(pixels(1)), expected)
    assert all(name.removeprefix("weight").isdigit() for name in loaded.state_dict())


@pytest.mark.parametrize("content", [None, b"", b"no safetensors", "cut", "foreign"])
def test_other_files_are_refused(content: bytes | str | None, path: Path) -> None:
    if content == "cut":
        written(nn.Conv2d(3, 4, 3), path)
        path.write_bytes(path.read_bytes()[:-10])
    elif content == "foreign":
        save_file({"weight": torch.zeros(3)}, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(BackendError, match=r"not there|not a readable|not exported by reskit"):
        read_metadata(path, "torch")


def test_files_of_another_backend_are_refused(path: Path) -> None:
    written(nn.Conv2d(3, 4, 3), path)
    with pytest.raises(BackendError, match="was written for torch, not for inductor"):
        read_metadata(path, "inductor")
