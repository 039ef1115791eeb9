"""Whose weights are these? The network of a file, by what the file says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from reskit.errors import WeightsError
from reskit.models.graph import GraphNetwork
from reskit.models.recognise import fitted_to, recognise, recognise_state
from reskit.weights import Checkpoint

__all__ = ["identify"]


def identify(
    checkpoint: Checkpoint, *, name: str | None = None, size: tuple[int, int] | None = None, **options: Any
) -> dict[str, Any]:
    """Return the arguments of `create_model` for the network that weights are of.

    A file that names one of our networks is believed; one that says how its layers connect is compared with
    ours and, where it is none of them, becomes a network of its own (``"graph"``); of one that has names and
    shapes only, these are compared.

    Args:
        checkpoint: what was read.
        name: the network, where that is known; its classes and channels are then those of the weights.
        size: ``(height, width)`` of its images, where the file leaves that open.
        options: arguments of the named network.

    Raises:
        WeightsError: the weights are of no network we know, and do not say how they connect.
    """
    if name is not None:
        return fitted_to(checkpoint.state, name, **options)
    if checkpoint.architecture is not None:
        return dict(checkpoint.architecture)
    if checkpoint.graph is not None:
        channels, *known = checkpoint.graph.input_shape
        sides = size if size is not None and None in known else known
        graph = replace(checkpoint.graph, input_shape=(channels, *sides))
        found = recognise(graph)
        return found[0] if found else dict(GraphNetwork.from_graph(graph).architecture)
    architecture = recognise_state(checkpoint.state)
    if architecture is None:
        raise WeightsError(
            f"{checkpoint.source}: these weights are of no network known here by names and shapes;"
            " name the network they fit (`reskit models` lists all), or rename them as one of ours"
        )
    return architecture
