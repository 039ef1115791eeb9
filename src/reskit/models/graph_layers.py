"""Layers made of the nodes of a graph: residual blocks, other branches, and what is neither."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor, nn

from reskit.models.base import Backbone
from reskit.nn import Residual
from reskit.weights.graph import Node
from reskit.weights.operators import JOINS, build, run_nodes
from reskit.weights.structure import Chain, Fork, Item, Step, Tangle

__all__ = ["Branches", "Builder", "GraphResidual", "Tangled", "add_layers", "layer_name", "run_layers"]

_ACTIVATIONS = ("relu", "relu6", "prelu")  # what may follow a sum as part of its block
# What modules call their own, here or in PyTorch; a layer cannot have these names.
_UNUSABLE = frozenset({*dir(Backbone), *Backbone.__annotations__, *dir(Residual), *vars(nn.Module())}) | {
    *("activation", "plain", "pool", "body", "skip", "op", "branches", "source", "nodes", "names"),
    *("segment_names", "neck", "output", "gives_map", "paths", "from_graph", "_run", "_arrange"),
    "_finish_with",
}

Layers: TypeAlias = Sequence[tuple[str, nn.Module]]


class GraphResidual(Residual):
    """Two branches that are added: `F`, which has the more weights, and the shortcut.

    Args:
        body: layers of `F` and their names, which are those of parameters.
        skip: layers of the shortcut; none for the identity.
        activation: applied after the sum; None for none.
    """

    def __init__(self, body: Layers, skip: Layers, activation: nn.Module | None) -> None:
        super().__init__(activation)
        self.body, self.skip = add_layers(self, body), add_layers(self, skip)

    def residual(self, x: Tensor) -> Tensor:
        """Return `F(x)`."""
        return run_layers(self, self.body, x)

    def shortcut(self, x: Tensor) -> Tensor:
        """Return the other branch."""
        return run_layers(self, self.skip, x)


class Branches(nn.Module):
    """Branches from one input that are multiplied, put side by side, or more than two of them added.

    Args:
        op: ``"add"``, ``"multiply"`` or ``"concat"``.
        branches: layers of each and their names; none for the input itself.
    """

    def __init__(self, op: str, branches: Sequence[Layers]) -> None:
        super().__init__()
        self.op = op
        self.branches = [add_layers(self, layers) for layers in branches]

    def forward(self, x: Tensor) -> Tensor:
        """Return the joined answers of all branches."""
        return JOINS[self.op]([run_layers(self, names, x) for names in self.branches])


class Tangled(nn.Module):
    """Layers that are no branches side by side: they run in the order they were written.

    Args:
        source: name of what goes in.
        nodes: what to compute; the last is the answer.
        layers: layers of those nodes that are no joins, and their names.
    """

    def __init__(self, source: str, nodes: Sequence[Node], layers: Layers) -> None:
        super().__init__()
        self.source, self.nodes = source, nodes
        names = add_layers(self, layers)
        self.names = dict(zip((node.name for node in nodes if node.op not in JOINS), names, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last node gives."""
        return run_nodes(self.nodes, {self.source: x}, lambda node: self.get_submodule(self.names[node.name]))


def add_layers(module: nn.Module, layers: Layers) -> list[str]:
    """Register layers and return their names."""
    for name, layer in layers:
        module.add_module(name, layer)
    return [name for name, _ in layers]


def run_layers(module: nn.Module, names: Sequence[str], x: Tensor) -> Tensor:
    """Return what the layers of these names make of `x`, one after the other."""
    for name in names:
        x = module.get_submodule(name)(x)
    return x


class Builder:
    """Makes layers of items, and remembers which layer is which node.

    Args:
        nodes: all nodes.
        biased: names of those with a bias.
    """

    def __init__(self, nodes: Sequence[Node], biased: set[str]) -> None:
        self.nodes, self.biased = nodes, biased
        self.built: dict[str, nn.Module] = {}

    def layers(self, chain: Chain) -> list[tuple[str, Item, nn.Module]]:
        """Return the name, the item and the layer of each step; an activation after a sum is in its block."""
        made: list[tuple[str, Item, nn.Module]] = []
        for item in chain:
            before = made[-1][2] if made else None
            if (
                isinstance(item, Step)
                and item.node.op in _ACTIVATIONS
                and isinstance(before, GraphResidual)
                and isinstance(before.activation, nn.Identity)
            ):
                before.activation = self._layer(item.node)
                continue
            made.append((layer_name(item.node.name), item, self._module(item)))
        return made

    def _layer(self, node: Node) -> nn.Module:
        self.built[node.name] = build(node, bias=node.name in self.biased)
        return self.built[node.name]

    def _named(self, chain: Chain) -> Layers:
        return [(name, layer) for name, _, layer in self.layers(chain)]

    def _module(self, item: Item) -> nn.Module:
        if isinstance(item, Step):
            return self._layer(item.node)
        if isinstance(item, Tangle):
            steps = [node for node in item.nodes if node.op not in JOINS]
            return Tangled(item.source, item.nodes, [(layer_name(n.name), self._layer(n)) for n in steps])
        return self._fork(item)

    def _fork(self, fork: Fork) -> nn.Module:
        branches = [self._named(branch) for branch in fork.branches]
        sizes = [sum(p.numel() for _, layer in layers for p in layer.parameters()) for layers in branches]
        if fork.node.op == "add" and len(branches) == 2 and max(sizes) > 0:
            if sizes[0] < sizes[1]:
                branches.reverse()
            return GraphResidual(branches[0], branches[1], None)
        return Branches(fork.node.op, branches)


def layer_name(name: str) -> str:
    """Return the name of a node as that of a layer: what modules call their own gets an underscore."""
    return f"{name}_" if {name, name.rstrip("_")} & _UNUSABLE else name
