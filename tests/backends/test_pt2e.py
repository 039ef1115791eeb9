"""int8 graphs by torchao."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import reskit
from reskit.backends import Metadata, pt2e
from reskit.backends.graph_file import load_graph, save_graph
from reskit.backends.pt2e import quantized
from reskit.backends.servable import Servable, describe, servable
from reskit.bundle import Bundle
from reskit.errors import BackendError, MissingExtraError

pytest.importorskip("torchao")


@pytest.fixture(scope="module")
def bundle(digits_run: Any) -> Bundle:
    return reskit.load(digits_run.bundle)


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Servable:
    return servable(bundle)


@pytest.fixture(scope="module")
def metadata(bundle: Bundle) -> Metadata:
    return describe(bundle, "inductor", "int8")


@pytest.fixture(scope="module")
def samples(bundle: Bundle) -> np.ndarray:
    pictures: np.ndarray = bundle.samples["samples"].numpy()[:32]
    return pictures


def weights(model: Servable, metadata: Metadata, samples: np.ndarray, keep: list[str], path: Path) -> Any:
    """Return shape and type of the weights in the file, those of layers only."""
    save_graph(quantized(model, metadata, samples, keep), path, metadata)
    return [(tuple(w.shape), w.dtype) for w in load_file(path).values() if w.dim() in (2, 4) and len(w) > 1]


def test_the_file_holds_int8_and_agrees(
    model: Servable, metadata: Metadata, samples: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "int8.safetensors"
    assert {dtype for _, dtype in weights(model, metadata, samples, [], path)} == {torch.int8}
    loaded = load_graph(path, metadata)
    for batch in (1, 3):
        pixels = torch.from_numpy(samples[:batch])
        expected = model(pixels)
        assert 0 < (loaded(pixels) - expected).abs().max() <= 0.1 * expected.abs().max()


def test_kept_layers_stay_float(
    model: Servable, metadata: Metadata, samples: np.ndarray, tmp_path: Path
) -> None:
    keep = ["model.layer1", "model.linear"]
    found = weights(model, metadata, samples, keep, tmp_path / "kept.safetensors")
    floats = sorted(shape for shape, dtype in found if dtype is torch.float32)
    assert floats == sorted([(16, 16, 3, 3), (16, 16, 3, 3), (10, 64)])
    assert len(found) == 8


def test_unknown_layers_are_refused(model: Servable, metadata: Metadata, samples: np.ndarray) -> None:
    with pytest.raises(BackendError, match=r"no layer of the network is named 'model\.lineer'; did you mean"):
        quantized(model, metadata, samples, ["model.lineer"])


def test_activations_shared_between_layers(metadata: Metadata, samples: np.ndarray) -> None:
    relu = nn.ReLU()
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.Flatten(), nn.Linear(64, 10)
    )
    shared = Servable(nn.Sequential(), _Float(network)).eval()
    graph = quantized(shared, metadata, samples, [])
    pixels = torch.from_numpy(samples[:2])
    assert (graph(pixels) - shared(pixels)).abs().max() <= 0.1 * shared(pixels).abs().max()


def test_without_torchao(
    model: Servable, metadata: Metadata, samples: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'reskit\[torchao\]'"):
        pt2e.x86_quantizer()


class _Float(nn.Sequential):
    def forward(self, x: Any) -> Any:
        return super().forward(x.float())
