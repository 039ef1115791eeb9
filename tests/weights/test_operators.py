"""Every operation of a graph against an independent computation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reskit.errors import WeightsError
from reskit.weights.graph import INPUT, OPERATORS, Graph, Node
from reskit.weights.operators import JOINS, build, evaluate, find_size, load_node
from reskit.weights.structure import Fork, Step, Tangle, decompose


def node(op: str, name: str = "n", inputs: tuple[str, ...] = (INPUT,), **attributes: Any) -> Node:
    return Node(name=name, op=op, inputs=inputs, attributes=attributes)


def window(size: int, stride: int, padding: Any) -> dict[str, Any]:
    return {"kernel_size": [size, size], "stride": [stride, stride], "padding": padding}


def conv(name: str, channels: tuple[int, int], padding: Any = (1, 1, 1, 1), **changes: Any) -> Node:
    attributes = {
        "in_channels": channels[0],
        "out_channels": channels[1],
        "dilation": [1, 1],
        "groups": 1,
        **window(3, 1, list(padding) if not isinstance(padding, str) else padding),
    }
    inputs = changes.pop("inputs", (INPUT,))
    return Node(name=name, op="conv", inputs=inputs, attributes=attributes | changes)


def same_by_hand(x: Tensor, kernel: int, stride: int, dilation: int = 1, value: float = 0.0) -> Tensor:
    """TensorFlow's documented rule, written out one side at a time."""
    sides = []
    for size in (x.shape[3], x.shape[2]):
        reach = (kernel - 1) * dilation + 1
        out = math.ceil(size / stride)
        missing = max(0, (out - 1) * stride + reach - size)
        sides += [missing // 2, missing - missing // 2]
    return F.pad(x, sides, value=value)


X = torch.randn(2, 4, 9, 10, generator=torch.Generator().manual_seed(0))

SIMPLE: list[tuple[Node, Tensor]] = [
    (node("affine", scale=2.0, shift=-1.0), 2 * X - 1),
    (node("relu"), X.clamp(min=0)),
    (node("relu6"), X.clamp(0, 6)),
    (node("leaky_relu", slope=0.3), torch.where(X > 0, X, 0.3 * X)),
    (node("elu", alpha=0.5), torch.where(X > 0, X, 0.5 * (X.exp() - 1))),
    (node("sigmoid"), 1 / (1 + (-X).exp())),
    (node("hard_sigmoid"), (X + 3).clamp(0, 6) / 6),
    (node("hard_swish"), X * (X + 3).clamp(0, 6) / 6),
    (node("swish"), X / (1 + (-X).exp())),
    (node("tanh"), X.sinh() / X.cosh()),
    (node("softmax"), X.exp() / X.exp().sum(1, keepdim=True)),
    (node("global_avg_pool"), X.mean((2, 3), keepdim=True)),
    (node("global_max_pool"), X.amax((2, 3), keepdim=True)),
    (node("flatten", order="chw"), X.reshape(2, -1)),
    (node("flatten", order="hwc"), X.permute(0, 2, 3, 1).reshape(2, -1)),
    (node("pad", padding=[1, 2, 3, 4], value=0.5), F.pad(X, (3, 4, 1, 2), value=0.5)),
    (node("subsample", stride=2, front=1, back=3), F.pad(X[:, :, ::2, ::2], (0, 0, 0, 0, 1, 3))),
    (node("max_pool", **window(3, 2, [1, 1, 1, 1]), ceil_mode=False), F.max_pool2d(X, 3, 2, 1)),
    (
        node("max_pool", **window(3, 2, [0, 0, 0, 0]), ceil_mode=True),
        F.max_pool2d(X, 3, 2, 0, ceil_mode=True),
    ),
    (
        node("max_pool", **window(3, 2, [0, 1, 0, 1]), ceil_mode=False),
        F.max_pool2d(F.pad(X, (0, 1, 0, 1), value=-1e9), 3, 2),
    ),
    (
        node("max_pool", **window(2, 2, "same"), ceil_mode=False),
        F.max_pool2d(same_by_hand(X, 2, 2, value=-1e9), 2, 2),
    ),
    (
        node("avg_pool", **window(3, 2, [1, 1, 1, 1]), ceil_mode=True, count_include_pad=True),
        F.avg_pool2d(X, 3, 2, 1, ceil_mode=True),
    ),
    (
        node("avg_pool", **window(3, 2, [0, 1, 0, 1]), ceil_mode=False, count_include_pad=True),
        F.avg_pool2d(F.pad(X, (0, 1, 0, 1)), 3, 2),
    ),
]


@pytest.mark.parametrize(("step", "expected"), SIMPLE, ids=lambda v: getattr(v, "op", ""))
def test_operations_without_weights(step: Node, expected: Tensor) -> None:
    found = evaluate(Graph(nodes=[step], input_shape=(4, 9, 10), weights={}), X)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_tensorflow_averages_what_is_there(stride: int) -> None:
    step = node("avg_pool", **window(3, stride, "same"), ceil_mode=False, count_include_pad=False)
    found = build(step)(X)
    sums = F.avg_pool2d(same_by_hand(X, 3, stride), 3, stride) * 9
    counts = F.avg_pool2d(same_by_hand(torch.ones_like(X), 3, stride), 3, stride) * 9
    torch.testing.assert_close(found, sums / counts)
    assert found.shape[2:] == (math.ceil(9 / stride), math.ceil(10 / stride))


@pytest.mark.parametrize("size", [9, 10])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (1, 2)])
def test_same_convolution(size: int, stride: int, dilation: int) -> None:
    x = X[:, :, :size, :size]
    step = conv("n", (4, 6), "same", stride=[stride, stride], dilation=[dilation, dilation])
    weights = {"n.weight": torch.randn(6, 4, 3, 3), "n.bias": torch.randn(6)}
    found = evaluate(Graph(nodes=[step], input_shape=(4, size, size), weights=weights), x)
    padded = same_by_hand(x, 3, stride, dilation)
    torch.testing.assert_close(
        found, F.conv2d(padded, weights["n.weight"], weights["n.bias"], stride, 0, dilation)
    )


def test_convolution_padding() -> None:
    weights = {"n.weight": torch.randn(6, 2, 3, 3)}
    symmetric, uneven = (conv("n", (4, 6), p, groups=2) for p in ([1, 1, 2, 2], [0, 1, 2, 0]))
    assert type(load_node(symmetric, weights)) is nn.Conv2d  # what quantisers and exporters know
    for step, sides in ((symmetric, (2, 2, 1, 1)), (uneven, (2, 0, 0, 1))):
        expected = F.conv2d(F.pad(X, sides), weights["n.weight"], groups=2)
        torch.testing.assert_close(load_node(step, weights)(X), expected)


@pytest.mark.parametrize("x", [X, X[:, :, 0, 0]], ids=["maps", "vectors"])
def test_norm_and_scale(x: Tensor) -> None:
    shape = (1, 4, 1, 1)[: x.dim()]
    w, b, mean, var = torch.randn(4), torch.randn(4), torch.randn(4), torch.rand(4)
    weights = {"n.weight": w, "n.bias": b, "n.running_mean": mean, "n.running_var": var}
    norm = load_node(node("batch_norm", channels=4, eps=0.1), weights).eval()
    expected = (x - mean.view(shape)) / (var.view(shape) + 0.1).sqrt() * w.view(shape) + b.view(shape)
    torch.testing.assert_close(norm(x), expected)
    scale = load_node(node("scale", channels=4), {"n.weight": w})
    torch.testing.assert_close(scale(x), x * w.view(shape))
    with pytest.raises(ValueError, match="3 dimensions"):
        norm(X[0])


def test_every_operation_is_covered() -> None:
    tested = {step.op for step, _ in SIMPLE} | {"conv", "batch_norm", "scale", "linear", "prelu"}
    assert tested | set(JOINS) == set(OPERATORS)
    linear = load_node(node("linear", in_features=4, out_features=3), {"n.weight": torch.ones(3, 4)})
    torch.testing.assert_close(linear(X[:, :, 0, 0]), X[:, :, 0, 0].sum(1, keepdim=True).expand(2, 3))
    prelu = load_node(node("prelu", channels=4), {"n.weight": torch.arange(4.0)})
    torch.testing.assert_close(prelu(X), torch.where(X > 0, X, X * torch.arange(4.0).view(4, 1, 1)))


def test_joins() -> None:
    gate = X.mean((2, 3), keepdim=True)
    torch.testing.assert_close(JOINS["add"]([X, X, X]), 3 * X)
    torch.testing.assert_close(JOINS["multiply"]([X, gate]), X * gate)
    assert torch.equal(JOINS["concat"]([X, 2 * X]), torch.cat([X, 2 * X], 1))


def test_export_with_any_batch() -> None:
    net = nn.Sequential(
        build(conv("c", (4, 4), "same", stride=[2, 2])),
        build(node("avg_pool", **window(3, 2, "same"), ceil_mode=False, count_include_pad=False)),
        build(node("flatten", order="hwc")),
    ).eval()
    exported = torch.export.export(net, (X,), dynamic_shapes=({0: torch.export.Dim("n")},))
    x = torch.randn(5, 4, 9, 10)
    torch.testing.assert_close(exported.module()(x), net(x))


def test_misfits_are_named() -> None:
    weights = {"c.weight": torch.zeros(6, 4, 5, 5)}
    graph = Graph(nodes=[conv("c", (4, 6))], input_shape=(4, 9, 9), weights=weights)
    with pytest.raises(WeightsError, match=r"'c' \(conv\) has a weight of shape \[6, 4, 5, 5\]"):
        evaluate(graph, X)
    weights = {"c.weight": torch.zeros(6, 3, 3, 3)}
    graph = Graph(nodes=[conv("c", (3, 6))], input_shape=(3, 9, 9), weights=weights)
    with pytest.raises(WeightsError, match=r"'c' \(conv\) does not fit its input of shape \[4, 9, 10\]"):
        evaluate(graph, X)
    with pytest.raises(WeightsError, match="'diagonal'"):
        build(node("flatten", order="diagonal"))
    with pytest.raises(WeightsError, match="cannot be built"):
        build(conv("c", (3, 6), groups=2))


def test_size_is_found() -> None:
    nodes = [
        conv("c", (3, 2), stride=[2, 2]),
        node("flatten", "f", ("c",), order="chw"),
        node("linear", "l", ("f",), in_features=2 * 56 * 56, out_features=3),
    ]
    weights = {"c.weight": torch.zeros(2, 3, 3, 3), "l.weight": torch.zeros(3, 2 * 56 * 56)}
    assert find_size(Graph(nodes=nodes, input_shape=(3, None, None), weights=weights)) == (112, 112)
    assert find_size(Graph(nodes=nodes[:1], input_shape=(3, None, 50), weights=weights)) == (224, 50)
    weights["l.weight"] = torch.zeros(3, 7)
    nodes[2] = node("linear", "l", ("f",), in_features=7, out_features=3)
    with pytest.raises(WeightsError, match="no usual size"):
        find_size(Graph(nodes=nodes, input_shape=(3, None, None), weights=weights))


def test_structure() -> None:
    nodes = [
        node("relu", "stem"),
        node("relu", "a1", ("stem",)),
        node("tanh", "b1", ("stem",)),
        node("relu", "a2", ("a1",)),
        node("add", "sum", ("a2", "b1")),
        node("relu", "p", ("sum",)),
        node("relu", "q", ("p",)),
        node("add", "r", ("p", "q")),
        node("concat", "knot", ("q", "r")),  # p leads to both parts
        node("relu", "unused", ("stem",)),
        node("relu", "end", ("knot",)),
    ]
    stem, fork, p, knot, end = decompose(nodes)
    assert [type(i) for i in (stem, fork, p, knot, end)] == [Step, Fork, Step, Tangle, Step]
    assert isinstance(fork, Fork)
    assert [[i.node.name for i in branch] for branch in fork.branches] == [["a1", "a2"], ["b1"]]
    assert isinstance(knot, Tangle)
    assert (knot.source, [n.name for n in knot.nodes]) == ("p", ["q", "r", "knot"])
