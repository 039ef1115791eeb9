"""The ONNX model that several backends are written from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reskit import environment
from reskit.backends import Metadata, Signature, TensorSpec, onnx_graph
from reskit.backends.onnx_graph import METADATA_KEY, first_line, int8_overflows, layers, to_onnx
from reskit.backends.servable import Servable
from reskit.data import ImagePreprocess
from reskit.errors import BackendError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


def metadata_of(classes: int = 4) -> Metadata:
    return Metadata(
        backend="onnxruntime",
        precision="fp32",
        model="small",
        task={},
        signature=Signature(
            inputs=(TensorSpec(name="image", dtype="uint8", shape=(None, 3, 8, 8)),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=(None, classes)),),
        ),
        bundle="",
        library="",
    )


def served(network: nn.Module) -> Servable:
    return Servable(ImagePreprocess(size=(8, 8)).normalize(), network).eval()


@pytest.fixture(scope="module")
def model() -> Servable:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False))
    return served(nn.Sequential(block, nn.Flatten(), nn.Linear(64, 4)))


@pytest.fixture(scope="module")
def proto(model: Servable) -> Any:
    return to_onnx(model, metadata_of())


def test_layers_are_named_after_modules(proto: Any) -> None:
    assert layers(proto, ["model.0.2"]) == ["model.0.2"]
    assert layers(proto, ["model.0"]) == ["model.0.0", "model.0.2"]
    assert layers(proto, ["model"]) == ["model.0.0", "model.0.2", "model.2"]
    assert {"normalize.scale", "normalize.shift"} <= {node.name for node in proto.graph.node}


@pytest.mark.parametrize("name", ["model.0.1", "model.0.22", "mode", "normalize"])
def test_a_module_without_a_layer_is_refused(proto: Any, name: str) -> None:
    with pytest.raises(BackendError, match=f"no layer of the network is named '{name}'"):
        layers(proto, [name])


def test_the_model_says_who_it_is_and_nothing_of_how_it_was_made(proto: Any) -> None:
    assert [(entry.key, entry.value) for entry in proto.metadata_props] == [
        (METADATA_KEY, metadata_of().to_json())
    ]
    written = proto.SerializeToString()
    assert b"pkg.torch" not in written
    assert b".py" not in written
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_what_onnx_has_no_form_for_is_refused_in_one_line() -> None:
    class Undecided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    with pytest.raises(BackendError, match=r"^small cannot be written as ONNX: ") as raised:
        to_onnx(served(Undecided()), metadata_of(3))
    assert "\n" not in str(raised.value)


def test_a_network_too_large_for_one_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "_LARGEST", 700)
    with pytest.raises(BackendError, match="one ONNX file holds 2 GiB at most"):
        to_onnx(served(nn.Sequential(nn.Flatten(), nn.Linear(192, 4))), metadata_of())


@pytest.mark.parametrize(
    ("machine", "instructions", "overflows"),
    [
        ("x86_64", ["avx2"], True),
        ("AMD64", [], True),
        ("x86_64", ["avx512f", "avx512_vnni"], False),
        ("x86_64", ["avx2", "avx_vnni"], False),
        ("aarch64", ["asimd"], False),
    ],
)
def test_int8_overflows_where_vnni_is_missing(
    monkeypatch: pytest.MonkeyPatch, machine: str, instructions: list[str], overflows: bool
) -> None:
    monkeypatch.setattr(environment.platform, "machine", lambda: machine)
    monkeypatch.setattr(onnx_graph, "fingerprint", lambda: {"instructions": instructions})
    assert int8_overflows() is overflows


def test_an_error_is_told_in_its_first_line() -> None:
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"


def test_the_model_computes_what_the_network_does(model: Servable, proto: Any) -> None:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(proto)
    for batch in (1, 3):
        pixels = np.random.default_rng(batch).integers(0, 256, (batch, 3, 8, 8), np.uint8)
        with torch.no_grad():
            expected = model(torch.from_numpy(pixels)).numpy()
        np.testing.assert_allclose(evaluator.run(None, {"image": pixels})[0], expected, rtol=1e-4, atol=1e-5)
