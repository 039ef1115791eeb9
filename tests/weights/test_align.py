"""Foreign graphs, written by hand from torchvision's networks, in ours; and ours as graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from reskit.errors import WeightsError
from reskit.models import MODELS, create_model
from reskit.models.recognise import recognise, recognise_state
from reskit.weights.align import align
from reskit.weights.graph import INPUT, Graph, Node
from reskit.weights.operators import evaluate
from reskit.weights.tracing import trace

SAMPLE = [
    "cifar_densenet_bc_100_12",
    "cifar_plain20",
    "cifar_preact_resnet164",
    "cifar_resnet20",
    "mobilenet_v2",
    "nin",
    "nin_residual",
    "resnext50_32x4d",
    "seresnet50",
    "wrn_16_4",
]


class Writer:
    """Writes a graph layer by layer, under names that say nothing."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.weights: dict[str, Tensor] = {}

    def add(self, op: str, *inputs: str, weights: dict[str, Tensor] | None = None, **attributes: Any) -> str:
        name = f"x{len(self.nodes)}"
        self.nodes.append(Node(name=name, op=op, inputs=inputs, attributes=attributes))
        self.weights |= {f"{name}.{key}": tensor for key, tensor in (weights or {}).items()}
        return name

    def conv(self, layer: nn.Conv2d, x: str, bias: Tensor | None = None, stride: int | None = None) -> str:
        pad, step = layer.padding[0], layer.stride[0] if stride is None else stride
        assert isinstance(pad, int)
        return self.add(
            "conv",
            x,
            weights={"weight": layer.weight.detach()} | ({} if bias is None else {"bias": bias}),
            in_channels=layer.in_channels,
            out_channels=layer.out_channels,
            kernel_size=list(layer.kernel_size),
            stride=[step, step],
            padding=[pad] * 4,
            dilation=[1, 1],
            groups=layer.groups,
        )

    def norm(self, layer: nn.BatchNorm2d, x: str, shift: Tensor | None = None) -> str:
        assert layer.running_mean is not None
        mean = layer.running_mean if shift is None else layer.running_mean + shift
        state = {**layer.state_dict(), "running_mean": mean}
        del state["num_batches_tracked"]
        return self.add("batch_norm", x, weights=state, channels=layer.num_features, eps=layer.eps)


ConvNorm = Callable[[Writer, nn.Conv2d, nn.BatchNorm2d, str], str]


def plainly(w: Writer, conv: nn.Conv2d, norm: nn.BatchNorm2d, x: str) -> str:
    return w.norm(norm, w.conv(conv, x))


def with_bias(w: Writer, conv: nn.Conv2d, norm: nn.BatchNorm2d, x: str) -> str:
    """As Caffe's users write it: a bias before the norm, which takes it away again."""
    bias = torch.linspace(-1, 1, conv.out_channels)
    return w.norm(norm, w.conv(conv, x, bias), shift=bias)


def folded(w: Writer, conv: nn.Conv2d, norm: nn.BatchNorm2d, x: str) -> str:
    """As TFLite has it."""
    fused = nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval())
    assert fused.bias is not None
    return w.conv(fused, x, fused.bias.detach())


def with_scale(w: Writer, conv: nn.Conv2d, norm: nn.BatchNorm2d, x: str) -> str:
    """As Caffe itself has it: a norm without parameters and a scale, and another epsilon."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    state = {
        "weight": torch.ones(norm.num_features),
        "running_mean": norm.running_mean,
        "running_var": norm.running_var + norm.eps - 2e-3,
    }
    x = w.add("batch_norm", w.conv(conv, x), weights=state, channels=norm.num_features, eps=2e-3)
    parts = {"weight": norm.weight.detach(), "bias": norm.bias.detach()}
    return w.add("scale", x, weights=parts, channels=norm.num_features)


WRITTEN = {"plainly": plainly, "with_bias": with_bias, "folded": folded, "with_scale": with_scale}


def settled(model: nn.Module) -> nn.Module:
    """Return a network whose norms have seen something, and in which no channel is like another."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.2, 0.6, generator=generator)
            nn.init.normal_(module.bias, 0, 0.1, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def resnet18() -> torchvision.models.ResNet:
    torch.manual_seed(0)
    return settled(torchvision.models.resnet18(num_classes=6))


def write(net: torchvision.models.ResNet, conv_norm: ConvNorm = plainly, **changes: Any) -> Graph:
    """Return a torchvision ResNet of basic blocks as a graph."""
    w = Writer()
    x = w.add("relu", conv_norm(w, net.conv1, net.bn1, INPUT))
    pool = {"kernel_size": [3, 3], "stride": [2, 2], "padding": [1, 1, 1, 1], "ceil_mode": False}
    x = w.add("max_pool", x, **pool | changes)
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in stage:
            # torchvision adds the shortcut last; the order must not matter
            short = conv_norm(w, block.downsample[0], block.downsample[1], x) if block.downsample else x
            y = w.add("relu", conv_norm(w, block.conv1, block.bn1, x))
            x = w.add("relu", w.add("add", short, conv_norm(w, block.conv2, block.bn2, y)))
    x = w.add("flatten", w.add("global_avg_pool", x), order="chw")
    parts = {"weight": net.fc.weight.detach(), "bias": net.fc.bias.detach()}
    w.add("linear", x, weights=parts, in_features=512, out_features=net.fc.out_features)
    return Graph(nodes=w.nodes, input_shape=(3, 64, 64), weights=w.weights)


@pytest.mark.parametrize("name", SAMPLE)
def test_our_networks_as_graphs(name: str) -> None:
    torch.manual_seed(1)
    model = settled(create_model(name))
    side = min(64, MODELS.get(name).input_size[1])
    traced = trace(model, (3, side, side))
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(evaluate(traced, x), model(x), rtol=1e-5, atol=1e-5)
    state = model.state_dict()
    assert {f"{traced.paths[key.rsplit('.', 1)[0]]}.{key.rsplit('.', 1)[1]}" for key in traced.weights} == {
        key for key in state if not key.endswith("num_batches_tracked")
    }


def test_what_no_graph_can_say() -> None:
    with pytest.raises(WeightsError, match="one tensor"):
        trace(create_model("cifar_resnet8", features_only=True), (3, 32, 32))
    with pytest.raises(WeightsError, match="GroupNorm"):
        trace(nn.Sequential(nn.GroupNorm(1, 3)), (3, 32, 32))


@pytest.mark.parametrize("written", WRITTEN)
def test_foreign_resnet(resnet18: torchvision.models.ResNet, written: str) -> None:
    graph = write(resnet18, WRITTEN[written])
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = resnet18(x)
    torch.testing.assert_close(evaluate(graph, x), expected, rtol=1e-4, atol=1e-5)
    model = create_model("resnet18", num_classes=6).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state, renamed = align(graph, model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert set(renamed) == set(graph.weights)
    assert set(renamed.values()) <= set(state)
    assert set(state) == {key for key in before if not key.endswith("num_batches_tracked")}
    model.load_state_dict(state, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    if written == "plainly":
        assert all(torch.equal(value, resnet18.state_dict()[key]) for key, value in state.items())


def test_other_widths_come_back_as_they_are(resnet18: torchvision.models.ResNet) -> None:
    state, _ = align(write(resnet18), create_model("resnet18", num_classes=9, in_channels=1))
    assert torch.equal(state["fc.weight"], resnet18.fc.weight)
    assert torch.equal(state["conv1.weight"], resnet18.conv1.weight)


def test_difference_is_found(resnet18: torchvision.models.ResNet) -> None:
    graph = write(resnet18, padding=[0, 1, 0, 1])  # the same layers, shifted by one position
    with pytest.raises(WeightsError, match="compute different things"):
        align(graph, create_model("resnet18", num_classes=6))


def test_layers_that_do_not_pair(resnet18: torchvision.models.ResNet) -> None:
    with pytest.raises(
        WeightsError, match=r"'x68' \(linear \[6, 512\]\) there is 'fc' \(linear \[6, 256\]\)"
    ):
        align(write(resnet18), create_model("resnet18", num_classes=6, width=32))
    with pytest.raises(WeightsError, match="differ in"):
        align(write(resnet18), create_model("resnet34", num_classes=6))
    with pytest.raises(WeightsError, match="how layers connect"):
        align(write(resnet18), create_model("resnet18", num_classes=6, residual=False))


def test_dead_network_proves_nothing(resnet18: torchvision.models.ResNet) -> None:
    graph = write(resnet18)
    dead = {key: torch.zeros_like(value) for key, value in graph.weights.items()}
    graph = Graph(nodes=graph.nodes, input_shape=graph.input_shape, weights=dead)
    with pytest.raises(WeightsError, match="nothing can be compared"):
        align(graph, create_model("resnet18", num_classes=6))


def test_head_as_a_convolution() -> None:
    """The network in network as published: 1x1 onto the classes, then the mean."""
    torch.manual_seed(2)
    traced = trace(settled(create_model("nin", num_classes=5)), (3, 32, 32))
    *body, pool, flat, head = traced.nodes
    assert (pool.op, flat.op, head.op) == ("global_avg_pool", "flatten", "linear")
    attributes = {
        "in_channels": 192,
        "out_channels": 5,
        "kernel_size": [1, 1],
        "stride": [1, 1],
        "padding": [0, 0, 0, 0],
        "dilation": [1, 1],
        "groups": 1,
    }
    conv = Node(name=head.name, op="conv", inputs=pool.inputs, attributes=attributes)
    pool = Node(name=pool.name, op=pool.op, inputs=(conv.name,))
    weights = {
        **traced.weights,
        f"{head.name}.weight": traced.weights[f"{head.name}.weight"][..., None, None],
    }
    graph = Graph(nodes=[*body, conv, pool, flat], input_shape=(3, 32, 32), weights=weights)
    state, _ = align(graph, create_model("nin", num_classes=5))
    assert torch.equal(state["linear.weight"], traced.weights[f"{head.name}.weight"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar_resnet20", {"shortcut": "B", "num_classes": 7}),
        ("cifar_plain20", {"in_channels": 1}),
        ("resnet50", {"stride_first": True}),
        ("nin", {}),
    ],
)
def test_recognised(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(4)
    model = settled(create_model(name, **options))
    side = min(64, MODELS.get(name).input_size[1])
    found = recognise(trace(model, (options.get("in_channels", 3), side, side)))
    assert found is not None
    architecture, state, _ = found
    assert architecture == model.architecture
    own = model.state_dict()
    for key, value in state.items():
        torch.testing.assert_close(value, own[key])


def test_not_recognised() -> None:
    """The same shapes and connections, but padded as TensorFlow does."""
    torch.manual_seed(5)
    traced = trace(settled(create_model("cifar_resnet8")), (3, 32, 32))
    nodes = [
        replace(node, attributes={**node.attributes, "padding": "same"}) if node.op == "conv" else node
        for node in traced.nodes
    ]
    assert recognise(traced) is not None
    assert recognise(Graph(nodes=nodes, input_shape=(3, 32, 32), weights=traced.weights)) is None
    relu = [Node(name="r", op="relu", inputs=(INPUT,))]
    assert recognise(Graph(nodes=relu, input_shape=(3, 8, 8), weights={})) is None


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121"])
@pytest.mark.parametrize(("classes", "head"), [(11, True), (0, False)])
def test_state_of_torchvision(name: str, classes: int, head: bool) -> None:
    with torch.device("meta"):
        state = getattr(torchvision.models, name)(num_classes=max(classes, 2)).state_dict()
    if not head:
        state = {key: value for key, value in state.items() if not key.startswith(("fc.", "classifier."))}
    assert recognise_state(state) == {"name": name, "num_classes": classes, "in_channels": 3}


def test_state_of_others() -> None:
    with torch.device("meta"):
        assert recognise_state(torchvision.models.squeezenet1_1().state_dict()) is None
        plain = create_model("cifar_plain20", in_channels=1).state_dict()
    assert recognise_state(plain) == {"name": "cifar_resnet20", "num_classes": 10, "in_channels": 1}
    assert recognise_state({"a": torch.zeros(3)}) is None
