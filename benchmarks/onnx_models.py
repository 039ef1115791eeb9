"""Every registered network as ONNX: checked, then run by ONNX Runtime and OpenVINO beside eager.

Weights are random, norms hold the statistics of a batch of noise, images have the size the network was
published at, but 64 px at most: what is shown is that the graphs compute the same, at two batch sizes.
Faster R-CNN has its rows but no part in the largest difference: it chooses boxes by comparing scores, those
of random weights are nearly equal, and two boxes in another order differ by everything.

python benchmarks/onnx_models.py
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from common import write_result
from reskit.backends import Metadata, Signature, TensorSpec
from reskit.backends.onnx_graph import to_onnx
from reskit.backends.openvino import core
from reskit.backends.servable import OUTPUT, Servable, folded
from reskit.backends.writing import largest_difference
from reskit.data import ImagePreprocess
from reskit.data.tables import Bent
from reskit.data.texts import Tokens
from reskit.models import MODELS, create_model, list_models

BATCHES = (1, 3)
LARGEST_SIDE = 64


def main() -> None:
    """Export, check and run the networks named, all by default."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="names; all when absent")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in arguments.models or list_models():
        rows.append(row(name, arguments.threads))
        print(rows[-1], flush=True)
    worst = max(
        max(row[runtime])
        for row in rows
        for runtime in ("onnxruntime", "openvino")
        if not row["name"].startswith("fasterrcnn")
    )
    write_result("onnx-models", {"batches": BATCHES, "largest_difference": worst, "rows": rows})


def row(name: str, threads: int) -> dict[str, Any]:
    """Return nodes, seconds and differences of one network."""
    model, metadata = network(name)
    spec = metadata.signature.inputs[0]
    start = time.perf_counter()
    proto = to_onnx(model, metadata)
    seconds = time.perf_counter() - start
    onnx.checker.check_model(proto, full_check=True)
    serialized = proto.SerializeToString()
    runs = {"onnxruntime": by_onnxruntime(serialized, threads), "openvino": by_openvino(serialized, threads)}
    differences: dict[str, list[float]] = {runtime: [] for runtime in runs}
    for batch in BATCHES:
        raw = noise(spec, batch)
        with torch.inference_mode():
            expected = model(torch.from_numpy(raw)).numpy()
        for runtime, run in runs.items():
            differences[runtime].append(largest_difference(run({spec.name: raw}), expected))
    return {
        "name": name,
        "input": list(spec.shape[1:]),
        "nodes": len(proto.graph.node),
        "mib": round(len(serialized) / 2**20, 1),
        "export_seconds": round(seconds, 1),
        **differences,
    }


def network(name: str) -> tuple[Servable, Metadata]:
    """Return a network as it is served, and what its file would say."""
    torch.manual_seed(0)
    entry = MODELS.get(name)
    model = create_model(name, in_channels=3 if len(entry.input_size) == 3 else entry.in_channels)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
            norm.momentum = 1.0
    if entry.task == "text":
        spec = TensorSpec(name="tokens", dtype="int32", shape=(None, *entry.input_size))
        normalize: nn.Module = Tokens(entry.in_channels)
    elif entry.task == "tabular":
        spec = TensorSpec(name="row", dtype="float32", shape=(None, *entry.input_size))
        normalize = Bent(entry.in_channels, 0, [])
    else:
        size = [min(side, LARGEST_SIDE) for side in entry.input_size[1:]]
        spec = TensorSpec(name="image", dtype="uint8", shape=(None, 3, *size))
        normalize = ImagePreprocess(size=(size[0], size[1])).normalize()
    with torch.no_grad():
        model(normalize(torch.from_numpy(noise(spec, 4))))
    signature = Signature(
        inputs=(spec,),
        outputs=(TensorSpec(name=OUTPUT, dtype="float32", shape=(None, model.num_classes)),),
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
    return Servable(normalize, folded(model)).eval(), metadata


def noise(spec: TensorSpec, batch: int) -> np.ndarray:
    """Return a batch of raw input: numbers of a normal distribution, else whole ones from 0 to 255."""
    random, shape = np.random.default_rng(batch), [batch, *(side or 1 for side in spec.shape[1:])]
    if spec.dtype == "float32":
        return random.standard_normal(shape, np.float32)
    return random.integers(0, 256, shape).astype(spec.dtype)


def by_onnxruntime(serialized: bytes, threads: int) -> Any:
    """Return a call that runs the graph in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(serialized, options)
    return lambda inputs: session.run([OUTPUT], inputs)[0]


def by_openvino(serialized: bytes, threads: int) -> Any:
    """Return a call that runs the graph in OpenVINO."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = core().compile_model(core().read_model(serialized), "CPU", settings)
    return lambda inputs: compiled(inputs)[OUTPUT]


if __name__ == "__main__":
    main()
