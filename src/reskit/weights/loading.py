"""The one door: weights of any format, read and put into a network."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor, nn

from reskit.errors import WeightsError
from reskit.files import sha256
from reskit.weights.checkpoint import READERS, Checkpoint, Reader
from reskit.weights.fitting import Adaptable, fit_state
from reskit.weights.report import KeyReport, some
from reskit.weights.torch import load_state

__all__ = ["Source", "Weights", "as_checkpoint", "load_into", "read_checkpoint"]

Source: TypeAlias = str | Path | Enum
"""A file, a bundle's folder, ``hf:...``, ``torchvision:...`` or a member of torchvision's enumerations."""
Weights: TypeAlias = Source | Sequence[Source] | Checkpoint
"""A source, the several files of one network, or what was read of them."""

# Modules that register readers when imported, in the order in which their readers are asked.
_MODULES = ("torch", "hub", "torchvision", "caffe", "mxnet", "keras", "tflite")
_BUNDLE_CONFIG, _BUNDLE_WEIGHTS, _BUNDLE_SAMPLES = "config.json", "model.safetensors", "samples.safetensors"


def read_checkpoint(*sources: Source) -> Checkpoint:
    """Read weights of any known format, and all their files say beside them.

    Args:
        sources: one file, or the several that make one network (Caffe's ``.caffemodel`` and ``.prototxt``);
            a bundle's folder; ``hf:owner/name[@revision[/file]]``; ``torchvision:ResNet50_Weights.DEFAULT``
            or the member itself.

    Raises:
        WeightsError: no reader knows the sources, or they are damaged, hostile or not to be had.
        MissingExtraError: the format needs a package that is not installed.

    Example:
        >>> read_checkpoint("resnet50.safetensors").state["conv1.weight"].shape
        torch.Size([64, 3, 7, 7])
    """
    if not sources:
        raise WeightsError("no weights were given: name a file or a source")
    named = [_named(source) for source in sources]
    return _reader(named).read(named)


def _named(source: Source) -> str | Path:
    """Return a source as a string or a path: torchvision's members by their names."""
    return f"torchvision:{source}" if isinstance(source, Enum) else source


def _reader(sources: Sequence[str | Path]) -> Reader:
    """Return the reader that claims `sources`; formats are imported until one does.

    Raises:
        WeightsError: none does; it says what is known.
    """
    asked: set[str] = set()
    for module in _MODULES:
        import_module(f"reskit.weights.{module}")
        for name in READERS:
            if name not in asked and READERS.get(name).claims(sources):
                return READERS.get(name)
            asked.add(name)
    for source in sources:
        if Path(source).is_dir():
            raise WeightsError(f"{source} is a directory and no reskit bundle: give the weights file in it")
        if not Path(source).exists():
            raise WeightsError(f"there is no weights file at {source}")
    known = "; ".join(READERS.get(name).files for name in READERS)
    raise WeightsError(f"{some([str(s) for s in sources])}: no known format of weights; known are {known}")


def load_into(
    model: nn.Module,
    weights: Weights,
    *,
    strict: bool = True,
    ignore: Collection[str] = (),
    adapt: bool = False,
) -> KeyReport:
    """Load weights of any format into a model.

    Names decide what goes where, after the model's `renames`; weights of a format that says how its layers
    connect are matched by that. The model is changed only if all is well. The counter
    ``num_batches_tracked``, which older files lack and nothing reads, may be missing. A 1x1 convolution
    and a linear layer hold the same numbers and are taken for each other.

    Args:
        model: what to fill.
        weights: see :func:`read_checkpoint`; several files as a sequence; or what it returned.
        strict: whether every name must match; otherwise those that do are loaded.
        ignore: first parts of names in the file, such as ``"fc"``, that may be left over.
        adapt: for transfer: a head of another width is left as it is in the model, and first convolutions
            are fitted to the model's input channels: kernels are summed for one channel (grey then answers as
            the same grey in every channel did), else repeated in turn and scaled to keep their sum. Weights
            that are of the network a model is built on alone (`Backbone.inner`) fill that one.

    Returns:
        What became of every name.

    Raises:
        WeightsError: the weights cannot be read, or, if strict, a name or a shape does not fit.
    """
    checkpoint = as_checkpoint(weights)
    own = model.state_dict()
    if adapt and (inner := _inner_alone(model, own, checkpoint)):
        below = model.get_submodule(inner)
        headless = str(getattr(below, "head_name", ""))
        report = load_into(below, checkpoint, strict=strict, ignore=(*ignore, headless), adapt=True)
        return report.within(inner, own)
    state, renamed = _in_names_of(model, own, checkpoint)
    fit = fit_state(state, own, Adaptable.of(model) if adapt else Adaptable())
    missing = (n for n in own if n not in state and not n.endswith("num_batches_tracked"))
    report = KeyReport(
        matched=tuple(fit.state),
        renamed=renamed,
        missing=tuple(n for n in missing if n not in fit.adapted),
        unexpected=tuple(n for n in state if n not in own),
        mismatched={
            n: (tuple(t.shape), tuple(own[n].shape))
            for n, t in state.items()
            if n in own and n not in fit.state and n not in fit.adapted
        },
        adapted=fit.adapted,
    )
    if strict:
        _refuse_misfits(report, checkpoint.source, ignore)
    model.load_state_dict(fit.state, strict=False)
    return report


def as_checkpoint(weights: Weights) -> Checkpoint:
    """Return what :func:`read_checkpoint` reads of a source or several; a checkpoint as it is."""
    if isinstance(weights, Checkpoint):
        return weights
    return read_checkpoint(*([weights] if isinstance(weights, str | Path | Enum) else weights))


def _inner_alone(model: nn.Module, own: Mapping[str, Tensor], checkpoint: Checkpoint) -> str:
    """Return the name of the network a model is built on where weights are of that one alone, else none."""
    inner = str(getattr(model, "inner", ""))
    if not inner or checkpoint.graph is not None:  # of formats with a graph, classifiers are known
        return inner
    state, _ = _rename(checkpoint.state, getattr(model, "renames", ()))
    return inner if own.keys().isdisjoint(state) else ""


def _in_names_of(
    model: nn.Module, own: Mapping[str, Tensor], checkpoint: Checkpoint
) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """Return the weights under the model's names, and the old and new names that differ."""
    state, renamed = _rename(checkpoint.state, getattr(model, "renames", ()))
    if checkpoint.graph is None or all(name in own for name in state):
        return state, renamed
    if paths := getattr(model, "paths", None):  # made of such a graph: its layers are the graph's nodes
        renamed = {
            name: f"{paths[node]}.{weight}"
            for name in checkpoint.state
            for node, _, weight in [name.rpartition(".")]
            if node in paths
        }
        return {renamed.get(name, name): tensor for name, tensor in checkpoint.state.items()}, renamed
    from reskit.weights.align import align

    answer = next((node.op for node in reversed(checkpoint.graph.nodes) if node.op != "flatten"), "")
    return align(checkpoint.graph, _with_head(model) if answer in ("linear", "conv") else model)


def _with_head(model: nn.Module) -> nn.Module:
    """Return `model`, or where it was built without a head a copy with one, as foreign networks have."""
    if not hasattr(model, "make_head") or getattr(model, "num_classes", None) != 0:
        return model
    whole: Any = copy.deepcopy(model)
    whole.features_only = False
    whole.add_module(whole.head_name, whole.make_head(1))  # of any width, it is left over
    return whole  # type: ignore[no-any-return]


def _rename(state: Mapping[str, Tensor], renames: Sequence[Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state under new names, and the old and new names that differ."""
    result: dict[str, Tensor] = {}
    renamed = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in renames:
            new = re.sub(pattern, replacement, new)
        if new != name:
            renamed[name] = new
        result[new] = tensor
    return result, renamed


def _refuse_misfits(report: KeyReport, source: str, ignore: Collection[str]) -> None:
    """Raise a WeightsError that names what does not fit and says what to do."""
    unexpected = [n for n in report.unexpected if n.split(".")[0] not in ignore]
    shapes = [f"{n} is {theirs} there and {ours} here" for n, (theirs, ours) in report.mismatched.items()]
    problems = []
    if report.missing:
        problems.append(f"missing there: {some(report.missing)}")
    if unexpected:
        problems.append(f"unknown here: {some(unexpected)}")
    if shapes:
        problems.append(f"{some(shapes)}")
    if not problems:
        return
    if shapes and not report.missing and not unexpected:
        advice = (
            "build the model with the num_classes and in_channels the file was made with "
            "(for published weights the defaults of create_model), or load with load_into(..., adapt=True)"
        )
    else:
        advice = "check that the file was made with the same architecture"
    raise WeightsError(f"{source} does not fit the model: {'; '.join(problems)}; {advice}")


def _claims_bundle(sources: Sequence[str | Path]) -> bool:
    folder = Path(sources[0])
    return len(sources) == 1 and all((folder / name).is_file() for name in (_BUNDLE_CONFIG, _BUNDLE_SAMPLES))


def _read_bundle(sources: Sequence[str | Path]) -> Checkpoint:
    """Read the weights of a bundle and what its config.json says of them.

    Raises:
        WeightsError: it is not whole, or was altered.
    """
    folder = Path(sources[0])
    weights = folder / _BUNDLE_WEIGHTS
    if not weights.is_file():
        raise WeightsError(f"bundle {folder}: {_BUNDLE_WEIGHTS} is missing; restore it or train again")
    try:
        config = json.loads((folder / _BUNDLE_CONFIG).read_text(encoding="utf-8"))
        architecture, task = dict(config["architecture"]), dict(config["task"])
        expected, library = config["files"][_BUNDLE_WEIGHTS], config["library"]
        labels, preprocess = task.get("labels"), dict(task.get("preprocess") or {})
        question = {"name": task["name"], "arguments": dict(task.get("settings") or {})}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{folder / _BUNDLE_CONFIG} is not the config.json of a reskit bundle"
            f" ({type(error).__name__}: {error})"
        ) from error
    digest = sha256(weights)
    if digest != expected:
        raise WeightsError(f"{weights} was altered since it was written (SHA-256 differs)")
    return Checkpoint(
        format="bundle",
        source=str(sources[0]),
        state=load_state(weights),
        architecture=architecture,
        preprocess=preprocess,
        labels=labels,
        task=question,
        provenance={"library": library, "sha256": {weights.name: digest}},
    )


READERS.add("bundle", Reader(claims=_claims_bundle, read=_read_bundle, files="the folder of a reskit bundle"))
