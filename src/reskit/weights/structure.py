"""The shape of a graph: a chain of steps, in it branches that part and join, in them chains again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from reskit.weights.graph import INPUT, Node

__all__ = ["Chain", "Fork", "Item", "Step", "Tangle", "decompose"]

_DEEPEST = 50  # forks within forks; networks have two or three


@dataclass(frozen=True)
class Step:
    """One node after another."""

    node: Node


@dataclass(frozen=True)
class Fork:
    """Branches from one value that meet in one node; a branch without items is the value itself."""

    node: Node
    branches: tuple[Chain, ...]


@dataclass(frozen=True)
class Tangle:
    """Nodes between one value and their last that are not branches side by side."""

    source: str
    nodes: tuple[Node, ...]

    @property
    def node(self) -> Node:
        """The last node."""
        return self.nodes[-1]


Item: TypeAlias = Step | Fork | Tangle
Chain: TypeAlias = tuple[Item, ...]


def decompose(nodes: Sequence[Node]) -> Chain:
    """Return a network as a chain that ends in its last node; what that node does not need is left out."""
    kept = _needed(nodes, nodes[-1].name)
    return _chain([node for node in nodes if node.name in kept], INPUT, 0)


def _needed(nodes: Sequence[Node], target: str) -> set[str]:
    """Return the names among `nodes` that lead to `target`, and its own."""
    names = {target}
    for node in reversed(nodes):
        if node.name in names:
            names.update(node.inputs)
    return names & {node.name for node in nodes}


def _chain(nodes: Sequence[Node], source: str, depth: int) -> Chain:
    """Return what lies between a value and the last of `nodes`, cut at every node all paths go through.

    In an order in which nodes can be computed, these are the nodes no edge jumps over.
    """
    last_use = {name: i for i, node in enumerate(nodes) for name in node.inputs}
    items: list[Item] = []
    start, reach = 0, last_use.get(source, 0)
    for i, node in enumerate(nodes):
        if reach <= i:
            items.append(_between(source, nodes[start:i], node, depth))
            source, start = node.name, i + 1
        reach = max(reach, last_use.get(node.name, i))
    return tuple(items)


def _between(source: str, inner: Sequence[Node], node: Node, depth: int) -> Item:
    """Return what leads from one cut to the next."""
    if len(node.inputs) == 1 and not inner:
        return Step(node)
    parts = [_needed(inner, name) if name != source else set() for name in node.inputs]
    if depth >= _DEEPEST or sum(map(len, parts)) != len(inner):
        return Tangle(source, (*inner, node))
    branches = ([n for n in inner if n.name in part] for part in parts)
    return Fork(node, tuple(_chain(branch, source, depth + 1) for branch in branches))
