"""Which layer of a foreign network is which of ours, by how they connect and by their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from reskit.errors import WeightsError
from reskit.weights.graph import INPUT, Graph, Node
from reskit.weights.structure import Chain, Fork, Step, decompose
from reskit.weights.tracing import TracedGraph

__all__ = ["Unit", "kernel_shapes", "pair_units"]

_KERNELS = ("conv", "linear")
_FOLDABLE = ("batch_norm", "scale")


@dataclass
class Unit:
    """Layers with weights that are one map in evaluation: a kernel, norms and scales, or either alone.

    Attributes:
        kernel: the convolution or linear layer, or the rectifier with weights; None for norms alone.
        norms: norms and scales after it, in order.
    """

    kernel: Node | None
    norms: list[Node] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The node it begins with."""
        return (self.kernel or self.norms[0]).name


@dataclass
class Meeting:
    """A node in which branches meet."""

    node: Node
    branches: list[Line]


Line: TypeAlias = list[Unit | Meeting]


def pair_units(theirs: Graph, ours: Graph) -> list[tuple[Unit, Unit]]:
    """Return the pairs of units of two graphs that are the same layer, the last first.

    Both are walked from the answer to the images; where branches meet whose order has no meaning, those with
    fewer layers go first. The widths of the logits and of the images may differ.

    Args:
        theirs: the foreign graph.
        ours: that of our model.

    Raises:
        WeightsError: two layers that should be the same are not, or one has no partner.
    """
    pairing = _Pairing(theirs, ours)
    pairing.walk(_line(theirs), _line(ours))
    pairing.compare_shapes()
    return pairing.found


def kernel_shapes(graph: Graph) -> list[tuple[int, ...]]:
    """Return the shapes of all kernels a graph's answer needs, sorted; those of 1x1 as of linear layers."""
    nodes = [node for node in _units_of(_line(graph)) if node.kernel is not None]
    return sorted(_shape(unit, graph.weights) for unit in nodes)


def _shape(unit: Unit, weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the shape of what a unit begins with."""
    shape = tuple(weights[f"{unit.name}.weight"].shape)
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def _line(graph: Graph) -> Line:
    """Return the units of a graph in order, those of branches within the nodes they meet in."""
    uses: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.inputs:
            uses[name] = uses.get(name, 0) + 1
    return _units(decompose(graph.nodes), uses)


def _units(chain: Chain, uses: Mapping[str, int]) -> Line:
    line: Line = []
    for item in chain:
        if isinstance(item, Fork):
            line.append(Meeting(item.node, [_units(branch, uses) for branch in item.branches]))
            continue
        for node in [item.node] if isinstance(item, Step) else item.nodes:
            before = line[-1] if line else None
            if node.op in _FOLDABLE and isinstance(before, Unit) and _follows(node, before, uses):
                before.norms.append(node)
            elif node.op in _FOLDABLE:
                line.append(Unit(None, [node]))
            elif node.op in (*_KERNELS, "prelu"):
                line.append(Unit(node))
    return line


def _follows(node: Node, unit: Unit, uses: Mapping[str, int]) -> bool:
    """Tell whether a norm is right behind a unit and the only one to see what that gives."""
    end = unit.norms[-1] if unit.norms else unit.kernel
    return (
        end is not None and node.inputs == (end.name,) and uses[end.name] == 1 and (end.op not in ("prelu",))
    )


def _units_of(line: Line) -> list[Unit]:
    """Return all units of a line, those within branches too."""
    found: list[Unit] = []
    for part in line:
        found += [part] if isinstance(part, Unit) else [u for b in part.branches for u in _units_of(b)]
    return found


class _Pairing:
    """Pairs the units of two graphs; see :func:`pair_units`."""

    def __init__(self, theirs: Graph, ours: Graph) -> None:
        self.theirs, self.ours = theirs, ours
        self.found: list[tuple[Unit, Unit]] = []

    def walk(self, theirs: Line, ours: Line) -> None:
        """Pair two lines from their ends."""
        for a, b in zip(reversed(theirs), reversed(ours), strict=False):
            if isinstance(a, Unit) and isinstance(b, Unit):
                self._pair(a, b)
            elif isinstance(a, Meeting) and isinstance(b, Meeting) and _alike(a, b):
                branches = zip(self._sorted(a, self.theirs), self._sorted(b, self.ours), strict=True)
                for left, right in branches:
                    self.walk(left, right)
            else:
                raise WeightsError(
                    f"the networks differ in how layers connect: {self._describe(a, self.theirs)} there is"
                    f" {self._describe(b, self.ours)} here"
                )
        if len(theirs) != len(ours):
            where, rest, graph = (
                ("here", theirs, self.theirs) if len(theirs) > len(ours) else ("there", ours, self.ours)
            )
            extra = rest[len(rest) - min(len(theirs), len(ours)) - 1]
            raise WeightsError(
                f"the networks differ in their number of layers: {self._describe(extra, graph)}"
                f" has no partner {where}"
            )

    def _pair(self, theirs: Unit, ours: Unit) -> None:
        kinds = [None if u.kernel is None else u.kernel.op == "prelu" for u in (theirs, ours)]
        if kinds[0] != kinds[1]:
            raise WeightsError(
                f"layers do not pair up: {self._describe(theirs, self.theirs)} there is"
                f" {self._describe(ours, self.ours)} here"
            )
        self.found.append((theirs, ours))

    def _sorted(self, meeting: Meeting, graph: Graph) -> list[Line]:
        """Return the branches, where their order has no meaning by their number of layers and then shapes."""
        if meeting.node.op == "concat":
            return meeting.branches

        def key(line: Line) -> tuple[int, list[tuple[int, ...]]]:
            units = [unit for unit in _units_of(line) if unit.kernel is not None]
            return len(units), [_shape(unit, graph.weights) for unit in units]

        return sorted(meeting.branches, key=key)

    def compare_shapes(self) -> None:
        """Refuse pairs of different shapes, but for the logits' and the images' channels."""
        first = {
            unit.name for unit, _ in self.found if unit.kernel and _sees_images(unit.kernel, self.theirs)
        }
        for i, (a, b) in enumerate(self.found):
            theirs, ours = _shape(a, self.theirs.weights), _shape(b, self.ours.weights)
            if i == 0 and a.kernel is not None and theirs[1:] == ours[1:] and not a.norms and not b.norms:
                continue
            if a.name in first and (theirs[0], theirs[2:]) == (ours[0], ours[2:]):
                continue
            if theirs != ours:
                raise WeightsError(
                    f"layers do not pair up: {self._describe(a, self.theirs)} there is"
                    f" {self._describe(b, self.ours)} here"
                )

    def _describe(self, part: Unit | Meeting, graph: Graph) -> str:
        if isinstance(part, Meeting):
            return f"{part.node.name!r} ({part.node.op} of {len(part.branches)} branches)"
        node = part.kernel or part.norms[0]
        path = graph.paths.get(node.name, node.name) if isinstance(graph, TracedGraph) else node.name
        return f"{path!r} ({node.op} {list(graph.weights[f'{node.name}.weight'].shape)})"


def _alike(theirs: Meeting, ours: Meeting) -> bool:
    return theirs.node.op == ours.node.op and len(theirs.branches) == len(ours.branches)


def _sees_images(kernel: Node, graph: Graph) -> bool:
    """Tell whether a convolution takes the images as they come, or padded or scaled."""
    nodes = {node.name: node for node in graph.nodes}
    name = kernel.inputs[0]
    while name != INPUT and nodes[name].op in ("pad", "affine"):
        name = nodes[name].inputs[0]
    return kernel.op == "conv" and name == INPUT
