"""A network as a file describes it: what is computed in which order, and with which weights.

Every format that says how layers connect (Caffe, Keras, MXNet, TFLite) is read into one :class:`Graph`, in
PyTorch's conventions: maps are `(N, C, H, W)`, kernels `(out, in / groups, height, width)`, weights have
PyTorch's names. What a node may compute is the table :data:`OPERATORS` and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from reskit.errors import WeightsError

__all__ = ["INPUT", "OPERATORS", "Graph", "Node", "Operator", "safe_name"]

INPUT = "input"
"""The name of what goes into a graph; no node has it."""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What a kind of node takes.

    Attributes:
        inputs: how many; None for two or more.
        attributes: names of its attributes, all of them required.
        weights: names of its tensors; those after the first may be absent.
    """

    inputs: int | None = 1
    attributes: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()


_WINDOW = ("kernel_size", "stride", "padding")

OPERATORS: Mapping[str, Operator] = {
    # padding: [top, bottom, left, right], or "same" for TensorFlow's rule, which depends on the size.
    "conv": Operator(
        attributes=("in_channels", "out_channels", *_WINDOW, "dilation", "groups"),
        weights=("weight", "bias"),
    ),
    "batch_norm": Operator(
        attributes=("channels", "eps"), weights=("weight", "bias", "running_mean", "running_var")
    ),
    "linear": Operator(attributes=("in_features", "out_features"), weights=("weight", "bias")),
    # Per channel weight * x + bias, and the same with two numbers for all.
    "scale": Operator(attributes=("channels",), weights=("weight", "bias")),
    "affine": Operator(attributes=("scale", "shift")),
    "prelu": Operator(attributes=("channels",), weights=("weight",)),
    "relu": Operator(),
    "relu6": Operator(),
    "leaky_relu": Operator(attributes=("slope",)),
    "elu": Operator(attributes=("alpha",)),
    "sigmoid": Operator(),
    "hard_sigmoid": Operator(),  # relu6(x + 3) / 6
    "hard_swish": Operator(),  # x relu6(x + 3) / 6
    "swish": Operator(),
    "tanh": Operator(),
    "softmax": Operator(),  # over channels
    "max_pool": Operator(attributes=(*_WINDOW, "ceil_mode")),
    "avg_pool": Operator(attributes=(*_WINDOW, "ceil_mode", "count_include_pad")),
    "global_avg_pool": Operator(),  # to (N, C, 1, 1)
    "global_max_pool": Operator(),
    "flatten": Operator(attributes=("order",)),  # (N, C, H, W) to (N, C H W); order is "chw" or "hwc"
    "pad": Operator(attributes=("padding", "value")),
    # Every `stride`-th position, `front` and `back` channels of zeros: the shortcut of option A.
    "subsample": Operator(attributes=("stride", "front", "back")),
    "add": Operator(inputs=None),
    "multiply": Operator(inputs=None),  # sizes 1 are broadcast
    "concat": Operator(inputs=None),  # of channels
}


@dataclass(frozen=True, kw_only=True)
class Node:
    """One step of a graph.

    Attributes:
        name: unique in its graph; letters, digits, ``_`` and ``-``.
        op: a key of :data:`OPERATORS`.
        inputs: names of earlier nodes, or :data:`INPUT`.
        attributes: JSON values; sizes are lists ``[height, width]``.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A network: one image in, one answer out.

    Attributes:
        nodes: in an order in which they can be computed; the last one is the answer.
        input_shape: `(C, H, W)`; height and width are None where any will do.
        weights: ``"node.weight"`` and the like to tensors.

    Raises:
        WeightsError: a node is unknown, misses an attribute or a weight, or comes before its input.
    """

    nodes: Sequence[Node]
    input_shape: tuple[int, int | None, int | None]
    weights: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        """Check every node."""
        if not self.nodes:
            raise WeightsError("the network has no layers")
        known = {INPUT}
        for node in self.nodes:
            _check(node, known, self.weights)
            known.add(node.name)


def _check(node: Node, known: Collection[str], weights: Mapping[str, Tensor]) -> None:
    """Refuse a node that its graph could not run."""
    operator = OPERATORS.get(node.op)
    if operator is None:
        raise WeightsError(f"layer {node.name!r}: {node.op!r} is not an operation of residual networks")
    if not re.fullmatch(r"[\w-]+", node.name) or node.name in known:
        raise WeightsError(f"layer name {node.name!r} is not usable, or there twice")
    expected = len(node.inputs) >= 2 if operator.inputs is None else len(node.inputs) == operator.inputs
    if not expected:
        raise WeightsError(f"layer {node.name!r} ({node.op}) has {len(node.inputs)} inputs")
    for name in node.inputs:
        if name not in known:
            raise WeightsError(f"layer {node.name!r} takes {name!r}, which no earlier layer gives")
    if set(node.attributes) != set(operator.attributes):
        raise WeightsError(
            f"layer {node.name!r} ({node.op}) has the settings {sorted(node.attributes)}"
            f" and needs {sorted(operator.attributes)}"
        )
    if operator.weights and f"{node.name}.{operator.weights[0]}" not in weights:
        raise WeightsError(f"layer {node.name!r} ({node.op}) has no weights in the file")


def safe_name(name: str, taken: Collection[str] = ()) -> str:
    """Return `name` as a node may be called: other characters become ``_``, a name taken gets a number."""
    base = re.sub(r"[^\w-]", "_", name) or "layer"
    candidate, count = base, 1
    while candidate in taken or candidate == INPUT:
        count += 1
        candidate = f"{base}_{count}"
    return candidate
