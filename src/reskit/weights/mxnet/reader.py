"""Networks of MXNet: ``.params`` and the ``-symbol.json`` that says how its layers connect.

Reference: Chen et al., "MXNet: A Flexible and Efficient Machine Learning Library for Heterogeneous
Distributed Systems", 2015.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reskit.files import sha256
from reskit.weights.building import GraphBuilder, blaming
from reskit.weights.checkpoint import READERS, Checkpoint, Reader, files_by_kind
from reskit.weights.graph import Graph
from reskit.weights.mxnet.arrays import read_arrays
from reskit.weights.mxnet.layers import Translator
from reskit.weights.mxnet.symbol import parse_symbol
from reskit.weights.report import some

__all__ = ["claims", "read_mxnet"]

FILES = "model-0000.params [model-symbol.json]"
_KINDS = {".params": ".params", ".json": ".json"}
_GROWTH = 8  # times the file's size that its weights may have: halves become floats, layers share arrays


def claims(files: Sequence[str | Path]) -> bool:
    """Tell whether these are a network of MXNet, by their names."""
    names = [str(file).lower() for file in files]
    return any(n.endswith((".params", "-symbol.json")) and not n.startswith("hf:") for n in names)


def read_mxnet(files: Sequence[str | Path]) -> Checkpoint:
    """Read a network of MXNet, or its arrays alone where there is no ``-symbol.json``.

    Factors and shifts the network applies to its input first become ``preprocess``: MXNet feeds pixels
    from 0 to 255.

    Args:
        files: one ``.params``, and its ``-symbol.json``, in any order.

    Raises:
        WeightsError: a file is missing, damaged, or holds what is not read; the files do not belong together.
    """
    by_kind = files_by_kind(files, _KINDS, needed=".params", whose="an MXNet", expected=FILES)
    with blaming(by_kind[".params"]):
        arrays = read_arrays(by_kind[".params"].read_bytes())
        state = {re.sub("^(arg|aux):", "", name): tensor for name, tensor in arrays.items()}
    graph: Graph | None = None
    preprocess: dict[str, Any] = {}
    provenance: dict[str, Any] = {"files": {path.name: sha256(path) for path in by_kind.values()}}
    notes = ["Without the -symbol.json nothing says how the layers connect."]
    if ".json" in by_kind:
        with blaming(by_kind[".json"]):
            symbol = parse_symbol(by_kind[".json"])
            builder = GraphBuilder(_GROWTH * by_kind[".params"].stat().st_size)
            translator = Translator(symbol, state, builder)
            graph, preprocess = builder.finish_normalised(translator.run(), largest=255)
        version = symbol.version
        provenance |= {"mxnet_version": version} if version else {}
        channels, *size = graph.input_shape
        notes = _notes(translator, bool(preprocess))
        preprocess |= {"channels": channels} | ({} if None in size else {"size": tuple(size)})
    return Checkpoint(
        format="mxnet",
        source=" ".join(map(str, files)),
        state=state if graph is None else graph.weights,
        graph=graph,
        preprocess=preprocess,
        provenance=provenance,
        notes=notes,
    )


def _notes(translator: Translator, normalised: bool) -> list[str]:
    """Return the notes on a whole network."""
    notes = list(translator.builder.notes)
    if not normalised:
        notes.append("The files do not say how pixels are scaled: give mean and std.")
    left = translator.left_over()
    if left:
        notes.append(f"Arrays that no layer takes were left out: {some(left)}.")
    return notes


READERS.add("mxnet", Reader(claims=claims, read=read_mxnet, files=FILES))
