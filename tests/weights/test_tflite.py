from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
import tflite
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reskit.errors import WeightsError
from reskit.weights.checkpoint import READERS
from reskit.weights.keras import read_keras
from reskit.weights.operators import evaluate
from reskit.weights.tflite import read_tflite

pytestmark = pytest.mark.filterwarnings("ignore:.*LiteRT.*", "ignore:.*numpy.core.*")
OPERATORS = vars(tflite.BuiltinOperator)
Tensor = tuple[Sequence[int], np.ndarray | None]  # shape, content if constant
# kind, inputs, output, type of the settings, settings
Operator = tuple[str, Sequence[int], int, str | None, dict[str, Any]]


def encode(tensors: Sequence[Tensor], operators: Sequence[Operator], answer: int) -> bytes:
    """Write a TFLite file; tensor 0 is the image."""
    b = flatbuffers.Builder(0)

    def vector(items: Sequence[int], start: Any, prepend: Any) -> int:
        start(b, len(items))
        for item in reversed(items):
            prepend(item)
        return int(b.EndVector())

    def integers(items: Sequence[int], start: Any) -> int:
        return vector(items, start, b.PrependInt32)

    buffers, described = [], []
    tflite.BufferStart(b)
    buffers.append(tflite.BufferEnd(b))
    kinds = {"float32": 0, "float16": 1, "int32": 2, "int8": 9}
    for shape, content in tensors:
        index = 0
        if content is not None:
            data = b.CreateNumpyVector(np.ascontiguousarray(content).view(np.uint8).ravel())
            tflite.BufferStart(b)
            tflite.BufferAddData(b, data)
            index = len(buffers)
            buffers.append(tflite.BufferEnd(b))
        sizes = integers(shape, tflite.TensorStartShapeVector)
        tflite.TensorStart(b)
        tflite.TensorAddShape(b, sizes)
        tflite.TensorAddType(b, 0 if content is None else kinds[str(content.dtype)])
        tflite.TensorAddBuffer(b, index)
        described.append(tflite.TensorEnd(b))
    codes, steps = [], []
    for kind, inputs, output, options, values in operators:
        tflite.OperatorCodeStart(b)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(b, min(OPERATORS[kind], 127))
        tflite.OperatorCodeAddBuiltinCode(b, OPERATORS[kind])
        tflite.OperatorCodeAddVersion(b, 1)
        codes.append(tflite.OperatorCodeEnd(b))
        table = 0
        if options is not None:
            getattr(tflite, f"{options}Start")(b)
            for key, value in values.items():
                getattr(tflite, f"{options}Add{key}")(b, value)
            table = getattr(tflite, f"{options}End")(b)
        taken = integers(inputs, tflite.OperatorStartInputsVector)
        given_ = integers([output], tflite.OperatorStartOutputsVector)
        tflite.OperatorStart(b)
        tflite.OperatorAddOpcodeIndex(b, len(codes) - 1)
        tflite.OperatorAddInputs(b, taken)
        tflite.OperatorAddOutputs(b, given_)
        if options is not None:
            tflite.OperatorAddBuiltinOptionsType(b, getattr(tflite.BuiltinOptions, options))
            tflite.OperatorAddBuiltinOptions(b, table)
        steps.append(tflite.OperatorEnd(b))

    def offsets(items: Sequence[int], start: Any) -> int:
        return vector(items, start, b.PrependUOffsetTRelative)

    parts = [
        offsets(described, tflite.SubGraphStartTensorsVector),
        integers([0], tflite.SubGraphStartInputsVector),
        integers([answer], tflite.SubGraphStartOutputsVector),
        offsets(steps, tflite.SubGraphStartOperatorsVector),
    ]
    tflite.SubGraphStart(b)
    for add, part in zip(("Tensors", "Inputs", "Outputs", "Operators"), parts, strict=True):
        getattr(tflite, f"SubGraphAdd{add}")(b, part)
    net = tflite.SubGraphEnd(b)
    lists = [
        offsets(codes, tflite.ModelStartOperatorCodesVector),
        offsets([net], tflite.ModelStartSubgraphsVector),
        offsets(buffers, tflite.ModelStartBuffersVector),
    ]
    tflite.ModelStart(b)
    tflite.ModelAddVersion(b, 3)
    for add, part in zip(("OperatorCodes", "Subgraphs", "Buffers"), lists, strict=True):
        getattr(tflite, f"ModelAdd{add}")(b, part)
    b.Finish(tflite.ModelEnd(b), b"TFL3")
    return bytes(b.Output())


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(0, 0.5, shape).astype("float32")


def constant(array: np.ndarray) -> Tensor:
    return array.shape, array


WINDOW = {"StrideH": 2, "StrideW": 2}
NETWORK: tuple[list[Tensor], list[Operator], int] = (
    [
        ([1, 11, 12, 3], None),  # 0
        constant(np.float32([2.0])),
        constant(np.float32([-1.0, 0.0, 0.5])),
        ([1, 11, 12, 3], None),
        ([1, 11, 12, 3], None),
        constant(np.int32([[0, 0], [1, 0], [2, 1], [0, 0]])),  # 5
        ([1, 12, 15, 3], None),
        constant(random(8, 3, 3, 3)),
        constant(random(8)),
        ([1, 5, 7, 8], None),
        constant(random(1, 3, 3, 16)),  # 10
        constant(random(16)),
        ([1, 3, 4, 16], None),
        ([1, 2, 2, 16], None),
        ([1, 2, 2, 16], None),
        ([1, 2, 2, 32], None),  # 15
        constant(np.int32([1, 2])),
        ([1, 32], None),
        constant(random(32, 32)),
        ([1, 32], None),
        ([1, 1, 1, 32], None),  # 20
        ([1, 2, 2, 32], None),
        constant(random(1, 1, 32)),
        ([1, 2, 2, 32], None),
        ([1, 2, 2, 32], None),
        ([1, 128], None),  # 25
        constant(random(10, 128).astype("float16")),
        ([10, 128], None),
        ([1, 10], None),
        ([1, 10], None),
        constant(np.int32([1, 1, 1, 32])),  # 30
        constant(np.int32([1, 128])),
    ],
    [
        ("MUL", [0, 1], 3, "MulOptions", {}),
        ("ADD", [3, 2], 4, "AddOptions", {}),
        ("PAD", [4, 5], 6, None, {}),
        ("CONV_2D", [6, 7, 8], 9, "Conv2DOptions", {**WINDOW, "Padding": 1, "FusedActivationFunction": 3}),
        (
            "DEPTHWISE_CONV_2D",
            [9, 10, 11],
            12,
            "DepthwiseConv2DOptions",
            {**WINDOW, "Padding": 0, "DepthMultiplier": 2},
        ),
        ("MAX_POOL_2D", [12], 13, "Pool2DOptions", {**WINDOW, "FilterHeight": 3, "FilterWidth": 3}),
        (
            "AVERAGE_POOL_2D",
            [13],
            14,
            "Pool2DOptions",
            {"StrideH": 1, "StrideW": 1, "FilterHeight": 2, "FilterWidth": 2},
        ),
        ("CONCATENATION", [13, 14], 15, "ConcatenationOptions", {"Axis": 3}),
        ("MEAN", [15, 16], 17, "ReducerOptions", {}),
        ("FULLY_CONNECTED", [17, 18, -1], 19, "FullyConnectedOptions", {}),
        ("RESHAPE", [19, 30], 20, None, {}),
        ("MUL", [20, 15], 21, "MulOptions", {}),
        ("PRELU", [21, 22], 23, None, {}),
        ("HARD_SWISH", [23], 24, None, {}),
        ("RESHAPE", [24, 31], 25, None, {}),
        ("DEQUANTIZE", [26], 27, None, {}),
        ("FULLY_CONNECTED", [25, 27, -1], 28, "FullyConnectedOptions", {}),
        ("SOFTMAX", [28], 29, "SoftmaxOptions", {"Beta": 1.0}),
    ],
    28,  # logits
)


def interpreter(path: Path) -> Any:
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    network = litert.Interpreter(model_path=str(path), num_threads=1)
    network.allocate_tensors()
    return network


def run(network: Any, image: np.ndarray) -> torch.Tensor:
    network.set_tensor(network.get_input_details()[0]["index"], image[None])
    network.invoke()
    return torch.tensor(network.get_tensor(network.get_output_details()[0]["index"]))


def test_graph_agrees_with_litert(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(encode(*NETWORK))
    checkpoint = read_tflite([tmp_path / "m.tflite"])
    image = random(11, 12, 3)
    expected = run(interpreter(tmp_path / "m.tflite"), image)
    # The first two operators are taken into the preprocessing.
    mean, std = (torch.tensor(checkpoint.preprocess[key]) for key in ("mean", "std"))
    x = ((torch.from_numpy(image) - mean) / std).permute(2, 0, 1)[None]
    out = evaluate(checkpoint.graph, x)
    assert expected.std() > 1e-2
    assert float((out - expected).abs().max() / expected.abs().max()) < 1e-5
    assert std.tolist() == [0.5, 0.5, 0.5]
    assert mean.tolist() == [0.5, 0.0, -0.25]
    assert checkpoint.graph.input_shape == (3, 11, 12)


def test_softmax_is_left_off(tmp_path: Path) -> None:
    tensors, operators, _ = NETWORK
    (tmp_path / "m.tflite").write_bytes(encode(tensors, operators, 29))
    checkpoint = read_tflite([tmp_path / "m.tflite"])
    assert checkpoint.graph.nodes[-1].op == "linear"
    assert any("softmax" in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    ("tensors", "operator", "message"),
    [
        ([constant(np.int8([1]))], ("ADD", [0, 2], 1, "AddOptions", {}), "quantised"),
        ([], ("SIN", [0], 1, None, {}), "SIN"),
        ([], ("CONV_2D", [0, 0, 0], 1, "Conv2DOptions", {}), "no weights"),
        ([], ("CONV_2D", [0, 99], 1, "Conv2DOptions", {}), "not there"),
        ([], ("CONV_2D", [0], 1, "Conv2DOptions", {}), "too few"),
        ([constant(random(4, 1, 1, 2))], ("CONV_2D", [0, 2], 1, "Conv2DOptions", WINDOW), "are for 2"),
        ([constant(random(4, 1, 1, 3))], ("CONV_2D", [0, 2], 1, "Conv2DOptions", {}), "stride"),
        ([constant(np.int32([2, 3]))], ("MEAN", [0, 2], 1, "ReducerOptions", {}), "axes"),
        ([], ("RELU", [1], 1, None, {}), "earlier"),
        ([], ("CONCATENATION", [0, 0], 1, "ConcatenationOptions", {"Axis": 1}), "axis"),
    ],
)
def test_networks_refused(tmp_path: Path, tensors: list[Tensor], operator: Operator, message: str) -> None:
    image = [1, 6, 6, 3]
    (tmp_path / "m.tflite").write_bytes(encode([(image, None), (image, None), *tensors], [operator], 1))
    with pytest.raises(WeightsError, match=message) as error:
        read_tflite([tmp_path / "m.tflite"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"TFL3", b"\x00\x00\x00\x00TFL3", b"\xff\xff\xff\xffTFL3" + bytes(64)]
)
def test_what_is_no_tflite_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.tflite").write_bytes(content)
    assert READERS.get("tflite").claims([tmp_path / "m.tflite"])
    with pytest.raises(WeightsError, match=r"m\.tflite"):
        read_tflite([tmp_path / "m.tflite"])
    with pytest.raises(WeightsError, match="no TFLite file"):
        read_tflite([tmp_path / "absent.tflite"])


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8), cut=st.booleans())
def test_damage_is_one_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]], cut: bool
) -> None:
    content = bytearray(encode(*NETWORK))
    for place, value in changes:
        content[int(place * len(content))] = value
    if cut and changes:
        del content[int(changes[0][0] * len(content)) :]
    path = tmp_path_factory.mktemp("damage") / "m.tflite"
    path.write_bytes(content)
    with contextlib.suppress(WeightsError):  # damage may be harmless; any other error fails the test
        read_tflite([path])


def test_mlperf_tiny_resnet8(shared_data: Path) -> None:
    """The same network in three files: Keras, floats and integers."""
    folder = shared_data / "weights" / "mlperf-tiny-resnet8"
    parquet = shared_data / "cifar10-lossless-4k" / "train-00000-of-00001.parquet"
    if not folder.is_dir() or not parquet.is_file():
        pytest.skip("needs the MLPerf Tiny ResNet-8 and CIFAR-10")
    import pyarrow.parquet
    from PIL import Image

    rows = pyarrow.parquet.read_table(parquet).slice(0, 200).to_pylist()
    images = np.stack([np.asarray(Image.open(io.BytesIO(row["img"]["bytes"]))) for row in rows])
    images = images.astype("float32")  # 0 to 255, as the benchmark feeds them
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    keras_logits = evaluate(read_keras([folder / "pretrainedResnet.h5"]).graph, x)
    logits = evaluate(read_tflite([folder / "pretrainedResnet.tflite"]).graph, x)
    network = interpreter(folder / "pretrainedResnet.tflite")
    expected = torch.cat([run(network, image) for image in images])
    assert float((logits - keras_logits).abs().max()) < 1e-4
    assert float((logits.softmax(1) - expected).abs().max()) < 1e-4
    labels = torch.tensor([row["label"] for row in rows])
    assert float((logits.argmax(1) == labels).float().mean()) > 0.88
    with pytest.raises(WeightsError, match="quantised"):
        read_tflite([folder / "pretrainedResnet_quant.tflite"])
