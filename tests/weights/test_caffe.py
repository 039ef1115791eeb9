from __future__ import annotations

import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from reskit.errors import MissingExtraError, WeightsError
from reskit.weights import caffe
from reskit.weights.building import GraphBuilder
from reskit.weights.caffe.schema import message_class
from reskit.weights.checkpoint import READERS
from reskit.weights.operators import evaluate

pytest.importorskip("google.protobuf")

# Windows that do not divide the map, in-place layers, factors, groups, branches: all in one small network.
SMALL = """
name: "small"
input: "image" input_shape { dim: 1 dim: 3 dim: 13 dim: 11 }
layer { name: "c1" type: "Convolution" bottom: "image" top: "c1"
  convolution_param { num_output: 8 kernel_h: 3 kernel_w: 5 pad_h: 1 pad_w: 2 stride: 1
                      weight_filler { type: "msra" } engine: CAFFE } }
layer { name: "b1" type: "BatchNorm" bottom: "c1" top: "c1" batch_norm_param { eps: 0.01 } }
layer { name: "s1" type: "Scale" bottom: "c1" top: "c1" scale_param { bias_term: true } }
layer { name: "p1" type: "PReLU" bottom: "c1" top: "p1" }
layer { name: "c2" type: "Convolution" bottom: "p1" top: "c2"
  convolution_param { num_output: 8 kernel_size: 3 pad: 2 dilation: 2 group: 4 bias_term: false } }
layer { name: "b2" type: "BatchNorm" bottom: "c2" top: "c2" }
layer { name: "r2" type: "ReLU" bottom: "c2" top: "c2" relu_param { negative_slope: 0.125 } }
layer { name: "d2" type: "Dropout" bottom: "c2" top: "c2" }
layer { name: "e" type: "Eltwise" bottom: "p1" bottom: "c2" top: "e"
  eltwise_param { coeff: 1 coeff: -0.5 } }
layer { name: "m" type: "Pooling" bottom: "e" top: "m"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "a" type: "Pooling" bottom: "e" top: "a"
  pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "sig" type: "Sigmoid" bottom: "a" top: "sig" }
layer { name: "prod" type: "Eltwise" bottom: "m" bottom: "sig" top: "prod"
  eltwise_param { operation: PROD } }
layer { name: "tanh" type: "TanH" bottom: "a" top: "tanh" }
layer { name: "cat" type: "Concat" bottom: "prod" bottom: "tanh" top: "cat" }
layer { name: "s3" type: "Scale" bottom: "cat" top: "s3" }
layer { name: "fc" type: "InnerProduct" bottom: "s3" top: "fc" inner_product_param { num_output: 6 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
SHAPES = {
    "c1": [(8, 3, 3, 5), (8,)],
    "b1": [(8,), (8,), (1,)],
    "s1": [(8,), (8,)],
    "p1": [(8,)],
    "c2": [(8, 2, 3, 3)],
    "b2": [(8,), (8,), (1,)],
    "s3": [(16,)],
    "fc": [(6, 16 * 7 * 6), (6,)],
}
TINY = """
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { crop_size: 4 mean_value: 1 } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
  transform_param { crop_size: 6 scale: 0.5 mean_value: 10 mean_value: 20 mean_value: 30 } }
layer { name: "bn" type: "BatchNorm" bottom: "data" top: "bn" }
layer { name: "conv" type: "Convolution" bottom: "bn" top: "conv"
  convolution_param { num_output: 2 kernel_size: 3 } }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool"
  pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 2 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
layer { name: "acc" type: "Accuracy" bottom: "fc" bottom: "label" top: "acc" include { phase: TEST } }
"""
TINY_SHAPES = {"bn": [(3,), (3,), (1,)], "conv": [(2, 3, 3, 3), (2,)], "fc": [(2, 2), (2,)]}


def parse(text: str) -> Any:
    from google.protobuf import text_format

    return text_format.Parse(text, message_class("NetParameter")(), allow_unknown_field=True)


def fill(blob: Any, array: np.ndarray[Any, Any], *, legacy: bool = False) -> None:
    if legacy:
        blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - array.ndim) + array.shape
    else:
        blob.shape.dim.extend(array.shape)
    blob.data.append(array.astype("<f4").tobytes())


def binary(text: str, shapes: dict[str, list[tuple[int, ...]]], *, legacy: bool = False) -> bytes:
    random = np.random.default_rng(0)
    network = parse(text)
    for layer in network.layer:
        for index, shape in enumerate(shapes.get(layer.name, ())):
            values = random.normal(0, 0.5, shape)
            if layer.type == "BatchNorm":
                values = np.full(shape, 2.5) if index == 2 else abs(values) + 0.1
            fill(layer.blobs.add(), values, legacy=legacy)
    return bytes(network.SerializeToString())


def write(folder: Path, text: str | None, content: bytes) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "net.caffemodel"
    model.write_bytes(content)
    if text is None:
        return [model]
    (folder / "net.prototxt").write_text(text)
    return [folder / "net.prototxt", model]


def opencv(text: str, model: Path, images: Tensor, answer: str) -> Tensor:
    cv2 = pytest.importorskip("cv2")
    network = cv2.dnn.readNetFromCaffe(
        np.frombuffer(text.encode(), np.uint8), np.frombuffer(model.read_bytes(), np.uint8)
    )
    answers = []
    for image in images:
        network.setInput(image[None].numpy())
        answers.append(torch.from_numpy(network.forward(answer).copy()))
    return torch.cat(answers).flatten(1)


def attempt(files: Sequence[Path]) -> tuple[Mapping[str, Tensor], str]:
    """Return the weights, or nothing and the message of the one kind of error there may be."""
    try:
        return caffe.read_caffe(files).state, ""
    except WeightsError as error:
        return {}, str(error)


def assert_agree(ours: Tensor, theirs: Tensor) -> None:
    assert ours.flatten(1).shape == theirs.shape
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours.flatten(1), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("legacy", [False, True])
def test_every_kind_of_layer_agrees_with_opencv(tmp_path: Path, legacy: bool) -> None:
    files = write(tmp_path, SMALL, binary(SMALL, SHAPES, legacy=legacy))
    checkpoint = caffe.read_caffe(files)
    assert checkpoint.graph is not None
    assert checkpoint.graph.input_shape == (3, 13, 11)
    assert any("softmax" in note for note in checkpoint.notes)
    images = torch.randn(3, 3, 13, 11, generator=torch.Generator().manual_seed(0))
    assert_agree(evaluate(checkpoint.graph, images), opencv(SMALL, files[1], images, "fc"))
    alone = caffe.read_caffe([files[1]])
    assert alone.graph is not None
    torch.testing.assert_close(evaluate(alone.graph, images), evaluate(checkpoint.graph, images))


@pytest.mark.parametrize("round_mode", ["", "round_mode: FLOOR"])
def test_pooling_rounds_as_the_file_says(tmp_path: Path, round_mode: str) -> None:
    text = re.sub(r"(stride: 2 pad): 1", rf"\1: 0 {round_mode}", SMALL).replace("13", "14")
    height, width = (6, 5) if round_mode else (7, 5)
    shapes = SHAPES | {"fc": [(6, 16 * height * width), (6,)]}
    graph = caffe.read_caffe(write(tmp_path, text, binary(text, shapes))).graph
    assert graph is not None
    assert evaluate(graph, torch.randn(1, 3, 14, 11)).shape == (1, 6)


def test_normalisation_and_scale_become_one_node(tmp_path: Path) -> None:
    graph = caffe.read_caffe(write(tmp_path, SMALL, binary(SMALL, SHAPES))).graph
    assert graph is not None
    kinds = {node.name: node.op for node in graph.nodes}
    assert kinds["b1"] == kinds["b2"] == "batch_norm"
    assert "s1" not in kinds
    assert kinds["s3"] == "scale"
    assert set(graph.weights["b2.weight"].tolist()) == {1.0}


def test_folding_keeps_what_is_computed() -> None:
    builder = GraphBuilder(limit=1000)
    first, second, third, fourth, scale, shift = torch.rand(6, 3) + 0.5
    weights = {"weight": first, "bias": second, "running_mean": third, "running_var": fourth}
    value = builder.per_channel("n", "batch_norm", builder.input, weights, eps=1e-5)
    graph = builder.finish(builder.per_channel("s", "scale", value, {"weight": scale, "bias": shift}))
    assert len(graph.nodes) == 1
    x = torch.randn(2, 3, 4, 4)
    expected = F.batch_norm(x, third, fourth, first, second) * scale.view(3, 1, 1) + shift.view(3, 1, 1)
    torch.testing.assert_close(evaluate(graph, x), expected)


def test_more_weights_than_the_file_holds_are_refused() -> None:
    builder = GraphBuilder(limit=20)
    value = builder.per_channel("a", "scale", builder.input, {"weight": torch.ones(3)})
    with pytest.raises(WeightsError, match="far more weights than the file"):
        builder.per_channel("b", "scale", value, {"weight": torch.ones(3)})


def test_sizes_are_followed_where_they_are_known() -> None:
    builder = GraphBuilder(limit=10**6)
    builder.set_input(None, 7, None)
    window = {"kernel": [3, 3], "stride": [2, 2], "padding": [0, 0, 0, 0]}
    value = builder.pool("p", builder.input, "max_pool", **window, ceil_mode=True)
    value = builder.conv("c", value, torch.ones(4, 3, 3, 1))
    assert value.shape == (4, (1, None))
    assert builder.input.channels == 3
    with pytest.raises(WeightsError, match="'q' has a window larger than its map"):
        builder.pool("q", value, "avg_pool", **window)


def test_training_text_is_read_in_its_test_phase(tmp_path: Path) -> None:
    content = binary(TINY, TINY_SHAPES)
    checkpoint = caffe.read_caffe(write(tmp_path, TINY, content))
    assert checkpoint.graph is not None
    assert checkpoint.graph.input_shape == (3, 6, 6)
    assert [node.op for node in checkpoint.graph.nodes] == [
        "batch_norm",
        "conv",
        "global_avg_pool",
        "flatten",
        "linear",
    ]
    assert checkpoint.preprocess["size"] == (6, 6)
    assert checkpoint.preprocess["mean"] == pytest.approx((10 / 255, 20 / 255, 30 / 255))
    assert checkpoint.preprocess["std"] == pytest.approx((2 / 255,) * 3)


@pytest.mark.parametrize("kind", ["binaryproto", "npy"])
def test_mean_image_is_cropped_to_the_input(tmp_path: Path, kind: str) -> None:
    files = write(tmp_path, TINY, binary(TINY, TINY_SHAPES))
    mean = np.arange(3 * 8 * 8, dtype=np.float32).reshape(3, 8, 8)
    path = tmp_path / f"mean.{kind}"
    if kind == "npy":
        np.save(path, mean)
    else:
        blob = message_class("BlobProto")()
        fill(blob, mean, legacy=True)
        path.write_bytes(blob.SerializeToString())
    preprocess = caffe.read_caffe([*files, path]).preprocess
    torch.testing.assert_close(preprocess["mean_image"], torch.from_numpy(mean[:, 1:7, 1:7]) / 255)
    assert preprocess["mean"] == pytest.approx(tuple(mean.mean((1, 2)) / 255))
    assert preprocess["std"] == pytest.approx((2 / 255,) * 3)


def test_mean_image_tells_the_size_where_nothing_else_does(tmp_path: Path) -> None:
    text = TINY.replace("crop_size: 6", 'mean_file: "mean.binaryproto"').replace(
        "mean_value: 10 mean_value: 20 mean_value: 30", ""
    )
    files = write(tmp_path, text, binary(text, TINY_SHAPES))
    without = caffe.read_caffe(files)
    assert without.graph is not None
    assert without.graph.input_shape == (3, None, None)
    assert "mean" not in without.preprocess
    assert any("mean.binaryproto" in note for note in without.notes)
    np.save(tmp_path / "mean.npy", np.ones((3, 7, 5)))
    assert caffe.read_caffe([*files, tmp_path / "mean.npy"]).preprocess["size"] == (7, 5)
    np.save(tmp_path / "mean.npy", np.array([1.0, 2.0, 3.0]))
    preprocess = caffe.read_caffe([*files, tmp_path / "mean.npy"]).preprocess
    assert preprocess["mean"] == pytest.approx((1 / 255, 2 / 255, 3 / 255))
    assert "mean_image" not in preprocess


def test_layers_in_one_file_only_are_named(tmp_path: Path) -> None:
    content = binary(TINY, TINY_SHAPES)
    with pytest.raises(
        WeightsError, match=r"net\.prototxt: layers without weights in the .caffemodel: other"
    ):
        caffe.read_caffe(write(tmp_path, TINY.replace('name: "conv"', 'name: "other"'), content))
    more = re.sub(r"layer \{ name: \"bn\".*\n", "", TINY).replace('bottom: "bn"', 'bottom: "data"')
    with pytest.raises(WeightsError, match=r"layers of the .caffemodel that are not here: bn"):
        caffe.read_caffe(write(tmp_path, more, content))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Sigmoid", "LRN", "layer 'sig' is of type 'LRN', which is not read"),
        ("operation: PROD", "operation: MAX", "'prod' .* takes the maximum"),
        ("num_output: 8 kernel_size: 3", "num_output: 7 kernel_size: 3", "'c2' .* do not fit its options"),
        ("group: 4", "group: 3", "'c2' has 8 channels in 3 groups"),
        ("group: 4", "group: 2", "'c2' takes 8 channels and its weights are for 4"),
        ("stride: 2 pad: 1", "stride: 0 pad: 1", "'m' has a window"),
        ("bias_term: false", "bias_term: true", "'c2' .* needs 2 arrays of weights and has 1"),
        ('bottom: "sig"', 'bottom: "nowhere"', "'prod' takes 'nowhere', which no layer before it gives"),
        ("dim: 13", "dim: 0", "input has the shape"),
        ("dim: 13", "dim: 999999999", "images of"),
        ("coeff: -0.5", "coeff: nan", "'e_1' .* scale of nan"),
        ("pool: MAX", "pool: STOCHASTIC", "'m' .* pools stochastically"),
        ("pool: MAX", "pool: NOSUCH", "not the text of a Caffe network"),
        ("layer {", "layers {", "upgrade_net_proto"),
        ("layer {", "layer {{", "not the text of a Caffe network"),
        ('"small"', '"small', "not the text of a Caffe network"),
        (SMALL, "", "0 bytes"),
        (SMALL, "x { " * 5000, "not the text of a Caffe network"),
        (SMALL, 'name: "empty"', "no layers in it"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = SMALL.replace(old, new)
    assert text != SMALL
    with pytest.raises(WeightsError, match=rf"net\.prototxt: .*{message}"):
        caffe.read_caffe(write(tmp_path, text, binary(SMALL, SHAPES)))


def test_first_format_is_refused_with_advice(tmp_path: Path) -> None:
    network = message_class("NetParameter")()
    network.layers.add()
    with pytest.raises(WeightsError, match="upgrade_net_proto_binary"):
        caffe.read_caffe(write(tmp_path, None, network.SerializeToString()))


def test_files_are_sorted_by_name(tmp_path: Path) -> None:
    files = write(tmp_path, TINY, binary(TINY, TINY_SHAPES))
    assert caffe.claims(files)
    assert not caffe.claims([tmp_path / "model.onnx", "hf:someone/net.caffemodel"])
    assert READERS.get("caffe").read is caffe.read_caffe
    for wrong, message in (
        ([files[0]], "without weights"),
        ([*files, files[1]], "are for the same"),
        ([*files, tmp_path / "labels.txt"], "no part of a Caffe network"),
        ([tmp_path / "gone.caffemodel"], "there is no file"),
    ):
        with pytest.raises(WeightsError, match=message):
            caffe.read_caffe(wrong)


def test_missing_protobuf_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write(tmp_path, TINY, binary(TINY, TINY_SHAPES))
    message_class.cache_clear()
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    with pytest.raises(MissingExtraError, match="formats"):
        caffe.read_caffe(files)


def test_cut_short_anywhere_is_one_clear_error(tmp_path: Path) -> None:
    content = binary(TINY, TINY_SHAPES)
    whole = caffe.read_caffe(write(tmp_path, TINY, content)).state
    for size in range(0, len(content), 7):
        files = write(tmp_path, TINY, content[:size])
        state, message = attempt(files)
        # What is read after all lacks only what comes after all weights.
        assert "net." in message or all(torch.equal(state[name], whole[name]) for name in whole)


def _swarm() -> bytes:
    return b"\xa2\x06\x00" * 300_000


def _blob(shape: Sequence[int], data: bytes) -> bytes:
    network = parse(TINY)
    blob = next(layer for layer in network.layer if layer.name == "fc").blobs.add()
    blob.shape.dim.extend(shape)
    blob.data.append(data)
    return bytes(network.SerializeToString())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"PK\x03\x04" + bytes(100),
        b"\x80\x02}q\x00." * 10,
        b"\xa2\x06\xff\xff\xff\xff\x0f",  # a layer of 4 GB
        b"\xff" * 64,
        _swarm(),
        _blob([1 << 40, 1 << 40], bytes(16)),
        _blob([-2, -2], bytes(16)),
        _blob([0, 1 << 62, 4], bytes(16)),
        _blob([1] * 5000, bytes(4)),
        _blob([2, 2], bytes(15)),
        parse(TINY).SerializeToString().replace(b"conv", b"\xff\xfe\xfd\xfc"),
    ],
)
def test_hostile_models_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(WeightsError, match=r"net\.caffemodel: "):
        caffe.read_caffe(write(tmp_path, None, content))


def _npy(header: str) -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64)


def _array(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 99999999, 9999999), }"),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, -1, 2), }"),
        _npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }"),
        _npy("__import__('os')"),
        _array(np.array([object()] * 3)),
        _array(np.array(["a"] * 3)),
        _array(np.full((3, 6, 6), np.nan)),
        _array(np.zeros((3, 2, 2))),
        _array(np.zeros((1, 6, 6))),
        _array(np.zeros((2, 3, 6, 6))),
    ],
)
def test_hostile_means_are_refused(tmp_path: Path, content: bytes) -> None:
    files = write(tmp_path, TINY, binary(TINY, TINY_SHAPES))
    (tmp_path / "mean.npy").write_bytes(content)
    with pytest.raises(WeightsError, match=r"mean\.npy: "):
        caffe.read_caffe([*files, tmp_path / "mean.npy"])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_never_crash(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "caffe_fuzz"
    for part in ("model", "text"):
        content = bytearray(binary(TINY, TINY_SHAPES) if part == "model" else TINY.encode())
        for place, value in changes:
            content[place % len(content)] = value
        files = write(folder, TINY, binary(TINY, TINY_SHAPES))
        files[part == "model"].write_bytes(content)
        for chosen in (files, files[1:]):
            state, message = attempt(chosen)
            assert state or "net." in message


def deploy(text: str, size: int) -> str:
    """Return a training text without data, losses and measures, by its lines alone."""
    blocks = re.split(r"(?m)^(?=layer \{)", text)
    dropped = r'type: "(Data|SoftmaxWithLoss|Accuracy)"'
    kept = [block for block in blocks[1:] if not re.search(dropped, block)]
    return f'input: "Data1" input_dim: 1 input_dim: 3 input_dim: {size} input_dim: {size}\n' + "".join(kept)


def real_images(shared_data: Path, count: int) -> Tensor:
    from datasets import Dataset

    rows = Dataset.from_parquet(
        str(shared_data / "cifar10-lossless-4k" / "train-00000-of-00001.parquet"), keep_in_memory=True
    )[:count]
    pictures = next(column for column in rows.values() if hasattr(column[0], "size"))
    return torch.stack([torch.from_numpy(np.array(picture.convert("RGB"))) for picture in pictures]).permute(
        0, 3, 1, 2
    )


@pytest.mark.parametrize("name", ["caffe-cifar-resnet20", "caffe-cifar-plain20"])
def test_published_cifar_networks_agree_with_opencv(shared_data: Path, name: str) -> None:
    files = sorted((shared_data / "weights" / name).iterdir())
    checkpoint = caffe.read_caffe(files)
    assert checkpoint.graph is not None
    model, text = (next(f for f in files if f.suffix == s) for s in (".caffemodel", ".prototxt"))
    random = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 50
    images = torch.cat([random, real_images(shared_data, 4).float() - 120])
    theirs = opencv(deploy(text.read_text(), 32), model, images, "InnerProduct1")
    assert_agree(evaluate(checkpoint.graph, images), theirs)


def test_published_face_network_agrees_with_opencv(shared_data: Path) -> None:
    files = sorted((shared_data / "weights" / "caffe-mobilefacenet").iterdir())
    checkpoint = caffe.read_caffe(files)
    assert checkpoint.graph is not None
    assert checkpoint.graph.input_shape == (3, 112, 112)
    model, text = (next(f for f in files if f.suffix == s) for s in (".caffemodel", ".prototxt"))
    random = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    real = torch.nn.functional.interpolate(real_images(shared_data, 2).float(), size=(112, 112))
    images = torch.cat([random, (real - 127.5) / 128])
    assert_agree(evaluate(checkpoint.graph, images), opencv(text.read_text(), model, images, "fc1_scale"))
