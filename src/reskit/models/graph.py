"""A network rebuilt from a description of its layers: what was made with another library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from reskit.errors import ModelError, WeightsError
from reskit.models.base import Backbone
from reskit.models.graph_layers import Builder, add_layers, layer_name, run_layers
from reskit.models.registry import MODELS, ModelEntry, create_model
from reskit.weights import load_into
from reskit.weights.checkpoint import Checkpoint
from reskit.weights.graph import INPUT, OPERATORS, Graph, Node
from reskit.weights.operators import find_size, has_bias
from reskit.weights.structure import Chain, Item, Step, decompose

__all__ = ["GraphNetwork"]

_FLATTENING = ("flatten", "global_avg_pool", "global_max_pool", "linear")
_USUAL_SIZE = 224  # px, to find out shapes where any size will do


class GraphNetwork(Backbone):
    """A network given as a list of nodes, made of the same parts as any other here.

    Where two branches are added they are a :class:`~reskit.nn.Residual`, so whatever looks at residual blocks
    sees them. Layers are called as their nodes are, within a block after the node that joins it:
    ``sum1.conv2.weight``.

    A linear layer at the end is the head. A network that ends in other ways gives its vector, which a head
    may be put on, or its map, which none can. Feature maps are the last of each size.

    Args:
        nodes: fields of :class:`~reskit.weights.graph.Node` each, and whether there is a ``"bias"``.
        input_shape: `[C, H, W]` of the images; height and width null where any will do.
        num_classes: width of the logits; by default that of the head, 0 for the vector before it. Another
            width makes a fresh head.
        in_channels: channels of the images; first convolutions are made for them.
        features_only: whether to give the feature maps, without a head.

    Raises:
        ModelError: the nodes make no network, or one that cannot have a head where one is asked for.
    """

    paths: dict[str, str]
    """Name of each node that is a layer to the path of that layer."""

    def __init__(
        self,
        *,
        nodes: Sequence[Mapping[str, Any]],
        input_shape: Sequence[int | None],
        num_classes: int | None = None,
        in_channels: int = 3,
        features_only: bool = False,
    ) -> None:
        super().__init__(num_classes=num_classes or 0, in_channels=in_channels, features_only=features_only)
        try:
            parsed, biased = _parse(nodes, input_shape)
            builder = Builder(_for_channels(parsed, input_shape[0], in_channels), biased)
            size = (s or _USUAL_SIZE for s in input_shape[1:])
            x = torch.zeros(2, in_channels, *size, device="meta")
            body, head = _split_head(decompose(builder.nodes))
            layers = builder.layers(body)
            shapes = _shapes(layers, x)
        except (WeightsError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"the nodes of a graph make no network: {error}") from error
        self._arrange(layers, shapes)
        self._finish_with(head, head is not None and head.name in biased, num_classes)
        if features_only:
            _remove_all(self, self.neck)
        own = {id(layer): path for path, layer in self.named_modules()}
        built = dict(builder.built)
        if head is not None and isinstance(self.head, nn.Linear):
            built[head.name] = self.head
        self.paths = {name: own[id(layer)] for name, layer in built.items() if id(layer) in own}

    def _arrange(self, layers: Sequence[tuple[str, Item, nn.Module]], shapes: Sequence[torch.Size]) -> None:
        """Divide the layers into segments, one a feature map, and a neck that makes a vector of the last."""
        last = len(layers)
        for i, (_, item, _) in enumerate(layers):
            if _makes_vector(item, shapes[i]):
                last = i
                break
        self.segment_names: list[list[str]] = []
        self.channels, self.strides = [], []
        stride, waiting = 1, list[str]()
        for i, (name, item, layer) in enumerate(layers[:last]):
            self.add_module(name, layer)
            step = round(shapes[i][2] / shapes[i + 1][2])
            waiting.append(name)
            if _belongs_to_next(item, first=not self.segment_names):
                stride *= max(step, 1)
                continue
            if step == 1 and self.segment_names:
                self.segment_names[-1] += waiting
            else:
                self.segment_names.append(waiting)
                self.channels.append(0)
                self.strides.append(0)
            stride *= max(step, 1)
            waiting = []
            self.channels[-1], self.strides[-1] = shapes[i + 1][1], stride
        if not self.segment_names:
            raise ModelError("the network has no feature maps: it does not begin with a convolution")
        self.neck = [*waiting, *add_layers(self, [(name, layer) for name, _, layer in layers[last:]])]
        self.output = shapes[-1]

    def _finish_with(self, head: Node | None, bias: bool, num_classes: int | None) -> None:
        """Put the head on."""
        self.gives_map = len(self.output) == 4 and max(self.output[2:]) > 1
        self.num_features = math.prod(self.output[1:2] if self.gives_map else self.output[1:])
        name = layer_name("classifier" if head is None else head.name)
        own_classes = 0 if head is None else int(head.attributes["out_features"])
        classes = own_classes if num_classes is None else num_classes
        if self.features_only:
            classes = 0
        if classes and self.gives_map:
            raise ModelError(
                f"the network's answer is a map of {self.output[1]} channels, which no head for"
                f" {classes} classes goes on: use num_classes=0"
            )
        self.num_classes = classes
        if classes == 0:
            layer: nn.Module = nn.Identity()
        elif classes == own_classes:
            layer = nn.Linear(self.num_features, classes, bias=bias)
        else:
            layer = self.make_head(classes)
        while name in self._modules:
            name += "_"
        self.head_name = name  # type: ignore[misc]  # of each network here, not of the class
        self.add_module(name, layer)

    @classmethod
    def from_graph(
        cls, graph: Graph, *, num_classes: int | None = None, in_channels: int | None = None
    ) -> Self:
        """Return the network of a graph, with its weights.

        Args:
            graph: what was read.
            num_classes: as above; a head of another width starts at random.
            in_channels: as above, by default the graph's; kernels are fitted to others.

        Raises:
            ModelError: the graph makes no network as it is asked for.
            WeightsError: a weight has another shape than its node asks for.
        """
        nodes = [_describe(node, graph.weights) for node in graph.nodes]
        if num_classes is None:
            head = _split_head(decompose(graph.nodes))[1]
            num_classes = 0 if head is None else int(head.attributes["out_features"])
        height, width = find_size(graph, first=_USUAL_SIZE)
        # A size the file does not say and that is not the usual one is the one the network needs.
        any_size = (height, width) == (_USUAL_SIZE, _USUAL_SIZE)
        size = graph.input_shape[1:] if any_size else (height, width)
        model = create_model(
            "graph",
            nodes=nodes,
            input_shape=[graph.input_shape[0], *size],
            num_classes=num_classes,
            in_channels=graph.input_shape[0] if in_channels is None else in_channels,
        )
        assert isinstance(model, cls)
        state = dict(model.state_dict())
        for node in graph.nodes:
            for weight in OPERATORS[node.op].weights:
                if node.name in model.paths and f"{node.name}.{weight}" in graph.weights:
                    state[f"{model.paths[node.name]}.{weight}"] = graph.weights[f"{node.name}.{weight}"]
        load_into(model, Checkpoint(format="graph", source="the graph", state=state), adapt=True)
        return model

    def segments(self) -> list[list[nn.Module]]:
        """Return the layers in order, a new segment wherever the map shrinks."""
        return [[self.get_submodule(name) for name in names] for names in self.segment_names]

    def pooled(self, x: Tensor) -> Tensor:
        """Return what goes into the head, `(N, num_features)`; of a network of maps the last map's mean."""
        x = self._run(x)
        if self.gives_map or self.features_only:
            x = self.pool(x)
        elif len(self.output) == 2:
            return x
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return logits, the vector, the network's map or the list of feature maps; see the class."""
        if self.gives_map and not self.features_only:
            return self._run(x)
        return super().forward(x)

    def _run(self, x: Tensor) -> Tensor:
        for segment in self.segments():
            for layer in segment:
                x = layer(x)
        return x if self.features_only else run_layers(self, self.neck, x)


def _remove_all(module: nn.Module, names: Sequence[str]) -> None:
    for name in names:
        delattr(module, name)


def _describe(node: Node, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a node as JSON values."""
    described = {
        "name": node.name,
        "op": node.op,
        "inputs": list(node.inputs),
        "attributes": dict(node.attributes),
    }
    return described | ({"bias": True} if has_bias(node, weights) else {})


def _parse(
    nodes: Sequence[Mapping[str, Any]], input_shape: Sequence[int | None]
) -> tuple[list[Node], set[str]]:
    """Return nodes from JSON values, and the names of those with a bias.

    Raises:
        WeightsError: they are no graph.
    """
    parsed = [
        Node(name=n["name"], op=n["op"], inputs=tuple(n["inputs"]), attributes=n["attributes"]) for n in nodes
    ]
    nothing = torch.empty(0)
    weights = {f"{n.name}.{w}": nothing for n in parsed if n.op in OPERATORS for w in OPERATORS[n.op].weights}
    channels, height, width = input_shape
    if channels is None:
        raise WeightsError("the channels of its images are not known")
    Graph(nodes=parsed, input_shape=(channels, height, width), weights=weights)
    return parsed, {n["name"] for n in nodes if n.get("bias")}


def _for_channels(nodes: list[Node], old: int | None, new: int) -> list[Node]:
    """Return the nodes for images of other channels: what convolves them first takes so many."""
    if old == new:
        return nodes
    images, changed = {INPUT}, []
    for node in nodes:
        if images.isdisjoint(node.inputs):
            changed.append(node)
        elif node.op in ("pad", "affine"):
            images.add(node.name)
            changed.append(node)
        elif node.op == "conv" and node.attributes["groups"] == 1:
            changed.append(replace(node, attributes={**node.attributes, "in_channels": new}))
        else:
            raise WeightsError(
                f"it is for images of {old} channels, and its layer {node.name!r} ({node.op}) ties it to them"
            )
    return changed


def _split_head(chain: Chain) -> tuple[Chain, Node | None]:
    """Return a chain without the linear layer it ends in, and that; a flattening after it does nothing."""
    end = len(chain)
    while end > 1 and isinstance(chain[end - 1], Step) and chain[end - 1].node.op == "flatten":
        end -= 1
    last = chain[end - 1]
    if end > 1 and isinstance(last, Step) and last.node.op == "linear":
        return chain[: end - 1], last.node
    return chain, None


def _makes_vector(item: Item, shape: torch.Size) -> bool:
    """Tell whether an item ends the maps: it flattens, or its window covers all of the map it sees."""
    if len(shape) != 4 or (isinstance(item, Step) and item.node.op in _FLATTENING):
        return True
    if not isinstance(item, Step) or item.node.op not in ("conv", "avg_pool", "max_pool"):
        return False
    kernel_size = item.node.attributes["kernel_size"]
    padding = item.node.attributes["padding"]
    covers = all(k >= size for k, size in zip(kernel_size, shape[2:], strict=True))
    return covers and padding in ([0, 0, 0, 0], (0, 0, 0, 0)) and max(kernel_size) > 1


def _belongs_to_next(item: Item, *, first: bool) -> bool:
    """Tell whether an item only prepares what comes after it: padding, or what is done to the images."""
    if not isinstance(item, Step):
        return False
    return item.node.op in ("pad", "affine") or (first and item.node.op != "conv")


def _shapes(layers: Sequence[tuple[str, Item, nn.Module]], x: Tensor) -> list[torch.Size]:
    """Return the shapes before and after every layer, without computing anything.

    Raises:
        WeightsError: a layer does not fit its input.
    """
    shapes = [x.shape]
    for _, item, layer in layers:
        own = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        try:
            x = functional_call(layer, {name: tensor.to("meta") for name, tensor in own.items()}, (x,))
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(
                f"layer {item.node.name!r} does not fit its input of shape {list(x.shape[1:])}: {reason}"
            ) from error
        shapes.append(x.shape)
    return shapes


MODELS.add(
    "graph",
    ModelEntry(
        name="graph",
        build=GraphNetwork,
        parameters=None,
        num_classes=None,
        input_size=(3, _USUAL_SIZE, _USUAL_SIZE),
        in_channels=3,
        paper="",
    ),
    listed=False,
)
