"""Networks rebuilt from nodes: the same numbers, real residual blocks, and all a backbone offers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reskit.errors import ModelError, WeightsError
from reskit.models import MODELS, create_model, list_models
from reskit.models.graph import GraphNetwork
from reskit.models.graph_layers import Branches, GraphResidual, Tangled
from reskit.nn import Residual
from reskit.weights.graph import INPUT, Graph, Node
from reskit.weights.operators import evaluate
from reskit.weights.tracing import trace


def conv(name: str, source: str, channels: tuple[int, int], kernel: int = 3, stride: int = 1) -> Node:
    attributes = {
        "in_channels": channels[0],
        "out_channels": channels[1],
        "kernel_size": [kernel, kernel],
        "stride": [stride, stride],
        "padding": [kernel // 2] * 4,
        "dilation": [1, 1],
        "groups": 1,
    }
    return Node(name=name, op="conv", inputs=(source,), attributes=attributes)


def node(name: str, op: str, *inputs: str, **attributes: Any) -> Node:
    return Node(name=name, op=op, inputs=inputs, attributes=attributes)


BODY = [
    node("scaled", "affine", INPUT, scale=2.0, shift=-1.0),
    conv("stem", "scaled", (3, 8)),
    node("pool", "relu", "stem"),  # a name that networks use themselves
    conv("body", "pool", (8, 8)),
    node("rect", "relu", "body"),
    conv("conv2", "rect", (8, 8)),
    node("sum1", "add", "pool", "conv2"),
    node("act1", "prelu", "sum1", channels=8),
    conv("skip", "act1", (8, 16), 1, 2),
    conv("conv3", "act1", (8, 16), 3, 2),
    node("means", "global_avg_pool", "conv3"),
    conv("squeeze", "means", (16, 16), 1),
    node("gate", "sigmoid", "squeeze"),
    node("weighed", "multiply", "conv3", "gate"),
    node("sum2", "add", "skip", "weighed"),
]
TAIL = [
    node("gap", "global_avg_pool", "sum2"),
    node("flat", "flatten", "gap", order="chw"),
    node("fc", "linear", "flat", in_features=16, out_features=4),
]
EMBEDDING = node("embedding", "batch_norm", "fc", channels=4, eps=1e-3)


def graph(nodes: list[Node], input_shape: tuple[int, int | None, int | None] = (3, 16, 16)) -> Graph:
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}
    for n in nodes:
        a = n.attributes
        if n.op == "conv":
            shape = (a["out_channels"], a["in_channels"], *a["kernel_size"])
            weights[f"{n.name}.weight"] = torch.randn(shape, generator=generator) / 5
            if n.name != "stem":
                weights[f"{n.name}.bias"] = torch.randn(shape[0], generator=generator)
        elif n.op == "linear":
            weights[f"{n.name}.weight"] = torch.randn(
                a["out_features"], a["in_features"], generator=generator
            )
        elif n.op in ("prelu", "batch_norm"):
            weights[f"{n.name}.weight"] = torch.rand(a["channels"], generator=generator)
    return Graph(nodes=nodes, input_shape=input_shape, weights=weights)


def by_hand(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The map before pooling, written out."""
    x = F.conv2d(2 * x - 1, w["stem.weight"], padding=1).relu()
    y = F.conv2d(x, w["body.weight"], w["body.bias"], padding=1).relu()
    y = x + F.conv2d(y, w["conv2.weight"], w["conv2.bias"], padding=1)
    x = F.prelu(y, w["act1.weight"])
    y = F.conv2d(x, w["conv3.weight"], w["conv3.bias"], stride=2, padding=1)
    gate = F.conv2d(y.mean((2, 3), keepdim=True), w["squeeze.weight"], w["squeeze.bias"]).sigmoid()
    return F.conv2d(x, w["skip.weight"], w["skip.bias"], stride=2) + y * gate


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def made() -> GraphNetwork:
    return GraphNetwork.from_graph(graph(BODY + TAIL)).eval()


def test_same_numbers(made: GraphNetwork) -> None:
    weights = dict(graph(BODY + TAIL).weights)
    with torch.no_grad():
        last = by_hand(weights, X)
        torch.testing.assert_close(made.feature_maps(X)[-1], last)
        torch.testing.assert_close(made.pooled(X), last.mean((2, 3)))
        torch.testing.assert_close(made(X), last.mean((2, 3)) @ weights["fc.weight"].T)
        torch.testing.assert_close(evaluate(trace(made, (3, 16, 16)), X), made(X))


def test_blocks_are_residual(made: GraphNetwork) -> None:
    first, second = (m for m in made.modules() if isinstance(m, Residual))
    assert isinstance(first.activation, nn.PReLU)
    x = torch.randn(2, 8, 16, 16)
    assert first.shortcut(x) is x
    assert isinstance(second, GraphResidual)
    assert isinstance(second.activation, nn.Identity)
    skip, body = second.get_submodule("skip_"), second.get_submodule("weighed")
    assert isinstance(body, Branches)  # it has more weights, though it came last
    torch.testing.assert_close(second.shortcut(x), skip(x))
    torch.testing.assert_close(second(x), second.residual(x) + skip(x))


def test_names_are_those_of_the_nodes(made: GraphNetwork) -> None:
    assert {k for k in made.state_dict() if k.endswith("weight")} == {
        "stem.weight",
        "sum1.body_.weight",
        "sum1.conv2.weight",
        "sum1.activation.weight",
        "sum2.skip_.weight",
        "sum2.conv3.weight",
        "sum2.weighed.squeeze.weight",
        "fc.weight",
    }
    assert made.paths["act1"] == "sum1.activation"
    assert made.head_name == "fc"
    assert made.head is made.fc


def test_declarations(made: GraphNetwork) -> None:
    assert (made.channels, made.strides) == ([8, 16], [1, 2])
    assert (made.num_features, made.num_classes) == (16, 4)
    assert [tuple(m.shape) for m in made.feature_maps(X)] == [(2, 8, 16, 16), (2, 16, 8, 8)]


def test_rebuilt_from_json(made: GraphNetwork) -> None:
    again = create_model(**json.loads(json.dumps(made.architecture))).eval()
    again.load_state_dict(made.state_dict())
    with torch.no_grad():
        assert torch.equal(again(X), made(X))
    nodes = made.architecture["nodes"]
    assert create_model("graph", nodes=nodes, input_shape=[3, 16, 16]).num_classes == 4
    assert create_model("graph", nodes=nodes, input_shape=[3, None, None]).strides == [1, 2]


def test_another_head_and_other_channels(made: GraphNetwork) -> None:
    wider = GraphNetwork.from_graph(graph(BODY + TAIL), num_classes=9, in_channels=1).eval()
    assert wider(X[:, :1]).shape == (2, 9)
    kernel = wider.get_submodule("stem").weight  # grey gives what the same grey in all channels gave
    torch.testing.assert_close(kernel, made.get_submodule("stem").weight.sum(1, keepdim=True))
    headless = GraphNetwork.from_graph(graph(BODY + TAIL), num_classes=0).eval()
    with torch.no_grad():
        assert torch.equal(headless(X), made.pooled(X))
    maps = create_model(**{**made.architecture, "features_only": True})
    maps.load_state_dict({k: v for k, v in made.state_dict().items() if not k.startswith("fc.")})
    with torch.no_grad():
        for ours, theirs in zip(maps.eval()(X), made.feature_maps(X), strict=True):
            assert torch.equal(ours, theirs)
        torch.testing.assert_close(maps.pooled(X), made.feature_maps(X)[-1].mean((2, 3)))


def test_embedding_has_no_head_of_its_own(made: GraphNetwork) -> None:
    written = graph([*BODY, *TAIL, EMBEDDING])
    model = GraphNetwork.from_graph(written).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(X), evaluate(written, X))
    assert (model.num_classes, model.num_features) == (0, 4)
    headed = GraphNetwork.from_graph(written, num_classes=3)
    assert isinstance(headed.head, nn.Linear)
    assert headed(X).shape == (2, 3)
    assert create_model(**headed.architecture)(X).shape == (2, 3)


def test_network_of_maps() -> None:
    model = GraphNetwork.from_graph(graph(BODY)).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(X), by_hand(dict(graph(BODY).weights), X))
    assert model.pooled(X).shape == (2, 16)
    with pytest.raises(ModelError, match="map of 16 channels"):
        GraphNetwork.from_graph(graph(BODY), num_classes=3)


def test_tangles_and_side_by_side() -> None:
    nodes = [
        conv("a", INPUT, (3, 4)),
        node("left", "relu", "a"),
        node("right", "tanh", "a"),
        node("both", "concat", "left", "right", "a"),
        node("p", "relu", "both"),
        node("q", "sigmoid", "p"),
        node("r", "add", "p", "q"),
        node("output", "multiply", "q", "r"),
    ]
    written = graph(nodes)
    model = GraphNetwork.from_graph(written).eval()
    kinds = [type(layer) for layer in model.segments()[0]]
    assert kinds == [nn.Conv2d, Branches, nn.ReLU, Tangled]
    with torch.no_grad():
        x = F.conv2d(X, written.weights["a.weight"], written.weights["a.bias"], padding=1)
        p = torch.cat([x.relu(), x.tanh(), x], 1).relu()
        torch.testing.assert_close(model(X), p.sigmoid() * (p + p.sigmoid()))


def test_export_with_any_batch(made: GraphNetwork) -> None:
    exported = torch.export.export(made, (X,), dynamic_shapes=({0: torch.export.Dim("n")},))
    x = torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(exported.module()(x), made(x))


def test_size_a_file_did_not_say_is_kept() -> None:
    body = [conv("c", INPUT, (3, 2), stride=2), node("f", "flatten", "c", order="chw")]
    head = node("l", "linear", "f", in_features=2 * 56 * 56, out_features=3)
    model = GraphNetwork.from_graph(graph([*body, head], (3, None, None)))
    assert model.architecture["input_shape"] == [3, 112, 112]
    assert (model.num_features, model.num_classes, model.channels) == (2 * 56 * 56, 3, [2])


def test_it_is_not_listed() -> None:
    assert "graph" not in list_models()
    assert "graph" not in MODELS.names()
    assert MODELS.get("graph").build is GraphNetwork


def test_bad_nodes() -> None:
    good = GraphNetwork.from_graph(graph(BODY)).architecture
    for nodes, words in [
        ([], "no layers"),
        ([{"name": "a"}], "op"),
        ([{**good["nodes"][1], "inputs": ["nowhere"]}], "nowhere"),
        ([{**good["nodes"][1], "op": "exec"}], "'exec'"),
        (good["nodes"][1:], "'scaled'"),
        ([{"name": "r", "op": "relu", "inputs": ["input"], "attributes": {}}], "does not begin with"),
    ]:
        with pytest.raises(ModelError, match=words):
            create_model("graph", nodes=nodes, input_shape=[3, 16, 16])
    wrong = json.loads(json.dumps(good["nodes"]))
    wrong[3]["attributes"]["in_channels"] = 5
    with pytest.raises(ModelError, match=r"'sum1' does not fit its input of shape \[8, 16, 16\]"):
        create_model("graph", nodes=wrong, input_shape=[3, 16, 16])
    tied = [{"name": "r", "op": "relu", "inputs": ["input"], "attributes": {}}, *good["nodes"][1:]]
    tied[1] = {**tied[1], "inputs": ["r"]}
    with pytest.raises(ModelError, match="ties it to them"):
        create_model("graph", nodes=tied, input_shape=[3, 16, 16], in_channels=1)
    broken = graph(BODY)
    shapes = {**broken.weights, "stem.weight": torch.zeros(8, 3, 5, 5)}
    with pytest.raises(WeightsError, match="stem"):
        GraphNetwork.from_graph(Graph(nodes=BODY, input_shape=(3, 16, 16), weights=shapes))
