"""Peers compute what they should, and say what they have not."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
import torch

import reskit
from reskit.benchmarking.peers import PEERS, timm_compiled
from reskit.benchmarking.subject import Subject, any_network, timm_network, torchvision_network
from reskit.errors import BackendError

pytestmark = pytest.mark.filterwarnings("ignore")  # what the libraries of peers warn of is theirs


def subject(name: str = "resnet18", **more: Any) -> Subject:
    network = reskit.create_model(name, num_classes=5)
    values: dict[str, Any] = {
        "architecture": network.architecture,
        "parameters": sum(p.numel() for p in network.parameters()),
        "classes": 5,
        "input_shape": (3, 32, 32),
        "samples": np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8),
        "batches": (1, 3),
        "threads": 1,
    }
    return Subject(**{**values, **more})


def difference(found: Any, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def test_the_peers_of_the_issue_are_there() -> None:
    assert list(PEERS) == [
        "torchvision/eager",
        "timm/eager",
        "timm/compile",
        "onnxruntime/default",
        "openvino/default",
        "openvino/int8-hand",
        "keras/tensorflow",
    ]


def test_torchvision_runs_its_network() -> None:
    torch.manual_seed(0)
    network = torchvision_network(subject())
    torch.manual_seed(0)
    built = PEERS["torchvision/eager"].build(subject())
    for batch in (1, 3):
        with torch.no_grad():
            expected = network(torch.from_numpy(subject().images(batch))).numpy()
        assert difference(built(batch)(), expected) < 1e-5


@pytest.mark.parametrize("name", ["onnxruntime/default", "openvino/default", "openvino/int8-hand"])
def test_other_runtimes_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in PEERS[name].modules:
        pytest.importorskip(module)
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)
    small = subject("cifar_resnet8")
    torch.manual_seed(0)
    network = any_network(small)
    torch.manual_seed(0)
    built = PEERS[name].build(small)
    facts = built.facts  # type: ignore[attr-defined]
    tolerance = {"fp32": 1e-4, "bf16": 0.05, "int8": 0.4}[facts["precision"]]
    for batch in (1, 3):
        with torch.no_grad():
            expected = network(torch.from_numpy(small.images(batch))).numpy()
        assert difference(built(batch)()[0], expected) < tolerance
    assert facts["streams"].keys() == ({3} if name == "openvino/int8-hand" else set())


def test_timm_eager_and_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    asked: dict[str, Any] = {}

    def compiled(network: Any, **options: Any) -> Any:
        asked.update(options)
        return network

    monkeypatch.setattr(torch, "compile", compiled)
    for build in (PEERS["timm/eager"].build, timm_compiled):
        assert build(subject(input_shape=(1, 32, 32), parameters=_grey()))(2)().shape == (2, 5)
    assert asked == {"dynamic": False}


def _grey() -> int:
    network = reskit.create_model("resnet18", num_classes=5, in_channels=1)
    return sum(p.numel() for p in network.parameters())


def test_what_a_peer_has_not() -> None:
    with pytest.raises(BackendError, match="torchvision has no cifar_resnet8"):
        torchvision_network(subject("cifar_resnet8"))
    with pytest.raises(BackendError, match="three channels"):
        torchvision_network(subject(input_shape=(1, 32, 32)))
    with pytest.raises(BackendError, match=r"its resnet18 has 11,179,077 parameters, not 7"):
        torchvision_network(subject(parameters=7))
    pytest.importorskip("timm")
    with pytest.raises(BackendError, match="timm has no wrn_16_4"):
        timm_network(subject("wrn_16_4"))


def test_other_runtimes_get_our_network_where_torchvision_has_none() -> None:
    network = any_network(subject("cifar_resnet8"))
    assert not network.training
    assert network.architecture["name"] == "cifar_resnet8"


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v2", "resnext50_32x4d", "seresnet50"])
def test_networks_of_one_name_are_the_same(name: str) -> None:
    pytest.importorskip("timm")
    assert not timm_network(subject(name)).training


def test_a_package_that_is_missing() -> None:
    peer = dataclasses.replace(PEERS["torchvision/eager"], modules=("torch", "no_such_module"))
    assert peer.missing() == "no_such_module is not installed"
    assert PEERS["torchvision/eager"].missing() is None
