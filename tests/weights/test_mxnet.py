from __future__ import annotations

import ast
import json
import math
import re
import struct
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

from reskit.errors import WeightsError
from reskit.weights import mxnet
from reskit.weights.checkpoint import READERS
from reskit.weights.operators import evaluate

KINDS = {"<f4": 0, "<f8": 1, "<f2": 2, "|u1": 3, "<i4": 4, "|i1": 5, "<i8": 6}
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA

Row = tuple[str, str, dict[str, str], list[str]]

# Operation, name, options, inputs; a name that no row has is a variable.
SMALL: list[Row] = [
    ("_minus_scalar", "centred", {"scalar": "100"}, ["data"]),
    ("_div_scalar", "scaled", {"scalar": "50"}, ["centred"]),
    (
        "Convolution",
        "c1",
        {"kernel": "(3, 3)", "num_filter": "4", "pad": "(1, 1)", "stride": "(2, 2)"},
        ["scaled", "c1_weight", "c1_bias"],
    ),
    (
        "BatchNorm",
        "b1",
        {"fix_gamma": "True"},
        ["c1", "b1_gamma", "b1_beta", "b1_moving_mean", "b1_moving_var"],
    ),
    ("LeakyReLU", "p1", {"act_type": "prelu"}, ["b1", "p1_gamma"]),
    (
        "Convolution",
        "c2",
        {"kernel": "(3L, 3L)", "num_filter": "4", "num_group": "2", "no_bias": "True", "pad": "[1,1]"},
        ["p1", "c2_weight"],
    ),
    (
        "BatchNorm",
        "b2",
        {"fix_gamma": "False", "eps": "1e-05"},
        ["c2", "b2_gamma", "b2_beta", "b2_moving_mean", "b2_moving_var"],
    ),
    ("elemwise_add", "sum", {}, ["b2", "p1"]),
    ("Activation", "r", {"act_type": "relu"}, ["sum"]),
    ("Pooling", "mp", {"kernel": "(3,3)", "stride": "(2,2)", "pooling_convention": "full"}, ["r"]),
    ("Pooling", "ap", {"kernel": "(3,3)", "stride": "(2,2)", "pool_type": "avg", "pad": "(1,1)"}, ["mp"]),
    ("Concat", "cat", {"dim": "1", "num_args": "2"}, ["ap", "ap"]),
    ("Dropout", "drop", {"p": "0.5"}, ["cat"]),
    ("FullyConnected", "fc", {"num_hidden": "5"}, ["drop", "fc_weight", "fc_bias"]),
    ("SoftmaxOutput", "softmax", {}, ["fc", "softmax_label"]),
]
SHAPES: dict[str, tuple[int, ...]] = {
    "c1_weight": (4, 3, 3, 3),
    "c1_bias": (4,),
    "p1_gamma": (4,),
    "c2_weight": (4, 2, 3, 3),
    "fc_weight": (5, 32),
    "fc_bias": (5,),
} | {f"b{i}_{part}": (4,) for i in (1, 2) for part in ("gamma", "beta", "moving_mean", "moving_var")}


def random_arrays() -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    arrays = {name: random.normal(0, 0.5, shape).astype("<f4") for name, shape in SHAPES.items()}
    return {name: abs(a) + 0.1 if name.endswith("var") else a for name, a in arrays.items()}


def array_bytes(array: np.ndarray[Any, Any], version: int | None = V2) -> bytes:
    if version is None:
        head = struct.pack(f"<I{array.ndim}I", array.ndim, *array.shape)
    else:
        head = struct.pack("<I", version) + (struct.pack("<i", 0) if version != V1 else b"")
        head += struct.pack(f"<I{array.ndim}q", array.ndim, *array.shape)
    return head + struct.pack("<iii", 1, 0, KINDS[array.dtype.str]) + array.tobytes()


def params(
    arrays: Mapping[str, np.ndarray[Any, Any]], version: int | None = V2, *, named: bool = True
) -> bytes:
    parts = [struct.pack("<QQQ", 0x112, 0, len(arrays))]
    parts += [array_bytes(array, version) for array in arrays.values()]
    parts.append(struct.pack("<Q", len(arrays) if named else 0))
    for name in arrays if named else ():
        prefix = "aux:" if "moving" in name else "arg:"
        parts.append(struct.pack("<Q", len(prefix + name)) + (prefix + name).encode())
    return b"".join(parts)


def symbol(rows: Sequence[Row], *, options: str = "attrs", shape: str = "") -> dict[str, Any]:
    nodes: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    for op, name, attributes, inputs in rows:
        for source in inputs:
            if source not in places:
                places[source] = len(nodes)
                extra = {options: {"__shape__": shape}} if source == "data" and shape else {}
                nodes.append({"op": "null", "name": source, "inputs": [], **extra})
        places[name] = len(nodes)
        sources = [[places[source], 0, int("moving" in source)] for source in inputs]
        nodes.append({"op": op, "name": name, options: attributes, "inputs": sources})
    return {"nodes": nodes, "heads": [[len(nodes) - 1, 0, 0]], "attrs": {"mxnet_version": ["int", 10500]}}


def write(folder: Path, content: bytes | None = None, net: Any = None) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "net-0000.params", folder / "net-symbol.json"]
    files[0].write_bytes(params(random_arrays()) if content is None else content)
    text = net if isinstance(net, bytes) else json.dumps(symbol(SMALL) if net is None else net).encode()
    files[1].write_bytes(text)
    return files


def edited(
    name: str, op: str | None = None, inputs: list[str] | None = None, **options: str
) -> dict[str, Any]:
    """Return the small network with one row changed."""
    return symbol(
        [(op or o, n, {**a, **options}, inputs or i) if n == name else (o, n, a, i) for o, n, a, i in SMALL]
    )


def by_hand(pixels: Tensor) -> Tensor:
    """The small network written out, on pixels from 0 to 255."""
    w = {name: torch.from_numpy(array) for name, array in random_arrays().items()}
    x = F.conv2d((pixels - 100) / 50, w["c1_weight"], w["c1_bias"], stride=2, padding=1)
    x = F.batch_norm(x, w["b1_moving_mean"], w["b1_moving_var"], None, w["b1_beta"], eps=1e-3)
    first = F.prelu(x, w["p1_gamma"])
    x = F.conv2d(first, w["c2_weight"], padding=1, groups=2)
    x = F.batch_norm(x, w["b2_moving_mean"], w["b2_moving_var"], w["b2_gamma"], w["b2_beta"], eps=1e-5)
    x = F.max_pool2d(F.relu(x + first), 3, 2, ceil_mode=True)
    x = F.avg_pool2d(x, 3, 2, padding=1)
    return F.linear(torch.cat([x, x], 1).flatten(1), w["fc_weight"], w["fc_bias"])


def attempt(files: Sequence[Path]) -> tuple[Mapping[str, Tensor], str]:
    """Return the weights, or nothing and the message of the one kind of error there may be."""
    try:
        return mxnet.read_mxnet(files).state, ""
    except WeightsError as error:
        return {}, str(error)


@pytest.mark.parametrize("version", [None, V1, V2, V3])
@pytest.mark.parametrize("options", ["attrs", "attr", "param"])
def test_small_network_is_what_it_is_by_hand(tmp_path: Path, version: int | None, options: str) -> None:
    net = symbol(SMALL, options=options, shape="(1, 3, 14, 14)")
    checkpoint = mxnet.read_mxnet(write(tmp_path, params(random_arrays(), version), net))
    assert checkpoint.graph is not None
    assert checkpoint.graph.input_shape == (3, 14, 14)
    assert checkpoint.preprocess["size"] == (14, 14)
    assert checkpoint.provenance["mxnet_version"] == 10500
    assert any("softmax" in note for note in checkpoint.notes)
    images = torch.rand(2, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(checkpoint.preprocess[n]).view(3, 1, 1) for n in ("mean", "std"))
    torch.testing.assert_close(
        evaluate(checkpoint.graph, (images - mean) / std), by_hand(images * 255), rtol=1e-4, atol=1e-4
    )


def test_old_normalisations_find_their_statistics_by_name(tmp_path: Path) -> None:
    rows: list[Row] = [(o, n, a, i[:3] if o == "BatchNorm" else i) for o, n, a, i in SMALL]
    old, new = (
        mxnet.read_mxnet(write(tmp_path / n, None, symbol(r))) for n, r in (("a", rows), ("b", SMALL))
    )
    assert old.state.keys() == new.state.keys()
    assert all(torch.equal(old.state[name], new.state[name]) for name in new.state)


@pytest.mark.parametrize("kind", ["<f8", "<f2", "|u1", "<i4", "|i1", "<i8"])
def test_arrays_alone_keep_their_kind(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "arrays.params"
    array = np.arange(6).reshape(2, 3).astype(kind)
    path.write_bytes(params({"some.name": array}))
    checkpoint = mxnet.read_mxnet([path])
    assert checkpoint.graph is None
    np.testing.assert_array_equal(checkpoint.state["some.name"].numpy(), array)
    path.write_bytes(params({"ignored": array}, named=False))
    assert list(mxnet.read_mxnet([path]).state) == ["0"]


def test_array_without_dimensions_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "arrays.params"
    path.write_bytes(params({"number": np.array(3, "<f4")}, V3))
    assert mxnet.read_mxnet([path]).state["number"].item() == 3
    path.write_bytes(params({"number": np.array(3, "<f4")}, V2))
    with pytest.raises(WeightsError, match="0 dimensions"):
        mxnet.read_mxnet([path])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("clip", "x", {"a_min": "0.0", "a_max": "6"}, ["data"])], lambda x: x.clamp(0, 6)),
        ([("mean", "x", {"axis": "(2, 3)"}, ["data"])], lambda x: x.mean((2, 3))),
        ([("mean", "x", {"axis": "(-1, -2)", "keepdims": "1"}, ["data"])], lambda x: x.mean((2, 3), True)),
        (
            [("Pad", "x", {"pad_width": "(0,0,0,0,1,2,3,4)", "constant_value": "2"}, ["data"])],
            lambda x: F.pad(x, (3, 4, 1, 2), value=2.0),
        ),
        ([("broadcast_mul", "x", {}, ["data", "data"])], lambda x: x * x),
        ([("LeakyReLU", "x", {}, ["data"])], lambda x: F.leaky_relu(x, 0.25)),
        ([("LeakyReLU", "x", {"act_type": "elu", "slope": "0.5"}, ["data"])], lambda x: F.elu(x, 0.5)),
        ([("_rminus_scalar", "x", {"scalar": "2"}, ["data"])], lambda x: 2 - x),
        ([("Reshape", "x", {"shape": "(0, -1)"}, ["data"])], lambda x: x.flatten(1)),
        ([("tanh", "y", {}, ["data"]), ("L2Normalization", "x", {}, ["y"])], lambda x: x.tanh()),
        (
            [("Pooling", "x", {"global_pool": "True", "pool_type": "max"}, ["data"])],
            lambda x: x.amax((2, 3), True),
        ),
        (
            [
                (
                    "Pooling",
                    "x",
                    {"kernel": "(2,2)", "pool_type": "avg", "pad": "(1,1)", "count_include_pad": "False"},
                    ["data"],
                )
            ],
            lambda x: F.avg_pool2d(x, 2, 1, 1, count_include_pad=False),
        ),
    ],
)
def test_single_operations(tmp_path: Path, rows: list[Row], expected: Any) -> None:
    content = params({"unused": np.ones(2, "<f4")})
    checkpoint = mxnet.read_mxnet(write(tmp_path, content, symbol(rows, shape="(0, 3, 5, 4)")))
    assert checkpoint.graph is not None
    assert any("unused" in note for note in checkpoint.notes)
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 4
    torch.testing.assert_close(evaluate(checkpoint.graph, x), expected(x))


def test_negative_factor_stays_in_the_network(tmp_path: Path) -> None:
    checkpoint = mxnet.read_mxnet(write(tmp_path, None, edited("scaled", scalar="-50")))
    assert checkpoint.graph is not None
    assert "mean" not in checkpoint.preprocess
    pixels = torch.rand(2, 3, 14, 14, generator=torch.Generator().manual_seed(0)) * 255
    torch.testing.assert_close(
        evaluate(checkpoint.graph, pixels), by_hand(200 - pixels), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (edited("r", op="LRN"), "layer 'r' is of type 'LRN', which is not read"),
        (edited("r", act_type="softsign"), "'r' .* is a 'softsign'"),
        (edited("c1", kernel="(3, 3, 3)"), "'c1' .* not of two dimensions"),
        (edited("c1", kernel="(3, x)"), "'c1' .* has kernel"),
        (edited("c1", kernel="1" * 60 + "x"), "'c1' .* has kernel"),
        (edited("c1", num_filter="5"), "'c1' .* needs a weight of shape"),
        (edited("c1", num_filter="1e999"), "'c1' .* has num_filter"),
        (edited("c1", stride="(0, 0)"), "'c1' has a window"),
        (edited("c1", pad="(999999999, 1)"), "'c1' has a window"),
        (edited("c1", layout="NHWC"), "'c1' .* another layout"),
        (edited("c2", num_group="3"), "'c2' has 4 channels in 3 groups"),
        (edited("c2", num_group="1"), "'c2' takes 4 channels and its weights are for 2"),
        (edited("b1", eps="nan"), "'b1' .* has eps"),
        (edited("mp", pooling_convention="same"), "'mp' .* pooling_convention"),
        (edited("scaled", scalar="0"), "'scaled' .* divides by zero"),
        (edited("scaled", scalar="1e-307"), "the network multiplies pixels by"),
        (edited("fc", flatten="False"), "'fc' .* last axis"),
        (edited("fc", inputs=["drop", "fc_weight", "gone"]), "'fc' .* takes 'gone', which the .params lacks"),
        (edited("sum", inputs=["b2", "c1_bias"]), "'sum' .* takes the array 'c1_bias' for a map"),
        (edited("sum", inputs=["b2", "other"]), "'sum' takes 'other', for which the .params has no array"),
        (edited("r", op="L2Normalization"), "'r' .* is not the last layer"),
        (b"", "0 bytes"),
        (b"{", "not the description"),
        (b"[" * 100_000, "not the description"),
        (b'{"nodes": [], "heads": [[0, 0, 0]]}', "not the description"),
        (b'{"nodes": [{"op": "relu", "name": "r", "inputs": [[0, 0]]}], "heads": [[0, 0]]}', "after it"),
        (b'{"nodes": [{"op": "relu", "name": "r", "inputs": []}], "heads": [[0, 0]]}', "'r' .* 0 inputs"),
        (b'{"nodes": [{"op": "null", "name": "data", "inputs": []}], "heads": [[0, 0]]}', "no layer leads"),
        (b'{"nodes": [5], "heads": [[0, 0]]}', "not the description"),
        (b'{"nodes": 7, "heads": "x", "attrs": [1]}', "not the description"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path: Path, net: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=rf"net-symbol\.json: .*{message}"):
        mxnet.read_mxnet(write(tmp_path, None, net))


def _head(count: int) -> bytes:
    return struct.pack("<QQQ", 0x112, 0, count)


ONE = params({"w": np.ones((2, 2), "<f4")})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends at byte 0"),
        (b"\x00" * 64, "no .params file"),
        (b"PK\x03\x04" + bytes(64), "no .params file"),
        (_head(1 << 60), "cannot hold"),
        (_head(0) + struct.pack("<Q", 0), "0 arrays"),
        (_head(1) + struct.pack("<IiI2q", V2, 0, 2, 1 << 40, 1 << 40) + bytes(64), "were to come"),
        (_head(1) + struct.pack("<IiI2q", V2, 0, 2, 1 << 62, 4) + bytes(64), "were to come"),
        (_head(1) + struct.pack("<IiI2q", V2, 0, 2, -2, -2) + bytes(64), "of shape"),
        (_head(1) + struct.pack("<IiI2q", V2, 0, 2, 0, 1 << 62) + bytes(64), "of shape"),
        (_head(1) + struct.pack("<IiI", V2, 0, 1 << 31) + bytes(64), "dimensions"),
        (_head(1) + struct.pack("<Ii", V3, 0) + struct.pack("<i", -1) + bytes(64), "dimensions"),
        (_head(1) + struct.pack("<Ii", V2, 1) + bytes(64), "sparse"),
        (_head(1) + struct.pack("<IiIq3i", V2, 0, 1, 1, 1, 0, 99) + bytes(64), "unknown kind 99"),
        (ONE[:-13] + struct.pack("<Q", 1 << 50) + ONE[-5:], "were to come"),
        (ONE[:-1] + b"\xff", "no text"),
        (params({"a": np.ones(2, "<f4"), "b": np.ones(2, "<f4")}).replace(b"arg:b", b"arg:a"), "1 names"),
    ],
)
def test_hostile_arrays_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(WeightsError, match=rf"net-0000\.params: .*{message}"):
        mxnet.read_mxnet(write(tmp_path, content)[:1])


def test_quantised_weights_are_refused_in_a_network(tmp_path: Path) -> None:
    arrays = random_arrays()
    arrays["c2_weight"] = arrays["c2_weight"].astype("|i1")
    with pytest.raises(WeightsError, match=r"'c2' .* quantised"):
        mxnet.read_mxnet(write(tmp_path, params(arrays)))


def test_cut_short_anywhere_is_one_clear_error(tmp_path: Path) -> None:
    content = params(random_arrays())
    text = json.dumps(symbol(SMALL)).encode()
    for part in range(0, 60):
        size = len(content) * part // 60
        assert "net-0000.params" in attempt(write(tmp_path, content[:size]))[1]
        assert "net-symbol.json" in attempt(write(tmp_path, None, text[: len(text) * part // 60]))[1]


def test_files_are_sorted_by_name(tmp_path: Path) -> None:
    files = write(tmp_path)
    assert mxnet.claims(files)
    assert mxnet.claims([tmp_path / "net-symbol.json"])
    assert not mxnet.claims([tmp_path / "config.json", "hf:someone/net.params"])
    assert READERS.get("mxnet").read is mxnet.read_mxnet
    for wrong, message in (
        (files[1:], "without weights"),
        ([*files, files[0]], "are for the same"),
        ([*files, tmp_path / "labels.txt"], "no part of an MXNet network"),
        ([tmp_path / "gone.params"], "there is no file"),
    ):
        with pytest.raises(WeightsError, match=message):
            mxnet.read_mxnet(wrong)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_never_crash(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "mxnet_fuzz"
    for part in (0, 1):
        files = write(folder)
        content = bytearray(files[part].read_bytes())
        for place, value in changes:
            content[place % len(content)] = value
        files[part].write_bytes(content)
        state, message = attempt(files)
        assert state or "net-" in message


def read_plainly(path: Path) -> dict[str, Tensor]:
    """Read the arrays of a file known to be whole, of the second version and float32."""
    content = path.read_bytes()
    count = struct.unpack_from("<Q", content, 16)[0]
    at, arrays, names = 24, [], []
    for _ in range(count):
        dimensions = struct.unpack_from("<I", content, at + 8)[0]
        shape = struct.unpack_from(f"<{dimensions}q", content, at + 12)
        at += 12 + 8 * dimensions + 12
        size = 4 * math.prod(shape)
        arrays.append(torch.frombuffer(bytearray(content[at : at + size]), dtype=torch.float32).view(shape))
        at += size
    at += 8
    for _ in range(count):
        length = struct.unpack_from("<Q", content, at)[0]
        names.append(content[at + 8 : at + 8 + length].decode())
        at += 8 + length
    return {re.sub("^...:", "", name): array for name, array in zip(names, arrays, strict=True)}


def run_plainly(net: dict[str, Any], arrays: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Compute a face network as its file says, operation by operation."""
    values: list[Tensor] = []
    for node in net["nodes"]:
        x = [values[source[0]] for source in node["inputs"]]
        a = {
            key: ast.literal_eval(value) if re.match(r"[\d(]|True|False", value) else value
            for key, value in node.get("attrs", {}).items()
        }
        match node["op"]:
            case "null":
                values.append(pixels if node["name"] == "data" else arrays[node["name"]])
            case "_minus_scalar":
                values.append(x[0] - a["scalar"])
            case "_mul_scalar":
                values.append(x[0] * a["scalar"])
            case "Convolution":
                values.append(F.conv2d(x[0], x[1], None, a["stride"], a["pad"], 1, a["num_group"]))
            case "BatchNorm":
                gamma = torch.ones_like(x[1]) if a["fix_gamma"] else x[1]
                values.append(F.batch_norm(x[0], x[3], x[4], gamma, x[2], eps=a.get("eps", 1e-3)))
            case "LeakyReLU":
                values.append(F.prelu(x[0], x[1]))
            case "elemwise_add":
                values.append(x[0] + x[1])
            case "FullyConnected":
                values.append(F.linear(x[0].flatten(1), x[1], x[2]))
            case other:
                raise AssertionError(other)
    return values[-1]


def test_published_face_network_is_computed_as_its_file_says(shared_data: Path) -> None:
    files = sorted((shared_data / "weights" / "mxnet-mobilefacenet").iterdir())
    checkpoint = mxnet.read_mxnet(files)
    assert checkpoint.graph is not None
    assert checkpoint.preprocess["mean"] == pytest.approx((0.5,) * 3)
    assert checkpoint.preprocess["std"] == pytest.approx((128 / 255,) * 3)
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    arrays = read_plainly(next(f for f in files if f.suffix == ".params"))
    net = json.loads(next(f for f in files if f.suffix == ".json").read_text())
    expected = run_plainly(net, arrays, images * 255)
    assert expected.std() > 0.1
    mean, std = (torch.tensor(checkpoint.preprocess[n]).view(3, 1, 1) for n in ("mean", "std"))
    torch.testing.assert_close(
        evaluate(checkpoint.graph, (images - mean) / std), expected, rtol=1e-3, atol=1e-3
    )
