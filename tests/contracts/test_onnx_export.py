"""Every family of networks as ONNX: valid, read by ONNX Runtime and OpenVINO, and the same as eager.

Here runs a shallow network of each family; `benchmarks/onnx_models.py` does the same for every name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reskit.backends import Metadata, Signature, TensorSpec
from reskit.backends.onnx_graph import to_onnx
from reskit.backends.openvino import core
from reskit.backends.servable import OUTPUT, Servable, folded
from reskit.backends.writing import largest_difference
from reskit.data import ImagePreprocess
from reskit.models import MODELS, create_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# Name and what makes it shallow.
SHALLOW: dict[str, dict[str, Any]] = {
    "seresnet50": {"depths": [1, 1], "width": 8, "se": 4},
    "cifar_resnet8": {"depths": [1, 1]},
    "cifar_preact_resnet110": {"depths": [1, 2], "width": 8, "stem_width": 8},
    "densenet121": {"depths": [2, 2], "growth": 4, "stem_width": 8},
    "nin_residual": {},
    "mobilenet_v2": {"width_factor": 0.25},
    "unet_resnet18": {"encoder_arguments": {"depths": [1, 1], "width": 8}},
    "fcos_resnet18_fpn": {"backbone_arguments": {"depths": [1, 1, 1], "width": 8}, "width": 64, "convs": 1},
    "fasterrcnn_resnet18_fpn": {
        "backbone_arguments": {"depths": [1, 1, 1], "width": 8},
        "width": 16,
        "hidden": 32,
        "candidates": 20,
        "proposals": 10,
    },
    "residual_autoencoder": {"depths": [1, 1], "width": 8, "latent": 4, "size": [32, 32]},
    "dilated_denoiser": {"dilations": [1, 2, 1], "width": 8, "shuffle": 2},
    "vdsr": {"depth": 3, "width": 8, "scale": 3},
    "edsr_baseline": {"depth": 2, "width": 8, "scale": 4, "scaling": 0.5},
}
SIDE = 32


def test_every_family_is_here() -> None:
    families = {MODELS.get(name).build for name in MODELS if len(MODELS.get(name).input_size) == 3}
    assert families == {MODELS.get(name).build for name in SHALLOW}


def network(name: str) -> Servable:
    torch.manual_seed(0)
    classes = {} if MODELS.get(name).num_classes is None else {"num_classes": 5}
    model = create_model(name, **classes, **SHALLOW[name])
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0  # statistics of the batch below keep the signal alive in the deepest layers
    with torch.no_grad():
        model(torch.randn(8, 3, SIDE, SIDE))
    return Servable(ImagePreprocess(size=(SIDE, SIDE)).normalize(), folded(model)).eval()


@pytest.mark.parametrize("name", SHALLOW)
def test_runs_elsewhere_as_here_at_any_batch_size(name: str) -> None:
    model = network(name)
    signature = Signature(
        inputs=(TensorSpec(name="image", dtype="uint8", shape=(None, 3, SIDE, SIDE)),),
        outputs=(TensorSpec(name=OUTPUT, dtype="float32", shape=(None, 5)),),
    )
    metadata = Metadata(
        backend="onnxruntime",
        precision="fp32",
        model=name,
        task={},
        signature=signature,
        bundle="",
        library="",
    )
    proto = to_onnx(model, metadata)
    onnx.checker.check_model(proto, full_check=True)
    serialized = proto.SerializeToString()
    session = onnxruntime.InferenceSession(serialized, providers=["CPUExecutionProvider"])
    pytest.importorskip("openvino")
    compiled = core().compile_model(core().read_model(serialized), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch in (1, 3):
        pixels = np.random.default_rng(batch).integers(0, 256, (batch, 3, SIDE, SIDE), np.uint8)
        with torch.inference_mode():
            expected = model(torch.from_numpy(pixels)).numpy()
        assert expected.std() > 1e-3
        assert largest_difference(session.run([OUTPUT], {"image": pixels})[0], expected) < 1e-4
        assert largest_difference(compiled({"image": pixels})[OUTPUT], expected) < 1e-4
