"""Work that is nothing but arithmetic, or nothing but copying: what each library makes of this machine.

Every function here is built in a process of its own. What it returns is asked for its cases by number.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from reskit.backends.worker import Call

__all__ = ["COPY", "PROBES", "Case", "Probe", "openvino_module"]

COPY = "copy"
"""In the place of a precision: memory is read and written."""

_DEPTH = 3  # layers in a row, so that bringing the input into the library's layout weighs little
_CHANNELS, _MAP = 256, 28  # a 3 x 3 convolution of the middle of a ResNet: bound by arithmetic


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        label: what it is, in words.
        kind: cases of one kind differ in size only, and come in rising order.
        precision: what it computes in, or `COPY`.
        work: floating-point (or integer) operations of a call, a multiply-add counted as two; bytes read and
            written for `COPY`.
        make: returns the call.
    """

    label: str
    kind: str
    precision: str
    work: float
    make: Callable[[], Call]


class Probe:
    """What a worker holds of the cases of one library: its "batch size" is the number of the case."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = cases
        self.facts = {"cases": [(case.label, case.kind, case.precision, case.work) for case in cases]}

    def __call__(self, number: int) -> Call:
        """Return the call of a case."""
        return self._cases[number].make()


def numpy_probe(threads: int, sides: Sequence[int]) -> Probe:
    """NumPy: the GEMM of its BLAS, which reads its threads in the environment, and a copy on one of them."""
    cases = [
        Case(f"NumPy matmul {n}", "matmul", "fp32", _gemm_work(n), partial(_numpy_gemm, n)) for n in sides
    ]
    return Probe([*cases, Case("NumPy copy", "copy", COPY, _copy_bytes(sides), partial(_numpy_copy, sides))])


def torch_probe(threads: int, sides: Sequence[int]) -> Probe:
    """PyTorch: GEMMs of MKL and oneDNN, convolutions of oneDNN, a copy on all threads."""
    import torch

    torch.set_num_threads(threads)
    cases = [Case("PyTorch copy", "copy", COPY, _copy_bytes(sides), partial(_torch_copy, sides))]
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for n in sides:
            make = partial(_torch_gemm, n, dtype)
            cases.append(Case(f"PyTorch mm {n}", f"mm-{precision}", precision, _gemm_work(n), make))
        for n in sides:
            label, make = f"PyTorch convolution, {_batch(n)}", partial(_torch_conv, n, dtype)
            cases.append(Case(label, f"convolution-{precision}", precision, _conv_work(n), make))
    for n in sides:
        make = partial(_torch_qlinear, n)
        cases.append(Case(f"PyTorch qlinear {n}", "qlinear", "int8", _gemm_work(n), make))
    return Probe(cases)


def onnxruntime_probe(threads: int, sides: Sequence[int]) -> Probe:
    """ONNX Runtime: the GEMMs of MLAS."""
    return Probe(
        [
            Case(f"ONNX Runtime {op} {n}", op, precision, _gemm_work(n), partial(_ort_gemm, n, op, threads))
            for op, precision in (("MatMul", "fp32"), ("QLinearMatMul", "int8"))
            for n in sides
        ]
    )


def openvino_probe(threads: int, sides: Sequence[int]) -> Probe:
    """OpenVINO: matrix products and convolutions of its oneDNN."""
    cases = []
    for precision in ("fp32", "bf16", "int8"):
        for n in sides:
            make = partial(_openvino_layers, n, precision, threads, convolves=False)
            work = _DEPTH * _gemm_work(n)
            cases.append(Case(f"OpenVINO MatMul {n}", f"MatMul-{precision}", precision, work, make))
        for n in sides:
            make = partial(_openvino_layers, n, precision, threads, convolves=True)
            label, work = f"OpenVINO convolution, {_batch(n)}", _DEPTH * _conv_work(n)
            cases.append(Case(label, f"convolution-{precision}", precision, work, make))
    return Probe(cases)


PROBES: dict[str, tuple[Callable[[int, Sequence[int]], Probe], tuple[str, ...]]] = {
    "numpy": (numpy_probe, ("numpy",)),
    "torch": (torch_probe, ("torch",)),
    "onnxruntime": (onnxruntime_probe, ("onnxruntime", "onnx")),
    "openvino": (openvino_probe, ("openvino",)),
}
"""Library to what builds its cases and the modules it needs."""


def openvino_module() -> Any:
    """Import OpenVINO in a process of ours, without the package by which it reports over the network."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


def _gemm_work(side: int) -> float:
    return 2.0 * side**3


def _conv_shape(side: int) -> tuple[int, int]:
    """Return images and channels of convolutions that are about as much work as a GEMM."""
    return max(1, side // 256), min(_CHANNELS, side)


def _conv_work(side: int) -> float:
    images, channels = _conv_shape(side)
    return 2.0 * images * _MAP**2 * 9 * channels**2


def _batch(side: int) -> str:
    images, channels = _conv_shape(side)
    return f"{images} x {channels} channels"


def _copy_floats(sides: Sequence[int]) -> int:
    """Return how many floats are copied: 256 MiB of them for sides of 2048, more than caches hold."""
    return 16 * max(sides) ** 2


def _copy_bytes(sides: Sequence[int]) -> float:
    return 2.0 * 4 * _copy_floats(sides)


def _numpy_gemm(side: int) -> Call:
    a, b = (np.random.default_rng(seed).random((side, side), dtype=np.float32) for seed in (0, 1))
    out = np.empty_like(a)
    return lambda: np.matmul(a, b, out=out)


def _numpy_copy(sides: Sequence[int]) -> Call:
    size = _copy_floats(sides)
    source, target = np.ones(size, np.float32), np.zeros(size, np.float32)
    return lambda: np.copyto(target, source)


def _torch_gemm(side: int, dtype: Any) -> Call:
    import torch

    a, b, out = (torch.rand(side, side).to(dtype) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


def _torch_conv(side: int, dtype: Any) -> Call:
    import torch

    batch, channels = _conv_shape(side)
    images, weight = (
        torch.rand(shape).to(dtype).to(memory_format=torch.channels_last)
        for shape in ((batch, channels, _MAP, _MAP), (channels, channels, 3, 3))
    )
    return lambda: torch.nn.functional.conv2d(images, weight, padding=1)


def _torch_qlinear(side: int) -> Call:
    import torch

    pixels = torch.randint(0, 256, (side, side), dtype=torch.uint8)
    weight = torch.randint(-127, 128, (side, side), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    scales, zeros = torch.full((side,), 0.01), torch.zeros(side, dtype=torch.int32)
    rest: Any = (packed, scales, zeros, None, 1.0, 0, torch.uint8, "none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise(pixels, 0.01, 0, *rest)


def _torch_copy(sides: Sequence[int]) -> Call:
    import torch

    size = _copy_floats(sides)
    source, target = torch.ones(size), torch.zeros(size)
    return lambda: target.copy_(source)


def _ort_gemm(side: int, op: str, threads: int) -> Call:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    if op == "MatMul":
        names, kind = ["x", "w"], TensorProto.FLOAT
        weights = {"w": random.random((side, side), dtype=np.float32)}
    else:
        names, kind = ["x", "s", "u", "w", "s", "i", "s", "u"], TensorProto.UINT8
        weights = {
            "w": random.integers(-127, 128, (side, side)).astype(np.int8),
            "s": np.array(0.01, np.float32),
            "u": np.array(0, np.uint8),
            "i": np.array(0, np.int8),
        }
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"])],
        "gemm",
        [helper.make_tensor_value_info("x", kind, [side, side])],
        [helper.make_tensor_value_info("y", kind, [side, side])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20)]
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    binding.bind_cpu_input(
        "x", random.integers(0, 256, (side, side)).astype(np.float32 if op == "MatMul" else np.uint8)
    )
    binding.bind_output("y")
    return lambda: session.run_with_iobinding(binding)


def _openvino_layers(side: int, precision: str, threads: int, *, convolves: bool) -> Call:
    """Return a call of some equal layers, each followed by a ReLU and, in int8, by rounding, which fuse."""
    openvino = openvino_module()
    from openvino import opset13 as op

    random = np.random.default_rng(0)
    batch, channels = _conv_shape(side)
    image = op.parameter([batch, channels, _MAP, _MAP] if convolves else [side, side], np.float32)
    shape = (channels, channels, 3, 3) if convolves else (side, side)
    x = image
    for _ in range(_DEPTH):
        values = random.integers(-127, 128, shape)
        if precision == "int8":
            low, high = op.constant(np.float32(0)), op.constant(np.float32(2.55))
            x = op.fake_quantize(x, low, high, low, high, 256)
            scale = np.full((shape[0], *(1 for _ in shape[1:])), 0.01, np.float32)
            weight = op.multiply(op.convert(op.constant(values.astype(np.int8)), "f32"), op.constant(scale))
        else:
            weight = op.constant(values.astype(np.float32) / 100)
        if convolves:
            x = op.convolution(x, weight, [1, 1], [1, 1], [1, 1], [1, 1])
        else:
            x = op.matmul(x, weight, False, True)
        x = op.relu(x)
    small = op.reduce_mean(x, op.constant(np.array([-1])), False)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # a pinned thread waits for whoever else is on its core
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    compiled = openvino.Core().compile_model(openvino.Model([small], [image]), "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(random.random(image.shape, dtype=np.float32)))
    return lambda: request.infer(share_outputs=True)
