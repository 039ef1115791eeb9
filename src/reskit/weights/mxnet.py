"""Networks of MXNet: ``.params`` and the ``-symbol.json`` that says how its layers connect.

Reference: Chen et al., "MXNet: A Flexible and Efficient Machine Learning Library for Heterogeneous
Distributed Systems", 2015.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reskit.errors import WeightsError
from reskit.files import sha256
from reskit.weights.building import GraphBuilder, blaming
from reskit.weights.checkpoint import READERS, Checkpoint, Reader
from reskit.weights.graph import Graph
from reskit.weights.mxnet_arrays import read_arrays
from reskit.weights.mxnet_layers import Translator
from reskit.weights.mxnet_symbol import parse_symbol
from reskit.weights.report import some

__all__ = ["claims", "read_mxnet"]

FILES = "model-0000.params [model-symbol.json]"


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
    by_kind = _sort(files)
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
            translator = Translator(symbol, state)
            answer = translator.run()
            preprocess = _preprocess(translator.builder)
            graph = translator.builder.finish(answer, translator.size)
        version = symbol.version
        provenance |= {"mxnet_version": version} if version else {}
        preprocess = {**preprocess, "channels": graph.input_shape[0]}
        preprocess |= {} if None in translator.size else {"size": translator.size}
        notes = _finished(translator, preprocess)
    return Checkpoint(
        format="mxnet",
        source=" ".join(map(str, files)),
        state=state if graph is None else graph.weights,
        graph=graph,
        preprocess=preprocess,
        provenance=provenance,
        notes=notes,
    )


def _finished(translator: Translator, preprocess: dict[str, Any]) -> list[str]:
    """Return the notes on a whole network, and repeat mean and deviation for each channel."""
    notes = list(translator.builder.notes)
    if "mean" in preprocess:
        for name in ("mean", "std"):
            preprocess[name] = (preprocess[name],) * preprocess["channels"]
        notes.append("The factor and shift the network applies to pixels first became mean and std.")
    else:
        notes.append("The files do not say how pixels are scaled: give mean and std.")
    left = translator.left_over()
    if left:
        notes.append(f"Arrays that no layer takes were left out: {some(left)}.")
    return notes


def _sort(files: Sequence[str | Path]) -> dict[str, Path]:
    """Return each file by its suffix."""
    by_kind: dict[str, Path] = {}
    for path in map(Path, files):
        suffix = path.suffix.lower()
        if suffix not in (".params", ".json"):
            raise WeightsError(f"{path} is no part of an MXNet network: give {FILES}")
        if suffix in by_kind:
            raise WeightsError(f"{by_kind[suffix]} and {path} are for the same: give {FILES}")
        if not path.is_file():
            raise WeightsError(f"there is no file at {path}")
        by_kind[suffix] = path
    if ".params" not in by_kind:
        raise WeightsError(f"{', '.join(map(str, files))} without weights: give {FILES}")
    return by_kind


def _preprocess(builder: GraphBuilder) -> dict[str, Any]:
    """Return mean and deviation, one number each, of pixels in [0, 1], if the network starts with them.

    It computes ``scale * pixel + shift`` of pixels from 0 to 255, which is ``(pixel - mean) / std``.
    """
    affine = builder.take_leading_affine()
    if affine is None:
        return {}
    scale, shift = affine
    if not (math.isfinite(scale) and math.isfinite(shift) and scale > 0):
        raise WeightsError(f"the network multiplies pixels by {scale} and adds {shift}: the file is damaged")
    return {"mean": -shift / scale / 255, "std": 1 / scale / 255}


READERS.add("mxnet", Reader(claims=claims, read=read_mxnet, files=FILES))
