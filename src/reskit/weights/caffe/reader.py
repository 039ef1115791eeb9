"""Networks of Caffe: ``.caffemodel``, with its ``.prototxt`` and its mean where there are any.

Reference: Jia et al., "Caffe: Convolutional Architecture for Fast Feature Embedding", 2014.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reskit.errors import WeightsError
from reskit.files import sha256
from reskit.weights.building import GraphBuilder, blaming
from reskit.weights.caffe.layers import WEIGHTED, Translator
from reskit.weights.caffe.mean import mean_size, preprocessing, read_mean
from reskit.weights.caffe.schema import parse_binary, parse_text
from reskit.weights.checkpoint import READERS, Checkpoint, Reader, files_by_kind
from reskit.weights.report import some

__all__ = ["claims", "read_caffe"]

FILES = "model.caffemodel [model.prototxt] [mean.binaryproto or mean.npy]"
_KINDS = {
    ".caffemodel": ".caffemodel",
    ".prototxt": ".prototxt",
    ".binaryproto": "mean",
    ".npy": "mean",
}
_TEST = 1  # the number of this phase
_GROWTH = 8  # times the file's size that its weights may have: layers may share their arrays


def claims(files: Sequence[str | Path]) -> bool:
    """Tell whether these are a Caffe network, by their names."""
    names = [str(file).lower() for file in files]
    return any(n.endswith((".caffemodel", ".prototxt")) and not n.startswith("hf:") for n in names)


def read_caffe(files: Sequence[str | Path]) -> Checkpoint:
    """Read a Caffe network.

    The layers are those of the text, in its test phase, where there is one; the ``.caffemodel`` repeats
    those of the training phase.

    Args:
        files: one ``.caffemodel``; with it, in any order, its ``.prototxt`` and its mean, an image or one
            value per channel.

    Raises:
        MissingExtraError: protobuf is not installed.
        WeightsError: a file is missing, damaged, or holds what is not read; the files do not belong together.
    """
    by_kind = files_by_kind(files, _KINDS, needed=".caffemodel", whose="a Caffe", expected=FILES)
    model_path, text_path = by_kind[".caffemodel"], by_kind.get(".prototxt")
    with blaming(model_path):
        model = _parsed(parse_binary, model_path)
        blobs = {layer.name: list(layer.blobs) for layer in model.layer if layer.blobs}
    network = model
    if text_path is not None:
        with blaming(text_path):
            network = _parsed(parse_text, text_path)
            _match(network, blobs)
    mean_path = by_kind.get("mean")
    mean = None if mean_path is None else read_mean(mean_path)
    with blaming(text_path or model_path):
        builder = GraphBuilder(_GROWTH * model_path.stat().st_size)
        # Without an option of the data layer, the mean image says how large images are.
        translator = Translator(network, blobs, builder, mean_size(mean))
        layers = network.layer if text_path is None else [x for x in network.layer if _in_test(x)]
        for layer in layers:
            translator.add(layer)
        graph = builder.finish(translator.answer())
    notes = [
        *builder.notes,
        "The files do not say in which order the network takes colours: RGB was assumed.",
    ]
    channels = graph.input_shape[0]
    with blaming(mean_path or text_path or model_path):
        preprocess = preprocessing(translator.transform, mean, channels, translator.size, notes)
    return Checkpoint(
        format="caffe",
        source=" ".join(map(str, files)),
        state=graph.weights,
        graph=graph,
        preprocess=preprocess,
        provenance={"files": {path.name: sha256(path) for path in by_kind.values()}, "network": network.name},
        notes=notes,
    )


def _parsed(parse: Callable[[Path, str], Any], path: Path) -> Any:
    """Read a network; refuse what cannot be one and what is of Caffe's first formats."""
    network = parse(path, "NetParameter")
    if network.layers:
        raise WeightsError(
            "this is of Caffe's first format: convert it with Caffe's upgrade_net_proto_binary"
            " (.caffemodel) or upgrade_net_proto_text (.prototxt)"
        )
    if not network.layer:
        raise WeightsError("there are no layers in it: fetch it again")
    names = [network.name, *network.input]
    for layer in network.layer:
        names += [layer.name, layer.type, *layer.bottom, *layer.top]
    # Protobuf hands over as bytes what is not text.
    if not all(isinstance(name, str) for name in names):
        raise WeightsError("a layer's name is no text: the file is damaged, fetch it again")
    return network


def _match(network: Any, blobs: Mapping[str, Sequence[Any]]) -> None:
    """Refuse a text and a model that do not have the same layers with weights."""
    known = {layer.name for layer in network.layer}
    here = [x.name for x in network.layer if x.type in WEIGHTED and _in_test(x) and x.name not in blobs]
    there = [name for name in blobs if name not in known]
    problems = []
    if here:
        problems.append(f"layers without weights in the .caffemodel: {some(here)}")
    if there:
        problems.append(f"layers of the .caffemodel that are not here: {some(there)}")
    if problems:
        raise WeightsError(f"{'; '.join(problems)}: give the text this model was trained with")


def _in_test(layer: Any) -> bool:
    """Tell whether a layer is there in the test phase, level 0, no stage."""

    def met(rule: Any) -> bool:
        phase = not rule.HasField("phase") or rule.phase == _TEST
        level = rule.min_level <= 0 and (rule.max_level >= 0 or not rule.HasField("max_level"))
        return phase and level and not rule.stage

    if layer.include:
        return any(met(rule) for rule in layer.include)
    return not any(met(rule) for rule in layer.exclude)


READERS.add("caffe", Reader(claims=claims, read=read_caffe, files=FILES))
