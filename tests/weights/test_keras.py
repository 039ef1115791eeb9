from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reskit.errors import WeightsError
from reskit.weights.checkpoint import READERS, Checkpoint
from reskit.weights.graph import INPUT, OPERATORS, Graph, Node
from reskit.weights.keras import read_keras
from reskit.weights.keras.export import write_keras_h5
from reskit.weights.operators import evaluate
from reskit.weights.tracing import trace

keras = pytest.importorskip("keras")
# Keras warns of its own older file format, and of how its single input is nested.
pytestmark = pytest.mark.filterwarnings("ignore")
layers = keras.layers
KINDS = ["whole.h5", "whole.keras"]


def randomise(model: Any) -> None:
    """Give every weight a value that shows if it is lost or swapped."""
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.name in ("gamma", "moving_variance", "variance"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("beta", "moving_mean", "mean", "bias", "alpha"):
            variable.assign(random.normal(0, 0.3, variable.shape))


def answers(model: Any, x: torch.Tensor) -> torch.Tensor:
    """What Keras computes, for maps `(N, C, H, W)`."""
    return model(x.permute(0, 2, 3, 1).contiguous(), training=False).detach()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    assert b.std() > 1e-3
    return float((a - b).abs().max() / b.abs().max())


def small_model() -> Any:
    """All kinds of layers, and logits."""
    image = keras.Input((18, 20, 3))
    x = layers.ZeroPadding2D(((0, 1), (2, 1)))(image)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.BatchNormalization(scale=False)(x)
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, use_bias=False)(x)
    y = layers.BatchNormalization(center=False, epsilon=0.01)(y)
    y = layers.ReLU(6.0)(y)
    y = layers.SeparableConv2D(8, (3, 1), padding="same", activation="elu")(y)
    y = layers.PReLU(shared_axes=[1, 2])(y)
    x = layers.Add()([x, y])
    x = layers.LeakyReLU()(x)
    z = layers.Conv2D(8, 3, padding="same", dilation_rate=2, groups=2)(x)
    x = layers.Concatenate()([x, layers.Activation("swish")(z)])
    w = layers.GlobalAveragePooling2D()(x)  # squeeze and excitation, through vectors
    w = layers.Dense(4, activation="relu")(w)
    w = layers.Dense(16, activation="hard_sigmoid")(w)
    x = layers.Multiply()([x, layers.Reshape((1, 1, 16))(w)])
    x = layers.SpatialDropout2D(0.2)(x)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    x = layers.AveragePooling2D(2, padding="same", strides=1)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(7, activation="tanh")(x)
    return keras.Model(image, layers.Dense(5)(layers.Dropout(0.5)(x)))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """A folder of one small model in every kind of file, an input and Keras's answer."""
    folder = tmp_path_factory.mktemp("keras")
    model = small_model()
    randomise(model)
    for name in KINDS:
        model.save(folder / name)
    model.save_weights(folder / "only.weights.h5")
    x = torch.randn(2, 3, 18, 20, generator=torch.Generator().manual_seed(0))
    return folder, x, answers(model, x)


@pytest.mark.parametrize("kind", KINDS)
def test_graph_agrees_with_keras(small: tuple[Path, torch.Tensor, torch.Tensor], kind: str) -> None:
    folder, x, expected = small
    checkpoint = read_keras([folder / kind])
    assert relative(evaluate(checkpoint.graph, x), expected) < 1e-4
    assert checkpoint.graph.input_shape == (3, 18, 20)
    assert checkpoint.state is checkpoint.graph.weights
    assert checkpoint.provenance["keras_version"] == keras.__version__


def test_sequential_nested_shared_and_softmax(tmp_path: Path) -> None:
    relu = layers.ReLU()
    inner_image = keras.Input((8, 8, 4))
    inner = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(inner_image))
    block = keras.Model(inner_image, layers.Add()([inner, inner_image]))
    stem = keras.Sequential([layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization()], name="stem")
    image = keras.Input((8, 8, 3))
    x = relu(block(relu(stem(image))))
    x = layers.Dense(6)(layers.GlobalMaxPooling2D()(x))
    logits = keras.Model(image, x)
    randomise(logits)
    model = keras.Sequential([keras.Input((8, 8, 3)), logits, layers.Softmax()])
    x = torch.randn(2, 3, 8, 8)
    for kind in KINDS:
        model.save(tmp_path / kind)
        checkpoint = read_keras([tmp_path / kind])
        assert relative(evaluate(checkpoint.graph, x), answers(logits, x)) < 1e-4
        assert any("softmax" in note for note in checkpoint.notes)


def test_channels_first(tmp_path: Path) -> None:
    first: dict[str, Any] = {"data_format": "channels_first"}
    image = keras.Input((3, 9, 9))
    x = layers.Conv2D(4, 3, **first)(image)
    x = layers.BatchNormalization(axis=1)(x)
    x = layers.MaxPooling2D(2, **first)(x)
    model = keras.Model(image, layers.Dense(5)(layers.Flatten(**first)(x)))
    randomise(model)
    model.save(tmp_path / "first.keras")
    x = torch.randn(2, 3, 9, 9)
    graph = read_keras([tmp_path / "first.keras"]).graph
    assert relative(evaluate(graph, x), model(x, training=False).detach()) < 1e-4


@pytest.mark.parametrize("pixels", [255, 1])
def test_normalisation_becomes_preprocessing(tmp_path: Path, pixels: int) -> None:
    image = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 255)(image) if pixels == 255 else image
    x = layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.04, 0.05, 0.06])(x)
    model = keras.Model(image, layers.Conv2D(4, 3)(x))
    model.save(tmp_path / "m.keras")
    checkpoint = read_keras([tmp_path / "m.keras"])
    preprocess = checkpoint.preprocess
    assert preprocess["mean"] == pytest.approx([0.4, 0.5, 0.6])
    assert preprocess["std"] == pytest.approx(np.sqrt([0.04, 0.05, 0.06]))
    assert [node.op for node in checkpoint.graph.nodes] == ["conv"]
    x = torch.rand(2, 3, 8, 8)
    mean, std = (torch.tensor(preprocess[key])[:, None, None] for key in ("mean", "std"))
    expected = answers(model, x * pixels).permute(0, 3, 1, 2)
    assert relative(evaluate(checkpoint.graph, (x - mean) / std), expected) < 1e-4


@pytest.mark.parametrize(("second", "blocks"), [(False, [1, 2, 1, 1]), (True, [2, 3, 2, 2])])
def test_names_of_keras_applications(tmp_path: Path, second: bool, blocks: list[int]) -> None:
    from keras.src.applications import resnet
    from keras.src.legacy.saving import legacy_h5_format

    stack = resnet.stack_residual_blocks_v2 if second else resnet.stack_residual_blocks_v1

    def stages(x: Any) -> Any:
        for stage, count in enumerate(blocks):
            last = stage == 3
            stride = (1 if last else 2) if second else (1 if stage == 0 else 2)
            x = stack(x, 8 * 2**stage, count, stride1=stride, name=f"conv{stage + 2}")
        return x

    model = resnet.ResNet(
        stages, second, True, weights=None, input_shape=(48, 48, 3), classes=11, classifier_activation=None
    )
    randomise(model)
    model.save_weights(tmp_path / "new.weights.h5")
    with h5py.File(tmp_path / "old.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    x = torch.randn(2, 3, 48, 48)
    for name in ("new.weights.h5", "old.h5"):
        checkpoint = read_keras([tmp_path / name])
        assert relative(evaluate(checkpoint.graph, x), answers(model, x)) < 1e-4
        assert any("keras.applications" in note for note in checkpoint.notes)


def test_weights_alone_ask_for_the_model(small: tuple[Path, torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"model\.save\(\)"):
        read_keras([small[0] / "only.weights.h5"])


def test_files_of_keras_without_names(small: tuple[Path, torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    """Older ``.keras`` files have counted class names only."""
    folder, x, expected = small
    with zipfile.ZipFile(folder / "whole.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO(members["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        file.visititems(lambda _, item: item.attrs.pop("name") if "name" in item.attrs else None)
        file.move("layers", "_layer_checkpoint_dependencies")
    members["model.weights.h5"] = buffer.getvalue()
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert relative(evaluate(read_keras([tmp_path / "old.keras"]).graph, x), expected) < 1e-4


def conv_graph(count: int = 1) -> Graph:
    """A minute network."""
    nodes, weights, source = [], {}, INPUT
    for index in range(count):
        attributes = {
            "in_channels": 2,
            "out_channels": 2,
            "kernel_size": [3, 3],
            "stride": [1, 1],
            "groups": 1,
        }
        attributes |= {"padding": [1, 1, 1, 1], "dilation": [1, 1]}
        nodes.append(Node(name=f"conv{index}", op="conv", inputs=(source,), attributes=attributes))
        weights[f"conv{index}.weight"] = torch.randn(2, 2, 3, 3)
        source = f"conv{index}"
    return Graph(nodes=nodes, input_shape=(2, 6, 6), weights=weights)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the configuration in a file."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config)
        file.attrs["model_config"] = json.dumps(config)
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    write_keras_h5(conv_graph(), tmp_path / "tiny.h5", name="tiny")
    return tmp_path / "tiny.h5"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["config"]["layers"][1].update(class_name="Lambda"), "holds code"),
        (lambda c: c["config"]["layers"][1].update(class_name="Conv2d"), "did you mean 'Conv2D'"),
        (lambda c: c["config"]["layers"][1].update(module="my.package"), "custom"),
        (lambda c: c["config"]["layers"][1].update(registered_name="Mine>Conv2D"), "custom"),
        (lambda c: c.update(class_name="MyModel"), "Functional and Sequential"),
        (lambda c: c["config"]["layers"][1]["config"].update(use_bias=True), "needs 2: kernel, bias"),
        (
            lambda c: c["config"]["layers"][1]["config"].update(groups=2),
            "2 channels and its weights are for 4",
        ),
        (lambda c: c["config"]["layers"][1]["config"].update(strides=0), "stride"),
        (lambda c: c["config"]["layers"][1]["config"].update(activation="os.system"), "cannot read"),
        (
            lambda c: c["config"]["layers"][1].update(inbound_nodes=[[["conv0", 0, 0, {}]]]),
            "nothing computes",
        ),
        (lambda c: c["config"]["layers"].clear(), "no layers"),
        (lambda c: c["config"]["input_layers"].append(["image", 0, 0]), "2 input_layers"),
        (lambda c: c["config"]["layers"][0]["config"].update(batch_input_shape=[None, 6]), "no image"),
    ],
)
def test_configurations_refused(tiny: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(WeightsError, match=message) as error:
        read_keras([edit(tiny, change)])
    assert str(tiny) in str(error.value)
    assert "\n" not in str(error.value)


def test_links_to_other_files_are_not_followed(tiny: Path, tmp_path: Path) -> None:
    write_keras_h5(conv_graph(), tmp_path / "other.h5", name="other")
    for link in (h5py.ExternalLink(str(tmp_path / "other.h5"), "/model_weights/conv0"), h5py.SoftLink("/")):
        with h5py.File(tiny, "r+") as file:
            del file["model_weights/conv0"]
            file["model_weights/conv0"] = link
        with pytest.raises(WeightsError, match="not followed"):
            read_keras([tiny])


def test_external_virtual_and_huge_arrays_are_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(144))
    place = "model_weights/conv0/conv0/kernel:0"
    shape = (3, 3, 2, 2)
    with h5py.File(tiny, "r+") as file:
        del file[place]
        file.create_dataset(place, shape, "<f4", external=[(str(tmp_path / "secret.raw"), 0, 144)])
    with pytest.raises(WeightsError, match="other files"):
        read_keras([tiny])
    with h5py.File(tiny, "r+") as file:
        del file[place]
        layout = h5py.VirtualLayout(shape, "<f4")
        layout[:] = h5py.VirtualSource(tmp_path / "none.h5", "x", shape)
        file.create_virtual_dataset(place, layout)
    with pytest.raises(WeightsError, match="other files"):
        read_keras([tiny])
    with h5py.File(tiny, "r+") as file:
        del file[place]
        file.create_dataset(place, (3, 3, 2, 10**10), "<f4", chunks=(3, 3, 2, 2))
    with pytest.raises(WeightsError, match="larger than the file"):
        read_keras([tiny])


def test_zip_bombs_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b" " * 10_000_000)
        archive.writestr("metadata.json", b"{}")
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(WeightsError, match="larger than the file"):
        read_keras([tmp_path / "bomb.keras"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"no such thing"])
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_what_is_no_keras_file(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    assert READERS.get("keras").claims([path])
    with pytest.raises(WeightsError, match="file") as error:
        read_keras([path])
    assert "\n" not in str(error.value)
    with pytest.raises(WeightsError, match="no Keras file"):
        read_keras([tmp_path / "absent.h5"])


def test_claims(tmp_path: Path, tiny: Path) -> None:
    claims = READERS.get("keras").claims
    assert claims([tiny.rename(tmp_path / "model")])
    assert not claims([tmp_path / "absent"])
    assert not claims(["a.h5", "b.h5"])


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6), cut=st.booleans())
def test_damage_is_one_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]], cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    torch.manual_seed(0)
    write_keras_h5(conv_graph(2), folder / "m.h5", name="m")
    content = bytearray((folder / "m.h5").read_bytes())
    for place, value in changes:
        content[int(place * len(content))] = value
    if cut and changes:
        del content[int(changes[0][0] * len(content)) :]
    (folder / "m.h5").write_bytes(content)
    with contextlib.suppress(WeightsError):  # damage may be harmless; any other error fails the test
        read_keras([folder / "m.h5"])


def load(graph: Graph, path: Path) -> Any:
    write_keras_h5(graph, path, name="a model")
    return keras.models.load_model(path, compile=False)


@pytest.mark.parametrize("name", ["cifar_resnet8", "wrn_16_4"])
def test_our_networks_in_keras(tmp_path: Path, name: str) -> None:
    from reskit.models import create_model

    torch.manual_seed(0)
    model = create_model(name).eval()
    x = torch.randn(2, 3, 32, 32)
    graph = trace(model, (3, 32, 32))
    assert relative(answers(load(graph, tmp_path / "ours.h5"), x), model(x).detach()) < 1e-4
    assert relative(evaluate(read_keras([tmp_path / "ours.h5"]).graph, x), model(x).detach()) < 1e-4


def one(op: str, attributes: dict[str, Any] | None = None, **weights: torch.Tensor) -> Graph:
    """A graph of a ReLU and one operation on maps `(4, 9, 10)`."""
    before = Node(name="before", op="relu" if "pool" in op else "tanh", inputs=(INPUT,))
    twice = OPERATORS[op].inputs is None
    node = Node(name="node", op=op, inputs=("before",) * (2 if twice else 1), attributes=attributes or {})
    named = {f"node.{key}": tensor for key, tensor in weights.items()}
    return Graph(nodes=[before, node], input_shape=(4, 9, 10), weights=named)


WINDOW = {"kernel_size": [3, 3], "stride": [2, 2], "padding": [1, 1, 1, 1]}
OFF_CENTRE = {"padding": [1, 0, 1, 0]}
CONV = {**WINDOW, "in_channels": 4, "dilation": [1, 1]}
FOUR = torch.linspace(-1, 1, 4)
CASES = {
    "asymmetric": one(
        "conv",
        CONV | {"padding": [0, 1, 2, 0], "out_channels": 6, "groups": 2},
        weight=torch.randn(6, 2, 3, 3),
    ),
    "same": one(
        "conv", CONV | {"padding": "same", "out_channels": 2, "groups": 1}, weight=torch.randn(2, 4, 3, 3)
    ),
    "depthwise": one(
        "conv", CONV | {"out_channels": 8, "groups": 4}, weight=torch.randn(8, 1, 3, 3), bias=torch.randn(8)
    ),
    "batch_norm": one(
        "batch_norm",
        {"channels": 4, "eps": 0.1},
        weight=FOUR,
        bias=FOUR + 1,
        running_mean=FOUR - 1,
        running_var=FOUR + 2,
    ),
    "scale": one("scale", {"channels": 4}, weight=FOUR),
    "affine": one("affine", {"scale": 2.0, "shift": -1.0}),
    "prelu": one("prelu", {"channels": 4}, weight=FOUR),
    "leaky_relu": one("leaky_relu", {"slope": 0.3}),
    "elu": one("elu", {"alpha": 0.7}),
    **{
        name: one(name)
        for name in ("relu", "relu6", "sigmoid", "hard_sigmoid", "hard_swish", "swish", "tanh", "softmax")
    },
    **{name: one(name) for name in ("global_avg_pool", "global_max_pool", "add", "multiply", "concat")},
    "max_pool": one("max_pool", WINDOW | {"ceil_mode": False}),
    "max_pool_ceil": one("max_pool", WINDOW | {"ceil_mode": True, "padding": [0, 0, 0, 0]}),
    "max_pool_same": one("max_pool", WINDOW | {"ceil_mode": False, "padding": "same"}),
    "avg_pool": one("avg_pool", WINDOW | {"ceil_mode": False, "count_include_pad": True}),
    # A window of 2: Keras on PyTorch repeats the border, which for 2 is the same as leaving it out.
    "avg_pool_same": one(
        "avg_pool",
        WINDOW | {"ceil_mode": False, "count_include_pad": False, "padding": "same", "kernel_size": [2, 2]},
    ),
    "avg_pool_uncounted": one("avg_pool", WINDOW | {"ceil_mode": False, "count_include_pad": False}),
    "avg_pool_stride_1": one(
        "avg_pool", WINDOW | {"ceil_mode": False, "count_include_pad": False, "stride": [1, 1]}
    ),
    "flatten_chw": one("flatten", {"order": "chw"}),
    "flatten_hwc": one("flatten", {"order": "hwc"}),
    "pad": one("pad", {"padding": [1, 0, 2, 3], "value": 0.0}),
    "subsample": one("subsample", {"stride": 2, "front": 2, "back": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_operation_in_keras_and_back(tmp_path: Path, case: str) -> None:
    graph = CASES[case]
    x = 3 * torch.randn(2, 4, 9, 10, generator=torch.Generator().manual_seed(0))
    expected = evaluate(graph, x)
    out = answers(load(graph, tmp_path / "m.h5"), x)
    assert relative(out.permute(0, 3, 1, 2) if out.dim() == 4 else out, expected) < 1e-5
    if case not in ("flatten_chw", "softmax"):  # the first needs a Permute layer, the second is left off
        assert relative(evaluate(read_keras([tmp_path / "m.h5"]).graph, x), expected) < 1e-5


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            one("avg_pool", WINDOW | OFF_CENTRE | {"ceil_mode": False, "count_include_pad": False}),
            "without counting",
        ),
        (one("avg_pool", WINDOW | {"ceil_mode": True, "count_include_pad": True}), "ceil_mode"),
        (one("pad", {"padding": [1, 1, 1, 1], "value": 2.0}), "zeros"),
        (
            one(
                "conv",
                CONV | {"dilation": [2, 2], "out_channels": 1, "groups": 1},
                weight=torch.ones(1, 4, 3, 3),
            ),
            "dilation",
        ),
    ],
)
def test_what_keras_cannot_say_is_refused(tmp_path: Path, graph: Graph, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        write_keras_h5(graph, tmp_path / "m.h5", name="m")
    assert not list(tmp_path.iterdir())


def test_padded_maximum_of_negative_numbers(tmp_path: Path) -> None:
    node = Node(name="pool", op="max_pool", inputs=(INPUT,), attributes=WINDOW | {"ceil_mode": False})
    graph = Graph(nodes=[node], input_shape=(4, 9, 8), weights={})
    x = torch.randn(2, 4, 9, 8) - 5
    out = answers(load(graph, tmp_path / "m.h5"), x).permute(0, 3, 1, 2)
    assert relative(out, evaluate(graph, x)) < 1e-6
    node = Node(**{**vars(node), "attributes": {**node.attributes, **OFF_CENTRE}})
    graph = Graph(nodes=[node], input_shape=(4, 9, 8), weights={})
    (tmp_path / "m.h5").unlink()
    with pytest.raises(WeightsError, match="negative"):
        write_keras_h5(graph, tmp_path / "m.h5", name="m")


def test_mlperf_tiny_resnet8(shared_data: Path) -> None:
    path = shared_data / "weights" / "mlperf-tiny-resnet8" / "pretrainedResnet.h5"
    if not path.is_file():
        pytest.skip("needs the MLPerf Tiny ResNet-8")
    checkpoint: Checkpoint = read_keras([path])
    assert checkpoint.provenance["keras_version"] == "2.4.0"
    ops = [node.op for node in checkpoint.graph.nodes]
    assert (ops.count("conv"), ops.count("add"), ops[-3:]) == (9, 3, ["global_avg_pool", "flatten", "linear"])
    model = keras.models.load_model(path, compile=False)
    model.layers[-1].activation = None  # logits
    x = 255 * torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert relative(evaluate(checkpoint.graph, x), answers(model, x)) < 1e-4
