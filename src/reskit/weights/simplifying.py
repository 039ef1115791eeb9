"""What a network says and need not: layers without use, normalisations in parts or of the pixels.

All functions change nodes by name, in an order in which they can be computed, and their weights by
``"node.weight"``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from reskit.errors import WeightsError
from reskit.weights.graph import INPUT, Node

__all__ = ["fold_scales", "prune", "take_normalisation"]


def prune(nodes: dict[str, Node], answer: str) -> list[Node]:
    """Remove all that `answer` does not need, and return it."""
    needed = {answer}
    for node in reversed(nodes.values()):
        if node.name in needed:
            needed.update(node.inputs)
    return [nodes.pop(name) for name in list(nodes) if name not in needed]


def take_normalisation(nodes: dict[str, Node], weights: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Remove the leading ``affine`` and ``scale`` nodes, and return what they make of pixels.

    Returns:
        Mean and deviation in the network's unit of pixels, each (C,) or (1,), float64; None where there are
        no such nodes, or one that turns dark and bright round, which no deviation can say.

    Raises:
        WeightsError: the numbers are none an image can be multiplied by.
    """
    factor, shift = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    chain: list[str] = []
    for node in list(nodes.values())[:-1]:
        users = [user for user in nodes.values() if (chain or [INPUT])[-1] in user.inputs]
        if users != [node] or node.op not in ("affine", "scale"):
            break
        times, plus = _affine(node, weights)
        factor, shift = factor * times, shift * times + plus
        chain.append(node.name)
    if not bool(factor.isfinite().all() and shift.isfinite().all() and factor.all()):
        raise WeightsError(
            f"the network multiplies pixels by {factor.tolist()} and adds {shift.tolist()}:"
            " the file is damaged"
        )
    if not chain or bool((factor < 0).any()):
        return None
    for name in chain:
        _replace(nodes, name, INPUT)
    return -shift / factor + 0.0, 1 / factor  # no -0.0


def fold_scales(nodes: dict[str, Node], weights: dict[str, Tensor]) -> None:
    """Make one node of a normalisation and the factor and shift that follow it."""
    users: dict[str, list[Node]] = {}
    for node in nodes.values():
        for source in node.inputs:
            users.setdefault(source, []).append(node)
    for name in [node.name for node in nodes.values() if node.op == "batch_norm"]:
        after = users.get(name, [])
        if len(after) != 1 or after[0].op != "scale":
            continue
        second = after[0].name
        weight = weights.pop(f"{second}.weight")
        bias = weights.pop(f"{second}.bias", torch.zeros_like(weight))
        weights[f"{name}.bias"] = weights[f"{name}.bias"] * weight + bias
        weights[f"{name}.weight"] = weights[f"{name}.weight"] * weight
        _replace(nodes, second, name)


def _affine(node: Node, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the factor and the shift of a node, each (C,) or (1,)."""
    if node.op == "affine":
        pair = torch.tensor([node.attributes["scale"], node.attributes["shift"]], dtype=torch.float64)
        return pair[:1], pair[1:]
    weight = weights[f"{node.name}.weight"].double()
    bias = weights.get(f"{node.name}.bias")
    return weight, torch.zeros_like(weight) if bias is None else bias.double()


def _replace(nodes: dict[str, Node], name: str, value: str) -> None:
    """Remove a node; who took it takes `value`."""
    del nodes[name]
    for other in list(nodes.values()):
        if name in other.inputs:
            inputs = tuple(value if source == name else source for source in other.inputs)
            nodes[other.name] = replace(other, inputs=inputs)
