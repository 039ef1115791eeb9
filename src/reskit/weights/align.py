"""Weights of a foreign network in one of ours: layers are paired by how they connect, never by name.

What may be written differently and computes the same is folded: norms and scales one after another, a bias
before a norm, a norm already folded into its convolution, another epsilon, a 1x1 convolution for a linear
layer. Then it is proven: both networks, on the same random images, must give the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from reskit.errors import WeightsError
from reskit.weights.graph import Graph, Node
from reskit.weights.operators import evaluate, find_size
from reskit.weights.pairing import Unit, pair_units
from reskit.weights.tracing import TracedGraph, trace

__all__ = ["align"]

_TOLERANCE = 1e-4  # of the range of the answers
_PROOF_SIZE = 64  # px, where any size will do: large enough for every layer to see more than its padding


def align(graph: Graph, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights of a graph under the names of a model, which stays as it is.

    The widths of the logits and of the images may differ from the model's; these weights come back in the
    graph's shapes.

    Args:
        graph: a foreign network.
        model: one of ours that should compute the same.

    Returns:
        The model's state, without what has no part in evaluation, and the graph's names to the model's.

    Raises:
        WeightsError: the layers do not pair up, or they do and the networks compute different things.
    """
    height, width = find_size(graph, first=_PROOF_SIZE)
    graph = replace(graph, input_shape=(graph.input_shape[0], height, width))
    ours = trace(model, graph.input_shape)
    transfer = _Transfer(graph, ours)
    for theirs, own in pair_units(graph, ours):
        transfer.add(theirs, own)
    _prove(graph, _with_weights(ours, transfer.weights))
    state = {_path(ours, name): tensor for name, tensor in transfer.weights.items()}
    return state, {old: _path(ours, new) for old, new in transfer.renamed.items()}


def _path(ours: TracedGraph, name: str) -> str:
    """Return the name in the model's state of a weight of its graph."""
    node, weight = name.rsplit(".", 1)
    return f"{ours.paths[node]}.{weight}"


class _Transfer:
    """Writes the weights of foreign units as ours have them.

    Attributes:
        weights: names in our graph to tensors.
        renamed: names in the foreign graph to those in ours that hold what they say.
    """

    def __init__(self, theirs: Graph, ours: Graph) -> None:
        self.theirs, self.ours = theirs.weights, ours.weights
        self.weights: dict[str, Tensor] = {}
        self.renamed: dict[str, str] = {}

    def add(self, theirs: Unit, ours: Unit) -> None:
        """Write one unit.

        Raises:
            WeightsError: ours has nothing to hold what theirs adds.
        """
        factor = None  # of the kernel, where no norm of ours can take it
        if ours.norms:
            self._fill_norm(theirs, ours)
        elif ours.kernel is not None and ours.kernel.op != "prelu":
            factor = self._fill_bias(theirs, ours, ours.kernel)
        if theirs.kernel is not None and ours.kernel is not None:
            self._fill_kernel(theirs.kernel, ours.kernel, factor)

    def _fill_kernel(self, theirs: Node, ours: Node, factor: Tensor | None) -> None:
        """Write a kernel `(out, in, ...)`, each output multiplied by its `factor`."""
        old, new = f"{theirs.name}.weight", f"{ours.name}.weight"
        kernel = self.theirs[old]
        if factor is not None:
            kernel = (kernel.double() * factor.view(-1, *[1] * (kernel.dim() - 1))).to(_dtype(kernel))
        rank = self.ours[new].dim()
        if kernel.dim() != rank:  # a linear layer's, or that of a 1x1 convolution
            kernel = kernel.reshape(*kernel.shape[:2], *[1] * (rank - 2))
        self.weights[new], self.renamed[old] = kernel, new

    def _fill_bias(self, theirs: Unit, ours: Unit, kernel: Node) -> Tensor | None:
        """Write bias and norms into our bias; return what the kernel is to be multiplied by."""
        like = self.theirs[f"{theirs.name}.weight"]
        factor, bias = self._affine(theirs, len(like))
        held = f"{kernel.name}.bias" in self.ours
        if held:
            self.weights[f"{kernel.name}.bias"] = bias.to(_dtype(like))
        elif bias.any():
            raise WeightsError(f"layer {theirs.name!r} has a bias there and {ours.name!r} none here")
        target = {"bias": f"{kernel.name}.{'bias' if held else 'weight'}", "weight": f"{kernel.name}.weight"}
        target |= {"running_mean": target["bias"], "running_var": target["weight"]}
        self._rename(theirs, target["bias"], target)
        return factor if theirs.norms else None

    def _fill_norm(self, theirs: Unit, ours: Unit) -> None:
        """Write bias and norms into our norm; what are statistics there are statistics here."""
        norm = ours.norms[0]
        if len(ours.norms) > 1 or norm.op != "batch_norm":
            raise WeightsError(f"layer {ours.name!r} is followed by {len(ours.norms)} norms and scales here")
        like = self.theirs[f"{theirs.name}.weight"]
        eps = float(norm.attributes["eps"])
        weight, bias = self._affine(theirs, int(norm.attributes["channels"]))
        mean, var = torch.zeros_like(bias), torch.full_like(bias, 1.0 - eps)
        source = theirs.norms[0] if theirs.norms and theirs.norms[0].op == "batch_norm" else None
        if source is not None:
            mean = self._get(f"{source.name}.running_mean", weight, 0.0) - self._bias(theirs, weight)
            var = self._get(f"{source.name}.running_var", weight, 1.0) + source.attributes["eps"] - eps
            var = var.clamp(min=0.0)  # where theirs is smaller than the difference, the weight makes up
        values = {
            "weight": weight * (var + eps).sqrt(),
            "bias": bias + weight * mean,
            "running_mean": mean,
            "running_var": var,
        }
        for name, value in values.items():
            self.weights[f"{norm.name}.{name}"] = value.to(_dtype(like))
        target = {name: f"{norm.name}.{name}" for name in values}
        self._rename(theirs, target["bias" if source is None else "running_mean"], target)

    def _rename(self, theirs: Unit, bias: str, norms: Mapping[str, str]) -> None:
        """Say where the kernel's bias went and where the parts of the norms did."""
        if theirs.kernel is not None and f"{theirs.kernel.name}.bias" in self.theirs:
            self.renamed[f"{theirs.kernel.name}.bias"] = bias
        for node in theirs.norms:
            for name, new in norms.items():
                if f"{node.name}.{name}" in self.theirs:
                    self.renamed[f"{node.name}.{name}"] = new

    def _affine(self, unit: Unit, channels: int) -> tuple[Tensor, Tensor]:
        """Return what bias and norms do in evaluation, ``weight * x + bias`` in each channel."""
        weight = torch.ones(channels, dtype=torch.float64)
        bias = self._bias(unit, weight)
        for node in unit.norms:
            factor = self.theirs[f"{node.name}.weight"].double()
            shift = self._get(f"{node.name}.bias", factor, 0.0)
            if node.op == "batch_norm":
                mean = self._get(f"{node.name}.running_mean", factor, 0.0)
                var = self._get(f"{node.name}.running_var", factor, 1.0)
                factor = factor / (var + node.attributes["eps"]).sqrt()
                shift = shift - mean * factor
            weight, bias = weight * factor, bias * factor + shift
        return weight, bias

    def _bias(self, unit: Unit, like: Tensor) -> Tensor:
        """Return the bias of a unit's kernel."""
        return (
            torch.zeros_like(like) if unit.kernel is None else self._get(f"{unit.kernel.name}.bias", like, 0)
        )

    def _get(self, name: str, like: Tensor, default: float) -> Tensor:
        return self.theirs[name].double() if name in self.theirs else torch.full_like(like, default)


def _dtype(tensor: Tensor) -> torch.dtype:
    """Return the precision to write in: that of the file, but not half of it."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _with_weights(ours: TracedGraph, weights: Mapping[str, Tensor]) -> Graph:
    """Return our graph with other weights, its first and last layers as wide as these."""
    nodes: list[Node] = []
    for node in ours.nodes:
        kernel = weights.get(f"{node.name}.weight")
        if node.op == "conv" and kernel is not None:
            channels = kernel.shape[1] * node.attributes["groups"]
            sizes = {"in_channels": channels, "out_channels": len(kernel)}
            node = replace(node, attributes={**node.attributes, **sizes})
        elif node.op == "linear" and kernel is not None:
            node = replace(node, attributes={**node.attributes, "out_features": len(kernel)})
        nodes.append(node)
    return Graph(nodes=nodes, input_shape=ours.input_shape, weights=weights)


def _prove(graph: Graph, ours: Graph) -> None:
    """Run both networks on the same two random images.

    One image is of small numbers and one of large, so that whatever the weights are used to, the answers
    differ; the networks must agree to a ten-thousandth of that difference. In double precision, rounding is
    far below it.

    Raises:
        WeightsError: they do not agree.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, *graph.input_shape), generator=generator, dtype=torch.float64)  # type: ignore[arg-type]
    x[1] *= 64
    try:
        theirs = evaluate(graph, x)
        own = evaluate(ours, x)
    except RuntimeError as error:
        raise WeightsError(f"the network cannot be run: {str(error).splitlines()[0]}") from error
    if theirs.flatten(1).shape != own.flatten(1).shape:
        raise WeightsError(
            f"the layers pair up, but one network gives {list(theirs.shape[1:])} there and"
            f" {list(own.shape[1:])} here"
        )
    theirs, own = theirs.flatten(1), own.flatten(1)
    spread = float((theirs[0] - theirs[1]).abs().max())
    difference = float((theirs - own).abs().max())
    if not 0 < spread < float("inf"):
        raise WeightsError(
            "the network gives the same for every image, or no numbers: nothing can be compared"
        )
    if not difference <= _TOLERANCE * spread:
        raise WeightsError(
            "the layers pair up, but the networks compute different things: their answers differ by"
            f" {difference / spread:.2g} of their range; look for another padding, stride or activation"
        )
